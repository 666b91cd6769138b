//! The write side of the table.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use dashmap::DashMap;

use super::{
    Before, ELSEWHERE, Entry, INBOUND_BITS, KeyBits, MAX_PROFILES, UNREADABLE, UnreadablePair,
    Validity, Writer, encode,
};
use crate::clock::Moment;
use crate::consent::denied::Denied;
use crate::consent::facts::{Profile, Resolved};
use crate::consent::id::{Key, KeySecret};
use crate::consent::record::Revision;
use crate::consent::state::State;
use crate::consent::time::Timestamp;

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

    /// Empties the table, which must not be valid, for pairs whose keys this secret makes.
    pub fn begin(&mut self, secret: &KeySecret) {
        debug_assert_ne!(self.shared.freshness().validity, Validity::Valid);
        self.shared.entries.clear();
        self.shared.elsewhere.clear();
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
        let entry = *self.shared.entries.get(&key)?;
        self.shared.resolve(key, entry, |profile, _, _| Denied::of(profile)).ok()?
    }

    /// Calls `each` for every pair that the table denies something.
    pub fn each_denied(&self, mut each: impl FnMut(Key, &Arc<Denied>)) {
        let mut known: HashMap<u64, Option<Arc<Denied>>> = HashMap::new();
        for pair in &self.shared.entries {
            let (key, entry) = (*pair.key(), *pair.value());
            let of = || {
                let denied = self.shared.resolve(key, entry, |profile, _, _| Denied::of(profile));
                denied.ok().flatten().map(Arc::new)
            };
            let denied = match entry.profile() {
                ELSEWHERE | UNREADABLE => of(),
                number => known.entry(number).or_insert_with(of).clone(),
            };
            if let Some(denied) = denied {
                each(key, &denied);
            }
        }
    }

    /// Whether the table holds a pair.
    #[must_use]
    pub fn holds(&self, key: Key) -> bool {
        self.shared.entries.contains_key(&key)
    }

    /// Takes out the pairs of which `leaves` says so; gives them.
    pub fn take_out(&mut self, leaves: impl Fn(Key) -> bool) -> Vec<Key> {
        let entries = self.shared.entries.iter();
        let keys: Vec<_> = entries.map(|pair| *pair.key()).filter(|key| leaves(*key)).collect();
        for key in &keys {
            if let dashmap::Entry::Occupied(entry) = self.shared.entries.entry(*key) {
                self.shared.elsewhere.remove(key);
                entry.remove();
            }
        }
        keys
    }

    /// Denies what another ledger denied, whose keys `secret` made, until it is taken back; nothing
    /// more, where there is no such pair.
    pub fn deny_before(&mut self, secret: KeySecret, pairs: Vec<(Key, Arc<Denied>)>) {
        let map = DashMap::with_hasher(KeyBits::default());
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
        let Some(entry) = self.shared.entries.get(&key) else { return false };
        let Ok(state) = state else { return entry.profile() == UNREADABLE };
        let expected = Resolved::of(state);
        let same = self.shared.resolve(key, *entry, |profile, last_inbound, whole| {
            let beside = whole.and_then(|whole| whole.beside.as_ref());
            *profile == expected.profile
                && last_inbound == expected.last_inbound
                && beside == expected.beside.as_ref()
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
