//! The writer's side of a shard: its array, and which of its places are free.

use std::sync::Arc;

use super::shard::Shard;

/// A shard as the writer knows it.
pub(super) struct ShardWriter {
    /// What the lanes lead to.
    pub(super) slots: Arc<Shard>,
    /// How many pairs it has.
    pub(super) pairs: usize,
    /// The places among those that lapse that nobody has.
    free: Vec<u32>,
}

impl From<Arc<Shard>> for ShardWriter {
    /// The writer's side of an array without pairs.
    fn from(slots: Arc<Shard>) -> Self {
        Self::of(slots, 0, 0)
    }
}

impl ShardWriter {
    /// The writer's side of an array of so many pairs, of which so many lapse and have the first
    /// places.
    pub(super) fn of(slots: Arc<Shard>, pairs: usize, lapsing: usize) -> Self {
        let all = u32::try_from(slots.expiring_slots()).unwrap_or(u32::MAX);
        let used = u32::try_from(lapsing).unwrap_or(u32::MAX);
        Self { slots, pairs, free: (used..all).rev().collect() }
    }

    /// A copy with room for so many pairs in all, and for so many more that lapse.
    pub(super) fn copied(&self, pairs: usize, more_lapsing: usize) -> Self {
        let (slots, used) = self.slots.copied(pairs, more_lapsing);
        Self::of(Arc::new(slots), self.pairs, used)
    }

    /// Takes a free place for what lapses.
    pub(super) fn take_place(&mut self) -> Option<usize> {
        usize::try_from(self.free.pop()?).ok()
    }

    /// Gives a place back.
    pub(super) fn free_place(&mut self, place: usize) {
        self.free.extend(u32::try_from(place));
    }

    /// Whether another pair that lapses finds no place.
    pub(super) fn has_no_place(&self) -> bool {
        self.free.is_empty()
    }

    /// Whether there are many more places than a copy would have.
    pub(super) fn has_many_places(&self) -> bool {
        self.free.len() > (self.slots.expiring_slots() / 5).saturating_add(1)
    }
}
