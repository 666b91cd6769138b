//! Resident bytes per pair, as a table grows from half of its pairs to all of them, and after as
//! many changes.

use consentd_os::clock::Moment;

use crate::tables::{HotTable, HotWriter};
use crate::{key, scattered, secret, state};

/// A small table is measured as many times over, because memory is resident in whole pages.
const LEAST_PAIRS: usize = 200_000;
/// How often it is looked at on the way from half of the pairs to all.
const STEPS: usize = 64;

/// Fills tables and looks at the memory that they take.
pub(crate) fn measure<T: HotTable>(pairs: usize, fill: &str) {
    let (secret, now) = (secret(), Moment::now().wall);
    let expiry = fill == "expiry";
    let count = (LEAST_PAIRS / pairs).max(1);
    let empty = resident();
    let mut tables: Vec<_> = (0..count).map(|_| T::create(&secret)).collect();
    let taken = |pairs: usize| (resident() - empty) as f64 / (count * pairs) as f64;
    let mut per_pair = Vec::new();
    let mut from = 0;
    for step in STEPS..=2 * STEPS {
        let to = pairs * step / (2 * STEPS);
        for (_, writer) in &mut tables {
            for n in from..to {
                writer.apply(key(&secret, n), Ok(&state(n, now, expiry)));
            }
        }
        from = to;
        per_pair.push(taken(to));
    }
    // Each pair gains or loses what takes more room than its slot, and returns.
    for n in 0..pairs {
        let n = scattered(n, pairs);
        for (_, writer) in &mut tables {
            writer.apply(key(&secret, n), Ok(&state(n, now, !expiry)));
            writer.apply(key(&secret, n), Ok(&state(n, now, expiry)));
        }
    }
    assert!(tables.iter().all(|(table, _)| table.pairs() == pairs));
    let least = per_pair.iter().copied().fold(f64::INFINITY, f64::min);
    let most = per_pair.iter().copied().fold(0.0, f64::max);
    println!(
        "memory | {pairs} pairs, {fill} | {} | {:.1} bytes a pair; from half of them on: best \
         {least:.1}, worst {most:.1}; after a change of each and back: {:.1}",
        T::NAME,
        per_pair[STEPS],
        taken(pairs),
    );
}

fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}
