//! How much of the ledger's file holds something, and how much is free.

use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTableMetadata as _, TableDefinition,
};

use super::erase::DOOMED;
use super::history::HISTORY;
use super::store::{LOG, META, PAIRS, TEXTS, failed};
use super::{Embedded, Place};
use crate::LedgerError;

/// A file with less free room than this is not worth writing anew.
const MIN_FREE: u64 = 16 << 20;

/// How a file is filled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DiskUsage {
    /// The bytes of the file.
    pub file: u64,
    /// Of these, the bytes of what the ledger holds; the rest is free for what is to come.
    pub used: u64,
}

impl DiskUsage {
    /// The bytes that nothing is held in.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.file.saturating_sub(self.used)
    }

    /// Whether the file should be written anew: at least half of it is free, and 16 MiB.
    #[must_use]
    pub fn is_worth_compacting(&self) -> bool {
        self.free() >= MIN_FREE && self.free() >= self.file / 2
    }
}

impl Embedded {
    /// How the file is filled; none where the ledger is in no file. Reads all of it once, beside
    /// whatever else reads and writes.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be read.
    pub async fn space(&self) -> Result<Option<DiskUsage>, LedgerError> {
        let shared = std::sync::Arc::clone(&self.shared);
        self.blocking(move |database, _| {
            let file = shared.place.as_ref().map(Place::size).transpose().map_err(failed)?;
            let used = used(database)?;
            Ok(file.map(|file| DiskUsage { file, used }))
        })
        .await
    }
}

fn used(database: &Database) -> Result<u64, LedgerError> {
    let transaction = database.begin_read().map_err(failed)?;
    Ok(used_by(&transaction, META)?
        + used_by(&transaction, PAIRS)?
        + used_by(&transaction, LOG)?
        + used_by(&transaction, HISTORY)?
        + used_by(&transaction, TEXTS)?
        + used_by(&transaction, DOOMED)?)
}

fn used_by<K: redb::Key + 'static, V: redb::Value + 'static>(
    transaction: &ReadTransaction,
    table: TableDefinition<'static, K, V>,
) -> Result<u64, LedgerError> {
    let stats = transaction.open_table(table).map_err(failed)?.stats().map_err(failed)?;
    Ok(stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes())
}
