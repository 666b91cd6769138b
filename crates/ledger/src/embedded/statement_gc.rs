//! Erasing a pair's history, and the garbage collection of statements that no history refers to any
//! more (mark and sweep).

use std::collections::{BTreeMap, BTreeSet};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, Table};

use super::history_row::HistoryRow;
use super::tables::{CONDEMNED, HISTORY, LAST_ERASURE, STATEMENTS, Tables, damaged, storage_error};
use crate::LedgerError;
use crate::history::HistoryItem;
use consentd_core::record::Revision;

/// How many history rows one step scans. In unit tests few, so that appends come in between.
const MAX_ROWS_PER_STEP: usize = if cfg!(test) { 2 } else { 4_096 };

/// How many condemned statements one pass handles.
const MAX_CONDEMNED: usize = 65_536;

/// Removes a pair's history, whose last row is `last`, and condemns its statements. `revision` is
/// that of the erasure.
pub(super) fn remove_history(
    tables: &mut Tables<'_>,
    revision: Revision,
    last: Revision,
) -> Result<(), LedgerError> {
    let (mut next, mut newer) = (last, Revision::MAX);
    // A row must be older than the row that names it, so that damaged rows cannot form a cycle.
    while next != 0 && next < newer {
        let Some(row) = tables.history.remove(next).map_err(storage_error)? else { break };
        let row = row.value().to_vec();
        let row = HistoryRow::decode(&row).ok_or(damaged("a history entry"))?;
        for digest in row.items.iter().filter_map(HistoryItem::statement_digest) {
            tables.condemned.insert(&digest, revision).map_err(storage_error)?;
        }
        (newer, next) = (next, row.previous);
    }
    Ok(())
}

/// Records in the meta table that something was erased.
pub(super) fn record_erasure(
    meta: &mut Table<'_, &'static str, &'static [u8]>,
    revision: Revision,
) -> Result<(), LedgerError> {
    meta.insert(LAST_ERASURE, &revision.to_be_bytes()[..]).map_err(storage_error)?;
    Ok(())
}

/// Removes condemned statements that no history refers to. A pass scans all histories, one bounded
/// step at a time.
#[derive(Default)]
pub(super) struct StatementGc(Option<GcPass>);

/// A pass over all histories. A reference that is added during the pass has a higher revision and is
/// found too, because appends and steps run on the same thread.
struct GcPass {
    condemned: BTreeMap<[u8; 32], Revision>,
    referenced: BTreeSet<[u8; 32]>,
    next: Revision,
}

impl StatementGc {
    /// Runs one step. Returns whether there may be more to do.
    pub(super) fn step(&mut self, database: &Database) -> Result<bool, LedgerError> {
        let transaction = database.begin_read().map_err(storage_error)?;
        let Some(pass) = &mut self.0 else {
            let condemned = transaction.open_table(CONDEMNED).map_err(storage_error)?;
            let rows = condemned.iter().map_err(storage_error)?.take(MAX_CONDEMNED).map(|row| {
                let (digest, revision) = row.map_err(storage_error)?;
                Ok((*digest.value(), revision.value()))
            });
            let condemned = rows.collect::<Result<BTreeMap<_, _>, LedgerError>>()?;
            if !condemned.is_empty() {
                self.0 = Some(GcPass { condemned, referenced: BTreeSet::new(), next: 0 });
            }
            return Ok(self.0.is_some());
        };
        let histories = transaction.open_table(HISTORY).map_err(storage_error)?;
        let mut scanned = 0;
        let rows = histories.range(pass.next..).map_err(storage_error)?;
        for row in rows.take(MAX_ROWS_PER_STEP) {
            let (revision, row) = row.map_err(storage_error)?;
            (scanned, pass.next) = (scanned + 1, revision.value().saturating_add(1));
            let row = HistoryRow::decode(row.value()).ok_or(damaged("a history entry"))?;
            let digests = row.items.iter().filter_map(HistoryItem::statement_digest);
            pass.referenced.extend(digests.filter(|digest| pass.condemned.contains_key(digest)));
        }
        if scanned < MAX_ROWS_PER_STEP
            && let Some(pass) = self.0.take()
        {
            pass.finish(database)?;
        }
        Ok(true)
    }
}

impl GcPass {
    /// Removes the condemned statements that are not referenced. A statement that another erasure
    /// has condemned again since the pass began is left to the next pass.
    fn finish(self, database: &Database) -> Result<(), LedgerError> {
        let transaction = database.begin_write().map_err(storage_error)?;
        {
            let mut condemned = transaction.open_table(CONDEMNED).map_err(storage_error)?;
            let mut statements = transaction.open_table(STATEMENTS).map_err(storage_error)?;
            for (digest, revision) in self.condemned {
                let now = condemned.get(&digest).map_err(storage_error)?.map(|row| row.value());
                if now != Some(revision) {
                    continue;
                }
                condemned.remove(&digest).map_err(storage_error)?;
                if !self.referenced.contains(&digest) {
                    statements.remove(&digest).map_err(storage_error)?;
                }
            }
        }
        transaction.commit().map_err(storage_error)
    }
}
