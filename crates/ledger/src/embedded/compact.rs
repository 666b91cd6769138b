//! Compaction: rewriting the file without erased data.
//!
//! Data that is removed from a table stays in free pages of the file until these are reused, and
//! redb's own compaction moves pages without clearing them. Therefore the content of all tables is
//! copied into a new file, which then replaces the old one. A process that dies meanwhile leaves the
//! old file as it was, and an unfinished one that the next compaction removes.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, TableDefinition, TableError, WriteTransaction,
};

use super::Embedded;
use super::file_identity::FileIdentity;
use super::memtable::Memtable;
use super::open::{self, LedgerFile};
use super::open_error::{
    OpenError, begins_with_zeros, damaged_file, has_ledger_signature, panics_as_damage,
};
use super::panic_guard::catch_panic;
use super::retention;
use super::statement_gc::StatementGc;
use super::tables::{
    self, CONDEMNED, HISTORY, LAST_ERASURE, LOG, META, PAIRS, STATEMENTS, read_number,
    storage_error,
};
use crate::{Epoch, LedgerError, Retention};
use consentd_core::time::Timestamp;
use consentd_os::files;

/// The suffix of the file that a ledger is rewritten to.
pub(super) const REWRITE_SUFFIX: &str = "compacting";

/// The result of a compaction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CompactionReport {
    /// The file's size before, in bytes.
    pub bytes_before: u64,
    /// The file's size after, in bytes.
    pub bytes_after: u64,
    /// The time of the last log entry that may still name an erased user; `None` if there is none.
    pub last_naming_entry: Option<Timestamp>,
}

impl Embedded {
    /// Removes what has outlived this retention from a ledger's file, and compacts it.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong, with this file or with the one it is rewritten to.
    pub fn compact(
        path: &Path,
        retention: Retention,
        cache_bytes: usize,
    ) -> Result<CompactionReport, OpenError> {
        panics_as_damage(path, || {
            let mut file = LedgerFile::open(path, cache_bytes)?;
            tables::prepare(&file.database, path)?;
            remove_expired(&file.database, retention).map_err(|error| damaged_file(path, error))?;
            rewrite(&mut file, path, cache_bytes)
        })
    }
}

/// Compacts a file if something was erased since the last compaction, and no entry of its log may
/// name an erased user any more. Returns the result of the rewrite, if there was one.
pub(super) fn after_erasure(
    file: &mut LedgerFile,
    path: &Path,
    retention: Retention,
    cache_bytes: usize,
) -> Result<Option<Result<CompactionReport, OpenError>>, OpenError> {
    let is_due = |database: &Database| {
        if !has_erased(database)? {
            return Ok(false);
        }
        remove_expired(database, retention)?;
        Ok(last_naming_entry(database)?.is_none())
    };
    let is_due = is_due(&file.database).map_err(|error| damaged_file(path, error))?;
    Ok(is_due.then(|| rewrite(file, path, cache_bytes)))
}

/// Whether anything was erased since the last compaction.
fn has_erased(database: &Database) -> Result<bool, LedgerError> {
    let transaction = database.begin_read().map_err(storage_error)?;
    let meta = transaction.open_table(META).map_err(storage_error)?;
    Ok(read_number(&meta, LAST_ERASURE)? > 0)
}

/// The time of the last log entry that may name an erased user. While a condemned statement is not
/// removed yet, the beginning of time.
fn last_naming_entry(database: &Database) -> Result<Option<Timestamp>, LedgerError> {
    let transaction = database.begin_read().map_err(storage_error)?;
    let meta = transaction.open_table(META).map_err(storage_error)?;
    let last_erasure = read_number(&meta, LAST_ERASURE)?;
    let log = transaction.open_table(LOG).map_err(storage_error)?;
    // The entry of the erasure itself contains no ids.
    let mut before = log.range(..last_erasure).map_err(storage_error)?;
    if let Some((_, row)) = before.next_back().transpose().map_err(storage_error)? {
        return Ok(Some(retention::time_of(row.value())?));
    }
    let condemned = transaction.open_table(CONDEMNED).map_err(storage_error)?;
    Ok((!condemned.is_empty().map_err(storage_error)?).then_some(Timestamp::MIN))
}

/// Removes everything that has outlived its retention, and unreferenced statements.
fn remove_expired(database: &Database, retention: Retention) -> Result<(), LedgerError> {
    let (memtable, mut flusher) = Memtable::load(database)?;
    while flusher.flush(database, &memtable)? {}
    while retention::sweep(database, flusher.flushed_to(), retention)? {}
    let mut statement_gc = StatementGc::default();
    while statement_gc.step(database)? {}
    Ok(())
}

/// Copies the content of all tables into a new file, renames that to `path`, and continues with it.
fn rewrite(
    ledger: &mut LedgerFile,
    path: &Path,
    cache_bytes: usize,
) -> Result<CompactionReport, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let new_path = files::beside(path, REWRITE_SUFFIX);
    let epoch = epoch_of(&ledger.database).map_err(|error| damaged_file(path, error))?;
    remove_unfinished(&new_path, epoch).map_err(io)?;
    let before = fs::metadata(path).map_err(io)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(&new_path).map_err(io)?;
    // Only its owner can open it until it has the same owner and mode as the old file.
    copy_ownership(&file, &before).map_err(io)?;
    let identity = FileIdentity::new(path, &file).map_err(io)?;
    let database = copy_tables(&ledger.database, &new_path, file, &identity, cache_bytes)
        .inspect_err(|_| {
            let _ = fs::remove_file(&new_path); // If this fails, the next compaction does it.
        })?;
    fs::rename(&new_path, path).map_err(io)?;
    File::open(files::folder(path)).and_then(|folder| folder.sync_all()).map_err(io)?;
    let bytes_after = identity.size().map_err(io)?;
    // The new file was locked before it was renamed, so no other process could open it.
    (ledger.database, ledger.identity) = (database, identity);
    let last_naming_entry =
        last_naming_entry(&ledger.database).map_err(|error| damaged_file(path, error))?;
    Ok(CompactionReport { bytes_before: before.len(), bytes_after, last_naming_entry })
}

/// Removes the file of a compaction that did not finish. Refuses a file with other content, and a
/// ledger that is open in another process or has another epoch.
fn remove_unfinished(path: &Path, epoch: Option<Epoch>) -> std::io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let in_the_way = |what: &str| {
        let why = format!("{} is in the way, and is {what}: move it away", path.display());
        Err(std::io::Error::other(why))
    };
    if !found.is_file() {
        return in_the_way("no file");
    }
    // redb writes the signature last; until then a file begins with zeros.
    if !has_ledger_signature(path) && !begins_with_zeros(path)? {
        return in_the_way("something else than a ledger that was being compacted");
    }
    if File::open(path)?.try_lock().is_err() {
        return in_the_way("open in another process");
    }
    if has_ledger_signature(path) {
        // Opening repairs a file that was not closed, as any start with it would.
        let found = catch_panic(|| {
            let database = Database::open(path).map_err(storage_error)?;
            Ok::<_, LedgerError>((is_empty(&database)?, epoch_of(&database)?))
        });
        match found {
            // A compaction that was interrupted before its only commit has left no table.
            Ok(Ok((true, _))) => {}
            Ok(Ok((false, Some(found)))) if Some(found) == epoch => {}
            Ok(Ok((false, Some(_)))) => return in_the_way("another ledger"),
            Ok(Ok((false, None))) => return in_the_way("the database of another program"),
            Ok(Err(_)) | Err(_) => return in_the_way("damaged, and perhaps another ledger"),
        }
    }
    fs::remove_file(path)
}

/// Whether a database has no tables at all.
fn is_empty(database: &Database) -> Result<bool, LedgerError> {
    let transaction = database.begin_read().map_err(storage_error)?;
    let has_tables = transaction.list_tables().map_err(storage_error)?.next().is_some();
    let multimaps = transaction.list_multimap_tables().map_err(storage_error)?.next();
    Ok(!has_tables && multimaps.is_none())
}

/// The epoch of the ledger in a database; `None` if there is no ledger in it.
fn epoch_of(database: &Database) -> Result<Option<Epoch>, LedgerError> {
    let meta = match database.begin_read().map_err(storage_error)?.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        meta => meta.map_err(storage_error)?,
    };
    Ok(tables::read_meta(&meta)?.map(|(_, meta)| meta.epoch))
}

/// Gives a file the owner, the group and the mode of another.
fn copy_ownership(file: &File, other: &fs::Metadata) -> std::io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (other.uid(), other.gid()) {
        std::os::unix::fs::fchown(file, Some(other.uid()), Some(other.gid()))?;
    }
    file.set_permissions(other.permissions())
}

/// Copies all tables of a database into a new one in this empty file.
fn copy_tables(
    from: &Database,
    path: &Path,
    file: File,
    identity: &FileIdentity,
    cache_bytes: usize,
) -> Result<Database, OpenError> {
    let mut to = open::open_database(path, file, identity, cache_bytes)?;
    let copied = || {
        let read = from.begin_read().map_err(storage_error)?;
        let write = to.begin_write().map_err(storage_error)?;
        copy_table(&read, &write, PAIRS)?;
        copy_table(&read, &write, LOG)?;
        copy_table(&read, &write, HISTORY)?;
        copy_table(&read, &write, STATEMENTS)?;
        copy_table(&read, &write, CONDEMNED)?;
        copy_table(&read, &write, META)?;
        if last_naming_entry(from)?.is_none() {
            let mut meta = write.open_table(META).map_err(storage_error)?;
            meta.remove(LAST_ERASURE).map_err(storage_error)?;
        }
        write.commit().map_err(storage_error)
    };
    copied().map_err(|error: LedgerError| damaged_file(path, error))?;
    // This only makes the file smaller: it never contained erased data.
    to.compact().map_err(|error| damaged_file(path, storage_error(error)))?;
    Ok(to)
}

fn copy_table<K: redb::Key + 'static, V: redb::Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'static, K, V>,
) -> Result<(), LedgerError> {
    let from = from.open_table(table).map_err(storage_error)?;
    let mut to = to.open_table(table).map_err(storage_error)?;
    for row in from.iter().map_err(storage_error)? {
        let (key, value) = row.map_err(storage_error)?;
        to.insert(key.value(), value.value()).map_err(storage_error)?;
    }
    Ok(())
}
