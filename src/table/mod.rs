//! The sharded map from which checks are answered, and how current it is.
//!
//! [`Table`] reads; [`Writer`], which is not `Clone`, writes, and the follower alone holds it.
//! Freshness lies beside the map and comes with every look-up, so nobody can read consent and
//! forget to ask how old it is. Raw ids are not kept: an entry is a pair's key and 8 bytes, the
//! number of the [`Profile`] that it shares with other pairs and its last inbound. Where something
//! lapses at one moment, that takes 16 bytes elsewhere; what fits into neither lies in a second map.
//! What no pair uses any more is freed: the table takes what its pairs take, however often they
//! have changed.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::as_conversions, clippy::arithmetic_side_effects)
)]

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use dashmap::DashMap;
use tokio::sync::watch;

use self::packed_entry::{Encoding, PackedEntry};
use self::profiles::{Chunk, Profiles};
use self::shard::{SHARDS, Shard, shard_of};
use self::shard_directory::ShardDirectory;
use self::shard_writer::ShardWriter;
use consentd_core::Violation;
use consentd_core::denied::Denied;
use consentd_core::facts::{Facts, Profile, Resolved, Times};
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::Revision;
use consentd_core::scope::{Category, Scope};
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

mod batch;
mod packed_entry;
mod profiles;
mod serialize;
mod shard;
mod shard_directory;
mod shard_writer;
#[cfg(test)]
mod tests;
mod writer;

pub use self::batch::KeyDeriver;
pub use self::serialize::{TableImage, TableImageError};

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
    previous_key: Option<Key>,
}

impl Pair {
    /// Its key in the ledger.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }
}

impl From<Key> for Pair {
    fn from(key: Key) -> Self {
        Self { key, previous_key: None }
    }
}

/// What a ledger denied whose keys were others than those of the ledger in its place.
struct PreviousLedgerDenials {
    secret: KeySecret,
    pairs: DashMap<Key, Arc<Denied>>,
}

/// All that the table holds of a pair.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PairSummary {
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
    lanes: ShardDirectory,
    /// What fits nowhere else. Changed only while the pair's shard is.
    boxed: DashMap<Key, Box<Resolved>>,
    pairs: AtomicUsize,
    /// The bytes that shards take.
    slot_bytes: AtomicUsize,
    /// The bytes that profiles take.
    profile_bytes: AtomicUsize,
    /// The bytes that what is in `whole` takes on the heap.
    boxed_bytes: AtomicUsize,
    /// What the keys are made with.
    secret: ArcSwap<KeySecret>,
    before: ArcSwapOption<PreviousLedgerDenials>,
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
    /// The profiles that the lanes lead to, and who uses them.
    profiles: Profiles,
    /// The shards that the lanes lead to.
    shards: Vec<ShardWriter>,
    /// How many pairs the second map has, and had at the most since it was last made smaller.
    boxed: (usize, usize),
}

/// An empty table that is not loaded yet.
#[must_use]
pub fn new() -> (Table, Writer) {
    let shards: Vec<_> = (0..SHARDS).map(|_| Arc::new(Shard::with_room(0))).collect();
    let shared = Arc::new(Shared {
        lanes: ShardDirectory::to(&shards),
        boxed: DashMap::new(),
        pairs: AtomicUsize::new(0),
        slot_bytes: AtomicUsize::new(0),
        profile_bytes: AtomicUsize::new(0),
        boxed_bytes: AtomicUsize::new(0),
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
    let shards = shards.into_iter().map(ShardWriter::from).collect();
    let (profiles, boxed) = (Profiles::new(), (0, 0));
    let writer = Writer { shared: Arc::clone(&shared), profiles, shards, boxed };
    (Table(shared), writer)
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

    /// Reads an entry of a shard.
    fn resolve<T>(
        &self,
        key: Key,
        entry: PackedEntry,
        slots: &Shard,
        profiles: &[Arc<Chunk>],
        read: impl FnOnce(&Profile, Option<Timestamp>, Times<'_>) -> T,
    ) -> Result<T, UnreadablePair> {
        let (entry, times) = match entry.encoding() {
            Encoding::Expiring(place) => {
                let (entry, times) = slots.expiring(place).ok_or(UnreadablePair)?.load();
                (entry.ok_or(UnreadablePair)?, times)
            }
            _ => (entry, Times::None),
        };
        match entry.encoding() {
            Encoding::Unreadable | Encoding::Expiring(_) => Err(UnreadablePair),
            Encoding::Boxed => {
                let boxed = self.boxed.get(&key).ok_or(UnreadablePair)?;
                Ok(read(&boxed.profile, boxed.last_inbound, boxed.beside.as_ref().into()))
            }
            Encoding::Inline(number, last_inbound) => {
                let profile = profiles::profile(profiles, number).ok_or(UnreadablePair)?;
                Ok(read(profile, last_inbound, times))
            }
        }
    }

    /// Reads freshness first and the pair then, so that what was proven is in what is read.
    fn look_up<T>(
        &self,
        key: Key,
        read: impl Fn(&Profile, Option<Timestamp>, Times<'_>) -> T,
    ) -> (Option<Result<T, UnreadablePair>>, Freshness) {
        self.with_generation_check(|| {
            let found = self.lanes.read(|view| {
                let slots = view.shards.get(shard_of(key))?;
                slots.read(key, |entry| {
                    Some(self.resolve(key, entry?, slots, &view.profiles, &read))
                })
            });
            found.flatten()
        })
    }

    /// What was read, and how current the table was before that; a table that became valid or
    /// invalid meanwhile was not.
    fn with_generation_check<T>(&self, read: impl FnOnce() -> T) -> (T, Freshness) {
        let generation = self.generation.load(Ordering::Acquire);
        let mut freshness = self.freshness();
        let found = read();
        if self.generation.load(Ordering::Acquire) != generation
            && freshness.validity == Validity::Valid
        {
            freshness.validity = Validity::Invalid;
        }
        (found, freshness)
    }

    /// What the ledger before this one denied the pair.
    fn previous_ledger_denials(&self, pair: Pair) -> Option<Arc<Denied>> {
        let key = pair.previous_key?;
        self.before.load().as_ref()?.pairs.get(&key).map(|denied| Arc::clone(&denied))
    }
}

impl Table {
    /// The pair of a user and a business.
    ///
    /// # Errors
    ///
    /// What is wrong with either id, or both.
    pub fn pair(&self, user_id: &str, business_id: &str) -> Result<Pair, Vec<Violation>> {
        self.key_deriver().parse(user_id, business_id)
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
        let before = self.0.previous_ledger_denials(pair);
        let (found, freshness) = self.0.look_up(pair.key, |profile, last_inbound, times| {
            profile.facts(category, last_inbound, times)
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
    ) -> (Result<PairSummary, UnreadablePair>, Freshness) {
        let before = self.0.previous_ledger_denials(pair);
        let (found, freshness) = self.0.look_up(pair.key, |profile, last_inbound, times| {
            let (opted_in, opted_out) = profile.in_force(times, now);
            PairSummary {
                last_inbound,
                opted_in,
                opted_out,
                platform_stopped: profile.platform_stopped(),
                suppressed: profile.suppressed(),
            }
        });
        let mut summary = found.unwrap_or_else(|| Ok(PairSummary::default()));
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
    pub fn retained_pairs(&self) -> u64 {
        self.0.remembered.load(Ordering::Relaxed)
    }

    /// How current the table is.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        self.0.freshness()
    }

    /// Waits until the table holds `revision`, or for ever.
    pub async fn wait_for_revision(&self, revision: Revision) {
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
        self.0.pairs.load(Ordering::Relaxed)
    }

    /// About how many bytes it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // A slot of the second map is a key, a pointer, and a byte of control.
        let boxed = size_of::<(Key, Box<Resolved>)>().saturating_add(1);
        let slots = self.0.slot_bytes.load(Ordering::Relaxed);
        let parts = [
            slots,
            // Holes that arrays left, too small for those in their place: a tenth, as measured by
            // `benches/memory.rs`.
            slots / 10,
            self.0.profile_bytes.load(Ordering::Relaxed),
            self.0.boxed_bytes.load(Ordering::Relaxed),
            self.0.lanes.bytes(),
            self.0.boxed.capacity().saturating_mul(boxed),
        ];
        parts.into_iter().fold(0, usize::saturating_add)
    }
}
