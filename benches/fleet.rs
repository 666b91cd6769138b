//! What sidecars cost one Redis: commands, bytes and CPU, idle and while others write, beyond what the writes
//! themselves cost; and from that for a thousand sidecars. In one run:
//!
//! - full sidecars of a ledger with one partition,
//! - full sidecars of a ledger with 64 partitions,
//! - sidecars for one of its 100 equal businesses.
//!
//! `cargo bench --bench fleet` starts 20 full sidecars of each kind, and ten times as many partial ones, whose share
//! of the server's CPU would else be less than its noise; `-- 50` starts 50 and 500.

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

use consentd::follower::Followers;
use consentd::follower::scheduler::period;
use consentd::metrics::Metrics;
use consentd::recorder::{MAX_EVENTS, Recorder};
use consentd::table::{Tables, Validity};
use consentd_core::businesses::{BusinessSet, Businesses};
use consentd_core::event::{Event, PlatformNames, What};
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::partition::Layout;
use consentd_core::scope::Scope;
use consentd_core::submission::Submission;
use consentd_ledger::{Ledger, Options, Redis, Shape, Target, TargetOptions, create};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A bucket has as many pairs as one of 8,192 has of a million.
const BUCKETS: u32 = 64;
const PAIRS: u32 = BUCKETS * 122;

/// How many businesses have as many pairs each.
const BUSINESSES: u32 = 100;

/// As by default.
const BOUND: Duration = Duration::from_secs(5);
const SCRUB: Duration = Duration::from_secs(10);

/// How long is measured.
const WHILE: Duration = Duration::from_secs(20);

/// How many partial sidecars there are for each full one.
const PARTIAL_BY_FULL: usize = 10;

/// What a fleet is.
const FLEET: f64 = 1_000.0;

/// How many events are recorded in a second.
const RATES: [u32; 2] = [0, 1_000];

/// A kind of sidecar, and of the ledger that it follows.
struct Kind {
    name: &'static str,
    layout: (u32, u32),
    is_partial: bool,
}

const KINDS: [Kind; 3] = [
    Kind { name: "full, one partition", layout: (1, 1), is_partial: false },
    Kind { name: "full, 64 partitions", layout: (64, 4), is_partial: false },
    Kind { name: "one of 100 businesses, 64 partitions", layout: (64, 4), is_partial: true },
];

fn main() {
    let count = std::env::args().skip(1).find_map(|arg| arg.parse::<usize>().ok()).unwrap_or(20);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut all = Vec::new();
        for kind in &KINDS {
            let count = if kind.is_partial { count * PARTIAL_BY_FULL } else { count };
            all.push(measure(kind, count).await);
        }
        for (number, rate) in RATES.into_iter().enumerate() {
            let [one, full, partial] = [0, 1, 2].map(|kind| all[kind][number]);
            println!(
                "{rate} writes a second, a sidecar for one of 100 businesses by a full one of the same \
                 ledger: {:.3} of the bytes, {:.3} of the CPU; by a full one of one partition: {:.3} and {:.3}",
                partial.bytes() / full.bytes(),
                partial.cpu / full.cpu,
                partial.bytes() / one.bytes(),
                partial.cpu / one.cpu,
            );
        }
    });
}

/// Measures what each of so many sidecars costs at each rate.
async fn measure(kind: &Kind, count: usize) -> Vec<Done> {
    let server = redis_server::Redis::start(&["--save", "", "--appendonly", "no"]);
    let url = format!("redis://127.0.0.1:{}", server.port());
    let layout = Layout::new(kind.layout.0, kind.layout.1).unwrap();
    create(target(&url), Shape::new(layout, BUCKETS).unwrap()).await.unwrap();
    let stop = CancellationToken::new();
    let recorder = recorder(&url, &stop);
    let pairs: Vec<u32> = (0..PAIRS).collect();
    for some in pairs.chunks(MAX_EVENTS) {
        record(&recorder, some.iter().copied()).await;
    }
    let mut before = Vec::new();
    for rate in RATES {
        before.push(cost(&server, &recorder, rate).await);
    }
    let followers: Vec<Tables> = (0..count).map(|_| follow(&url, kind, &stop)).collect();
    for tables in &followers {
        while !tables.is_ready() || !tables.every(|one| one.freshness().validity == Validity::Valid)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    tokio::time::sleep(SCRUB).await;
    let mut each = Vec::new();
    for (rate, before) in RATES.into_iter().zip(before) {
        let own = cost(&server, &recorder, rate).await.each_of(count, before);
        tell(kind, count, rate, &own);
        each.push(own);
    }
    stop.cancel();
    each
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

fn follow(url: &str, kind: &Kind, stop: &CancellationToken) -> Tables {
    let options = Options { retention: None, poll_within: period(BOUND), ..Options::default() };
    let (ledger, driver) = Redis::new(target(url), options);
    tokio::spawn(driver.run(stop.clone()));
    let followers = Followers::new(Ledger::Redis(ledger), metrics(), BOUND);
    let own = BusinessSet::of(["business-0"]).unwrap();
    let businesses = if kind.is_partial { Businesses::only(own) } else { Businesses::All };
    let followers =
        followers.with_scrub_interval(Some(SCRUB)).with_businesses(watch::channel(businesses).1);
    let tables = followers.tables();
    tokio::spawn(followers.run(stop.clone()));
    tables
}

async fn record(recorder: &Recorder, users: impl Iterator<Item = u32>) {
    let submission = |user| {
        let event = Event {
            user_id: format!("1555{user:07}"),
            business_id: format!("business-{}", user % BUSINESSES),
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

impl Done {
    fn bytes(&self) -> f64 {
        self.read + self.written
    }

    /// The part of each of so many sidecars, without what is done without any.
    fn each_of(self, count: usize, before: Self) -> Self {
        let each = |now: f64, before: f64| (now - before) / count as f64;
        Self {
            commands: each(self.commands, before.commands),
            read: each(self.read, before.read),
            written: each(self.written, before.written),
            cpu: each(self.cpu, before.cpu),
        }
    }
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

fn tell(kind: &Kind, count: usize, rate: u32, each: &Done) {
    println!(
        "{count} sidecars ({}), {rate} writes a second: each {:.2} commands, {:.0} B in, {:.0} B out a second and \
         {:.4} % of a core; {FLEET:.0} of them {:.1} MiB out, {:.0} % of a core",
        kind.name,
        each.commands,
        each.read,
        each.written,
        each.cpu * 100.0,
        each.written * FLEET / f64::from(1 << 20),
        each.cpu * FLEET * 100.0,
    );
}
