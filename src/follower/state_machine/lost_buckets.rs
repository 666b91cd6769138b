//! Buckets that the ledger has lost, until they are back.

use std::collections::{BTreeSet, VecDeque};

use super::{Action, StateMachine};

/// How many of them are asked for at once.
const MAX_ASKED: usize = 16;

/// The buckets of a ledger that were found to be lost: at most as many as it has.
#[derive(Default)]
pub(super) struct LostBuckets {
    /// Those that wait to be asked for again.
    waiting: VecDeque<u32>,
    /// Those that were asked for.
    asked: BTreeSet<u32>,
}

impl LostBuckets {
    /// Adds one, or one that is still lost; tells whether it is new.
    pub(super) fn add(&mut self, number: u32) -> bool {
        let known = self.asked.remove(&number) || self.waiting.contains(&number);
        if !self.waiting.contains(&number) {
            self.waiting.push_back(number);
        }
        !known
    }

    /// Some of them, to be asked for now. Those that were not answered are asked for again by
    /// whoever asks.
    pub(super) fn more(&mut self) -> Vec<u32> {
        let room = MAX_ASKED.saturating_sub(self.asked.len());
        let next: Vec<_> = self.waiting.drain(..room.min(self.waiting.len())).collect();
        self.asked.extend(&next);
        next
    }

    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn is_asked(&self, number: u32) -> bool {
        self.asked.contains(&number)
    }

    /// It is back.
    pub(super) fn remove(&mut self, number: u32) {
        self.asked.remove(&number);
    }

    /// It was answered, and cannot be judged yet.
    pub(super) fn again(&mut self, number: u32) {
        if self.asked.remove(&number) {
            self.waiting.push_back(number);
        }
    }
}

impl StateMachine {
    /// Whether a bucket was lost, and is not back.
    #[must_use]
    pub fn has_lost_buckets(&self) -> bool {
        !self.lost_buckets.is_empty()
    }

    /// A bucket is lost: what the table has of it may be all that is left of it. Its pairs are
    /// denied, and it is asked for again until it is back; others are compared meanwhile.
    pub(super) fn on_lost(&mut self, number: u32) {
        if self.scrub == (number, true) {
            self.scrub = (number.saturating_add(1), false);
        }
        if self.is_live() && self.lost_buckets.add(number) {
            self.actions.push(Action::DenyBucket(number));
        }
    }
}
