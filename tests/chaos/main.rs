//! Hours of random faults: `scripts/chaos --seconds N --seed S`.
//!
//! A test target without a harness, and no example: cargo tells tests alone where the binary that
//! was built with them is. Run as a test, it plays for a few seconds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "it prints, reads clocks, and shares the tests' parts, of which it needs some"
)]

#[path = "../it/faults/checker.rs"]
mod checker;
#[path = "../it/faults/history.rs"]
mod history;
#[path = "../it/faults/load.rs"]
mod load;
mod people;
mod plan;
#[path = "../it/faults/proxy.rs"]
mod proxy;
#[path = "../it/faults/redis.rs"]
mod redis;
#[path = "../it/faults/resp.rs"]
mod resp;
#[path = "../it/rng.rs"]
mod rng;
#[path = "../servers/mod.rs"]
mod servers;
#[path = "../it/sidecar.rs"]
mod sidecar;
mod world;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use consentd::grpc::pb::record_service_client::RecordServiceClient;

use self::checker::{check, compare};
use self::history::Line;
use self::load::{channel, listed};
use self::people::{Person, Role};
use self::plan::SIDECARS;
use self::world::World;

/// The sidecars' bound.
const BOUND: Duration = Duration::from_millis(1_500);

/// How long it plays where it is run as a test.
const AS_A_TEST: u64 = 12;

/// How long calm lasts between two rounds: what was held up is acknowledged, and allowed again.
const CALM: Duration = Duration::from_secs(1);

/// What was asked for.
struct Wanted {
    seconds: u64,
    seed: u64,
    keep: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match arguments.first().map(String::as_str) {
        Some("write") => runtime.block_on(people::be(Role::Write, &arguments[1..])),
        Some("check") => runtime.block_on(people::be(Role::Check, &arguments[1..])),
        _ => match wanted(&arguments) {
            Some(wanted) => return runtime.block_on(play(&wanted)),
            None => println!("chaos: other tests were asked for"),
        },
    }
    ExitCode::SUCCESS
}

/// What the arguments ask for; nothing, where cargo passes on a filter for other tests.
fn wanted(arguments: &[String]) -> Option<Wanted> {
    let mut wanted = Wanted { seconds: AS_A_TEST, seed: 1, keep: false };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().and_then(|value| value.parse().ok());
            value.unwrap_or_else(|| panic!("{argument} needs a number"))
        };
        match argument.as_str() {
            "--seconds" => wanted.seconds = number(),
            "--seed" => wanted.seed = number(),
            "--keep" => wanted.keep = true,
            flag if flag.starts_with("--") => {}
            filter if "chaos".contains(filter) => {}
            _ => return None,
        }
    }
    Some(wanted)
}

/// Plays, judges, and says what came of it.
async fn play(wanted: &Wanted) -> ExitCode {
    let Wanted { seconds, seed, keep } = *wanted;
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    println!("chaos: seed {seed}, {seconds} s, bound {BOUND:?}; histories in {}", folder.display());
    let mut world = World::start(BOUND).await;
    let mut people = Vec::new();
    let mut files = Vec::new();
    // Writers record at two of the sidecars, checkers ask all; each is a process of its own.
    for (place, address) in world.records().into_iter().take(2).enumerate() {
        let name = format!("writer-{place}");
        let file = folder.join(&name);
        people.push(Person::start(&Role::Write, &name, &file, seed + place as u64, &[address]));
        files.push(file);
    }
    for place in 0..2 {
        let name = format!("checker-{place}");
        let file = folder.join(&name);
        people.push(Person::start(&Role::Check, &name, &file, seed, &world.checks()));
        files.push(file);
    }
    let (started, mut wrong) = (Instant::now(), Vec::new());
    for number in 0.. {
        if started.elapsed().as_secs() >= seconds || !wrong.is_empty() {
            break;
        }
        let steps = plan::round(seed, number);
        let told: Vec<String> = steps.iter().map(ToString::to_string).collect();
        println!("{:>6.1} s, round {number}: {}", started.elapsed().as_secs_f64(), told.join("; "));
        match world.play(&steps).await {
            Ok(took) => println!("{:>6.1} s, live after {took:?}", started.elapsed().as_secs_f64()),
            Err(said) => wrong.push(format!("round {number}: {said}")),
        }
        tokio::time::sleep(CALM).await;
        if !people.iter_mut().all(Person::lives) {
            wrong.push(format!("round {number}: a writer or a checker has ended"));
        }
    }
    // Whoever writes and checks ends when it is dropped.
    drop(people);
    let judged = judge(&files, &world, &mut wrong).await;
    println!("{judged}");
    for what in &wrong {
        println!("WRONG: {what}");
    }
    if wrong.is_empty() && !keep {
        std::fs::remove_dir_all(&folder).unwrap();
    } else {
        for (name, text) in world.logs() {
            std::fs::write(folder.join(name), text).unwrap();
        }
        println!("kept: {}", folder.display());
    }
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Judges what all processes wrote down; adds what is wrong, and says the figures.
async fn judge(files: &[PathBuf], world: &World, wrong: &mut Vec<String>) -> String {
    let lines: Vec<Line> = files.iter().flat_map(|file| history::read(file)).collect();
    let verdict = check(&lines, BOUND);
    wrong.extend(verdict.violations.iter().cloned());
    let users: BTreeSet<String> = lines
        .iter()
        .filter_map(|line| if let Line::Sent(sent) = line { Some(sent.user.clone()) } else { None })
        .collect();
    let records = RecordServiceClient::new(channel(&world.records()[SIDECARS - 1]));
    match listed(&records, users).await {
        Ok(listed) => wrong.extend(compare(&lines, &listed)),
        Err(status) => wrong.push(format!("the ledger cannot be listed: {status}")),
    }
    if verdict.allowed == 0 || verdict.opt_outs == 0 {
        wrong.push("nothing was allowed, or nobody opted out: it shows nothing".to_owned());
    }
    let denied: u64 = verdict.denied.values().sum();
    let stale = verdict.denied_for(consentd::grpc::pb::Reason::Stale as i32);
    format!(
        "{} violations; the longest that an opt-out took to be enforced: {:?} (at {}; the bound is \
         {BOUND:?})\n{} events, {} acknowledged, {} of them opt-outs; {} checks allowed, {denied} \
         denied, {stale} of them as stale",
        verdict.violated,
        verdict.longest,
        verdict.longest_at,
        verdict.sent,
        verdict.acknowledged,
        verdict.opt_outs,
        verdict.allowed,
    )
}
