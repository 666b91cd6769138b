//! How far an import came, kept beside its input, so that the same command goes on from there.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::hex;
use super::rows::Place;
use crate::files;

/// How much of the input before a place tells that it is the same input.
const TAIL: u64 = 64 * 1024;

/// What is kept.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Progress {
    /// The ledger that the rows are in.
    pub(super) ledger: String,
    /// Its last revision that an answer named.
    pub(super) revision: u64,
    /// How many bytes of the input are done with.
    pub(super) offset: u64,
    /// The line that begins there, from 1.
    pub(super) line: u64,
    /// The SHA-256 of the input's last bytes before that.
    tail: String,
    /// What came of the rows so far.
    pub(super) tally: Tally,
    /// How long the file of rejected rows was then.
    pub(super) rejects: u64,
    /// The inode of that file, by which it is known again; none where there is no such file.
    #[serde(default)]
    pub(super) rejects_inode: Option<u64>,
}

/// What came of rows.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(super) struct Tally {
    /// They changed what is known.
    pub(super) applied: u64,
    /// They were known, or older than what is known.
    pub(super) unchanged: u64,
    /// They were not recorded.
    pub(super) rejected: u64,
}

impl Tally {
    pub(super) fn rows(&self) -> u64 {
        self.applied + self.unchanged + self.rejected
    }
}

/// The file of an input's progress.
pub(super) struct Keeper {
    input: PathBuf,
    path: PathBuf,
}

impl Keeper {
    /// The keeper of a file's progress. What cannot be read twice has none.
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

    /// What was kept, where it is of this input as it is now.
    pub(super) fn load(&self) -> Option<Progress> {
        let text = std::fs::read(&self.path).ok()?;
        let progress: Progress = serde_json::from_slice(&text).ok()?;
        let tail = self.tail(progress.offset).ok()?;
        (tail == progress.tail && progress.line > 0).then_some(progress)
    }

    /// Whether there is a file, not empty, that is no import's progress: it is not replaced.
    pub(super) fn is_in_the_way(&self) -> bool {
        match std::fs::read(&self.path) {
            Ok(text) if text.is_empty() => false,
            Ok(text) => serde_json::from_slice::<Progress>(&text).is_err(),
            Err(error) => error.kind() != ErrorKind::NotFound,
        }
    }

    /// Keeps it, whole or not at all.
    pub(super) fn save(&self, progress: &mut Progress) -> anyhow::Result<()> {
        progress.tail = self.tail(progress.offset)?;
        let mut file = tempfile::NamedTempFile::new_in(files::folder(&self.path))?;
        file.write_all(&serde_json::to_vec(progress)?)?;
        file.persist(&self.path)
            .with_context(|| format!("cannot keep the progress in {}", self.path.display()))?;
        Ok(())
    }

    pub(super) fn remove(&self) {
        // Where there is none, that is as well.
        let _ = std::fs::remove_file(&self.path);
    }

    fn tail(&self, offset: u64) -> std::io::Result<String> {
        let mut file = File::open(&self.input)?;
        let from = offset.saturating_sub(TAIL);
        file.seek(SeekFrom::Start(from))?;
        let mut tail = vec![0; usize::try_from(offset - from).unwrap_or(0)];
        file.read_exact(&mut tail)?;
        let digest = Sha256::digest(&tail);
        Ok(hex(&digest))
    }
}

impl Progress {
    /// Nothing yet, into this ledger.
    pub(super) fn of(ledger: String) -> Self {
        Self { ledger, line: 1, ..Self::default() }
    }

    pub(super) fn place(&self) -> Place {
        Place { offset: self.offset, line: self.line }
    }
}
