//! The sharded map from which checks are answered, and how current it is.
//!
//! [`Table`] reads; [`Writer`], which is not `Clone`, writes, and the follower alone holds it.
//! Freshness lies beside the map and comes with every look-up, so nobody can read consent and
//! forget to ask how old it is. Raw ids are not kept: an entry is a pair's key and 8 bytes, the
//! number of the [`Profile`] that it shares with other pairs and its last inbound. What does not
//! fit into that lies in a second map.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::as_conversions, clippy::arithmetic_side_effects)
)]

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::watch;

use crate::clock::Moment;
use crate::consent::facts::{Facts, Profile, Resolved};
use crate::consent::id::Key;
use crate::consent::record::Revision;
use crate::consent::scope::{Category, Scope};
use crate::consent::state::State;
use crate::consent::time::Timestamp;

/// How many parts the map is locked in.
const SHARDS: usize = 256;

/// The bits of an entry that hold its last inbound, in milliseconds since 1970 and 1: until 2109.
const INBOUND_BITS: u32 = 42;
const INBOUND_MASK: u64 = (1 << INBOUND_BITS) - 1;

/// The number of an entry whose whole content lies in the second map.
const ELSEWHERE: u64 = (1 << 22) - 1;
/// The number of an entry that could not be read.
const UNREADABLE: u64 = ELSEWHERE - 1;
/// How many different profiles are shared at most; pairs of any further one lie in the second map.
/// They are never given back: at about 100 bytes each, they take a few dozen MiB at the most.
const MAX_PROFILES: usize = 1 << 18;

/// A pair's profile number and last inbound, in 8 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Entry(u64);

impl Entry {
    fn new(profile: u64, last_inbound: Option<Timestamp>) -> Self {
        // An inbound after 2109 would read as one of 2109: it closes the window, never opens it.
        let inbound = last_inbound.map_or(0, |time| time.as_millis().saturating_add(1));
        let inbound = u64::try_from(inbound).unwrap_or(0).min(INBOUND_MASK);
        Self((profile << INBOUND_BITS) | inbound)
    }

    fn profile(self) -> u64 {
        self.0 >> INBOUND_BITS
    }

    fn last_inbound(self) -> Option<Timestamp> {
        let millis = i64::try_from(self.0 & INBOUND_MASK).unwrap_or(0).checked_sub(1)?;
        Timestamp::from_millis(millis)
    }
}

/// Keys are keyed hashes already: their bits spread as well as any.
#[derive(Clone, Copy, Debug, Default)]
struct KeyBits(u64);

impl Hasher for KeyBits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, bits: u64) {
        self.0 ^= bits;
    }
}

impl BuildHasher for KeyBits {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self::default()
    }
}

/// What the table is, whatever its age.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Validity {
    /// Nothing was loaded yet.
    Loading,
    /// It holds a state that the ledger had.
    Valid,
    /// It is known to be wrong.
    Invalid,
}

/// How current the table was at a look-up.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// What it was.
    pub validity: Validity,
    /// The moment at which it last had all that the ledger had.
    proven: Moment,
    /// The ledger's clock less this machine's time since boot, in milliseconds.
    ledger_offset: i64,
    /// The last applied revision.
    pub revision: Revision,
}

impl Freshness {
    /// How long ago the table was proven to have everything.
    #[must_use]
    pub fn staleness(&self, now: Moment) -> Duration {
        now.since(self.proven)
    }

    /// What the ledger's clock says now, by its last answer and the time since.
    #[must_use]
    pub fn ledger_clock(&self, now: Moment) -> Timestamp {
        let boot = i64::try_from(now.boot.as_millis()).unwrap_or(i64::MAX);
        Timestamp::saturating_from_millis(boot.saturating_add(self.ledger_offset))
    }
}

/// A pair's entry that could not be read from the ledger: it is denied.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this pair's record in the ledger cannot be read")]
pub struct UnreadablePair;

/// All that the table holds of a pair.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// When the user last wrote or called.
    pub last_inbound: Option<Timestamp>,
    /// Scopes opted in to and in force.
    pub opted_in: Vec<Scope>,
    /// Scopes opted out of and in force.
    pub opted_out: Vec<Scope>,
    /// Whether the user stopped marketing inside WhatsApp.
    pub platform_stopped: bool,
    /// Whether the user must not be contacted.
    pub suppressed: bool,
}

struct Shared {
    entries: DashMap<Key, Entry, KeyBits>,
    /// What does not fit into an entry. Locked only while the pair's entry is.
    elsewhere: DashMap<Key, Box<Resolved>, KeyBits>,
    profiles: boxcar::Vec<Arc<Profile>>,
    /// The bytes that profiles take on the heap.
    profile_bytes: AtomicU64,

    validity: AtomicU8,
    /// Counts the times that the table became invalid or valid, so that a look-up across one of
    /// them is noticed.
    generation: AtomicU64,
    proven_boot: AtomicU64,
    proven_wall: AtomicI64,
    ledger_offset: AtomicI64,
    revision: AtomicU64,
    /// The applied revision again, for those who wait.
    applied: watch::Sender<Revision>,
    cause: Mutex<String>,
}

/// The read side; clones share the table.
#[derive(Clone)]
pub struct Table(Arc<Shared>);

/// The write side.
pub struct Writer {
    shared: Arc<Shared>,
    numbers: HashMap<Arc<Profile>, u64>,
}

/// An empty table that is not loaded yet.
#[must_use]
pub fn new() -> (Table, Writer) {
    let map = || DashMap::with_capacity_and_hasher_and_shard_amount(0, KeyBits::default(), SHARDS);
    let shared = Arc::new(Shared {
        entries: map(),
        elsewhere: DashMap::with_capacity_and_hasher_and_shard_amount(
            0,
            KeyBits::default(),
            SHARDS,
        ),
        profiles: boxcar::Vec::new(),
        profile_bytes: AtomicU64::new(0),
        validity: AtomicU8::new(encode(Validity::Loading)),
        generation: AtomicU64::new(0),
        proven_boot: AtomicU64::new(0),
        proven_wall: AtomicI64::new(0),
        ledger_offset: AtomicI64::new(0),
        revision: AtomicU64::new(0),
        applied: watch::Sender::new(0),
        cause: Mutex::new("reading the ledger for the first time".to_owned()),
    });
    (Table(Arc::clone(&shared)), Writer { shared, numbers: HashMap::new() })
}

const fn encode(validity: Validity) -> u8 {
    match validity {
        Validity::Loading => 0,
        Validity::Valid => 1,
        Validity::Invalid => 2,
    }
}

const fn decode(validity: u8) -> Validity {
    match validity {
        0 => Validity::Loading,
        1 => Validity::Valid,
        _ => Validity::Invalid,
    }
}

impl Shared {
    fn freshness(&self) -> Freshness {
        Freshness {
            validity: decode(self.validity.load(Ordering::Acquire)),
            proven: Moment {
                boot: Duration::from_nanos(self.proven_boot.load(Ordering::Acquire)),
                wall: Timestamp::saturating_from_millis(self.proven_wall.load(Ordering::Acquire)),
            },
            ledger_offset: self.ledger_offset.load(Ordering::Acquire),
            revision: self.revision.load(Ordering::Acquire),
        }
    }

    /// Reads freshness first and the pair then, so that what was proven is in what is read.
    fn look_up<T>(
        &self,
        key: Key,
        read: impl FnOnce(&Profile, Option<Timestamp>, Option<&Resolved>) -> T,
    ) -> (Option<Result<T, UnreadablePair>>, Freshness) {
        let generation = self.generation.load(Ordering::Acquire);
        let mut freshness = self.freshness();
        let found = self.entries.get(&key).map(|entry| match entry.profile() {
            UNREADABLE => Err(UnreadablePair),
            ELSEWHERE => {
                let whole = self.elsewhere.get(&key).ok_or(UnreadablePair)?;
                Ok(read(&whole.profile, whole.last_inbound, Some(&whole)))
            }
            number => {
                let number = usize::try_from(number).map_err(|_| UnreadablePair)?;
                let profile = self.profiles.get(number).ok_or(UnreadablePair)?;
                Ok(read(profile, entry.last_inbound(), None))
            }
        });
        if self.generation.load(Ordering::Acquire) != generation
            && freshness.validity == Validity::Valid
        {
            freshness.validity = Validity::Invalid;
        }
        (found, freshness)
    }
}

impl Table {
    /// What a decision about `category` needs to know of a pair, and how current that is.
    ///
    /// Read the clock after this, not before. Allocates nothing.
    pub fn facts(
        &self,
        key: Key,
        category: Category<'_>,
    ) -> (Result<Facts, UnreadablePair>, Freshness) {
        let (found, freshness) = self.0.look_up(key, |profile, last_inbound, whole| {
            profile.facts(category, last_inbound, whole.and_then(|whole| whole.beside.as_ref()))
        });
        (found.unwrap_or(Ok(Facts::NOTHING)), freshness)
    }

    /// All that the table holds of a pair at `now`, and how current that is.
    pub fn summary(
        &self,
        key: Key,
        now: Timestamp,
    ) -> (Result<Summary, UnreadablePair>, Freshness) {
        let (found, freshness) = self.0.look_up(key, |profile, last_inbound, whole| {
            let beside = whole.and_then(|whole| whole.beside.as_ref());
            let (opted_in, opted_out) = profile.in_force(beside, now);
            Summary {
                last_inbound,
                opted_in,
                opted_out,
                platform_stopped: profile.platform_stopped(),
                suppressed: profile.suppressed(),
            }
        });
        (found.unwrap_or_else(|| Ok(Summary::default())), freshness)
    }

    /// How current the table is.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        self.0.freshness()
    }

    /// Waits until the table holds `revision`, or for ever.
    pub async fn applied(&self, revision: Revision) {
        let mut applied = self.0.applied.subscribe();
        if applied.wait_for(|applied| *applied >= revision).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What holds the table where it is, in words; empty where it is live.
    #[must_use]
    pub fn cause(&self) -> String {
        self.0.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many pairs it holds.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.0.entries.len()
    }

    /// About how many bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // A slot of the map is a key, a value, and a byte of control.
        let slot = size_of::<(Key, Entry)>().saturating_add(1);
        let elsewhere = size_of::<(Key, Box<Resolved>)>()
            .saturating_add(1)
            .saturating_add(size_of::<Resolved>());
        let profiles = self.0.profile_bytes.load(Ordering::Relaxed);
        self.0
            .entries
            .capacity()
            .saturating_mul(slot)
            .saturating_add(self.0.elsewhere.capacity().saturating_mul(elsewhere))
            .saturating_add(usize::try_from(profiles).unwrap_or(usize::MAX))
    }
}

impl Writer {
    /// Puts a pair's new state into the table; one that cannot be read is denied from now on.
    pub fn apply(&mut self, key: Key, state: Result<&State, UnreadablePair>) {
        let resolved = state.map(Resolved::of);
        let number = match &resolved {
            Err(UnreadablePair) => UNREADABLE,
            Ok(resolved) if resolved.beside.is_some() => ELSEWHERE,
            Ok(resolved) => self.number_of(&resolved.profile),
        };
        let inbound = resolved.as_ref().ok().and_then(|resolved| resolved.last_inbound);
        // The second map changes only under the lock of the pair's entry, as it is read.
        let mut entry = self.shared.entries.entry(key).or_insert(Entry(UNREADABLE << INBOUND_BITS));
        let was_elsewhere = entry.profile() == ELSEWHERE;
        match resolved {
            Ok(resolved) if number == ELSEWHERE => {
                self.shared.elsewhere.insert(key, Box::new(resolved));
            }
            _ if was_elsewhere => {
                self.shared.elsewhere.remove(&key);
            }
            _ => {}
        }
        *entry = Entry::new(number, inbound);
    }

    fn number_of(&mut self, profile: &Profile) -> u64 {
        if let Some(number) = self.numbers.get(profile) {
            return *number;
        }
        if self.numbers.len() >= MAX_PROFILES {
            return ELSEWHERE;
        }
        let profile = Arc::new(profile.clone());
        let bytes = size_of::<Profile>().saturating_add(profile.heap_bytes());
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.shared.profile_bytes.fetch_add(bytes, Ordering::Relaxed);
        let number = self.shared.profiles.push(Arc::clone(&profile));
        let number = u64::try_from(number).unwrap_or(ELSEWHERE);
        self.numbers.insert(profile, number);
        number
    }

    /// Says that everything up to `revision` is in the table.
    pub fn applied(&mut self, revision: Revision) {
        self.shared.revision.store(revision, Ordering::Release);
        self.shared.applied.send_replace(revision);
    }

    /// Says that the table had, at `asked`, all that the ledger had; the ledger's clock then said
    /// `ledger_clock`. Never moves back.
    pub fn proven(&mut self, asked: Moment, ledger_clock: Timestamp) {
        let boot = u64::try_from(asked.boot.as_nanos()).unwrap_or(u64::MAX);
        let shared = &self.shared;
        if boot < shared.proven_boot.load(Ordering::Acquire) {
            return;
        }
        let boot_millis = i64::try_from(asked.boot.as_millis()).unwrap_or(i64::MAX);
        let offset = ledger_clock.as_millis().saturating_sub(boot_millis);
        shared.ledger_offset.store(offset, Ordering::Release);
        shared.proven_wall.store(asked.wall.as_millis(), Ordering::Release);
        shared.proven_boot.store(boot, Ordering::Release);
    }

    /// Says that the table holds a state that the ledger had.
    pub fn validate(&mut self) {
        self.set_validity(Validity::Valid);
    }

    /// Says that the table is wrong, and why. Before the first load it stays as it is.
    pub fn invalidate(&mut self) {
        if self.shared.freshness().validity != Validity::Loading {
            self.set_validity(Validity::Invalid);
        }
    }

    fn set_validity(&mut self, validity: Validity) {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.shared.validity.store(encode(validity), Ordering::Release);
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Empties the table, which must not be valid.
    pub fn clear(&mut self) {
        debug_assert_ne!(self.shared.freshness().validity, Validity::Valid);
        self.shared.entries.clear();
        self.shared.elsewhere.clear();
    }

    /// Says in words what holds the table where it is; empty where it is live.
    pub fn explain(&mut self, cause: impl Into<String>) {
        *self.shared.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause.into();
    }
}

#[cfg(test)]
mod tests;
