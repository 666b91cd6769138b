//! `bench load`: throughput and latency of a sidecar's checks.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use consentd_bench::load::{self, Connect, Limit, Settings, Socket};
use consentd_bench::workload::{self, Workload};
use futures_util::future::LocalBoxFuture;
use indicatif::HumanCount;

use super::load_progress::{Goal, LoadProgress};
use super::load_report::LoadReport;
use super::requests::{self, QuestionArgs};
use crate::cli::client::ClientArgs;
use crate::cli::{Verdict, block_on, interrupted, output};
use crate::grpc::pb;
use crate::grpc::pb::consent_service_client::ConsentServiceClient;

/// The end of the command's help.
pub(super) const EXAMPLES: &str = "\
Examples, with `consentd serve --ledger file:load.redb --synthetic 100000` elsewhere:
  consentd bench load                                        as many as it can, 64 in flight
  consentd bench load --in-flight 1                          the latency of one at a time
  consentd bench load --rate 20000                           at a rate, whatever the answers take
  consentd bench load --call filter --batch 1000 --json      campaigns; figures for a script

Latencies are of answered requests. With --rate they count from when a request was to be sent, so
that a server that stalls is charged with those that it kept waiting (coordinated omission); the
service time, from when it was sent, is told beside them. Without, each request follows an answer.";

/// The most concurrent streams that HTTP/2 servers usually accept on a connection.
const MAX_IN_FLIGHT: usize = 1_000;
/// Keeps a server busy in a closed loop.
const DEFAULT_IN_FLIGHT_CLOSED: usize = 64;
/// Delays an open loop only if the server stalls.
const DEFAULT_IN_FLIGHT_OPEN: usize = MAX_IN_FLIGHT;
const MAX_CONNECTIONS: usize = 10_000;
const MAX_THREADS: usize = 256;
const MAX_BATCH: usize = 10_000;
const DEFAULT_BATCH: usize = 100;
const DEFAULT_RECIPIENTS: usize = 1_000;
const MAX_QUESTIONS: usize = 10_000_000;
const MAX_RATE_PER_SECOND: f64 = 10_000_000.0;
/// A longer load is likely to be a mistake.
const MAX_DURATION: Duration = Duration::from_hours(24 * 7);

/// The call under load.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Call {
    /// CanSend: one question a call
    Unary,
    /// BatchCanSend: --batch questions a call
    Batch,
    /// StreamCanSend: one stream a connection
    Stream,
    /// FilterRecipients: one stream a connection, --batch users a message
    Filter,
}

impl From<Call> for workload::Call {
    fn from(call: Call) -> Self {
        match call {
            Call::Unary => Self::Unary,
            Call::Batch => Self::Batch,
            Call::Stream => Self::Stream,
            Call::Filter => Self::Filter,
        }
    }
}

/// The distribution of arrivals.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Arrivals {
    /// As evenly as they can
    Even,
    /// As those of many senders who do not know each other
    Poisson,
}

impl From<Arrivals> for load::Arrivals {
    fn from(arrivals: Arrivals) -> Self {
        match arrivals {
            Arrivals::Even => Self::Even,
            Arrivals::Poisson => Self::Poisson,
        }
    }
}

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
    /// How the requests of --rate are spaced
    #[arg(long, value_enum, default_value_t = Arrivals::Even, requires = "rate")]
    arrivals: Arrivals,
    /// How long the measured load lasts
    #[arg(long, value_name = "TIME", default_value = "10s",
          value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Stop after this many measured requests instead of after --duration
    #[arg(long, value_name = "N", conflicts_with = "duration")]
    count: Option<u64>,
    /// How long to send requests before measuring
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
    /// Checks the bounds of the flags.
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
        if self.batch.is_some() && !self.call().is_batched() {
            bail!("--batch: only a --call of batch or filter asks several questions at once");
        }
        if self.rate.is_some_and(|rate| !(f64::MIN_POSITIVE..=MAX_RATE_PER_SECOND).contains(&rate))
        {
            bail!("--rate: must be above 0, and at most {MAX_RATE_PER_SECOND} requests a second");
        }
        if self.count == Some(0) {
            bail!("--count: must be 1 or more");
        }
        for (flag, time) in [("--duration", self.duration), ("--warm-up", self.warm_up)] {
            if time > MAX_DURATION {
                bail!("{flag}: must be at most {}", humantime::format_duration(MAX_DURATION));
            }
        }
        if self.duration.is_zero() {
            bail!("--duration: must be more than nothing");
        }
        Ok(())
    }

    fn call(&self) -> workload::Call {
        self.call.into()
    }

    fn batch(&self) -> usize {
        match self.call {
            Call::Unary | Call::Stream => 1,
            Call::Batch => self.batch.unwrap_or(DEFAULT_BATCH),
            Call::Filter => self.batch.unwrap_or(DEFAULT_RECIPIENTS),
        }
    }

    fn in_flight(&self) -> usize {
        let is_open = self.rate.is_some();
        let default = if is_open { DEFAULT_IN_FLIGHT_OPEN } else { DEFAULT_IN_FLIGHT_CLOSED };
        self.in_flight.unwrap_or(default)
    }

    fn threads(&self) -> usize {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.unwrap_or(cpus.min(self.connections)).min(self.connections)
    }

    fn workload(&self) -> anyhow::Result<Workload> {
        let questions = if let Some(path) = &self.requests {
            requests::read(path)?
        } else {
            let count = u64::try_from(self.different).unwrap_or(u64::MAX);
            let questions = self.questions.questions();
            (0..count).map(|number| questions.question(number)).collect()
        };
        Ok(Workload::new(self.call(), questions, self.batch()))
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        Ok(Settings {
            workload: self.workload()?,
            connections: self.connections,
            in_flight: self.in_flight(),
            threads: self.threads(),
            rate: self.rate,
            arrivals: self.arrivals.into(),
            limit: self.count.map_or(Limit::Time(self.duration), Limit::Requests),
            warm_up: self.warm_up,
            timeout: self.client.timeout(),
        })
    }
}

impl Connect for ClientArgs {
    fn connect(&self) -> LocalBoxFuture<'_, io::Result<Socket>> {
        Box::pin(self.socket())
    }
}

pub(super) fn load(args: &LoadArgs) -> anyhow::Result<Verdict> {
    args.validate()?;
    let server = block_on(status(args))?;
    let settings = args.settings()?;
    let mut progress = LoadProgress::new(match settings.limit {
        Limit::Requests(count) => Goal::Count(count),
        Limit::Time(duration) => Goal::Time(settings.warm_up + duration),
    });
    let show = |now| progress.show(now);
    let measurement = load::run(&settings, &args.client, show, interrupted());
    drop(progress);
    let report = LoadReport {
        addr: args.client.addr(),
        batch: args.batch(),
        settings: &settings,
        measurement: &measurement?,
        server: &server,
    };
    report.print(args.client.json)?;
    Ok(if report.is_clean() { Verdict::Yes } else { Verdict::No })
}

/// Asks for the sidecar's status before any load, which shows whether there is one.
async fn status(args: &LoadArgs) -> anyhow::Result<pb::GetStatusResponse> {
    let channel = args.client.connect().await?;
    let request = args.client.request(pb::GetStatusRequest {});
    let status = ConsentServiceClient::new(channel).get_status(request).await;
    let status = status.map_err(|status| args.client.explain(&status))?.into_inner();
    let (users, pairs) = (args.questions.users, status.pairs);
    if args.requests.is_none() && pairs < users {
        output::note(&format!(
            "the sidecar holds {} pairs, and is asked about {}: start it with --synthetic {users}, \
             or give --users",
            HumanCount(pairs),
            HumanCount(users),
        ));
    }
    Ok(status)
}
