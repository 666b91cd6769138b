//! The bit packing of a pair: the 8-byte entry in its slot, and 16 more bytes for a pair that expires.

use std::sync::atomic::{AtomicU64, Ordering};

use consentd_core::standing::{ExpiriesRef, ResolvedState};
use consentd_core::time::Timestamp;

/// The low bits of a word that hold a moment: milliseconds since 1970, plus 1. They last until 2109.
const TIME_BITS: u32 = 42;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// The tag of an entry whose content is in the map of boxed pairs.
const BOXED: u64 = (1 << 22) - 1;
/// The tag of a pair whose record could not be read.
const UNREADABLE: u64 = BOXED - 1;
/// The tag of an entry whose content is an [`ExpiringEntry`]; the low bits are its index.
const EXPIRING: u64 = UNREADABLE - 1;
/// The most profiles that are shared at the same time. Their numbers begin at 1 and are below every
/// tag. A pair of any further profile is boxed.
pub(super) const MAX_PROFILES: usize = 1 << 18;

/// A pair in 8 bytes: a profile number or a tag in the upper 22 bits, a moment or an index in the
/// lower 42. It is never zero, so that zero can mark an empty slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PackedEntry(u64);

/// A decoded [`PackedEntry`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Encoding {
    /// The pair's record could not be read.
    Unreadable,
    /// The pair is in the map of boxed pairs.
    Boxed,
    /// The pair is the [`ExpiringEntry`] at this index of its shard.
    Expiring(u32),
    /// The pair's profile number and its last inbound.
    Inline(usize, Option<Timestamp>),
}

impl PackedEntry {
    pub(super) const UNREADABLE: Self = Self(UNREADABLE << TIME_BITS);
    pub(super) const BOXED: Self = Self(BOXED << TIME_BITS);

    /// An entry that holds everything itself.
    pub(super) fn inline(profile: usize, last_inbound: Option<Timestamp>) -> Self {
        let profile = u64::try_from(profile).unwrap_or(UNREADABLE);
        // A moment after 2109 is stored as one of 2109: that closes the window and never opens it.
        Self((profile << TIME_BITS) | last_inbound.map_or(0, time_bits))
    }

    /// An entry that refers to the [`ExpiringEntry`] at this index.
    pub(super) fn expiring(index: u32) -> Self {
        Self((EXPIRING << TIME_BITS) | u64::from(index))
    }

    /// The entry of a stored word; `None` for zero, which marks an empty slot.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        (word != 0).then_some(Self(word))
    }

    /// The word to store.
    pub(super) fn word(self) -> u64 {
        self.0
    }

    /// Decodes the entry.
    pub(super) fn encoding(self) -> Encoding {
        match self.0 >> TIME_BITS {
            UNREADABLE => Encoding::Unreadable,
            BOXED => Encoding::Boxed,
            EXPIRING => Encoding::Expiring(low_half(self.0)),
            number => {
                let number = usize::try_from(number).unwrap_or(usize::MAX);
                Encoding::Inline(number, moment(self.0))
            }
        }
    }

    /// The profile number, if the entry holds one itself.
    pub(super) fn profile(self) -> Option<usize> {
        match self.encoding() {
            Encoding::Inline(number, _) => Some(number),
            _ => None,
        }
    }

    /// The index of the pair's [`ExpiringEntry`], if it has one.
    pub(super) fn expiring_index(self) -> Option<u32> {
        match self.encoding() {
            Encoding::Expiring(index) => Some(index),
            _ => None,
        }
    }

    /// Whether the slot holds the whole pair, so that one store replaces it.
    pub(super) fn is_self_contained(self) -> bool {
        self.0 >> TIME_BITS < EXPIRING || self == Self::UNREADABLE
    }
}

fn low_half(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn time_bits(time: Timestamp) -> u64 {
    u64::try_from(time.as_millis().saturating_add(1)).unwrap_or(0).min(TIME_MASK)
}

fn moment(word: u64) -> Option<Timestamp> {
    let millis = i64::try_from(word & TIME_MASK).unwrap_or(0).checked_sub(1)?;
    Timestamp::from_millis(millis)
}

/// A pair of which something expires, all at one moment: the entry that it would have otherwise, and
/// an expiry word of what expires (22 bits) and when (42 bits).
#[derive(Debug, Default)]
pub(super) struct ExpiringEntry([AtomicU64; 2]);

impl ExpiringEntry {
    /// The expiry word of a pair; `None` if the pair has several expiry moments, or one that does not
    /// fit: such a pair is boxed.
    pub(super) fn expiry_word(resolved: &ResolvedState) -> Option<u64> {
        let (what, time) = resolved.expiries.as_ref()?.one_time()?;
        // A moment that was clamped to the range would be another moment.
        let bits = time_bits(time);
        let fits = u64::from(what) >> (64 - TIME_BITS) == 0 && moment(bits) == Some(time);
        fits.then(|| (u64::from(what) << TIME_BITS) | bits)
    }

    /// An entry with these two words.
    pub(super) fn new(entry: PackedEntry, expiry_word: u64) -> Self {
        Self([entry.word().into(), expiry_word.into()])
    }

    /// Whether a word from a file is a valid expiry word.
    pub(super) fn is_expiry_word(word: u64) -> bool {
        moment(word).is_some() && word >> TIME_BITS != 0
    }

    /// Both words as stored.
    pub(super) fn words(&self) -> (u64, u64) {
        let [first, second] = &self.0;
        (first.load(Ordering::Acquire), second.load(Ordering::Acquire))
    }

    /// A copy for a resized shard.
    pub(super) fn copied(&self) -> Self {
        let (first, second) = self.words();
        Self([first.into(), second.into()])
    }

    /// Replaces the content. Only the writer calls this, inside a seqlock write.
    pub(super) fn store(&self, entry: PackedEntry, expiry_word: u64) {
        let [first, second] = &self.0;
        first.store(entry.word(), Ordering::Release);
        second.store(expiry_word, Ordering::Release);
    }

    /// The entry without its expiry.
    pub(super) fn entry(&self) -> Option<PackedEntry> {
        PackedEntry::from_word(self.words().0)
    }

    /// The entry and its expiry.
    pub(super) fn load(&self) -> (Option<PackedEntry>, ExpiriesRef<'static>) {
        let (first, second) = self.words();
        let what = u32::try_from(second >> TIME_BITS).unwrap_or(0);
        let times = moment(second)
            .map_or(ExpiriesRef::None, |time| ExpiriesRef::OneTime { bits: what, time });
        (PackedEntry::from_word(first), times)
    }
}
