//! One shard of the map: pairs in the order of their keys, in one array with gaps.
//!
//! Open addressing by linear probing, ordered: a key's home is where its bits lie between 0 and
//! the greatest number that there is, and whoever is before it by its bits is before it in the
//! array. So an array may have any length, and is made longer by an eighth at a time, where one
//! whose length must be a power of two is half empty whenever it has doubled; a slot needs no byte
//! of control; and to copy the pairs into a longer array is to walk both once.
//!
//! Readers take no lock and change nothing: the words are atomic, and a version, odd while the one
//! writer moves pairs, tells them whether what they read belongs together. That many of them can be
//! on their way at once is what lets cache misses of many look-ups overlap.

use std::sync::atomic::{AtomicU64, Ordering};

use super::packed_entry::{Encoding, ExpiringEntry, PackedEntry};
use consentd_core::id::Key;

/// The bits of a key that tell its shard.
pub(super) const SHARD_BITS: u32 = 10;
/// How many shards there are: of ten million pairs one has ten thousand, which are copied into a
/// longer array within some dozen microseconds, beside the readers.
pub(super) const SHARDS: usize = 1 << SHARD_BITS;

/// How many slots are empty behind the last home at least, where an array is made.
const MARGIN: usize = 128;

/// How many places a key lies behind its home, usually: the next line of the cache is looked at.
const USUAL_PUSH: usize = 3;

/// How often a reader looks again at once, before it lets the writer have the core.
const SPINS: u32 = 64;

/// The shard of a key: by its upper bits, that places within a shard do not depend on.
pub(super) fn shard_of(key: Key) -> usize {
    let (high, _) = key.halves();
    usize::try_from(high >> (64 - SHARD_BITS)).unwrap_or(0)
}

/// A pair: both halves of its key, and its entry; zero where there is none.
#[derive(Default)]
struct Slot([AtomicU64; 3]);

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

    /// Each store is a release: whoever sees one of them sees that the version is odd.
    fn store(&self, key: (u64, u64), entry: u64) {
        let [high, low, word] = &self.0;
        high.store(key.0, Ordering::Release);
        low.store(key.1, Ordering::Release);
        word.store(entry, Ordering::Release);
    }
}

/// A shard.
pub(super) struct Shard {
    /// Odd while pairs are moved.
    version: AtomicU64,
    /// How many homes there are.
    homes: u64,
    array: Box<[Slot]>,
    /// What lapses at one moment, by the places that entries tell. It is copied with the array, so
    /// it never has room for many more than there are.
    lapsing: Box<[ExpiringEntry]>,
}

/// Where a key is, or would have to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Location {
    /// It is there.
    Found(usize, PackedEntry),
    /// It is nowhere; this is its place.
    Missing(usize),
}

impl Shard {
    /// A shard without a pair, that takes so many before it is full.
    pub(super) fn with_room(pairs: usize) -> Self {
        Self::of(pairs, std::iter::empty())
    }

    /// A shard of these pairs, which are in order, with room for `pairs` in all.
    pub(super) fn of(pairs: usize, all: impl Iterator<Item = (Key, PackedEntry)>) -> Self {
        if pairs == 0 {
            let (version, array) = (AtomicU64::new(0), Box::default());
            return Self { version, homes: 0, array, lapsing: Box::default() };
        }
        // A quarter more homes than pairs, until there are but a seventh more.
        let homes = pairs.saturating_add(pairs / 4).saturating_add(4);
        let margin = MARGIN.min(homes / 4).saturating_add(4);
        let mut slots = Vec::new();
        // Where keys do not spread, as those of no ledger, more may be needed.
        slots.reserve_exact(homes.saturating_add(margin));
        let count = u64::try_from(homes).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
        for (key, entry) in all {
            let key = key.halves();
            slots.resize_with(slots.len().max(home_slot(key.0, count)), Slot::default);
            slots.push(Slot::new(key, entry));
        }
        let length = slots.len().max(homes).saturating_add(margin);
        slots.reserve_exact(length.saturating_sub(slots.len()));
        slots.resize_with(length, Slot::default);
        let (version, array) = (AtomicU64::new(0), slots.into());
        Self { version, homes: count, array, lapsing: Box::default() }
    }

    /// The same with what lapses, at the places that entries tell.
    pub(super) fn beside(self, lapsing: Vec<ExpiringEntry>) -> Self {
        Self { lapsing: lapsing.into(), ..self }
    }

    /// A shard of the same pairs, with room for `pairs` in all, and for so many more that lapse.
    /// Those that do have the first places.
    pub(super) fn copied(&self, pairs: usize, more_lapsing: usize) -> (Self, usize) {
        let mut lapsing = Vec::new();
        let all = self.pairs().map(|(key, entry)| match self.expiring_entry(entry) {
            Some(known) => {
                lapsing.push(known.copied());
                let place = lapsing.len().saturating_sub(1);
                (key, PackedEntry::expiring(place).unwrap_or(PackedEntry::UNREADABLE))
            }
            None => (key, entry),
        });
        let copy = Self::of(pairs, all);
        let used = lapsing.len();
        // An eighth more than are needed, so that few of them come with a copy.
        let needed = used.saturating_add(more_lapsing);
        let room = needed.saturating_add(needed / 8);
        lapsing.reserve_exact(room.saturating_sub(used));
        lapsing.resize_with(room, ExpiringEntry::default);
        (copy.beside(lapsing), used)
    }

    /// What lies at a place among those that lapse.
    pub(super) fn expiring(&self, place: usize) -> Option<&ExpiringEntry> {
        self.lapsing.get(place)
    }

    /// What an entry tells the place of; none where it lapses not.
    pub(super) fn expiring_entry(&self, entry: PackedEntry) -> Option<&ExpiringEntry> {
        match entry.encoding() {
            Encoding::Expiring(place) => self.expiring(place),
            _ => None,
        }
    }

    /// How many places there are for what lapses.
    pub(super) fn expiring_slots(&self) -> usize {
        self.lapsing.len()
    }

    /// The number of the profile that an entry of this shard uses.
    pub(super) fn profile_of(&self, entry: PackedEntry) -> Option<usize> {
        self.expiring_entry(entry).map_or(Some(entry), ExpiringEntry::entry)?.profile()
    }

    /// Whether one more pair would be one too many.
    pub(super) fn is_full(&self, pairs: usize) -> bool {
        let homes = usize::try_from(self.homes).unwrap_or(usize::MAX);
        pairs >= homes.saturating_sub(homes / 8)
    }

    /// Whether there is much more room than a copy for so many pairs would have.
    pub(super) fn is_sparse(&self, pairs: usize) -> bool {
        let homes = usize::try_from(self.homes).unwrap_or(usize::MAX);
        homes > pairs.saturating_add(pairs / 2).saturating_add(16)
    }

    /// How many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        let arrays = [size_of_val(&*self.array), size_of_val(&*self.lapsing), size_of::<Self>()];
        arrays.into_iter().fold(48, usize::saturating_add)
    }

    /// Looks at where a key should be, and where it is when others push it on by as much as is
    /// usual: what lies there comes into the cache.
    pub(super) fn prefetch(&self, key: Key) -> u64 {
        let (high, _) = key.halves();
        let home = home_slot(high, self.homes);
        let look = |place| self.array.get(place).map_or(0, |slot: &Slot| slot.key().0);
        look(home) ^ look(home.saturating_add(USUAL_PUSH))
    }

    /// Finds a key. While the writer moves pairs, what is found may be wrong.
    pub(super) fn find(&self, key: Key) -> Location {
        let wanted = key.halves();
        let home = home_slot(wanted.0, self.homes);
        let mut place = home;
        for slot in self.array.get(home..).unwrap_or_default() {
            let Some(entry) = slot.entry() else { break };
            let found = slot.key();
            if found == wanted {
                return Location::Found(place, entry);
            }
            if found > wanted {
                break;
            }
            place = place.saturating_add(1);
        }
        Location::Missing(place)
    }

    /// Reads what is under a key, and whatever `read` takes from there: again, where the writer
    /// came between, which never holds a version for longer than it takes to move a few pairs.
    pub(super) fn read<T>(&self, key: Key, mut read: impl FnMut(Option<PackedEntry>) -> T) -> T {
        self.seqlock_read(|| {
            read(match self.find(key) {
                Location::Found(_, entry) => Some(entry),
                Location::Missing(_) => None,
            })
        })
    }

    /// Does what reads the shard until the writer did not come between.
    pub(super) fn seqlock_read<T>(&self, mut read: impl FnMut() -> T) -> T {
        let mut spins = 0_u32;
        loop {
            let version = self.version.load(Ordering::Acquire);
            if version.is_multiple_of(2) {
                let result = read();
                if self.version.load(Ordering::Acquire) == version {
                    return result;
                }
            }
            spins = spins.saturating_add(1);
            if spins.is_multiple_of(SPINS) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// The pairs, in order. For the writer, or within [`seqlock_read`](Self::seqlock_read).
    pub(super) fn pairs(&self) -> impl Iterator<Item = (Key, PackedEntry)> {
        let pair = |slot: &Slot| Some((Key::from_halves(slot.key()), slot.entry()?));
        self.array.iter().filter_map(pair)
    }

    /// Lets the writer move pairs. Only the writer may call this, and what follows.
    pub(super) fn seqlock_write<T>(&self, change: impl FnOnce() -> T) -> T {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Release);
        let result = change();
        self.version.store(version.wrapping_add(2), Ordering::Release);
        result
    }

    /// Gives the pair at a place another entry. One word: it needs no version.
    pub(super) fn replace(&self, place: usize, entry: PackedEntry) {
        if let Some(Slot([.., word])) = self.array.get(place) {
            word.store(entry.word(), Ordering::Release);
        }
    }

    /// Whether there is a gap behind a place, so that a pair can be put there.
    pub(super) fn has_gap(&self, place: usize) -> bool {
        self.gap(place).is_some()
    }

    fn gap(&self, place: usize) -> Option<usize> {
        let behind = self.array.get(place..)?;
        behind.iter().position(|slot| slot.entry().is_none()).map(|gap| place.saturating_add(gap))
    }

    /// Puts a pair into its place, while [`seqlock_write`](Self::seqlock_write); those from there on to the next
    /// gap move on.
    pub(super) fn insert(&self, place: usize, key: Key, entry: PackedEntry) {
        let Some(gap) = self.gap(place) else { return };
        let Some(run) = self.array.get(place..=gap) else { return };
        for (from, to) in run.iter().zip(run.iter().skip(1)).rev() {
            to.store(from.key(), from.entry().map_or(0, PackedEntry::word));
        }
        if let Some(slot) = run.first() {
            slot.store(key.halves(), entry.word());
        }
    }

    /// Takes the pair out of a place, while [`seqlock_write`](Self::seqlock_write); those behind it that are not
    /// at home move back.
    pub(super) fn remove(&self, place: usize) {
        let Some(run) = self.array.get(place..) else { return };
        let mut to = run.first();
        for (at, from) in (place..).skip(1).zip(run.iter().skip(1)) {
            let Some(entry) = from.entry() else { break };
            let key = from.key();
            if home_slot(key.0, self.homes) >= at {
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

/// Where a key would be if nobody else were there. Monotonic: what is before by its bits is before
/// by its home.
fn home_slot(high: u64, homes: u64) -> usize {
    let part = (high << SHARD_BITS) >> 32;
    usize::try_from(part.wrapping_mul(homes) >> 32).unwrap_or(usize::MAX)
}
