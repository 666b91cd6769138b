//! From the moment at which an opt-out is acknowledged by one sidecar to the moment at which the
//! table of another process holds it; to the answer of a check that is sent to a third process
//! then; and bare Redis beside it in the same run, from PUBLISH to its subscriber.
//!
//! `cargo bench --bench propagation` writes 5,000 events a second for 20 seconds; `-- 1000 10`
//! so many, for so long. `-- --cluster` does so over the three shards of a Cluster and 64 partitions, beside
//! bare SPUBLISH; and says how the CPU time is divided among the shards, and what an event costs one of them and
//! a single server with as many events.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    dead_code,
    unused_imports,
    reason = "figures are rounded, and it needs a part of the tests' harness"
)]

#[path = "harness/mod.rs"]
mod harness;
#[path = "../tests/it/sidecar.rs"]
mod sidecar;

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use consentd::follower::Followers;
use consentd::grpc::pb;
use consentd::metrics::Metrics;
use consentd::table::{Tables, Validity};
use consentd_ledger::{Ledger, Options, Target, TargetOptions};
use futures_util::StreamExt as _;
use harness::cluster::Cluster;
use harness::redis::Redis;
use sidecar::{BINARY, Sidecar, opt_out, run};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Of so many acknowledgements one is followed by a check.
const SAMPLE: u64 = 20;

/// How often what is due is written.
const TICK: Duration = Duration::from_millis(1);

/// As many as take turns.
const USERS: u64 = 10_000;

/// The business that an event with this number is about.
fn business(number: u64) -> String {
    format!("business-{}", number % USERS % 100)
}

/// What one of our announcements of one change weighs, in about.
const MESSAGE: usize = 300;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut numbers = arguments.iter().filter_map(|arg| arg.parse::<u64>().ok());
    let (rate, seconds) = (numbers.next().unwrap_or(5_000), numbers.next().unwrap_or(20));
    let is_cluster = arguments.iter().any(|argument| argument == "--cluster");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for round in 1..=3 {
            println!("round {round}, {rate} writes a second for {seconds} s, in microseconds:");
            if is_cluster {
                over_shards(rate, seconds).await;
            } else {
                let redis = Redis::start(&["--save", "", "--appendonly", "no"]);
                let url = format!("redis://127.0.0.1:{}", redis.port());
                round_of(&Bare { redis: &redis, is_sharded: false }, &url, rate, seconds).await;
            }
        }
    });
}

/// Measures bare announcements and ours. Returns how many events were acknowledged.
async fn round_of(bare: &Bare<'_>, ledger: &str, rate: u64, seconds: u64) -> f64 {
    let (code, _, said) = run(&["init", "--ledger", ledger]);
    assert_eq!(code, 0, "{said}");
    let published = publish(bare, rate, seconds).await;
    let (ours, checks) = enforce(ledger, rate, seconds).await;
    tell(&format!("  bare {} to its subscriber    ", bare.command()), &published);
    tell("  acknowledged to enforced elsewhere ", &ours);
    tell("  acknowledged to a check's answer   ", &checks);
    println!("  p99 by p99: {:.2}", quantile(&ours, 0.99) / quantile(&published, 0.99));
    ours.len() as f64
}

/// The CPU time that a server has taken, in seconds.
fn cpu(server: &Redis) -> f64 {
    let number = |field: &str| server.info(field).parse::<f64>().unwrap();
    number("used_cpu_sys") + number("used_cpu_user")
}

/// The same over the shards of a Cluster, and beside it a single server with one shard's share of the events.
async fn over_shards(rate: u64, seconds: u64) {
    let options = ["--appendonly", "no"];
    let cluster = Cluster::start(&options);
    let shards = &cluster.nodes[..3];
    let owner = &shards[cluster.owner()];
    let bare = Bare { redis: owner, is_sharded: true };
    let ledger = cluster.url(3);
    let (code, _, said) = run(&["init", "--ledger", &ledger]);
    assert_eq!(code, 0, "{said}");
    let published = publish(&bare, rate, seconds).await;
    let before: Vec<f64> = shards.iter().map(cpu).collect();
    let (ours, checks) = enforce(&ledger, rate, seconds).await;
    let spent: Vec<f64> =
        shards.iter().zip(before).map(|(one, before)| cpu(one) - before).collect();
    tell("  bare SPUBLISH to its subscriber    ", &published);
    tell("  acknowledged to enforced elsewhere ", &ours);
    tell("  acknowledged to a check's answer   ", &checks);
    println!("  p99 by p99: {:.2}", quantile(&ours, 0.99) / quantile(&published, 0.99));
    let (all, most) = (spent.iter().sum::<f64>(), spent.iter().copied().fold(0.0, f64::max));
    let each = all / ours.len() as f64;
    println!("  CPU of the shards {spent:.2?} s; the largest part {:.1} %", most / all * 100.0);
    drop(cluster);
    let single = Redis::start(&options);
    let replica = Redis::start_replica_of(&single, &options);
    replica.catch_up_with(&single);
    let ledger = format!("redis://127.0.0.1:{}", single.port());
    let (code, _, said) = run(&["init", "--ledger", &ledger]);
    assert_eq!(code, 0, "{said}");
    let before = cpu(&single);
    let (ours, _) = enforce(&ledger, rate / 3, seconds).await;
    let alone = (cpu(&single) - before) / ours.len() as f64;
    println!(
        "  CPU an event: {:.1} us at a shard, {:.1} us at a single server with a replica and a third of the \
         events: {:.2}",
        each * 1e6,
        alone * 1e6,
        each / alone
    );
}

/// The channel of bare announcements, in a slot of the server.
const BARE_CHANNEL: &str = "{consent:0}:bare";

/// What bare announcements are published to.
struct Bare<'a> {
    redis: &'a Redis,
    /// Whether the server is a node of a Cluster.
    is_sharded: bool,
}

impl Bare<'_> {
    fn command(&self) -> &'static str {
        if self.is_sharded { "SPUBLISH" } else { "PUBLISH" }
    }
}

fn tell(what: &str, micros: &[f64]) {
    let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|q| quantile(micros, q));
    let count = micros.len();
    println!("{what} p50 {p50:.0}  p90 {p90:.0}  p99 {p99:.0}  most {most:.0}  of {count}");
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

fn sorted(mut micros: Vec<f64>) -> Vec<f64> {
    micros.sort_by(f64::total_cmp);
    micros
}

/// How many are due of so many a second, after so long.
fn due(rate: u64, since: Duration) -> u64 {
    (since.as_secs_f64() * rate as f64) as u64
}

async fn publish(bare: &Bare<'_>, rate: u64, seconds: u64) -> Vec<f64> {
    let url = format!("redis://127.0.0.1:{}/?protocol=resp3", bare.redis.port());
    let client = redis::Client::open(url).unwrap();
    let (pushes, mut messages) = mpsc::unbounded_channel();
    let config = redis::AsyncConnectionConfig::new().set_push_sender(pushes);
    let mut subscriber =
        client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    let (subscribe, name, channel) = if bare.is_sharded {
        ("SSUBSCRIBE", "SPUBLISH", BARE_CHANNEL)
    } else {
        ("SUBSCRIBE", "PUBLISH", BARE_CHANNEL)
    };
    let () = redis::cmd(subscribe).arg(channel).query_async(&mut subscriber).await.unwrap();
    let started = Instant::now();
    let heard = tokio::spawn(async move {
        let _subscriber = subscriber;
        let mut micros = Vec::new();
        while let Some(push) = messages.recv().await {
            let push: redis::PushInfo = push;
            let Some(redis::Value::BulkString(message)) = push.data.last() else { continue };
            if !matches!(push.kind, redis::PushKind::Message | redis::PushKind::SMessage) {
                continue;
            }
            let sent = u64::from_be_bytes(message[..8].try_into().unwrap());
            if sent == 0 {
                break;
            }
            let sent = Duration::from_nanos(sent);
            micros.push(started.elapsed().saturating_sub(sent).as_secs_f64() * 1e6);
        }
        micros
    });
    let publisher = client.get_multiplexed_async_connection().await.unwrap();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut written = 0;
    let mut message = vec![7_u8; MESSAGE];
    while started.elapsed() < Duration::from_secs(seconds) {
        ticks.tick().await;
        let now = due(rate, started.elapsed());
        for _ in written..now {
            let sent = u64::try_from(started.elapsed().as_nanos()).unwrap();
            message[..8].copy_from_slice(&sent.to_be_bytes());
            let mut publisher = publisher.clone();
            let mut command = redis::cmd(name);
            command.arg(channel).arg(&message);
            tokio::spawn(async move { command.query_async::<u64>(&mut publisher).await.unwrap() });
        }
        written = now;
    }
    message[..8].fill(0);
    let mut publisher = publisher.clone();
    let _: u64 =
        redis::cmd(name).arg(channel).arg(&message).query_async(&mut publisher).await.unwrap();
    sorted(heard.await.unwrap())
}

/// Follows the ledger in this process, which is another one than the recorder's.
fn follow(ledger: &str, stop: &CancellationToken) -> Tables {
    let target = Target::new(ledger, TargetOptions::default()).unwrap();
    let options = Options { retention: None, ..Options::default() };
    let (ledger, driver) = consentd_ledger::Redis::new(target, options);
    tokio::spawn(driver.run(stop.clone()));
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let bound = Duration::from_secs(5);
    let followers = Followers::new(Ledger::Redis(ledger), metrics, bound);
    let tables = followers.tables();
    tokio::spawn(followers.run(stop.clone()));
    tables
}

async fn enforce(ledger: &str, rate: u64, seconds: u64) -> (Vec<f64>, Vec<f64>) {
    let serve =
        |flags: &[&str]| Sidecar::try_start_by(Command::new(BINARY), ledger, flags, &[]).unwrap();
    let recorder = serve(&["--record", "127.0.0.1:0"]);
    let other = serve(&[]);
    recorder.wait_until_live().await;
    other.wait_until_live().await;
    let stop = CancellationToken::new();
    let tables = follow(ledger, &stop);
    while !tables.is_ready() || !tables.every(|one| one.freshness().validity == Validity::Valid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let (events, outgoing) = mpsc::channel(4_096);
    let mut records = recorder.records().await;
    let answers = tokio::spawn(async move {
        records.record_events(ReceiverStream::new(outgoing)).await.unwrap().into_inner()
    });
    let started = Instant::now();
    let writer = tokio::spawn(async move {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut written = 0;
        let first = std::time::SystemTime::now() - Duration::from_hours(1);
        while started.elapsed() < Duration::from_secs(seconds) {
            ticks.tick().await;
            let now = due(rate, started.elapsed());
            for number in written..now {
                let user = format!("1555{:07}", number % USERS);
                // A later one each time: it changes the pair.
                let time = (first + Duration::from_millis(number)).into();
                let event = pb::ConsentEvent {
                    user_id: user,
                    business_id: business(number),
                    event_time: Some(time),
                    what: Some(opt_out("*")),
                };
                let request = pb::RecordEventsRequest {
                    sequence: number,
                    event: Some(event),
                    request_id: String::new(),
                };
                events.send(request).await.unwrap();
            }
            written = now;
        }
        written
    });
    let mut answers = answers.await.unwrap();
    let micros = Arc::new(Mutex::new(Vec::new()));
    let (mut enforced, late) = (Vec::new(), Arc::new(Mutex::new(Vec::new())));
    let mut checks = Vec::new();
    let client = other.checks().await;
    let mut acknowledged = 0;
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap();
        let at = Instant::now();
        let Some(pb::record_events_response::Result::Response(response)) = answer.result else {
            panic!("{answer:?}")
        };
        assert!(response.applied);
        acknowledged += 1;
        let user = format!("1555{:07}", answer.sequence % USERS);
        let pair = tables.pair(&user, &business(answer.sequence)).unwrap();
        let table = tables.table(tables.partition_of(pair)).unwrap();
        if table.freshness().revision >= response.revision {
            enforced.push(0.0);
        } else {
            let late = Arc::clone(&late);
            checks.push(tokio::spawn(async move {
                table.wait_for_revision(response.revision).await;
                late.lock().unwrap().push(at.elapsed().as_secs_f64() * 1e6);
            }));
        }
        if answer.sequence % SAMPLE == 0 {
            let (mut client, micros) = (client.clone(), Arc::clone(&micros));
            let business = business(answer.sequence);
            checks.push(tokio::spawn(async move {
                let mut question = sidecar::question(&user, &business, "service");
                question.min_revision = response.revision;
                let answer = client.can_send(question).await.unwrap().into_inner();
                assert!(!answer.allowed);
                micros.lock().unwrap().push(at.elapsed().as_secs_f64() * 1e6);
            }));
        }
    }
    for check in checks {
        check.await.unwrap();
    }
    assert_eq!(acknowledged, writer.await.unwrap());
    println!(
        "  {:.0} events a second were acknowledged",
        acknowledged as f64 / started.elapsed().as_secs_f64()
    );
    stop.cancel();
    enforced.append(&mut late.lock().unwrap());
    let micros = std::mem::take(&mut *micros.lock().unwrap());
    (sorted(enforced), sorted(micros))
}
