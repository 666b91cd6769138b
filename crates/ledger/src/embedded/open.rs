//! Opening a ledger's file, or creating one.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use redb::Database;

use super::file_identity::FileIdentity;
use super::open_error::{OpenError, open_error};
use super::storage_backend::TrackedFile;
use super::{high_water_mark, tables};
use consentd_os::files;

/// An open file.
pub(super) struct LedgerFile {
    pub(super) database: Database,
    pub(super) identity: FileIdentity,
    pub(super) is_new: bool,
    /// See [`OpenedLedger::mode_before`](super::OpenedLedger::mode_before).
    pub(super) mode_before: Option<u32>,
}

impl LedgerFile {
    /// Opens a ledger's file, or creates it if there is none or it is empty.
    pub(super) fn open(path: &Path, cache_bytes: usize) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let missing = matches!(
            fs::symlink_metadata(path),
            Err(error) if error.kind() == ErrorKind::NotFound
        );
        if missing {
            create_ledger(path)?;
        }
        // Opened here rather than by redb, so that a refusal of the system is reported as such.
        let mut options = OpenOptions::new();
        let file = files::no_follow(options.read(true).write(true)).open(path).map_err(io)?;
        let is_empty = file.metadata().map_err(io)?.len() == 0;
        if is_empty {
            // redb will create a ledger in it, so a former ledger's mark no longer applies.
            high_water_mark::remove(path)?;
        }
        let is_new = missing || is_empty;
        let mode_before = files::take_from_others(&file).map_err(io)?;
        let identity = FileIdentity::new(path, &file).map_err(io)?;
        let database = open_database(path, file, &identity, cache_bytes)?;
        Ok(Self { database, identity, is_new, mode_before })
    }
}

/// Opens the database in an open file; `path` is for errors. It verifies the checksums of all pages,
/// which takes about two seconds per gibibyte: a flipped bit in a record must not be mistaken for
/// what somebody consented to.
pub(super) fn open_database(
    path: &Path,
    file: File,
    identity: &FileIdentity,
    cache_bytes: usize,
) -> Result<Database, OpenError> {
    let backend = TrackedFile::new(file, identity.length());
    let backend = backend.map_err(|error| open_error(path, error))?;
    let mut builder = Database::builder();
    let builder = builder.set_cache_size(cache_bytes).set_check_integrity_on_open(true);
    let opened = builder.create_with_backend(backend);
    opened.map_err(|error| open_error(path, error))
}

/// A temporary file in the folder of `path`. Only its owner can read it, since it will contain user
/// ids and the secret of the keys.
pub(super) fn temporary_file(path: &Path) -> Result<tempfile::NamedTempFile, OpenError> {
    let mut builder = tempfile::Builder::new();
    builder
        .prefix(".consentd-")
        .tempfile_in(files::folder(path))
        .map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

/// Creates a ledger in a temporary file and renames it to `path` once it is complete, so that a
/// crash cannot leave an incomplete file at that path.
fn create_ledger(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let folder = File::open(files::folder(path)).map_err(io)?;
    let new = temporary_file(path)?;
    let database = Database::create(new.path()).map_err(|error| open_error(path, error))?;
    tables::prepare(&database, path)?;
    drop(database);
    // A mark that is left here belongs to a former ledger, which an operator has given up.
    high_water_mark::remove(path)?;
    match new.persist_noclobber(path) {
        Ok(_) => {}
        // Another process was faster, and its file is as good.
        Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => {}
        Err(failed) => return Err(io(failed.error)),
    }
    // A new file is durable only once its folder is synced.
    folder.sync_all().map_err(io)
}
