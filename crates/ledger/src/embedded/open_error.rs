//! The errors of opening a ledger's file, and how redb's errors and panics become these.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use redb::DatabaseError;

use super::panic_guard::catch_panic;
use crate::LedgerError;
use consentd_core::record::Revision;
use consentd_os::files;
use consentd_os::io_hint;

/// The first bytes of a redb file.
const SIGNATURE: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";

/// Why a ledger's file cannot be opened.
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
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not a ledger.
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
    /// The file is a damaged ledger.
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
    /// Acknowledged events are missing, according to the high-water mark.
    #[error(
        "{path} ends at revision {ends}, but events up to revision {acknowledged} were acknowledged \
             (as {mark} says): it is an older copy, or its last commits are damaged; put the newest \
             copy in its place; to go on without those events, opt-outs among them, remove {mark}"
    )]
    Missing {
        /// The file.
        path: PathBuf,
        /// The mark's file.
        mark: PathBuf,
        /// Its last revision.
        ends: Revision,
        /// The last revision that was acknowledged.
        acknowledged: Revision,
    },
    /// Something else is in the place of the high-water mark, or the mark cannot be read.
    #[error(
        "cannot tell whether {path} has all that was acknowledged: {mark} {why}; it was left as it \
             is: if it is not consentd's, move it away, and start again"
    )]
    InvalidMark {
        /// The ledger.
        path: PathBuf,
        /// The mark's path.
        mark: PathBuf,
        /// What was found.
        why: String,
    },
    /// The high-water mark belongs to another ledger, which was served from this path before.
    #[error(
        "{path} is another ledger than the one whose events were acknowledged here (as {mark} \
             says): put that one back, or give this one a path of its own; if it is to take that \
             one's place for good, remove {mark}"
    )]
    Another {
        /// The file.
        path: PathBuf,
        /// The other ledger's mark.
        mark: PathBuf,
    },
    /// The path for a new ledger is taken.
    #[error("{path} is there already, and was left as it is: give a path where there is nothing")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It has a format from before the first release.
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
    /// Its keys were made by an older reading of user ids.
    #[error(
        "{path} was made by an earlier consentd, which read user ids otherwise (key version {version}; \
             this one has {known}), so that one person may have several keys in it: stop the sidecar that \
             has it open, run `consentd ledger copy file:{path} file:{path}.rekeyed`, and serve that copy; \
             nothing was changed here"
    )]
    OlderKeys {
        /// The file.
        path: PathBuf,
        /// The version of its keys.
        version: u32,
        /// Ours.
        known: u32,
    },
    /// Its keys were made by a newer reading of user ids.
    #[error(
        "{path} was made by a newer consentd, which reads user ids otherwise (key version {version}; this \
             one has {known}): upgrade this one, or give it another file with --ledger file:PATH"
    )]
    NewerKeys {
        /// The file.
        path: PathBuf,
        /// The version of its keys.
        version: u32,
        /// Ours.
        known: u32,
    },
    /// It was created by a newer version.
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

/// Reports a fault in the content of a ledger's file.
pub(super) fn damaged_file(path: &Path, error: LedgerError) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), source: error.into() }
}

/// Runs `open`, and reports a panic of redb as damage.
pub(super) fn panics_as_damage<T>(
    path: &Path,
    open: impl FnOnce() -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    catch_panic(open).unwrap_or_else(|panic| {
        Err(OpenError::Damaged { path: path.to_owned(), source: panic.into() })
    })
}

/// Classifies redb's error: it is damage only if the file begins like a ledger.
pub(super) fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path },
        DatabaseError::Storage(redb::StorageError::Io(source))
            // A file that is shorter than its content requires is not the system's fault.
            if !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            OpenError::Io { path, source }
        }
        source if has_ledger_signature(&path) => {
            OpenError::Damaged { path, source: source.into() }
        }
        source => OpenError::NotALedger { path, source: source.into() },
    }
}

/// Whether a file begins like a ledger.
#[must_use]
pub fn has_ledger_signature(path: &Path) -> bool {
    beginning(path).is_ok_and(|bytes| bytes == SIGNATURE)
}

/// Whether a file is empty, or has zeros in place of the signature.
pub(super) fn begins_with_zeros(path: &Path) -> std::io::Result<bool> {
    Ok(beginning(path)?.iter().all(|byte| *byte == 0))
}

fn beginning(path: &Path) -> std::io::Result<Vec<u8>> {
    files::beginning(path, u64::try_from(SIGNATURE.len()).unwrap_or(0))
}
