//! Files that consentd reads and writes: which of them are one and the same, who may write them,
//! and locks beside them. No symbolic link is followed where something is written.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// The permission bits by which the group and everybody else may write a file.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The permission bit by which everybody may read a file.
const READABLE_BY_ALL: u32 = 0o004;

/// How many symbolic links are resolved one behind the other, as many as Linux does.
const MAX_LINKS: usize = 40;

/// Makes an open fail where the path's last component is a symbolic link: whoever may write the
/// folder could otherwise choose which other file is written.
pub fn no_follow(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
}

/// Whether a path's last component is a symbolic link.
#[must_use]
pub fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink())
}

/// Whether an error says that a symbolic link was not followed.
#[must_use]
pub fn is_link_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// The first bytes of a file, `most` of them or as many as it has. Nothing but a regular file is
/// opened, since opening a FIFO could wait for ever.
///
/// # Errors
///
/// What the system says.
pub fn beginning(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if fs::metadata(path)?.is_file() {
        File::open(path)?.take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// The folder that a path's last component is in.
#[must_use]
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path with `.` and a suffix behind its file name.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// What a file is, whatever path leads to it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Identity {
    /// A file that exists, by device and inode: hard links are the same file.
    Inode(u64, u64),
    /// A file that does not exist yet, by the device and inode of its folder and by its name.
    Missing(u64, u64, OsString),
}

impl Identity {
    /// Nothing where the system does not tell: whoever opens that file will hear why.
    fn of(path: &Path) -> Option<Self> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            match fs::metadata(&path) {
                Ok(found) => return Some(Self::Inode(found.dev(), found.ino())),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(_) => return None,
            }
            // A symbolic link to nothing: what would be made is where it leads.
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

/// Whether two paths lead to one file, links included. Neither needs to exist.
#[must_use]
pub fn is_same(one: &Path, other: &Path) -> bool {
    Identity::of(one).is_some_and(|one| Identity::of(other) == Some(one))
}

/// What a file is used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Usage {
    /// It is written: it can be nothing else.
    Written,
    /// It holds tokens or secrets, of one flag.
    Secret,
    /// It holds a password at the ledger, which may be one password for several servers.
    Password,
    /// It holds certificates or their key, which are often kept in one file.
    Certificate,
    /// It is read: settings, or events.
    Input,
}

/// A file that a flag names.
#[derive(Clone, Debug)]
pub struct UsedFile {
    /// The flag.
    pub flag: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What it is used for.
    pub usage: Usage,
}

impl UsedFile {
    /// Whether both may be the same file: reading it twice for one purpose does no harm.
    fn may_be(&self, other: &Self) -> bool {
        let shared = match self.usage {
            Usage::Written => false,
            Usage::Secret | Usage::Input => self.flag == other.flag,
            Usage::Password | Usage::Certificate => true,
        };
        shared && self.usage == other.usage
    }

    /// Whether what it holds is to be trusted or kept secret.
    fn is_trusted(&self) -> bool {
        matches!(self.usage, Usage::Secret | Usage::Password | Usage::Certificate)
    }
}

/// Why files cannot be used together, or one of them not at all.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{flag}: {why}")]
pub struct Unusable {
    /// The flag that names the file.
    pub flag: &'static str,
    /// What was wrong, and what would be right.
    pub why: String,
}

/// Sees that no two files are one, unless that does no harm, that none is a folder, that what is
/// written is no symbolic link, and that nobody else may write what is trusted.
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

/// Of these files, those with secrets that everybody on this machine may read, and their modes.
pub fn readable_by_all(files: &[UsedFile]) -> impl Iterator<Item = (&UsedFile, u32)> {
    files.iter().filter_map(|file| {
        let found = fs::metadata(&file.path).ok()?;
        let is_secret = matches!(file.usage, Usage::Secret | Usage::Password);
        let is_open = found.is_file() && found.mode() & READABLE_BY_ALL != 0;
        (is_secret && is_open).then_some((file, found.mode() & 0o7777))
    })
}

/// Why a symbolic link is not written to, and what to give in its place.
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

/// Reads a file whose content is trusted, such as one of tokens: refused where others may write it.
///
/// # Errors
///
/// What the system says, or what is wrong with the file's mode.
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

/// Takes the right to write an open file away from all but its owner; gives its mode of before
/// where they had it.
///
/// # Errors
///
/// Where they have it and it cannot be taken away: the file is another user's.
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

/// A lock beside a file, held for as long as the process lives: the system gives it up where the
/// process is killed, so that a lock file which was left behind is in nobody's way.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Locks `PATH.lock` beside a path; none where another process has it. A lock that was removed
    /// while we waited for it is no lock any more: whoever removed it held it to the end.
    ///
    /// # Errors
    ///
    /// Where the system refuses, where the file is no lock, or where others may write it and that
    /// cannot be taken away from them.
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
        // Before it is unlocked: nobody must find a lock that we are about to remove.
        let _ = fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
