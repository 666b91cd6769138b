//! Pairs whose last change is in the log alone: what keeps an append sequential.
//!
//! Keys are hashes, so that a thousand changes touch a thousand pages of the pairs' tree, each of
//! which would be written anew. An append therefore writes the log and the histories, which are in
//! the order of revisions, and keeps the pairs here. They move to the tree later, in the order of
//! their keys, when many of them share a page; after a crash they are read back from the log,
//! which is not trimmed before.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock};

use redb::{ReadableTable as _, Table};

use super::store::{Tables, damaged, failed, log_of_pair, number};
use crate::{LedgerError, LogHead};
use consentd_core::record::Revision;

/// How many bytes of pairs wait here at most, in about; what is more moves on with each append.
const MAX_BYTES: usize = 24 << 20;

/// What a pair takes here beside its value, in about: its key, and its share of the tree.
const OVERHEAD: usize = 64;

/// How many changes may be in the log alone, in about: so many are read when a ledger is opened
/// after a crash. In unit tests few, so that pairs move all the time.
const MAX_BEHIND: u64 = if cfg!(test) { 6 } else { 256 * 1024 };

/// The least that an append moves where it moves any.
const MIN_MOVED: usize = if cfg!(test) { 2 } else { 256 };

/// The most that one transaction moves that has nothing else to do.
pub(super) const MAX_MOVED: usize = if cfg!(test) { 3 } else { 4_096 };

/// The name in the meta table of the revision up to which all is in the pairs' tree.
pub(super) const SETTLED: &str = "settled";

type RawKey = [u8; 16];

/// Pairs by their keys, as they are after the log's last change; readers see them whole.
pub(super) struct Recent(RwLock<Pairs>);

struct Pairs {
    /// Where the log ends.
    end: (Revision, LogHead),
    /// The values of changed pairs, as in the pairs' tree.
    values: BTreeMap<RawKey, Vec<u8>>,
    bytes: usize,
}

/// Some of the pairs.
pub(super) struct Part {
    /// Where the log ends whose changes they have.
    pub(super) end: (Revision, LogHead),
    pub(super) pairs: Vec<(RawKey, Vec<u8>)>,
}

/// How far the moving has come. Pairs are moved in rounds through all keys.
pub(super) struct Mover {
    /// Up to this revision all is in the tree.
    settled: Revision,
    /// Where the log ended when this round began.
    round: Revision,
    /// The last key of this round so far.
    cursor: Option<RawKey>,
}

/// What a transaction moved, to be forgotten here once it is committed.
#[derive(Default)]
pub(super) struct Step {
    keys: Vec<RawKey>,
    /// How far the moving will have come then.
    next: Option<Mover>,
}

impl Recent {
    /// Reads back what the log alone holds.
    pub(super) fn load(
        tables: &Tables<'_>,
        meta: &Table<'_, &'static str, &'static [u8]>,
        end: (Revision, LogHead),
    ) -> Result<(Self, Mover), LedgerError> {
        let settled = number(meta, SETTLED)?;
        let mut pairs = Pairs { end, values: BTreeMap::new(), bytes: 0 };
        let mut expected = settled;
        for entry in tables.log.range(settled.saturating_add(1)..).map_err(failed)? {
            let (revision, value) = entry.map_err(failed)?;
            expected = expected.saturating_add(1);
            let pair = log_of_pair(revision.value(), value.value());
            let (key, value) = pair.ok_or(damaged("an entry of the log that is needed"))?;
            if revision.value() != expected {
                break;
            }
            pairs.insert(key, value);
        }
        if expected != end.0 {
            return Err(damaged("entries of the log are missing"));
        }
        let mover = Mover { settled, round: end.0, cursor: None };
        Ok((Self(RwLock::new(pairs)), mover))
    }

    fn with<T>(&self, ask: impl FnOnce(&Pairs) -> T) -> T {
        ask(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// These pairs' values, where they are here. To be asked *before* the tree is: what leaves
    /// here is in the tree by then.
    pub(super) fn values(&self, keys: &[RawKey]) -> Vec<Option<Vec<u8>>> {
        self.with(|pairs| keys.iter().map(|key| pairs.values.get(key).cloned()).collect())
    }

    /// The first pairs between two keys.
    pub(super) fn part(&self, range: (Bound<&RawKey>, Bound<&RawKey>), most: usize) -> Part {
        self.with(|all| {
            let range = all.values.range::<RawKey, _>(range);
            let pairs = range.take(most).map(|(key, value)| (*key, value.clone()));
            Part { end: all.end, pairs: pairs.collect() }
        })
    }

    /// Where the log ends.
    pub(super) fn end(&self) -> (Revision, LogHead) {
        self.with(|pairs| pairs.end)
    }

    /// Tells readers of what was committed.
    pub(super) fn publish(
        &self,
        end: (Revision, LogHead),
        changed: impl IntoIterator<Item = (RawKey, Vec<u8>)>,
        step: Step,
        mover: &mut Mover,
    ) {
        let mut pairs = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for key in &step.keys {
            pairs.remove(key);
        }
        for (key, value) in changed {
            pairs.insert(key, value);
        }
        pairs.end = end;
        if let Some(next) = step.next {
            *mover = next;
        }
    }
}

impl Pairs {
    fn insert(&mut self, key: RawKey, value: Vec<u8>) {
        self.bytes += OVERHEAD + value.len();
        if let Some(before) = self.values.insert(key, value) {
            self.bytes -= OVERHEAD + before.len();
        }
    }

    fn remove(&mut self, key: &RawKey) {
        if let Some(before) = self.values.remove(key) {
            self.bytes -= OVERHEAD + before.len();
        }
    }
}

impl Mover {
    /// Up to which revision the log may be trimmed.
    pub(super) fn settled(&self) -> Revision {
        self.settled
    }

    /// Moves what is due beside an append of `appended` changes, of a log that is to be no longer
    /// than `log_entries`.
    pub(super) fn keep_up(
        &self,
        recent: &Recent,
        tables: &mut Tables<'_>,
        meta: &mut Table<'_, &'static str, &'static [u8]>,
        appended: usize,
        log_entries: u64,
    ) -> Result<Step, LedgerError> {
        let (end, bytes, len) = recent.with(|pairs| (pairs.end.0, pairs.bytes, pairs.values.len()));
        let excess = bytes.saturating_sub(MAX_BYTES) * len / bytes.max(1);
        let behind = end.saturating_sub(self.settled);
        // Twice as many as come in, so that a round ends.
        let due = if behind < MAX_BEHIND.min(log_entries / 2) { 0 } else { 2 * appended };
        let most = excess.max(due);
        // Few at a time would share no pages.
        if due == 0 && excess < MIN_MOVED {
            return Ok(Step::default());
        }
        let most = most.max(MIN_MOVED);
        self.move_on(recent, tables, meta, most)
    }

    /// Moves the next pairs to the tree, `most` at most.
    pub(super) fn move_on(
        &self,
        recent: &Recent,
        tables: &mut Tables<'_>,
        meta: &mut Table<'_, &'static str, &'static [u8]>,
        most: usize,
    ) -> Result<Step, LedgerError> {
        let after = self.cursor.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let Part { end, pairs } = recent.part((after, Bound::Unbounded), most);
        for (key, value) in &pairs {
            tables.pairs.insert(key, value.as_slice()).map_err(failed)?;
        }
        let next = if pairs.len() < most {
            // The round is over: what was here when it began is in the tree, or was changed since.
            meta.insert(SETTLED, &self.round.to_be_bytes()[..]).map_err(failed)?;
            Mover { settled: self.round, round: end.0, cursor: None }
        } else {
            let cursor = pairs.last().map(|(key, _)| *key);
            Mover { settled: self.settled, round: self.round, cursor }
        };
        Ok(Step { keys: pairs.into_iter().map(|(key, _)| key).collect(), next: Some(next) })
    }
}
