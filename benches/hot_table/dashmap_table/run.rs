//! A run: the pairs whose keys share a prefix, sorted by key, in one allocation of exactly their
//! size.

use std::hash::{BuildHasher, Hasher};

use consentd_core::id::Key;

use super::packed_entry::{Encoding, PackedEntry};

/// The bits of a key that choose the shard of the `DashMap`.
const SHARD_BITS: u32 = 10;
/// How many shards the `DashMap` has.
pub(super) const MAP_SHARDS: usize = 1 << SHARD_BITS;
/// The bits of a prefix below its shard's.
const INDEX_BITS: u32 = 6;
/// How many runs a shard has: as many as fill a hash table of 64 buckets at hashbrown's maximum
/// load of 7/8, so that no bucket is wasted. A run has 174 pairs at ten million. With four times as
/// many runs the buckets fall out of the caches, and short runs waste more of the allocator's
/// rounding; with a quarter of them a batch beside a writer is slower.
const RUNS: u64 = 56;

/// A pair's key, in two words, and its entry: the 24 bytes of a `(Key, PackedEntry)`. A pair that expires
/// takes a second slot after it: the first half of its key again, which keeps the order, and the
/// two words of an `ExpiringEntry`.
pub(super) type Slot = [u64; 3];

/// The slots of a prefix.
pub(super) type Run = Box<[Slot]>;

/// Where a key belongs: its prefix, and the fraction of the prefix's range that is before it.
#[derive(Clone, Copy)]
pub(super) struct Location {
    key: Key,
    prefix: u32,
    fraction: u64,
}

/// Where a pair is in its run, or would be.
pub(super) enum Place {
    Found(usize),
    Missing(usize),
}

impl Location {
    pub(super) fn of(key: Key) -> Self {
        let (high, _) = key.halves();
        let shard = high >> (64 - SHARD_BITS);
        let scaled = u128::from(high << SHARD_BITS) * u128::from(RUNS);
        let index = (scaled >> 64) as u64;
        let prefix = ((shard << INDEX_BITS) | index) as u32;
        Self { key, prefix, fraction: scaled as u64 }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    pub(super) fn prefix(&self) -> u32 {
        self.prefix
    }

    /// Interpolation: keys are uniform, so a key's fraction of the range is its place in the run.
    fn estimate(&self, slots: usize) -> usize {
        ((u128::from(self.fraction) * slots as u128) >> 64) as usize
    }

    /// Loads the cache lines in which the pair most likely is.
    pub(super) fn prefetch(&self, run: &[Slot]) -> u64 {
        let estimate = self.estimate(run.len());
        let look = |at: usize| run.get(at).map_or(0, |slot| slot[0]);
        look(estimate.saturating_sub(2)) ^ look(estimate.saturating_add(1))
    }

    /// Finds the pair by interpolation search.
    pub(super) fn find(&self, run: &[Slot]) -> Place {
        let (high, low) = self.key.halves();
        let mut at = self.estimate(run.len());
        while at > 0 && run[at - 1][0] >= high {
            at -= 1;
        }
        while at < run.len() && run[at][0] < high {
            at += 1;
        }
        // The first slot of this half is a pair's first slot: second slots come after theirs.
        while let Some([first, second, word]) = run.get(at)
            && *first == high
            && *second <= low
        {
            if *second == low {
                return Place::Found(at);
            }
            at += width(*word);
        }
        Place::Missing(at)
    }
}

/// How many slots a pair takes whose first slot has this entry.
pub(super) fn width(word: u64) -> usize {
    match PackedEntry::from_word(word).map(PackedEntry::encoding) {
        Some(Encoding::Expiring(_)) => 2,
        _ => 1,
    }
}

/// A copy of a run in which `slots` are in the place of the `replaced` ones from `at` on.
pub(super) fn spliced(run: &[Slot], at: usize, replaced: usize, slots: &[Slot]) -> Run {
    let mut copy = Vec::with_capacity(run.len() - replaced + slots.len());
    copy.extend_from_slice(&run[..at]);
    copy.extend_from_slice(slots);
    copy.extend_from_slice(&run[at + replaced..]);
    copy.into_boxed_slice()
}

/// The hash of a prefix: its bits, put where `DashMap` takes the shard from and where hashbrown
/// takes the bucket and the tag from. Keys are uniform already, so nothing is mixed.
#[derive(Clone, Copy)]
pub(super) struct PrefixHash;

impl BuildHasher for PrefixHash {
    type Hasher = PrefixHasher;

    fn build_hasher(&self) -> PrefixHasher {
        PrefixHasher(0)
    }
}

pub(super) struct PrefixHasher(u64);

impl Hasher for PrefixHasher {
    fn write_u32(&mut self, prefix: u32) {
        let (shard, index) =
            (u64::from(prefix >> INDEX_BITS), u64::from(prefix & ((1 << INDEX_BITS) - 1)));
        // hashbrown: the upper 7 bits are the tag. DashMap: the next ones are the shard.
        self.0 = ((index & 0x7f) << 57) | (shard << (57 - SHARD_BITS)) | index;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a prefix is hashed by write_u32");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
