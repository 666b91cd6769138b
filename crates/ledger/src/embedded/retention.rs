//! Removing log entries and perishable history entries that have outlived their retention.

use redb::{Database, ReadableTable};

use super::history;
use super::tables::{LogRow, META, Tables, damaged, read_end, storage_error};
use crate::{LedgerError, Retention};
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;
use consentd_os::clock;

/// The most entries that one transaction removes from the log, and rows that it checks for expiry.
const MAX_ENTRIES_PER_SWEEP: usize = 4_096;

/// Removes a bounded number of expired entries in one transaction. Returns whether there may be
/// more.
pub(super) fn sweep(
    database: &Database,
    flushed_to: Revision,
    retention: Retention,
) -> Result<bool, LedgerError> {
    let transaction = database.begin_write().map_err(storage_error)?;
    let now = clock::wall();
    let removed = {
        let mut meta = transaction.open_table(META).map_err(storage_error)?;
        let mut tables = Tables::open(&transaction)?;
        let (revision, _) = read_end(&meta)?;
        let limit = now.minus(retention.history);
        let trim = Trim { revision, flushed_to, max_entries: MAX_ENTRIES_PER_SWEEP };
        trim_log(&mut tables, retention, trim, now)?
            + history::expire(&mut tables, &mut meta, limit, MAX_ENTRIES_PER_SWEEP)?
    };
    if removed > 0 {
        transaction.commit().map_err(storage_error)?;
    }
    Ok(removed > 0)
}

/// The bounds of trimming the log.
#[derive(Clone, Copy)]
pub(super) struct Trim {
    /// The end of the log.
    pub(super) revision: Revision,
    /// The revision up to which the log is not needed to rebuild the memtable.
    pub(super) flushed_to: Revision,
    /// The most entries to remove.
    pub(super) max_entries: usize,
}

/// Removes the log's oldest entries that have outlived their retention. Returns how many.
pub(super) fn trim_log(
    tables: &mut Tables<'_>,
    retention: Retention,
    trim: Trim,
    now: Timestamp,
) -> Result<usize, LedgerError> {
    let limit = now.minus(retention.log).as_millis();
    let mut removed = 0;
    while removed < trim.max_entries.min(MAX_ENTRIES_PER_SWEEP) {
        let Some((oldest, time)) = oldest_entry(&tables.log)? else { break };
        let is_excess = trim.revision.saturating_sub(oldest) >= retention.log_entries;
        if oldest > trim.flushed_to || (!is_excess && time >= limit) {
            break;
        }
        tables.log.remove(oldest).map_err(storage_error)?;
        removed += 1;
    }
    Ok(removed)
}

/// The log's first revision, and its time of recording.
fn oldest_entry(
    log: &impl ReadableTable<u64, &'static [u8]>,
) -> Result<Option<(Revision, i64)>, LedgerError> {
    let Some((oldest, row)) = log.first().map_err(storage_error)? else { return Ok(None) };
    Ok(Some((oldest.value(), time_of(row.value())?.as_millis())))
}

/// The time of recording of a log row.
pub(super) fn time_of(row: &[u8]) -> Result<Timestamp, LedgerError> {
    let time = LogRow::decode(row).ok_or(damaged("a log entry"))?.time;
    Ok(Timestamp::saturating_from_millis(time))
}

/// The number of entries in the log, and when the first was recorded (milliseconds since 1970).
pub(super) fn log_extent(
    log: &impl ReadableTable<u64, &'static [u8]>,
) -> Result<(u64, Option<i64>), LedgerError> {
    let first = oldest_entry(log)?.map(|(_, time)| time);
    Ok((log.len().map_err(storage_error)?, first))
}
