//! `bench propagation`: the time from a recorded event to its enforcement by other sidecars.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use consentd_bench::propagation::{
    BUSINESS, Measurement, PropagationError, Recorder, Settings, run,
};
use indicatif::HumanCount;
use serde_json::json;

use super::latency_table::{self, row};
use super::load_progress::{Goal, LoadProgress};
use crate::cli::client::{ClientArgs, TokenArgs};
use crate::cli::record::random_request_id;
use crate::cli::{Verdict, interrupted, output};
use crate::grpc::pb::consent_service_client::ConsentServiceClient;
use crate::grpc::pb::record_service_client::RecordServiceClient;
use crate::net::socket::Address;

/// The end of the command's help.
pub(super) const WHAT_IS_WRITTEN: &str = "\
It writes to the ledger, for good: suppressions and their lifting, in turn, of the users
bench-0, bench-1 … of a business of its own, consentd-bench, which --yes agrees to. Run again, it
writes about the same ones. The sidecars of --addr are asked about them, again and again, until they
answer by what was recorded: from when it was sent to --record, and from when that had answered.

Example:
  consentd bench propagation --record 10.0.0.1:50052 --addr 10.0.0.2:50051,10.0.0.3:50051 --yes";

const MAX_USERS: u32 = 100_000;
/// Events a second for one user. Two events of one millisecond could not be distinguished.
const MAX_RATE_PER_USER: f64 = 20.0;
/// A longer measurement is likely to be a mistake.
const MAX_DURATION: Duration = Duration::from_hours(24);

#[derive(Args, Debug)]
pub(super) struct PropagationArgs {
    /// The sidecar that records
    #[arg(long, value_name = "ADDR")]
    record: Address,
    /// The sidecars that must enforce the events
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
    /// Checks the bounds of the flags.
    fn validate(&self) -> anyhow::Result<()> {
        if !(1..=MAX_USERS).contains(&self.users) {
            bail!("--users: must be from 1 to {MAX_USERS}");
        }
        let most = MAX_RATE_PER_USER * f64::from(self.users);
        if !(f64::MIN_POSITIVE..=most).contains(&self.rate) {
            bail!("--rate: must be above 0, and at most {most} a second of so many --users");
        }
        if self.duration.is_zero() || self.duration > MAX_DURATION {
            let most = humantime::format_duration(MAX_DURATION);
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

pub(super) async fn propagation(args: PropagationArgs) -> anyhow::Result<Verdict> {
    args.validate()?;
    let recorder_args = ClientArgs::at(args.record.clone(), args.timeout);
    let recorder = Recorder {
        client: RecordServiceClient::new(recorder_args.connect().await?),
        authorization: args.token.header()?,
    };
    let mut sidecars = Vec::new();
    for addr in &args.addr {
        let channel = ClientArgs::at(addr.clone(), args.timeout).connect().await?;
        sidecars.push(ConsentServiceClient::new(channel));
    }
    let settings = Settings {
        users: args.users,
        rate: args.rate,
        duration: args.duration,
        timeout: args.timeout,
        run_id: random_request_id()?,
    };
    let mut progress = LoadProgress::new(Goal::Time(args.duration));
    let show = |now| progress.show(now);
    let measurement = run(&settings, &recorder, &sidecars, show, interrupted()).await;
    drop(progress);
    let measurement = measurement.map_err(|error| explain(&args, &error))?;
    print(&args, &measurement)?;
    Ok(if measurement.is_clean() { Verdict::Yes } else { Verdict::No })
}

/// Explains an error with the addresses that the command was given.
fn explain(args: &PropagationArgs, error: &PropagationError) -> anyhow::Error {
    let client = |addr: &Address| ClientArgs::at(addr.clone(), args.timeout);
    match (error, &*args.addr) {
        (PropagationError::Recorder(status), _) => client(&args.record).explain(status),
        (PropagationError::FirstSidecar(status), [first, ..]) => client(first).explain(status),
        (PropagationError::NotEnforced(index), addresses) if *index < addresses.len() => anyhow!(
            "{} does not answer by what was recorded at {} within {}: does it follow the same \
             ledger?",
            addresses[*index],
            args.record,
            humantime::format_duration(args.timeout)
        ),
        (error, _) => anyhow!("{error}"),
    }
}

fn print(args: &PropagationArgs, measurement: &Measurement) -> anyhow::Result<()> {
    if args.json {
        return output::line(&json(args, measurement).to_string());
    }
    output::line(&format!(
        "{} events recorded at {}, {} failed, {} skipped",
        HumanCount(measurement.recording.count()),
        args.record,
        HumanCount(measurement.failed),
        HumanCount(measurement.skipped),
    ))?;
    output::line(&format!("\n{}", latency_table::header("µs")))?;
    output::line(&row("recording", &measurement.recording))?;
    for (addr, observation) in args.addr.iter().zip(&measurement.observations) {
        output::line(&format!(
            "\n{addr}: {} enforced, {} of them before the recording was answered; {} missed",
            HumanCount(observation.since_sent.count()),
            HumanCount(observation.before_acknowledged),
            HumanCount(observation.missed),
        ))?;
        output::line(&row("  from sent", &observation.since_sent))?;
        output::line(&row("  from its answer", &observation.since_acknowledged))?;
        output::line(&row("  one question", &observation.question))?;
    }
    Ok(())
}

fn json(args: &PropagationArgs, measurement: &Measurement) -> serde_json::Value {
    let sidecars = args.addr.iter().zip(&measurement.observations).map(|(addr, observation)| {
        json!({
            "addr": addr.to_string(),
            "enforced": observation.since_sent.count(),
            "enforced_before_answer": observation.before_acknowledged,
            "missed": observation.missed,
            "from_sent_us": latency_table::json(&observation.since_sent),
            "from_answer_us": latency_table::json(&observation.since_acknowledged),
            "question_us": latency_table::json(&observation.question),
        })
    });
    json!({
        "record": args.record.to_string(),
        "rate_per_second": args.rate,
        "events": measurement.recording.count(),
        "failed": measurement.failed,
        "skipped": measurement.skipped,
        "recording_us": latency_table::json(&measurement.recording),
        "sidecars": sidecars.collect::<Vec<_>>(),
    })
}
