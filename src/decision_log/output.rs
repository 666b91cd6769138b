//! The destination of lines: a file that is rotated when it is full, or standard output.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::LogTarget;
use consentd_os::clock;
use consentd_os::files;

/// How often the open file is compared with its path, because another program may have moved or
/// truncated it.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The beginning of every line, by which a file is recognised as a decision log; `?` stands for any byte
/// of the time. Other programs' JSON logs begin with a time, too, but not with a pair after it.
const LINE_PREFIX: &[u8] = br#"{"time":"????????????????????????","pair":""#;

/// The permissions of a new file, before the umask. The group may read it: no line names a user.
const FILE_MODE: u32 = 0o640;

/// The destination of lines.
pub(super) struct Output {
    target: LogTarget,
    max_size: u64,
    keep: u32,
    open: Option<Open>,
    /// When the open file was last compared with its path, by the boot clock.
    checked_at: Duration,
    /// Whether the file ends in a part of a line that could not be truncated.
    torn: bool,
}

/// An open file.
struct Open {
    file: File,
    /// Its size in bytes; nothing if it is no regular file.
    size: Option<u64>,
}

impl Output {
    pub(super) fn new(target: LogTarget, max_size: u64, keep: u32) -> io::Result<Self> {
        let checked_at = clock::boot();
        let mut output = Self { target, max_size, keep, open: None, checked_at, torn: false };
        let may_block = match &output.target {
            LogTarget::Stdout => false,
            LogTarget::File(path) => {
                for number in 1..=keep {
                    ensure_is_decision_log(&rotated_path(path, number))?;
                }
                fs::metadata(path).is_ok_and(|found| !found.is_file())
            }
        };
        if !may_block {
            output.open = Some(open(&output.target)?);
        }
        Ok(output)
    }

    /// Writes lines. Returns how many were written, and the error if some were not.
    pub(super) fn write(&mut self, lines: &[u8]) -> (usize, Option<io::Error>) {
        match self.try_write(lines) {
            Ok(()) => (lines_in(lines), None),
            Err((written, error)) => {
                // The next write opens the file again: the error may concern this descriptor alone.
                self.open = None;
                (lines_in(lines.get(..written).unwrap_or_default()), Some(error))
            }
        }
    }

    /// Writes lines. An error comes with the length in bytes of the lines that were written.
    fn try_write(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut open = self.file_with_room(lines.len()).map_err(|error| (0, error))?;
        if std::mem::take(&mut self.torn) && write_all(&mut open.file, b"\n").1.is_some() {
            self.torn = true;
        }
        let (done, failed) = write_all(&mut open.file, lines);
        if let Some(error) = failed {
            let whole = lines.get(..done).unwrap_or_default();
            let whole = whole.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            self.torn |= done > whole && !truncate_tail(&open.file, done - whole);
            return Err((whole, error));
        }
        open.size = open.size.map(|size| size.saturating_add(bytes(lines.len())));
        self.open = Some(open);
        Ok(())
    }

    /// The file to which these bytes can be written, opened or rotated if necessary.
    fn file_with_room(&mut self, more: usize) -> io::Result<Open> {
        self.follow_path()?;
        if self.open.is_none() {
            // An existing file may be full already, so the check of its size comes next.
            self.open = Some(open(&self.target)?);
        }
        self.rotate_if_full(more)?;
        match self.open.take() {
            Some(open) => Ok(open),
            None => open(&self.target),
        }
    }

    /// Closes the file if another program has moved it away, and updates its size, which another
    /// program may have truncated.
    fn follow_path(&mut self) -> io::Result<()> {
        let (LogTarget::File(path), Some(open)) = (&self.target, &mut self.open) else {
            return Ok(());
        };
        let now = clock::boot();
        if open.size.is_none() || now.saturating_sub(self.checked_at) < FILE_CHECK_INTERVAL {
            return Ok(());
        }
        self.checked_at = now;
        let ours = open.file.metadata()?;
        open.size = Some(ours.len());
        if !is_named(path, &ours)? {
            self.open = None;
        }
        Ok(())
    }

    /// Rotates the file if these bytes would make it too large. If that fails, nothing is written:
    /// the limit of disk space holds.
    fn rotate_if_full(&mut self, more: usize) -> io::Result<()> {
        let (LogTarget::File(path), Some(open)) = (&self.target, &self.open) else { return Ok(()) };
        let Some(size) = open.size.filter(|size| *size > 0) else { return Ok(()) };
        if size.saturating_add(bytes(more)) <= self.max_size {
            return Ok(());
        }
        // A file that was moved away needs no rotation.
        let is_ours = is_named(path, &open.file.metadata()?)?;
        self.open = None;
        if !is_ours {
            return Ok(());
        }
        if self.keep == 0 {
            fs::remove_file(path)?;
        } else {
            // The oldest file is overwritten, so it must be a decision log.
            ensure_is_decision_log(&rotated_path(path, self.keep))?;
            for number in (1..self.keep).rev() {
                rename(&rotated_path(path, number), &rotated_path(path, number + 1))?;
            }
            rename(path, &rotated_path(path, 1))?;
        }
        Ok(())
    }
}

fn open(target: &LogTarget) -> io::Result<Open> {
    let file = match target {
        LogTarget::File(path) => {
            let mut options = OpenOptions::new();
            options.create(true).append(true).mode(FILE_MODE);
            let file = files::no_follow(&mut options).open(path)?;
            if file.metadata()?.is_file() {
                ensure_is_decision_log(path)?;
            }
            file
        }
        // A duplicate of the descriptor, so that writes are not buffered.
        LogTarget::Stdout => io::stdout().as_fd().try_clone_to_owned()?.into(),
    };
    let found = file.metadata()?;
    let is_ours = found.is_file() && matches!(target, LogTarget::File(_));
    Ok(Open { file, size: is_ours.then_some(found.len()) })
}

/// Refuses a file that is neither empty nor a decision log, so that it is neither extended nor
/// overwritten. A missing file is accepted.
fn ensure_is_decision_log(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if found.is_symlink() {
        return Err(io::Error::other(files::link_hint(path)));
    }
    let first = files::beginning(path, 64)?;
    // A newline may precede the first line: it ends a torn line.
    let line = first.trim_ascii_start();
    let mut compared = line.iter().zip(LINE_PREFIX);
    if found.is_file() && compared.all(|(byte, ours)| *ours == b'?' || byte == ours) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{} is not a decision log and was left unchanged: move it away, or give the decision log a \
         path of its own",
        path.display()
    )))
}

/// Writes all bytes. Returns how many were written, and the error if some were not.
fn write_all(file: &mut File, mut rest: &[u8]) -> (usize, Option<io::Error>) {
    let mut done = 0;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return (done, Some(io::ErrorKind::WriteZero.into())),
            Ok(written) => {
                done += written;
                rest = rest.get(written..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}

/// Truncates a regular file by its last bytes. Returns whether that was possible.
fn truncate_tail(file: &File, last: usize) -> bool {
    let Ok(found) = file.metadata() else { return false };
    found.is_file() && file.set_len(found.len().saturating_sub(bytes(last))).is_ok()
}

/// The path of a rotated file. Number 1 is the youngest.
fn rotated_path(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Renames a file, if it exists.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

/// Whether a path still names the open file.
fn is_named(path: &Path, ours: &Metadata) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn lines_in(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'\n').skip(1).count()
}

fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
