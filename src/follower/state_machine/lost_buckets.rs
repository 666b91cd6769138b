//! Buckets that Redis has deleted or evicted, until they are restored.

use std::collections::{BTreeSet, VecDeque};

use super::{Action, StateMachine};

/// How many lost buckets are read concurrently.
const MAX_ASKED: usize = 16;

/// The buckets that were found to be lost: at most as many as the ledger has. Each is in one of the
/// two collections.
#[derive(Default)]
pub(super) struct LostBuckets {
    /// Buckets that are read again after the next page of the log.
    waiting: VecDeque<u32>,
    /// Buckets that are being read.
    asked: BTreeSet<u32>,
}

impl LostBuckets {
    /// Adds a bucket that was found to be lost; returns whether that was not known before.
    pub(super) fn add(&mut self, number: u32) -> bool {
        let known = self.asked.remove(&number) || self.waiting.contains(&number);
        if !self.waiting.contains(&number) {
            self.waiting.push_back(number);
        }
        !known
    }

    /// The buckets to be read now. Reads that fail are retried by the scheduler.
    pub(super) fn more(&mut self) -> Vec<u32> {
        let room = MAX_ASKED.saturating_sub(self.asked.len());
        let next: Vec<_> = self.waiting.drain(..room.min(self.waiting.len())).collect();
        self.asked.extend(&next);
        next
    }

    /// Schedules another read of all buckets that are being read: what arrives of them is dropped.
    pub(super) fn ask_again(&mut self) {
        self.waiting.extend(std::mem::take(&mut self.asked));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn is_asked(&self, number: u32) -> bool {
        self.asked.contains(&number)
    }

    /// Removes a bucket that was restored.
    pub(super) fn remove(&mut self, number: u32) {
        self.asked.remove(&number);
    }

    /// Schedules another read of a bucket that was read at a position that cannot be compared.
    pub(super) fn again(&mut self, number: u32) {
        if self.asked.remove(&number) {
            self.waiting.push_back(number);
        }
    }
}

impl StateMachine {
    /// Whether a bucket was lost and is not restored yet.
    #[must_use]
    pub fn has_lost_buckets(&self) -> bool {
        !self.lost_buckets.is_empty()
    }

    /// Denies the pairs of a bucket that was lost, and reads it again until it is restored. The
    /// table's pairs are kept: they may be all that is left of the bucket. The scrub goes on with
    /// the next bucket.
    pub(super) fn on_lost(&mut self, number: u32) {
        self.scrub.skip(number);
        if self.is_live() && self.lost_buckets.add(number) {
            self.actions.push(Action::DenyBucket(number));
        }
    }
}
