//! The write side of the alternative table.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use consentd::table::UnreadablePair;
use consentd_core::id::Key;
use consentd_core::standing::ResolvedState;
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

use super::Shared;
use super::packed_entry::{ExpiringEntry, PackedEntry};
use super::profiles::Profiles;
use super::run::{Location, Place, Run, Slot, spliced, width};

/// The write side.
pub(crate) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) profiles: Profiles,
}

/// How a pair is kept, as in `src/table/writer.rs`.
enum Encoded {
    Inline(PackedEntry),
    Expiring(PackedEntry, u64),
    Boxed(Box<ResolvedState>),
}

/// What happens to a pair's run. A copy is made before the write lock is taken.
enum Change {
    Overwrite(usize),
    Replace(Run),
    Add,
}

/// What a run held of a pair before a change.
#[derive(Default)]
struct Known {
    profile: Option<usize>,
    whole: bool,
}

impl Known {
    fn of(slots: &[Slot]) -> Self {
        let Some(entry) = slots.first().and_then(|[.., word]| PackedEntry::from_word(*word)) else {
            return Self::default();
        };
        let shared = match slots {
            [[.., word], [_, shared, _], ..] if width(*word) == 2 => {
                PackedEntry::from_word(*shared)
            }
            _ => Some(entry),
        };
        Self { profile: shared.and_then(PackedEntry::profile), whole: entry == PackedEntry::BOXED }
    }
}

impl Writer {
    /// Puts a pair's new state into the table; one that cannot be read is denied from now on.
    pub(crate) fn apply(&mut self, key: Key, state: Result<&State, UnreadablePair>) {
        let kept = match state {
            Err(UnreadablePair) => Encoded::Inline(PackedEntry::UNREADABLE),
            Ok(state) => self.kept(ResolvedState::of(state)),
        };
        self.put(key, kept);
    }

    fn kept(&mut self, resolved: ResolvedState) -> Encoded {
        let lapses = ExpiringEntry::expiry_word(&resolved);
        if resolved.expiries.is_some() && lapses.is_none() {
            return Encoded::Boxed(Box::new(resolved));
        }
        let number = self.profiles.number_of(&resolved.profile, &self.shared.directory);
        let Some(number) = number else { return Encoded::Boxed(Box::new(resolved)) };
        let entry = PackedEntry::inline(number, resolved.last_inbound);
        lapses.map_or(Encoded::Inline(entry), |word| Encoded::Expiring(entry, word))
    }

    fn put(&mut self, key: Key, kept: Encoded) {
        if let Encoded::Inline(entry) | Encoded::Expiring(entry, _) = &kept
            && let Some(number) = entry.profile()
        {
            self.profiles.add_use(number);
        }
        let (high, low) = key.halves();
        let (first, second, whole) = match kept {
            Encoded::Inline(entry) => (entry, None, None),
            Encoded::Expiring(entry, word) => {
                let marker = PackedEntry::expiring(0);
                (marker, Some([high, entry.word(), word]), None)
            }
            Encoded::Boxed(whole) => (PackedEntry::BOXED, None, Some(whole)),
        };
        let slots = [[high, low, first.word()], second.unwrap_or_default()];
        let slots = &slots[..width(first.word())];
        let location = Location::of(key);
        let (change, known) = self.planned(&location, slots);
        let is_new = known.is_none();
        let known = known.unwrap_or_default();
        let move_whole = |shared: &Shared| {
            if let Some(whole) = whole {
                shared.whole.insert(key, whole);
            } else if known.whole {
                shared.whole.remove(&key);
            }
        };
        self.commit(&location, slots, change, move_whole);
        if is_new {
            self.shared.pairs.fetch_add(1, Ordering::Relaxed);
        }
        self.release(known.profile);
    }

    /// What has to happen to a pair's run, and what that holds of the pair. Nothing changes after
    /// the read lock is released: there is one writer.
    fn planned(&self, location: &Location, slots: &[Slot]) -> (Change, Option<Known>) {
        let Some(run) = self.shared.runs.get(&location.prefix()) else {
            return (Change::Add, None);
        };
        match location.find(&run) {
            Place::Missing(at) => (Change::Replace(spliced(&run, at, 0, slots)), None),
            Place::Found(at) => {
                let (known, taken) = (&run[at..], width(run[at][2]));
                let change = if taken == slots.len() {
                    Change::Overwrite(at)
                } else {
                    Change::Replace(spliced(&run, at, taken, slots))
                };
                (change, Some(Known::of(known)))
            }
        }
    }

    fn commit(
        &self,
        location: &Location,
        slots: &[Slot],
        change: Change,
        move_whole: impl FnOnce(&Shared),
    ) {
        let shared = &self.shared;
        let locked = || shared.runs.get_mut(&location.prefix()).expect("the run was just read");
        match change {
            Change::Add => {
                // No reader finds the pair before its run is there.
                move_whole(shared);
                shared.runs.insert(location.prefix(), slots.into());
            }
            Change::Overwrite(at) => {
                let mut run = locked();
                move_whole(shared);
                run[at..at + slots.len()].copy_from_slice(slots);
            }
            Change::Replace(new) => {
                let mut run = locked();
                move_whole(shared);
                let old = std::mem::replace(&mut *run, new);
                // The lock is released before the memory is.
                drop(run);
                drop(old);
            }
        }
    }

    /// Takes a pair out, if it is there.
    pub(crate) fn remove(&mut self, key: Key) {
        let location = Location::of(key);
        let Some(run) = self.shared.runs.get(&location.prefix()) else { return };
        let Place::Found(at) = location.find(&run) else { return };
        let known = Known::of(&run[at..]);
        let rest = spliced(&run, at, width(run[at][2]), &[]);
        drop(run);
        let remove_whole = |shared: &Shared| {
            if known.whole {
                shared.whole.remove(&key);
            }
        };
        if rest.is_empty() {
            self.shared.runs.remove(&location.prefix());
            remove_whole(&self.shared);
        } else {
            self.commit(&location, &[], Change::Replace(rest), remove_whole);
        }
        self.shared.pairs.fetch_sub(1, Ordering::Relaxed);
        self.release(known.profile);
    }

    /// An entry that used this profile uses it no more, and no reader that comes now finds it.
    fn release(&mut self, profile: Option<usize>) {
        if let Some(number) = profile {
            self.profiles.remove_use(number);
        }
        self.profiles.sweep(&self.shared.directory);
    }

    /// Empties the table, which must not be valid.
    pub(crate) fn reset(&mut self) {
        self.profiles = Profiles::new();
        self.shared.directory.clear();
        self.shared.runs.clear();
        self.shared.whole.clear();
        self.shared.pairs.store(0, Ordering::Relaxed);
    }

    /// Says that the table holds a state that the ledger had.
    pub(crate) fn validate(&mut self) {
        self.shared.freshness.validate();
    }

    /// Says that the table had, at `asked`, all that the ledger had.
    pub(crate) fn proven(&mut self, asked: Moment, ledger_clock: Timestamp) {
        self.shared.freshness.proven(asked, ledger_clock);
    }
}
