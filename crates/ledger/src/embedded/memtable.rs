//! The memtable: pairs whose last change is in the log, but not yet in the table of pairs (as in an
//! LSM tree). It keeps appends sequential.
//!
//! Keys are hashes, so a thousand changes would rewrite a thousand pages of the table of pairs.
//! Therefore an append writes only the log and the histories, which are ordered by revision, and
//! keeps the pairs here. They are flushed to the table later, in the order of keys, when many of
//! them share a page. After a crash the memtable is replayed from the log, which is not trimmed
//! beyond what has been flushed.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock};

use redb::{Database, ReadableTable as _, Table};

use super::tables::{
    FLUSHED_TO, LogRow, META, PairRow, Tables, damaged, read_end, read_number, storage_error,
};
use crate::{LedgerError, LogHead, codec};
use consentd_core::record::Revision;

/// The approximate size limit of the memtable. Each append flushes the excess.
const MAX_MEMTABLE_BYTES: usize = 24 << 20;

/// The approximate memory of a pair in addition to its row: its key and its share of the tree.
const PAIR_OVERHEAD_BYTES: usize = 64;

/// The approximate limit of unflushed changes, which bounds the replay after a crash. In unit tests
/// it is small, so that pairs are flushed all the time.
const MAX_UNFLUSHED_REVISIONS: u64 = if cfg!(test) { 6 } else { 256 * 1024 };

/// The least that an append flushes if it flushes anything: fewer pairs would share no pages.
const MIN_FLUSH_PAIRS: usize = if cfg!(test) { 2 } else { 256 };

/// The most that a transaction flushes that does nothing else.
const MAX_FLUSH_PAIRS: usize = if cfg!(test) { 3 } else { 4_096 };

type KeyBytes = [u8; 16];

/// The rows of pairs that are not flushed yet, by their keys. Readers see each commit atomically.
pub(super) struct Memtable(RwLock<Contents>);

struct Contents {
    /// The end of the log.
    end: (Revision, LogHead),
    /// Encoded [`PairRow`]s.
    rows: BTreeMap<KeyBytes, Vec<u8>>,
    bytes: usize,
}

/// A range of the memtable.
pub(super) struct MemtableRange {
    /// The end of the log at that moment.
    pub(super) end: (Revision, LogHead),
    pub(super) rows: Vec<(KeyBytes, Vec<u8>)>,
}

/// Flushes the memtable in rounds over all keys.
pub(super) struct Flusher {
    /// All changes up to this revision are in the table of pairs.
    flushed_to: Revision,
    /// The end of the log when the current round began.
    round_start: Revision,
    /// The last key that the current round has flushed.
    cursor: Option<KeyBytes>,
}

/// What a transaction flushed, to be dropped from the memtable once it is committed.
#[derive(Default)]
pub(super) struct FlushStep {
    keys: Vec<KeyBytes>,
    /// The flusher's state after the commit.
    next: Option<Flusher>,
}

impl Memtable {
    /// Replays the log from the last flushed revision.
    pub(super) fn load(database: &Database) -> Result<(Self, Flusher), LedgerError> {
        let transaction = database.begin_write().map_err(storage_error)?;
        let meta = transaction.open_table(META).map_err(storage_error)?;
        let tables = Tables::open(&transaction)?;
        let end = read_end(&meta)?;
        let flushed_to = read_number(&meta, FLUSHED_TO)?;
        let mut contents = Contents { end, rows: BTreeMap::new(), bytes: 0 };
        let mut expected = flushed_to;
        for entry in tables.log.range(flushed_to.saturating_add(1)..).map_err(storage_error)? {
            let (revision, row) = entry.map_err(storage_error)?;
            expected = expected.saturating_add(1);
            let pair = pair_row_of(revision.value(), row.value());
            let (key, row) = pair.ok_or(damaged("an entry of the log that is needed"))?;
            if revision.value() != expected {
                break;
            }
            contents.insert(key, row);
        }
        if expected != end.0 {
            return Err(damaged("entries of the log are missing"));
        }
        let flusher = Flusher { flushed_to, round_start: end.0, cursor: None };
        Ok((Self(RwLock::new(contents)), flusher))
    }

    fn with<T>(&self, query: impl FnOnce(&Contents) -> T) -> T {
        query(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rows of these pairs, as far as they are here.
    pub(super) fn rows(&self, keys: &[KeyBytes]) -> Vec<Option<Vec<u8>>> {
        self.with(|contents| keys.iter().map(|key| contents.rows.get(key).cloned()).collect())
    }

    /// The first `max_rows` rows in a range of keys.
    pub(super) fn range(
        &self,
        range: (Bound<&KeyBytes>, Bound<&KeyBytes>),
        max_rows: usize,
    ) -> MemtableRange {
        self.with(|contents| {
            let range = contents.rows.range::<KeyBytes, _>(range);
            let rows = range.take(max_rows).map(|(key, row)| (*key, row.clone()));
            MemtableRange { end: contents.end, rows: rows.collect() }
        })
    }

    /// The end of the log.
    pub(super) fn end(&self) -> (Revision, LogHead) {
        self.with(|contents| contents.end)
    }

    /// Makes a commit visible to readers: its changes, and what it flushed.
    pub(super) fn publish(
        &self,
        end: (Revision, LogHead),
        changed: impl IntoIterator<Item = (KeyBytes, Vec<u8>)>,
        flush: FlushStep,
        flusher: &mut Flusher,
    ) {
        let mut contents = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for key in &flush.keys {
            contents.remove(key);
        }
        for (key, row) in changed {
            contents.insert(key, row);
        }
        contents.end = end;
        if let Some(next) = flush.next {
            *flusher = next;
        }
    }
}

impl Contents {
    fn insert(&mut self, key: KeyBytes, row: Vec<u8>) {
        self.bytes += PAIR_OVERHEAD_BYTES + row.len();
        if let Some(replaced) = self.rows.insert(key, row) {
            self.bytes -= PAIR_OVERHEAD_BYTES + replaced.len();
        }
    }

    fn remove(&mut self, key: &KeyBytes) {
        if let Some(removed) = self.rows.remove(key) {
            self.bytes -= PAIR_OVERHEAD_BYTES + removed.len();
        }
    }
}

impl Flusher {
    /// The revision up to which the log may be trimmed.
    pub(super) fn flushed_to(&self) -> Revision {
        self.flushed_to
    }

    /// Flushes a batch in a transaction of its own. Returns `false` if everything is flushed.
    pub(super) fn flush(
        &mut self,
        database: &Database,
        memtable: &Memtable,
    ) -> Result<bool, LedgerError> {
        let end = memtable.end();
        if self.flushed_to >= end.0 {
            return Ok(false);
        }
        let transaction = database.begin_write().map_err(storage_error)?;
        let flush = {
            let mut meta = transaction.open_table(META).map_err(storage_error)?;
            let mut tables = Tables::open(&transaction)?;
            self.flush_some(memtable, &mut tables, &mut meta, MAX_FLUSH_PAIRS)?
        };
        transaction.commit().map_err(storage_error)?;
        memtable.publish(end, [], flush, self);
        Ok(true)
    }

    /// Flushes what is due in the transaction of an append of `appended` changes. The log is limited
    /// to `log_entries`, so flushing has to keep up with half of that.
    pub(super) fn flush_with_append(
        &self,
        memtable: &Memtable,
        tables: &mut Tables<'_>,
        meta: &mut Table<'_, &'static str, &'static [u8]>,
        appended: usize,
        log_entries: u64,
    ) -> Result<FlushStep, LedgerError> {
        let (end, bytes, len) =
            memtable.with(|contents| (contents.end.0, contents.bytes, contents.rows.len()));
        let excess = bytes.saturating_sub(MAX_MEMTABLE_BYTES) * len / bytes.max(1);
        let unflushed = end.saturating_sub(self.flushed_to);
        let is_behind = unflushed >= MAX_UNFLUSHED_REVISIONS.min(log_entries / 2);
        // Twice as many as are appended, so that the round ends.
        let due = if is_behind { 2 * appended } else { 0 };
        if due == 0 && excess < MIN_FLUSH_PAIRS {
            return Ok(FlushStep::default());
        }
        let max_pairs = excess.max(due).max(MIN_FLUSH_PAIRS);
        self.flush_some(memtable, tables, meta, max_pairs)
    }

    /// Writes the round's next pairs to the table of pairs.
    fn flush_some(
        &self,
        memtable: &Memtable,
        tables: &mut Tables<'_>,
        meta: &mut Table<'_, &'static str, &'static [u8]>,
        max_pairs: usize,
    ) -> Result<FlushStep, LedgerError> {
        let after = self.cursor.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let MemtableRange { end, rows } = memtable.range((after, Bound::Unbounded), max_pairs);
        for (key, row) in &rows {
            tables.pairs.insert(key, row.as_slice()).map_err(storage_error)?;
        }
        let next = if rows.len() < max_pairs {
            // The round is complete: whatever was here when it began is in the table now, or was
            // changed since and belongs to the next round.
            meta.insert(FLUSHED_TO, &self.round_start.to_be_bytes()[..]).map_err(storage_error)?;
            Flusher { flushed_to: self.round_start, round_start: end.0, cursor: None }
        } else {
            let cursor = rows.last().map(|(key, _)| *key);
            Flusher { flushed_to: self.flushed_to, round_start: self.round_start, cursor }
        };
        Ok(FlushStep { keys: rows.into_iter().map(|(key, _)| key).collect(), next: Some(next) })
    }
}

/// The key and the row that a log row leaves its pair with.
fn pair_row_of(revision: Revision, row: &[u8]) -> Option<(KeyBytes, Vec<u8>)> {
    let LogRow { history, body, .. } = LogRow::decode(row)?;
    let (key, record) = codec::decode_pair(body)?;
    Some((key.to_bytes(), PairRow { revision, history, record: &record }.encode()))
}
