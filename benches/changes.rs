//! What changes that are applied cost those who ask meanwhile: a sidecar on one CPU, and on the
//! other the load, and its Redis and a recorder, which give way to it. The same questions are
//! asked while nothing is recorded; while as much is recorded in a ledger that the sidecar does not
//! follow, which takes as much from the load's CPU; and while it is recorded in the sidecar's own.
//!
//! `cargo bench --bench changes` records 20,000 events a second; `-- 5000` so many.

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

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consentd::metrics::Metrics;
use consentd::recorder::{MAX_EVENTS, Recorder};
use consentd_core::event::{Event, PlatformNames, What};
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::partition::Layout;
use consentd_core::submission::Submission;
use consentd_ledger::{Ledger, Options, Redis, Shape, Target, TargetOptions, create};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio_util::sync::CancellationToken;

/// The CPU of the sidecar, and that of everything else.
const SIDECAR: usize = 0;
const OTHERS: usize = 1;

const BUCKETS: u32 = 256;
const PAIRS: u32 = 100_000;
const ROUNDS: usize = 5;

/// How often events are recorded, all that are due by then at once.
const EVERY: Duration = Duration::from_millis(20);

/// What is asked: an open loop, so that what waits for a slow answer counts.
const QUESTIONS: [&str; 9] = [
    "--call=unary",
    "--rate=2000",
    "--arrivals=poisson",
    "--users=100000",
    "--hit-ratio=1",
    "--duration=4s",
    "--warm-up=1s",
    "--threads=1",
    "--json",
];

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A ledger in a Redis of its own, and who records in it.
struct Books {
    server: redis_server::Redis,
    recorder: Recorder,
}

impl Books {
    async fn open(stop: &CancellationToken) -> Self {
        let server = redis_server::Redis::start(&["--save", "", "--appendonly", "no"]);
        let target = Target::new(&url(&server), TargetOptions::default()).unwrap();
        create(target.clone(), Shape { layout: Layout::SINGLE, buckets: BUCKETS }).await.unwrap();
        let (ledger, driver) = Redis::new(target, Options::default());
        tokio::spawn(driver.run(stop.clone()));
        let keywords = Keywords::new(KeywordLists::default());
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let names = PlatformNames::default();
        let recorder = Recorder::new(Ledger::Redis(ledger), names, keywords, metrics);
        let books = Self { server, recorder };
        for first in (0..PAIRS).step_by(MAX_EVENTS) {
            let after = (first + u32::try_from(MAX_EVENTS).unwrap()).min(PAIRS);
            books.record(first..after).await;
        }
        books
    }

    /// Messages of so many users, each of which opens the window anew.
    async fn record(&self, users: std::ops::Range<u32>) {
        let submission = |user: u32| {
            let event = Event {
                // As the questions of `bench load` have them.
                user_id: format!("999555{:09}", user % PAIRS),
                business_id: "synthetic".to_owned(),
                time: None,
                what: What::Inbound { message_id: String::new(), text: String::new() },
            };
            Submission::new(event, String::new())
        };
        let submissions: Vec<_> = users.map(submission).collect();
        for some in submissions.chunks(MAX_EVENTS) {
            let results = self.recorder.record(some).await;
            assert!(results.iter().all(Result::is_ok), "{results:?}");
        }
    }

    /// Records at this rate until it is told to end; gives how many a second it were.
    async fn keep_recording(&self, rate: u32, end: &CancellationToken) -> f64 {
        let (begun, mut written) = (Instant::now(), 0);
        while !end.is_cancelled() {
            tokio::time::sleep(EVERY).await;
            let due = u64::try_from(begun.elapsed().as_millis()).unwrap() * u64::from(rate) / 1_000;
            // Where they do not keep up, what is late is not made up for.
            let due = u32::try_from(due).unwrap().min(written + rate / 10);
            self.record(written..due).await;
            written = due;
        }
        f64::from(written) / begun.elapsed().as_secs_f64()
    }
}

fn url(server: &redis_server::Redis) -> String {
    format!("redis://{}", server.address())
}

fn pin(pid: Option<u32>, cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    let pid = pid.map(|pid| rustix::process::Pid::from_raw(pid.cast_signed()).unwrap());
    sched_setaffinity(pid, &cpus).expect("this machine has two CPUs that can be pinned to");
}

/// A sidecar that follows this Redis, once it serves.
fn sidecar(url: &str, socket: &Path) -> Killed {
    let mut command = Command::new("taskset");
    command.args(["-c", &SIDECAR.to_string(), env!("CARGO_BIN_EXE_consentd"), "serve"]);
    command.args(["--ledger", url, "--listen", "none", "--admin", "none"]);
    command.args(["--workers", "1"]).arg("--unix").arg(socket);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = Killed(child.expect("taskset is part of util-linux: apt-get install util-linux"));
    let begun = Instant::now();
    while !is_serving(socket) {
        assert!(begun.elapsed() < Duration::from_mins(1), "the sidecar does not serve");
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}

fn is_serving(socket: &Path) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consentd"));
    command.arg("healthcheck").arg("--addr").arg(format!("unix:{}", socket.display()));
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

/// The median, the 99th and the 99.9th percentile of one load, in microseconds.
fn load(socket: &Path) -> [f64; 3] {
    let socket = format!("--addr=unix:{}", socket.display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_consentd"));
    command.args(["bench", "load", &socket]).args(QUESTIONS).stderr(Stdio::inherit());
    let output = command.output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["errors"], 0, "{told}");
    ["p50", "p99", "p99.9"].map(|name| told["service_time_us"][name].as_f64().unwrap())
}

/// A load's figures, and how many events a second were recorded beside it.
type Figures = ([f64; 3], f64);

/// Where events are to be recorded, until when, and whom to tell how many a second they were.
type Order = (usize, CancellationToken, std::sync::mpsc::Sender<f64>);

/// One load, beside recording in some books.
fn beside(
    books: Option<usize>,
    orders: &tokio::sync::mpsc::UnboundedSender<Order>,
    socket: &Path,
) -> Figures {
    let Some(books) = books else { return (load(socket), 0.0) };
    let end = CancellationToken::new();
    let (tell, told) = std::sync::mpsc::channel();
    orders.send((books, end.clone(), tell)).unwrap();
    let figures = load(socket);
    end.cancel();
    (figures, told.recv().unwrap())
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn main() {
    let rate = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(20_000);
    pin(None, OTHERS);
    let (orders, ordered) = tokio::sync::mpsc::unbounded_channel();
    let (tell, told) = std::sync::mpsc::channel();
    let writing = std::thread::spawn(move || {
        // One thread: more would only take turns on that CPU.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(write(rate, ordered, &tell));
    });
    let url = told.recv().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("consentd.sock");
    let sidecar = sidecar(&url, &socket);
    measure(&orders, &socket);
    drop((orders, sidecar));
    writing.join().unwrap();
}

/// Lets a thread run where no other wants to, alone: who measures does not wait for it.
fn give_way(thread: &str) {
    let status = Command::new("chrt").args(["--idle", "--pid", "0", thread]).status();
    let status = status.expect("chrt is part of util-linux: apt-get install util-linux");
    assert!(status.success(), "chrt does not let thread {thread} give way");
}

/// Keeps the books: those that the sidecar follows, and others.
async fn write(
    rate: u32,
    mut orders: tokio::sync::mpsc::UnboundedReceiver<Order>,
    url_of_followed: &std::sync::mpsc::Sender<String>,
) {
    let stop = CancellationToken::new();
    let books = [Books::open(&stop).await, Books::open(&stop).await];
    url_of_followed.send(url(&books[0].server)).unwrap();
    give_way(&rustix::thread::gettid().as_raw_nonzero().to_string());
    for book in &books {
        give_way(&book.server.info("process_id"));
    }
    while let Some((which, end, tell)) = orders.recv().await {
        tell.send(books[which].keep_recording(rate, &end).await).unwrap();
    }
    stop.cancel();
}

fn measure(orders: &tokio::sync::mpsc::UnboundedSender<Order>, socket: &Path) {
    let phases = [("idle", None), ("recorded elsewhere", Some(1)), ("applied", Some(0))];
    let mut rounds: Vec<[Figures; 3]> = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push(phases.map(|(_, books)| beside(books, orders, socket)));
    }
    println!("| unary, 2,000 a second | changes/s | p50 µs | p99 µs | p99.9 µs |");
    println!("|---|---|---|---|---|");
    for (place, (name, _)) in phases.iter().enumerate() {
        let told = |which: usize| {
            let (middle, least, most) =
                median(rounds.iter().map(|round| round[place].0[which]).collect());
            format!("{middle:.0} ({least:.0}–{most:.0})")
        };
        let (rate, ..) = median(rounds.iter().map(|round| round[place].1).collect());
        println!("| {name} | {rate:.0} | {} | {} | {} |", told(0), told(1), told(2));
    }
    for (name, base) in [("idle", 0), ("recorded elsewhere", 1)] {
        let ratios = rounds.iter().map(|round| round[2].0[1] / round[base].0[1]).collect();
        let (middle, least, most) = median(ratios);
        println!("p99 while applied ÷ {name}: {middle:.2} ({least:.2}–{most:.2})");
    }
}
