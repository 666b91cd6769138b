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

use arc_swap::{ArcSwap, ArcSwapOption};
use dashmap::DashMap;
use tokio::sync::watch;

use crate::clock::Moment;
use crate::consent::Violation;
use crate::consent::denied::Denied;
use crate::consent::facts::{Facts, Profile, Resolved};
use crate::consent::id::{BusinessId, Key, KeySecret, UserId};
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

/// A pair as the table keeps it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pair {
    key: Key,
    /// Its key in the ledger before this one, where that had another secret.
    before: Option<Key>,
}

impl From<Key> for Pair {
    fn from(key: Key) -> Self {
        Self { key, before: None }
    }
}

/// Makes pairs, by the secrets of the table's ledger and of the one before it.
pub struct Keys {
    secret: arc_swap::Guard<Arc<KeySecret>>,
    before: arc_swap::Guard<Option<Arc<Before>>>,
}

impl Keys {
    /// The pair of a user and a business.
    #[must_use]
    pub fn pair(&self, user: &UserId<'_>, business: BusinessId<'_>) -> Pair {
        let before = self.before.as_ref().map(|before| before.secret.key(user, business));
        Pair { key: self.secret.key(user, business), before }
    }

    /// The same of ids as they came.
    ///
    /// # Errors
    ///
    /// What is wrong with either id, or both.
    pub fn read(&self, user_id: &str, business_id: &str) -> Result<Pair, Vec<Violation>> {
        match (UserId::parse(user_id), BusinessId::parse(business_id)) {
            (Ok(user), Ok(business)) => Ok(self.pair(&user, business)),
            (user, business) => Err([user.err(), business.err()].into_iter().flatten().collect()),
        }
    }
}

/// What is to be looked up: a pair, and the category of the message to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The pair.
    pub pair: Pair,
    /// What the message is about.
    pub category: Category<'a>,
}

/// What a ledger denied whose keys were others than those of the ledger in its place.
struct Before {
    secret: KeySecret,
    pairs: DashMap<Key, Arc<Denied>, KeyBits>,
}

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
    /// What the keys are made with.
    secret: ArcSwap<KeySecret>,
    before: ArcSwapOption<Before>,
    /// How many pairs are denied by what was remembered alone.
    remembered: AtomicU64,

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
    warnings: ArcSwap<Arc<[String]>>,
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
        // Until a ledger's own is known, nothing is found, and nothing allowed.
        secret: ArcSwap::from_pointee(KeySecret::new(&[0; 16])),
        before: ArcSwapOption::empty(),
        remembered: AtomicU64::new(0),
        validity: AtomicU8::new(encode(Validity::Loading)),
        generation: AtomicU64::new(0),
        proven_boot: AtomicU64::new(0),
        proven_wall: AtomicI64::new(0),
        ledger_offset: AtomicI64::new(0),
        revision: AtomicU64::new(0),
        applied: watch::Sender::new(0),
        cause: Mutex::new("reading the ledger for the first time".to_owned()),
        warnings: ArcSwap::from_pointee(Arc::from([])),
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

    /// Reads an entry; its pair's must be locked.
    fn resolve<T>(
        &self,
        key: Key,
        entry: Entry,
        read: impl FnOnce(&Profile, Option<Timestamp>, Option<&Resolved>) -> T,
    ) -> Result<T, UnreadablePair> {
        match entry.profile() {
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
        let found = self.entries.get(&key).map(|entry| self.resolve(key, *entry, read));
        if self.generation.load(Ordering::Acquire) != generation
            && freshness.validity == Validity::Valid
        {
            freshness.validity = Validity::Invalid;
        }
        (found, freshness)
    }

    /// What the ledger before this one denied the pair.
    fn denied_before(&self, pair: Pair) -> Option<Arc<Denied>> {
        let key = pair.before?;
        self.before.load().as_ref()?.pairs.get(&key).map(|denied| Arc::clone(&denied))
    }
}

impl Table {
    /// What makes pairs of users and businesses. It goes out of date where the table begins anew:
    /// take one for each call.
    #[must_use]
    pub fn keys(&self) -> Keys {
        Keys { secret: self.0.secret.load(), before: self.0.before.load() }
    }

    /// The pair of a user and a business.
    ///
    /// # Errors
    ///
    /// What is wrong with either id, or both.
    pub fn pair(&self, user_id: &str, business_id: &str) -> Result<Pair, Vec<Violation>> {
        self.keys().read(user_id, business_id)
    }

    /// What decisions need to know of many pairs, and how current that is: each as
    /// [`facts`](Self::facts) has it, and none older than the other answer.
    #[must_use]
    pub fn facts_of_many(
        &self,
        wanted: &[Wanted<'_>],
    ) -> (Vec<Result<Facts, UnreadablePair>>, Freshness) {
        let generation = self.0.generation.load(Ordering::Acquire);
        let mut freshness = self.0.freshness();
        let facts = wanted.iter().map(|wanted| self.facts(wanted.pair, wanted.category).0);
        let facts = facts.collect();
        if self.0.generation.load(Ordering::Acquire) != generation
            && freshness.validity == Validity::Valid
        {
            freshness.validity = Validity::Invalid;
        }
        (facts, freshness)
    }

    /// What a decision about `category` needs to know of a pair, and how current that is.
    ///
    /// Read the clock after this, not before. Allocates nothing.
    pub fn facts(
        &self,
        pair: Pair,
        category: Category<'_>,
    ) -> (Result<Facts, UnreadablePair>, Freshness) {
        // First: what is taken out of there is in the pair's entry by then, and is found in one of
        // them at least.
        let before = self.0.denied_before(pair);
        let (found, freshness) = self.0.look_up(pair.key, |profile, last_inbound, whole| {
            profile.facts(category, last_inbound, whole.and_then(|whole| whole.beside.as_ref()))
        });
        let facts = found.unwrap_or(Ok(Facts::NOTHING));
        let facts = match before {
            None => facts,
            Some(denied) => facts.map(|facts| denied.over(category, facts)),
        };
        (facts, freshness)
    }

    /// All that the table holds of a pair at `now`, and how current that is.
    pub fn summary(
        &self,
        pair: Pair,
        now: Timestamp,
    ) -> (Result<Summary, UnreadablePair>, Freshness) {
        let before = self.0.denied_before(pair);
        let (found, freshness) = self.0.look_up(pair.key, |profile, last_inbound, whole| {
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
        let mut summary = found.unwrap_or_else(|| Ok(Summary::default()));
        if let (Ok(summary), Some(denied)) = (&mut summary, before) {
            let remembered = denied.beyond(&State::default(), now).unwrap_or_default();
            summary.opted_out.extend(remembered.scopes.into_keys());
            summary.platform_stopped |= remembered.platform.is_some();
            summary.suppressed |= remembered.suppression.is_some();
        }
        (summary, freshness)
    }

    /// How many pairs are denied because the table remembers that they were, though the ledger no
    /// longer says so.
    #[must_use]
    pub fn remembered(&self) -> u64 {
        self.0.remembered.load(Ordering::Relaxed)
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

    /// What an operator should mend about the ledger.
    #[must_use]
    pub fn warnings(&self) -> Arc<[String]> {
        Arc::clone(&self.0.warnings.load())
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

#[cfg(test)]
mod tests;
mod writer;
