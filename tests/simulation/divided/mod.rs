//! Histories of a ledger in several partitions, each with a log and a proof of its own, at one of several nodes whose
//! clocks differ. One sidecar follows all of them, and its checker reads all of its tables.
//!
//! Beside what holds of each partition by itself, as in every other history:
//!
//! - What was acknowledged is denied under all ids of a person, whichever partitions these are in; with the revision
//!   that the acknowledgement told, and in the recorder's own sidecar, from then on.
//! - A denial without a time of its own is lifted by nothing that was said before it, by whichever clock.
//! - A partition of which nothing is wrong is answered, whatever is wrong with the others.
//! - A batch over several partitions answers each of its requests as it is answered alone.
//!
//! Histories from [`FULLER_FROM`] on have more, each by a chance of its own:
//!
//! - Tables are saved, each partition's by itself, and followers start from them.
//! - The sidecar holds some businesses alone, and begins and ends to follow partitions as it is told to hold more or
//!   less. None of another business is answered, and what is added is held soon.
//! - Processes remember what their recorders wrote, and give back what a partition lost; persons are erased.
//!
//! That most nodes name the owner that answered is a step of its own, which may come late or never: without it an
//! answer is no proof, and an append has no known outcome.

mod answer;
mod append;
mod checks;
mod erase;
mod faults;
mod held;
mod partition;
mod process;
mod reading;
mod recorder;
mod saved;
mod trace;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use consentd::follower::scheduler::period;
use consentd::metrics::Metrics;

use self::world::World;
use crate::ledger::HAS_TEMPLATE;
use crate::oracle::Violation;
use crate::random::Random;
use crate::round::LIVE_WITHIN;
use crate::world::SECOND;

/// Histories from this seed on are of a ledger of several partitions.
pub const DIVIDED_FROM: u64 = 1 << 41;

/// Histories from this seed on have more than that.
pub const FULLER_FROM: u64 = 1 << 42;

/// What a history has beside.
#[derive(Clone, Copy, Default)]
pub struct Features {
    /// Tables are saved, and followers start from them.
    saves: bool,
    /// The sidecar holds some businesses alone.
    some: bool,
    /// Processes remember what their recorders wrote, and give it back.
    memories: bool,
    /// Persons are erased.
    erases: bool,
}

/// By chances of their own, so that a seed stays the history that it was.
fn features(seed: u64) -> Features {
    let has = |salt, percent| seed >= FULLER_FROM && Random::new(seed ^ salt).percent(percent);
    let memories = has(0x6d65_6d6f, 60);
    Features {
        saves: has(0x5afe_0001, 50),
        some: has(0x736f_6d65, 50),
        memories,
        erases: memories && has(0x6572_6173, 60),
    }
}

/// Counts the steps of a world that may end at any of them.
struct Counted<'a>(World, &'a AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        HAS_TEMPLATE.set(false);
        self.1.store(self.0.steps, Ordering::Relaxed);
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap()
}

pub fn history(seed: u64, metrics: &Arc<Metrics>, steps: &AtomicU64) -> Result<(), Violation> {
    HAS_TEMPLATE.set(true);
    let mut world = Counted(World::new(seed, features(seed), metrics), steps);
    let world = &mut world.0;
    for _ in 0..=world.random.below(2) {
        world.round()?;
    }
    Ok(())
}

impl World {
    fn round(&mut self) -> Result<(), Violation> {
        self.writing = true;
        // All partitions are well at first, so that those that stay so are answered all the while.
        self.become_live()?;
        self.break_some();
        let until = self.now + self.random.between(8, 40) * SECOND;
        self.run(until, |_| false)?;
        self.heal();
        self.run(self.frozen_until, |_| false)?;
        self.become_live()?;
        self.holds_all()?;
        self.run(self.now + 2 * micros(self.plan.bound), |_| false)?;
        self.writing = false;
        if self.plan.memories {
            self.give_back_all()?;
        }
        // Recorders end what they are at, and the last of it arrives.
        self.run(self.now + 10 * SECOND, |_| false)?;
        self.run(self.now + 2 * SECOND + 2 * micros(period(self.plan.bound)), |_| false)?;
        self.converged()
    }

    /// Property 5.
    fn become_live(&mut self) -> Result<(), Violation> {
        let healed = self.now;
        let until = self.now + micros(LIVE_WITHIN);
        self.run(until, |world| world.are_proven_since(healed))?;
        if self.are_proven_since(healed) {
            return Ok(());
        }
        let moment = self.moment();
        let told = |at: usize| {
            let freshness = self.partitions[at].sidecar.table.freshness();
            format!("{at}: {:?}, proven {:?} ago", freshness.validity, freshness.staleness(moment))
        };
        let followed = (0..self.partitions.len()).filter(|at| self.partitions[*at].is_followed);
        let all: Vec<String> = followed.map(told).collect();
        Err(Violation::new(5, format!("not live, though all is well: {}", all.join("; "))))
    }

    /// Whether all tables are live by proofs that were asked for since.
    fn are_proven_since(&self, since: u64) -> bool {
        let (moment, since) = (self.moment(), Duration::from_micros(self.now - since));
        self.partitions.iter().filter(|partition| partition.is_followed).all(|partition| {
            let staleness = partition.sidecar.table.freshness().staleness(moment);
            partition.sidecar.is_live(moment) && staleness <= since
        })
    }
}
