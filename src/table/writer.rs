//! The write side of the table.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use dashmap::DashMap;

use super::entry::{Content, Entry, Lapsing, MAX_PROFILES};
use super::slots::{Place, SHARDS, Slots, shard_of};
use super::{Before, UnreadablePair, Validity, Writer, encode};
use crate::clock::Moment;
use crate::consent::denied::Denied;
use crate::consent::facts::{Beside, Profile, Resolved};
use crate::consent::id::{Key, KeySecret};
use crate::consent::record::Revision;
use crate::consent::state::State;
use crate::consent::time::Timestamp;

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
        let Some(number) = self.number_of(&resolved.profile) else {
            return Kept::Whole(Box::new(resolved));
        };
        let entry = Entry::shared(number, resolved.last_inbound);
        lapses.map_or(Kept::Alone(entry), |word| Kept::Lapsing(entry, word))
    }

    fn put(&mut self, key: Key, kept: Kept) {
        let (slots, place) = self.room_for(key);
        let (at, known) = match place {
            Place::Found(at, known) => (at, Some(known)),
            Place::Missing(at) => (at, None),
        };
        if let (Kept::Alone(entry), Some(known)) = (&kept, known)
            && known.is_alone()
        {
            return slots.replace(at, *entry);
        }
        // Of all that changes elsewhere readers learn by the version of the pair's shard.
        slots.moving(|| {
            let place = self.leave(key, known);
            let entry = self.keep(key, kept, place);
            match known {
                Some(_) => slots.replace(at, entry),
                None => slots.insert(at, key, entry),
            }
        });
        if known.is_none() {
            self.count(shard_of(key), 1);
        }
    }

    /// Keeps what does not fit into an entry elsewhere, if so at that place.
    fn keep(&mut self, key: Key, kept: Kept, place: Option<usize>) -> Entry {
        let whole = match kept {
            Kept::Alone(entry) => {
                self.free.extend(place);
                return entry;
            }
            Kept::Lapsing(entry, word) => {
                let place = place.or_else(|| self.free.pop());
                let place = place.unwrap_or_else(|| self.shared.lapsing.push(Lapsing::default()));
                let known = self.shared.lapsing.get(place);
                if let (Some(known), Some(lapsing)) = (known, Entry::lapsing(place)) {
                    known.store(entry, word);
                    return lapsing;
                }
                return Entry::UNREADABLE; // There are not so many places.
            }
            Kept::Whole(whole) => whole,
        };
        self.free.extend(place);
        self.shared.heap_bytes.fetch_add(heap_bytes(&whole), Ordering::Relaxed);
        self.shared.whole.insert(key, whole);
        Entry::WHOLE
    }

    /// Lets go of what an entry has elsewhere; gives the place that it had among those that lapse.
    fn leave(&self, key: Key, entry: Option<Entry>) -> Option<usize> {
        match entry.map(Entry::content) {
            Some(Content::Whole) => {
                if let Some((_, whole)) = self.shared.whole.remove(&key) {
                    self.shared.heap_bytes.fetch_sub(heap_bytes(&whole), Ordering::Relaxed);
                }
                None
            }
            Some(Content::Lapsing(place)) => Some(place),
            _ => None,
        }
    }

    /// A pair's shard, with room for it, and its place there.
    fn room_for(&mut self, key: Key) -> (Arc<Slots>, Place) {
        let shard = shard_of(key);
        let Some((slots, pairs)) = self.shards.get(shard) else {
            return (Arc::new(Slots::with_room(0)), Place::Missing(0)); // There is none such.
        };
        let (slots, pairs) = (Arc::clone(slots), *pairs);
        let place = slots.find(key);
        match place {
            Place::Missing(at) if slots.is_full(pairs) || !slots.has_gap(at) => {}
            _ => return (slots, place),
        }
        let slots = self.resize(shard, pairs.saturating_add(1));
        let place = slots.find(key);
        (slots, place)
    }

    /// Gives a shard room for so many pairs. Readers go on with the array that it had until the
    /// other one is whole.
    fn resize(&mut self, shard: usize, room: usize) -> Arc<Slots> {
        let Some((slots, _)) = self.shards.get_mut(shard) else {
            return Arc::new(Slots::with_room(0)); // There is none such.
        };
        let other = Arc::new(Slots::of(room, slots.pairs()));
        let before = std::mem::replace(slots, Arc::clone(&other));
        self.shared.slot_bytes.fetch_add(other.bytes(), Ordering::Relaxed);
        self.shared.lanes.replace(shard, &other);
        self.shared.slot_bytes.fetch_sub(before.bytes(), Ordering::Relaxed);
        other
    }

    /// Gives all shards room for what comes, so that none has to grow where keys spread.
    pub fn reserve(&mut self, pairs: usize) {
        // Shards differ by the root of their size: four of these, and hardly any has more.
        let even = pairs / SHARDS;
        let room = even.saturating_add(even.isqrt().saturating_mul(4));
        for shard in 0..SHARDS {
            let small = self.shards.get(shard).is_some_and(|(slots, _)| slots.is_full(room));
            if small {
                drop(self.resize(shard, room));
            }
        }
    }

    fn count(&mut self, shard: usize, change: isize) {
        if let Some((_, pairs)) = self.shards.get_mut(shard) {
            *pairs = pairs.saturating_add_signed(change);
        }
        let all = &self.shared.pairs;
        let pairs = all.load(Ordering::Relaxed).saturating_add_signed(change);
        all.store(pairs, Ordering::Relaxed); // There is one writer.
    }

    fn entry(&self, key: Key) -> Option<Entry> {
        let (slots, _) = self.shards.get(shard_of(key))?;
        match slots.find(key) {
            Place::Found(_, entry) => Some(entry),
            Place::Missing(_) => None,
        }
    }

    pub(super) fn number_of(&mut self, profile: &Profile) -> Option<u64> {
        if let Some(number) = self.numbers.get(profile) {
            return Some(*number);
        }
        if self.numbers.len() >= MAX_PROFILES {
            return None;
        }
        let profile = Arc::new(profile.clone());
        let bytes = size_of::<Profile>().saturating_add(profile.heap_bytes());
        // It lies here once, and is pointed to from both sides.
        let bytes = bytes.saturating_add(64);
        self.shared.heap_bytes.fetch_add(bytes, Ordering::Relaxed);
        let number = self.shared.profiles.push(Arc::clone(&profile));
        let number = u64::try_from(number).ok()?;
        self.numbers.insert(profile, number);
        Some(number)
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

    /// Empties the table, which must not be valid, for pairs whose keys this secret makes.
    pub fn begin(&mut self, secret: &KeySecret) {
        debug_assert_ne!(self.shared.freshness().validity, Validity::Valid);
        let empty = || (Arc::new(Slots::with_room(0)), 0);
        self.shards = (0..SHARDS).map(|_| empty()).collect();
        let shards: Vec<_> = self.shards.iter().map(|(slots, _)| Arc::clone(slots)).collect();
        self.shared.lanes.replace_all(&shards);
        self.shared.slot_bytes.store(0, Ordering::Relaxed);
        self.shared.pairs.store(0, Ordering::Relaxed);
        for whole in &self.shared.whole {
            self.shared.heap_bytes.fetch_sub(heap_bytes(&whole), Ordering::Relaxed);
        }
        self.shared.whole.clear();
        self.free = (0..self.shared.lapsing.count()).collect();
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
        let entry = self.entry(key)?;
        self.shared.resolve(key, entry, |profile, _, _| Denied::of(profile)).ok()?
    }

    /// Calls `each` for every pair that the table denies something.
    pub fn each_denied(&self, mut each: impl FnMut(Key, &Arc<Denied>)) {
        let mut known: HashMap<usize, Option<Arc<Denied>>> = HashMap::new();
        for (key, entry) in self.shards.iter().flat_map(|(slots, _)| slots.pairs()) {
            let of = || {
                let denied = self.shared.resolve(key, entry, |profile, _, _| Denied::of(profile));
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
        let pairs = self.shards.iter().flat_map(|(slots, _)| slots.pairs());
        let keys: Vec<_> = pairs.map(|(key, _)| key).filter(|key| leaves(*key)).collect();
        for key in &keys {
            self.remove(*key);
        }
        keys
    }

    pub(super) fn remove(&mut self, key: Key) {
        let shard = shard_of(key);
        let Some((slots, pairs)) = self.shards.get(shard) else { return };
        let (slots, pairs) = (Arc::clone(slots), *pairs);
        let Place::Found(at, entry) = slots.find(key) else { return };
        let place = slots.moving(|| {
            slots.remove(at);
            self.leave(key, Some(entry))
        });
        self.free.extend(place);
        self.count(shard, -1);
        if slots.is_sparse(pairs) {
            drop(self.resize(shard, pairs));
        }
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
        let Some(entry) = self.entry(key) else { return false };
        let Ok(state) = state else { return entry == Entry::UNREADABLE };
        let expected = Resolved::of(state);
        let same = self.shared.resolve(key, entry, |profile, last_inbound, times| {
            *profile == expected.profile
                && last_inbound == expected.last_inbound
                && times.are(expected.beside.as_ref())
        });
        same.unwrap_or(false)
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
