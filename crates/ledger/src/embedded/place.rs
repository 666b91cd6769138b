//! Whether the ledger's path still leads to the file that is open.
//!
//! A file that is deleted, or over which another one is renamed, can be written as before by whoever
//! has it open, and is gone once that process ends. So its path is looked at after each commit and
//! before anything of it is acknowledged.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
        Ok(Self { path, file: file.try_clone()?, device: found.dev(), inode: found.ino() })
    }

    /// The file's bytes on the disk.
    pub(super) fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Sees that the path still leads to the file. It is one system call, of about a microsecond.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Storage`], as for a disk that fails: nothing may be acknowledged any more.
    pub(super) fn check(&self) -> Result<(), LedgerError> {
        let found = match fs::metadata(&self.path) {
            // As long as the file is open, no other one has its inode.
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => return Ok(()),
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
        let Err(moved) = self.check() else { return error };
        let is_gone = self.file.metadata().is_ok_and(|found| found.nlink() == 0);
        let path = self.path.display();
        let remedy = if is_gone {
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
