//! The product's hot table beside its alternative, a `DashMap` of sorted runs: memory per pair,
//! single checks, batches and filters without and with a writer of 20,000 changes a second, and
//! the slowest look-up while the table grows. `docs/adr/0002-the-hot-table.md` rests on its figures.
//!
//! `cargo bench --bench hot_table` measures at 10³ and 10⁷ pairs; `cargo bench --bench hot_table --
//! 1000000` at one million. Each part runs in a process of its own; within one the two tables take
//! turns, so that a busy machine slows both alike: read the ratios.

#![allow(clippy::cast_precision_loss, reason = "figures are rounded")]

mod calls;
mod dashmap_table;
mod growth;
mod memory;
mod tables;

use std::process::Command;
use std::time::Duration;

use consentd::table::Table;
use consentd_core::id::{BusinessId, Key, KeySecret, UserId};
use consentd_core::scope::Scope;
use consentd_core::state::{Choice, Effect, State};
use consentd_core::time::Timestamp;
use rustix::thread::{CpuSet, sched_setaffinity};

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let mut next = || arguments.next();
    let number = |text: Option<String>| text.unwrap().parse::<usize>().unwrap();
    match next().as_deref() {
        Some("memory") => {
            let pairs = number(next());
            match next().as_deref() {
                Some("own") => memory::measure::<Table>(pairs, &next().unwrap()),
                _ => memory::measure::<dashmap_table::Table>(pairs, &next().unwrap()),
            }
        }
        Some("calls") => calls::measure(number(next())),
        Some("growth") => growth::measure(number(next())),
        Some(pairs) => all(pairs.parse().unwrap()),
        None => [1_000, 10_000_000].into_iter().for_each(all),
    }
}

/// Runs every part in a process of its own, whose memory nothing else has used.
fn all(pairs: usize) {
    let pairs = pairs.to_string();
    let run = |arguments: &[&str]| {
        let this = std::env::current_exe().unwrap();
        assert!(Command::new(this).args(arguments).status().unwrap().success());
    };
    for fill in ["plain", "expiry"] {
        for table in ["own", "dashmap"] {
            run(&["memory", &pairs, table, fill]);
        }
    }
    run(&["calls", &pairs]);
    run(&["growth", &pairs]);
}

/// Keeps the calling thread on one CPU: readers on the first, writers on the second.
fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).expect("this machine has two CPUs that can be pinned to");
}

fn secret() -> KeySecret {
    KeySecret::new(&[7; 16])
}

/// The digits of the user with this number.
fn digits(n: usize) -> [u8; 12] {
    let mut digits = *b"155500000000";
    let mut rest = n;
    for digit in digits[4..].iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap();
        rest /= 10;
    }
    digits
}

fn key(secret: &KeySecret, n: usize) -> Key {
    let digits = digits(n);
    let user = UserId::parse(std::str::from_utf8(&digits).unwrap()).unwrap();
    secret.key(&user, BusinessId::parse("acme").unwrap())
}

/// A stride that visits the numbers below `pairs` in an order that no cache foresees.
fn scattered(n: usize, pairs: usize) -> usize {
    n.wrapping_mul(2_654_435_761) % pairs
}

/// Two scopes and a last inbound, as most pairs have; and an expiry of its own, if asked for.
fn state(n: usize, now: Timestamp, expiry: bool) -> State {
    let mut state = State::default();
    let at = |back: usize| now.minus(Duration::from_millis(u64::try_from(back).unwrap()));
    let end = now.plus(Duration::from_millis(1_000_000 + u64::try_from(n).unwrap()));
    let topic = Choice::opt_in(at(90_000_000), expiry.then_some(end));
    let class = Choice::opt_in(at(90_000_000), None);
    for (scope, choice) in [("utility.order_updates", topic), ("marketing", class)] {
        state.apply(&Effect::Choice(Scope::parse(scope).unwrap(), choice)).unwrap();
    }
    state.apply(&Effect::Inbound(at(n % 80_000_000))).unwrap();
    state
}

/// The median of some values, with the least and the most of them.
fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{:.digits$} ({least:.digits$}-{most:.digits$})", values[values.len() / 2])
}
