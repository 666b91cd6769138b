//! The alternative hot table: a `DashMap` from a key's prefix to a sorted run of entries.
//!
//! It answers the same calls as `consentd::table` and keeps the same entries: their packing and
//! the interning of profiles are the very files of `src/table`. It exists as a baseline, so that
//! the measurements of `docs/adr/0002-the-hot-table.md` can be repeated. What no check calls (saving,
//! the denials of an earlier ledger, `bytes`) is left out.
//!
//! Synchronisation: a reader resolves an entry while it holds the read lock of the map's shard; the
//! one writer changes a run, and what belongs to it in `whole`, under that shard's write lock.

#![allow(
    dead_code,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    reason = "a baseline uses a part of the files that it shares with the product"
)]

mod freshness;
mod run;
mod shard_directory;
mod writer;

#[path = "../../../src/table/packed_entry.rs"]
mod packed_entry;
#[path = "../../../src/table/profiles.rs"]
mod profiles;

use std::array;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use consentd::table::{Pair, UnreadablePair};
use consentd_core::id::Key;
use consentd_core::scope::Category;
use consentd_core::standing::{ExpiriesRef, Facts, Profile, ResolvedState};
use consentd_core::time::Timestamp;
use dashmap::DashMap;

use self::freshness::State;
use self::packed_entry::{Encoding, ExpiringEntry, PackedEntry};
use self::profiles::{Chunk, Profiles};
use self::run::{Location, MAP_SHARDS, Place, PrefixHash, Run, Slot};
use self::shard_directory::ShardDirectory;

pub(crate) use self::freshness::Freshness;
pub(crate) use self::writer::Writer;

/// How many look-ups of a batch are under way at once, as in `src/table/batch.rs`.
const LOOKUPS_PER_PREFETCH: usize = 64;

type Look = Result<Facts, UnreadablePair>;

struct Shared {
    runs: DashMap<u32, Run, PrefixHash>,
    /// Pairs that fit into no slot. Changed only under the lock of the pair's run.
    whole: DashMap<Key, Box<ResolvedState>>,
    /// The profiles that entries refer to by number.
    directory: ShardDirectory,
    pairs: AtomicUsize,
    freshness: State,
}

/// The read side; clones share the table.
#[derive(Clone)]
pub(crate) struct Table(Arc<Shared>);

/// An empty table that is not loaded yet.
pub(crate) fn new() -> (Table, Writer) {
    let shared = Arc::new(Shared {
        runs: DashMap::with_hasher_and_shard_amount(PrefixHash, MAP_SHARDS),
        whole: DashMap::new(),
        directory: ShardDirectory::default(),
        pairs: AtomicUsize::new(0),
        freshness: State::default(),
    });
    let writer = Writer { shared: Arc::clone(&shared), profiles: Profiles::new() };
    (Table(shared), writer)
}

impl Shared {
    /// Reads the pair that lies at the head of these slots. The caller holds its run's lock.
    fn resolve<T>(
        &self,
        key: Key,
        slots: &[Slot],
        profiles: &[Arc<Chunk>],
        read: impl FnOnce(&Profile, Option<Timestamp>, ExpiriesRef<'_>) -> T,
    ) -> Result<T, UnreadablePair> {
        let [_, _, word] = *slots.first().ok_or(UnreadablePair)?;
        let entry = PackedEntry::from_word(word).ok_or(UnreadablePair)?;
        let (entry, times) = match entry.encoding() {
            Encoding::Expiring(_) => {
                let [_, shared, lapses] = *slots.get(1).ok_or(UnreadablePair)?;
                let shared = PackedEntry::from_word(shared).ok_or(UnreadablePair)?;
                let (entry, times) = ExpiringEntry::new(shared, lapses).load();
                (entry.ok_or(UnreadablePair)?, times)
            }
            _ => (entry, ExpiriesRef::None),
        };
        match entry.encoding() {
            Encoding::Unreadable | Encoding::Expiring(_) => Err(UnreadablePair),
            Encoding::Boxed => {
                let whole = self.whole.get(&key).ok_or(UnreadablePair)?;
                Ok(read(&whole.profile, whole.last_inbound, whole.expiries.as_ref().into()))
            }
            Encoding::Inline(number, last_inbound) => {
                let profile = profiles::profile(profiles, number).ok_or(UnreadablePair)?;
                Ok(read(profile, last_inbound, times))
            }
        }
    }

    /// The same of a pair that may be missing from its run.
    fn facts(
        &self,
        location: &Location,
        run: &[Slot],
        profiles: &[Arc<Chunk>],
        category: Category<'_>,
    ) -> Look {
        match location.find(run) {
            Place::Missing(_) => Ok(Facts::NOTHING),
            Place::Found(at) => {
                let slots = run.get(at..).unwrap_or_default();
                self.resolve(location.key(), slots, profiles, |profile, last_inbound, times| {
                    profile.facts(category, last_inbound, times)
                })
            }
        }
    }
}

impl Table {
    /// What a decision about `category` needs to know of a pair, and how current that is.
    pub(crate) fn facts(&self, pair: Pair, category: Category<'_>) -> (Look, Freshness) {
        self.0.freshness.with_generation_check(|| {
            let location = Location::of(pair.key());
            let Some(run) = self.0.runs.get(&location.prefix()) else {
                return Ok(Facts::NOTHING);
            };
            // Loaded under the lock: a number that the run holds is not reused before it is freed.
            let profiles = self.0.directory.load();
            self.0.facts(&location, &run, &profiles, category)
        })
    }

    /// The same of many pairs. `into` is emptied, and gets as many facts as there are pairs.
    pub(crate) fn facts_batch(
        &self,
        pairs: &[Pair],
        categories: &[Category<'_>],
        into: &mut Vec<Look>,
    ) -> Freshness {
        into.clear();
        let ((), freshness) = self.0.freshness.with_generation_check(|| {
            for (pairs, categories) in
                pairs.chunks(LOOKUPS_PER_PREFETCH).zip(categories.chunks(LOOKUPS_PER_PREFETCH))
            {
                self.add_facts(pairs, categories, into);
            }
        });
        freshness
    }

    /// Takes the locks of up to [`LOOKUPS_PER_PREFETCH`] runs first and reads then, because a locked
    /// instruction waits for all loads before it: cache misses overlap only between the locks.
    fn add_facts(&self, pairs: &[Pair], categories: &[Category<'_>], into: &mut Vec<Look>) {
        let location = |pair: &Pair| Location::of(pair.key());
        // A thread may take one shard's lock twice: dashmap's lock prefers readers.
        let runs: [_; LOOKUPS_PER_PREFETCH] = array::from_fn(|index| {
            let location = location(pairs.get(index)?);
            self.0.runs.get(&location.prefix())
        });
        let touched = pairs.iter().zip(&runs).fold(0, |all: u64, (pair, run)| {
            all ^ run.as_ref().map_or(0, |run| location(pair).prefetch(run))
        });
        std::hint::black_box(touched);
        // All locks are held, so no number is reused until this returns.
        let profiles = self.0.directory.load();
        for ((pair, run), category) in pairs.iter().zip(&runs).zip(categories) {
            into.push(match run {
                None => Ok(Facts::NOTHING),
                Some(run) => self.0.facts(&location(pair), run, &profiles, *category),
            });
        }
    }

    /// How many pairs it holds.
    pub(crate) fn pairs(&self) -> usize {
        self.0.pairs.load(Ordering::Relaxed)
    }
}
