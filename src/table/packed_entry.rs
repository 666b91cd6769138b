//! What a pair's slot holds beside its key, in 8 bytes; and what lies elsewhere, in 16.

use std::sync::atomic::{AtomicU64, Ordering};

use consentd_core::facts::{Resolved, Times};
use consentd_core::time::Timestamp;

/// The bits of a word that hold a moment, in milliseconds since 1970 and 1: until 2109.
const TIME_BITS: u32 = 42;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// The number of an entry whose whole content lies in the second map.
pub(super) const BOXED: u64 = (1 << 22) - 1;
/// The number of an entry that could not be read.
pub(super) const UNREADABLE: u64 = BOXED - 1;
/// The number of an entry that lies among the [`ExpiringEntry`], at the place that its other bits tell.
const EXPIRING: u64 = UNREADABLE - 1;
/// How many different profiles are shared at the same time at most, their numbers beginning at 1;
/// pairs of any further one lie in the second map.
pub(super) const MAX_PROFILES: usize = 1 << 18;

/// A pair's profile number and last inbound, in 8 bytes; never zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct PackedEntry(u64);

/// What an entry says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Encoding {
    /// The pair's record could not be read.
    Unreadable,
    /// Everything is in the second map.
    Boxed,
    /// It lapses: the rest is at this place beside its shard.
    Expiring(usize),
    /// The number of its profile, and its last inbound.
    Inline(usize, Option<Timestamp>),
}

impl PackedEntry {
    pub(super) const UNREADABLE: Self = Self(UNREADABLE << TIME_BITS);
    pub(super) const BOXED: Self = Self(BOXED << TIME_BITS);

    /// An entry of a profile.
    pub(super) fn inline(profile: usize, last_inbound: Option<Timestamp>) -> Self {
        let profile = u64::try_from(profile).unwrap_or(UNREADABLE);
        // An inbound after 2109 would read as one of 2109: it closes the window, never opens it.
        Self((profile << TIME_BITS) | last_inbound.map_or(0, bits))
    }

    /// The entry of what lies at a place among those that lapse; none past the last place.
    pub(super) fn expiring(place: usize) -> Option<Self> {
        let place = u64::try_from(place).ok().filter(|place| *place <= TIME_MASK)?;
        Some(Self((EXPIRING << TIME_BITS) | place))
    }

    /// An entry as it is stored; zero is none.
    pub(super) fn from_word(word: u64) -> Option<Self> {
        (word != 0).then_some(Self(word))
    }

    /// The entry as it is stored.
    pub(super) fn word(self) -> u64 {
        self.0
    }

    /// What it says.
    pub(super) fn encoding(self) -> Encoding {
        match self.0 >> TIME_BITS {
            UNREADABLE => Encoding::Unreadable,
            BOXED => Encoding::Boxed,
            EXPIRING => {
                Encoding::Expiring(usize::try_from(self.0 & TIME_MASK).unwrap_or(usize::MAX))
            }
            number => {
                let number = usize::try_from(number).unwrap_or(usize::MAX);
                Encoding::Inline(number, moment(self.0))
            }
        }
    }

    /// The number of the profile that it tells.
    pub(super) fn profile(self) -> Option<usize> {
        match self.encoding() {
            Encoding::Inline(number, _) => Some(number),
            _ => None,
        }
    }

    /// Whether the pair's slot holds all there is of it.
    pub(super) fn is_self_contained(self) -> bool {
        self.0 >> TIME_BITS < EXPIRING || self == Self::UNREADABLE
    }
}

fn bits(time: Timestamp) -> u64 {
    u64::try_from(time.as_millis().saturating_add(1)).unwrap_or(0).min(TIME_MASK)
}

fn moment(word: u64) -> Option<Timestamp> {
    let millis = i64::try_from(word & TIME_MASK).unwrap_or(0).checked_sub(1)?;
    Timestamp::from_millis(millis)
}

/// What a pair has that lapses, all at one moment: that, and the entry that it would have without.
#[derive(Debug, Default)]
pub(super) struct ExpiringEntry([AtomicU64; 2]);

impl ExpiringEntry {
    /// What lapses and when, in 8 bytes; none where that is several moments, or does not fit.
    pub(super) fn word(resolved: &Resolved) -> Option<u64> {
        let (what, time) = resolved.beside.as_ref()?.at_once()?;
        // A moment of which only the nearest one is kept would be another.
        let bits = bits(time);
        let fits = u64::from(what) >> (64 - TIME_BITS) == 0 && moment(bits) == Some(time);
        fits.then(|| (u64::from(what) << TIME_BITS) | bits)
    }

    /// A pair's.
    pub(super) fn new(entry: PackedEntry, word: u64) -> Self {
        Self([entry.word().into(), word.into()])
    }

    /// Whether a word says what lapses, and when.
    pub(super) fn is_word(word: u64) -> bool {
        moment(word).is_some() && word >> TIME_BITS != 0
    }

    /// Both words, as they are stored.
    pub(super) fn words(&self) -> (u64, u64) {
        let [first, second] = &self.0;
        (first.load(Ordering::Acquire), second.load(Ordering::Acquire))
    }

    /// A copy, for another array.
    pub(super) fn copied(&self) -> Self {
        let (first, second) = self.words();
        Self([first.into(), second.into()])
    }

    /// Puts a pair in.
    pub(super) fn store(&self, entry: PackedEntry, word: u64) {
        let [first, second] = &self.0;
        first.store(entry.word(), Ordering::Release);
        second.store(word, Ordering::Release);
    }

    /// The entry alone.
    pub(super) fn entry(&self) -> Option<PackedEntry> {
        PackedEntry::from_word(self.words().0)
    }

    /// The entry, and what lapses.
    pub(super) fn load(&self) -> (Option<PackedEntry>, Times<'static>) {
        let [first, second] = &self.0;
        let word = second.load(Ordering::Acquire);
        let what = u32::try_from(word >> TIME_BITS).unwrap_or(0);
        let times = moment(word).map_or(Times::None, |time| Times::AtOnce { what, time });
        (PackedEntry::from_word(first.load(Ordering::Acquire)), times)
    }
}
