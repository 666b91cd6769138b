//! From the moment at which an opt-out is acknowledged by one sidecar to the moment at which the
//! table of another process holds it; to the answer of a check that is sent to a third process
//! then; and bare Redis beside it in the same run, from PUBLISH to its subscriber.
//!
//! `cargo bench --bench propagation` writes 5,000 events a second for 20 seconds; `-- 1000 10`
//! so many, for so long.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    dead_code,
    unused_imports,
    reason = "figures are rounded, and it needs a part of the tests' harness"
)]

#[path = "../tests/it/faults/redis.rs"]
mod redis_server;
#[path = "../tests/it/faults/resp.rs"]
mod resp;
#[path = "../tests/servers/mod.rs"]
mod servers;
#[path = "../tests/it/sidecar.rs"]
mod sidecar;

use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use consentd::follower::Follower;
use consentd::grpc::pb;
use consentd::metrics::Metrics;
use consentd::table::{self, Table, Validity};
use consentd_ledger::{Ledger, Options, Target, TargetOptions};
use futures_util::StreamExt as _;
use redis_server::Redis;
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

/// What one of our announcements of one change weighs, in about.
const MESSAGE: usize = 300;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u64>().ok());
    let (rate, seconds) = (numbers.next().unwrap_or(5_000), numbers.next().unwrap_or(20));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for round in 1..=3 {
            let redis = Redis::start(&["--save", "", "--appendonly", "no"]);
            let bare = publish(&redis, rate, seconds).await;
            let (ours, checks) = enforce(&redis, rate, seconds).await;
            println!("round {round}, {rate} writes a second for {seconds} s, in microseconds:");
            tell("  bare PUBLISH to its subscriber         ", &bare);
            tell("  acknowledged to enforced elsewhere     ", &ours);
            tell("  acknowledged to the answer of a check  ", &checks);
            println!("  p99 by p99: {:.2}", quantile(&ours, 0.99) / quantile(&bare, 0.99));
        }
    });
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

async fn publish(server: &Redis, rate: u64, seconds: u64) -> Vec<f64> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port())).unwrap();
    let mut subscriber = client.get_async_pubsub().await.unwrap();
    subscriber.subscribe("bare").await.unwrap();
    let started = Instant::now();
    let heard = tokio::spawn(async move {
        let mut messages = subscriber.on_message();
        let mut micros = Vec::new();
        while let Some(message) = messages.next().await {
            let sent = u64::from_be_bytes(message.get_payload_bytes()[..8].try_into().unwrap());
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
            let mut command = redis::cmd("PUBLISH");
            command.arg("bare").arg(&message);
            tokio::spawn(async move { command.query_async::<u64>(&mut publisher).await.unwrap() });
        }
        written = now;
    }
    message[..8].fill(0);
    let mut publisher = publisher.clone();
    let _: u64 =
        redis::cmd("PUBLISH").arg("bare").arg(&message).query_async(&mut publisher).await.unwrap();
    sorted(heard.await.unwrap())
}

/// Follows the ledger in this process, which is another one than the recorder's.
fn follow(ledger: &str, stop: &CancellationToken) -> Table {
    let target = Target::new(ledger, TargetOptions::default()).unwrap();
    let options = Options { retention: None, ..Options::default() };
    let (ledger, driver) = consentd_ledger::Redis::new(target, options);
    tokio::spawn(driver.run(stop.clone()));
    let (table, writer) = table::new();
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let bound = Duration::from_secs(5);
    let follower =
        Follower::new(Ledger::Redis(ledger).partition(0).unwrap(), writer, metrics, bound);
    tokio::spawn(follower.run(stop.clone()));
    table
}

async fn enforce(server: &Redis, rate: u64, seconds: u64) -> (Vec<f64>, Vec<f64>) {
    let ledger = format!("redis://127.0.0.1:{}", server.port());
    let (code, _, said) = run(&["init", "--ledger", &ledger]);
    assert_eq!(code, 0, "{said}");
    let serve =
        |flags: &[&str]| Sidecar::try_start_by(Command::new(BINARY), &ledger, flags, &[]).unwrap();
    let recorder = serve(&["--record", "127.0.0.1:0"]);
    let other = serve(&[]);
    recorder.wait_until_live().await;
    other.wait_until_live().await;
    let stop = CancellationToken::new();
    let table = follow(&ledger, &stop);
    while table.freshness().validity != Validity::Valid {
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
                    business_id: "acme".into(),
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
        if table.freshness().revision >= response.revision {
            enforced.push(0.0);
        } else {
            let (table, late) = (table.clone(), Arc::clone(&late));
            checks.push(tokio::spawn(async move {
                table.wait_for_revision(response.revision).await;
                late.lock().unwrap().push(at.elapsed().as_secs_f64() * 1e6);
            }));
        }
        if answer.sequence % SAMPLE == 0 {
            let (mut client, micros) = (client.clone(), Arc::clone(&micros));
            let user = format!("1555{:07}", answer.sequence % USERS);
            checks.push(tokio::spawn(async move {
                let mut question = sidecar::question(&user, "acme", "service");
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
