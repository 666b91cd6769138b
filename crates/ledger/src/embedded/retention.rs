//! Removing what has outlived its retention.

use redb::{Database, ReadableTable};

use super::history;
use super::store::{META, Tables, damaged, failed, read_end};
use crate::{LedgerError, Retention};
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;
use consentd_os::clock;

/// The most that one transaction removes.
const MAX_SWEEP: usize = 4_096;

/// Removes a bounded part of what has outlived its retention; tells whether there may be more.
pub(super) fn sweep(
    database: &Database,
    settled: Revision,
    retention: Retention,
) -> Result<bool, LedgerError> {
    let transaction = database.begin_write().map_err(failed)?;
    let now = clock::wall();
    let removed = {
        let mut meta = transaction.open_table(META).map_err(failed)?;
        let mut tables = Tables::open(&transaction)?;
        let (revision, _) = read_end(&meta)?;
        let limit = now.minus(retention.history);
        let trim = Trim { revision, settled, most: MAX_SWEEP };
        trim_log(&mut tables, retention, trim, now)?
            + history::expire(&mut tables, &mut meta, limit, MAX_SWEEP)?
    };
    if removed > 0 {
        transaction.commit().map_err(failed)?;
    }
    Ok(removed > 0)
}

/// What of the log may be trimmed.
#[derive(Clone, Copy)]
pub(super) struct Trim {
    /// Where the log ends.
    pub(super) revision: Revision,
    /// Up to which revision it is not needed for the pairs.
    pub(super) settled: Revision,
    /// How many entries at most.
    pub(super) most: usize,
}

/// Removes the log's oldest entries that have outlived their retention; tells how many.
pub(super) fn trim_log(
    tables: &mut Tables<'_>,
    retention: Retention,
    trim: Trim,
    now: Timestamp,
) -> Result<usize, LedgerError> {
    let too_old = now.minus(retention.log).as_millis();
    let mut removed = 0;
    while removed < trim.most.min(MAX_SWEEP) {
        let Some((oldest, time)) = oldest_entry(&tables.log)? else { break };
        let too_many = trim.revision.saturating_sub(oldest) >= retention.log_entries;
        if oldest > trim.settled || (!too_many && time >= too_old) {
            break;
        }
        tables.log.remove(oldest).map_err(failed)?;
        removed += 1;
    }
    Ok(removed)
}

/// The log's first revision, and when it was recorded.
fn oldest_entry(
    log: &impl ReadableTable<u64, &'static [u8]>,
) -> Result<Option<(Revision, i64)>, LedgerError> {
    let Some((oldest, value)) = log.first().map_err(failed)? else { return Ok(None) };
    Ok(Some((oldest.value(), time_of(value.value())?.as_millis())))
}

/// When an entry of the log was recorded.
pub(super) fn time_of(value: &[u8]) -> Result<Timestamp, LedgerError> {
    let time = value.get(40..48).and_then(|bytes| bytes.try_into().ok());
    let time = i64::from_be_bytes(time.ok_or(damaged("a log entry"))?);
    Ok(Timestamp::saturating_from_millis(time))
}

/// How many entries the log has, and when the first was recorded.
pub(super) fn log_extent(
    log: &impl ReadableTable<u64, &'static [u8]>,
) -> Result<(u64, Option<i64>), LedgerError> {
    let first = oldest_entry(log)?.map(|(_, time)| time);
    Ok((log.len().map_err(failed)?, first))
}
