//! The progress of an import, saved next to its input, so that the same command can continue.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::rows::Position;
use consentd_os::files;

/// How much of the input before a position is hashed, to recognise the same input, in bytes.
const TAIL_BYTES: u64 = 64 * 1024;

/// The progress of an import. Its field names are the file's format.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Progress {
    /// The id of the ledger that the rows were recorded in.
    pub(super) ledger: String,
    /// The highest revision of the responses.
    pub(super) revision: u64,
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

    /// The saved progress, if it belongs to the input's present content.
    pub(super) fn load(&self) -> Option<Progress> {
        let text = std::fs::read(&self.path).ok()?;
        let progress: Progress = serde_json::from_slice(&text).ok()?;
        let tail = self.tail(progress.offset).ok()?;
        (tail == progress.tail && progress.line > 0).then_some(progress)
    }

    /// Whether the path holds something else, which must not be overwritten.
    pub(super) fn is_foreign(&self) -> bool {
        match std::fs::read(&self.path) {
            Ok(text) if text.is_empty() => false,
            Ok(text) => serde_json::from_slice::<Progress>(&text).is_err(),
            Err(error) => error.kind() != ErrorKind::NotFound,
        }
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
    pub(super) fn of(ledger: String, meaning: String, first: Position) -> Self {
        let tally = RowCounts { header_lines: first.line - 1, ..RowCounts::default() };
        let Position { offset, line } = first;
        Self { ledger, offset, line, tally, meaning, ..Self::default() }
    }

    pub(super) fn position(&self) -> Position {
        Position { offset: self.offset, line: self.line }
    }
}
