//! What the table takes and how long look-ups in it take: resident bytes per pair at the best and
//! the worst fill, with and without an expiry on each; what `consent_table_bytes` says of it; the
//! slowest look-up while shards grow; and look-ups one by one and many at once.
//!
//! `cargo bench --bench memory` runs all, each in a process of its own. A number before it, as in
//! `cargo bench --bench memory -- 1000000`, is that of the pairs, in place of ten million.

#![allow(clippy::cast_precision_loss, reason = "figures are rounded")]

use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use consentd::table::{self, Pair, Table, Writer};
use consentd_core::id::{BusinessId, Key, KeySecret, UserId};
use consentd_core::scope::{Category, Scope};
use consentd_core::state::{Choice, Effect, State};
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

/// How many runs a median is of.
const RUNS: usize = 7;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let first = arguments.next();
    match first.as_deref() {
        Some("fill") => {
            let pairs = arguments.next().unwrap().parse().unwrap();
            fill(pairs, &arguments.next().unwrap());
        }
        Some("look-up") => look_up(arguments.next().unwrap().parse().unwrap()),
        pairs => {
            let pairs = pairs.map_or(10_000_000, |pairs| pairs.parse().unwrap());
            for what in ["plain", "expiry"] {
                again(&["fill", &pairs.to_string(), what]);
            }
            again(&["look-up", "1000"]);
            again(&["look-up", &pairs.to_string()]);
        }
    }
}

/// Runs a part in a process of its own, whose memory nothing else has used.
fn again(arguments: &[&str]) {
    let status = Command::new(std::env::current_exe().unwrap()).args(arguments).status().unwrap();
    assert!(status.success());
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

fn key(secret: &KeySecret, n: usize) -> Key {
    let mut digits = *b"155500000000";
    let mut rest = n;
    for digit in digits[4..].iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap();
        rest /= 10;
    }
    let user = UserId::parse(std::str::from_utf8(&digits).unwrap()).unwrap();
    secret.key(&user, BusinessId::parse("acme").unwrap())
}

/// Two scopes and a last inbound, as most pairs have; and an expiry of its own, if asked for.
fn state(n: usize, now: Timestamp, expiry: bool) -> State {
    let mut state = State::default();
    let at = |back: usize| now.minus(Duration::from_millis(u64::try_from(back).unwrap()));
    let lapse = now.plus(Duration::from_millis(1_000_000 + u64::try_from(n).unwrap()));
    let choice = Choice::opt_in(at(90_000_000), expiry.then_some(lapse));
    for (scope, choice) in
        [("utility.order_updates", choice), ("marketing", Choice::opt_in(at(90_000_000), None))]
    {
        state.apply(&Effect::Choice(Scope::parse(scope).unwrap(), choice)).unwrap();
    }
    state.apply(&Effect::Inbound(at(n % 80_000_000))).unwrap();
    state
}

fn write(writer: &mut Writer, secret: &KeySecret, from: usize, to: usize, expiry: bool) {
    let now = Moment::now().wall;
    for n in from..to {
        writer.apply(key(secret, n), Ok(&state(n, now, expiry)));
    }
}

/// Fills a table beside a reader, and looks at the memory on the way from half of all to all.
fn fill(pairs: usize, what: &str) {
    let secret = KeySecret::new(&[7; 16]);
    let empty = resident();
    let (table, mut writer) = table::new();
    writer.reset(&secret);
    let (done, held) = (AtomicBool::new(false), AtomicUsize::new(1));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_until(&done, &held, &table, &secret));
        let (mut per_pair, mut off) = (Vec::new(), Vec::new());
        let mut from = 0;
        for step in 64..=128 {
            let to = pairs / 128 * step;
            write(&mut writer, &secret, from, to, what == "expiry");
            from = to;
            held.store(to, Ordering::Release);
            let taken = (resident() - empty) as f64;
            per_pair.push(taken / to as f64);
            off.push((table.bytes() as f64 / taken - 1.0) * 100.0);
        }
        done.store(true, Ordering::Release);
        let least = |all: &[f64]| all.iter().copied().fold(f64::INFINITY, f64::min);
        let most = |all: &[f64]| all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        println!(
            "{what}: {} pairs: {:.1} resident bytes a pair; from half of them on: best {:.1}, \
             worst {:.1}; the metric is off by {:+.1} to {:+.1} %",
            table.pairs(),
            per_pair.last().unwrap(),
            least(&per_pair),
            most(&per_pair),
            least(&off),
            most(&off),
        );
        println!("{what}: a look-up while the table grows: {}", reader.join().unwrap());
    });
    done.store(false, Ordering::Release);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_until(&done, &held, &table, &secret));
        std::thread::sleep(Duration::from_secs(5));
        done.store(true, Ordering::Release);
        println!("{what}: a look-up beside no writer:      {}", reader.join().unwrap());
    });
}

/// Looks pairs up until it is told to stop; tells how long that took.
fn read_until(done: &AtomicBool, held: &AtomicUsize, table: &Table, secret: &KeySecret) -> String {
    let category = Category::parse("utility.order_updates").unwrap();
    let mut buckets = vec![0_u64; 100_000];
    let (mut slowest, mut count, mut n) = (Duration::ZERO, 0_u64, 0_usize);
    while !done.load(Ordering::Relaxed) {
        n += 1;
        let pair = key(secret, n.wrapping_mul(2_654_435_761) % held.load(Ordering::Relaxed)).into();
        let start = Instant::now();
        black_box(table.facts(pair, category).0.unwrap());
        let took = start.elapsed();
        slowest = slowest.max(took);
        let bucket = usize::try_from(took.as_nanos() / 100).unwrap().min(buckets.len() - 1);
        buckets[bucket] += 1;
        count += 1;
    }
    let quantile = |above: u64| {
        // All but one of so many.
        let mut left = count - count / above;
        let place = buckets.iter().position(|held| {
            let here = left < *held;
            left = left.saturating_sub(*held);
            here
        });
        Duration::from_nanos(u64::try_from(place.unwrap_or(buckets.len())).unwrap() * 100)
    };
    format!(
        "p50 {:?}, p99.99 {:?}, p99.999 {:?}, slowest {slowest:?}, of {count}",
        quantile(2),
        quantile(10_000),
        quantile(100_000)
    )
}

/// Look-ups of keys that are known, in an order that no cache foresees.
fn look_up(pairs: usize) {
    const ASKED: usize = 1_000_000;
    let secret = KeySecret::new(&[7; 16]);
    let (table, mut writer) = table::new();
    writer.reset(&secret);
    write(&mut writer, &secret, 0, pairs, false);
    writer.validate();
    let scattered = |n: usize| n.wrapping_mul(2_654_435_761) % pairs;
    let asked: Vec<Pair> = (0..ASKED).map(|n| key(&secret, scattered(n)).into()).collect();
    let category = Category::parse("utility.order_updates").unwrap();
    let single = median(|| {
        for pair in &asked {
            black_box(table.facts(*pair, category).0.unwrap());
        }
    });
    println!("{pairs} pairs: one by one: {:.1} ns a look-up", single / ASKED as f64);
    let mut facts = Vec::with_capacity(10_000);
    let categories = vec![category; 10_000];
    for size in [16, 64, 250, 1_000, 10_000] {
        let took = median(|| {
            for some in asked.chunks(size) {
                black_box(table.facts_batch(some, &categories[..some.len()], &mut facts));
            }
        });
        println!("{pairs} pairs: {size} at once: {:.1} ns a look-up", took / ASKED as f64);
    }
    let keys = median(|| {
        (0..ASKED).for_each(|n| _ = black_box(key(&secret, scattered(n))));
    });
    println!("{pairs} pairs: a key: {:.1} ns", keys / ASKED as f64);
}

fn median(mut run: impl FnMut()) -> f64 {
    let mut all: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_nanos() as f64
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[RUNS / 2]
}
