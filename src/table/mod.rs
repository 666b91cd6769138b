//! The hot table: the sharded in-memory map that checks are answered from, and its freshness.
//!
//! [`Table`] reads and can be cloned; [`Writer`] writes, is not `Clone`, and is held by the follower
//! alone. Every look-up returns the freshness together with the pair, so no caller can use consent
//! without its age.
//!
//! The table stores no raw ids. A pair takes 24 bytes: its 16-byte key and an 8-byte entry, which is the
//! number of a shared [`Profile`] and the pair's last inbound. A pair of which something expires at one
//! moment takes 16 bytes more; a pair that fits neither encoding is boxed in a second map. Profiles
//! that no pair uses are freed, so the memory depends on the pairs and not on how often they changed.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::as_conversions, clippy::arithmetic_side_effects)
)]

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use dashmap::DashMap;
use dashmap::mapref::one::Ref;
use tokio::sync::watch;

use self::packed_entry::{Encoding, PackedEntry};
use self::previous_ledger::PreviousLedgerDenials;
use self::profiles::{Chunk, Profiles};
use self::shard::{PerShard, Shard, ShardIndex};
use self::shard_directory::{ShardDirectory, View};
use self::shard_writer::ShardWriter;
use consentd_core::businesses::Businesses;
use consentd_core::failure::HeldFailure;
use consentd_core::id::{Key, KeySecret, PhoneNumberId};
use consentd_core::record::Revision;
use consentd_core::scope::{Category, Scope};
use consentd_core::standing::{ExpiriesRef, Facts, Profile, ResolvedState};
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

mod batch;
mod category;
mod former;
mod freshness;
mod insertion;
mod packed_entry;
mod partitions;
mod previous_ledger;
mod profiles;
mod serialize;
mod shard;
mod shard_directory;
mod shard_writer;
#[cfg(test)]
mod tests;
mod writer;

pub use self::batch::{BusinessKeys, KeyDeriver, NoPair, NotHeld};
pub use self::freshness::{Freshness, Validity};
pub use self::partitions::{BatchFreshness, Tables};
pub use self::serialize::{TableImage, TableImageError};

/// A pair whose record in the ledger could not be read. Every check of it is denied.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this pair's record in the ledger cannot be read")]
pub struct UnreadablePair;

/// The keys by which the table finds a pair.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pair {
    key: Key,
    /// The pair's key in the previous ledger, if that had another secret and its denials are retained.
    previous_key: Option<Key>,
}

impl Pair {
    /// The pair's key in the ledger.
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

/// All that the table holds of a pair.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PairSummary {
    /// When the user last wrote or called.
    pub last_inbound: Option<Timestamp>,
    /// Scopes opted in to and in force.
    pub opted_in: Vec<Scope>,
    /// Scopes opted out of and in force.
    pub opted_out: Vec<Scope>,
    /// At which of the business's numbers the user stopped marketing inside WhatsApp; `None` stands for a
    /// stop whose number is unknown, and comes first.
    pub stops: Vec<Option<PhoneNumberId>>,
    /// Whether the user must not be contacted.
    pub suppressed: bool,
    /// Refusals by WhatsApp that still hold.
    pub failures: Vec<HeldFailure>,
}

struct Shared {
    directory: ShardDirectory,
    /// Pairs that fit no other encoding. A pair is changed here only inside a seqlock write of its shard.
    boxed: DashMap<Key, Box<ResolvedState>>,
    pairs: AtomicUsize,
    /// How many of them have keys that name no business: see [`KeySecret::nameless`].
    nameless: AtomicUsize,
    shard_bytes: AtomicUsize,
    profile_bytes: AtomicUsize,
    /// The heap bytes of the values in `boxed`.
    boxed_bytes: AtomicUsize,
    /// The secret that keys are made with.
    secret: ArcSwap<KeySecret>,
    /// The businesses that questions are answered about.
    businesses: ArcSwap<Businesses>,
    previous_ledger: ArcSwapOption<PreviousLedgerDenials>,
    /// How many pairs have retained denials.
    retained_pairs: AtomicU64,

    validity: AtomicU8,
    /// A counter that changes whenever the validity does, so that a look-up across a change is noticed.
    generation: AtomicU64,
    proven_boot: AtomicU64,
    proven_wall: AtomicI64,
    ledger_offset: AtomicI64,
    revision: AtomicU64,
    /// How far the ledger's clock was ahead of this machine's at the last proof, in milliseconds.
    clock_offset: AtomicI64,
    /// The applied revision once more, for tasks that wait for one.
    applied: watch::Sender<Revision>,
    cause: Mutex<String>,
    warnings: Mutex<Arc<[String]>>,
}

/// The read side; clones share the table.
#[derive(Clone)]
pub struct Table(Arc<Shared>);

/// The write side.
pub struct Writer {
    shared: Arc<Shared>,
    profiles: Profiles,
    shards: PerShard<ShardWriter>,
    /// How many pairs are boxed, and the most that were since their map was last shrunk.
    boxed_pairs: usize,
    boxed_peak: usize,
}

/// Makes an empty table whose validity is [`Validity::Loading`].
#[must_use]
pub fn new() -> (Table, Writer) {
    let shards = PerShard::from_fn(ShardWriter::empty);
    let shared = Arc::new(Shared {
        directory: ShardDirectory::new(&shards.map(|shard| Arc::clone(&shard.shard))),
        boxed: DashMap::new(),
        pairs: AtomicUsize::new(0),
        nameless: AtomicUsize::new(0),
        shard_bytes: AtomicUsize::new(0),
        profile_bytes: AtomicUsize::new(0),
        boxed_bytes: AtomicUsize::new(0),
        // Until the ledger's own secret is known, no pair is found, and nothing is allowed.
        secret: ArcSwap::from_pointee(KeySecret::new(&[0; 16])),
        businesses: ArcSwap::default(),
        previous_ledger: ArcSwapOption::empty(),
        retained_pairs: AtomicU64::new(0),
        validity: AtomicU8::new(encode(Validity::Loading)),
        generation: AtomicU64::new(0),
        proven_boot: AtomicU64::new(0),
        proven_wall: AtomicI64::new(0),
        ledger_offset: AtomicI64::new(0),
        revision: AtomicU64::new(0),
        clock_offset: AtomicI64::new(0),
        applied: watch::Sender::new(0),
        cause: Mutex::new("reading the ledger for the first time".to_owned()),
        warnings: Mutex::new(Arc::from([])),
    });
    let (profiles, boxed_pairs, boxed_peak) = (Profiles::new(), 0, 0);
    let writer = Writer { shared: Arc::clone(&shared), profiles, shards, boxed_pairs, boxed_peak };
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

/// The freshness before a look-up, and the generation that it belongs to.
struct Stamp {
    generation: u64,
    freshness: Freshness,
}

/// A pair that was looked up: its profile, its last inbound, and its expiries.
enum PairRef<'a> {
    Shared(&'a Profile, Option<Timestamp>, ExpiriesRef<'static>),
    Boxed(Ref<'a, Key, Box<ResolvedState>>),
}

impl PairRef<'_> {
    fn parts(&self) -> (&Profile, Option<Timestamp>, ExpiriesRef<'_>) {
        match self {
            Self::Shared(profile, last_inbound, times) => (profile, *last_inbound, *times),
            Self::Boxed(boxed) => {
                (&boxed.profile, boxed.last_inbound, boxed.expiries.as_ref().into())
            }
        }
    }

    fn facts(&self, category: Category<'_>) -> Facts {
        let (profile, last_inbound, times) = self.parts();
        profile.facts(category, last_inbound, times)
    }
}

impl View {
    fn shard(&self, key: Key) -> &Shard {
        self.shards.get(ShardIndex::of(key))
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
            ledger_offsets: [self.ledger_offset.load(Ordering::Acquire); 2],
            revision: self.revision.load(Ordering::Acquire),
        }
    }

    /// Reads the freshness before a look-up: what it proves is then in what the look-up reads.
    fn stamp(&self) -> Stamp {
        let generation = self.generation.load(Ordering::Acquire);
        Stamp { generation, freshness: self.freshness() }
    }

    /// The freshness of a look-up since the stamp. If the validity changed meanwhile, the look-up may
    /// have read a part of either content, and is invalid.
    fn freshness_since(&self, Stamp { generation, mut freshness }: Stamp) -> Freshness {
        if self.generation.load(Ordering::Acquire) != generation
            && freshness.validity == Validity::Valid
        {
            freshness.validity = Validity::Invalid;
        }
        freshness
    }

    /// Looks a pair up; `None` if the table does not have it. A nameless pair counts for one that is not
    /// there: its own record continues the nameless one.
    ///
    /// A pair may have been removed since its key was derived, because its business is not held any more.
    /// Nothing follows from its absence, so that it counts as unreadable. The businesses are loaded after the
    /// look-up: the writer publishes them before it removes any pair.
    fn lookup<'a>(
        &'a self,
        view: &'a View,
        key: Key,
    ) -> Option<Result<PairRef<'a>, UnreadablePair>> {
        let found = self.lookup_own(view, key);
        if found.is_some() {
            return found;
        }
        if !self.businesses.load().holds_key(key) {
            return Some(Err(UnreadablePair));
        }
        if self.nameless.load(Ordering::Acquire) == 0 {
            return None;
        }
        // It is the neighbour of where the pair itself would be.
        self.lookup_own(view, self.secret.load().nameless(key)?)
    }

    fn lookup_own<'a>(
        &'a self,
        view: &'a View,
        key: Key,
    ) -> Option<Result<PairRef<'a>, UnreadablePair>> {
        let shard = view.shard(key);
        shard.seqlock_read(|| {
            let entry = shard.find(key).entry()?;
            Some(self.resolve(key, entry, shard, &view.profiles))
        })
    }

    /// Reads the pair that an entry of a shard stands for.
    fn resolve<'a>(
        &'a self,
        key: Key,
        entry: PackedEntry,
        shard: &Shard,
        profiles: &'a [Arc<Chunk>],
    ) -> Result<PairRef<'a>, UnreadablePair> {
        let (entry, times) = match entry.encoding() {
            Encoding::Expiring(index) => {
                let (entry, times) = shard.expiring(index).ok_or(UnreadablePair)?.load();
                (entry.ok_or(UnreadablePair)?, times)
            }
            _ => (entry, ExpiriesRef::None),
        };
        match entry.encoding() {
            Encoding::Unreadable | Encoding::Expiring(_) => Err(UnreadablePair),
            Encoding::Boxed => self.boxed.get(&key).map(PairRef::Boxed).ok_or(UnreadablePair),
            Encoding::Inline(number, last_inbound) => {
                let profile = profiles::profile(profiles, number).ok_or(UnreadablePair)?;
                Ok(PairRef::Shared(profile, last_inbound, times))
            }
        }
    }
}

impl Table {
    /// The pair of a user and a business.
    ///
    /// # Errors
    ///
    /// [`NoPair`] if either id is invalid, or the business is not held.
    pub fn pair(&self, user_id: &str, business_id: &str) -> Result<Pair, NoPair> {
        self.key_deriver().parse(user_id, business_id).map(|(pair, _)| pair)
    }

    /// The businesses that questions are answered about.
    #[must_use]
    pub fn businesses(&self) -> Arc<Businesses> {
        self.0.businesses.load_full()
    }

    /// The facts that a decision about `category` needs, and how current they are.
    ///
    /// The caller must read the clock after this call. It allocates nothing.
    pub fn facts(
        &self,
        pair: Pair,
        category: Category<'_>,
    ) -> (Result<Facts, UnreadablePair>, Freshness) {
        // Before the look-up: the writer puts these denials into the pair's entry before it removes
        // them here, so that they are found in one place at least.
        let previous = self.0.previous_ledger_denials(pair);
        let stamp = self.0.stamp();
        let facts = match self.0.lookup(&self.0.directory.view(), pair.key) {
            None => Ok(Facts::NOTHING),
            Some(found) => found.map(|pair| pair.facts(category)),
        };
        let freshness = self.0.freshness_since(stamp);
        let facts = match previous {
            None => facts,
            Some(denied) => facts.map(|facts| denied.overlay(category, facts)),
        };
        (facts, freshness)
    }

    /// All that the table holds of a pair at `now`, and how current that is.
    pub fn summary(
        &self,
        pair: Pair,
        now: Timestamp,
    ) -> (Result<PairSummary, UnreadablePair>, Freshness) {
        let previous = self.0.previous_ledger_denials(pair);
        let stamp = self.0.stamp();
        let mut summary = match self.0.lookup(&self.0.directory.view(), pair.key) {
            None => Ok(PairSummary::default()),
            Some(found) => found.map(|pair| {
                let (profile, last_inbound, times) = pair.parts();
                let (opted_in, opted_out) = profile.in_force(times, now);
                PairSummary {
                    last_inbound,
                    opted_in,
                    opted_out,
                    stops: profile.stops().into(),
                    suppressed: profile.suppressed(),
                    failures: profile.held_failures(times, now),
                }
            }),
        };
        let freshness = self.0.freshness_since(stamp);
        if let (Ok(summary), Some(denied)) = (&mut summary, previous) {
            let retained = denied.missing_from(&State::default(), now).unwrap_or_default();
            summary.opted_out.extend(retained.scopes.into_keys());
            summary.add_stops(retained.platform.standing().map(|(number, _)| number.cloned()));
            summary.suppressed |= retained.suppression.is_some();
        }
        (summary, freshness)
    }

    /// How many pairs have retained denials: denials that the ledger no longer holds.
    #[must_use]
    pub fn retained_pairs(&self) -> u64 {
        self.0.retained_pairs.load(Ordering::Relaxed)
    }

    /// How current the table is.
    #[must_use]
    pub fn freshness(&self) -> Freshness {
        self.0.freshness()
    }

    /// Waits until the table holds `revision`, without a bound of its own.
    pub async fn wait_for_revision(&self, revision: Revision) {
        let mut applied = self.0.applied.subscribe();
        if applied.wait_for(|applied| *applied >= revision).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Why the table is not live, for people; empty if it is.
    #[must_use]
    pub fn cause(&self) -> String {
        self.0.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What an operator should correct about the ledger.
    #[must_use]
    pub fn warnings(&self) -> Arc<[String]> {
        Arc::clone(&self.0.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How far the ledger's clock was ahead of this machine's at the last proof, in milliseconds; zero
    /// before the first one. The time that the proof took is no part of it.
    #[must_use]
    pub fn clock_offset(&self) -> i64 {
        self.0.clock_offset.load(Ordering::Relaxed)
    }

    /// The number of pairs.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.0.pairs.load(Ordering::Relaxed)
    }

    /// About how many bytes the table takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // A slot of the boxed pairs' map is a key, a pointer and a control byte.
        let boxed_slot = size_of::<(Key, Box<ResolvedState>)>().saturating_add(1);
        let shards = self.0.shard_bytes.load(Ordering::Relaxed);
        let parts = [
            shards,
            // Fragmentation by arrays that were replaced: a tenth, as `benches/memory.rs` measures.
            shards / 10,
            self.0.profile_bytes.load(Ordering::Relaxed),
            self.0.boxed_bytes.load(Ordering::Relaxed),
            self.0.directory.bytes(),
            self.0.boxed.capacity().saturating_mul(boxed_slot),
        ];
        parts.into_iter().fold(0, usize::saturating_add)
    }
}
