//! A file without what was erased from it.
//!
//! What is taken out of a file's tables stays in its free pages until they are written over, and
//! compacting moves pages rather than clear them. So what the tables hold is written into a file
//! beside it, which then takes its name: no byte that is not held any more comes along. A process
//! that dies meanwhile leaves the first file as it was, and one beside it that is removed the next
//! time.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, TableDefinition, WriteTransaction,
};

use super::erase::{DOOMED, ERASED, Reaper};
use super::history::HISTORY;
use super::mark::{self, End, Mark, Verdict};
use super::opening::{self, LedgerFile, OpenError, OpenedLedger, damaged};
use super::place::Place;
use super::store::{self, LOG, META, PAIRS, TEXTS, failed, number};
use super::{Embedded, retention};
use crate::{Epoch, LedgerError, Retention};
use consentd_core::time::Timestamp;
use consentd_os::files;

/// The suffix of the file that a ledger is written anew in.
pub(super) const SUFFIX: &str = "compacting";

/// What came of writing a file anew.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CompactionReport {
    /// Its bytes before.
    pub before: u64,
    /// Its bytes now.
    pub now: u64,
    /// When the last entry of its log was written that may name somebody who was erased since;
    /// none where it has none of those any more.
    pub named: Option<Timestamp>,
}

impl Embedded {
    /// Opens the ledger as [`open`](Self::open) does, to serve it; where everything that names
    /// somebody who was erased has outlived its time, the file is written anew before. What came
    /// of that, if it was tried.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the file. That it could not be written anew is none:
    /// it stays as it was, to be tried again.
    pub fn open_to_serve(
        path: &Path,
        retention: Retention,
        cache_bytes: usize,
    ) -> Result<OpenedLedger, OpenError> {
        opening::telling_of_damage(path, || {
            let mut file = LedgerFile::open(path, cache_bytes)?;
            let meta = store::prepare(&file.database, path)?;
            see_that_all_is_there(path, &file.database, meta.epoch)?;
            let mut compacted = None;
            if has_erased(&file.database).map_err(|error| damaged(path, error))? {
                remove_expired(&file.database, retention).map_err(|error| damaged(path, error))?;
                if named(&file.database).map_err(|error| damaged(path, error))?.is_none() {
                    compacted = Some(write_anew(&mut file, path, cache_bytes));
                }
            }
            let LedgerFile { database, place, is_new, mode_before } = file;
            let (ledger, mut appender) =
                Self::with_database(database, Some(place), path, retention)?;
            appender.mark = Some(Mark::of(path));
            Ok(OpenedLedger { ledger, appender, is_new, compacted, mode_before })
        })
    }

    /// Writes a ledger's file anew, without what is not in it any more, after it has removed what
    /// has outlived this retention.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong, with this file or with one beside it.
    pub fn compact(
        path: &Path,
        retention: Retention,
        cache_bytes: usize,
    ) -> Result<CompactionReport, OpenError> {
        opening::telling_of_damage(path, || {
            let mut file = LedgerFile::open(path, cache_bytes)?;
            store::prepare(&file.database, path)?;
            remove_expired(&file.database, retention).map_err(|error| damaged(path, error))?;
            write_anew(&mut file, path, cache_bytes)
        })
    }
}

/// Refuses a ledger that ends before what was acknowledged, by the mark beside it.
fn see_that_all_is_there(path: &Path, database: &Database, epoch: Epoch) -> Result<(), OpenError> {
    let end = || {
        let meta = database.begin_read().map_err(failed)?.open_table(META).map_err(failed)?;
        let (revision, head) = store::read_end(&meta)?;
        Ok(End { epoch, revision, head })
    };
    let end = end().map_err(|error| damaged(path, error))?;
    let (path, mark) = (path.to_owned(), mark::path_of(path));
    let verdict = match mark::judge(&mark, &end) {
        Ok(verdict) => verdict,
        Err(why) => return Err(OpenError::NotAMark { path, mark, why: why.to_string() }),
    };
    match verdict {
        Verdict::Fine => Ok(()),
        Verdict::Missing(acknowledged) => {
            Err(OpenError::Missing { path, mark, ends: end.revision, acknowledged })
        }
        Verdict::Another => Err(OpenError::Another { path, mark }),
    }
}

/// Whether anything was erased since the file was last written anew.
fn has_erased(database: &Database) -> Result<bool, LedgerError> {
    let meta = database.begin_read().map_err(failed)?.open_table(META).map_err(failed)?;
    Ok(number(&meta, ERASED)? > 0)
}

/// When the last entry of the log was written that may name somebody who was erased; of a
/// statement that is still to be removed, the beginning of time.
fn named(database: &Database) -> Result<Option<Timestamp>, LedgerError> {
    let transaction = database.begin_read().map_err(failed)?;
    let erased = number(&transaction.open_table(META).map_err(failed)?, ERASED)?;
    let log = transaction.open_table(LOG).map_err(failed)?;
    // The last erase's own entry names nobody.
    let last = log.range(..erased).map_err(failed)?.next_back().transpose().map_err(failed)?;
    if let Some((_, value)) = last {
        return Ok(Some(retention::time_of(value.value())?));
    }
    let doomed = transaction.open_table(DOOMED).map_err(failed)?;
    Ok((!doomed.is_empty().map_err(failed)?).then_some(Timestamp::MIN))
}

/// Removes all that has outlived its time, and the statements that nobody refers to.
fn remove_expired(database: &Database, keep: Retention) -> Result<(), LedgerError> {
    let (recent, mut mover) = store::load_recent(database)?;
    while store::move_pairs(database, &recent, &mut mover)? {}
    while retention::sweep(database, mover.settled(), keep)? {}
    let mut reaper = Reaper::default();
    while reaper.step(database)? {}
    Ok(())
}

/// Writes what the tables hold into a file beside this one, gives it this one's name, and goes on
/// with it.
fn write_anew(
    ledger: &mut LedgerFile,
    path: &Path,
    cache_bytes: usize,
) -> Result<CompactionReport, OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let beside = files::beside(path, SUFFIX);
    remove_unfinished(&beside).map_err(io)?;
    let before = fs::metadata(path).map_err(io)?;
    let mut new = OpenOptions::new();
    new.read(true).write(true).create_new(true).mode(0o600);
    let file = new.open(&beside).map_err(io)?;
    // Nobody else can open it before it has its owner.
    own_as(&file, &before).map_err(io)?;
    let place = Place::new(path, &file).map_err(io)?;
    let database =
        fill(&ledger.database, &beside, file, &place, cache_bytes).inspect_err(|_| {
            let _ = fs::remove_file(&beside); // The next time, otherwise.
        })?;
    fs::rename(&beside, path).map_err(io)?;
    File::open(files::folder(path)).and_then(|folder| folder.sync_all()).map_err(io)?;
    let now = place.size().map_err(io)?;
    // It was locked before it had the name: nobody came between.
    (ledger.database, ledger.place) = (database, place);
    let named = named(&ledger.database).map_err(|error| damaged(path, error))?;
    Ok(CompactionReport { before: before.len(), now, named })
}

/// Removes what a process left that died while it wrote a file anew, and nothing else: no file of
/// other content, and no ledger that another process has open.
fn remove_unfinished(path: &Path) -> std::io::Result<()> {
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
    // redb writes what a file begins with last of all: until then there are zeros.
    if !opening::has_ledger_signature(path) && !opening::is_unwritten(path)? {
        return in_the_way("something else than a ledger that was being compacted");
    }
    if File::open(path)?.try_lock().is_err() {
        return in_the_way("open in another process");
    }
    fs::remove_file(path)
}

/// Gives a file the owner, the group and the rights of another.
fn own_as(file: &File, other: &fs::Metadata) -> std::io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (other.uid(), other.gid()) {
        std::os::unix::fs::fchown(file, Some(other.uid()), Some(other.gid()))?;
    }
    file.set_permissions(other.permissions())
}

/// A database in this empty file with all that another one holds.
fn fill(
    from: &Database,
    path: &Path,
    file: File,
    place: &Place,
    cache_bytes: usize,
) -> Result<Database, OpenError> {
    let mut to = opening::open_database(path, file, place, cache_bytes)?;
    let copied = || {
        let read = from.begin_read().map_err(failed)?;
        let write = to.begin_write().map_err(failed)?;
        copy(&read, &write, PAIRS)?;
        copy(&read, &write, LOG)?;
        copy(&read, &write, HISTORY)?;
        copy(&read, &write, TEXTS)?;
        copy(&read, &write, DOOMED)?;
        copy(&read, &write, META)?;
        if named(from)?.is_none() {
            write.open_table(META).map_err(failed)?.remove(ERASED).map_err(failed)?;
        }
        write.commit().map_err(failed)
    };
    copied().map_err(|error: LedgerError| damaged(path, error))?;
    // What was never held is not in it: this makes it smaller, no more.
    to.compact().map_err(|error| damaged(path, failed(error)))?;
    Ok(to)
}

fn copy<K: redb::Key + 'static, V: redb::Value + 'static>(
    from: &ReadTransaction,
    to: &WriteTransaction,
    table: TableDefinition<'static, K, V>,
) -> Result<(), LedgerError> {
    let from = from.open_table(table).map_err(failed)?;
    let mut to = to.open_table(table).map_err(failed)?;
    for row in from.iter().map_err(failed)? {
        let (key, value) = row.map_err(failed)?;
        to.insert(key.value(), value.value()).map_err(failed)?;
    }
    Ok(())
}
