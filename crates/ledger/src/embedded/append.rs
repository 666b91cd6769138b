//! The append transaction: compare-and-set of pairs' rows, log, histories and statements.

use std::collections::BTreeMap;

use redb::Database;

use super::memtable::{Flusher, Memtable};
use super::tables::{LogRow, META, PairRow, Tables, storage_error};
use super::{history_row, read, retention, statement_gc};
use crate::encoded_update::EncodedUpdate;
use crate::{
    Appended, Change, LedgerError, LogEntry, LogHead, Retention, StoredRecord, UnreadableRecord,
    Version,
};
use consentd_core::id::Key;
use consentd_core::record::{Revision, sha256};
use consentd_os::clock;

/// A change, encoded before it queues for the appender.
pub(super) struct EncodedChange {
    key: Key,
    base: Version,
    update: Option<EncodedUpdate>,
}

impl EncodedChange {
    pub(super) fn new(change: Change) -> Self {
        let Change { key, base, update } = change;
        Self { key, base, update: update.map(|update| EncodedUpdate::new(key, update)) }
    }
}

/// What one transaction wrote.
pub(super) struct CommitOutcome {
    pub(super) entries: Vec<LogEntry>,
    /// The outcomes of each group of changes, in order.
    pub(super) outcomes: Vec<Vec<Appended>>,
    /// Whether any change erased a pair.
    pub(super) erased: bool,
}

/// A pair's row during a transaction.
#[derive(Default)]
struct PendingPair {
    row: Option<Vec<u8>>,
    is_changed: bool,
}

/// Writes groups of changes in one transaction (group commit). Returns once it is synced and visible
/// to readers.
pub(super) fn append(
    database: &Database,
    memtable: &Memtable,
    flusher: &mut Flusher,
    groups: Vec<Vec<EncodedChange>>,
    retention: Retention,
) -> Result<CommitOutcome, LedgerError> {
    let transaction = database.begin_write().map_err(storage_error)?;
    let mut commit = CommitOutcome { entries: Vec::new(), outcomes: Vec::new(), erased: false };
    let (mut revision, mut head) = memtable.end();
    let (pairs, flush) = {
        let mut meta = transaction.open_table(META).map_err(storage_error)?;
        let mut tables = Tables::open(&transaction)?;
        let mut pairs = read_pairs(memtable, &tables, &groups)?;
        for changes in groups {
            let mut outcomes = Vec::with_capacity(changes.len());
            for change in changes {
                let pair = pairs.entry(change.key.to_bytes()).or_default();
                if let Some(current) = conflict(pair, &change) {
                    outcomes.push(Appended::Conflict(current));
                    continue;
                }
                // What is only compared is durable already, because only durable rows are read.
                let Some(update) = change.update else {
                    outcomes.push(Appended::Committed(change.base.revision));
                    continue;
                };
                commit.erased |= update.erases;
                let entry = write_update(&mut tables, pair, update, revision, head)?;
                (revision, head) = (entry.revision, entry.head);
                outcomes.push(Appended::Committed(revision));
                commit.entries.push(entry);
            }
            commit.outcomes.push(outcomes);
        }
        let appended = commit.entries.len();
        if appended == 0 {
            return Ok(commit); // Dropping the transaction aborts it: nothing was written.
        }
        meta.insert("revision", &revision.to_be_bytes()[..]).map_err(storage_error)?;
        meta.insert("head", &head[..]).map_err(storage_error)?;
        if commit.erased {
            statement_gc::record_erasure(&mut meta, revision)?;
        }
        let log_entries = retention.log_entries;
        let flush =
            flusher.flush_with_append(memtable, &mut tables, &mut meta, appended, log_entries)?;
        let flushed_to = flusher.flushed_to();
        let trim = retention::Trim { revision, flushed_to, max_entries: appended * 2 };
        retention::trim_log(&mut tables, retention, trim, clock::wall())?;
        (pairs, flush)
    };
    transaction.commit().map_err(storage_error)?;
    let changed = pairs.into_iter().filter(|(_, pair)| pair.is_changed);
    let changed = changed.filter_map(|(key, pair)| Some((key, pair.row?)));
    memtable.publish((revision, head), changed, flush, flusher);
    Ok(commit)
}

/// Reads the current rows of the pairs that are changed.
fn read_pairs(
    memtable: &Memtable,
    tables: &Tables<'_>,
    groups: &[Vec<EncodedChange>],
) -> Result<BTreeMap<[u8; 16], PendingPair>, LedgerError> {
    let keys = groups.iter().flatten().map(|change| change.key.to_bytes());
    let keys: Vec<_> = keys.collect();
    let mut rows = memtable.rows(&keys);
    read::read_missing(&mut rows, &tables.pairs, &keys)?;
    let pending = rows.into_iter().map(|row| PendingPair { row, is_changed: false });
    Ok(keys.into_iter().zip(pending).collect())
}

/// The pair's current record, if it is not the version that the change is based on.
fn conflict(
    pair: &PendingPair,
    change: &EncodedChange,
) -> Option<Result<StoredRecord, UnreadableRecord>> {
    let row = pair.row.as_deref();
    let revision = row.map_or(Some(0), |row| Some(PairRow::decode(row)?.revision));
    let version = revision.map(|revision| Version { revision, head_prefix: 0 });
    (version != Some(change.base)).then(|| PairRow::stored_record(row))
}

/// Writes an update at the next revision after `last`, whose head is `previous`.
fn write_update(
    tables: &mut Tables<'_>,
    pair: &mut PendingPair,
    mut update: EncodedUpdate,
    last: Revision,
    previous: LogHead,
) -> Result<LogEntry, LedgerError> {
    let revision = last + 1;
    let head = next_head(&previous, revision, &update.log);

    let last_row = pair.row.as_deref().and_then(PairRow::decode).map_or(0, |row| row.history);
    let mut history = last_row;
    if update.erases {
        statement_gc::remove_history(tables, revision, last_row)?;
        history = 0;
    }
    if !update.items.is_empty() {
        history_row::insert(tables, revision, last_row, &mut update)?;
        history = revision;
    }

    let time = update.body.record_time.as_millis();
    let row = LogRow { previous, head, time, history, body: &update.log };
    tables.log.insert(revision, row.encode().as_slice()).map_err(storage_error)?;
    pair.row = Some(PairRow { revision, history, record: &update.record }.encode());
    pair.is_changed = true;
    Ok(LogEntry { revision, previous, head, body: Ok(update.body) })
}

/// The log's hash after a change: the first 20 bytes of SHA-256 over the previous head, the revision
/// (8 bytes, big-endian) and the encoded body.
fn next_head(previous: &LogHead, revision: Revision, body: &[u8]) -> LogHead {
    let digest = sha256(&[&previous[..], &revision.to_be_bytes(), body].concat());
    let mut head = LogHead::default();
    head.copy_from_slice(&digest[..20]);
    head
}
