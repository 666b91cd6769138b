//! The embedded ledger: one file, written by one process, in redb's copy-on-write B-trees.
//!
//! An append is acknowledged once its transaction has been synced to the disk. All appends that
//! queue during a sync are committed together in the next transaction (group commit). A transaction
//! writes the log and the histories, which are ordered by revision; the table of pairs follows later
//! (see `memtable`).
//!
//! `tables` and `history_row` define the format. `read`, `history` and `portable` read it; `append`
//! writes it, on the thread of the `appender`, which also flushes, expires and collects garbage.

mod append;
mod appender;
mod compact;
mod disk_usage;
mod file_identity;
mod high_water_mark;
mod history;
mod history_row;
mod leftovers;
mod memtable;
mod open;
mod open_error;
mod panic_guard;
mod portable;
mod read;
mod retention;
mod serve;
mod statement_gc;
mod storage_backend;
mod tables;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};

use redb::Database;
use tokio::sync::{Semaphore, broadcast, oneshot};

use self::append::EncodedChange;
pub use self::appender::Appender;
use self::appender::Job;
pub use self::compact::CompactionReport;
pub use self::disk_usage::DiskUsage;
use self::file_identity::FileIdentity;
use self::high_water_mark::LedgerEnd;
pub use self::leftovers::leftover_files;
use self::memtable::Memtable;
use self::open::LedgerFile;
pub use self::open_error::{OpenError, has_ledger_signature};
use self::open_error::{damaged_file, panics_as_damage};
use self::panic_guard::catch_panic;
pub use self::portable::NewFile;
pub use self::serve::OpenedLedger;
use self::tables::{Meta, storage_error};
use super::{
    Appended, Bucket, Change, Cursor, Events, History, Identity, LedgerError, MAX_ANNOUNCEMENTS,
    Notification, Page, Read, Retention,
};
use crate::history::MAX_READS;
use consentd_core::id::Key;
use consentd_core::partition::Layout;
use consentd_core::record::Revision;

/// The capacity of the append queue; beyond it, appends fail with [`LedgerError::Busy`].
const MAX_QUEUED_APPENDS: usize = 8_192;

/// The approximate number of pairs in a bucket.
const PAIRS_PER_BUCKET: u64 = 1_024;

/// The bounds of the number of buckets. Each costs one search in the table of pairs.
const MIN_BUCKETS: u32 = 16;
const MAX_BUCKETS: u32 = 8_192;

/// The number of buckets for a ledger of this many pairs. It is constant while the file is open.
fn buckets_for(pairs: u64) -> u32 {
    let buckets = u32::try_from(pairs / PAIRS_PER_BUCKET).unwrap_or(MAX_BUCKETS);
    buckets.clamp(MIN_BUCKETS, MAX_BUCKETS)
}

/// A handle of the ledger; clones share it.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
    appends: SyncSender<Job>,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Embedded").field(&self.shared.describe).finish()
    }
}

struct Shared {
    /// `None` once closed.
    database: RwLock<Option<Arc<Database>>>,
    /// `None` for a database that is not in a file.
    file: Option<FileIdentity>,
    memtable: Memtable,
    identity: Arc<Identity>,
    describe: String,
    retention: Retention,
    /// Bounds the reads of histories that are under way.
    history_reads: Arc<Semaphore>,
    announcements: broadcast::Sender<Notification>,
}

impl Embedded {
    /// Opens the ledger in the file at `path`, or creates one if there is no file. Up to
    /// `cache_bytes` of it are cached; checks are answered from the table, not from this cache.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the file.
    pub fn open(
        path: &Path,
        retention: Retention,
        cache_bytes: usize,
    ) -> Result<(Self, Appender), OpenError> {
        Self::open_if(path, retention, cache_bytes, |meta| meta.check_keys(path))
    }

    /// Opens the ledger like [`open`](Self::open), whichever [version](consentd_core::id::KEY_VERSION) its
    /// keys have. For what neither decides nor records under a user's id.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the file.
    pub fn open_with_any_keys(
        path: &Path,
        retention: Retention,
        cache_bytes: usize,
    ) -> Result<(Self, Appender), OpenError> {
        Self::open_if(path, retention, cache_bytes, |_| Ok(()))
    }

    fn open_if(
        path: &Path,
        retention: Retention,
        cache_bytes: usize,
        check: impl FnOnce(&Meta) -> Result<(), OpenError>,
    ) -> Result<(Self, Appender), OpenError> {
        panics_as_damage(path, || {
            let LedgerFile { database, identity, .. } = LedgerFile::open(path, cache_bytes)?;
            let meta = tables::prepare(&database, path)?;
            check(&meta)?;
            Self::with_database(database, &meta, Some(identity), path, retention)
        })
    }

    /// `file` is `None` for a database that is not in a file.
    fn with_database(
        database: Database,
        meta: &Meta,
        file: Option<FileIdentity>,
        path: &Path,
        retention: Retention,
    ) -> Result<(Self, Appender), OpenError> {
        let damaged = |error| damaged_file(path, error);
        let (memtable, flusher) = Memtable::load(&database).map_err(damaged)?;
        let pairs = tables::count_pairs(&database).map_err(damaged)?;
        let buckets = buckets_for(pairs);
        let (appends, jobs) = sync_channel(MAX_QUEUED_APPENDS);
        let shared = Arc::new(Shared {
            database: RwLock::new(Some(Arc::new(database))),
            file,
            memtable,
            identity: Arc::new(meta.secret.identity(meta.epoch, Layout::SINGLE, buckets)),
            describe: format!("file:{}", path.display()),
            retention,
            history_reads: Arc::new(Semaphore::new(MAX_READS)),
            announcements: broadcast::Sender::new(MAX_ANNOUNCEMENTS),
        });
        let appender = Appender::new(Arc::clone(&shared), jobs, flusher);
        Ok((Self { shared, appends }, appender))
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.shared.identity)
    }

    /// A description for logs and status pages, such as `file:consentd.redb`.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.shared.describe
    }

    pub(super) fn retention(&self) -> Retention {
        self.shared.retention
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Notification> {
        self.shared.announcements.subscribe()
    }

    pub(super) async fn read(&self, keys: Vec<Key>) -> Result<Read, LedgerError> {
        self.blocking(move |database, memtable| read::read(database, memtable, &keys)).await
    }

    pub(super) async fn history(&self, key: Key) -> Result<History, LedgerError> {
        self.blocking_in_turn(move |database, memtable| history::history(database, memtable, key))
            .await
    }

    pub(super) async fn events_after(&self, cursor: Cursor) -> Result<Events, LedgerError> {
        self.blocking_in_turn(move |database, _| history::events_after(database, cursor)).await
    }

    pub(super) async fn bucket(&self, number: u32) -> Result<Bucket, LedgerError> {
        let identity = self.identity();
        self.blocking(move |database, memtable| read::bucket(database, memtable, &identity, number))
            .await
    }

    pub(super) async fn bucket_in_turn(&self, number: u32) -> Result<Bucket, LedgerError> {
        let identity = self.identity();
        self.blocking_in_turn(move |database, memtable| {
            read::bucket(database, memtable, &identity, number)
        })
        .await
    }

    pub(super) async fn read_after(&self, revision: Revision) -> Result<Page, LedgerError> {
        let identity = self.identity();
        self.blocking(move |database, _| read::read_after(database, identity, revision)).await
    }

    /// Runs a query that may take long, once fewer than [`MAX_READS`] such queries are under way, so that
    /// they leave threads to the polls and to the reads of recordings. A query whose caller has gone
    /// counts until it ends.
    async fn blocking_in_turn<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Database, &Memtable) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let turn = Arc::clone(&self.shared.history_reads).acquire_owned().await;
        let turn = turn.map_err(|_| LedgerError::Closed)?;
        self.blocking(move |database, memtable| {
            let _turn = turn;
            query(database, memtable)
        })
        .await
    }

    /// Runs a query on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Database, &Memtable) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let shared = Arc::clone(&self.shared);
        let task = tokio::task::spawn_blocking(move || {
            // Locked until the query ends, so that the database is closed only after all readers.
            let database = shared.database.read().unwrap_or_else(PoisonError::into_inner);
            let database = database.as_ref().ok_or(LedgerError::Closed)?;
            catch_panic(|| query(database, &shared.memtable))
                .unwrap_or_else(|panic| Err(storage_error(panic)))
        });
        task.await.map_err(|_| LedgerError::Closed)?
    }

    pub(super) async fn append(&self, changes: Vec<Change>) -> Result<Vec<Appended>, LedgerError> {
        let changes = changes.into_iter().map(EncodedChange::new).collect();
        let (response, appended) = oneshot::channel();
        self.appends.try_send(Job::Append { changes, response }).map_err(|error| match error {
            TrySendError::Full(_) => LedgerError::Busy,
            TrySendError::Disconnected(_) => LedgerError::Closed,
        })?;
        appended.await.map_err(|_| LedgerError::Closed)?
    }

    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        let appends = self.appends.clone();
        // Sending may block until the queue has room. After the appender has ended, it fails at once.
        let _ = tokio::task::spawn_blocking(move || appends.send(Job::Close { done })).await;
        let _ = closed.await;
    }
}

impl Shared {
    fn database(&self) -> Result<Arc<Database>, LedgerError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.clone().ok_or(LedgerError::Closed)
    }

    fn check_file(&self) -> Result<(), LedgerError> {
        self.file.as_ref().map_or(Ok(()), FileIdentity::check)
    }

    fn end(&self) -> LedgerEnd {
        let (revision, head) = self.memtable.end();
        LedgerEnd { epoch: self.identity.epoch, revision, head }
    }
}
