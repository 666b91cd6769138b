//! Whether the ledger's path still leads to the file that is open.
//!
//! A file that is deleted, or over which another one is renamed, can be written as before by whoever
//! has it open, and is gone once that process ends. So its path is looked at before each commit, and
//! after it before anything of it is acknowledged. So is its length, by which a file shows that
//! something else cut it or copied another one over it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::backend::Length;
use crate::LedgerError;
use consentd_os::files;

/// The suffix of the file that a lost ledger's content is saved in.
pub(super) const RESCUED: &str = "rescued";

/// How many such files may lie beside a ledger; one more is not made.
const MAX_RESCUED: u32 = 100;

/// The file that is open, and the path that should lead to it.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// The same open file as redb's: it is there until the process ends.
    file: File,
    device: u64,
    inode: u64,
    /// How long redb has made it.
    length: Length,
    /// Whether it was found to be of another length.
    is_overwritten: AtomicBool,
}

/// The path leads somewhere else.
#[derive(Debug, thiserror::Error)]
#[error("{} {found}: nothing more is acknowledged, for a restart would not find it", path.display())]
struct Moved {
    path: PathBuf,
    found: String,
}

/// The path leads somewhere else, and what became of the content.
#[derive(Debug, thiserror::Error)]
#[error("{moved}; {remedy}")]
struct Ended {
    moved: LedgerError,
    remedy: String,
}

impl Place {
    /// Of a file that was just opened by this path.
    pub(super) fn new(path: &Path, file: &File) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let found = file.metadata()?;
        Ok(Self {
            path,
            file: file.try_clone()?,
            device: found.dev(),
            inode: found.ino(),
            length: Length::of(found.len()),
            is_overwritten: AtomicBool::new(false),
        })
    }

    /// How long the file is, to be kept by whoever writes it.
    pub(super) fn length(&self) -> Length {
        self.length.clone()
    }

    /// The file's bytes on the disk.
    pub(super) fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Sees that the path still leads to the file, and that nobody else has changed its length. It
    /// is one system call, of about a microsecond. To be called where redb writes nothing meanwhile.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Storage`], as for a disk that fails: nothing may be acknowledged any more.
    pub(super) fn check(&self) -> Result<(), LedgerError> {
        let found = match fs::metadata(&self.path) {
            // As long as the file is open, no other one has its inode.
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
        Err(LedgerError::Storage(Arc::new(Moved { path: self.path.clone(), found })))
    }

    /// The same error with what to do, where the path leads somewhere else. A file that no path
    /// leads to any more is saved beside it first, for it ends with this process. redb must have
    /// closed it.
    pub(super) fn last_words(&self, error: LedgerError) -> LedgerError {
        let checked = self.check();
        // It stays overwritten where redb made it as long again when it closed it.
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
        LedgerError::Storage(Arc::new(Ended { moved, remedy }))
    }

    /// Copies what the file holds into a new one beside it; gives its path.
    fn rescue(&self) -> io::Result<PathBuf> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        for number in 1..=MAX_RESCUED {
            let suffix =
                if number == 1 { RESCUED.to_owned() } else { format!("{RESCUED}-{number}") };
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
        Err(io::Error::other(format!("there are {MAX_RESCUED} of them already")))
    }
}
