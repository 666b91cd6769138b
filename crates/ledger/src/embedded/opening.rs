//! Opening a ledger's file, or making one, and what may be wrong with it.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError};

use super::backend::Backend;
use super::guard::guarded;
use super::place::{self, Place};
use super::{Appender, CompactionReport, Embedded, compact, mark, store};
use crate::LedgerError;
use consentd_core::record::Revision;
use consentd_os::files;
use consentd_os::io_hint;

/// What a file of redb's begins with.
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";

/// What a ledger leaves beside itself, by its suffix: these are looked for by name.
const LEFT_BEHIND: [&str; 4] = ["lock", mark::SUFFIX, place::RESCUED, compact::SUFFIX];

/// The most entries of a folder that are looked at for what else a ledger has left there. About a
/// second's worth.
const MAX_ENTRIES: usize = 1_000_000;

/// Why a ledger's file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "{path} is open in another process: a ledger file belongs to one sidecar at a time; \
             stop the other one, or give this one a file of its own with --ledger file:PATH"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot open the ledger file {path}: {source}{}", io_hint::hint(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is something else.
    #[error(
        "{path} is not a ledger: {source}; it was left as it is: give the right file with --ledger \
             file:PATH, or a path where there is none yet for a new ledger"
    )]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// What was found.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is damaged.
    #[error(
        "the ledger file {path} is damaged: {source}; put the newest backup of it in its place, and \
             import what was recorded since; keep the damaged file for those who may read more of it"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It lacks events that were acknowledged.
    #[error(
        "{path} ends at revision {ends}, but events up to revision {acknowledged} were acknowledged \
             (as {mark} says): it is an older copy, or its last commits are damaged; put the newest \
             copy in its place; to go on without those events, opt-outs among them, remove {mark}"
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// Its mark.
        mark: PathBuf,
        /// Its last revision.
        ends: Revision,
        /// The last revision that was acknowledged.
        acknowledged: Revision,
    },
    /// What is beside it and should be its mark is none.
    #[error(
        "cannot tell whether {path} has all that was acknowledged: {mark} {why}; it was left as it \
             is: if it is not consentd's, move it away, and start again"
    )]
    NotAMark {
        /// The ledger.
        path: PathBuf,
        /// What is in its mark's place.
        mark: PathBuf,
        /// What was found.
        why: String,
    },
    /// Another ledger was served from this path before.
    #[error(
        "{path} is another ledger than the one whose events were acknowledged here (as {mark} \
             says): put that one back, or give this one a path of its own; if it is to take that \
             one's place for good, remove {mark}"
    )]
    Another {
        /// The file.
        path: PathBuf,
        /// The mark of the one before.
        mark: PathBuf,
    },
    /// There is something already.
    #[error("{path} is there already, and was left as it is: give a path where there is nothing")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It was made before the first release.
    #[error(
        "{path} was made before consentd's first release (format {format}; this one knows {known} \
             alone): begin a new file with --ledger file:PATH"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// Ours.
        known: u32,
    },
    /// A newer version made it.
    #[error(
        "{path} was made by a newer consentd (format {format}; this one knows {known}): \
             upgrade this one, or give it another file with --ledger file:PATH"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// Ours.
        known: u32,
    },
}

/// A ledger that was opened to be served.
pub struct OpenedLedger {
    /// The ledger.
    pub ledger: Embedded,
    /// What writes it.
    pub appender: Appender,
    /// Whether it was made just now, and is empty.
    pub is_new: bool,
    /// What came of writing the file anew, where that was tried.
    pub compacted: Option<Result<CompactionReport, OpenError>>,
    /// The mode by which others could write the file, which was taken from them.
    pub mode_before: Option<u32>,
}

/// A file that is open.
pub(super) struct LedgerFile {
    pub(super) database: Database,
    pub(super) place: Place,
    pub(super) is_new: bool,
    pub(super) mode_before: Option<u32>,
}

impl LedgerFile {
    /// Opens a ledger's file, or makes one where there is none.
    pub(super) fn open(path: &Path, cache_bytes: usize) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let missing = matches!(
            fs::symlink_metadata(path),
            Err(error) if error.kind() == ErrorKind::NotFound
        );
        if missing {
            make(path)?;
        }
        // Where the system refuses, in its own words.
        let mut options = OpenOptions::new();
        let file = files::no_follow(options.read(true).write(true)).open(path).map_err(io)?;
        let is_empty = file.metadata().map_err(io)?.len() == 0;
        if is_empty {
            // A ledger is made in it, as where there is no file.
            mark::remove(path)?;
        }
        let is_new = missing || is_empty;
        let mode_before = files::take_from_others(&file).map_err(io)?;
        let place = Place::new(path, &file).map_err(io)?;
        let database = open_database(path, file, &place, cache_bytes)?;
        Ok(Self { database, place, is_new, mode_before })
    }
}

/// Opens the database in an open file, whose path is for errors. The checksums of all its pages are
/// verified, which takes about two seconds for a gibibyte: a bit that flipped in a record must not
/// be taken for what somebody said.
pub(super) fn open_database(
    path: &Path,
    file: File,
    place: &Place,
    cache_bytes: usize,
) -> Result<Database, OpenError> {
    let backend = Backend::new(file, place.length());
    let backend = backend.map_err(|error| open_error(path, error))?;
    let mut builder = Database::builder();
    let builder = builder.set_cache_size(cache_bytes).set_check_integrity_on_open(true);
    let opened = builder.create_with_backend(backend);
    opened.map_err(|error| open_error(path, error))
}

/// Runs what opens a file; a panic of redb's is told as damage.
pub(super) fn telling_of_damage<T>(
    path: &Path,
    open: impl FnOnce() -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    guarded(open).unwrap_or_else(|panic| {
        Err(OpenError::Damaged { path: path.to_owned(), source: panic.into() })
    })
}

pub(super) fn damaged(path: &Path, error: LedgerError) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), source: error.into() }
}

/// Whether a file begins as a ledger does.
#[must_use]
pub fn has_ledger_signature(path: &Path) -> bool {
    let most = u64::try_from(MAGIC.len()).unwrap_or(0);
    files::beginning(path, most).is_ok_and(|bytes| bytes == MAGIC)
}

/// Whether a file is empty, or begins with zeros where a ledger's first bytes would be.
pub(super) fn is_unwritten(path: &Path) -> std::io::Result<bool> {
    let most = u64::try_from(MAGIC.len()).unwrap_or(0);
    Ok(files::beginning(path, most)?.iter().all(|byte| *byte == 0))
}

/// What a ledger that should be at `path` and is not, or is empty, has left in its folder: files
/// that begin with its name, and progress files of imports. Nothing where there is a ledger.
///
/// # Errors
///
/// Where the folder cannot be read, for another reason than that it is not there, or has more
/// entries than are looked at.
pub fn leftover_files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if fs::metadata(path).is_ok_and(|found| found.len() > 0) {
        return Ok(Vec::new());
    }
    let entries = match fs::read_dir(files::folder(path)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let left_behind = LEFT_BEHIND.map(|suffix| files::beside(path, suffix));
    let mut found: Vec<_> = left_behind.into_iter().filter(|left| left.is_file()).collect();
    for (number, entry) in entries.enumerate() {
        if number == MAX_ENTRIES && !found.is_empty() {
            break;
        }
        if number == MAX_ENTRIES {
            return Err(std::io::Error::other(format!(
                "its folder has more than {MAX_ENTRIES} entries, too many to see whether a ledger \
                 was here: give the ledger a folder of its own"
            )));
        }
        let entry = entry?;
        let other = entry.file_name();
        let other = other.as_encoded_bytes();
        // Its lock, mark, copies and backups: consentd.redb.lock, consentd.redb-old, consentd.redb~.
        let rest = other.strip_prefix(name).and_then(<[u8]>::first);
        let is_its_own = rest.is_some_and(|next| !next.is_ascii_alphanumeric());
        let is_progress = other.ends_with(b".import-progress");
        if (is_its_own || is_progress) && entry.file_type()?.is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

pub(super) fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path },
        DatabaseError::Storage(redb::StorageError::Io(source))
            // Where the file is too short for what it should hold, it is not the system's fault.
            if !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            OpenError::Io { path, source }
        }
        source if has_ledger_signature(&path) => OpenError::Damaged { path, source: source.into() },
        source => OpenError::NotALedger { path, source: source.into() },
    }
}

/// A file beside `path`. It holds user ids and the keys' secret: a temporary file is its owner's
/// alone.
pub(super) fn temporary(path: &Path) -> Result<tempfile::NamedTempFile, OpenError> {
    let mut made = tempfile::Builder::new();
    made.prefix(".consentd-")
        .tempfile_in(files::folder(path))
        .map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

/// Makes a ledger beside `path`, and gives it that name once it is whole: a process that dies
/// meanwhile leaves nothing there that could not be opened.
fn make(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let folder = File::open(files::folder(path)).map_err(io)?;
    let new = temporary(path)?;
    let database = Database::create(new.path()).map_err(|error| open_error(path, error))?;
    store::prepare(&database, path)?;
    drop(database);
    // That of a ledger which is gone, and which somebody has said is not wanted any more.
    mark::remove(path)?;
    match new.persist_noclobber(path) {
        Ok(_) => {}
        // Another process was faster, and its file is as good.
        Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => {}
        Err(failed) => return Err(io(failed.error)),
    }
    // A new file is durable only once its folder is.
    folder.sync_all().map_err(io)
}
