//! The ledger in Redis, on a redis-server of its own: how many events a second are appended, in
//! batches and one at a time; how long a snapshot takes, and a sidecar to start, cold and warm; and
//! what a pair takes of its memory.
//!
//! `cargo bench --bench redis` writes a million pairs; `-- 100000` so many. `-- 100000 --beside PATH` then also
//! starts sidecars cold by turns, of this program and of another one, and divides their times; the keys are those
//! of version 2, which older programs read, too. `-- 100000 --shards` copies the ledger into a Cluster of three shards and
//! 64 partitions, and starts sidecars cold from the one and from the other by turns.

#![allow(clippy::cast_precision_loss, reason = "figures are rounded")]

#[path = "harness/mod.rs"]
#[allow(dead_code, reason = "it needs a part of the tests' harness")]
mod harness;
#[path = "harness/ratios.rs"]
mod ratios;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use consentd_core::event::{Evidence, Method, StatementNames, What};
use consentd_core::id::{BusinessId, KeySecret, UserId};
use consentd_core::partition::Layout;
use consentd_core::record::{HistoryEntry, Outcome, Record, Request};
use consentd_core::scope::Scope;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Appended, Change, Ledger, Options, Redis, Shape, StoredRecord, Target, TargetOptions, Update,
    create,
};
use harness::cluster::Cluster;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// As `consentd init` makes it.
const BUCKETS: u32 = 8_192;

/// How many changes one caller appends at once, and how many callers do.
const BATCH: u64 = 512;
const BATCHERS: u64 = 4;

/// How many callers append one change at a time, and how many each.
const SINGLES: u64 = 64;
const EACH: u64 = 500;

/// How many sidecars of each program are started cold by turns.
const ROUNDS: usize = 5;

/// How many buckets are read at once.
const READERS: u32 = 4;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    let pairs = std::env::args().skip(1).find_map(|arg| arg.parse::<u64>().ok());
    let other = std::env::args().skip_while(|arg| arg != "--beside").nth(1).map(PathBuf::from);
    let has_shards = std::env::args().any(|arg| arg == "--shards");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(measure(pairs.unwrap_or(1_000_000), other.as_deref(), has_shards));
}

async fn measure(pairs: u64, other: Option<&Path>, has_shards: bool) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("redis.sock");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", ""]).arg("--unixsocket").arg(&socket);
    let child = command.arg("--dir").arg(folder.path()).stdout(Stdio::null()).spawn();
    let _server = Server(child.expect("install Redis 7 or later"));
    while UnixStream::connect(&socket).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let url = format!("redis+unix://{}", socket.display());
    let target = Target::new(&url, TargetOptions::default()).unwrap();
    let begun = Instant::now();
    create(target.clone(), Shape { layout: Layout::SINGLE, buckets: BUCKETS }).await.unwrap();
    println!("made in {:.2} s: {BUCKETS} buckets", begun.elapsed().as_secs_f64());
    let client = redis::Client::open(url.as_str()).unwrap();
    let mut client = client.get_multiplexed_async_connection().await.unwrap();
    if other.is_some() {
        read_by_older_programs(&mut client).await;
    }
    let empty = memory(&mut client).await;
    let (ledger, driver) = Redis::new(target, Options::default());
    let stop = CancellationToken::new();
    let driver = tokio::spawn(driver.run(stop.clone()));
    let ledger = Ledger::Redis(ledger);
    let secret = ledger.identity().await.unwrap().secret.clone();

    batches(&ledger, &secret, pairs).await;
    let log = length(&mut client).await;
    let full = memory(&mut client).await;
    // What the log takes goes with its time, and depends on how much is written in a day.
    redis::cmd("XTRIM")
        .arg("{consent:0}:log")
        .arg("MAXLEN")
        .arg(1)
        .query_async::<()>(&mut client)
        .await
        .unwrap();
    let trimmed = memory(&mut client).await;
    let each = |bytes: u64, count: u64| bytes as f64 / count.max(1) as f64;
    println!(
        "memory: {:.0} bytes a pair with one opt-in and its evidence, and {:.0} an entry of the \
         log ({log})",
        each(trimmed.saturating_sub(empty), pairs),
        each(full.saturating_sub(trimmed), log),
    );
    snapshot(&ledger, pairs).await;
    sidecars(&url, folder.path(), &mut client).await;
    let this = Path::new(THIS);
    if let Some(other) = other {
        let names = ["this", "the other"];
        let starts = [(this, url.as_str()), (other, url.as_str())];
        cold_by_turns(names, starts, folder.path(), &mut client).await;
    }
    if has_shards {
        let shards = Cluster::start(&["--appendonly", "no"]);
        let to = shards.url(3);
        let copied = Command::new(THIS).args(["ledger", "copy", &url, &to]).status().unwrap();
        assert!(copied.success());
        let names = ["three shards", "one server"];
        let starts = [(this, to.as_str()), (this, url.as_str())];
        cold_by_turns(names, starts, folder.path(), &mut client).await;
    }
    singles(&ledger, &secret, pairs).await;
    stop.cancel();
    driver.await.unwrap();
}

/// How many bytes Redis has given out.
async fn memory(client: &mut redis::aio::MultiplexedConnection) -> u64 {
    let info: String = redis::cmd("INFO").arg("memory").query_async(client).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    line.unwrap().trim().parse().unwrap()
}

async fn length(client: &mut redis::aio::MultiplexedConnection) -> u64 {
    redis::cmd("XLEN").arg("{consent:0}:log").query_async(client).await.unwrap()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap()).unwrap()
}

/// An opt-in of a user of their own, with its evidence; there are twenty statements.
fn opt_in(secret: &KeySecret, number: u64) -> Change {
    let user_id = format!("+1555{number:07}");
    let business_id = "acme".to_owned();
    let key = secret.key(&UserId::parse(&user_id).unwrap(), BusinessId::parse("acme").unwrap());
    let evidence = Evidence {
        method: Method::Website,
        statement: format!(
            "Yes, I agree to receive offers and news from Acme on WhatsApp, form {}. I can stop at \
             any time by answering STOP.",
            number % 20
        ),
        business_name: "Acme".into(),
        locale: "en".into(),
        reference: format!("https://acme.example/forms/{number}"),
        confirmation: String::new(),
        phone_number_id: None,
        statement_names: StatementNames::default(),
    };
    let category = Scope::parse("marketing").unwrap();
    let what = What::OptIn { category, evidence, expire: None, pending: false };
    let time = now();
    let mut record = Record::default();
    for effect in what.effects(time) {
        record.state.apply(&effect).unwrap();
    }
    let id = secret.digest(&number.to_be_bytes());
    let outcome = Outcome { applied: true, ..Outcome::default() };
    record.remember(Request { id, what: secret.digest(&id), outcome, time: None });
    let entry = HistoryEntry {
        user_id: user_id.clone(),
        business_id: business_id.clone(),
        time,
        record_time: time,
        what,
    };
    let update = Update { user_id, business_id, record, history: vec![entry], record_time: time };
    Change { key, base: StoredRecord::default().version, update: Some(update) }
}

fn all_written(appended: &[Appended]) {
    assert!(appended.iter().all(|outcome| matches!(outcome, Appended::Committed(_))));
}

/// New pairs, in batches, from a few callers.
async fn batches(ledger: &Ledger, secret: &KeySecret, pairs: u64) {
    let begun = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..BATCHERS {
        let (ledger, secret, next) = (ledger.clone(), secret.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            loop {
                let from = next.fetch_add(BATCH, Ordering::Relaxed);
                if from >= pairs {
                    return;
                }
                let numbers = from..(from + BATCH).min(pairs);
                let changes = numbers.map(|number| opt_in(&secret, number)).collect();
                all_written(&ledger.append(changes).await.unwrap());
            }
        });
    }
    tasks.join_all().await;
    let took = begun.elapsed().as_secs_f64();
    println!("batches: {:.0} events a second, {BATCHERS} callers of {BATCH}", pairs as f64 / took);
}

/// New pairs, one at a time, from many callers.
async fn singles(ledger: &Ledger, secret: &KeySecret, from: u64) {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for caller in 0..SINGLES {
        let (ledger, secret) = (ledger.clone(), secret.clone());
        tasks.spawn(async move {
            let first = from + caller * EACH;
            let mut took = Vec::new();
            for number in first..first + EACH {
                let change = opt_in(&secret, number);
                let begun = Instant::now();
                all_written(&ledger.append(vec![change]).await.unwrap());
                took.push(begun.elapsed());
            }
            took
        });
    }
    let mut took: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    took.sort_unstable();
    let at = |part: usize| took[took.len() * part / 100].as_secs_f64() * 1_000.0;
    println!(
        "singly: {:.0} events a second, {SINGLES} callers; p50 {:.2} ms, p99 {:.2} ms",
        took.len() as f64 / begun.elapsed().as_secs_f64(),
        at(50),
        at(99),
    );
}

/// How long a sidecar takes until it answers, and how long another client of that Redis waits
/// meanwhile: one that reads all of the ledger, and then one that begins with what it saved.
async fn sidecars(url: &str, folder: &Path, client: &mut redis::aio::MultiplexedConnection) {
    let _: () = redis::cmd("SET").arg("other").arg("value").query_async(client).await.unwrap();
    let quiet = gets(client, || false, Duration::from_secs(2)).await;
    println!("a GET of another client while nothing loads: {quiet}");
    let snapshot = folder.join("table");
    for how in ["cold", "warm"] {
        let (mut server, took, meanwhile) = start(Path::new(THIS), url, &snapshot, client).await;
        println!(
            "sidecar, {how}: {took:.2} s from its start until it answers; a GET meanwhile: {meanwhile}"
        );
        let begun = Instant::now();
        let process = server.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
        assert!(server.0.wait().unwrap().success());
        println!(
            "it ends in {:.2} s, {} MB saved",
            begun.elapsed().as_secs_f64(),
            std::fs::metadata(&snapshot).unwrap().len() / 1_000_000
        );
    }
}

/// Makes the ledger one whose keys are of version 2, as older programs made them.
async fn read_by_older_programs(client: &mut redis::aio::MultiplexedConnection) {
    let mut secret = redis::cmd("HGET");
    secret.arg("{consent:0}:meta").arg("secret");
    let mut secret: Vec<u8> = secret.query_async(client).await.unwrap();
    secret[0] = 2;
    let mut command = redis::cmd("HSET");
    command.arg("{consent:0}:meta").arg("secret").arg(secret);
    command.query_async::<()>(client).await.unwrap();
}

/// Sidecars that load a ledger cold, by turns: two programs, or from two places. Another client reads from the single
/// server meanwhile.
async fn cold_by_turns(
    names: [&str; 2],
    starts: [(&Path, &str); 2],
    folder: &Path,
    client: &mut redis::aio::MultiplexedConnection,
) {
    let mut ratios = Vec::new();
    for round in 1..=ROUNDS {
        let mut times = Vec::new();
        for (name, (program, url)) in names.iter().zip(starts) {
            // There is no snapshot yet, and it is killed before it saves one.
            let snapshot = folder.join("none");
            let (server, took, meanwhile) = start(program, url, &snapshot, client).await;
            println!("cold load {round}, {name}: {took:.2} s; a GET meanwhile: {meanwhile}");
            drop(server);
            times.push(took);
        }
        ratios.push(times[0] / times[1]);
    }
    ratios::print(&format!("cold load, {} divided by {}", names[0], names[1]), ratios.into_iter());
}

/// The program that is measured.
const THIS: &str = env!("CARGO_BIN_EXE_consentd");

/// Starts a sidecar and waits until it answers; how many seconds that took, and GETs meanwhile.
async fn start(
    program: &Path,
    url: &str,
    snapshot: &Path,
    client: &mut redis::aio::MultiplexedConnection,
) -> (Server, f64, String) {
    let (server, loaded) = sidecar(program, url, snapshot);
    let is_loaded = || loaded.load(Ordering::Acquire) > 0;
    let meanwhile = gets(client, is_loaded, Duration::from_mins(5)).await;
    assert!(is_loaded(), "it does not load");
    let took = Duration::from_millis(loaded.load(Ordering::Acquire)).as_secs_f64();
    (server, took, meanwhile)
}

/// Starts a sidecar; after how many milliseconds it is ready, once it is.
fn sidecar(program: &Path, url: &str, snapshot: &Path) -> (Server, Arc<AtomicU64>) {
    let begun = Instant::now();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let admin = format!("127.0.0.1:{port}");
    let mut command = Command::new(program);
    command.args(["serve", "--ledger", url, "--listen", "127.0.0.1:0", "--admin", &admin]);
    command.args(["--snapshot-every", "never"]).arg("--snapshot").arg(snapshot);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let loaded = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&loaded);
    std::thread::spawn(move || {
        while begun.elapsed() < Duration::from_mins(5) {
            if is_ready(&admin).unwrap_or(false) {
                told.store(u64::try_from(begun.elapsed().as_millis()).unwrap(), Ordering::Release);
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    (Server(child), loaded)
}

/// Whether a sidecar says that it is ready.
fn is_ready(admin: &str) -> std::io::Result<bool> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(admin)?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut said = [0; 12];
    stream.read_exact(&mut said)?;
    Ok(said.ends_with(b"200"))
}

/// GETs, one after the other, until something is so; how long they took.
async fn gets(
    client: &mut redis::aio::MultiplexedConnection,
    is_over: impl Fn() -> bool,
    most: Duration,
) -> String {
    let begun = Instant::now();
    let mut took = Vec::new();
    while !is_over() && begun.elapsed() < most {
        let begun = Instant::now();
        let _: String = redis::cmd("GET").arg("other").query_async(client).await.unwrap();
        took.push(begun.elapsed());
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    took.sort_unstable();
    let at = |part: usize| took[(took.len() * part / 100).min(took.len() - 1)].as_micros();
    format!("p50 {} us, p99 {} us, most {} us", at(50), at(99), at(100))
}

/// All pairs, bucket by bucket.
async fn snapshot(ledger: &Ledger, pairs: u64) {
    let begun = Instant::now();
    let next = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..READERS {
        let (partition, next) = (ledger.partition(0).unwrap(), Arc::clone(&next));
        tasks.spawn(async move {
            let mut count = 0;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= BUCKETS {
                    return count;
                }
                count += partition.bucket(number).await.unwrap().pairs.len();
            }
        });
    }
    let count: usize = tasks.join_all().await.into_iter().sum();
    assert_eq!(u64::try_from(count).unwrap(), pairs);
    println!("snapshot: {:.2} s, {READERS} buckets at once", begun.elapsed().as_secs_f64());
}
