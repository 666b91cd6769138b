//! The write side of the hot table.
//!
//! What a lint would make a silent fallback ends the process here: a write that is lost may be an
//! opt-out, while a process that has ended denies.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use dashmap::DashMap;

use super::packed_entry::{Encoding, ExpiringEntry, PackedEntry};
use super::profiles::Profiles;
use super::shard::{Location, PerShard, Shard, ShardIndex};
use super::shard_writer::ShardWriter;
use super::{PairRef, PreviousLedgerDenials, UnreadablePair, Validity, Writer, encode};
use consentd_core::businesses::Businesses;
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::Revision;
use consentd_core::retained_denials::RetainedDenials;
use consentd_core::standing::{Expiries, ResolvedState};
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

/// How far the peak of boxed pairs must be above twice their number before their map is shrunk.
const BOXED_SHRINK_MARGIN: usize = 1_024;

/// A pair in the smallest encoding that it fits.
pub(super) enum EncodedPair {
    /// In its slot.
    Inline(PackedEntry),
    /// In an [`ExpiringEntry`] with this expiry word.
    Expiring(PackedEntry, u64),
    /// In the map of boxed pairs.
    Boxed(Box<ResolvedState>),
}

impl EncodedPair {
    /// The profile number that it uses.
    fn profile(&self) -> Option<usize> {
        match self {
            Self::Inline(entry) | Self::Expiring(entry, _) => entry.profile(),
            Self::Boxed(_) => None,
        }
    }
}

fn denials_of(pair: &PairRef<'_>) -> Option<RetainedDenials> {
    let (profile, _, times) = pair.parts();
    RetainedDenials::of(profile, times)
}

/// The heap bytes of a boxed pair, without its slot in the map.
pub(super) fn heap_bytes(boxed: &ResolvedState) -> usize {
    let expiries = boxed.expiries.as_ref().map_or(0, Expiries::heap_bytes);
    size_of::<ResolvedState>().saturating_add(boxed.profile.heap_bytes()).saturating_add(expiries)
}

impl Writer {
    /// Writes a pair's new state. A pair that cannot be read is denied from now on.
    pub fn apply(&mut self, key: Key, state: Result<&State, UnreadablePair>) {
        let encoded = match state {
            Err(UnreadablePair) => EncodedPair::Inline(PackedEntry::UNREADABLE),
            Ok(state) => self.encode_pair(ResolvedState::of(state)),
        };
        self.write(key, encoded);
    }

    pub(super) fn encode_pair(&mut self, resolved: ResolvedState) -> EncodedPair {
        let expiry_word = ExpiringEntry::expiry_word(&resolved);
        if resolved.expiries.is_some() && expiry_word.is_none() {
            return EncodedPair::Boxed(Box::new(resolved));
        }
        let number = self.profiles.number_of(&resolved.profile, &self.shared.directory);
        let Some(number) = number else { return EncodedPair::Boxed(Box::new(resolved)) };
        let entry = PackedEntry::inline(number, resolved.last_inbound);
        expiry_word.map_or(EncodedPair::Inline(entry), |word| EncodedPair::Expiring(entry, word))
    }

    fn write(&mut self, key: Key, encoded: EncodedPair) {
        let index = ShardIndex::of(key);
        let is_expiring = matches!(encoded, EncodedPair::Expiring(..));
        let (shard, location) = self.make_room(key, index, is_expiring);
        let previous = location.entry();
        let released = previous.and_then(|entry| shard.profile_of(entry));
        if let Some(number) = encoded.profile() {
            self.profiles.add_use(number);
        }
        match (encoded, location) {
            // One store replaces all there is of the pair.
            (EncodedPair::Inline(entry), Location::Found(at, previous))
                if previous.is_self_contained() =>
            {
                shard.slot(at).set_entry(entry);
            }
            (encoded, location) => {
                self.write_with_seqlock(key, index, encoded, &shard, location);
                if previous.is_none() {
                    self.change_pairs(index, 1, isize::from(key.is_nameless()));
                }
                self.shrink(index);
            }
        }
        self.release_profile(released);
    }

    /// Writes a pair of which something is, or was, outside of its slot. Whatever could fail is done
    /// before the seqlock is taken.
    fn write_with_seqlock(
        &mut self,
        key: Key,
        index: ShardIndex,
        encoded: EncodedPair,
        shard: &Shard,
        location: Location,
    ) {
        let previous = location.entry();
        let was_boxed = previous == Some(PackedEntry::BOXED);
        let previous_expiring = previous.and_then(PackedEntry::expiring_index);
        let known = self.shards.get_mut(index);
        let (entry, expiring) = match &encoded {
            EncodedPair::Inline(entry) => (*entry, None),
            EncodedPair::Boxed(_) => (PackedEntry::BOXED, None),
            EncodedPair::Expiring(..) => {
                let at = previous_expiring.unwrap_or_else(|| known.take_expiring_index());
                let expiring = shard.expiring(at);
                let expiring = expiring.unwrap_or_else(|| unreachable!("expiring pair {at}"));
                (PackedEntry::expiring(at), Some(expiring))
            }
        };
        if let (Some(at), None) = (previous_expiring, expiring) {
            known.free_expiring_index(at);
        }
        let (slot, run) = match location {
            Location::Found(at, _) => (Some(shard.slot(at)), None),
            Location::Missing(at) => {
                let run = shard.insertion_run(at);
                (None, Some(run.unwrap_or_else(|| unreachable!("room was made for a pair"))))
            }
        };
        shard.seqlock_write(|| {
            if was_boxed {
                self.remove_boxed(key);
            }
            match (encoded, expiring) {
                (EncodedPair::Boxed(boxed), _) => self.insert_boxed(key, boxed),
                (EncodedPair::Expiring(entry, word), Some(expiring)) => expiring.store(entry, word),
                _ => {}
            }
            if let Some(slot) = slot {
                slot.set_entry(entry);
            }
            if let Some(run) = run {
                run.insert(key, entry);
            }
        });
    }

    fn insert_boxed(&mut self, key: Key, boxed: Box<ResolvedState>) {
        self.shared.boxed_bytes.fetch_add(heap_bytes(&boxed), Ordering::Relaxed);
        self.shared.boxed.insert(key, boxed);
        self.boxed_pairs = self.boxed_pairs.saturating_add(1);
        self.boxed_peak = self.boxed_peak.max(self.boxed_pairs);
    }

    fn remove_boxed(&mut self, key: Key) {
        if let Some((_, boxed)) = self.shared.boxed.remove(&key) {
            self.shared.boxed_bytes.fetch_sub(heap_bytes(&boxed), Ordering::Relaxed);
            self.boxed_pairs = self.boxed_pairs.saturating_sub(1);
        }
    }

    /// Counts a use of a profile less, now that no reader can find the entry that held it.
    fn release_profile(&mut self, number: Option<usize>) {
        if let Some(number) = number {
            self.profiles.remove_use(number);
        }
        self.profiles.sweep(&self.shared.directory);
        self.shared.profile_bytes.store(self.profiles.bytes(), Ordering::Relaxed);
    }

    /// Shrinks a shard, or the map of boxed pairs, that has much more room than it needs.
    fn shrink(&mut self, index: ShardIndex) {
        let needed = self.boxed_pairs.saturating_mul(2).saturating_add(BOXED_SHRINK_MARGIN);
        if needed < self.boxed_peak {
            self.shared.boxed.shrink_to_fit();
            self.boxed_peak = self.boxed_pairs;
        }
        let known = self.shards.get(index);
        let pairs = known.pairs;
        if known.shard.is_sparse(pairs) || known.is_expiring_sparse() {
            drop(self.resize(index, pairs, 0));
        }
    }

    /// A pair's shard with room for the pair, and for an expiring one if asked; and its location.
    fn make_room(
        &mut self,
        key: Key,
        index: ShardIndex,
        is_expiring: bool,
    ) -> (Arc<Shard>, Location) {
        let known = self.shards.get(index);
        let (shard, pairs) = (Arc::clone(&known.shard), known.pairs);
        let location = shard.find(key);
        let was_expiring = location.entry().and_then(PackedEntry::expiring_index).is_some();
        let needs_expiring = is_expiring && !was_expiring;
        let has_no_slot = matches!(
            location,
            Location::Missing(at) if shard.is_full(pairs) || shard.insertion_run(at).is_none()
        );
        let must_grow = has_no_slot || (needs_expiring && known.is_expiring_full());
        if !must_grow {
            return (shard, location);
        }
        // A new pair is counted even if the shard is not full: one for no pairs has no slots at all.
        let is_new = location.entry().is_none();
        let capacity = pairs.saturating_add(usize::from(is_new));
        // The copy keeps only the expiring pairs that are in use, and what is asked for.
        let shard = self.resize(index, capacity, usize::from(needs_expiring));
        let location = shard.find(key);
        (shard, location)
    }

    /// Replaces a shard by a copy with this capacity. Readers use the old one until the copy is
    /// published.
    fn resize(&mut self, index: ShardIndex, capacity: usize, more_expiring: usize) -> Arc<Shard> {
        let resized = self.shards.get(index).resized(capacity, more_expiring);
        self.replace_shard(index, resized)
    }

    /// Publishes another shard in the place of one, with the same pairs or more.
    pub(super) fn replace_shard(&mut self, index: ShardIndex, resized: ShardWriter) -> Arc<Shard> {
        let shard = Arc::clone(&resized.shard);
        let known = self.shards.get_mut(index);
        let old = std::mem::replace(known, resized);
        self.shared.shard_bytes.fetch_add(shard.bytes(), Ordering::Relaxed);
        self.shared.directory.replace_shard(index, &shard);
        self.shared.shard_bytes.fetch_sub(old.shard.bytes(), Ordering::Relaxed);
        shard
    }

    /// Counts so many more pairs of a shard, and among them so many more nameless ones.
    pub(super) fn change_pairs(&mut self, index: ShardIndex, change: isize, nameless: isize) {
        let add = |pairs: usize, change: isize| {
            let changed = pairs.checked_add_signed(change);
            changed.unwrap_or_else(|| unreachable!("the pairs of shard {index:?} were miscounted"))
        };
        let known = self.shards.get_mut(index);
        known.pairs = add(known.pairs, change);
        let all = &self.shared.pairs;
        // There is one writer.
        all.store(add(all.load(Ordering::Relaxed), change), Ordering::Relaxed);
        let all = &self.shared.nameless;
        all.store(add(all.load(Ordering::Relaxed), nameless), Ordering::Release);
    }

    fn entry(&self, key: Key) -> Option<(PackedEntry, &Shard)> {
        let shard = &self.shards.get(ShardIndex::of(key)).shard;
        Some((shard.find(key).entry()?, shard))
    }

    fn lookup(&self, key: Key) -> Option<Result<PairRef<'_>, UnreadablePair>> {
        let (entry, shard) = self.entry(key)?;
        Some(self.shared.resolve(key, entry, shard, self.profiles.chunks()))
    }

    /// Every pair, with its shard.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (Key, PackedEntry, &Shard)> {
        self.shards.iter().flat_map(|known| {
            let shard: &Shard = &known.shard;
            shard.pairs().map(move |(key, entry)| (key, entry, shard))
        })
    }

    /// Publishes that everything up to `revision` is in the table.
    pub fn set_revision(&mut self, revision: Revision) {
        self.shared.revision.store(revision, Ordering::Release);
        self.shared.applied.send_replace(revision);
    }

    /// Publishes that the table had, at `asked`, all that the ledger had, and that the ledger's clock
    /// then read `ledger_clock`. An older proof than the current one is ignored.
    pub fn set_proof(&mut self, asked: Moment, ledger_clock: Timestamp) {
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

    /// Makes the table valid: it holds a state that the ledger had.
    pub fn validate(&mut self) {
        // Idempotent: a look-up across a change of validity counts as invalid, and this is no change.
        if self.shared.freshness().validity != Validity::Valid {
            self.set_validity(Validity::Valid);
        }
    }

    /// Makes the table invalid, unless its first load is not complete.
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

    /// Empties the table, which must not be valid, for pairs whose keys are made with this secret.
    pub fn reset(&mut self, secret: &KeySecret) {
        debug_assert_ne!(self.shared.freshness().validity, Validity::Valid);
        self.shards = PerShard::from_fn(ShardWriter::empty);
        self.profiles = Profiles::new();
        let shards = self.shards.map(|known| Arc::clone(&known.shard));
        self.shared.directory.replace_all(&shards, self.profiles.chunks());
        self.shared.shard_bytes.store(0, Ordering::Relaxed);
        self.shared.pairs.store(0, Ordering::Relaxed);
        self.shared.nameless.store(0, Ordering::Relaxed);
        self.shared.profile_bytes.store(self.profiles.bytes(), Ordering::Relaxed);
        self.shared.boxed_bytes.store(0, Ordering::Relaxed);
        self.shared.boxed.clear();
        self.shared.boxed.shrink_to_fit();
        (self.boxed_pairs, self.boxed_peak) = (0, 0);
        self.shared.secret.store(Arc::new(secret.clone()));
    }

    /// Publishes which businesses the table holds: questions about others are refused from now on. Those that
    /// are added must be in the table already; those that are left out must not be removed before.
    pub fn set_businesses(&mut self, businesses: Businesses) {
        self.shared.businesses.store(Arc::new(businesses));
    }

    /// The businesses that the table holds.
    #[must_use]
    pub fn businesses(&self) -> Businesses {
        Businesses::clone(&self.shared.businesses.load())
    }

    /// The secret that keys are made with.
    #[must_use]
    pub fn secret(&self) -> KeySecret {
        KeySecret::clone(&self.shared.secret.load())
    }

    /// The denials of a pair in the table; `None` if it has none or cannot be read.
    #[must_use]
    pub fn denials(&self, key: Key) -> Option<RetainedDenials> {
        let pair = self.lookup(key)?.ok()?;
        denials_of(&pair)
    }

    /// Calls `each` for every pair with denials.
    pub fn for_each_denied(&self, mut each: impl FnMut(Key, &Arc<RetainedDenials>)) {
        let mut by_profile: HashMap<usize, Option<Arc<RetainedDenials>>> = HashMap::new();
        let profiles = self.profiles.chunks();
        for (key, entry, shard) in self.pairs() {
            let denials = || {
                let pair = self.shared.resolve(key, entry, shard, profiles).ok()?;
                denials_of(&pair).map(Arc::new)
            };
            let denied = match entry.encoding() {
                Encoding::Inline(number, _) => {
                    by_profile.entry(number).or_insert_with(denials).clone()
                }
                _ => denials(),
            };
            if let Some(denied) = denied {
                each(key, &denied);
            }
        }
    }

    /// Whether the table holds a pair.
    #[must_use]
    pub fn contains(&self, key: Key) -> bool {
        self.entry(key).is_some()
    }

    /// Removes the pairs for which `is_removed` returns true, and returns their keys.
    pub fn remove_where(&mut self, is_removed: impl Fn(Key) -> bool) -> Vec<Key> {
        let keys = self.pairs().map(|(key, ..)| key);
        let keys: Vec<_> = keys.filter(|key| is_removed(*key)).collect();
        for key in &keys {
            self.remove(*key);
        }
        keys
    }

    pub(super) fn remove(&mut self, key: Key) {
        let index = ShardIndex::of(key);
        let shard = Arc::clone(&self.shards.get(index).shard);
        let Location::Found(at, entry) = shard.find(key) else { return };
        let released = shard.profile_of(entry);
        shard.seqlock_write(|| {
            shard.remove(at);
            if entry == PackedEntry::BOXED {
                self.remove_boxed(key);
            }
        });
        if let Some(expiring) = entry.expiring_index() {
            self.shards.get_mut(index).free_expiring_index(expiring);
        }
        self.change_pairs(index, -1, if key.is_nameless() { -1 } else { 0 });
        self.shrink(index);
        self.release_profile(released);
    }

    /// Retains the denials of a previous ledger, whose keys `secret` made, until they are removed one
    /// by one. An empty list forgets those that are retained.
    pub fn set_previous_ledger_denials(
        &mut self,
        secret: KeySecret,
        pairs: Vec<(Key, Arc<RetainedDenials>)>,
    ) {
        let map = DashMap::new();
        let any = !pairs.is_empty();
        for (key, denied) in pairs {
            map.insert(key, denied);
        }
        let previous = any.then(|| Arc::new(PreviousLedgerDenials { secret, pairs: map }));
        self.shared.previous_ledger.store(previous);
    }

    /// Forgets the retained denials of these pairs of the previous ledger, if its keys say whose they are.
    pub fn forget_previous_ledger_denials(&mut self, is_other: impl Fn(Key) -> bool) {
        let previous = self.shared.previous_ledger.load_full();
        if let Some(previous) = previous.filter(|previous| previous.secret.is_tagged()) {
            previous.pairs.retain(|key, _| !is_other(*key));
        }
    }

    /// The retained denials of a pair in the previous ledger, and its key there.
    #[must_use]
    pub fn previous_ledger_denials(
        &self,
        user_id: &str,
        business_id: &str,
    ) -> Option<(Key, Arc<RetainedDenials>)> {
        let previous = self.shared.previous_ledger.load();
        let previous = previous.as_ref()?;
        previous.denials(previous.secret.read(user_id, business_id).ok()?)
    }

    /// Removes the retained denials of the pair with this key in the previous ledger. The caller must
    /// have written them into the pair's entry, or a check in between would find them nowhere.
    pub fn remove_previous_ledger_denials(&mut self, key: Key) {
        if let Some(previous) = self.shared.previous_ledger.load().as_ref() {
            previous.pairs.remove(&key);
        }
    }

    /// How many pairs have retained denials of the previous ledger.
    #[must_use]
    pub fn previous_ledger_denied_pairs(&self) -> usize {
        self.shared.previous_ledger.load().as_ref().map_or(0, |previous| previous.pairs.len())
    }

    /// Whether the table holds exactly this state of a pair.
    #[must_use]
    pub fn holds_state(&self, key: Key, state: Result<&State, UnreadablePair>) -> bool {
        let Some((entry, _)) = self.entry(key) else { return false };
        let Ok(state) = state else { return entry == PackedEntry::UNREADABLE };
        let Some(Ok(pair)) = self.lookup(key) else { return false };
        let (profile, last_inbound, times) = pair.parts();
        let expected = ResolvedState::of(state);
        *profile == expected.profile
            && last_inbound == expected.last_inbound
            && times.equals(expected.expiries.as_ref())
    }

    /// Publishes how many pairs have retained denials.
    pub fn set_retained_pairs(&mut self, pairs: usize) {
        let pairs = u64::try_from(pairs).unwrap_or(u64::MAX);
        self.shared.retained_pairs.store(pairs, Ordering::Relaxed);
    }

    /// Publishes why the table is not live; empty if it is.
    pub fn set_cause(&mut self, cause: impl Into<String>) {
        *self.shared.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause.into();
    }

    /// Publishes how far the ledger's clock is ahead of this machine's, in milliseconds.
    pub fn set_clock_offset(&mut self, millis: i64) {
        self.shared.clock_offset.store(millis, Ordering::Relaxed);
    }

    /// Whether the table is valid.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.shared.freshness().validity == Validity::Valid
    }

    /// Publishes what an operator should correct about the ledger.
    pub fn set_warnings(&mut self, warnings: Arc<[String]>) {
        *self.shared.warnings.lock().unwrap_or_else(PoisonError::into_inner) = warnings;
    }
}
