//! Reading histories from the file, by pair and by revision, and expiring their perishable entries.

use redb::{Database, ReadableDatabase as _, ReadableTable, Table};

use super::history_row::{HistoryRow, RowsEnd, RowsOfPair, rows_of_pair, statement};
use super::memtable::Memtable;
use super::read::pair_row;
use super::tables::{
    EXPIRED_TO, HISTORY, PairRow, STATEMENTS, Tables, damaged, read_number, storage_error,
};
use crate::history::{ChainCache, HistoryBuilder, HistoryItem, MAX_PAGE_BYTES, bytes_of};
use crate::{Cursor, EntryPosition, Events, History, LedgerError, MAX_PAGE, codec};
use consentd_core::id::Key;
use consentd_core::record::{ChainHead, Record, Revision, extend_chain};
use consentd_core::time::Timestamp;

/// Reads a pair's history and verifies its chain.
pub(super) fn history(
    database: &Database,
    memtable: &Memtable,
    key: Key,
) -> Result<History, LedgerError> {
    let pair = pair_row(database, memtable, key)?;
    let transaction = database.begin_read().map_err(storage_error)?;
    let table = transaction.open_table(HISTORY).map_err(storage_error)?;
    let statements = transaction.open_table(STATEMENTS).map_err(storage_error)?;
    let unreadable = || damaged("the pair's record, or this version cannot read it");
    let (last, record) = match pair {
        None => (0, Record::default()),
        Some(row) => {
            let row = PairRow::decode(&row).ok_or_else(unreadable)?;
            let record = codec::decode_record(row.record).map_err(|_| unreadable())?;
            (row.history, record)
        }
    };
    let RowsOfPair { rows, end } = rows_of_pair(&table, last)?;
    let rows: Vec<_> = rows
        .iter()
        .rev()
        .filter_map(|(revision, row)| Some((*revision, HistoryRow::decode(row)?)))
        .collect();
    let mut history = HistoryBuilder::new(record);
    if end != RowsEnd::Complete {
        // The newer entries are still returned.
        let left: usize = rows.iter().map(|(_, row)| row.items.len()).sum();
        history.skip_missing(u64::try_from(left).unwrap_or(u64::MAX));
    }
    for (revision, row) in &rows {
        for item in &row.items {
            history.push(*revision, item, |digest| statement(&statements, digest));
        }
    }
    Ok(history.finish())
}

/// Reads a page of the histories of all pairs, in the order of recording.
pub(super) fn events_after(
    database: &Database,
    Cursor { after, partition: _, pair: _, mut chains }: Cursor,
) -> Result<Events, LedgerError> {
    let transaction = database.begin_read().map_err(storage_error)?;
    let table = transaction.open_table(HISTORY).map_err(storage_error)?;
    let statements = transaction.open_table(STATEMENTS).map_err(storage_error)?;
    let mut events = Events { entries: Vec::new(), next: None, by_revision: true };
    let mut bytes = 0;
    for row in table.range(after.saturating_add(1)..).map_err(storage_error)? {
        let (revision, row) = row.map_err(storage_error)?;
        let revision = revision.value();
        let row = HistoryRow::decode(row.value()).ok_or(damaged("a history entry"))?;
        let (mut number, mut head) = match row.restart {
            Some(restart) => restart,
            None => chain_before(&table, &mut chains, row.previous, revision)?,
        };
        for item in &row.items {
            number = number.saturating_add(1);
            head = extend_chain(&head, &item.digest());
            let Some(entry) = item.encoded_entry() else { continue };
            let entry = codec::decode_history(entry, |digest| statement(&statements, digest));
            let entry = entry.ok_or(damaged("a history entry"))?;
            bytes += bytes_of(&entry);
            events.entries.push((EntryPosition { revision, number, head }, entry));
        }
        chains.put(revision, (number, head));
        if events.entries.len() >= MAX_PAGE || bytes >= MAX_PAGE_BYTES {
            events.next = Some(Cursor { after: revision, partition: 0, pair: None, chains });
            break;
        }
    }
    Ok(events)
}

/// Returns the number of entries and the chain's head of a pair before its row at `revision`, which
/// names `previous` as the row before. It is taken from the cache, or recomputed from the beginning.
fn chain_before(
    table: &impl ReadableTable<u64, &'static [u8]>,
    chains: &mut ChainCache,
    previous: Revision,
    revision: Revision,
) -> Result<(u64, ChainHead), LedgerError> {
    let mut digests = Vec::new();
    let (mut next, mut newer) = (previous, revision);
    let mut known = chains.take(next);
    // A row must be older than the row that names it, so that damaged rows cannot form a cycle.
    while known.is_none() && next != 0 && next < newer {
        let Some(row) = table.get(next).map_err(storage_error)? else { break };
        let row = HistoryRow::decode(row.value()).ok_or(damaged("a history entry"))?;
        digests.extend(row.items.iter().rev().map(HistoryItem::digest));
        (newer, next) = (next, row.previous);
        known = row.restart.or_else(|| chains.take(next));
    }
    let start = known.unwrap_or_default();
    Ok(digests.iter().rev().fold(start, |(number, head), digest| {
        (number.saturating_add(1), extend_chain(&head, digest))
    }))
}

/// Replaces perishable entries that were recorded before `limit` by their digests, which keep the
/// chain verifiable. Checks at most `max_rows` rows; returns how many it checked.
///
/// Every row is checked once, in the order of revisions. So if the clock was set back, an entry
/// expires only after all entries before it.
pub(super) fn expire(
    tables: &mut Tables<'_>,
    meta: &mut Table<'_, &'static str, &'static [u8]>,
    limit: Timestamp,
    max_rows: usize,
) -> Result<usize, LedgerError> {
    let expired_to = read_number(meta, EXPIRED_TO)?;
    let mut last = expired_to;
    let mut checked = 0;
    let mut changed = Vec::new();
    let rows = tables.history.range(expired_to.saturating_add(1)..).map_err(storage_error)?;
    for row in rows.take(max_rows) {
        let (revision, row) = row.map_err(storage_error)?;
        let mut row = HistoryRow::decode(row.value()).ok_or(damaged("a history entry"))?;
        if row.time >= limit.as_millis() {
            break;
        }
        (last, checked) = (revision.value(), checked + 1);
        let mut is_changed = false;
        for item in &mut row.items {
            if matches!(item, HistoryItem::Perishable(_)) {
                *item = HistoryItem::Expired(item.digest());
                is_changed = true;
            }
        }
        if is_changed {
            changed.push((last, row.encode()));
        }
    }
    for (revision, row) in changed {
        tables.history.insert(revision, row.as_slice()).map_err(storage_error)?;
    }
    if last > expired_to {
        meta.insert(EXPIRED_TO, &last.to_be_bytes()[..]).map_err(storage_error)?;
    }
    Ok(checked)
}
