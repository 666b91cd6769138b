//! The format of snapshot files: a position, the businesses if the table holds only some, the pairs, their
//! SHA-256, and its digest under the ledger's secret. The secret itself is not in the file.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::state_machine::WarmStart;
use crate::table::{Table, TableImage, TableImageError};
use consentd_core::businesses::{BusinessSet, Businesses};
use consentd_core::id::{KeySecret, MAX_BUSINESS_ID_BYTES};
use consentd_core::time::Timestamp;
use consentd_ledger::Position;
use consentd_os::files::{beginning, folder};

/// The first bytes of a file: a name and the version of the format.
const MAGIC: [u8; 12] = *b"consentd\0\0\0\x02";
/// The same of a table that holds only some businesses, which versions before do not read.
const MAGIC_OF_SOME: [u8; 12] = *b"consentd\0\0\0\x03";
/// How many of the [`MAGIC`] bytes may differ in a file that still counts as a damaged snapshot. In a text
/// that begins with the name, more differ.
const MAX_DAMAGED_MAGIC_BYTES: usize = 3;
/// The bytes of a position without its epoch.
const POSITION_BYTES: usize = 28;
/// The bytes at the end that are not hashed: the hash and its digest.
const TRAILER_BYTES: usize = 32 + 16;
/// The size of the buffer for reads and writes.
const BUFFER_BYTES: usize = 1 << 18;

/// What a file has before the pairs.
#[derive(Clone, Debug)]
pub(super) struct SnapshotHeader {
    /// The position that was applied when the snapshot was started.
    pub(super) from: Position,
    /// How often an operator had accepted the ledger.
    pub(super) accepted: u64,
    /// The latest time of the ledger's clock and of all recorded events.
    pub(super) seen: Timestamp,
    /// When the table was last proven, by this machine's clock.
    pub(super) proven: Timestamp,
    /// The businesses that the table holds.
    pub(super) businesses: Businesses,
}

/// A temporary file with the pairs, which lacks the last position and the hash.
pub(super) struct WrittenPairs {
    file: HashingStream<BufWriter<NamedTempFile>>,
}

/// A stream that hashes and counts the bytes that pass through it.
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

/// The prefix of the names of temporary files.
fn prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".new-");
    prefix
}

/// Writes the pairs to a temporary file in the same folder, which only its owner can read. Fails as
/// soon as `resumable` returns false.
pub(super) fn write(
    path: &Path,
    start: &SnapshotHeader,
    table: &Table,
    resumable: impl Fn() -> bool,
) -> io::Result<WrittenPairs> {
    let file = tempfile::Builder::new().prefix(&prefix(path)).tempfile_in(folder(path))?;
    let mut file = HashingStream::of(BufWriter::with_capacity(BUFFER_BYTES, file));
    let ids = start.businesses.ids();
    file.write_all(if ids.is_some() { &MAGIC_OF_SOME } else { &MAGIC })?;
    file.write_all(&start.from.epoch)?;
    file.write_all(&step(&start.from))?;
    file.write_all(&start.accepted.to_le_bytes())?;
    file.write_all(&start.seen.as_millis().to_le_bytes())?;
    file.write_all(&start.proven.as_millis().to_le_bytes())?;
    if let Some(ids) = ids {
        file.write_all(&length(ids.len()).to_le_bytes())?;
        for id in ids {
            file.write_all(&length(id.len()).to_le_bytes())?;
            file.write_all(id.as_bytes())?;
        }
    }
    table.save(&mut file, resumable)?;
    Ok(WrittenPairs { file })
}

/// Completes a temporary file, whose pairs have no change past `until`, and moves it over the previous
/// snapshot; returns its size in bytes.
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

/// Whether a file is a snapshot, even a damaged one.
fn is_ours(path: &Path) -> bool {
    let most = u64::try_from(MAGIC.len()).unwrap_or(0);
    beginning(path, most).is_ok_and(|bytes| {
        let lost = MAGIC.iter().zip(&bytes).filter(|(wanted, found)| wanted != found).count();
        bytes.len() == MAGIC.len() && lost <= MAX_DAMAGED_MAGIC_BYTES
    })
}

/// Whether a snapshot would replace something else: a file that is neither empty nor a snapshot.
pub(super) fn is_foreign_file(path: &Path) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else { return false };
    !found.is_file() || (found.len() > 0 && !is_ours(path))
}

/// The snapshots in a folder, of which at most `most` entries are looked at.
pub(super) fn snapshot_files_in(folder: &Path, most: usize) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().take(most);
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| is_ours(path)).collect()
}

/// Removes the temporary files of a process that ended while it wrote. The caller holds the lock.
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

/// Reads a snapshot; `None` if there is no file.
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
            TableImageError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                TableImageError::Damaged
            }
            error => error,
        },
    )
}

fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Reads the businesses that a table holds.
fn businesses(input: &mut impl Read) -> Result<Businesses, TableImageError> {
    let mut ids = Vec::new();
    for _ in 0..u32::from_le_bytes(array(input)?) {
        let length = usize::try_from(u32::from_le_bytes(array(input)?)).unwrap_or(usize::MAX);
        if length > MAX_BUSINESS_ID_BYTES {
            return Err(TableImageError::Damaged);
        }
        let mut id = vec![0; length];
        input.read_exact(&mut id)?;
        ids.push(String::from_utf8(id).map_err(|_| TableImageError::Damaged)?);
    }
    let set = BusinessSet::of(ids.iter().map(String::as_str));
    set.map(Businesses::only).map_err(|_| TableImageError::Damaged)
}

/// Decodes a file of this size in bytes.
fn decode(
    input: impl Read,
    size: u64,
) -> Result<(WarmStart, TableImage, SnapshotHeader), TableImageError> {
    let mut input = HashingStream::of(input);
    let has_businesses = match array(&mut input)? {
        MAGIC => false,
        MAGIC_OF_SOME => true,
        _ => return Err(TableImageError::Damaged),
    };
    let epoch = array(&mut input)?;
    let position = |input: &mut HashingStream<_>| {
        Ok::<_, TableImageError>(Position { epoch, revision: long(input)?, head: array(input)? })
    };
    let from = position(&mut input)?;
    let accepted = long(&mut input)?;
    let (seen, proven) = (time(&mut input)?, time(&mut input)?);
    let businesses = if has_businesses { businesses(&mut input)? } else { Businesses::All };
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
        SnapshotHeader { from, accepted, seen, proven, businesses },
    ))
}

#[cfg(test)]
mod tests;
