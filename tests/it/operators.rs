//! The operators' commands, on real servers: what they make, find, mend and copy.

mod damage;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value as Json;
use tokio::task::JoinSet;

use crate::faults::redis::Redis;
use crate::faults::resp::Value;
use crate::faults::stage::{init, ledger_at, live_within, serve, status};
use crate::sidecar::{PATIENCE, Sidecar, ago, event, opt_in, opt_out, run};
use crate::world::world;

const BUCKETS: u32 = 16;

/// A server that lets tests compare all that is in it.
fn start() -> Redis {
    Redis::start(&["--enable-debug-command", "yes"])
}

/// What stands for all that is in a server.
fn digest(redis: &Redis) -> String {
    redis.command(&["DEBUG", "DIGEST"]).text()
}

/// Runs a command; it must end with this exit code. Gives what it printed, or else its error.
#[track_caller]
fn told(code: i32, arguments: &[&str]) -> String {
    let (ended, printed, error) = run(arguments);
    assert_eq!(ended, code, "{arguments:?}: {printed}{error}");
    if code == 2 { error } else { printed }
}

/// What `verify` finds, by its labels.
#[track_caller]
fn verify(ledger: &str) -> (Json, Vec<String>) {
    let (code, printed, error) =
        run(&["ledger", "verify", "--ledger", ledger, "--json", "--lines", "1000"]);
    let report: Json = serde_json::from_str(&printed).unwrap_or_else(|_| panic!("{error}"));
    let labels = report["findings"].as_array().unwrap().iter();
    let labels: Vec<_> = labels.map(|found| found["damage"].as_str().unwrap().to_owned()).collect();
    assert_eq!(code, i32::from(!labels.is_empty()), "{printed}{error}");
    (report, labels)
}

/// A ledger with some pairs, most of which have a statement, and every third an opt-out.
async fn with_pairs(redis: &Redis, users: usize) -> String {
    let ledger = ledger_at(&redis.address());
    init(&ledger, &["--buckets", &BUCKETS.to_string()]);
    let sidecar = serve(&ledger, &["--record", "127.0.0.1:0"], &[]);
    live_within(&sidecar, PATIENCE).await;
    let mut records = sidecar.records().await;
    for user in 0..users {
        let user = format!("US.{user}");
        let mut said = event(&user, "acme", opt_in("marketing"));
        said.event.as_mut().unwrap().event_time = Some(ago(Duration::from_hours(1)));
        records.record_event(said).await.unwrap();
    }
    for user in (0..users).step_by(3) {
        let user = format!("US.{user}");
        records.record_event(event(&user, "acme", opt_out("*"))).await.unwrap();
    }
    ledger
}

#[test]
fn init_makes_a_ledger_once_and_goes_on_where_it_was_cut() {
    let redis = start();
    let ledger = ledger_at(&redis.address());
    let before = digest(&redis);
    let said = told(0, &["init", "--ledger", &ledger, "--buckets", "16", "--dry-run"]);
    assert!(said.contains("37 keys") && said.contains("16 buckets"), "{said}");
    assert_eq!(digest(&redis), before, "a dry run changes nothing");

    // A run that was cut has made its keys, and no meta.
    init(&ledger, &["--buckets", "16"]);
    redis.command(&["DEL", "{consent:0}:meta"]);
    redis.command(&["DEL", "{consent:0}:b:3", "{consent:0}:h:7"]);
    let said = told(0, &["init", "--ledger", &ledger, "--buckets", "16", "--dry-run"]);
    assert!(said.contains("34 of which are there"), "{said}");
    let said = told(0, &["init", "--ledger", &ledger, "--buckets", "16"]);
    let serve = format!("consentd serve --ledger {ledger}");
    for part in ["made ledger", "16", "in memory alone", &serve, "set appendonly yes"] {
        assert!(said.contains(part), "{said:?} has no {part:?}");
    }
    assert_eq!(verify(&ledger).1, Vec::<String>::new());

    let before = digest(&redis);
    let said = told(2, &["init", "--ledger", &ledger]);
    assert!(said.contains("there is a ledger in this Redis already"), "{said}");
    assert_eq!(digest(&redis), before);
}

#[test]
fn init_is_refused_beside_what_is_anothers_and_of_a_file_that_is_there() {
    for command in [
        &["SET", "{consent:0}:b:3", "x"][..],
        &["HSET", "{consent:0}:h:3", "a", "b"],
        &["SET", "{consent:0}:meta", "x"],
        &["XADD", "{consent:0}:log", "1-0", "p", "x"],
    ] {
        let redis = start();
        redis.command(command);
        let ledger = ledger_at(&redis.address());
        for flags in [&["--dry-run"][..], &[]] {
            let arguments = [&["init", "--ledger", &ledger, "--buckets", "8"][..], flags].concat();
            let (code, printed, error) = run(&arguments);
            assert_eq!(code, 2, "{command:?}: {printed}");
            assert!(error.contains("there is a ledger in this Redis already"), "{error}");
        }
        assert_eq!(redis.command(&["EXISTS", "{consent:0}:fence"]), Value::Int(0));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = format!("file:{}", folder.path().join("new.redb").display());
    told(0, &["init", "--ledger", &file, "--dry-run"]);
    assert!(told(0, &["init", "--ledger", &file]).contains("made ledger"));
    assert!(told(2, &["init", "--ledger", &file]).contains("is there already"));
    assert!(told(2, &["init", "--ledger", &file, "--buckets", "8"]).contains("--buckets"));
    assert_eq!(verify(&file).1, Vec::<String>::new());
    assert!(told(0, &["ledger", "status", "--ledger", &file]).contains("pairs      0"));
    for command in ["scrub", "repair", "accept"] {
        let said = told(2, &["ledger", command, "--ledger", &file]);
        assert!(said.contains("is a file: "), "{command}: {said}");
    }
}

/// All that was recorded, in an order of its own.
fn exported(sidecar: &Sidecar) -> Vec<String> {
    let printed = told(0, &["export", "--addr", &sidecar.record]);
    let mut lines: Vec<_> = printed.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn a_ledger_moves_from_a_file_through_redis_into_a_file_and_stays_what_it_was() {
    let (redis, folder) = (start(), tempfile::tempdir().unwrap());
    let file = |name: &str| format!("file:{}", folder.path().join(name).display());
    let first = file("first.redb");
    let world = world(60);
    let rows = folder.path().join("rows.ndjson");
    std::fs::write(&rows, world.rows.join("\n")).unwrap();
    let flags = ["--record", "127.0.0.1:0"];
    let mut sidecar = serve(&first, &flags, &[]);
    live_within(&sidecar, PATIENCE).await;
    run(&["import", rows.to_str().unwrap(), "--addr", &sidecar.record]);
    world.assert_agrees(&sidecar).await;
    let events = exported(&sidecar);
    assert!(events.len() > 100);
    sidecar.signal("TERM");
    sidecar.ended().await;
    let (whole, labels) = verify(&first);
    assert!(labels.is_empty(), "{whole}");

    let at = |database: u32| format!("redis://{}/{database}", redis.address());
    let steps = [
        (first, at(0), &["--buckets", "32"][..]),
        (at(0), at(1), &["--buckets", "512"]),
        (at(1), file("last.redb"), &[]),
    ];
    for (from, to, more) in steps {
        // Whoever waits for the ledger to be there is told by itself.
        let waits = to.starts_with("redis").then(|| serve(&to, &flags, &[]));
        let before = digest(&redis);
        let copy = ["ledger", "copy", &from, &to, "--still", "10ms"];
        told(0, &[&copy, &["--dry-run"][..], more].concat());
        assert_eq!(digest(&redis), before, "a dry run changes nothing");
        let said = told(0, &[&copy, &["--json"][..], more].concat());
        let made: Json = serde_json::from_str(&said).unwrap();
        assert_eq!((&made["late"], &made["verified"]["found"]), (&0.into(), &0.into()), "{made}");
        assert_eq!(made["pairs"], whole["pairs"], "{made}");
        let (report, labels) = verify(&to);
        assert!(labels.is_empty(), "{report}");
        assert_eq!(report["historyEntries"], whole["historyEntries"]);
        assert!(told(2, &[&copy, more].concat()).contains("there"), "only where there is none");

        let mut sidecar = waits.unwrap_or_else(|| serve(&to, &flags, &[]));
        live_within(&sidecar, PATIENCE).await;
        let status = status(&sidecar).await;
        assert_eq!(Json::from(status.revision), made["revision"]);
        world.assert_agrees(&sidecar).await;
        assert_eq!(exported(&sidecar), events, "from {from} to {to}");
        sidecar.signal("TERM");
        sidecar.ended().await;
    }
}

#[tokio::test]
async fn a_ledger_that_is_written_to_is_not_copied_half_and_the_copy_is_begun_anew() {
    let redis = start();
    let from = with_pairs(&redis, 30).await;
    let to = format!("{from}/1");
    let sidecar = serve(&from, &["--record", "127.0.0.1:0"], &[]);
    live_within(&sidecar, PATIENCE).await;
    let stop = Arc::new(AtomicBool::new(false));
    // More than one: there is something new whenever the log is looked at.
    let mut writers = JoinSet::new();
    for number in 0..8 {
        let (stopped, mut records) = (Arc::clone(&stop), sidecar.records().await);
        writers.spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let user = format!("US.{number}");
                records.record_event(event(&user, "acme", opt_out("marketing"))).await.unwrap();
            }
        });
    }
    let copy = move |more: &[&str]| {
        let copy = ["ledger", "copy", &from, &to, "--buckets", "64", "--still"];
        let arguments = copy.iter().chain(more).map(|&argument| argument.to_owned());
        let arguments: Vec<String> = arguments.collect();
        tokio::task::spawn_blocking(move || {
            run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
        })
    };
    // To look at all of it ends, too.
    let ledger = ledger_at(&redis.address());
    let looked = tokio::task::spawn_blocking(move || verify(&ledger).1).await.unwrap();
    assert_eq!(looked, Vec::<String>::new());
    let (code, printed, error) = copy(&["700ms"]).await.unwrap();
    assert_eq!(code, 2, "{printed}");
    assert!(error.contains("still being written to"), "{error}");
    stop.store(true, Ordering::Relaxed);
    writers.join_all().await;

    // What is there is no ledger, and nobody takes it for one.
    let to = format!("{}/1", ledger_at(&redis.address()));
    assert!(told(2, &["ledger", "status", "--ledger", &to]).contains("there is no ledger"));
    assert!(told(2, &["init", "--ledger", &to]).contains("already"));
    let (code, _, error) = copy(&["10ms"]).await.unwrap();
    assert!(code == 2 && error.contains("--anew"), "{error}");
    let (code, printed, error) = copy(&["10ms", "--anew"]).await.unwrap();
    assert_eq!(code, 0, "{printed}{error}");
    let (from, to) = (verify(&ledger_at(&redis.address())).0, verify(&to).0);
    assert_eq!((&from["pairs"], &from["historyEntries"]), (&to["pairs"], &to["historyEntries"]));
}

#[tokio::test]
async fn accept_counts_and_asks_first_and_status_tells() {
    let redis = start();
    let ledger = with_pairs(&redis, 3).await;
    let before = digest(&redis);
    let accept = ["ledger", "accept", "--ledger", &ledger];
    assert!(told(2, &accept).contains("--yes"));
    let said = told(0, &[&accept[..], &["--dry-run"]].concat());
    assert!(said.contains("would be accepted as it is"), "{said}");
    assert_eq!(digest(&redis), before);
    assert!(told(0, &[&accept[..], &["--yes"]].concat()).contains("1 times by now"));
    let said = told(0, &["ledger", "status", "--ledger", &ledger, "--json"]);
    let said: Json = serde_json::from_str(&said).unwrap();
    for (name, value) in [
        ("accepted", Json::from(1)),
        ("pairs", 3.into()),
        ("buckets", BUCKETS.into()),
        ("revision", 4.into()),
        ("logEntries", 4.into()),
        ("cutShort", false.into()),
        ("well", true.into()),
    ] {
        assert_eq!(said[name], value, "{name}: {said}");
    }
    assert_eq!(said["ledger"].as_str().map(str::len), Some(32));
    redis.command(&["DEL", "{consent:0}:fence"]);
    redis.command(&["DEL", "{consent:0}:log", "{consent:0}:h:2"]);
    let said = told(1, &["ledger", "status", "--ledger", &ledger]);
    let lost = ["{consent:0}:log", "{consent:0}:h:2", "2 keys are lost"];
    for part in ["the fence is missing"].into_iter().chain(lost) {
        assert!(said.contains(part), "{part}: {said}");
    }
}
