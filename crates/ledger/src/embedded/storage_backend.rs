//! redb's storage backend: the ledger's file, with its expected length tracked.
//!
//! Only redb changes the length of an open ledger. A different length shows that another program
//! wrote the file: a backup was copied over it, or it was truncated. The file keeps its inode then,
//! so nothing but the length reveals it.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

/// The length that redb has given a file, in bytes; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct TrackedLength(Arc<AtomicU64>);

impl TrackedLength {
    pub(super) fn of(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A file whose [`TrackedLength`] follows redb's writes.
#[derive(Debug)]
pub(super) struct TrackedFile {
    file: FileBackend,
    length: TrackedLength,
}

impl TrackedFile {
    /// Wraps a file whose current length is `length`.
    pub(super) fn new(file: std::fs::File, length: TrackedLength) -> Result<Self, DatabaseError> {
        Ok(Self { file: FileBackend::new(file)?, length })
    }
}

impl StorageBackend for TrackedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.length.0.store(len, Ordering::Release);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)?;
        let end = offset.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        self.length.0.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
