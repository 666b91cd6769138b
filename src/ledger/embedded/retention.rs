//! Removing what has outlived its retention.

use redb::{Database, ReadableTable};

use super::store::{ENTRY, GONE, META, Tables, damaged, failed, read_end};
use crate::clock;
use crate::consent::record::{Revision, sha256};
use crate::consent::time::Timestamp;
use crate::ledger::{LedgerError, Retention};

/// The most that one transaction removes.
const MAX_SWEEP: usize = 4_096;

/// Removes a bounded part of what has outlived its retention; tells whether there may be more.
pub(super) fn sweep(database: &Database, retention: Retention) -> Result<bool, LedgerError> {
    let transaction = database.begin_write().map_err(failed)?;
    let now = clock::wall();
    let removed = {
        let (revision, _) = read_end(&transaction.open_table(META).map_err(failed)?)?;
        let mut tables = Tables::open(&transaction)?;
        trim_log(&mut tables, retention, revision, now, MAX_SWEEP)?
            + expire_history(&mut tables, now.minus(retention.history))?
    };
    if removed > 0 {
        transaction.commit().map_err(failed)?;
    }
    Ok(removed > 0)
}

pub(super) fn trim_log(
    tables: &mut Tables<'_>,
    retention: Retention,
    revision: Revision,
    now: Timestamp,
    most: usize,
) -> Result<usize, LedgerError> {
    let too_old = now.minus(retention.log).as_millis();
    let mut removed = 0;
    while removed < most.min(MAX_SWEEP) {
        let Some((oldest, time)) = oldest_entry(&tables.log)? else { break };
        let too_many = revision.saturating_sub(oldest) >= retention.log_entries;
        if !too_many && time >= too_old {
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
    let time = value.value().get(40..48).and_then(|bytes| bytes.try_into().ok());
    Ok(Some((oldest.value(), i64::from_be_bytes(time.ok_or(damaged("a log entry"))?))))
}

/// Replaces entries recorded before `limit` by their digests, which keep the chain whole.
fn expire_history(tables: &mut Tables<'_>, limit: Timestamp) -> Result<usize, LedgerError> {
    let mut removed = 0;
    while removed < MAX_SWEEP {
        let first = tables.perishable.first().map_err(failed)?.map(|(first, _)| *first.value());
        let Some(first) = first else { break };
        let (time, place) = first.split_first_chunk().ok_or(damaged("perishable"))?;
        if i64::from_be_bytes(*time) >= limit.as_millis() {
            break;
        }
        let place: [u8; 24] = place.try_into().map_err(|_| damaged("perishable"))?;
        let value = tables.history.get(&place).map_err(failed)?.map(|v| v.value().to_vec());
        if let Some(value) = value
            && let Some((&ENTRY, entry)) = value.get(8..).and_then(<[u8]>::split_first)
        {
            let mut gone = value.get(..8).unwrap_or_default().to_vec();
            gone.push(GONE);
            gone.extend_from_slice(&sha256(entry));
            tables.history.insert(&place, gone.as_slice()).map_err(failed)?;
        }
        tables.perishable.remove(&first).map_err(failed)?;
        removed += 1;
    }
    Ok(removed)
}
