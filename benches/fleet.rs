//! What followers cost one Redis: commands, bytes and CPU, idle and while others write; with as
//! many as fit here, and from that for a thousand sidecars.
//!
//! `cargo bench --bench fleet` begins 200 followers; `-- 50` so many.

#![allow(
    clippy::cast_precision_loss,
    dead_code,
    reason = "figures are rounded, and it needs a part of the tests' harness"
)]

#[path = "../tests/it/faults/redis.rs"]
mod redis_server;
#[path = "../tests/it/faults/resp.rs"]
mod resp;
#[path = "../tests/servers/mod.rs"]
mod servers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use consentd::follower::Follower;
use consentd::follower::scheduler::period;
use consentd::metrics::Metrics;
use consentd::recorder::{MAX_EVENTS, Recorder};
use consentd::table::{self, Table, Validity};
use consentd_core::event::{Event, PlatformNames, What};
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::scope::Scope;
use consentd_core::submission::Submission;
use consentd_ledger::{Ledger, Options, Redis, Target, TargetOptions, create};
use tokio_util::sync::CancellationToken;

/// A bucket of each has as many pairs as one of 8,192 has of a million.
const BUCKETS: u32 = 64;
const PAIRS: u32 = BUCKETS * 122;

/// As by default.
const BOUND: Duration = Duration::from_secs(5);
const SCRUB: Duration = Duration::from_secs(10);

/// How long is measured.
const WHILE: Duration = Duration::from_secs(20);

/// What a fleet is.
const FLEET: f64 = 1_000.0;

fn main() {
    let most = std::env::args().skip(1).find_map(|arg| arg.parse::<usize>().ok()).unwrap_or(200);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = redis_server::Redis::start(&["--save", "", "--appendonly", "no"]);
        let url = format!("redis://127.0.0.1:{}", server.port());
        create(target(&url), BUCKETS).await.unwrap();
        let stop = CancellationToken::new();
        let recorder = recorder(&url, &stop);
        let pairs: Vec<u32> = (0..PAIRS).collect();
        for some in pairs.chunks(MAX_EVENTS) {
            record(&recorder, some.iter().copied()).await;
        }
        let mut followers: Vec<Table> = Vec::new();
        for count in [1, most / 4, most] {
            while followers.len() < count {
                followers.push(follow(&url, &stop));
            }
            for table in &followers {
                while table.freshness().validity != Validity::Valid {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            tokio::time::sleep(SCRUB).await;
            for rate in [0, 100, 1_000] {
                let cost = cost(&server, &recorder, rate).await;
                tell(count, rate, &cost);
            }
        }
        stop.cancel();
    });
}

fn target(url: &str) -> Target {
    Target::new(url, TargetOptions::default()).unwrap()
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(prometheus::Registry::new()).unwrap())
}

fn recorder(url: &str, stop: &CancellationToken) -> Recorder {
    let (ledger, driver) = Redis::new(target(url), Options::default());
    tokio::spawn(driver.run(stop.clone()));
    let keywords = Keywords::new(KeywordLists::default());
    Recorder::new(Ledger::Redis(ledger), PlatformNames::default(), keywords, metrics())
}

fn follow(url: &str, stop: &CancellationToken) -> Table {
    let options = Options { retention: None, poll_within: period(BOUND), ..Options::default() };
    let (ledger, driver) = Redis::new(target(url), options);
    tokio::spawn(driver.run(stop.clone()));
    let (table, writer) = table::new();
    let follower =
        Follower::new(Ledger::Redis(ledger).partition(0).unwrap(), writer, metrics(), BOUND);
    tokio::spawn(follower.with_scrub_interval(Some(SCRUB)).run(stop.clone()));
    table
}

async fn record(recorder: &Recorder, users: impl Iterator<Item = u32>) {
    let submission = |user| {
        let event = Event {
            user_id: format!("1555{user:07}"),
            business_id: "acme".to_owned(),
            time: None,
            what: What::OptOut { scope: Scope::All, reference: String::new() },
        };
        Submission::new(event, String::new())
    };
    let submissions: Vec<_> = users.map(submission).collect();
    if submissions.is_empty() {
        return;
    }
    let results = recorder.record(&submissions).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// What Redis has done so far.
#[derive(Clone, Copy)]
struct Done {
    commands: f64,
    read: f64,
    written: f64,
    cpu: f64,
}

fn done(server: &redis_server::Redis) -> Done {
    let number = |field: &str| server.info(field).parse::<f64>().unwrap();
    Done {
        commands: number("total_commands_processed"),
        read: number("total_net_input_bytes"),
        written: number("total_net_output_bytes"),
        cpu: number("used_cpu_sys") + number("used_cpu_user"),
    }
}

/// What it does in a second, while so many events are recorded in each.
async fn cost(server: &redis_server::Redis, recorder: &Recorder, rate: u32) -> Done {
    let (before, begun) = (done(server), Instant::now());
    let mut written = 0;
    while begun.elapsed() < WHILE {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let due = u32::try_from(begun.elapsed().as_millis()).unwrap() * rate / 1_000;
        record(recorder, (written..due).map(|n| n % PAIRS)).await;
        written = due;
    }
    let (after, seconds) = (done(server), begun.elapsed().as_secs_f64());
    Done {
        commands: (after.commands - before.commands) / seconds,
        read: (after.read - before.read) / seconds,
        written: (after.written - before.written) / seconds,
        cpu: (after.cpu - before.cpu) / seconds,
    }
}

fn tell(count: usize, rate: u32, cost: &Done) {
    let each = count as f64;
    println!(
        "{count} followers, {rate} writes a second: {:.1} commands a second, {:.0} KiB in, {:.0} \
         KiB out, {:.2} % of a core; each follower {:.2} commands, {:.0} B in, {:.0} B out a \
         second; {FLEET:.0} of them: {:.1} MiB out, {:.0} % of a core",
        cost.commands,
        cost.read / 1024.0,
        cost.written / 1024.0,
        cost.cpu * 100.0,
        cost.commands / each,
        cost.read / each,
        cost.written / each,
        cost.written / each * FLEET / f64::from(1 << 20),
        cost.cpu / each * FLEET * 100.0,
    );
}
