//! The follower under faults: the real scheduler, state machine, applier, table and checker against a
//! model of the ledger, over a wire that drops, duplicates, delays, reorders and truncates.
//!
//! A **step** is one thing that happens at one moment of simulated time: a question that reaches
//! the ledger, an answer or an announcement that reaches the sidecar or is given up, a timer, a
//! recorder's move, a fault. A **history** is what follows from one seed: some rounds of faults
//! under load, each of which ends with a healthy ledger and must end with a proven table.
//!
//! What must hold, at every step or at the end of each round:
//!
//! 1. *Converges.* Once faults and writes have stopped, the table is proven and says of every pair
//!    what the ledger does; more is denied only where something was lost.
//! 2. *No gap.* A valid table holds a state that the ledger had, at the position that it says.
//! 3. *Never late.* What was acknowledged as denied more than the bound ago is denied, unless
//!    something newer was written. What a fork, a flush or a write behind the log's back took is
//!    excepted where the table had never seen it, and there alone. In some histories several users
//!    are one person: then it holds of all that were acknowledged to be linked, wherever a recorder
//!    was killed between its writes, and something newer counts for the user alone that said it.
//! 4. *Stale or invalid means deny.*
//! 5. *Live again*: within [`LIVE_WITHIN`] of the last fault, and from then on without a pause;
//!    and what is announced is applied soon, though announcements before it were lost.
//! 6. *Sticky.* What a valid table denied it denies for good, until something newer, on a scope
//!    that covers it, lifts it: newer than the denial, or than the moment at which its loss was
//!    seen. Only an operator who accepts the ledger makes it forget.
//! 7. *Bounded*: held announcements, claims and labels; and one retry, however long nothing answers.
//! 8. *Given back.* What a process wrote, to whatever branch, and still remembers, is in the ledger
//!    once all is well: a denial, a link, or an erase that a failover took was recorded again. Who was
//!    erased is suppressed under all linked ids, and names none of them.
//!
//! ```sh
//! cargo test --test simulation                                       # what CI runs
//! CONSENTD_SEED=42 cargo test --test simulation                      # one history again
//! CONSENTD_TRACE=1 CONSENTD_SEED=42 cargo test --test simulation -- --nocapture    # step by step
//! CONSENTD_FROM=1000000 cargo test --test simulation                 # other histories
//! CONSENTD_SEED=2199023255553 cargo test --test simulation            # one of a ledger of several partitions
//! cargo test --test simulation several_partitions                     # all of these
//! CONSENTD_PEOPLE=100 cargo test --test simulation                    # all with people of several ids
//! CONSENTD_MEMORIES=100 CONSENTD_ERASES=100 cargo test --test simulation   # all with erases
//! CONSENTD_PEOPLE=0 CONSENTD_MEMORIES=0 CONSENTD_SOME=100 cargo test --test simulation # all with a filter
//! CONSENTD_STEPS=1000000000 cargo test --release --test simulation   # a night's worth
//! scripts/mutants                                                    # does it catch anything?
//! ```
//!
//! In some histories the sidecar holds some businesses alone, and is told to hold more or less: then all of this
//! holds of the pairs that it holds, none of another business is ever allowed, and what is added is held
//! soon.
//!
//! In histories from seed 2^41 on the ledger is in several partitions, at several nodes whose clocks differ, and the
//! checker reads all of their tables: see `simulation/divided/mod.rs` for what must hold of them together. From seed 2^42
//! on these have saved tables, sidecars for some businesses, memories and erases, too.
//!
//! Seeds that once failed are in `simulation/regressions.txt`, and run first.

#![allow(
    clippy::needless_range_loop,
    clippy::struct_excessive_bools,
    reason = "users and categories are numbers"
)]

#[path = "simulation/append.rs"]
mod append;
#[path = "simulation/divided/mod.rs"]
mod divided;
#[path = "simulation/erase.rs"]
mod erase;
#[path = "simulation/faults.rs"]
mod faults;
#[path = "simulation/held.rs"]
mod held;
#[path = "simulation/ledger.rs"]
mod ledger;
#[path = "simulation/lifts.rs"]
mod lifts;
#[path = "simulation/linked.rs"]
mod linked;
#[path = "simulation/oracle.rs"]
mod oracle;
#[path = "simulation/past.rs"]
mod past;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/process.rs"]
mod process;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/recorder.rs"]
mod recorder;
#[path = "simulation/round.rs"]
mod round;
#[path = "simulation/saved.rs"]
mod saved;
#[path = "simulation/sidecar.rs"]
mod sidecar;
#[path = "simulation/trace.rs"]
mod trace;
#[path = "simulation/violation.rs"]
mod violation;
#[path = "simulation/wire.rs"]
mod wire;
#[path = "simulation/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use consentd::metrics::Metrics;
use random::Random;
use world::Features;

/// Where the seeds of a run start: the same in every run, so that CI does not fail by chance.
const FIRST_SEED: u64 = 1;
const STEPS: u64 = 1_000_000;
/// And of histories in which tables are saved.
const SAVED_STEPS: u64 = 500_000;
/// And of histories of a ledger of several partitions.
const DIVIDED_STEPS: u64 = 120_000;
const THREADS: usize = 2;
/// In how many of a hundred histories some users are one person.
const PEOPLE: u64 = 40;
/// In how many processes remember what they wrote, appends reach former primaries, and failovers are
/// frequent.
const MEMORIES: u64 = 50;
/// In how many of those persons are erased.
const ERASES: u64 = 60;
/// In how many of those without either the sidecar holds some businesses alone, now these and then those.
const SOME: u64 = 50;
/// In how many of those with people of several ids keys are written and lost behind the log's back.
const MEET: u64 = 40;
/// Dropping a long log takes a frame for each of its entries.
const STACK: usize = 256 << 20;

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(prometheus::Registry::new()).unwrap())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.trim().parse().expect("a number"))
}

/// The seeds that failed once.
fn regressions() -> Vec<u64> {
    let lines = include_str!("simulation/regressions.txt").lines();
    lines.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

/// What a history has: by chances of their own, so that a seed stays the history that it was.
fn features(seed: u64) -> Features {
    // What once failed did so before there was any of this, and with other chances.
    if regressions().contains(&seed) {
        return Features::default();
    }
    let has = |salt: u64, variable, percent| {
        Random::new(seed ^ salt).percent(number(variable).unwrap_or(percent))
    };
    let memories = has(0x6d65_6d6f, "CONSENTD_MEMORIES", MEMORIES);
    let people = has(u64::MAX, "CONSENTD_PEOPLE", PEOPLE);
    Features {
        people,
        memories,
        some: !people
            && !memories
            && seed < saved::SAVING_FROM
            && has(0x736f_6d65, "CONSENTD_SOME", SOME),
        erases: memories && has(0x6572_6173, "CONSENTD_ERASES", ERASES),
        meet: has(0x6d65_6574, "CONSENTD_MEET", MEET),
    }
}

/// Runs one history; gives its steps, or what it violated.
fn history(seed: u64, metrics: &Arc<Metrics>) -> Result<u64, (u64, String)> {
    let steps = AtomicU64::new(0);
    let features = features(seed);
    let run = || match seed {
        divided::DIVIDED_FROM.. => divided::history(seed, metrics, &steps),
        _ => round::history(seed, features, metrics, &steps),
    };
    let outcome = catch_unwind(AssertUnwindSafe(run));
    let steps = steps.load(Ordering::Relaxed);
    match outcome {
        Ok(Ok(())) => Ok(steps),
        Ok(Err(violation)) => Err((steps, violation.to_string())),
        Err(_) => Err((steps, "panicked, see above".to_owned())),
    }
}

fn fail(seed: u64, step: u64, why: &str) -> ! {
    println!("FAILED seed {seed} step {step}: {why}");
    panic!("once more: CONSENTD_SEED={seed} cargo test --test simulation -- --nocapture");
}

#[test]
fn the_table_is_what_the_ledger_is() {
    let metrics_of_one = metrics();
    if let Some(seed) = number("CONSENTD_SEED") {
        match history(seed, &metrics_of_one) {
            Ok(steps) => println!("seed {seed} held for {steps} steps"),
            Err((step, why)) => fail(seed, step, &why),
        }
        return;
    }
    let wanted = number("CONSENTD_STEPS").unwrap_or(STEPS);
    let first = number("CONSENTD_FROM").unwrap_or(FIRST_SEED);
    histories(&regressions(), first, wanted);
}

#[test]
fn so_it_is_where_sidecars_start_from_tables_that_were_saved() {
    if number("CONSENTD_SEED").is_none() {
        let wanted = number("CONSENTD_STEPS").unwrap_or(SAVED_STEPS);
        let first = number("CONSENTD_FROM").unwrap_or(FIRST_SEED);
        histories(&[], first + saved::SAVING_FROM, wanted);
    }
}

#[test]
fn so_it_is_of_a_ledger_of_several_partitions() {
    if number("CONSENTD_SEED").is_none() {
        let wanted = number("CONSENTD_STEPS").unwrap_or(DIVIDED_STEPS);
        let first = number("CONSENTD_FROM").unwrap_or(FIRST_SEED);
        histories(&[], first + divided::DIVIDED_FROM, wanted);
    }
}

#[test]
fn so_it_is_of_several_partitions_with_saved_tables_some_businesses_memories_and_erases() {
    if number("CONSENTD_SEED").is_none() {
        let wanted = number("CONSENTD_STEPS").unwrap_or(DIVIDED_STEPS);
        let first = number("CONSENTD_FROM").unwrap_or(FIRST_SEED);
        histories(&[], first + divided::FULLER_FROM, wanted);
    }
}

/// Runs these histories, then those from a seed on, until they have taken so many steps.
fn histories(regressions: &[u64], first: u64, wanted: u64) {
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = std::sync::Mutex::new(None::<(u64, u64, String)>);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let work = || {
                let metrics = metrics();
                while done.load(Ordering::Relaxed) < wanted && failed.lock().unwrap().is_none() {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let place = usize::try_from(index).unwrap();
                    let fresh = || first + index - u64::try_from(regressions.len()).unwrap();
                    let seed = regressions.get(place).copied().unwrap_or_else(fresh);
                    match history(seed, &metrics) {
                        Ok(steps) => drop(done.fetch_add(steps, Ordering::Relaxed)),
                        Err((step, why)) => *failed.lock().unwrap() = Some((seed, step, why)),
                    }
                }
            };
            std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).unwrap();
        }
    });
    let (steps, histories) = (done.into_inner(), next.into_inner());
    let rate = u128::from(steps) * 1_000 / began.elapsed().as_millis().max(1);
    println!("{steps} steps in {histories} histories, {rate} a second");
    if let Some((seed, step, why)) = failed.into_inner().unwrap() {
        fail(seed, step, &why);
    }
}

#[test]
fn every_mutant_still_finds_its_place() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for mutant in std::fs::read_dir(root.join("tests/mutants")).unwrap() {
        let path = mutant.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for change in text.trim_end_matches("\n>>>>\n").split("\n>>>>\n") {
            let (head, rest) = change.split_once("\n<<<<\n").expect("it says where");
            let (find, replace) = rest.split_once("\n====\n").expect("it says what, and by what");
            let file = head.lines().find_map(|line| line.strip_prefix("file ")).expect("a file");
            let source = std::fs::read_to_string(root.join(file)).unwrap();
            assert_eq!(source.matches(find).count(), 1, "{}", path.display());
            assert_ne!(find, replace, "{}", path.display());
        }
        count += 1;
    }
    assert!(count >= 25, "{count} mutants");
}
