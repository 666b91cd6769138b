//! Look-ups while a table grows from nothing as fast as one thread can fill it, each timed alone.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use consentd::table::{Pair, Table};
use consentd_core::id::KeySecret;
use consentd_core::scope::Category;
use consentd_os::clock::Moment;

use crate::tables::{HotTable, HotWriter};
use crate::{dashmap_table, key, pin, scattered, secret, spread, state};

/// How many rounds a median is of; fewer where one takes long.
const ROUNDS: usize = 15;
const ROUNDS_OF_MANY: usize = 5;
/// More pairs than these are many.
const MANY: usize = 1_000_000;
/// In one round, small tables are filled until they had so many pairs together.
const LEAST_PAIRS: usize = 100_000;
/// A look-up that took longer may have been one during which the reader was preempted.
const SLOW: Duration = Duration::from_micros(5);
/// How many look-ups lie between two readings of how often the reader was preempted.
const CHECK_EVERY: u64 = 2_000;

/// The quantiles and extremes of one round, in microseconds.
#[derive(Default)]
struct Figures {
    median: Vec<f64>,
    rare: Vec<f64>,
    slowest: Vec<f64>,
    slowest_of_all: Vec<f64>,
}

/// Measures both tables in turn.
pub(crate) fn measure(pairs: usize) {
    let rounds = if pairs > MANY { ROUNDS_OF_MANY } else { ROUNDS };
    let (mut own, mut other) = (Figures::default(), Figures::default());
    for round in 0..rounds {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                grow::<Table>(pairs, &mut own);
            } else {
                grow::<dashmap_table::Table>(pairs, &mut other);
            }
        }
    }
    for (name, figures) in [(Table::NAME, own), (dashmap_table::Table::NAME, other)] {
        println!(
            "growth | to {pairs} pairs | {name} | p50 {} us | p99.99 {} us | slowest {} us | \
             slowest, preempted ones included {} us",
            spread(figures.median, 2),
            spread(figures.rare, 1),
            spread(figures.slowest, 1),
            spread(figures.slowest_of_all, 1),
        );
    }
}

fn grow<T: HotTable>(pairs: usize, figures: &mut Figures) {
    let secret = secret();
    let mut samples = Samples::new();
    for _ in 0..(LEAST_PAIRS / pairs).max(1) {
        let (table, mut writer) = T::create(&secret);
        let held = AtomicUsize::new(0);
        thread::scope(|scope| {
            let (secret, held) = (&secret, &held);
            scope.spawn(move || {
                pin(1);
                let now = Moment::now().wall;
                for n in 0..pairs {
                    writer.apply(key(secret, n), Ok(&state(n, now, n.is_multiple_of(8))));
                    held.store(n + 1, Ordering::Release);
                }
                writer // Is dropped once nobody reads.
            });
            pin(0);
            read_until(pairs, held, &table, secret, &mut samples);
        });
    }
    figures.median.push(samples.quantile(2));
    figures.rare.push(samples.quantile(10_000));
    figures.slowest.push(samples.slowest.as_nanos() as f64 / 1_000.0);
    figures.slowest_of_all.push(samples.slowest_of_all.as_nanos() as f64 / 1_000.0);
}

fn read_until<T: HotTable>(
    pairs: usize,
    held: &AtomicUsize,
    table: &T,
    secret: &KeySecret,
    samples: &mut Samples,
) {
    let category = Category::parse("utility.order_updates").unwrap();
    let mut n = 0;
    loop {
        let now = held.load(Ordering::Acquire);
        if now == pairs {
            break;
        }
        if now == 0 {
            continue;
        }
        n += 1;
        let pair: Pair = key(secret, scattered(n, now)).into();
        let start = Instant::now();
        black_box(table.facts(pair, category).0.unwrap());
        samples.add(start.elapsed());
    }
}

/// What look-ups took.
struct Samples {
    /// By tens of nanoseconds.
    buckets: Vec<u64>,
    count: u64,
    /// The slowest of those during which the reader was not preempted.
    slowest: Duration,
    slowest_of_all: Duration,
    preemptions: u64,
}

impl Samples {
    fn new() -> Self {
        Self {
            buckets: vec![0; 1_000_000],
            count: 0,
            slowest: Duration::ZERO,
            slowest_of_all: Duration::ZERO,
            preemptions: preemptions(),
        }
    }

    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.slowest_of_all = self.slowest_of_all.max(took);
        if took > SLOW || self.count.is_multiple_of(CHECK_EVERY) {
            let preemptions = preemptions();
            let preempted = preemptions != self.preemptions;
            self.preemptions = preemptions;
            if preempted && took > SLOW {
                return;
            }
        }
        self.slowest = self.slowest.max(took);
        let bucket = usize::try_from(took.as_nanos() / 10).unwrap().min(self.buckets.len() - 1);
        self.buckets[bucket] += 1;
    }

    /// The time, in microseconds, that all but one of so many look-ups stayed below.
    fn quantile(&self, above: u64) -> f64 {
        let count: u64 = self.buckets.iter().sum();
        let mut left = count - count / above;
        let place = self.buckets.iter().position(|held| {
            let here = left < *held;
            left = left.saturating_sub(*held);
            here
        });
        place.unwrap_or(self.buckets.len()) as f64 / 100.0
    }
}

/// How often the calling thread lost its CPU while it could have gone on.
fn preemptions() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("nonvoluntary_ctxt_switches"));
    line.unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}
