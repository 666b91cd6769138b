//! A history, round by round.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use consentd::follower::scheduler::{BUCKET_TIMEOUT, RETRY_INTERVAL, period};
use consentd::metrics::Metrics;
use consentd_core::standing::Facts;

use crate::held::business_of;
use crate::ledger::{CATEGORIES, USERS, user};
use crate::oracle::Violation;
use crate::process::WRITERS;
use crate::wire::SLOWEST;
use crate::world::{Features, MILLI, SECOND, World};

/// How long a bucket may hang that was asked for before the last fault ended; it is asked for
/// again; and what else it takes: some polls that time out, and some pages.
pub const LIVE_WITHIN: Duration = BUCKET_TIMEOUT
    .checked_add(RETRY_INTERVAL)
    .unwrap()
    .checked_add(Duration::from_secs(8))
    .unwrap();

/// How soon a recorder starts again, on average, where they are busy, and the bound of histories in
/// which they are: what is short is missed soonest; and how much a page must bring for that.
const BUSY: u64 = 4 * MILLI;
const BUSY_BOUND: Duration = Duration::from_secs(1);
const BUSY_PAGE: usize = 8;

/// How long processes may take to give back all that they remember, where all is well.
pub const GIVEN_BACK_WITHIN: u64 = 300 * SECOND;

/// How long a bucket takes to be read and compared.
const SCRUBBED_WITHIN: u64 = 150 * MILLI;

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap()
}

/// Counts the steps of a world that may end at any of them.
struct Counted<'a>(World, &'a AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.1.store(self.0.steps, Ordering::Relaxed);
    }
}

pub fn history(
    seed: u64,
    features: Features,
    metrics: &Arc<Metrics>,
    steps: &AtomicU64,
) -> Result<(), Violation> {
    let mut world = Counted(World::new(seed, features, metrics), steps);
    let world = &mut world.0;
    for _ in 0..=world.random.below(3) {
        world.round()?;
    }
    Ok(())
}

impl World {
    fn round(&mut self) -> Result<(), Violation> {
        (self.writing, self.faulty, self.settled) = (true, true, false);
        let until = self.now + self.random.between(2, 24) * SECOND;
        self.run(until, |_| false)?;
        self.heal();
        // In half of the histories no recorder writes now, so that no ledger reaches the revision at
        // which a bucket of another ledger was read.
        self.writing = self.random.percent(50);
        // A machine that is suspended still is not healthy yet.
        self.run(self.frozen_until, |_| false)?;
        if self.plan.people || self.plan.memories || self.plan.some {
            // A dead branch's last announcement must not be taken for a fault after the last one.
            self.run(self.now + SLOWEST * MILLI, |_| false)?;
        }
        self.become_live()?;
        self.holds_all()?;
        (self.writing, self.settled) = (true, true);
        // Writes go on meanwhile: they must not starve what proves it, though something is announced
        // while each answer is under way.
        let usual = self.plan.write_every;
        let keeps_up = self.plan.bound == BUSY_BOUND && self.plan.page >= BUSY_PAGE;
        if keeps_up && self.random.percent(40) {
            self.write_every(BUSY);
        }
        let until = self.now + 2 * micros(self.plan.bound);
        let mut late = None;
        self.run(until, |world| {
            let moment = world.moment();
            if !world.sidecar.is_live(moment) && late.is_none() {
                let freshness = world.sidecar.table.freshness();
                late = Some(format!(
                    "{:?}, proven {:?} ago, though all is well",
                    freshness.validity,
                    freshness.staleness(moment)
                ));
            }
            late.is_some()
        })?;
        if let Some(late) = late {
            return Err(Violation::new(5, late));
        }
        self.write_every(usual);
        self.writing = false;
        if self.plan.memories {
            self.give_back_all()?;
        }
        // Nobody writes, so nothing but a scrub tells of it.
        if self.faults.are_out_of_band() {
            self.write_out_of_band();
        }
        let each = 2 * self.plan.scrub_every + SCRUBBED_WITHIN;
        let every_bucket = u64::from(self.primary.identity.buckets) * each;
        // One that was asked for before all was well may hang.
        let hangs = micros(BUCKET_TIMEOUT + RETRY_INTERVAL);
        let scrubs = match (self.loose.contains(&true), self.doubted.contains(&true)) {
            (true, _) => hangs + every_bucket,
            (false, true) => hangs,
            (false, false) => 0,
        };
        let until = self.now + 2 * SECOND + 2 * micros(period(self.plan.bound)) + scrubs;
        self.run(until, |_| false)?;
        self.converged()
    }

    /// From now on recorders are that busy; what they were at is given up.
    fn write_every(&mut self, every: u64) {
        if self.plan.write_every != every {
            self.plan.write_every = every;
            (0..WRITERS).for_each(|index| self.recorder_starts(index));
        }
    }

    /// Property 8.
    fn give_back_all(&mut self) -> Result<(), Violation> {
        let until = self.now + GIVEN_BACK_WITHIN;
        self.run(until, |world| world.is_quiet() && world.all_is_given_back())?;
        if !self.all_is_given_back() {
            return Err(Violation::new(8, "something is left to be given back"));
        }
        self.check_given_back()
    }

    /// Whether the table is live by a proof that was asked for since.
    fn is_proven_since(&self, since: u64) -> bool {
        let moment = self.moment();
        let staleness = self.sidecar.table.freshness().staleness(moment);
        let known = self.sidecar.knows(self.primary.end().epoch, self.primary.accepted);
        let since = Duration::from_micros(self.now - since);
        known && self.sidecar.is_live(moment) && staleness <= since
    }

    /// Property 5.
    fn become_live(&mut self) -> Result<(), Violation> {
        let healed = self.now;
        let mut deadline = healed + micros(LIVE_WITHIN);
        let mut accepted = false;
        loop {
            let until = deadline.min(self.now + SECOND);
            self.run(until, |world| world.is_proven_since(healed))?;
            let moment = self.moment();
            if self.is_proven_since(healed) {
                return Ok(());
            }
            let known = self.sidecar.knows(self.primary.end().epoch, self.primary.accepted);
            if self.sidecar.overflowed && known && !accepted {
                // As much was lost as needs an operator.
                accepted = true;
                self.primary.accepted += 1;
                deadline = self.now + micros(LIVE_WITHIN);
            }
            if self.now >= deadline {
                let freshness = self.sidecar.table.freshness();
                let why = format!(
                    "{:?} {:?} after all was well, proven {:?} ago",
                    freshness.validity,
                    Duration::from_micros(self.now - healed),
                    freshness.staleness(moment)
                );
                return Err(Violation::new(5, why));
            }
        }
    }

    /// Property 1.
    fn converged(&mut self) -> Result<(), Violation> {
        let moment = self.moment();
        let at = self.sidecar.scheduler().state_machine().position();
        if !self.sidecar.is_live(moment) || at != self.primary.end() {
            let why = format!("at {at:?}, the ledger at {:?}", self.primary.end());
            return Err(Violation::new(1, why));
        }
        let stored = self.primary.stored.clone();
        let pairs = stored.map(|stored| stored.map(|stored| stored.said));
        let nothing = [false; USERS];
        let Self { sidecar, .. } = self;
        sidecar
            .guards
            .check(&sidecar.table, &pairs, nothing, nothing)
            .map_err(|Violation { why, .. }| Violation::new(1, why))?;
        // Where nothing was lost, nothing is denied beside what the ledger says.
        for number in 0..USERS {
            let Ok(pair) = sidecar.table.pair(user(number), business_of(number)) else { continue };
            for category in 0..CATEGORIES.len() {
                let asked = crate::ledger::category(category);
                let (facts, freshness) = sidecar.table.facts(pair, asked);
                let theirs = pairs[number].as_ref().map_or(Facts::NOTHING, |s| s.facts[category]);
                let same = facts.is_ok_and(|facts| facts == theirs);
                if sidecar.table.retained_pairs() == 0 && facts.is_ok() && !same {
                    let why = format!("user {number}, {}: {freshness:?}", CATEGORIES[category]);
                    return Err(Violation::new(1, why));
                }
            }
        }
        Ok(())
    }
}
