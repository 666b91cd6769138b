//! The progress of an import, saved next to its input, so that the same command can continue.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::rows::Position;
use super::streams::LedgerName;
use consentd_os::files;

/// How much of the input before a position is hashed, to recognise the same input, in bytes.
const TAIL_BYTES: u64 = 64 * 1024;

const LOST: &str = "the ledger has lost rows of this file that were recorded";

/// The progress of an import. Its field names are the file's format.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Progress {
    /// The id of the ledger that the rows were recorded in.
    pub(super) ledger: String,
    /// The highest revision of the responses.
    pub(super) revision: u64,
    /// The highest revision of the responses about pairs of each of the ledger's partitions, whose revisions
    /// have nothing to do with each other. Empty if it has one; versions before did not save this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) partition_revisions: Vec<u64>,
    /// How many bytes of the input are finished.
    pub(super) offset: u64,
    /// The line that begins there, from 1.
    pub(super) line: u64,
    /// The SHA-256 of the bytes before that offset, at most [`TAIL_BYTES`].
    tail: String,
    pub(super) tally: RowCounts,
    /// The length of the file of rejected rows, in bytes.
    pub(super) rejects: u64,
    /// The inode of that file, if there is one, to recognise it.
    #[serde(default)]
    pub(super) rejects_inode: Option<u64>,
    /// The flags that say what a row means; empty if there were none.
    #[serde(default)]
    pub(super) meaning: String,
}

/// The outcomes of rows, counted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(super) struct RowCounts {
    /// Recorded with an effect.
    pub(super) applied: u64,
    /// Recorded before, or older than the state.
    pub(super) unchanged: u64,
    /// Not recorded.
    pub(super) rejected: u64,
    /// Left out by `--where`.
    #[serde(default)]
    pub(super) left_out: u64,
    /// Lines before the first row.
    #[serde(default)]
    pub(super) header_lines: u64,
    /// Lines with nothing on them, or with nothing but delimiters.
    #[serde(default)]
    pub(super) blank_lines: u64,
    /// Lines on which a row goes on that began on a line before.
    #[serde(default)]
    pub(super) further_lines: u64,
}

impl RowCounts {
    pub(super) fn rows(&self) -> u64 {
        self.applied + self.unchanged + self.rejected + self.left_out
    }

    /// All lines that were read.
    pub(super) fn lines(&self) -> u64 {
        self.rows() + self.header_lines + self.blank_lines + self.further_lines
    }
}

/// The file in which an input's progress is saved.
pub(super) struct ProgressFile {
    input: PathBuf,
    path: PathBuf,
}

impl ProgressFile {
    /// The progress file of an input, unless the input cannot be read twice.
    pub(super) fn of(input: &str) -> Option<Self> {
        let input = Path::new(input);
        if !input.is_file() {
            return None;
        }
        let mut name = input.file_name()?.to_owned();
        name.push(".import-progress");
        Some(Self { input: input.to_owned(), path: input.with_file_name(name) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The saved progress, if it belongs to the input's present content. If the path holds something else,
    /// that must not be overwritten, and is an error.
    pub(super) fn load(&self) -> anyhow::Result<Option<Progress>> {
        let text = match std::fs::read(&self.path) {
            Ok(text) if text.is_empty() => return Ok(None),
            Ok(text) => Some(text),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(_) => None,
        };
        let progress = text.and_then(|text| serde_json::from_slice::<Progress>(&text).ok());
        let Some(progress) = progress else {
            let path = self.path.display();
            bail!("{path} is to keep the progress, and holds something else: move it away");
        };
        let is_of_input =
            progress.line > 0 && self.tail(progress.offset).is_ok_and(|tail| tail == progress.tail);
        Ok(is_of_input.then_some(progress))
    }

    /// Saves the progress atomically.
    pub(super) fn save(&self, progress: &mut Progress) -> anyhow::Result<()> {
        progress.tail = self.tail(progress.offset)?;
        let mut file = tempfile::NamedTempFile::new_in(files::folder(&self.path))?;
        file.write_all(&serde_json::to_vec(progress)?)?;
        file.persist(&self.path)
            .with_context(|| format!("cannot save the progress in {}", self.path.display()))?;
        Ok(())
    }

    pub(super) fn remove(&self) {
        // If there is no such file, nothing is to be done.
        let _ = std::fs::remove_file(&self.path);
    }

    fn tail(&self, offset: u64) -> std::io::Result<String> {
        let mut file = File::open(&self.input)?;
        let from = offset.saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut tail = vec![0; usize::try_from(offset - from).unwrap_or(0)];
        file.read_exact(&mut tail)?;
        let digest = Sha256::digest(&tail);
        Ok(hex::encode(digest))
    }
}

impl Progress {
    /// The beginning of an import into a ledger, at its first row.
    pub(super) fn of(ledger: &LedgerName, meaning: String, first: Position) -> Self {
        let tally = RowCounts { header_lines: first.line - 1, ..RowCounts::default() };
        let Position { offset, line } = first;
        Self {
            ledger: ledger.id.clone(),
            partition_revisions: vec![0; ledger.partition_revisions.len()],
            offset,
            line,
            tally,
            meaning,
            ..Self::default()
        }
    }

    /// Notes a response about a pair in this partition.
    pub(super) fn note(&mut self, partition: u32, revision: u64) {
        self.revision = self.revision.max(revision);
        let partition = usize::try_from(partition).ok();
        let own = partition.and_then(|number| self.partition_revisions.get_mut(number));
        if let Some(own) = own {
            *own = revision.max(*own);
        }
    }

    /// Why it is not known that a ledger has all rows that were recorded; `None` if it has them.
    pub(super) fn doubt_about(&self, ledger: &LedgerName) -> Option<String> {
        if self.ledger != ledger.id {
            let why = "this is not the ledger that the file was being imported into";
            return Some(why.to_owned());
        }
        let known = &ledger.partition_revisions;
        if self.partition_revisions.len() != known.len() {
            let why = "how far each partition of the ledger was is not known to an older version";
            return Some(why.to_owned());
        }
        // Of one partition the last revision is the ledger's.
        if known.is_empty() {
            return (self.revision > ledger.revision).then(|| LOST.to_owned());
        }
        // A smaller revision of one means that it has lost rows, however far the others are.
        (0..).zip(self.partition_revisions.iter().zip(known)).find_map(
            |(number, pair)| match pair {
                (recorded, Some(revision)) if recorded > revision => {
                    Some(format!("{LOST}, in its partition {number}"))
                }
                (1.., None) => Some(format!("partition {number} of the ledger cannot be read")),
                _ => None,
            },
        )
    }

    pub(super) fn position(&self) -> Position {
        Position { offset: self.offset, line: self.line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(id: &str, revision: u64, partition_revisions: &[Option<u64>]) -> LedgerName {
        let partition_revisions = partition_revisions.to_vec();
        LedgerName { id: id.to_owned(), revision, partition_revisions, ..LedgerName::none() }
    }

    #[test]
    fn import_goes_on_in_a_ledger_whose_every_partition_is_as_far_as_it_was() {
        let start = Position { offset: 0, line: 1 };
        let two = ledger("a", 0, &[Some(0), Some(0)]);
        let mut of_two = Progress::of(&two, String::new(), start);
        of_two.note(0, 7);
        of_two.note(0, 5);
        let mut of_one = Progress::of(&ledger("a", 0, &[]), String::new(), start);
        of_one.note(0, 7);
        let of_older = Progress { partition_revisions: Vec::new(), ..of_two.clone() };
        for (saved, ledger, doubt) in [
            (&of_one, ledger("a", 7, &[]), None),
            (&of_one, ledger("a", 6, &[]), Some("has lost rows")),
            (&of_one, ledger("b", 9, &[]), Some("not the ledger")),
            (&of_two, ledger("a", 7, &[Some(7), Some(0)]), None),
            (&of_two, ledger("a", 7, &[Some(7), None]), None),
            (&of_two, ledger("a", 106, &[Some(6), Some(100)]), Some("in its partition 0")),
            (
                &of_two,
                ledger("a", 100, &[None, Some(100)]),
                Some("partition 0 of the ledger cannot"),
            ),
            (&of_two, ledger("b", 14, &[Some(7), Some(7)]), Some("not the ledger")),
            (&of_two, ledger("a", 14, &[]), Some("an older version")),
            (&of_older, ledger("a", 14, &[Some(7), Some(7)]), Some("an older version")),
        ] {
            let told = saved.doubt_about(&ledger);
            let is_so = match (&told, doubt) {
                (Some(told), Some(part)) => told.contains(part),
                (told, doubt) => told.is_none() && doubt.is_none(),
            };
            assert!(is_so, "{doubt:?}: {told:?}");
        }
    }
}
