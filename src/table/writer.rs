//! The write side of the table.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use dashmap::DashMap;

use super::packed_entry::{Encoding, ExpiringEntry, PackedEntry};
use super::profiles::Profiles;
use super::shard::{Location, SHARDS, Shard, shard_of};
use super::shard_writer::ShardWriter;
use super::{PreviousLedgerDenials, UnreadablePair, Validity, Writer, encode};
use consentd_core::denied::Denied;
use consentd_core::facts::{Beside, Profile, Resolved, Times};
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::Revision;
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

/// How many pairs the second map may have had more than twice as many as it has, before it is made
/// smaller.
const MIN_BOXED_PEAK: usize = 1_024;

/// How a pair is kept.
enum EncodedPair {
    /// In its slot.
    Inline(PackedEntry),
    /// With what lapses at one moment.
    Expiring(PackedEntry, u64),
    /// In the second map.
    Boxed(Box<Resolved>),
}

/// The bytes that a pair takes on the heap beside its place in the second map.
pub(super) fn heap_bytes(boxed: &Resolved) -> usize {
    let beside = boxed.beside.as_ref().map_or(0, Beside::heap_bytes);
    size_of::<Resolved>().saturating_add(boxed.profile.heap_bytes()).saturating_add(beside)
}

impl Writer {
    /// Puts a pair's new state into the table; one that cannot be read is denied from now on.
    pub fn apply(&mut self, key: Key, state: Result<&State, UnreadablePair>) {
        match state {
            Err(UnreadablePair) => self.put(key, EncodedPair::Inline(PackedEntry::UNREADABLE)),
            Ok(state) => {
                let resolved = Resolved::of(state);
                let kept = self.kept(resolved);
                self.put(key, kept);
            }
        }
    }

    /// How a state is kept: in as little as it fits into.
    fn kept(&mut self, resolved: Resolved) -> EncodedPair {
        let lapses = ExpiringEntry::word(&resolved);
        if resolved.beside.is_some() && lapses.is_none() {
            return EncodedPair::Boxed(Box::new(resolved));
        }
        let number = self.profiles.number_of(&resolved.profile, &self.shared.lanes);
        let Some(number) = number else { return EncodedPair::Boxed(Box::new(resolved)) };
        let entry = PackedEntry::inline(number, resolved.last_inbound);
        lapses.map_or(EncodedPair::Inline(entry), |word| EncodedPair::Expiring(entry, word))
    }

    fn put(&mut self, key: Key, kept: EncodedPair) {
        let (slots, place) = self.room_for(key, matches!(kept, EncodedPair::Expiring(..)));
        let (at, known) = match place {
            Location::Found(at, known) => (at, Some(known)),
            Location::Missing(at) => (at, None),
        };
        let released = known.and_then(|known| slots.profile_of(known));
        if let EncodedPair::Inline(entry) | EncodedPair::Expiring(entry, _) = &kept
            && let Some(number) = entry.profile()
        {
            self.profiles.count(number);
        }
        if let (EncodedPair::Inline(entry), Some(known)) = (&kept, known)
            && known.is_self_contained()
        {
            slots.replace(at, *entry);
        } else {
            // Of all that changes elsewhere readers learn by the version of the pair's shard.
            slots.seqlock_write(|| {
                let place = self.leave(key, known);
                let entry = self.keep(key, kept, place, &slots);
                match known {
                    Some(_) => slots.replace(at, entry),
                    None => slots.insert(at, key, entry),
                }
            });
            if known.is_none() {
                self.count(shard_of(key), 1);
            }
            self.tidy(shard_of(key));
        }
        self.release(released);
    }

    /// An entry that used this profile uses it no more, and no reader that comes now finds it.
    fn release(&mut self, profile: Option<usize>) {
        if let Some(number) = profile {
            self.profiles.release(number);
        }
        self.profiles.sweep(&self.shared.lanes);
        self.shared.profile_bytes.store(self.profiles.bytes(), Ordering::Relaxed);
    }

    /// Keeps what does not fit into an entry elsewhere, if so at that place.
    fn keep(
        &mut self,
        key: Key,
        kept: EncodedPair,
        place: Option<usize>,
        slots: &Shard,
    ) -> PackedEntry {
        let shard = self.shards.get_mut(shard_of(key));
        let free = |shard: Option<&mut ShardWriter>| {
            if let (Some(place), Some(shard)) = (place, shard) {
                shard.free_place(place);
            }
        };
        match kept {
            EncodedPair::Inline(entry) => {
                free(shard);
                entry
            }
            EncodedPair::Expiring(entry, word) => {
                let place = place.or_else(|| shard?.take_place());
                let known = place.and_then(|place| Some((slots.expiring(place)?, place)));
                if let Some((known, place)) = known
                    && let Some(lapsing) = PackedEntry::expiring(place)
                {
                    known.store(entry, word);
                    return lapsing;
                }
                PackedEntry::UNREADABLE // There is room for it: see `room_for`.
            }
            EncodedPair::Boxed(boxed) => {
                free(shard);
                self.shared.boxed_bytes.fetch_add(heap_bytes(&boxed), Ordering::Relaxed);
                self.shared.boxed.insert(key, boxed);
                let (now, most) = self.boxed;
                let now = now.saturating_add(1);
                self.boxed = (now, most.max(now));
                PackedEntry::BOXED
            }
        }
    }

    /// Lets go of what an entry has elsewhere; gives the place that it had among those that lapse.
    fn leave(&mut self, key: Key, entry: Option<PackedEntry>) -> Option<usize> {
        match entry.map(PackedEntry::encoding) {
            Some(Encoding::Boxed) => {
                if let Some((_, boxed)) = self.shared.boxed.remove(&key) {
                    self.shared.boxed_bytes.fetch_sub(heap_bytes(&boxed), Ordering::Relaxed);
                    self.boxed.0 = self.boxed.0.saturating_sub(1);
                }
                None
            }
            Some(Encoding::Expiring(place)) => Some(place),
            _ => None,
        }
    }

    /// Gives back the room that a shard's pairs, and those of the second map, no longer need.
    fn tidy(&mut self, shard: usize) {
        let (now, most) = self.boxed;
        if now.saturating_mul(2).saturating_add(MIN_BOXED_PEAK) < most {
            self.shared.boxed.shrink_to_fit();
            self.boxed.1 = now;
        }
        let Some(known) = self.shards.get(shard) else { return };
        let pairs = known.pairs;
        if known.slots.is_sparse(pairs) || known.has_many_places() {
            drop(self.resize(shard, pairs, 0));
        }
    }

    /// A pair's shard, with room for it, for what lapses of it too, and its place there.
    fn room_for(&mut self, key: Key, lapses: bool) -> (Arc<Shard>, Location) {
        let shard = shard_of(key);
        let Some(known) = self.shards.get(shard) else {
            return (Arc::new(Shard::with_room(0)), Location::Missing(0)); // There is none such.
        };
        let (slots, pairs) = (Arc::clone(&known.slots), known.pairs);
        let place = slots.find(key);
        let has_place =
            matches!(place, Location::Found(_, entry) if slots.expiring_entry(entry).is_some());
        let wants_place = lapses && !has_place;
        let no_place = wants_place && known.has_no_place();
        let full =
            matches!(place, Location::Missing(at) if slots.is_full(pairs) || !slots.has_gap(at));
        if !full && !no_place {
            return (slots, place);
        }
        // A new pair is counted even if the array is not full: one for no pairs has no slots at all.
        let is_new = matches!(place, Location::Missing(_));
        let room = pairs.saturating_add(usize::from(is_new));
        // A copy has only the places that are used and those that are asked for.
        let slots = self.resize(shard, room, usize::from(wants_place));
        let place = slots.find(key);
        (slots, place)
    }

    /// Gives a shard room for so many pairs, and for so many more that lapse. Readers go on with the
    /// array that it had until the other one is whole.
    fn resize(&mut self, shard: usize, room: usize, more_lapsing: usize) -> Arc<Shard> {
        let Some(known) = self.shards.get_mut(shard) else {
            return Arc::new(Shard::with_room(0)); // There is none such.
        };
        let other = known.copied(room, more_lapsing);
        let slots = Arc::clone(&other.slots);
        let before = std::mem::replace(known, other);
        self.shared.slot_bytes.fetch_add(slots.bytes(), Ordering::Relaxed);
        self.shared.lanes.replace(shard, &slots);
        self.shared.slot_bytes.fetch_sub(before.slots.bytes(), Ordering::Relaxed);
        slots
    }

    fn count(&mut self, shard: usize, change: isize) {
        if let Some(shard) = self.shards.get_mut(shard) {
            shard.pairs = shard.pairs.saturating_add_signed(change);
        }
        let all = &self.shared.pairs;
        let pairs = all.load(Ordering::Relaxed).saturating_add_signed(change);
        all.store(pairs, Ordering::Relaxed); // There is one writer.
    }

    fn entry(&self, key: Key) -> Option<(PackedEntry, &Shard)> {
        let shard = self.shards.get(shard_of(key))?;
        match shard.slots.find(key) {
            Location::Found(_, entry) => Some((entry, &shard.slots)),
            Location::Missing(_) => None,
        }
    }

    /// Reads a pair; none where it is not there.
    fn read<T>(
        &self,
        key: Key,
        read: impl FnOnce(&Profile, Option<Timestamp>, Times<'_>) -> T,
    ) -> Option<Result<T, UnreadablePair>> {
        let (entry, slots) = self.entry(key)?;
        Some(self.shared.resolve(key, entry, slots, self.profiles.chunks(), read))
    }

    /// Every pair, with its shard.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (Key, PackedEntry, &Shard)> {
        self.shards.iter().flat_map(|shard| {
            let slots: &Shard = &shard.slots;
            slots.pairs().map(move |(key, entry)| (key, entry, slots))
        })
    }

    /// Says that everything up to `revision` is in the table.
    pub fn set_revision(&mut self, revision: Revision) {
        self.shared.revision.store(revision, Ordering::Release);
        self.shared.applied.send_replace(revision);
    }

    /// Says that the table had, at `asked`, all that the ledger had; the ledger's clock then said
    /// `ledger_clock`. Never moves back.
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

    /// Says that the table holds a state that the ledger had.
    pub fn validate(&mut self) {
        // Idempotent: a look-up across a change of validity counts as stale, and this is none.
        if self.shared.freshness().validity != Validity::Valid {
            self.set_validity(Validity::Valid);
        }
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

    /// Empties the table, which must not be valid, for pairs whose keys this secret makes.
    pub fn reset(&mut self, secret: &KeySecret) {
        debug_assert_ne!(self.shared.freshness().validity, Validity::Valid);
        let empty = |_| ShardWriter::from(Arc::new(Shard::with_room(0)));
        self.shards = (0..SHARDS).map(empty).collect();
        self.profiles = Profiles::new();
        let shards: Vec<_> = self.shards.iter().map(|shard| Arc::clone(&shard.slots)).collect();
        self.shared.lanes.replace_all(&shards, self.profiles.chunks());
        self.shared.slot_bytes.store(0, Ordering::Relaxed);
        self.shared.pairs.store(0, Ordering::Relaxed);
        self.shared.profile_bytes.store(self.profiles.bytes(), Ordering::Relaxed);
        self.shared.boxed_bytes.store(0, Ordering::Relaxed);
        self.shared.boxed.clear();
        self.shared.boxed.shrink_to_fit();
        self.boxed = (0, 0);
        self.shared.secret.store(Arc::new(secret.clone()));
    }

    /// What the keys are made with.
    #[must_use]
    pub fn secret(&self) -> KeySecret {
        KeySecret::clone(&self.shared.secret.load())
    }

    /// What the table denies a pair; none where it denies nothing, or cannot be read.
    #[must_use]
    pub fn denials(&self, key: Key) -> Option<Denied> {
        self.read(key, |profile, _, _| Denied::of(profile))?.ok()?
    }

    /// Calls `each` for every pair that the table denies something.
    pub fn for_each_denied(&self, mut each: impl FnMut(Key, &Arc<Denied>)) {
        let mut known: HashMap<usize, Option<Arc<Denied>>> = HashMap::new();
        let profiles = self.profiles.chunks();
        for (key, entry, slots) in self.pairs() {
            let of = || {
                let of = |profile: &Profile, _, _: Times<'_>| Denied::of(profile);
                let denied = self.shared.resolve(key, entry, slots, profiles, of);
                denied.ok().flatten().map(Arc::new)
            };
            let denied = match entry.encoding() {
                Encoding::Inline(number, _) => known.entry(number).or_insert_with(of).clone(),
                _ => of(),
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

    /// Takes out the pairs of which `leaves` says so; gives them.
    pub fn remove_where(&mut self, leaves: impl Fn(Key) -> bool) -> Vec<Key> {
        let keys = self.pairs().map(|(key, ..)| key);
        let keys: Vec<_> = keys.filter(|key| leaves(*key)).collect();
        for key in &keys {
            self.remove(*key);
        }
        keys
    }

    pub(super) fn remove(&mut self, key: Key) {
        let shard = shard_of(key);
        let Some(slots) = self.shards.get(shard).map(|shard| Arc::clone(&shard.slots)) else {
            return;
        };
        let Location::Found(at, entry) = slots.find(key) else { return };
        let released = slots.profile_of(entry);
        let place = slots.seqlock_write(|| {
            slots.remove(at);
            self.leave(key, Some(entry))
        });
        if let (Some(place), Some(shard)) = (place, self.shards.get_mut(shard)) {
            shard.free_place(place);
        }
        self.count(shard, -1);
        self.tidy(shard);
        self.release(released);
    }

    /// Denies what another ledger denied, whose keys `secret` made, until it is taken back; nothing
    /// more, where there is no such pair.
    pub fn set_previous_ledger_denials(
        &mut self,
        secret: KeySecret,
        pairs: Vec<(Key, Arc<Denied>)>,
    ) {
        let map = DashMap::new();
        let any = !pairs.is_empty();
        for (key, denied) in pairs {
            map.insert(key, denied);
        }
        self.shared
            .before
            .store(any.then(|| Arc::new(PreviousLedgerDenials { secret, pairs: map })));
    }

    /// What the ledger before this one denied the pair of these ids, and its key there.
    #[must_use]
    pub fn previous_ledger_denials(
        &self,
        user_id: &str,
        business_id: &str,
    ) -> Option<(Key, Arc<Denied>)> {
        let before = self.shared.before.load();
        let before = before.as_ref()?;
        let key = before.secret.read(user_id, business_id).ok()?;
        let denied = before.pairs.get(&key)?;
        Some((key, Arc::clone(&denied)))
    }

    /// Takes back what the ledger before this one denied the pair of this key there: only once it
    /// is in the pair's entry, or a check in between would find it nowhere.
    pub fn remove_previous_ledger_denials(&mut self, key: Key) {
        if let Some(before) = self.shared.before.load().as_ref() {
            before.pairs.remove(&key);
        }
    }

    /// How many pairs the ledger before this one denies something.
    #[must_use]
    pub fn previous_ledger_denied_pairs(&self) -> usize {
        self.shared.before.load().as_ref().map_or(0, |before| before.pairs.len())
    }

    /// Whether the table holds this state of a pair.
    #[must_use]
    pub fn holds_state(&self, key: Key, state: Result<&State, UnreadablePair>) -> bool {
        let Some((entry, _)) = self.entry(key) else { return false };
        let Ok(state) = state else { return entry == PackedEntry::UNREADABLE };
        let expected = Resolved::of(state);
        let same = self.read(key, |profile, last_inbound, times| {
            *profile == expected.profile
                && last_inbound == expected.last_inbound
                && times.are(expected.beside.as_ref())
        });
        same.is_some_and(|same| same.unwrap_or(false))
    }

    /// Says how many pairs are denied by what was remembered alone.
    pub fn set_retained_pairs(&mut self, pairs: usize) {
        let pairs = u64::try_from(pairs).unwrap_or(u64::MAX);
        self.shared.remembered.store(pairs, Ordering::Relaxed);
    }

    /// Says in words what holds the table where it is; empty where it is live.
    pub fn set_cause(&mut self, cause: impl Into<String>) {
        *self.shared.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause.into();
    }

    /// Says what an operator should mend about the ledger.
    pub fn set_warnings(&mut self, warnings: Arc<[String]>) {
        self.shared.warnings.store(Arc::new(warnings));
    }
}
