//! Pairs in portable form: read from a file, or written into a new one by a copy.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};
use tempfile::NamedTempFile;

use super::history_row::{HistoryRow, RowsEnd, RowsOfPair, rows_of_pair, statement};
use super::memtable::Memtable;
use super::open::temporary_file;
use super::open_error::{OpenError, open_error};
use super::read::{BucketRows, bucket_rows, pair_rows};
use super::tables::{
    self, FLUSHED_TO, HISTORY, LOG, META, PAIRS, PairRow, STATEMENTS, Tables, damaged,
    storage_error,
};
use super::{Embedded, buckets_for, high_water_mark, retention};
use crate::history::HistoryItem;
use crate::portable_pair::{PortableBucket, PortableEntry, PortablePair};
use crate::stored_secret::StoredSecret;
use crate::{CopyError, Epoch, LedgerError, Position};
use consentd_core::id::Key;
use consentd_core::record::{Revision, sha256};
use consentd_core::time::Timestamp;
use consentd_os::files;

/// The cache of a new file, in bytes.
const CACHE_BYTES: usize = 256 << 20;

impl Embedded {
    /// Reads the pairs of one bucket with their histories.
    pub(crate) async fn portable_bucket(&self, number: u32) -> Result<PortableBucket, LedgerError> {
        let identity = self.identity();
        self.blocking(move |database, memtable| {
            let BucketRows { end, rows } =
                bucket_rows(database, memtable, identity.buckets, number)?;
            let (revision, head) = end;
            let label = Position { epoch: identity.epoch, revision, head };
            Ok(PortableBucket { label, pairs: with_histories(database, rows)? })
        })
        .await
    }

    /// Reads those of these pairs that exist, with their histories.
    pub(crate) async fn portable_pairs(
        &self,
        keys: &[Key],
    ) -> Result<Vec<PortablePair>, LedgerError> {
        let keys: Vec<_> = keys.iter().map(|key| key.to_bytes()).collect();
        self.blocking(move |database, memtable: &Memtable| {
            let rows = pair_rows(database, memtable, &keys)?;
            let existing = keys.iter().zip(rows).filter_map(|(key, row)| Some((*key, row?)));
            with_histories(database, existing)
        })
        .await
    }

    /// Looks up statements by their digests; `None` for one that is missing or was modified.
    pub(crate) async fn statements(
        &self,
        digests: &[[u8; 32]],
    ) -> Result<Vec<Option<Vec<u8>>>, LedgerError> {
        let digests = digests.to_vec();
        self.blocking(move |database, _| {
            let transaction = database.begin_read().map_err(storage_error)?;
            let statements = transaction.open_table(STATEMENTS).map_err(storage_error)?;
            let found = digests.iter().map(|digest| statement(&statements, digest));
            Ok(found.map(|text| text.map(String::into_bytes)).collect())
        })
        .await
    }

    /// The secret that pairs' keys are derived with.
    pub(crate) async fn secret(&self) -> Result<StoredSecret, LedgerError> {
        self.blocking(move |database, _| {
            let transaction = database.begin_read().map_err(storage_error)?;
            let meta = transaction.open_table(META).map_err(storage_error)?;
            tables::read_secret(&meta)
        })
        .await
    }

    /// The log's first revision, or the next one to be written if the log is empty.
    pub(crate) async fn log_start(&self) -> Result<Revision, LedgerError> {
        self.blocking(move |database, memtable: &Memtable| {
            let transaction = database.begin_read().map_err(storage_error)?;
            let log = transaction.open_table(LOG).map_err(storage_error)?;
            let first = log.first().map_err(storage_error)?.map(|(revision, _)| revision.value());
            Ok(first.unwrap_or_else(|| memtable.end().0.saturating_add(1)))
        })
        .await
    }

    /// The number of pairs, the number of log entries, and the time of the first log entry.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn extent(&self) -> Result<(u64, u64, Option<Timestamp>), LedgerError> {
        self.blocking(move |database, memtable: &Memtable| {
            let unflushed = memtable.range((Bound::Unbounded, Bound::Unbounded), usize::MAX).rows;
            let transaction = database.begin_read().map_err(storage_error)?;
            let table = transaction.open_table(PAIRS).map_err(storage_error)?;
            let mut pairs = table.len().map_err(storage_error)?;
            for (key, _) in unflushed {
                pairs += u64::from(table.get(&key).map_err(storage_error)?.is_none());
            }
            let log = transaction.open_table(LOG).map_err(storage_error)?;
            let (entries, oldest) = retention::log_extent(&log)?;
            Ok((pairs, entries, oldest.map(Timestamp::saturating_from_millis)))
        })
        .await
    }
}

/// Reads the histories of these pairs.
fn with_histories(
    database: &Database,
    rows: impl IntoIterator<Item = ([u8; 16], Vec<u8>)>,
) -> Result<Vec<PortablePair>, LedgerError> {
    let transaction = database.begin_read().map_err(storage_error)?;
    let table = transaction.open_table(HISTORY).map_err(storage_error)?;
    let mut pairs = Vec::new();
    for (key, row) in rows {
        let pair = PairRow::decode(&row).ok_or(damaged("a pair's record"))?;
        let RowsOfPair { rows: history_rows, end } = rows_of_pair(&table, pair.history)?;
        let mut history = Vec::new();
        match end {
            RowsEnd::Complete => {}
            RowsEnd::Missing => history.push(None), // Stands for all older entries.
            RowsEnd::Damaged => return Err(damaged("a history entry")),
        }
        for (revision, row) in history_rows.iter().rev() {
            let row = HistoryRow::decode(row).ok_or(damaged("a history entry"))?;
            history.extend(
                row.items.into_iter().map(|item| {
                    Some(PortableEntry { revision: *revision, item: item.into_owned() })
                }),
            );
        }
        let (revision, record) = (pair.revision, pair.record.to_vec());
        pairs.push(PortablePair { key, revision, head_prefix: 0, record, history });
    }
    Ok(pairs)
}

/// A ledger's file that is being created by a copy. It gets its name only when it is finished; an
/// unfinished one is a temporary file, which is removed when this is dropped.
pub struct NewFile {
    path: PathBuf,
    file: NamedTempFile,
    database: Database,
}

impl NewFile {
    /// Creates the temporary file.
    ///
    /// # Errors
    ///
    /// [`CopyError`] if there is anything at that path, or it cannot be written.
    pub fn begin(path: &Path) -> Result<Self, CopyError> {
        Self::check(path).map_err(CopyError::File)?;
        let file = temporary_file(path).map_err(CopyError::File)?;
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(file.path());
        let database = database.map_err(|error| CopyError::File(open_error(path, error)))?;
        tables::prepare(&database, path).map_err(CopyError::File)?;
        Ok(Self { path: path.to_owned(), file, database })
    }

    /// Checks whether a file could be created, without changing anything.
    ///
    /// # Errors
    ///
    /// [`OpenError::Exists`] if there is anything at that path.
    pub fn check(path: &Path) -> Result<(), OpenError> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            _ => Err(OpenError::Exists { path: path.to_owned() }),
        }
    }

    /// Writes pairs, and statements with their digests. They are durable only after
    /// [`finish`](Self::finish).
    pub(crate) fn put(
        &self,
        pairs: &[PortablePair],
        statements: &[([u8; 32], Vec<u8>)],
    ) -> Result<(), LedgerError> {
        let mut transaction = self.database.begin_write().map_err(storage_error)?;
        transaction.set_durability(redb::Durability::None).map_err(storage_error)?;
        {
            let mut tables = Tables::open(&transaction)?;
            for (digest, text) in statements {
                let text = std::str::from_utf8(text).map_err(|_| damaged("a statement"))?;
                if sha256(text.as_bytes()) == *digest {
                    tables.statements.insert(digest, text).map_err(storage_error)?;
                }
            }
            for pair in pairs {
                let history = put_history(&mut tables, pair)?;
                let row = PairRow { revision: pair.revision, history, record: &pair.record };
                tables.pairs.insert(&pair.key, row.encode().as_slice()).map_err(storage_error)?;
            }
        }
        transaction.commit().map_err(storage_error)
    }

    /// Makes it a ledger whose next revision follows `end`, and gives the file its name. Returns the
    /// new epoch and the number of buckets.
    pub(crate) fn finish(
        self,
        end: &Position,
        secret: &StoredSecret,
    ) -> Result<(Epoch, u32), CopyError> {
        let epoch = self.write_meta(end, secret).map_err(CopyError::Writing)?;
        let pairs = tables::count_pairs(&self.database).map_err(CopyError::Writing)?;
        let buckets = buckets_for(pairs);
        let Self { path, file, database } = self;
        drop(database);
        let io = |source| CopyError::File(OpenError::Io { path: path.clone(), source });
        let folder = File::open(files::folder(&path)).map_err(io)?;
        // A high-water mark at this path belongs to a former ledger, whose file was moved away.
        high_water_mark::remove(&path).map_err(CopyError::File)?;
        match file.persist_noclobber(&path) {
            Ok(_) => {}
            Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => {
                return Err(CopyError::File(OpenError::Exists { path }));
            }
            Err(failed) => return Err(io(failed.error)),
        }
        folder.sync_all().map_err(io)?;
        Ok((epoch, buckets))
    }

    fn write_meta(&self, end: &Position, secret: &StoredSecret) -> Result<Epoch, LedgerError> {
        // `prepare` drew an epoch and a secret. The secret is replaced by the other ledger's, because
        // keys are derived with it.
        let transaction = self.database.begin_write().map_err(storage_error)?;
        let epoch = {
            let mut meta = transaction.open_table(META).map_err(storage_error)?;
            let epoch = meta.get("epoch").map_err(storage_error)?;
            let epoch = epoch.ok_or(damaged("epoch"))?.value().try_into();
            let epoch = epoch.map_err(|_| damaged("epoch"))?;
            let (revision, secret) = (end.revision.to_be_bytes(), secret.encode());
            let values: [(&str, &[u8]); 4] = [
                ("secret", &secret),
                ("revision", &revision),
                ("head", &end.head),
                // All pairs are in their table: there is no log to replay.
                (FLUSHED_TO, &revision),
            ];
            for (name, value) in values {
                meta.insert(name, value).map_err(storage_error)?;
            }
            epoch
        };
        transaction.commit().map_err(storage_error)?;
        Ok(epoch)
    }
}

/// Writes a pair's history. Returns the revision of its last row.
fn put_history(tables: &mut Tables<'_>, pair: &PortablePair) -> Result<Revision, LedgerError> {
    // An unreadable record is copied as it is; its history cannot be verified anyway.
    let record = pair.decode().ok().filter(|record| record.erased.is_some());
    let mut restart = record.map(|record| record.history_start());
    let mut last = 0;
    let revision_of = |entry: &Option<PortableEntry>| entry.as_ref().map(|entry| entry.revision);
    for row in pair.history.chunk_by(|a, b| revision_of(a) == revision_of(b)) {
        let Some(revision) = row.first().and_then(revision_of) else { continue };
        let items: Vec<_> = row.iter().flatten().map(|entry| entry.item.clone()).collect();
        // The time only matters for expiring perishable entries, which decode.
        let entries = items.iter().filter_map(HistoryItem::decode_without_statement);
        let time = entries.map(|entry| entry.record_time.as_millis()).max().unwrap_or(0);
        let row = HistoryRow { previous: last, time, restart: restart.take(), items };
        tables.history.insert(revision, row.encode().as_slice()).map_err(storage_error)?;
        last = revision;
    }
    Ok(last)
}
