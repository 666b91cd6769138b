//! The mark beside a ledger's file: up to where events were acknowledged.
//!
//! A file that a backup was put in place of, or of which redb had to drop the last commit because
//! it was damaged, looks like any other. The mark, `PATH.acknowledged`, shows at the next start that
//! it ends too early, and, where the file itself is gone, that there was one. It is written after
//! the commit and not synced: after a loss of power it may say less than was acknowledged, and never
//! more. It names nobody.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::opening::OpenError;
use crate::consent::record::Revision;
use crate::files;
use crate::ledger::{Epoch, LogHead};

/// The suffix of the mark's file.
pub(super) const SUFFIX: &str = "acknowledged";

/// How long a mark may be; ours are of one length.
const MAX_BYTES: u64 = 4_096;

/// Where a ledger ended when something was acknowledged last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct End {
    pub(super) epoch: Epoch,
    pub(super) revision: Revision,
    pub(super) head: LogHead,
}

impl End {
    /// Its line, which has the same length for every end: one is written over the other.
    fn line(&self) -> String {
        let (epoch, head) = (hex::encode(self.epoch), hex::encode(self.head));
        format!("ledger {epoch} acknowledged revision {:020} head {head}\n", self.revision)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.split(' ');
        let mut named = |names: &[&str]| {
            names.iter().all(|name| words.next() == Some(name)).then(|| words.next()).flatten()
        };
        let epoch = hex::decode(named(&["ledger"])?).ok()?.try_into().ok()?;
        let revision = named(&["acknowledged", "revision"])?.parse().ok()?;
        let head = hex::decode(named(&["head"])?).ok()?.try_into().ok()?;
        Some(Self { epoch, revision, head })
    }
}

/// What a mark says of the ledger that it lies beside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Nothing, or that all is there.
    Fine,
    /// That events are missing: they were acknowledged up to this revision.
    Missing(Revision),
    /// That it is another ledger.
    Another,
}

/// What the mark at `path` says of a ledger that ends here.
///
/// # Errors
///
/// Where something else is there, or it cannot be read: nobody knows then whether all is there.
pub(super) fn judge(path: &Path, end: &End) -> io::Result<Verdict> {
    Ok(match read(path)? {
        Some(mark) if mark.epoch != end.epoch => Verdict::Another,
        Some(mark) if mark.revision > end.revision => Verdict::Missing(mark.revision),
        Some(mark) if mark.revision == end.revision && mark.head != end.head => {
            Verdict::Missing(mark.revision)
        }
        Some(_) | None => Verdict::Fine,
    })
}

/// None where there is no mark, or one that a loss of power left without its line: it was made, and
/// nothing that is in it was synced yet.
fn read(path: &Path) -> io::Result<Option<End>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io::Error::other(format!("cannot be looked at ({error})"))),
        Ok(found) if !found.is_file() => return Err(io::Error::other("is not a regular file")),
        Ok(_) => {}
    }
    let bytes = files::beginning(path, MAX_BYTES)
        .map_err(|error| io::Error::other(format!("cannot be read ({error})")))?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let end = str::from_utf8(&bytes).ok().and_then(End::parse);
    end.map(Some).ok_or_else(|| io::Error::other("holds something else than a ledger's mark"))
}

/// The mark's path, of a ledger at `path`.
pub(super) fn path_of(path: &Path) -> PathBuf {
    files::beside(path, SUFFIX)
}

/// Removes the mark of a ledger that is no longer at this path, for a new one is made there.
///
/// # Errors
///
/// [`OpenError::NotAMark`] where something else is in its place, which stays as it is.
pub(super) fn remove(ledger: &Path) -> Result<(), OpenError> {
    let (path, mark) = (ledger.to_owned(), path_of(ledger));
    if let Err(why) = read(&mark) {
        return Err(OpenError::NotAMark { path, mark, why: why.to_string() });
    }
    match fs::remove_file(&mark) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(OpenError::Io { path, source }),
        _ => Ok(()),
    }
}

/// A mark that is kept up to date; made when something is acknowledged for the first time.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
    file: Option<File>,
    last: Option<End>,
    /// Whether it could not be written.
    failed: bool,
}

impl Mark {
    pub(super) fn of(ledger: &Path) -> Self {
        Self { path: path_of(ledger), file: None, last: None, failed: false }
    }

    /// Says up to where events were acknowledged. One that cannot be written costs what it is good
    /// for, and not the event: it is given up.
    pub(super) fn set(&mut self, end: End) {
        if self.failed || end.revision == 0 || self.last == Some(end) {
            return;
        }
        match self.write(&end) {
            Ok(()) => self.last = Some(end),
            Err(error) => {
                self.failed = true;
                warn!(
                    mark = %self.path.display(),
                    cause = %error,
                    "the mark beside the ledger cannot be written: an older copy put in its place \
                     would not be noticed; mend what is in the way, and start again"
                );
            }
        }
    }

    fn write(&mut self, end: &End) -> io::Result<()> {
        let line = end.line();
        if let Some(file) = &self.file {
            return file.write_all_at(line.as_bytes(), 0);
        }
        // It may have been put there since the start.
        read(&self.path)
            .map_err(|why| io::Error::other(format!("{} {why}", self.path.display())))?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = files::no_follow(&mut options).open(&self.path)?;
        files::take_from_others(&file)?;
        file.write_all_at(line.as_bytes(), 0)?;
        file.set_len(line.len().try_into().unwrap_or(0))?;
        // Once: that there is a ledger must be known even after a loss of power.
        file.sync_all()?;
        File::open(files::folder(&self.path))?.sync_all()?;
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(revision: Revision) -> End {
        End { epoch: [7; 16], revision, head: [9; 20] }
    }

    #[test]
    fn judge_a_ledger_that_ends_before_its_mark_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("ledger.redb");
        let path = path_of(&ledger);
        let judge = |path: &Path, end: &End| super::judge(path, end).unwrap();
        assert_eq!(judge(&path, &end(0)), Verdict::Fine);
        let mut mark = Mark::of(&ledger);
        mark.set(end(0));
        assert!(!path.exists(), "nothing was acknowledged");
        mark.set(end(1_000));
        mark.set(end(1_001));
        assert_eq!(judge(&path, &end(1_001)), Verdict::Fine);
        assert_eq!(judge(&path, &end(1_002)), Verdict::Fine);
        assert_eq!(judge(&path, &end(1_000)), Verdict::Missing(1_001));
        assert_eq!(judge(&path, &End { head: [0; 20], ..end(1_001) }), Verdict::Missing(1_001));
        assert_eq!(judge(&path, &End { epoch: [0; 16], ..end(9_999) }), Verdict::Another);
        // One that a loss of power left without its line is written again.
        for unwritten in [&[][..], &[0; 100]] {
            fs::write(&path, unwritten).unwrap();
            assert_eq!(judge(&path, &end(1)), Verdict::Fine);
            Mark::of(&ledger).set(end(2));
            assert_eq!(judge(&path, &end(1)), Verdict::Missing(2));
        }
        remove(&ledger).unwrap();
        remove(&ledger).unwrap();
        assert_eq!(judge(&path, &end(1)), Verdict::Fine);
    }

    #[test]
    fn mark_of_other_content_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("ledger.redb");
        let path = path_of(&ledger);
        let line = end(7).line();
        for foreign in ["notes of somebody", &line[..line.len() - 1], &format!("{line}{line}")] {
            fs::write(&path, foreign).unwrap();
            assert!(judge(&path, &end(9)).is_err(), "{foreign:?}");
            Mark::of(&ledger).set(end(9));
            assert!(matches!(remove(&ledger), Err(OpenError::NotAMark { .. })));
            assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
        }
        fs::remove_file(&path).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, &line).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(judge(&path, &end(9)).is_err(), "a link is not followed");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(judge(&path, &end(9)).is_err(), "nor is a folder taken for none");
    }
}
