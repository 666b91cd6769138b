//! How much of the ledger's file is used, and how much is free.

use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTableMetadata as _, TableDefinition,
};

use super::Embedded;
use super::file_identity::FileIdentity;
use super::tables::{CONDEMNED, HISTORY, LOG, META, PAIRS, STATEMENTS, storage_error};
use crate::LedgerError;

/// A file with less free space than this is not worth compacting.
const MIN_FREE_BYTES: u64 = 16 << 20;

/// The size of a ledger's file, and how much of it is used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DiskUsage {
    /// The file's size in bytes.
    pub file_bytes: u64,
    /// The bytes that the ledger's content takes. The rest is free for new content.
    pub used_bytes: u64,
}

impl DiskUsage {
    /// The free bytes inside the file.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.file_bytes.saturating_sub(self.used_bytes)
    }

    /// Whether the file should be compacted: at least half of it is free, and 16 MiB.
    #[must_use]
    pub fn is_worth_compacting(&self) -> bool {
        self.free_bytes() >= MIN_FREE_BYTES && self.free_bytes() >= self.file_bytes / 2
    }
}

impl Embedded {
    /// Measures the file, or returns `None` for a ledger that is not in a file. This reads the whole
    /// database once, concurrently with other readers and the writer.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn disk_usage(&self) -> Result<Option<DiskUsage>, LedgerError> {
        let shared = std::sync::Arc::clone(&self.shared);
        self.blocking(move |database, _| {
            let size = shared.file.as_ref().map(FileIdentity::size);
            let size = size.transpose().map_err(storage_error)?;
            let used_bytes = used_bytes(database)?;
            Ok(size.map(|file_bytes| DiskUsage { file_bytes, used_bytes }))
        })
        .await
    }
}

fn used_bytes(database: &Database) -> Result<u64, LedgerError> {
    let transaction = database.begin_read().map_err(storage_error)?;
    Ok(used_by(&transaction, META)?
        + used_by(&transaction, PAIRS)?
        + used_by(&transaction, LOG)?
        + used_by(&transaction, HISTORY)?
        + used_by(&transaction, STATEMENTS)?
        + used_by(&transaction, CONDEMNED)?)
}

fn used_by<K: redb::Key + 'static, V: redb::Value + 'static>(
    transaction: &ReadTransaction,
    table: TableDefinition<'static, K, V>,
) -> Result<u64, LedgerError> {
    let table = transaction.open_table(table).map_err(storage_error)?;
    let stats = table.stats().map_err(storage_error)?;
    Ok(stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes())
}
