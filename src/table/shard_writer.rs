//! The writer's state of a shard: what readers do not need to know.

use std::sync::Arc;

use super::shard::Shard;

/// A shard, its number of pairs, and its free list.
pub(super) struct ShardWriter {
    /// The shard that readers see.
    pub(super) shard: Arc<Shard>,
    pub(super) pairs: usize,
    /// The indexes of expiring pairs that are not in use.
    free: Vec<u32>,
}

impl ShardWriter {
    /// The writer's state of a shard without pairs.
    pub(super) fn empty() -> Self {
        Self::new(Arc::new(Shard::empty()), 0, 0)
    }

    /// The writer's state of a shard with so many pairs, of which so many expire and have the first
    /// indexes.
    pub(super) fn new(shard: Arc<Shard>, pairs: usize, expiring: u32) -> Self {
        let free = (expiring..shard.expiring_capacity()).rev().collect();
        Self { shard, pairs, free }
    }

    /// A copy with room for `capacity` pairs in all and for `more_expiring` more expiring ones.
    pub(super) fn resized(&self, capacity: usize, more_expiring: usize) -> Self {
        let (shard, expiring) = self.shard.resized(capacity, more_expiring);
        Self::new(Arc::new(shard), self.pairs, expiring)
    }

    /// Takes a free index for an expiring pair.
    pub(super) fn take_expiring_index(&mut self) -> u32 {
        let index = self.free.pop();
        index.unwrap_or_else(|| unreachable!("room is made before an expiring pair is written"))
    }

    /// Frees the index of an expiring pair.
    pub(super) fn free_expiring_index(&mut self, index: u32) {
        self.free.push(index);
    }

    /// Whether there is no room for another expiring pair.
    pub(super) fn is_expiring_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Whether a copy would have much less room for expiring pairs.
    pub(super) fn is_expiring_sparse(&self) -> bool {
        let capacity = usize::try_from(self.shard.expiring_capacity()).unwrap_or(usize::MAX);
        self.free.len() > (capacity / 5).saturating_add(1)
    }
}
