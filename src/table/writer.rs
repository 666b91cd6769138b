//! The write side of the table.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use dashmap::DashMap;

use super::entry::{Content, Entry, Lapsing};
use super::profiles::Profiles;
use super::shard::Shard;
use super::slots::{Place, SHARDS, Slots, shard_of};
use super::{Before, UnreadablePair, Validity, Writer, encode};
use consentd_core::denied::Denied;
use consentd_core::facts::{Beside, Profile, Resolved, Times};
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::Revision;
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

/// How many pairs the second map may have had more than twice as many as it has, before it is made
/// smaller.
const MIN_WHOLE: usize = 1_024;

/// How a pair is kept.
enum Kept {
    /// In its slot.
    Alone(Entry),
    /// With what lapses at one moment.
    Lapsing(Entry, u64),
    /// In the second map.
    Whole(Box<Resolved>),
}

/// The bytes that a pair takes on the heap beside its place in the second map.
pub(super) fn heap_bytes(whole: &Resolved) -> usize {
    let beside = whole.beside.as_ref().map_or(0, Beside::heap_bytes);
    size_of::<Resolved>().saturating_add(whole.profile.heap_bytes()).saturating_add(beside)
}

impl Writer {
    /// Puts a pair's new state into the table; one that cannot be read is denied from now on.
    pub fn apply(&mut self, key: Key, state: Result<&State, UnreadablePair>) {
        match state {
            Err(UnreadablePair) => self.put(key, Kept::Alone(Entry::UNREADABLE)),
            Ok(state) => {
                let resolved = Resolved::of(state);
                let kept = self.kept(resolved);
                self.put(key, kept);
            }
        }
    }

    /// How a state is kept: in as little as it fits into.
    fn kept(&mut self, resolved: Resolved) -> Kept {
        let lapses = Lapsing::word(&resolved);
        if resolved.beside.is_some() && lapses.is_none() {
            return Kept::Whole(Box::new(resolved));
        }
        let number = self.profiles.number_of(&resolved.profile, &self.shared.lanes);
        let Some(number) = number else { return Kept::Whole(Box::new(resolved)) };
        let entry = Entry::shared(number, resolved.last_inbound);
        lapses.map_or(Kept::Alone(entry), |word| Kept::Lapsing(entry, word))
    }

    fn put(&mut self, key: Key, kept: Kept) {
        let (slots, place) = self.room_for(key, matches!(kept, Kept::Lapsing(..)));
        let (at, known) = match place {
            Place::Found(at, known) => (at, Some(known)),
            Place::Missing(at) => (at, None),
        };
        let released = known.and_then(|known| slots.profile_of(known));
        if let Kept::Alone(entry) | Kept::Lapsing(entry, _) = &kept
            && let Some(number) = entry.profile()
        {
            self.profiles.count(number);
        }
        if let (Kept::Alone(entry), Some(known)) = (&kept, known)
            && known.is_alone()
        {
            slots.replace(at, *entry);
        } else {
            // Of all that changes elsewhere readers learn by the version of the pair's shard.
            slots.moving(|| {
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
    fn keep(&mut self, key: Key, kept: Kept, place: Option<usize>, slots: &Slots) -> Entry {
        let shard = self.shards.get_mut(shard_of(key));
        let free = |shard: Option<&mut Shard>| {
            if let (Some(place), Some(shard)) = (place, shard) {
                shard.free_place(place);
            }
        };
        match kept {
            Kept::Alone(entry) => {
                free(shard);
                entry
            }
            Kept::Lapsing(entry, word) => {
                let place = place.or_else(|| shard?.take_place());
                let known = place.and_then(|place| Some((slots.lapsing(place)?, place)));
                if let Some((known, place)) = known
                    && let Some(lapsing) = Entry::lapsing(place)
                {
                    known.store(entry, word);
                    return lapsing;
                }
                Entry::UNREADABLE // There is room for it: see `room_for`.
            }
            Kept::Whole(whole) => {
                free(shard);
                self.shared.whole_bytes.fetch_add(heap_bytes(&whole), Ordering::Relaxed);
                self.shared.whole.insert(key, whole);
                let (now, most) = self.whole;
                let now = now.saturating_add(1);
                self.whole = (now, most.max(now));
                Entry::WHOLE
            }
        }
    }

    /// Lets go of what an entry has elsewhere; gives the place that it had among those that lapse.
    fn leave(&mut self, key: Key, entry: Option<Entry>) -> Option<usize> {
        match entry.map(Entry::content) {
            Some(Content::Whole) => {
                if let Some((_, whole)) = self.shared.whole.remove(&key) {
                    self.shared.whole_bytes.fetch_sub(heap_bytes(&whole), Ordering::Relaxed);
                    self.whole.0 = self.whole.0.saturating_sub(1);
                }
                None
            }
            Some(Content::Lapsing(place)) => Some(place),
            _ => None,
        }
    }

    /// Gives back the room that a shard's pairs, and those of the second map, no longer need.
    fn tidy(&mut self, shard: usize) {
        let (now, most) = self.whole;
        if now.saturating_mul(2).saturating_add(MIN_WHOLE) < most {
            self.shared.whole.shrink_to_fit();
            self.whole.1 = now;
        }
        let Some(known) = self.shards.get(shard) else { return };
        let pairs = known.pairs;
        if known.slots.is_sparse(pairs) || known.has_many_places() {
            drop(self.resize(shard, pairs, 0));
        }
    }

    /// A pair's shard, with room for it, for what lapses of it too, and its place there.
    fn room_for(&mut self, key: Key, lapses: bool) -> (Arc<Slots>, Place) {
        let shard = shard_of(key);
        let Some(known) = self.shards.get(shard) else {
            return (Arc::new(Slots::with_room(0)), Place::Missing(0)); // There is none such.
        };
        let (slots, pairs) = (Arc::clone(&known.slots), known.pairs);
        let place = slots.find(key);
        let has_place =
            matches!(place, Place::Found(_, entry) if slots.lapsing_of(entry).is_some());
        let wants_place = lapses && !has_place;
        let no_place = wants_place && known.has_no_place();
        let full =
            matches!(place, Place::Missing(at) if slots.is_full(pairs) || !slots.has_gap(at));
        if !full && !no_place {
            return (slots, place);
        }
        // A new pair is counted even if the array is not full: one for no pairs has no slots at all.
        let is_new = matches!(place, Place::Missing(_));
        let room = pairs.saturating_add(usize::from(is_new));
        // A copy has only the places that are used and those that are asked for.
        let slots = self.resize(shard, room, usize::from(wants_place));
        let place = slots.find(key);
        (slots, place)
    }

    /// Gives a shard room for so many pairs, and for so many more that lapse. Readers go on with the
    /// array that it had until the other one is whole.
    fn resize(&mut self, shard: usize, room: usize, more_lapsing: usize) -> Arc<Slots> {
        let Some(known) = self.shards.get_mut(shard) else {
            return Arc::new(Slots::with_room(0)); // There is none such.
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

    fn entry(&self, key: Key) -> Option<(Entry, &Slots)> {
        let shard = self.shards.get(shard_of(key))?;
        match shard.slots.find(key) {
            Place::Found(_, entry) => Some((entry, &shard.slots)),
            Place::Missing(_) => None,
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
    pub(super) fn pairs(&self) -> impl Iterator<Item = (Key, Entry, &Slots)> {
        self.shards.iter().flat_map(|shard| {
            let slots: &Slots = &shard.slots;
            slots.pairs().map(move |(key, entry)| (key, entry, slots))
        })
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
    pub fn begin(&mut self, secret: &KeySecret) {
        debug_assert_ne!(self.shared.freshness().validity, Validity::Valid);
        let empty = |_| Shard::from(Arc::new(Slots::with_room(0)));
        self.shards = (0..SHARDS).map(empty).collect();
        self.profiles = Profiles::new();
        let shards: Vec<_> = self.shards.iter().map(|shard| Arc::clone(&shard.slots)).collect();
        self.shared.lanes.replace_all(&shards, self.profiles.chunks());
        self.shared.slot_bytes.store(0, Ordering::Relaxed);
        self.shared.pairs.store(0, Ordering::Relaxed);
        self.shared.profile_bytes.store(self.profiles.bytes(), Ordering::Relaxed);
        self.shared.whole_bytes.store(0, Ordering::Relaxed);
        self.shared.whole.clear();
        self.shared.whole.shrink_to_fit();
        self.whole = (0, 0);
        self.shared.secret.store(Arc::new(secret.clone()));
    }

    /// What the keys are made with.
    #[must_use]
    pub fn secret(&self) -> KeySecret {
        KeySecret::clone(&self.shared.secret.load())
    }

    /// What the table denies a pair; none where it denies nothing, or cannot be read.
    #[must_use]
    pub fn denied(&self, key: Key) -> Option<Denied> {
        self.read(key, |profile, _, _| Denied::of(profile))?.ok()?
    }

    /// Calls `each` for every pair that the table denies something.
    pub fn each_denied(&self, mut each: impl FnMut(Key, &Arc<Denied>)) {
        let mut known: HashMap<usize, Option<Arc<Denied>>> = HashMap::new();
        let profiles = self.profiles.chunks();
        for (key, entry, slots) in self.pairs() {
            let of = || {
                let of = |profile: &Profile, _, _: Times<'_>| Denied::of(profile);
                let denied = self.shared.resolve(key, entry, slots, profiles, of);
                denied.ok().flatten().map(Arc::new)
            };
            let denied = match entry.content() {
                Content::Shared(number, _) => known.entry(number).or_insert_with(of).clone(),
                _ => of(),
            };
            if let Some(denied) = denied {
                each(key, &denied);
            }
        }
    }

    /// Whether the table holds a pair.
    #[must_use]
    pub fn holds(&self, key: Key) -> bool {
        self.entry(key).is_some()
    }

    /// Takes out the pairs of which `leaves` says so; gives them.
    pub fn take_out(&mut self, leaves: impl Fn(Key) -> bool) -> Vec<Key> {
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
        let Place::Found(at, entry) = slots.find(key) else { return };
        let released = slots.profile_of(entry);
        let place = slots.moving(|| {
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
    pub fn deny_before(&mut self, secret: KeySecret, pairs: Vec<(Key, Arc<Denied>)>) {
        let map = DashMap::new();
        let any = !pairs.is_empty();
        for (key, denied) in pairs {
            map.insert(key, denied);
        }
        self.shared.before.store(any.then(|| Arc::new(Before { secret, pairs: map })));
    }

    /// What the ledger before this one denied the pair of these ids, and its key there.
    #[must_use]
    pub fn denied_before(&self, user_id: &str, business_id: &str) -> Option<(Key, Arc<Denied>)> {
        let before = self.shared.before.load();
        let before = before.as_ref()?;
        let key = before.secret.read(user_id, business_id).ok()?;
        let denied = before.pairs.get(&key)?;
        Some((key, Arc::clone(&denied)))
    }

    /// Takes back what the ledger before this one denied the pair of this key there: only once it
    /// is in the pair's entry, or a check in between would find it nowhere.
    pub fn take_before(&mut self, key: Key) {
        if let Some(before) = self.shared.before.load().as_ref() {
            before.pairs.remove(&key);
        }
    }

    /// How many pairs the ledger before this one denies something.
    #[must_use]
    pub fn before(&self) -> usize {
        self.shared.before.load().as_ref().map_or(0, |before| before.pairs.len())
    }

    /// Whether the table holds this state of a pair.
    #[must_use]
    pub fn is(&self, key: Key, state: Result<&State, UnreadablePair>) -> bool {
        let Some((entry, _)) = self.entry(key) else { return false };
        let Ok(state) = state else { return entry == Entry::UNREADABLE };
        let expected = Resolved::of(state);
        let same = self.read(key, |profile, last_inbound, times| {
            *profile == expected.profile
                && last_inbound == expected.last_inbound
                && times.are(expected.beside.as_ref())
        });
        same.is_some_and(|same| same.unwrap_or(false))
    }

    /// Says how many pairs are denied by what was remembered alone.
    pub fn remembers(&mut self, pairs: usize) {
        let pairs = u64::try_from(pairs).unwrap_or(u64::MAX);
        self.shared.remembered.store(pairs, Ordering::Relaxed);
    }

    /// Says in words what holds the table where it is; empty where it is live.
    pub fn explain(&mut self, cause: impl Into<String>) {
        *self.shared.cause.lock().unwrap_or_else(PoisonError::into_inner) = cause.into();
    }

    /// Says what an operator should mend about the ledger.
    pub fn warn(&mut self, warnings: Arc<[String]>) {
        self.shared.warnings.store(Arc::new(warnings));
    }
}
