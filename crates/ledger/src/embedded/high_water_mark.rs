//! The high-water mark of acknowledged events, in the file `PATH.acknowledged` next to the ledger.
//!
//! A file that was replaced by an older backup, or whose last commit redb dropped because it was
//! damaged, looks like any other. At the next start, the mark reveals that the ledger ends too early;
//! if the ledger is missing, the mark shows that there was one. It is written after the commit and
//! not synced: after a power loss it may be lower than what was acknowledged, but never higher. It
//! contains no user ids.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tracing::warn;

use super::open_error::OpenError;
use crate::{Epoch, LogHead};
use consentd_core::record::Revision;
use consentd_os::files;

/// The suffix of the mark's file name.
pub(super) const SUFFIX: &str = "acknowledged";

/// The maximum size of a mark's file; ours all have the same, smaller size.
const MAX_MARK_BYTES: u64 = 4_096;

/// The end of a ledger at its last acknowledgement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct LedgerEnd {
    pub(super) epoch: Epoch,
    pub(super) revision: Revision,
    pub(super) head: LogHead,
}

impl LedgerEnd {
    /// The content of the mark's file. Its length is constant, so that it can be overwritten in
    /// place.
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

/// How a ledger compares with its mark.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Nothing is missing, or there is no mark.
    Complete,
    /// Acknowledged events are missing, up to this revision.
    Missing(Revision),
    /// The mark belongs to another ledger.
    OtherLedger,
}

/// Compares a ledger that ends at `end` with the mark at `path`.
///
/// # Errors
///
/// The mark cannot be read, or something else is there. Whether events are missing is then unknown.
pub(super) fn compare(path: &Path, end: &LedgerEnd) -> io::Result<Verdict> {
    Ok(match read(path)? {
        Some(mark) if mark.epoch != end.epoch => Verdict::OtherLedger,
        Some(mark) if mark.revision > end.revision => Verdict::Missing(mark.revision),
        Some(mark) if mark.revision == end.revision && mark.head != end.head => {
            Verdict::Missing(mark.revision)
        }
        Some(_) | None => Verdict::Complete,
    })
}

/// Reads a mark. Returns `None` if there is none, or if it is empty or zeros: a power loss left it so
/// before its first content was synced.
fn read(path: &Path) -> io::Result<Option<LedgerEnd>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io::Error::other(format!("cannot be looked at ({error})"))),
        Ok(found) if !found.is_file() => return Err(io::Error::other("is not a regular file")),
        Ok(_) => {}
    }
    let bytes = files::beginning(path, MAX_MARK_BYTES)
        .map_err(|error| io::Error::other(format!("cannot be read ({error})")))?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let end = str::from_utf8(&bytes).ok().and_then(LedgerEnd::parse);
    end.map(Some).ok_or_else(|| io::Error::other("holds something else than a ledger's mark"))
}

/// The path of the mark of a ledger at `path`.
pub(super) fn path_of(path: &Path) -> PathBuf {
    files::beside(path, SUFFIX)
}

/// Removes the mark of a former ledger, because a new one is created at this path.
///
/// # Errors
///
/// [`OpenError::InvalidMark`] if something else is in the mark's place. It is left as it is.
pub(super) fn remove(ledger: &Path) -> Result<(), OpenError> {
    let (path, mark) = (ledger.to_owned(), path_of(ledger));
    if let Err(why) = read(&mark) {
        return Err(OpenError::InvalidMark { path, mark, why: why.to_string() });
    }
    match fs::remove_file(&mark) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(OpenError::Io { path, source }),
        _ => Ok(()),
    }
}

/// The mark of an open ledger. Its file is created at the first acknowledgement.
#[derive(Debug)]
pub(super) struct HighWaterMark {
    path: PathBuf,
    file: Option<File>,
    last: Option<LedgerEnd>,
    /// Whether writing has failed before.
    failed: bool,
}

impl HighWaterMark {
    pub(super) fn new(ledger: &Path) -> Self {
        Self { path: path_of(ledger), file: None, last: None, failed: false }
    }

    /// Advances the mark to `end`. If it cannot be written, a warning is logged and the mark is given
    /// up: that costs its protection, but must not cost the events.
    pub(super) fn advance(&mut self, end: LedgerEnd) {
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

    fn write(&mut self, end: &LedgerEnd) -> io::Result<()> {
        let line = end.line();
        if let Some(file) = &self.file {
            return file.write_all_at(line.as_bytes(), 0);
        }
        // Something else may have been put there since the start; it is not overwritten.
        read(&self.path)
            .map_err(|why| io::Error::other(format!("{} {why}", self.path.display())))?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = files::no_follow(&mut options).open(&self.path)?;
        files::take_from_others(&file)?;
        file.write_all_at(line.as_bytes(), 0)?;
        file.set_len(line.len().try_into().unwrap_or(0))?;
        // Synced once, so that even after a power loss it is known that there was a ledger.
        file.sync_all()?;
        File::open(files::folder(&self.path))?.sync_all()?;
        self.file = Some(file);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(revision: Revision) -> LedgerEnd {
        LedgerEnd { epoch: [7; 16], revision, head: [9; 20] }
    }

    #[test]
    fn compare_a_ledger_that_ends_before_its_mark_lacks_events() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("ledger.redb");
        let path = path_of(&ledger);
        let compare = |path: &Path, end: &LedgerEnd| super::compare(path, end).unwrap();
        assert_eq!(compare(&path, &end(0)), Verdict::Complete);
        let mut mark = HighWaterMark::new(&ledger);
        mark.advance(end(0));
        assert!(!path.exists(), "nothing was acknowledged");
        mark.advance(end(1_000));
        mark.advance(end(1_001));
        assert_eq!(compare(&path, &end(1_001)), Verdict::Complete);
        assert_eq!(compare(&path, &end(1_002)), Verdict::Complete);
        assert_eq!(compare(&path, &end(1_000)), Verdict::Missing(1_001));
        assert_eq!(
            compare(&path, &LedgerEnd { head: [0; 20], ..end(1_001) }),
            Verdict::Missing(1_001)
        );
        assert_eq!(
            compare(&path, &LedgerEnd { epoch: [0; 16], ..end(9_999) }),
            Verdict::OtherLedger
        );
        // A mark that a power loss left without content is written again.
        for unwritten in [&[][..], &[0; 100]] {
            fs::write(&path, unwritten).unwrap();
            assert_eq!(compare(&path, &end(1)), Verdict::Complete);
            HighWaterMark::new(&ledger).advance(end(2));
            assert_eq!(compare(&path, &end(1)), Verdict::Missing(2));
        }
        remove(&ledger).unwrap();
        remove(&ledger).unwrap();
        assert_eq!(compare(&path, &end(1)), Verdict::Complete);
    }

    #[test]
    fn mark_of_other_content_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("ledger.redb");
        let path = path_of(&ledger);
        let line = end(7).line();
        for foreign in ["notes of somebody", &line[..line.len() - 1], &format!("{line}{line}")] {
            fs::write(&path, foreign).unwrap();
            assert!(compare(&path, &end(9)).is_err(), "{foreign:?}");
            HighWaterMark::new(&ledger).advance(end(9));
            assert!(matches!(remove(&ledger), Err(OpenError::InvalidMark { .. })));
            assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
        }
        fs::remove_file(&path).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, &line).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(compare(&path, &end(9)).is_err(), "a link is not followed");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(compare(&path, &end(9)).is_err(), "nor is a folder taken for none");
    }
}
