//! Files that consentd reads and writes: their identity, their permissions, and lock files. Symbolic
//! links are never followed for writing, because their target may be under somebody else's control.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// The permission bits that let the group and others write a file.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The permission bit that lets others read a file.
const READABLE_BY_ALL: u32 = 0o004;

/// The longest chain of symbolic links that is resolved; Linux has the same limit.
const MAX_LINKS: usize = 40;

/// Makes opening fail if the path's last component is a symbolic link (`O_NOFOLLOW`). Otherwise
/// anybody with write access to the folder could redirect our writes to another file.
pub fn no_follow(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
}

/// Whether a path's last component is a symbolic link.
#[must_use]
pub fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

/// Whether an error means that a symbolic link was not followed (`ELOOP`).
#[must_use]
pub fn is_link_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Reads the first bytes of a file, at most `most`. Returns nothing for anything but a regular file,
/// since opening a FIFO could block forever.
///
/// # Errors
///
/// The system's error.
pub fn beginning(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if fs::metadata(path)?.is_file() {
        File::open(path)?.take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The folder of a path's last component; `.` for a bare file name.
#[must_use]
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path of a companion file: `path` with `.` and a suffix appended to its file name.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The identity of a file, independent of the path that leads to it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Identity {
    /// An existing file's device and inode, which its hard links share.
    Inode(u64, u64),
    /// For a file that does not exist yet: its folder's device and inode, and its name.
    Missing(u64, u64, OsString),
}

impl Identity {
    /// `None` if the system refuses the query. Opening the file will then fail with the reason.
    fn of(path: &Path) -> Option<Self> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            match fs::metadata(&path) {
                Ok(found) => return Some(Self::Inode(found.dev(), found.ino())),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(_) => return None,
            }
            // Creating a file through a dangling symbolic link creates the link's target.
            let Ok(target) = fs::read_link(&path) else {
                let folder = fs::metadata(folder(&path)).ok()?;
                let name = path.file_name()?.to_owned();
                return Some(Self::Missing(folder.dev(), folder.ino(), name));
            };
            path = folder(&path).join(target);
        }
        None
    }
}

/// The purpose of a file, which decides whether it may be shared and who may write it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Usage {
    /// Output. It cannot be used for anything else.
    Written,
    /// Tokens or secrets of one flag.
    Secret,
    /// A password for the ledger; several servers may have the same one.
    Password,
    /// Certificates or their key, which are often kept in one file.
    Certificate,
    /// Settings or events to read.
    Input,
}

/// A file that is named by a flag.
#[derive(Clone, Debug)]
pub struct UsedFile {
    /// The flag.
    pub flag: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Its purpose.
    pub usage: Usage,
}

impl UsedFile {
    /// Whether both uses may name the same file, because reading it twice for one purpose is
    /// harmless.
    fn may_be(&self, other: &Self) -> bool {
        let shared = match self.usage {
            Usage::Written => false,
            Usage::Secret | Usage::Input => self.flag == other.flag,
            Usage::Password | Usage::Certificate => true,
        };
        shared && self.usage == other.usage
    }

    /// Whether its content decides whom we trust, so that only its owner may write it.
    fn is_trusted(&self) -> bool {
        matches!(self.usage, Usage::Secret | Usage::Password | Usage::Certificate)
    }
}

/// Why one file, or a combination of files, cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{flag}: {why}")]
pub struct Unusable {
    /// The flag that names the file.
    pub flag: &'static str,
    /// The reason and the remedy.
    pub why: String,
}

/// Checks that no file has two conflicting uses, that none is a folder, that no output is a symbolic
/// link, and that only the owner may write trusted files.
///
/// # Errors
///
/// [`Unusable`] names the flags and the files.
pub fn check(files: &[UsedFile]) -> Result<(), Unusable> {
    let mut known: HashMap<Identity, Vec<&UsedFile>> = HashMap::new();
    for file in files {
        let UsedFile { flag, path, usage } = file;
        let unusable = |why: String| Err(Unusable { flag, why });
        let shown = path.display();
        if *usage == Usage::Written && is_link(path) {
            return unusable(link_hint(path));
        }
        if let Some(identity) = Identity::of(path) {
            let same = known.entry(identity).or_default();
            if let Some(other) = same.iter().find(|other| !file.may_be(other)) {
                let (of, theirs) = (other.flag, other.path.display());
                return unusable(format!(
                    "{shown} is the same file as {theirs} of {of}: give each a path of its own"
                ));
            }
            same.push(file);
        }
        let Ok(found) = fs::metadata(path) else { continue };
        if found.is_dir() {
            return unusable(format!("{shown} is a folder: give the path of a file in it"));
        }
        if file.is_trusted() && others_may_write(&found) {
            return unusable(format!("{shown}: {}", written_by_others(&found)));
        }
    }
    Ok(())
}

/// Returns the files with secrets that every user of this machine may read, and their modes.
pub fn readable_by_all(files: &[UsedFile]) -> impl Iterator<Item = (&UsedFile, u32)> {
    files.iter().filter_map(|file| {
        let found = fs::metadata(&file.path).ok()?;
        let is_secret = matches!(file.usage, Usage::Secret | Usage::Password);
        let is_open = found.is_file() && found.mode() & READABLE_BY_ALL != 0;
        (is_secret && is_open).then_some((file, found.mode() & 0o7777))
    })
}

/// Explains that a symbolic link is not written to, and names the path to use instead.
#[must_use]
pub fn link_hint(path: &Path) -> String {
    let shown = path.display();
    let target = fs::read_link(path).map(|target| folder(path).join(target));
    let instead = target.map_or(String::new(), |target| format!(", {}", target.display()));
    format!(
        "{shown} is a symbolic link, and none is followed where something is written: give the \
         path that it leads to{instead}"
    )
}

fn others_may_write(found: &Metadata) -> bool {
    found.is_file() && found.mode() & WRITABLE_BY_OTHERS != 0
}

fn written_by_others(found: &Metadata) -> String {
    let mode = found.mode() & 0o7777;
    format!(
        "its group or everybody may write it (mode {mode:04o}), and could put something else into \
         it: take that away with `chmod go-w`"
    )
}

/// Reads a trusted file, such as one with tokens. It is refused if others may write it.
///
/// # Errors
///
/// The system's error, or an explanation of what is wrong with the file's mode.
pub fn read_trusted(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let found = file.metadata()?;
    if others_may_write(&found) {
        return Err(io::Error::other(written_by_others(&found)));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Revokes the write permission of everybody but the owner. Returns the previous mode if that
/// changed anything.
///
/// # Errors
///
/// The mode has to be changed but cannot be, because the file belongs to another user.
pub fn take_from_others(file: &File) -> io::Result<Option<u32>> {
    let found = file.metadata()?;
    if !others_may_write(&found) {
        return Ok(None);
    }
    let mode = found.mode() & 0o7777;
    let mended = fs::Permissions::from_mode(mode & !WRITABLE_BY_OTHERS);
    let failed = |error| io::Error::other(format!("{}: {error}", written_by_others(&found)));
    file.set_permissions(mended).map_err(failed)?;
    Ok(Some(mode))
}

/// An advisory lock on a companion file. The system releases it when the process ends, even if it is
/// killed, so that a lock file that was left behind does not block the next process.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Locks `PATH.lock`. Returns `None` if another process holds that lock. If its holder removed
    /// the file between our opening and locking it, we locked an orphaned inode, and try again.
    ///
    /// # Errors
    ///
    /// The system refuses, the file is not empty and thus not a lock, or others may write it and
    /// that permission cannot be revoked.
    pub fn beside(path: &Path) -> io::Result<Option<Self>> {
        let path = beside(path, "lock");
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let file = no_follow(&mut options).open(&path)?;
            if file.metadata()?.len() > 0 {
                return Err(io::Error::other(format!(
                    "{} is no lock, for it is not empty: move it away, or choose another path",
                    path.display()
                )));
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(source)) => return Err(source),
            }
            take_from_others(&file)?;
            let ours = file.metadata()?;
            match fs::symlink_metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                    return Ok(Some(Self { path, file }));
                }
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Remove it before unlocking: otherwise another process could lock the file that we are
        // about to remove, and a third one would create and lock a new one.
        let _ = fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests;
