//! Detects that the ledger's path no longer leads to the open file, or that the file was overwritten.
//!
//! A file that was deleted or replaced can still be written through an open descriptor, but is gone
//! once the process ends. Therefore path, inode and length are checked before each commit, and again
//! before its events are acknowledged. A changed length shows that another program truncated the
//! file or copied another one over it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::storage_backend::TrackedLength;
use crate::LedgerError;
use consentd_os::files;

/// The suffix of the file that a lost ledger's content is saved in.
pub(super) const RESCUE_SUFFIX: &str = "rescued";

/// The most rescue files of one ledger.
const MAX_RESCUE_FILES: u32 = 100;

/// The identity of the open file, and the path that should lead to it.
#[derive(Debug)]
pub(super) struct FileIdentity {
    path: PathBuf,
    /// A duplicate of redb's descriptor, so that the content can be rescued after redb closed it.
    file: File,
    device: u64,
    inode: u64,
    /// The length that redb has given it.
    length: TrackedLength,
    /// Whether a check has found another length.
    is_overwritten: AtomicBool,
}

/// The path leads to another file, or the file was overwritten.
#[derive(Debug, thiserror::Error)]
#[error("{} {found}: nothing more is acknowledged, for a restart would not find it", path.display())]
struct Mismatch {
    path: PathBuf,
    found: String,
}

/// A mismatch, and what an operator can do about it.
#[derive(Debug, thiserror::Error)]
#[error("{moved}; {remedy}")]
struct FileLost {
    moved: LedgerError,
    remedy: String,
}

impl FileIdentity {
    /// The identity of a file that was just opened by this path.
    pub(super) fn new(path: &Path, file: &File) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let found = file.metadata()?;
        Ok(Self {
            path,
            file: file.try_clone()?,
            device: found.dev(),
            inode: found.ino(),
            length: TrackedLength::of(found.len()),
            is_overwritten: AtomicBool::new(false),
        })
    }

    /// The tracked length, for the storage backend to update.
    pub(super) fn length(&self) -> TrackedLength {
        self.length.clone()
    }

    /// The file's size in bytes.
    pub(super) fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Checks that the path still leads to the file, and that no other program has changed its
    /// length. This is one system call of about a microsecond. It must not run concurrently with
    /// redb's writes.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Storage`], like for a failing disk: nothing may be acknowledged any more.
    pub(super) fn check(&self) -> Result<(), LedgerError> {
        let found = match fs::metadata(&self.path) {
            // An inode is not reused while the file is open.
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => {
                let (is, should_be) = (found.len(), self.length.get());
                if is == should_be {
                    return Ok(());
                }
                self.is_overwritten.store(true, Ordering::Relaxed);
                format!(
                    "has {is} bytes, and should have {should_be}: another program truncated or \
                     overwrote it while it was open"
                )
            }
            Ok(_) => "is another file than the one that is open".to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                "is no longer there, though it is open".to_owned()
            }
            Err(error) => format!("cannot be looked at any more ({error})"),
        };
        Err(LedgerError::Storage(Arc::new(Mismatch { path: self.path.clone(), found })))
    }

    /// Adds the remedy to an error that ended the appender, if the path leads elsewhere. The content
    /// of a deleted file is first rescued into a new file, because it vanishes with this process.
    /// redb must have closed the file.
    pub(super) fn explain_loss(&self, error: LedgerError) -> LedgerError {
        let checked = self.check();
        // redb may have restored the length when it closed the file, but its content is damaged.
        let is_overwritten = self.is_overwritten.load(Ordering::Relaxed);
        if checked.is_ok() && !is_overwritten {
            return error;
        }
        let moved = checked.err().unwrap_or(error);
        let is_gone = self.file.metadata().is_ok_and(|found| found.nlink() == 0);
        let path = self.path.display();
        let remedy = if is_overwritten {
            format!(
                "put the newest backup in the place of {path}, and import what was recorded since; \
                 keep the damaged file for those who may read more of it"
            )
        } else if is_gone {
            match self.rescue() {
                Ok(saved) => {
                    let saved = saved.display();
                    format!(
                        "all that was acknowledged is saved in {saved}: rename that to {path}, and \
                         start again"
                    )
                }
                Err(error) => format!(
                    "and what it held could not be saved beside it ({error}): restore the newest \
                     backup, and import what came after it"
                ),
            }
        } else {
            format!("move the file back to {path}, and start again")
        };
        LedgerError::Storage(Arc::new(FileLost { moved, remedy }))
    }

    /// Copies the file's content into a new file in the same folder, and returns its path.
    fn rescue(&self) -> io::Result<PathBuf> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        for number in 1..=MAX_RESCUE_FILES {
            let suffix = if number == 1 {
                RESCUE_SUFFIX.to_owned()
            } else {
                format!("{RESCUE_SUFFIX}-{number}")
            };
            let path = files::beside(&self.path, &suffix);
            let mut copy = match options.open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                opened => opened?,
            };
            let mut from = &self.file;
            from.rewind()?;
            io::copy(&mut from, &mut copy)?;
            copy.sync_all()?;
            File::open(files::folder(&path))?.sync_all()?;
            return Ok(path);
        }
        Err(io::Error::other(format!("there are {MAX_RESCUE_FILES} of them already")))
    }
}
