//! `bench propagation`: from a recorded event to the answers of other sidecars.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use indicatif::HumanCount;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::latencies::{self, Latencies};
use super::shown::{Goal, Shown};
use crate::cli::client::{ClientArgs, TokenArgs};
use crate::cli::record::random_id;
use crate::cli::{Verdict, print};
use crate::grpc::pb;
use crate::grpc::pb::consent_event::What;
use crate::grpc::pb::consent_service_client::ConsentServiceClient;
use crate::grpc::pb::record_service_client::RecordServiceClient;
use crate::net::socket::Address;
use consentd_os::clock;

/// For the help.
pub(super) const WHAT_IS_WRITTEN: &str = "\
It writes to the ledger, for good: suppressions and their lifting, in turn, of the users
bench-0, bench-1 … of a business of its own, consentd-bench, which --yes agrees to. Run again, it
writes about the same ones. The sidecars of --addr are asked about them, again and again, until they
answer by what was recorded: from when it was sent to --record, and from when that had answered.

Example:
  consentd bench propagation --record 10.0.0.1:50052 --addr 10.0.0.2:50051,10.0.0.3:50051 --yes";

/// Whose users are written about.
const BUSINESS: &str = "consentd-bench";
/// The most of them.
const MAX_USERS: u32 = 100_000;
/// How often each of them may be written about in a second: two events of one millisecond would
/// not be told apart.
const MAX_RATE_OF_A_USER: f64 = 20.0;
/// A measurement that lasts for longer is a mistake.
const MAX_TIME: Duration = Duration::from_hours(24);

#[derive(Args, Debug)]
pub(super) struct PropagationArgs {
    /// The sidecar that records
    #[arg(long, value_name = "ADDR")]
    record: Address,
    /// Those that are asked
    #[arg(long, value_name = "ADDR,…", value_delimiter = ',', required = true)]
    addr: Vec<Address>,
    /// How many events a second
    #[arg(long, value_name = "R", default_value_t = 20.0)]
    rate: f64,
    /// For how long
    #[arg(long, value_name = "TIME", default_value = "10s",
          value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How many users are written about, in turn
    #[arg(long, value_name = "N", default_value_t = 100)]
    users: u32,
    /// How long to wait for an answer, and for answers by what was recorded
    #[arg(long, value_name = "TIME", default_value = "5s",
          value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Agree to what is written to the ledger
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    token: TokenArgs,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

impl PropagationArgs {
    /// Refuses what makes no sense.
    fn validate(&self) -> anyhow::Result<()> {
        if !(1..=MAX_USERS).contains(&self.users) {
            bail!("--users: must be from 1 to {MAX_USERS}");
        }
        let most = MAX_RATE_OF_A_USER * f64::from(self.users);
        if !(f64::MIN_POSITIVE..=most).contains(&self.rate) {
            bail!("--rate: must be above 0, and at most {most} a second of so many --users");
        }
        if self.duration.is_zero() || self.duration > MAX_TIME {
            let most = humantime::format_duration(MAX_TIME);
            bail!("--duration: must be more than nothing, and at most {most}");
        }
        if !self.yes {
            bail!(
                "--yes: is missing; this records about {:.0} events of the business {BUSINESS} in \
                 the ledger, for good (see --help)",
                (self.rate * self.duration.as_secs_f64()).ceil()
            );
        }
        Ok(())
    }
}

/// A sidecar that is asked, and what it answered.
struct Asked {
    addr: Address,
    checks: ConsentServiceClient<Channel>,
    from_sent: Latencies,
    from_answer: Latencies,
    /// How long one question took: what is finer than that cannot be seen.
    question: Latencies,
    /// How often it answered by an event whose recording had not been answered yet.
    before: u64,
    /// How often it did not answer by it in time.
    missed: u64,
}

/// All of a measurement.
struct Measured {
    asked: Vec<Asked>,
    recording: Latencies,
    /// Events that were not recorded, or changed nothing.
    failed: u64,
    /// Events that were due while their user's last one was under way.
    skipped: u64,
}

/// What came of one event.
struct Outcome {
    user: u32,
    sent: Duration,
    /// When its recording was answered.
    recorded: Option<Duration>,
    /// When each sidecar answered by it, and how long its questions took.
    enforced: Vec<(Option<Duration>, Latencies)>,
}

pub(super) async fn propagation(args: PropagationArgs) -> anyhow::Result<Verdict> {
    args.validate()?;
    let recorder = ClientArgs::at(args.record.clone(), args.timeout);
    let records = RecordServiceClient::new(recorder.connect().await?);
    let token = args.token.header()?;
    let mut asked = Vec::new();
    for addr in &args.addr {
        let channel = ClientArgs::at(addr.clone(), args.timeout).connect().await?;
        asked.push(Asked {
            addr: addr.clone(),
            checks: ConsentServiceClient::new(channel),
            from_sent: Latencies::new(),
            from_answer: Latencies::new(),
            question: Latencies::new(),
            before: 0,
            missed: 0,
        });
    }
    let mut suppressed = suppressed(&args, asked.first()).await?;
    let mut measured = Measured { asked, recording: Latencies::new(), failed: 0, skipped: 0 };
    let recorder = Recorder { client: recorder, records, token };
    if let Some(first) = suppressed.first_mut() {
        *first = !*first;
        try_once(&recorder, &measured.asked, *first).await?;
    }
    measure(&args, &recorder, suppressed, &mut measured).await;
    measured.print(&args)?;
    let clean = measured.failed == 0 && measured.asked.iter().all(|asked| asked.missed == 0);
    Ok(if clean { Verdict::Yes } else { Verdict::No })
}

fn user_id(user: u32) -> String {
    format!("bench-{user}")
}

/// Whether each user is suppressed, by what an earlier run left.
async fn suppressed(args: &PropagationArgs, asked: Option<&Asked>) -> anyhow::Result<Vec<bool>> {
    let Some(asked) = asked else { bail!("--addr: names no sidecar") };
    let client = ClientArgs::at(asked.addr.clone(), args.timeout);
    let mut checks = asked.checks.clone();
    let mut all = Vec::new();
    for user in 0..args.users {
        let pair =
            pb::GetConsentRequest { user_id: user_id(user), business_id: BUSINESS.to_owned() };
        let answer = checks.get_consent(client.request(pair)).await;
        let answer = answer.map_err(|status| client.explain(&status))?;
        all.push(answer.into_inner().suppressed);
    }
    Ok(all)
}

/// Where events are recorded.
struct Recorder {
    client: ClientArgs,
    records: RecordServiceClient<Channel>,
    token: Option<MetadataValue<Ascii>>,
}

impl Recorder {
    /// Records that a user is suppressed, or no more; says whether that changed something.
    async fn record(&self, user: u32, suppressed: bool) -> anyhow::Result<bool> {
        let suppression =
            pb::Suppression { suppressed, reference: "consentd bench propagation".to_owned() };
        let mut request = self.client.request(pb::RecordEventRequest {
            event: Some(pb::ConsentEvent {
                user_id: user_id(user),
                business_id: BUSINESS.to_owned(),
                event_time: None,
                what: Some(What::Suppression(suppression)),
            }),
            // A lifted suppression without a time needs one; nothing is sent twice here.
            request_id: random_id()?,
        });
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        let answer = self.records.clone().record_event(request).await;
        let answer = answer.map_err(|status| self.client.explain(&status))?;
        Ok(answer.into_inner().applied)
    }
}

/// The first event tells what is wrong, where something is for all of them.
async fn try_once(recorder: &Recorder, asked: &[Asked], suppressed: bool) -> anyhow::Result<()> {
    recorder.record(0, suppressed).await?;
    let timeout = recorder.client.timeout();
    for Asked { addr, checks, .. } in asked {
        if ask(checks.clone(), 0, suppressed, timeout).await.0.is_none() {
            bail!(
                "{addr} does not answer by what was recorded at {} within {}: does it follow the \
                 same ledger?",
                recorder.client.addr(),
                humantime::format_duration(timeout)
            );
        }
    }
    Ok(())
}

/// Records at the rate that was asked for; each event is followed to all sidecars.
async fn measure(
    args: &PropagationArgs,
    recorder: &Recorder,
    mut suppressed: Vec<bool>,
    measured: &mut Measured,
) {
    let checks: Vec<_> = measured.asked.iter().map(|asked| asked.checks.clone()).collect();
    let mut busy: Vec<bool> = suppressed.iter().map(|_| false).collect();
    let mut following = FuturesUnordered::new();
    let started = clock::boot();
    let mut shown = Shown::new(Goal::Time(args.duration));
    let mut ticks = interval(Duration::from_secs_f64(1.0 / args.rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut users = (0..args.users).cycle();
    let mut going_on = true;
    while going_on || !following.is_empty() {
        tokio::select! {
            Some(outcome) = following.next() => {
                let outcome: Outcome = outcome;
                if let Some(busy) = index(outcome.user).and_then(|user| busy.get_mut(user)) {
                    *busy = false;
                }
                measured.add(outcome);
            }
            _ = ticks.tick(), if going_on => {
                let since = clock::boot().saturating_sub(started);
                shown.show(since, (measured.recording.count(), measured.problems()));
                going_on = since < args.duration;
                let Some(user) = users.next().filter(|_| going_on) else { continue };
                let slots = index(user).and_then(|at| Some((busy.get_mut(at)?, suppressed.get_mut(at)?)));
                match slots {
                    Some((busy, suppressed)) if !*busy => {
                        *busy = true;
                        *suppressed = !*suppressed;
                        following.push(follow(recorder, &checks, user, *suppressed));
                    }
                    _ => measured.skipped += 1,
                }
            }
            _ = tokio::signal::ctrl_c(), if going_on => going_on = false,
        }
    }
    shown.end();
}

fn index(user: u32) -> Option<usize> {
    usize::try_from(user).ok()
}

/// Records an event, and asks all sidecars until they answer by it.
async fn follow(
    to: &Recorder,
    checks: &[ConsentServiceClient<Channel>],
    user: u32,
    suppressed: bool,
) -> Outcome {
    let sent = clock::boot();
    let recording = async {
        let applied = to.record(user, suppressed).await;
        applied.is_ok_and(|applied| applied).then(clock::boot)
    };
    let timeout = to.client.timeout();
    let asking = checks.iter().map(|checks| ask(checks.clone(), user, suppressed, timeout));
    let (recorded, enforced) = futures_util::join!(recording, join_all(asking));
    Outcome { user, sent, recorded, enforced }
}

/// Asks until the answer is by the event; gives when it was, and how long questions took.
async fn ask(
    mut checks: ConsentServiceClient<Channel>,
    user: u32,
    suppressed: bool,
    timeout: Duration,
) -> (Option<Duration>, Latencies) {
    let mut took = Latencies::new();
    let begun = clock::boot();
    loop {
        let asked = clock::boot();
        if asked.saturating_sub(begun) > timeout {
            return (None, took);
        }
        let answer = checks
            .can_send(pb::CanSendRequest {
                user_id: user_id(user),
                business_id: BUSINESS.to_owned(),
                category: "service".to_owned(),
                ..Default::default()
            })
            .await;
        let now = clock::boot();
        took.record(now.saturating_sub(asked));
        match answer {
            Ok(answer) if (answer.get_ref().reason() == pb::Reason::Suppressed) == suppressed => {
                return (Some(now), took);
            }
            Ok(_) => {}
            // One that is gone is not asked as fast as it refuses.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

impl Measured {
    fn add(&mut self, outcome: Outcome) {
        let Outcome { sent, recorded, enforced, .. } = outcome;
        let Some(recorded) = recorded else {
            self.failed += 1;
            return;
        };
        self.recording.record(recorded.saturating_sub(sent));
        for (asked, (enforced, question)) in self.asked.iter_mut().zip(enforced) {
            asked.question.add(&question);
            let Some(enforced) = enforced else {
                asked.missed += 1;
                continue;
            };
            asked.before += u64::from(enforced <= recorded);
            asked.from_sent.record(enforced.saturating_sub(sent));
            asked.from_answer.record(enforced.saturating_sub(recorded));
        }
    }

    fn problems(&self) -> u64 {
        self.failed + self.asked.iter().map(|asked| asked.missed).sum::<u64>()
    }

    fn print(&self, args: &PropagationArgs) -> anyhow::Result<()> {
        if args.json {
            return print::line(&self.json(args).to_string());
        }
        print::line(&format!(
            "{} events recorded at {}, {} failed, {} skipped",
            HumanCount(self.recording.count()),
            args.record,
            HumanCount(self.failed),
            HumanCount(self.skipped),
        ))?;
        print::line(&format!("\n{}", latencies::head("µs")))?;
        print::line(&self.recording.row("recording"))?;
        for asked in &self.asked {
            print::line(&format!(
                "\n{}: {} enforced, {} of them before the recording was answered; {} missed",
                asked.addr,
                HumanCount(asked.from_sent.count()),
                HumanCount(asked.before),
                HumanCount(asked.missed),
            ))?;
            print::line(&asked.from_sent.row("  from sent"))?;
            print::line(&asked.from_answer.row("  from its answer"))?;
            print::line(&asked.question.row("  one question"))?;
        }
        Ok(())
    }

    fn json(&self, args: &PropagationArgs) -> serde_json::Value {
        let sidecars = self.asked.iter().map(|asked| {
            json!({
                "addr": asked.addr.to_string(),
                "enforced": asked.from_sent.count(),
                "enforced_before_answer": asked.before,
                "missed": asked.missed,
                "from_sent_us": asked.from_sent.json(),
                "from_answer_us": asked.from_answer.json(),
                "question_us": asked.question.json(),
            })
        });
        json!({
            "record": args.record.to_string(),
            "rate_per_second": args.rate,
            "events": self.recording.count(),
            "failed": self.failed,
            "skipped": self.skipped,
            "recording_us": self.recording.json(),
            "sidecars": sidecars.collect::<Vec<_>>(),
        })
    }
}
