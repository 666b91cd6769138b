//! `bench load`: how fast a sidecar answers.
//!
//! In reading order: [`requests`] (encoded before the load begins), [`pace`] (when each is due),
//! [`connection`] and [`stream`] (sending them), [`answers`] and [`tally`] (what is counted),
//! [`report`].

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

mod answers;
mod connection;
mod pace;
mod report;
mod requests;
mod stream;
mod tally;
mod wire;

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::sync::{Barrier, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use indicatif::HumanCount;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::connection::{Job, Line, connect};
use self::pace::{Arrivals, Pace, Plan};
use self::report::Report;
use self::requests::{Call, Requests};
use self::tally::{Live, Tally};
use super::questions::{self, QuestionArgs};
use super::shown::{Goal, Shown};
use crate::cli::client::ClientArgs;
use crate::cli::{Verdict, print};
use crate::grpc::pb;
use crate::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd_os::clock;

/// For the help.
pub(super) const EXAMPLES: &str = "\
Examples, with `consentd serve --ledger file:load.redb --synthetic 100000` elsewhere:
  consentd bench load                                        as many as it can, 64 in flight
  consentd bench load --in-flight 1                          the latency of one at a time
  consentd bench load --rate 20000                           at a rate, whatever the answers take
  consentd bench load --call filter --batch 1000 --json      campaigns; figures for a script

Latencies are of answered requests. With --rate they count from when a request was to be sent, so
that a server that stalls is charged with those that it kept waiting (coordinated omission); the
service time, from when it was sent, is told beside them. Without, each request follows an answer.";

/// The most requests of a connection that wait for answers: what servers of HTTP/2 let in.
const MAX_IN_FLIGHT: usize = 1_000;
/// Without --in-flight: enough to keep a server busy, and enough not to hold up an open loop.
const IN_FLIGHT: (usize, usize) = (64, MAX_IN_FLIGHT);
/// The most connections.
const MAX_CONNECTIONS: usize = 10_000;
/// The most threads.
const MAX_THREADS: usize = 256;
/// The most questions in a request, and how many there are without --batch.
const MAX_BATCH: usize = 10_000;
const BATCH: (usize, usize) = (100, 1_000);
/// The most different questions.
const MAX_QUESTIONS: usize = 10_000_000;
/// The most requests a second that are asked for.
const MAX_RATE: f64 = 10_000_000.0;
/// A load that lasts for longer is a mistake.
const MAX_TIME: Duration = Duration::from_hours(24 * 7);
/// From when all are connected to the first request.
const HEAD_START: Duration = Duration::from_millis(5);
/// How often the progress is shown.
const TICK: Duration = Duration::from_millis(200);

#[derive(Args, Debug)]
pub(super) struct LoadArgs {
    /// Which call
    #[arg(long, value_enum, default_value_t = Call::Unary)]
    call: Call,
    #[command(flatten)]
    questions: QuestionArgs,
    /// How many different questions are asked, in turn: those of `bench requests`
    #[arg(long = "questions", value_name = "N", default_value_t = 200_000)]
    different: usize,
    /// Ask the questions of this file instead, such as `bench requests` writes
    #[arg(long, value_name = "FILE",
          conflicts_with_all = ["users", "hit_ratio", "seed", "different"])]
    requests: Option<PathBuf>,
    /// Questions in a request of batch [default: 100] or users in a message of filter [default:
    /// 1000]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// How many connections
    #[arg(long, value_name = "N", default_value_t = 1)]
    connections: usize,
    /// Requests that wait for their answers on each connection, at most [default: 64; 1000 with
    /// --rate]
    #[arg(long, value_name = "N")]
    in_flight: Option<usize>,
    /// Send so many requests a second over all connections, however long answers take: an open
    /// loop [default: each follows an answer]
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// How they follow each other
    #[arg(long, value_enum, default_value_t = Arrivals::Even, requires = "rate")]
    arrivals: Arrivals,
    /// For how long
    #[arg(long, value_name = "TIME", default_value = "10s",
          value_parser = humantime::parse_duration)]
    duration: Duration,
    /// So many requests instead, however long they take
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    count: Option<u64>,
    /// What is sent for so long before counts for nothing
    #[arg(long, value_name = "TIME", default_value = "2s",
          value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Threads that send [default: one for each connection, and no more than there are CPUs]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    client: ClientArgs,
}

impl LoadArgs {
    /// Refuses what makes no sense.
    fn validate(&self) -> anyhow::Result<()> {
        self.questions.validate()?;
        for (flag, value, most) in [
            ("--questions", Some(self.different), MAX_QUESTIONS),
            ("--batch", self.batch, MAX_BATCH),
            ("--connections", Some(self.connections), MAX_CONNECTIONS),
            ("--in-flight", self.in_flight, MAX_IN_FLIGHT),
            ("--threads", self.threads, MAX_THREADS),
        ] {
            if value.is_some_and(|value| !(1..=most).contains(&value)) {
                bail!("{flag}: must be from 1 to {most}");
            }
        }
        if self.batch.is_some() && !self.call.is_batched() {
            bail!("--batch: only a --call of batch or filter asks several questions at once");
        }
        if self.rate.is_some_and(|rate| !(f64::MIN_POSITIVE..=MAX_RATE).contains(&rate)) {
            bail!("--rate: must be above 0, and at most {MAX_RATE} requests a second");
        }
        if self.count == Some(0) {
            bail!("--count: must be 1 or more");
        }
        for (flag, time) in [("--duration", self.duration), ("--warm-up", self.warm_up)] {
            if time > MAX_TIME {
                bail!("{flag}: must be at most {}", humantime::format_duration(MAX_TIME));
            }
        }
        if self.duration.is_zero() {
            bail!("--duration: must be more than nothing");
        }
        Ok(())
    }

    fn batch(&self) -> usize {
        match self.call {
            Call::Unary | Call::Stream => 1,
            Call::Batch => self.batch.unwrap_or(BATCH.0),
            Call::Filter => self.batch.unwrap_or(BATCH.1),
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight.unwrap_or(if self.rate.is_some() { IN_FLIGHT.1 } else { IN_FLIGHT.0 })
    }

    fn threads(&self) -> usize {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.unwrap_or(cpus.min(self.connections)).min(self.connections)
    }

    fn requests(&self) -> anyhow::Result<Requests> {
        let questions = if let Some(path) = &self.requests {
            questions::read(path)?
        } else {
            let different = u64::try_from(self.different).unwrap_or(u64::MAX);
            (0..different).map(|number| self.questions.question(number)).collect()
        };
        Ok(Requests::new(self.call, questions, self.batch()))
    }

    fn plan(&self, start: Duration) -> Plan {
        let counted_from = start + self.warm_up;
        Plan {
            start,
            counted_from,
            end: self.count.is_none().then(|| counted_from + self.duration),
            grace: self.client.timeout(),
            rate: self.rate,
            arrivals: self.arrivals,
            connections: u64::try_from(self.connections).unwrap_or(u64::MAX),
        }
    }
}

pub(super) fn load(args: &LoadArgs) -> anyhow::Result<Verdict> {
    args.validate()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = runtime.block_on(status(args))?;
    let requests = args.requests()?;
    let job = Job { client: args.client.clone(), requests, in_flight: args.in_flight() };
    let threads = args.threads();
    let live: Vec<Live> = (0..threads).map(|_| Live::default()).collect();
    let shared = Shared {
        args,
        job,
        connected: Barrier::new(threads),
        start: OnceLock::new(),
        stop: CancellationToken::new(),
    };
    let (working, mut ended) = mpsc::channel::<()>(1);
    let (loads, interrupted) = std::thread::scope(|scope| {
        let threads: Vec<_> = live
            .iter()
            .enumerate()
            .map(|(thread, live)| {
                let (shared, working) = (&shared, working.clone());
                scope.spawn(move || {
                    let _working = working;
                    shared.thread(thread, threads, live)
                })
            })
            .collect();
        drop(working);
        let interrupted = runtime.block_on(shared.watch(&live, &mut ended));
        let loads: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        (loads, interrupted)
    });
    let mut report = Report::new(args, server, interrupted);
    let start = shared.start.get().copied().unwrap_or_default();
    for load in loads {
        let load = load.map_err(|_| anyhow!("a thread of the load ended by a bug"))?;
        report.add(&load.context("cannot put load on it")?);
    }
    report.end(args.plan(start).counted_from);
    report.print(args.client.json)?;
    Ok(if report.is_clean() { Verdict::Yes } else { Verdict::No })
}

/// Asks whether somebody is there, before any load.
async fn status(args: &LoadArgs) -> anyhow::Result<pb::GetStatusResponse> {
    let channel = args.client.connect().await?;
    let request = args.client.request(pb::GetStatusRequest {});
    let status = ConsentServiceClient::new(channel).get_status(request).await;
    let status = status.map_err(|status| args.client.explain(&status))?.into_inner();
    let (users, pairs) = (args.questions.users, status.pairs);
    if args.requests.is_none() && pairs < users {
        print::note(&format!(
            "the sidecar holds {} pairs, and is asked about {}: start it with --synthetic {users}, \
             or give --users",
            HumanCount(pairs),
            HumanCount(users),
        ));
    }
    Ok(status)
}

/// What one thread did.
struct Load {
    tally: Tally,
    /// The time of a CPU that it used, and how long it took.
    cpu: Duration,
    wall: Duration,
}

/// What the threads of a load share.
struct Shared<'a> {
    args: &'a LoadArgs,
    job: Job,
    /// All have connected.
    connected: Barrier,
    /// When the first request is due.
    start: OnceLock<Duration>,
    stop: CancellationToken,
}

impl Shared<'_> {
    /// Loads with every so manieth of the connections.
    fn thread(&self, thread: usize, threads: usize, live: &Live) -> io::Result<Load> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let mine = (thread..self.args.connections).step_by(threads);
        let sockets = runtime.as_ref().ok().map(|runtime| {
            runtime.block_on(async {
                let connecting = join_all(mine.clone().map(|_| connect(&self.job.client)));
                tokio::select! {
                    sockets = connecting => sockets,
                    () = self.stop.cancelled() => Vec::new(),
                }
            })
        });
        // Even where something failed: the others wait for it.
        self.connected.wait();
        let start = *self.start.get_or_init(|| clock::boot() + HEAD_START);
        let (runtime, sockets) = (runtime?, sockets.unwrap_or_default());
        let (plan, began, cpu) = (self.args.plan(start), clock::boot(), clock::thread_cpu());
        let tally = RefCell::new(Tally::new());
        runtime.block_on(async {
            tokio::time::sleep(start.saturating_sub(clock::boot())).await;
            let lines = mine.zip(sockets).map(|(number, socket)| {
                let number = u64::try_from(number).unwrap_or(u64::MAX);
                let pace = Pace::new(plan, number, self.args.count);
                Ok((Line::new(&self.job, pace, &tally, live)?, socket))
            });
            let lines = lines.collect::<io::Result<Vec<_>>>()?;
            let mut running: FuturesUnordered<_> = lines
                .into_iter()
                .map(|(line, socket)| async move { line.run(socket).await })
                .collect();
            tokio::select! {
                () = async { while running.next().await.is_some() {} } => {}
                () = self.stop.cancelled() => {}
            }
            io::Result::Ok(())
        })?;
        Ok(Load {
            tally: tally.into_inner(),
            cpu: clock::thread_cpu().saturating_sub(cpu),
            wall: clock::boot().saturating_sub(began),
        })
    }

    /// Shows the progress until all threads have ended; says whether they were told to.
    async fn watch(&self, live: &[Live], ended: &mut mpsc::Receiver<()>) -> bool {
        let goal = match self.args.count {
            Some(count) => Goal::Count(count),
            None => Goal::Time(self.args.warm_up + self.args.duration),
        };
        let mut shown = Shown::new(goal);
        let mut tick = tokio::time::interval(TICK);
        let mut interrupted = false;
        loop {
            tokio::select! {
                _ = ended.recv() => break,
                _ = tokio::signal::ctrl_c(), if !interrupted => {
                    interrupted = true;
                    self.stop.cancel();
                }
                _ = tick.tick() => {
                    if let Some(start) = self.start.get() {
                        let all = live.iter().map(Live::read);
                        let sum = all.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
                        shown.show(clock::boot().saturating_sub(*start), sum);
                    }
                }
            }
        }
        shown.end();
        interrupted
    }
}
