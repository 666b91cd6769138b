//! What allows, and which denials it lifts: by the oracle's own reckoning.

use std::collections::BTreeMap;

use consentd_core::id::PhoneNumberId;
use consentd_core::scope::Scope;
use consentd_core::state::Effect;
use consentd_core::time::Timestamp;

use crate::ledger::{CATEGORIES, covers};

/// At which of the business's numbers marketing is stopped and resumed; "" is an unknown one.
pub const PLACES: [&str; 2] = ["", "106540352242922"];

/// One of the places.
pub fn place_of(id: &str) -> Option<PhoneNumberId> {
    PhoneNumberId::parse(id).ok()
}

/// Something that allows, in the order of all that is written.
#[derive(Clone, Copy)]
pub struct Lift {
    pub time: Timestamp,
    pub written: u64,
    /// Whether its writer's clock was ahead, so that it was clamped.
    pub clamped: bool,
}

/// How much earlier than what was clamped a denial may be that is recorded after it, and stands.
const SKEW: i64 = 5 * 60_000;

impl Lift {
    /// Whether it lifts a denial that was recorded by a recorder that began then. What was clamped
    /// lifts none that was recorded after it, but for one that is far older.
    fn lifts(&self, denied: Timestamp, began: u64) -> bool {
        let outlived = self.clamped
            && self.written <= began
            && denied.as_millis() >= self.time.as_millis() - SKEW;
        self.time > denied && !outlived
    }
}

#[derive(Default)]
pub struct Lifts {
    pub words: BTreeMap<Scope, Vec<Lift>>,
    /// By the business's number.
    pub platform: BTreeMap<Option<PhoneNumberId>, Vec<Lift>>,
    pub suppression: Vec<Lift>,
    /// When the user was erased.
    pub erased: Vec<Timestamp>,
}

/// Adds what allows: the first time that it was written counts as long as it was clamped then.
pub fn add(known: &mut Vec<Lift>, lift: Lift) {
    if !known.iter().any(|old| old.time == lift.time) {
        known.push(lift);
    }
}

impl Lifts {
    /// What was written after so many records.
    pub fn since(&self, began: u64) -> Self {
        let later = |lifts: &Vec<Lift>| -> Vec<Lift> {
            lifts.iter().filter(|lift| lift.written > began).copied().collect()
        };
        Self {
            words: self.words.iter().map(|(scope, all)| (scope.clone(), later(all))).collect(),
            platform: self.platform.iter().map(|(at, all)| (at.clone(), later(all))).collect(),
            suppression: later(&self.suppression),
            erased: self.erased.clone(),
        }
    }

    /// Whether an effect still denies a category. Where the user was erased since, the tombstone
    /// denies in its place, so that what lifts the tombstone lifts it, too.
    pub fn leave(&self, effect: &Effect, began: u64, category: usize) -> bool {
        let time = crate::recorder::time_of(effect);
        let mut tombstones = self.erased.iter().filter(|at| time <= **at);
        let is_lifted = |at: &Timestamp| self.suppression.iter().any(|lift| lift.lifts(*at, began));
        if tombstones.any(is_lifted) {
            return false;
        }
        match effect {
            Effect::Choice(scope, word) => {
                let words = self.words.iter().filter(|(scope, _)| covers(scope, category));
                let mut lifts = words.flat_map(|(_, lifts)| lifts);
                covers(scope, category) && !lifts.any(|lift| lift.lifts(word.time, began))
            }
            Effect::Platform { time, number, .. } => {
                let mut lifts = self.platform.get(number).into_iter().flatten();
                CATEGORIES[category].starts_with("marketing")
                    && !lifts.any(|lift| lift.lifts(*time, began))
            }
            Effect::Suppression { time, .. } => {
                !self.suppression.iter().any(|lift| lift.lifts(*time, began))
            }
            _ => false,
        }
    }
}
