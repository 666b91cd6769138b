//! One shard of the hot table: an open-addressing hash table with ordered linear probing.
//!
//! **Layout.** A key's home slot is its position in the key space, scaled to the array; keys are kept
//! in ascending order. Ordered probing has three benefits: the array may have any length and grows
//! by an eighth, where a power-of-two table is half empty after each doubling; a slot needs no
//! control byte; and copying into a longer array is one sequential walk.
//!
//! **Concurrency.** A per-shard seqlock: the version is odd while the one writer moves slots, and a
//! reader retries if the version changed. Readers take no lock and store nothing, so the cache misses
//! of many look-ups overlap. All words are atomics: a torn read is detected, never undefined.

use std::sync::atomic::{AtomicU64, Ordering};

use super::packed_entry::{ExpiringEntry, PackedEntry};
use consentd_core::id::Key;

/// How many of a key's upper bits choose its shard.
pub(super) const SHARD_BITS: u32 = 10;
/// The number of shards. At ten million pairs a shard has ten thousand, which the writer copies into a
/// longer array within some dozen microseconds while readers go on.
pub(super) const SHARDS: usize = 1 << SHARD_BITS;

/// The most empty slots behind the last home slot of a new array, for keys that are pushed there.
const MAX_TAIL_SLOTS: usize = 128;

/// How many slots behind its home a key usually is: [`Shard::prefetch`] loads that far.
const USUAL_DISPLACEMENT: usize = 3;

/// How often a reader retries before it yields its core to the writer.
const SPINS_PER_YIELD: u32 = 64;

/// A shard's number, below [`SHARDS`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ShardIndex(usize);

impl ShardIndex {
    /// The shard of a key.
    pub(super) fn of(key: Key) -> Self {
        let (high, _) = key.halves();
        // Ten bits fit into every `usize`.
        Self(usize::try_from(high >> (64 - SHARD_BITS)).unwrap_or(0))
    }

    /// All shards, in the order of their keys.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..SHARDS).map(Self)
    }
}

/// One value per shard. Every [`ShardIndex`] has one: a write cannot miss its shard.
#[derive(Clone)]
pub(super) struct PerShard<T>(Box<[T; SHARDS]>);

impl<T> PerShard<T> {
    /// Makes the value of every shard.
    pub(super) fn from_fn(mut make: impl FnMut() -> T) -> Self {
        Self(Box::new(std::array::from_fn(|_| make())))
    }

    /// Another value for every shard.
    pub(super) fn map<U>(&self, make: impl FnMut(&T) -> U) -> PerShard<U> {
        PerShard(Box::new(self.0.each_ref().map(make)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    pub(super) fn get(&self, ShardIndex(index): ShardIndex) -> &T {
        self.0.get(index).unwrap_or_else(|| unreachable!("there is no shard {index}"))
    }

    pub(super) fn get_mut(&mut self, ShardIndex(index): ShardIndex) -> &mut T {
        self.0.get_mut(index).unwrap_or_else(|| unreachable!("there is no shard {index}"))
    }
}

/// A slot: both halves of a pair's key, and its entry; all zero if it is empty.
#[derive(Default)]
pub(super) struct Slot([AtomicU64; 3]);

impl Slot {
    fn new((high, low): (u64, u64), entry: PackedEntry) -> Self {
        Self([high.into(), low.into(), entry.word().into()])
    }

    fn key(&self) -> (u64, u64) {
        let [high, low, _] = &self.0;
        (high.load(Ordering::Acquire), low.load(Ordering::Acquire))
    }

    fn entry(&self) -> Option<PackedEntry> {
        let [.., entry] = &self.0;
        PackedEntry::from_word(entry.load(Ordering::Acquire))
    }

    /// Replaces the entry. This is one word: readers see the old one or the new one, without the
    /// seqlock, as long as nothing outside of the slot changes with it.
    pub(super) fn set_entry(&self, entry: PackedEntry) {
        let [.., word] = &self.0;
        word.store(entry.word(), Ordering::Release);
    }

    /// Each store is a release: a reader that sees one of them also sees the odd version.
    fn store(&self, key: (u64, u64), entry: u64) {
        let [high, low, word] = &self.0;
        high.store(key.0, Ordering::Release);
        low.store(key.1, Ordering::Release);
        word.store(entry, Ordering::Release);
    }
}

/// The slots of a shard as readers see them.
pub(super) struct Shard {
    /// The seqlock: odd while the writer moves slots.
    version: AtomicU64,
    home_slots: u64,
    slots: Box<[Slot]>,
    /// The pairs of which something expires, by the indexes that entries have. Copied with the slots,
    /// so that it never has room for many more than there are.
    expiring: Box<[ExpiringEntry]>,
}

/// Where a key is, or belongs: an index of the slots.
#[derive(Clone, Copy, Debug)]
pub(super) enum Location {
    Found(usize, PackedEntry),
    Missing(usize),
}

impl Location {
    /// The entry that was found.
    pub(super) fn entry(self) -> Option<PackedEntry> {
        match self {
            Self::Found(_, entry) => Some(entry),
            Self::Missing(_) => None,
        }
    }
}

/// The slots from a missing key's location up to and with the next empty one.
pub(super) struct InsertionRun<'a>(&'a [Slot]);

impl InsertionRun<'_> {
    /// Puts a pair into the first slot and moves the others by one. Only inside a seqlock write.
    pub(super) fn insert(&self, key: Key, entry: PackedEntry) {
        for (from, to) in self.0.iter().zip(self.0.iter().skip(1)).rev() {
            to.store(from.key(), from.entry().map_or(0, PackedEntry::word));
        }
        if let Some(slot) = self.0.first() {
            slot.store(key.halves(), entry.word());
        }
    }
}

impl Shard {
    /// A shard without pairs and without slots.
    pub(super) fn empty() -> Self {
        Self::from_sorted(0, std::iter::empty())
    }

    /// A shard of these pairs, which must be in ascending order, with room for `capacity` in all.
    pub(super) fn from_sorted(
        capacity: usize,
        pairs: impl Iterator<Item = (Key, PackedEntry)>,
    ) -> Self {
        if capacity == 0 {
            let (version, slots) = (AtomicU64::new(0), Box::default());
            return Self { version, home_slots: 0, slots, expiring: Box::default() };
        }
        // A quarter more home slots than pairs; `is_full` is true once an eighth of them is left.
        let home_slots = capacity.saturating_add(capacity / 4).saturating_add(4);
        let tail = MAX_TAIL_SLOTS.min(home_slots / 4).saturating_add(4);
        let mut slots = Vec::new();
        // Keys that are not uniform, which no ledger makes, may need more.
        slots.reserve_exact(home_slots.saturating_add(tail));
        let count = u64::try_from(home_slots).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        for (key, entry) in pairs {
            let key = key.halves();
            slots.resize_with(slots.len().max(home_slot(key.0, count)), Slot::default);
            slots.push(Slot::new(key, entry));
        }
        let length = slots.len().max(home_slots).saturating_add(tail);
        slots.reserve_exact(length.saturating_sub(slots.len()));
        slots.resize_with(length, Slot::default);
        let (version, slots) = (AtomicU64::new(0), slots.into());
        Self { version, home_slots: count, slots, expiring: Box::default() }
    }

    /// The shard with these expiring pairs, at the indexes that its entries have.
    pub(super) fn with_expiring(self, expiring: Vec<ExpiringEntry>) -> Self {
        Self { expiring: expiring.into(), ..self }
    }

    /// A copy with room for `capacity` pairs in all and for `more_expiring` more expiring ones. The
    /// expiring pairs get the first indexes; their number is returned as well.
    pub(super) fn resized(&self, capacity: usize, more_expiring: usize) -> (Self, u32) {
        let mut expiring = Vec::new();
        let mut used = 0_u32;
        let pairs = self.pairs().map(|(key, entry)| match self.expiring_entry(entry) {
            Some(known) => {
                let index = used;
                expiring.push(known.copied());
                used = used.checked_add(1).unwrap_or_else(|| unreachable!("2³² pairs of a shard"));
                (key, PackedEntry::expiring(index))
            }
            None => (key, entry),
        });
        let copy = Self::from_sorted(capacity, pairs);
        (copy.with_room_for_expiring(expiring, more_expiring), used)
    }

    /// The shard with these expiring pairs, at the indexes that its entries have, and with room for `more`.
    pub(super) fn with_room_for_expiring(
        self,
        mut expiring: Vec<ExpiringEntry>,
        more: usize,
    ) -> Self {
        // An eighth more than are needed, so that few insertions cause a copy.
        let needed = expiring.len().saturating_add(more);
        let room = needed.saturating_add(needed / 8);
        expiring.reserve_exact(room.saturating_sub(expiring.len()));
        expiring.resize_with(room, ExpiringEntry::default);
        self.with_expiring(expiring)
    }

    /// The expiring pair at an index.
    pub(super) fn expiring(&self, index: u32) -> Option<&ExpiringEntry> {
        self.expiring.get(usize::try_from(index).ok()?)
    }

    /// The expiring pair that an entry refers to, if it refers to one.
    pub(super) fn expiring_entry(&self, entry: PackedEntry) -> Option<&ExpiringEntry> {
        self.expiring(entry.expiring_index()?)
    }

    /// How many expiring pairs there is room for.
    pub(super) fn expiring_capacity(&self) -> u32 {
        let capacity = u32::try_from(self.expiring.len());
        capacity.unwrap_or_else(|_| unreachable!("2³² expiring pairs of a shard"))
    }

    /// The profile number that an entry of this shard uses.
    pub(super) fn profile_of(&self, entry: PackedEntry) -> Option<usize> {
        self.expiring_entry(entry).map_or(Some(entry), ExpiringEntry::entry)?.profile()
    }

    /// Whether a shard of so many pairs must grow before the next one.
    pub(super) fn is_full(&self, pairs: usize) -> bool {
        let home_slots = usize::try_from(self.home_slots).unwrap_or(usize::MAX);
        pairs >= home_slots.saturating_sub(home_slots / 8)
    }

    /// Whether a copy for so many pairs would be much smaller.
    pub(super) fn is_sparse(&self, pairs: usize) -> bool {
        let home_slots = usize::try_from(self.home_slots).unwrap_or(usize::MAX);
        home_slots > pairs.saturating_add(pairs / 2).saturating_add(16)
    }

    /// The size in bytes, with the allocator's overhead.
    pub(super) fn bytes(&self) -> usize {
        let parts = [size_of_val(&*self.slots), size_of_val(&*self.expiring), size_of::<Self>()];
        parts.into_iter().fold(48, usize::saturating_add)
    }

    /// Prefetches the cache lines in which a key usually is. The result depends on the loads, so that
    /// the compiler keeps them.
    pub(super) fn prefetch(&self, key: Key) -> u64 {
        let (high, _) = key.halves();
        let home = home_slot(high, self.home_slots);
        let load = |index| self.slots.get(index).map_or(0, |slot: &Slot| slot.key().0);
        load(home) ^ load(home.saturating_add(USUAL_DISPLACEMENT))
    }

    /// Finds a key. A reader must call this inside [`seqlock_read`](Self::seqlock_read): while the
    /// writer moves slots the result may be wrong.
    pub(super) fn find(&self, key: Key) -> Location {
        let wanted = key.halves();
        let home = home_slot(wanted.0, self.home_slots);
        let mut index = home;
        for slot in self.slots.get(home..).unwrap_or_default() {
            let Some(entry) = slot.entry() else { break };
            let found = slot.key();
            if found == wanted {
                return Location::Found(index, entry);
            }
            if found > wanted {
                break;
            }
            index = index.saturating_add(1);
        }
        Location::Missing(index)
    }

    /// Calls `read` until no write of this shard overlapped with it, and returns its last result. The
    /// writer holds the seqlock only while it moves a few slots.
    pub(super) fn seqlock_read<T>(&self, mut read: impl FnMut() -> T) -> T {
        let mut spins = 0_u32;
        loop {
            let version = self.version.load(Ordering::Acquire);
            if version.is_multiple_of(2) {
                // A result that is dropped here may hold a lock that the writer waits for.
                let result = read();
                if self.version.load(Ordering::Acquire) == version {
                    return result;
                }
            }
            spins = spins.saturating_add(1);
            if spins.is_multiple_of(SPINS_PER_YIELD) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// The pairs in ascending order: for the writer, or inside
    /// [`seqlock_read`](Self::seqlock_read).
    pub(super) fn pairs(&self) -> impl Iterator<Item = (Key, PackedEntry)> {
        let pair = |slot: &Slot| Some((Key::from_halves(slot.key()), slot.entry()?));
        self.slots.iter().filter_map(pair)
    }

    /// Calls `write` while the version is odd. Only the one writer may call this, and `write` must not
    /// panic: readers would wait for ever.
    pub(super) fn seqlock_write<T>(&self, write: impl FnOnce() -> T) -> T {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Release);
        let result = write();
        self.version.store(version.wrapping_add(2), Ordering::Release);
        result
    }

    /// The slot at an index that [`find`](Self::find) returned as found.
    pub(super) fn slot(&self, index: usize) -> &Slot {
        self.slots.get(index).unwrap_or_else(|| unreachable!("slot {index} was found before"))
    }

    /// The slots that an insertion at an index changes; `None` if no slot behind it is empty.
    pub(super) fn insertion_run(&self, index: usize) -> Option<InsertionRun<'_>> {
        let behind = self.slots.get(index..)?;
        let gap = behind.iter().position(|slot| slot.entry().is_none())?;
        behind.get(..=gap).map(InsertionRun)
    }

    /// Removes the pair at an index and moves those behind it towards their home slots, up to the
    /// first that is in its own. Only inside a seqlock write.
    pub(super) fn remove(&self, index: usize) {
        let Some(run) = self.slots.get(index..) else { return };
        let mut to = run.first();
        for (at, from) in (index..).skip(1).zip(run.iter().skip(1)) {
            let Some(entry) = from.entry() else { break };
            let key = from.key();
            if home_slot(key.0, self.home_slots) >= at {
                break;
            }
            if let Some(to) = to.replace(from) {
                to.store(key, entry.word());
            }
        }
        if let Some(last) = to {
            last.store((0, 0), 0);
        }
    }
}

/// A key's home slot. Monotonic: a smaller key never has a later home slot.
fn home_slot(high: u64, home_slots: u64) -> usize {
    let part = (high << SHARD_BITS) >> 32;
    usize::try_from(part.wrapping_mul(home_slots) >> 32).unwrap_or(usize::MAX)
}
