//! Hours of random faults: `scripts/chaos --seconds N --seed S [--only FAULT] [--keep]`.
//!
//! They befall, one after the other, a Redis with replicas, one that Sentinels watch, a Cluster, and a file.
//!
//! A test target without a harness, and no example: cargo tells tests alone where the binary that
//! was built with them is. Run as a test, it plays for a few seconds.

#![allow(dead_code, reason = "it needs a part of the tests' harness")]

#[path = "../it/faults/checker.rs"]
mod checker;
#[path = "../it/faults/cluster.rs"]
mod cluster;
mod clustered;
mod file;
mod fleet;
#[path = "../it/greedy.rs"]
mod greedy;
#[path = "../it/faults/history.rs"]
mod history;
mod judge;
#[path = "../it/faults/load.rs"]
mod load;
#[path = "../long_runs/mod.rs"]
mod long_runs;
mod lost_keys;
mod neighbours;
mod people;
mod plan;
#[path = "../it/faults/proxy.rs"]
mod proxy;
mod replicated;
mod sentinels;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use self::clustered::Clustered;
use self::file::File;
use self::judge::judge;
use self::long_runs::{redis, resp, rng, servers, sidecar};
use self::people::{Person, Role};
use self::plan::Setting;
use self::replicated::Replicated;
use self::sentinels::Guarded;
use self::world::World;

/// How long it plays where it is run as a test.
const AS_A_TEST: u64 = 18;

/// How long calm lasts between two rounds: what was held up is acknowledged, and allowed again.
const CALM: Duration = Duration::from_secs(1);

/// How many processes write.
const WRITERS: usize = 2;

/// How many processes ask.
const CHECKERS: usize = 2;

/// What was asked for.
struct Wanted {
    /// How long it plays in each setting.
    span: Duration,
    seed: u64,
    /// A part of the names of the faults that are played.
    only: String,
    keep: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let role = match arguments.first().map(String::as_str) {
        Some("write") => Role::Write,
        Some("check") => Role::Check,
        _ => {
            let names = ["seconds", "seed", "setting", "only"];
            return long_runs::play("chaos", &names, |options| async move {
                let only = options.text("only").unwrap_or_default().to_owned();
                let name = options.text("setting").unwrap_or_default().to_lowercase();
                let is_named = |one: &Setting| format!("{one:?}").to_lowercase().contains(&name);
                let settings: Vec<Setting> = Setting::ALL.into_iter().filter(is_named).collect();
                assert!(
                    !settings.is_empty(),
                    "--setting is {name:?}; there are {:?}",
                    Setting::ALL
                );
                let settings: Vec<Setting> =
                    settings.into_iter().filter(|one| plan::has(*one, &only)).collect();
                assert!(
                    !settings.is_empty(),
                    "--only is {only:?}, which is in no fault's name there"
                );
                let seconds = options.number("seconds", AS_A_TEST);
                let span = Duration::from_secs(seconds.div_ceil(settings.len() as u64));
                let (seed, keep) = (options.number("seed", 1), options.has("keep"));
                play_in_all(&settings, &Wanted { span, seed, only, keep }).await
            });
        }
    };
    long_runs::block_on(people::be(role, &arguments[1..]));
    ExitCode::SUCCESS
}

/// Plays in all these settings, whatever is wrong in one of them.
async fn play_in_all(settings: &[Setting], wanted: &Wanted) -> ExitCode {
    let mut all_well = true;
    for setting in settings {
        all_well &= match setting {
            Setting::Replicated => play(*setting, Replicated::start().await, wanted).await,
            Setting::Sentinels => play(*setting, Guarded::start().await, wanted).await,
            Setting::Cluster => play(*setting, Clustered::start().await, wanted).await,
            Setting::File => play(*setting, File::start().await, wanted).await,
        };
    }
    if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays, judges, and says what came of it; whether all is well.
async fn play<W: World>(setting: Setting, mut world: W, wanted: &Wanted) -> bool {
    let Wanted { span, seed, only, keep } = wanted;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("chaos-{setting:?}-{seed}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    println!("chaos: {setting:?}, seed {seed}, {span:?}; histories in {}", folder.display());
    let (mut people, files) = people(&mut world, &folder, *seed);
    let (started, mut wrong) = (Instant::now(), Vec::new());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0.. {
        if (number > 0 && started.elapsed() >= *span) || !wrong.is_empty() {
            break;
        }
        let steps = plan::round(setting, *seed, number, only);
        let told: Vec<String> = steps.iter().map(ToString::to_string).collect();
        println!("{:>6.1} s, round {number}: {}", started.elapsed().as_secs_f64(), told.join("; "));
        for step in &steps {
            *counts.entry(step.fault.name()).or_default() += 1;
        }
        match world::play(&mut world, &steps).await {
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
    let records = world.fleet().records().pop().expect("there is a sidecar");
    let silences = world.fleet().silences.clone();
    println!("{}", judge::<W>(&files, &records, &silences, &mut wrong).await);
    println!("faults: {counts:?}");
    for what in &wrong {
        println!("WRONG: {what}");
    }
    if wrong.is_empty() && !keep {
        std::fs::remove_dir_all(&folder).unwrap();
    } else {
        let logs = world.fleet().logs().into_iter().chain(world.server_logs());
        for (name, text) in logs {
            std::fs::write(folder.join(name), text).unwrap();
        }
        println!("kept: {}", folder.display());
    }
    wrong.is_empty()
}

/// Starts writers at the first sidecars and checkers at all of them, each a process of its own;
/// gives the files of what they see.
fn people(world: &mut impl World, folder: &Path, seed: u64) -> (Vec<Person>, Vec<PathBuf>) {
    let (records, checks) = (world.fleet().records(), world.fleet().checks());
    let (mut people, mut files) = (Vec::new(), Vec::new());
    let mut start = |role: &Role, name: String, seed: u64, addresses: &[String]| {
        let file = folder.join(&name);
        people.push(Person::start(role, &name, &file, seed, addresses));
        files.push(file);
    };
    for (place, address) in records.into_iter().cycle().take(WRITERS).enumerate() {
        start(&Role::Write, format!("writer-{place}"), seed + place as u64, &[address]);
    }
    for place in 0..CHECKERS {
        start(&Role::Check, format!("checker-{place}"), seed, &checks);
    }
    (people, files)
}
