//! The format of the file: its tables, the encoding of their rows, and the transaction that creates
//! or checks them.

use std::path::Path;
use std::sync::Arc;

use redb::{
    Database, ReadableDatabase as _, ReadableTable, ReadableTableMetadata as _, Table,
    TableDefinition, WriteTransaction,
};

use super::open_error::{OpenError, damaged_file};
use crate::stored_secret::StoredSecret;
use crate::{Epoch, LedgerError, LogHead, StoredRecord, UnreadableRecord, Version, codec};
use consentd_core::id::{KEY_VERSION, OLDEST_KEY_VERSION};
use consentd_core::record::Revision;

/// The version of the file's format: its tables and their rows. Records and entries are versioned
/// separately.
///
/// Format 3 has the version of the keys beside their secret; in format 2 that version is 1.
pub(super) const FILE_FORMAT: u32 = 3;

/// The oldest format that is read. Files of this format are left as they are.
const OLDEST_FORMAT: u32 = 2;

/// Names to values: `epoch`, `secret`, `format`, `revision`, `head`, and the constants below.
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// A pair's key to its [`PairRow`].
pub(super) const PAIRS: TableDefinition<&[u8; 16], &[u8]> = TableDefinition::new("pairs");

/// A revision to its [`LogRow`].
pub(super) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");

/// A revision to the [`HistoryRow`](super::history_row::HistoryRow) that it added. Rows are keyed by
/// revision, so that writing them is appending.
pub(super) const HISTORY: TableDefinition<u64, &[u8]> = TableDefinition::new("history");

/// A statement's SHA-256 to the statement.
pub(super) const STATEMENTS: TableDefinition<&[u8; 32], &str> = TableDefinition::new("texts");

/// The digest of a statement that an erased history referred to, to the revision of the erasure.
/// The statement is kept if any other history refers to it.
pub(super) const CONDEMNED: TableDefinition<&[u8; 32], u64> = TableDefinition::new("doomed");

/// Meta: all changes up to this revision are in the table of pairs.
pub(super) const FLUSHED_TO: &str = "settled";

/// Meta: history rows up to this revision have been checked for expired entries.
pub(super) const EXPIRED_TO: &str = "swept";

/// Meta: the revision of the last erasure. Erased data may remain in free pages of the file until it
/// is [rewritten](super::compact).
pub(super) const LAST_ERASURE: &str = "erased";

/// The ledger's constants in the meta table.
pub(super) struct Meta {
    pub(super) epoch: Epoch,
    pub(super) secret: StoredSecret,
}

impl Meta {
    /// Refuses keys that were made by another reading of user ids than this program's.
    pub(super) fn check_keys(&self, path: &Path) -> Result<(), OpenError> {
        let (path, version, known) = (path.to_owned(), self.secret.key_version, KEY_VERSION);
        match version {
            ..OLDEST_KEY_VERSION => Err(OpenError::OlderKeys { path, version, known }),
            OLDEST_KEY_VERSION..=KEY_VERSION => Ok(()),
            _ => Err(OpenError::NewerKeys { path, version, known }),
        }
    }
}

/// An error of redb, or of the disk.
pub(super) fn storage_error(error: impl std::error::Error + Send + Sync + 'static) -> LedgerError {
    LedgerError::Storage(Arc::new(error))
}

pub(super) fn damaged(what: &'static str) -> LedgerError {
    LedgerError::Damaged(what)
}

/// Reads the meta table, or creates all tables in an empty database.
pub(super) fn prepare(database: &Database, path: &Path) -> Result<Meta, OpenError> {
    let boxed = |error: LedgerError| damaged_file(path, error);
    let transaction = database.begin_write().map_err(|e| boxed(storage_error(e)))?;
    let is_empty = transaction.list_tables().map_err(|e| boxed(storage_error(e)))?.next().is_none();
    let existing = {
        let meta = transaction.open_table(META).map_err(|e| boxed(storage_error(e)))?;
        read_meta(&meta).map_err(boxed)?
    };
    let (format, meta) = match existing {
        Some(found) => found,
        // The database of another program is left as it is.
        None if !is_empty => {
            let source = damaged("it has tables, but none of a ledger").into();
            return Err(OpenError::NotALedger { path: path.to_owned(), source });
        }
        None => (FILE_FORMAT, create(&transaction).map_err(boxed)?),
    };
    let (path, known) = (path.to_owned(), FILE_FORMAT);
    match format {
        ..OLDEST_FORMAT => return Err(OpenError::Older { path, format, known }),
        OLDEST_FORMAT..=FILE_FORMAT => {}
        _ => return Err(OpenError::Newer { path, format, known }),
    }
    // Files from before erasures existed lack only this table.
    drop(transaction.open_table(CONDEMNED).map_err(|e| boxed(storage_error(e)))?);
    transaction.commit().map_err(|e| boxed(storage_error(e)))?;
    Ok(meta)
}

pub(super) fn read_meta(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<(u32, Meta)>, LedgerError> {
    let Some(format) = meta.get("format").map_err(storage_error)? else { return Ok(None) };
    let format = format.value().try_into().map_err(|_| damaged("its format"))?;
    let epoch = meta.get("epoch").map_err(storage_error)?.ok_or(damaged("epoch"))?;
    let epoch = epoch.value().try_into().map_err(|_| damaged("epoch"))?;
    let meta = Meta { epoch, secret: read_secret(meta)? };
    Ok(Some((u32::from_be_bytes(format), meta)))
}

/// Reads the secret of the pairs' keys.
pub(super) fn read_secret(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<StoredSecret, LedgerError> {
    let secret = meta.get("secret").map_err(storage_error)?.ok_or(damaged("secret"))?;
    StoredSecret::decode(secret.value()).ok_or(damaged("secret"))
}

fn create(transaction: &WriteTransaction) -> Result<Meta, LedgerError> {
    let secret = StoredSecret::random().map_err(storage_error)?;
    let mut meta = Meta { epoch: [0; 16], secret };
    getrandom::fill(&mut meta.epoch).map_err(storage_error)?;
    let mut table = transaction.open_table(META).map_err(storage_error)?;
    let (format, secret) = (FILE_FORMAT.to_be_bytes(), secret.encode());
    let values: [(&str, &[u8]); 5] = [
        ("epoch", &meta.epoch),
        ("secret", &secret),
        ("revision", &[0; 8]),
        ("head", &[0; 20]),
        ("format", &format),
    ];
    for (name, value) in values {
        table.insert(name, value).map_err(storage_error)?;
    }
    drop(table);
    Tables::open(transaction)?;
    Ok(meta)
}

/// Reads the revision and head of the log's end.
pub(super) fn read_end(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<(Revision, LogHead), LedgerError> {
    let get = |name| meta.get(name).map_err(storage_error)?.ok_or(damaged(name));
    let (revision, head) = (get("revision")?, get("head")?);
    let revision = revision.value().try_into().map_err(|_| damaged("revision"))?;
    let head = head.value().try_into().map_err(|_| damaged("head"))?;
    Ok((u64::from_be_bytes(revision), head))
}

/// Reads a number from the meta table; 0 if it was never written.
pub(super) fn read_number(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &'static str,
) -> Result<u64, LedgerError> {
    let Some(value) = meta.get(name).map_err(storage_error)? else { return Ok(0) };
    Ok(u64::from_be_bytes(value.value().try_into().map_err(|_| damaged(name))?))
}

/// The number of pairs in the table of pairs.
pub(super) fn count_pairs(database: &Database) -> Result<u64, LedgerError> {
    let transaction = database.begin_read().map_err(storage_error)?;
    let table = transaction.open_table(PAIRS).map_err(storage_error)?;
    table.len().map_err(storage_error)
}

/// The tables that hold pairs, opened for writing.
pub(super) struct Tables<'t> {
    pub(super) pairs: Table<'t, &'static [u8; 16], &'static [u8]>,
    pub(super) log: Table<'t, u64, &'static [u8]>,
    pub(super) history: Table<'t, u64, &'static [u8]>,
    pub(super) statements: Table<'t, &'static [u8; 32], &'static str>,
    pub(super) condemned: Table<'t, &'static [u8; 32], u64>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, LedgerError> {
        Ok(Self {
            pairs: transaction.open_table(PAIRS).map_err(storage_error)?,
            log: transaction.open_table(LOG).map_err(storage_error)?,
            history: transaction.open_table(HISTORY).map_err(storage_error)?,
            statements: transaction.open_table(STATEMENTS).map_err(storage_error)?,
            condemned: transaction.open_table(CONDEMNED).map_err(storage_error)?,
        })
    }
}

/// A row of the table of pairs: the revision that wrote the record (8 bytes, big-endian), the
/// revision of the last history row (8, 0 for none), and the encoded record.
pub(super) struct PairRow<'a> {
    pub(super) revision: Revision,
    pub(super) history: Revision,
    pub(super) record: &'a [u8],
}

impl<'a> PairRow<'a> {
    /// `None` if the bytes are damaged.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (revision, rest) = bytes.split_first_chunk()?;
        let (history, record) = rest.split_first_chunk()?;
        let (revision, history) = (u64::from_be_bytes(*revision), u64::from_be_bytes(*history));
        // Revision 0 stands for a pair without a record: a row with it would pass for none.
        (revision != 0).then_some(Self { revision, history, record })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        [&self.revision.to_be_bytes(), &self.history.to_be_bytes(), self.record].concat()
    }

    /// The record of a row, if there is a row.
    pub(super) fn stored_record(row: Option<&[u8]>) -> Result<StoredRecord, UnreadableRecord> {
        let Some(row) = row else { return Ok(StoredRecord::default()) };
        let row = PairRow::decode(row).ok_or(UnreadableRecord::Damaged)?;
        let version = Version { revision: row.revision, head_prefix: 0 };
        Ok(StoredRecord { version, record: codec::decode_record(row.record)? })
    }
}

/// A row of the log: the head before it (20 bytes), the head after it (20), the time of recording
/// (8), the revision of the pair's last history row (8), and the encoded body.
pub(super) struct LogRow<'a> {
    pub(super) previous: LogHead,
    pub(super) head: LogHead,
    /// Milliseconds since 1970.
    pub(super) time: i64,
    pub(super) history: Revision,
    pub(super) body: &'a [u8],
}

impl<'a> LogRow<'a> {
    /// `None` if the bytes are too short.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (previous, rest) = bytes.split_first_chunk()?;
        let (head, rest) = rest.split_first_chunk()?;
        let (time, rest) = rest.split_first_chunk()?;
        let (history, body) = rest.split_first_chunk()?;
        let (time, history) = (i64::from_be_bytes(*time), u64::from_be_bytes(*history));
        Some(Self { previous: *previous, head: *head, time, history, body })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let (time, history) = (self.time.to_be_bytes(), self.history.to_be_bytes());
        [&self.previous[..], &self.head, &time, &history, self.body].concat()
    }
}
