//! The file of a table that was saved: its position, the pairs, and their hash under the ledger's
//! secret, which itself is not in the file.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::machine::Warm;
use crate::table::{Saved, SavedError, Table};
use consentd_core::id::KeySecret;
use consentd_core::time::Timestamp;
use consentd_ledger::Position;
use consentd_os::files::{beginning, folder};

/// What a file begins with: a name, and the version of what follows.
const MAGIC: [u8; 12] = *b"consentd\0\0\0\x02";
/// How many of these bytes a damaged file of ours may have lost, and not be taken for another's.
const MAX_LOST: usize = 4;
/// The bytes of a position within an epoch.
const STEP: usize = 28;
/// The bytes behind the pairs that are not hashed.
const SEALS: usize = 32 + 16;
/// How much is read and written at once.
const AT_ONCE: usize = 1 << 18;

/// What is known before the pairs are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// What is applied.
    pub(super) from: Position,
    /// How often an operator had accepted the ledger.
    pub(super) accepted: u64,
    /// The latest that the ledger's clock said.
    pub(super) seen: Timestamp,
    /// When, by this machine's clock, the table was proven last.
    pub(super) proven: Timestamp,
}

/// Pairs that were written beside the file, and are not a table yet.
pub(super) struct Written {
    file: Hashing<BufWriter<NamedTempFile>>,
}

/// What passes through, and its hash.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
    count: u64,
}

impl<T> Hashing<T> {
    fn of(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), count: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.count = self.count.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.take(bytes.get(..count).unwrap_or(bytes));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(bytes)?;
        self.take(bytes.get(..count).unwrap_or(bytes));
        Ok(count)
    }
}

fn step(position: &Position) -> [u8; STEP] {
    let mut bytes = [0; STEP];
    let (revision, head) = bytes.split_at_mut(8);
    revision.copy_from_slice(&position.revision.to_le_bytes());
    head.copy_from_slice(&position.head);
    bytes
}

fn array<const N: usize>(input: &mut impl Read) -> Result<[u8; N], SavedError> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn long(input: &mut impl Read) -> Result<u64, SavedError> {
    Ok(u64::from_le_bytes(array(input)?))
}

fn time(input: &mut impl Read) -> Result<Timestamp, SavedError> {
    let millis = i64::from_le_bytes(array(input)?);
    Timestamp::from_millis(millis).ok_or(SavedError::Damaged)
}

/// How the names begin of files that are not a table yet.
fn prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".new-");
    prefix
}

/// Writes the pairs beside the file, readable by its owner alone, while `goes_on` says so.
pub(super) fn write(
    path: &Path,
    start: &Start,
    table: &Table,
    goes_on: impl Fn() -> bool,
) -> io::Result<Written> {
    let file = tempfile::Builder::new().prefix(&prefix(path)).tempfile_in(folder(path))?;
    let mut file = Hashing::of(BufWriter::with_capacity(AT_ONCE, file));
    file.write_all(&MAGIC)?;
    file.write_all(&start.from.epoch)?;
    file.write_all(&step(&start.from))?;
    file.write_all(&start.accepted.to_le_bytes())?;
    file.write_all(&start.seen.as_millis().to_le_bytes())?;
    file.write_all(&start.proven.as_millis().to_le_bytes())?;
    table.save(&mut file, goes_on)?;
    Ok(Written { file })
}

/// Makes what was written a table that goes up to `until` at the most, in the place of the one
/// before; gives its size.
pub(super) fn finish(
    path: &Path,
    written: Written,
    until: &Position,
    secret: &KeySecret,
) -> io::Result<u64> {
    let mut file = written.file;
    file.write_all(&step(until))?;
    let Hashing { mut inner, hash, count } = file;
    let hash: [u8; 32] = hash.finalize().into();
    inner.write_all(&hash)?;
    inner.write_all(&secret.digest(&hash))?;
    let file = inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder(path))?.sync_all()?;
    Ok(count.saturating_add(u64::try_from(SEALS).unwrap_or(0)))
}

/// Whether a file may be a table that was saved, if a damaged one.
fn is_ours(path: &Path) -> bool {
    let most = u64::try_from(MAGIC.len()).unwrap_or(0);
    beginning(path, most).is_ok_and(|bytes| {
        let lost = MAGIC.iter().zip(&bytes).filter(|(wanted, found)| wanted != found).count();
        bytes.len() == MAGIC.len() && lost <= MAX_LOST
    })
}

/// Whether saving would destroy something else: there is a file, not empty, that is none of ours.
pub(super) fn is_anothers(path: &Path) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else { return false };
    !found.is_file() || (found.len() > 0 && !is_ours(path))
}

/// The saved tables in a folder, of which so many entries are looked at.
pub(super) fn all_in(folder: &Path, most: usize) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().take(most);
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| is_ours(path)).collect()
}

/// Takes away what a process left that ended while it wrote.
pub(super) fn clear(path: &Path) -> io::Result<()> {
    let prefix = prefix(path);
    for entry in fs::read_dir(folder(path))? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A table that was saved, and when it was proven last; none where there is no file.
pub(super) fn read(path: &PathBuf) -> Result<Option<(Warm, Saved, Start)>, SavedError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let size = file.metadata()?.len();
    decode(BufReader::with_capacity(AT_ONCE, file), size).map(Some).map_err(|error| match error {
        // It ends too soon.
        SavedError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            SavedError::Damaged
        }
        error => error,
    })
}

/// Reads a file of that size.
fn decode(input: impl Read, size: u64) -> Result<(Warm, Saved, Start), SavedError> {
    let mut input = Hashing::of(input);
    if array(&mut input)? != MAGIC {
        return Err(SavedError::Damaged);
    }
    let epoch = array(&mut input)?;
    let position = |input: &mut Hashing<_>| {
        Ok::<_, SavedError>(Position { epoch, revision: long(input)?, head: array(input)? })
    };
    let from = position(&mut input)?;
    let accepted = long(&mut input)?;
    let (seen, proven) = (time(&mut input)?, time(&mut input)?);
    let saved = Saved::read(&mut input, size)?;
    let until = position(&mut input)?;
    let Hashing { mut inner, hash, .. } = input;
    let hash: [u8; 32] = hash.finalize().into();
    let (known, seal) = (array(&mut inner)?, array(&mut inner)?);
    let ordered = from.revision < until.revision || from == until;
    if hash != known || !ordered || inner.read(&mut [0])? > 0 {
        return Err(SavedError::Damaged);
    }
    Ok((Warm { from, until, accepted, hash, seal }, saved, Start { from, accepted, seen, proven }))
}

#[cfg(test)]
#[path = "saved_tests.rs"]
mod tests;
