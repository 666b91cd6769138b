//! A sidecar that holds some businesses alone: it follows the partitions of these, and is told to hold more or less.

use consentd::follower::{by_partition, held_once_loaded};
use consentd::table::{Table, Tables, Validity};
use consentd_core::businesses::Businesses;
use consentd_core::id::{BusinessId, Key};
use consentd_ledger::{Bucket, LogEntry, Page, Tail, UndecodedEntry};

use super::world::{Happening, World};
use crate::held::business_of;
use crate::oracle::Violation;
use crate::round::LIVE_WITHIN;
use crate::sidecar::{Brought, Sidecar};
use crate::world::MILLI;

impl World {
    /// The sidecar is told from now and then to hold more or less.
    pub fn hold_others(&mut self) {
        let is_suspended = self.frozen_until > self.now;
        if self.faulty && !is_suspended && self.held.random.percent(60) {
            self.held.turn();
            self.follow_others();
        }
        let wait = self.held.random.between(20, 3_000) * MILLI;
        self.after(wait, Happening::Held);
    }

    /// What the product's followers do where other businesses are to be held.
    fn follow_others(&mut self) {
        let wanted = self.held.wanted.clone();
        self.tables.hold(self.tables.businesses().intersection(&wanted));
        let mut wanted_at = by_partition(self.layout, &wanted);
        for (at, number) in self.layout.all().enumerate() {
            let partition = &mut self.partitions[at];
            match wanted_at.remove(&number) {
                None if partition.is_followed => {
                    self.tables.remove(number);
                    partition.is_followed = false;
                    if let Some(saver) = &mut partition.saver {
                        saver.on_restart();
                    }
                }
                None => {}
                Some(wanted) if !partition.is_followed => self.follow(at, wanted),
                Some(wanted) if wanted == partition.wanted => {}
                Some(wanted) => {
                    partition.wanted = wanted.clone();
                    let life = partition.life;
                    self.after(0, Happening::Brought(at, life, Brought::Held(wanted)));
                }
            }
        }
        self.hold_loaded();
    }

    /// Holds what was added, once all of its partitions hold it.
    pub fn hold_loaded(&mut self) {
        if self.plan.some {
            let table_of = |number| self.tables.table(number);
            let (wanted, held) = (&self.held.wanted, self.tables.businesses());
            let held = held_once_loaded(self.layout, wanted, &held, table_of);
            self.tables.hold(held);
        }
    }

    /// Begins to follow a partition for these businesses, from the table that was saved of it if that is of them.
    fn follow(&mut self, at: usize, wanted: Businesses) {
        self.life += 1;
        let (life, moment, now) = (self.life, self.moment(), self.now);
        let partition = &mut self.partitions[at];
        let file = partition.saver.as_ref().and_then(|saver| saver.file.as_ref());
        let file = file.filter(|file| file.businesses == wanted);
        let metrics = &self.metrics;
        let (sidecar, asks) =
            Sidecar::start(life << 32, &self.plan, wanted.clone(), metrics, moment, file);
        partition.follow_anew(sidecar);
        (partition.life, partition.wanted, partition.is_followed) = (life, wanted, true);
        partition.is_ill(now);
        let number = u32::try_from(at).unwrap();
        self.tables.insert(number, self.partitions[at].sidecar.table.clone());
        self.begin(at, asks);
    }

    /// A sidecar that was just started follows the partitions of what it is to hold.
    pub fn follow_all(&mut self) {
        let wanted_at = by_partition(self.layout, &self.held.wanted);
        self.tables = Tables::from(self.partitions[0].sidecar.table.clone());
        let initial: Vec<u32> = wanted_at.keys().copied().collect();
        self.tables.divide(self.layout, self.held.wanted.clone(), &initial);
        self.partitions.iter_mut().for_each(|partition| partition.is_followed = false);
        for (number, wanted) in wanted_at {
            self.follow(usize::try_from(number).unwrap(), wanted);
        }
        self.checker = super::world::checker(&self.tables, self.plan.bound, &self.metrics);
    }

    /// Whether questions about a user are answered.
    pub fn is_held(&self, user: usize) -> bool {
        let business = BusinessId::parse(business_of(user)).unwrap();
        self.tables.businesses().holds(business)
    }

    /// Property 2, of businesses: what is held is in all of its tables, which were loaded.
    pub fn check_held(&self) -> Result<(), Violation> {
        // Until all were loaded once, nothing is answered.
        if !self.plan.some || !self.tables.is_ready() {
            return Ok(());
        }
        let held = self.tables.businesses();
        for id in held.ids().into_iter().flatten() {
            let business = BusinessId::parse(id).unwrap();
            for number in self.layout.partitions_of(business.tag()) {
                let has = |table: Table| {
                    let is_loaded = table.freshness().validity != Validity::Loading;
                    is_loaded && table.businesses().holds(business)
                };
                if !self.tables.table(number).is_some_and(has) {
                    let why = format!("{id} is held, and partition {number} does not have it");
                    return Err(Violation::new(2, why));
                }
            }
        }
        Ok(())
    }

    /// Property 5, of what was added.
    pub fn holds_all(&mut self) -> Result<(), Violation> {
        let holds = |world: &mut Self| *world.tables.businesses() == world.held.wanted;
        let until = self.now + u64::try_from(LIVE_WITHIN.as_micros()).unwrap();
        self.run(until, holds)?;
        if holds(self) {
            return Ok(());
        }
        Err(Violation::new(5, format!("{:?} is not held, though all is well", self.held.wanted)))
    }
}

/// An entry as a sidecar that holds these businesses decodes it.
pub fn decoded(wanted: &Businesses, entry: &LogEntry) -> LogEntry {
    let is_skipped = |key: Key| !wanted.holds_key(key);
    let body = match &entry.body {
        Ok(body) if is_skipped(body.key) => Err(UndecodedEntry::Skipped(body.key)),
        body => body.clone(),
    };
    LogEntry { body, ..entry.clone() }
}

/// The same of a page of the log.
pub fn decoded_page(wanted: &Businesses, mut page: Page) -> Page {
    if let Tail::Entries(entries) = &mut page.tail {
        for entry in entries {
            *entry = decoded(wanted, entry);
        }
    }
    page
}

/// The same of a bucket.
pub fn decoded_bucket(wanted: &Businesses, mut bucket: Bucket) -> Bucket {
    bucket.pairs.retain(|(key, _)| wanted.holds_key(*key));
    bucket
}
