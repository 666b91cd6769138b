//! Which businesses the sidecar holds, in histories in which it does not hold all.

use std::cell::Cell;

use consentd_core::businesses::{BusinessSet, Businesses};
use consentd_core::id::Key;
use consentd_ledger::{LogEntry, UndecodedEntry};

use crate::ledger::{BUSINESS, HAS_TEMPLATE, USERS, user};
use crate::oracle::Violation;
use crate::random::Random;
use crate::round::LIVE_WITHIN;
use crate::sidecar::Brought;
use crate::world::{Happening, MILLI, World};

/// The business of the last users, in these histories.
pub const OTHER: &str = "stall";
/// The users below this are of [`BUSINESS`] in every history.
const OTHERS_FROM: usize = 4;

thread_local! {
    /// Whether the history of this thread has two businesses.
    static TWO: Cell<bool> = const { Cell::new(false) };
}

/// The business of a user.
pub fn business_of(number: usize) -> &'static str {
    let is_template = HAS_TEMPLATE.get() && number == USERS - 1;
    if TWO.get() && number >= OTHERS_FROM && !is_template { OTHER } else { BUSINESS }
}

/// The business of the user with this id.
pub fn business_of_id(user_id: &str) -> &'static str {
    (0..USERS).find(|number| user(*number) == user_id).map_or(BUSINESS, business_of)
}

/// What the sidecar is to hold.
pub struct Held {
    pub wanted: Businesses,
    pub random: Random,
}

impl Held {
    /// What a history with this seed begins with.
    pub fn new(seed: u64, has_two: bool) -> Self {
        TWO.set(has_two);
        let mut random = Random::new(seed ^ 0x6865_6c64);
        let wanted = if has_two { some(random.percent(50)) } else { Businesses::All };
        Self { wanted, random }
    }

    /// More is to be held than before, or less.
    pub fn turn(&mut self) {
        self.wanted = some(self.wanted != some(true));
    }
}

fn some(both: bool) -> Businesses {
    let ids = if both { &[BUSINESS, OTHER][..] } else { &[BUSINESS] };
    Businesses::only(BusinessSet::of(ids.iter().copied()).unwrap())
}

impl World {
    /// The sidecar is told from now and then to hold more or less.
    pub fn hold_others(&mut self) {
        if self.faulty && self.held.random.percent(60) {
            self.held.turn();
            let brought = Brought::Held(self.held.wanted.clone());
            self.after(0, Happening::Brought(self.life, brought));
        }
        let wait = self.held.random.between(20, 3_000) * MILLI;
        self.after(wait, Happening::Held);
    }

    /// An entry as the sidecar decodes it.
    pub fn decoded(&self, entry: &LogEntry) -> LogEntry {
        let skipped = |key: Key| !self.held.wanted.holds_key(key);
        let body = match &entry.body {
            Ok(body) if skipped(body.key) => Err(UndecodedEntry::Skipped(body.key)),
            body => body.clone(),
        };
        LogEntry { body, ..entry.clone() }
    }

    /// Property 5, of what was added.
    pub fn holds_all(&mut self) -> Result<(), Violation> {
        let holds = |world: &mut Self| {
            *world.sidecar.scheduler().state_machine().held() == world.held.wanted
        };
        let until = self.now + u64::try_from(LIVE_WITHIN.as_micros()).unwrap();
        self.run(until, holds)?;
        if holds(self) {
            return Ok(());
        }
        Err(Violation::new(5, format!("{:?} is not held, though all is well", self.held.wanted)))
    }
}
