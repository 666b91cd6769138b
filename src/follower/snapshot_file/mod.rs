//! The file of a table that was saved: its position, the pairs, and their hash under the ledger's
//! secret, which itself is not in the file.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::state_machine::WarmStart;
use crate::table::{Table, TableImage, TableImageError};
use consentd_core::id::KeySecret;
use consentd_core::time::Timestamp;
use consentd_ledger::Position;
use consentd_os::files::{beginning, folder};

/// What a file begins with: a name, and the version of what follows.
const MAGIC: [u8; 12] = *b"consentd\0\0\0\x02";
/// How many of these bytes a damaged file of ours may have lost, and not be taken for another's.
const MAX_DAMAGED_MAGIC_BYTES: usize = 4;
/// The bytes of a position within an epoch.
const POSITION_BYTES: usize = 28;
/// The bytes behind the pairs that are not hashed.
const TRAILER_BYTES: usize = 32 + 16;
/// How much is read and written at once.
const BUFFER_BYTES: usize = 1 << 18;

/// What is known before the pairs are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct SnapshotHeader {
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
pub(super) struct WrittenPairs {
    file: HashingStream<BufWriter<NamedTempFile>>,
}

/// What passes through, and its hash.
struct HashingStream<T> {
    inner: T,
    hash: Sha256,
    count: u64,
}

impl<T> HashingStream<T> {
    fn of(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), count: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.count = self.count.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    }
}

impl<T: Write> Write for HashingStream<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.take(bytes.get(..count).unwrap_or(bytes));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for HashingStream<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(bytes)?;
        self.take(bytes.get(..count).unwrap_or(bytes));
        Ok(count)
    }
}

fn step(position: &Position) -> [u8; POSITION_BYTES] {
    let mut bytes = [0; POSITION_BYTES];
    let (revision, head) = bytes.split_at_mut(8);
    revision.copy_from_slice(&position.revision.to_le_bytes());
    head.copy_from_slice(&position.head);
    bytes
}

fn array<const N: usize>(input: &mut impl Read) -> Result<[u8; N], TableImageError> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn long(input: &mut impl Read) -> Result<u64, TableImageError> {
    Ok(u64::from_le_bytes(array(input)?))
}

fn time(input: &mut impl Read) -> Result<Timestamp, TableImageError> {
    let millis = i64::from_le_bytes(array(input)?);
    Timestamp::from_millis(millis).ok_or(TableImageError::Damaged)
}

/// How the names begin of files that are not a table yet.
fn prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".new-");
    prefix
}

/// Writes the pairs beside the file, readable by its owner alone, while `resumable` says so.
pub(super) fn write(
    path: &Path,
    start: &SnapshotHeader,
    table: &Table,
    resumable: impl Fn() -> bool,
) -> io::Result<WrittenPairs> {
    let file = tempfile::Builder::new().prefix(&prefix(path)).tempfile_in(folder(path))?;
    let mut file = HashingStream::of(BufWriter::with_capacity(BUFFER_BYTES, file));
    file.write_all(&MAGIC)?;
    file.write_all(&start.from.epoch)?;
    file.write_all(&step(&start.from))?;
    file.write_all(&start.accepted.to_le_bytes())?;
    file.write_all(&start.seen.as_millis().to_le_bytes())?;
    file.write_all(&start.proven.as_millis().to_le_bytes())?;
    table.save(&mut file, resumable)?;
    Ok(WrittenPairs { file })
}

/// Makes what was written a table that goes up to `until` at the most, in the place of the one
/// before; gives its size.
pub(super) fn finish(
    path: &Path,
    written: WrittenPairs,
    until: &Position,
    secret: &KeySecret,
) -> io::Result<u64> {
    let mut file = written.file;
    file.write_all(&step(until))?;
    let HashingStream { mut inner, hash, count } = file;
    let hash: [u8; 32] = hash.finalize().into();
    inner.write_all(&hash)?;
    inner.write_all(&secret.digest(&hash))?;
    let file = inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder(path))?.sync_all()?;
    Ok(count.saturating_add(u64::try_from(TRAILER_BYTES).unwrap_or(0)))
}

/// Whether a file may be a table that was saved, if a damaged one.
fn is_ours(path: &Path) -> bool {
    let most = u64::try_from(MAGIC.len()).unwrap_or(0);
    beginning(path, most).is_ok_and(|bytes| {
        let lost = MAGIC.iter().zip(&bytes).filter(|(wanted, found)| wanted != found).count();
        bytes.len() == MAGIC.len() && lost <= MAX_DAMAGED_MAGIC_BYTES
    })
}

/// Whether saving would destroy something else: there is a file, not empty, that is none of ours.
pub(super) fn is_foreign_file(path: &Path) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else { return false };
    !found.is_file() || (found.len() > 0 && !is_ours(path))
}

/// The saved tables in a folder, of which so many entries are looked at.
pub(super) fn snapshot_files_in(folder: &Path, most: usize) -> Vec<PathBuf> {
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
pub(super) fn read(
    path: &PathBuf,
) -> Result<Option<(WarmStart, TableImage, SnapshotHeader)>, TableImageError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let size = file.metadata()?.len();
    decode(BufReader::with_capacity(BUFFER_BYTES, file), size).map(Some).map_err(
        |error| match error {
            // It ends too soon.
            TableImageError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                TableImageError::Damaged
            }
            error => error,
        },
    )
}

/// Reads a file of that size.
fn decode(
    input: impl Read,
    size: u64,
) -> Result<(WarmStart, TableImage, SnapshotHeader), TableImageError> {
    let mut input = HashingStream::of(input);
    if array(&mut input)? != MAGIC {
        return Err(TableImageError::Damaged);
    }
    let epoch = array(&mut input)?;
    let position = |input: &mut HashingStream<_>| {
        Ok::<_, TableImageError>(Position { epoch, revision: long(input)?, head: array(input)? })
    };
    let from = position(&mut input)?;
    let accepted = long(&mut input)?;
    let (seen, proven) = (time(&mut input)?, time(&mut input)?);
    let saved = TableImage::read(&mut input, size)?;
    let until = position(&mut input)?;
    let HashingStream { mut inner, hash, .. } = input;
    let hash: [u8; 32] = hash.finalize().into();
    let (known, seal) = (array(&mut inner)?, array(&mut inner)?);
    let ordered = from.revision < until.revision || from == until;
    if hash != known || !ordered || inner.read(&mut [0])? > 0 {
        return Err(TableImageError::Damaged);
    }
    Ok((
        WarmStart { from, until, accepted, hash, seal },
        saved,
        SnapshotHeader { from, accepted, seen, proven },
    ))
}

#[cfg(test)]
mod tests;
