//! The embedded ledger: one file, written by one process, in redb's copy-on-write B-trees.
//!
//! An append is acknowledged once the transaction that holds it has been synced to the disk. All
//! appends that wait while one transaction is synced go into the next one together. It writes the
//! log and the histories, both by revision; the pairs' own tree follows (see `recent`).

mod history;
mod recent;
mod retention;
mod store;
#[cfg(test)]
mod tests;
mod transfer;

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redb::{Database, DatabaseError};
use tokio::sync::{broadcast, oneshot};

use self::recent::{Mover, Recent};
use self::store::Prepared;
pub use self::transfer::NewFile;
use super::{
    Announcement, Appended, Bucket, Change, Cursor, Events, Heard, History, Identity, LedgerError,
    MAX_ANNOUNCEMENTS, Page, Read, Retention,
};
use crate::access;
use crate::clock;
use crate::consent::id::{Key, KeySecret};
use crate::consent::record::Revision;

/// How many appends may wait to be written; one more is answered [`LedgerError::Busy`].
const MAX_WAITING: usize = 8_192;

/// The most changes of one transaction.
const MAX_GROUP: usize = 8_192;

/// How many pairs a bucket holds, in about, where they are read from the tree.
const PAIRS_A_BUCKET: u64 = 1_024;

/// The least and the most buckets that pairs are read in: one more costs a look into the tree.
const MIN_BUCKETS: u32 = 16;
const MAX_BUCKETS: u32 = 8_192;

/// How many buckets so many pairs are read in, for as long as the file is open.
fn buckets_for(pairs: u64) -> u32 {
    let buckets = u32::try_from(pairs / PAIRS_A_BUCKET).unwrap_or(MAX_BUCKETS);
    buckets.clamp(MIN_BUCKETS, MAX_BUCKETS)
}

/// How often what has outlived its retention is removed.
const SWEEP_EVERY: Duration = Duration::from_mins(1);

/// Why a ledger's file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "{path} is open in another process: a ledger file belongs to one sidecar at a time; \
             stop the other one, or give this one a file of its own with --ledger file:PATH"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot open the ledger file {path}: {source}{}", access::hint(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is something else, or damaged.
    #[error(
        "{path} is not a ledger, or it is damaged: {source}; it was left as it is: give the right \
             file with --ledger file:PATH, or a path where there is none yet for a new ledger"
    )]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// What was found.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is something already.
    #[error("{path} is there already, and was left as it is: give a path where there is nothing")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It was made before the first release.
    #[error(
        "{path} was made before consentd's first release (format {format}; this one knows {known} \
             alone): begin a new file with --ledger file:PATH"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// Ours.
        known: u32,
    },
    /// A newer version made it.
    #[error(
        "{path} was made by a newer consentd (format {format}; this one knows {known}): \
             upgrade this one, or give it another file with --ledger file:PATH"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// Ours.
        known: u32,
    },
}

/// A handle on the ledger; clones share it.
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
    /// None once closed.
    database: RwLock<Option<Arc<Database>>>,
    recent: Recent,
    identity: Arc<Identity>,
    describe: String,
    announcements: broadcast::Sender<Heard>,
}

/// The part of the ledger that writes. [`run`](Self::run) it on a thread of its own.
pub struct Appender {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    retention: Retention,
    mover: Mover,
}

enum Job {
    Append { changes: Vec<Prepared>, answer: oneshot::Sender<Result<Vec<Appended>, LedgerError>> },
    Close { done: oneshot::Sender<()> },
}

impl Embedded {
    /// Opens the ledger in the file at `path`, or makes one where there is no file. Up to
    /// `cache_bytes` of it are kept in memory; the table answers checks, not this cache.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the file.
    pub fn open(
        path: &Path,
        retention: Retention,
        cache_bytes: usize,
    ) -> Result<(Self, Appender), OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        if !path.exists() {
            make(path)?;
        }
        // Where the system refuses, in its own words; redb opens it again.
        drop(OpenOptions::new().read(true).write(true).open(path).map_err(io)?);
        let database = Database::builder()
            .set_cache_size(cache_bytes)
            .create(path)
            .map_err(|error| open_error(path, error))?;
        Self::with_database(database, path, retention)
    }

    fn with_database(
        database: Database,
        path: &Path,
        retention: Retention,
    ) -> Result<(Self, Appender), OpenError> {
        let meta = store::prepare(&database, path)?;
        let (recent, mover) = store::load_recent(&database).map_err(|error| {
            OpenError::NotALedger { path: path.to_owned(), source: error.into() }
        })?;
        let pairs = store::count_pairs(&database).map_err(|error| OpenError::NotALedger {
            path: path.to_owned(),
            source: error.into(),
        })?;
        let buckets = buckets_for(pairs);
        let (appends, jobs) = sync_channel(MAX_WAITING);
        let shared = Arc::new(Shared {
            database: RwLock::new(Some(Arc::new(database))),
            recent,
            identity: Arc::new(Identity {
                epoch: meta.epoch,
                secret: KeySecret::new(&meta.secret),
                buckets,
            }),
            describe: format!("file:{}", path.display()),
            announcements: broadcast::Sender::new(MAX_ANNOUNCEMENTS),
        });
        let appender = Appender { shared: Arc::clone(&shared), jobs, retention, mover };
        Ok((Self { shared, appends }, appender))
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.shared.identity)
    }

    pub(super) fn describe(&self) -> &str {
        &self.shared.describe
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Heard> {
        self.shared.announcements.subscribe()
    }

    pub(super) async fn read(&self, keys: Vec<Key>) -> Result<Read, LedgerError> {
        self.blocking(move |database, recent| store::read(database, recent, &keys)).await
    }

    pub(super) async fn history(&self, key: Key) -> Result<History, LedgerError> {
        self.blocking(move |database, recent| history::history(database, recent, key)).await
    }

    pub(super) async fn events_after(&self, cursor: Cursor) -> Result<Events, LedgerError> {
        self.blocking(move |database, _| history::events_after(database, cursor)).await
    }

    pub(super) async fn bucket(&self, number: u32) -> Result<Bucket, LedgerError> {
        let identity = self.identity();
        self.blocking(move |database, recent| store::bucket(database, recent, &identity, number))
            .await
    }

    pub(super) async fn read_after(&self, revision: Revision) -> Result<Page, LedgerError> {
        let identity = self.identity();
        self.blocking(move |database, _| store::read_after(database, identity, revision)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Database, &Recent) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let shared = Arc::clone(&self.shared);
        let asked = tokio::task::spawn_blocking(move || {
            // Locked to the end: the ledger is closed only once nobody reads it any more.
            let database = shared.database.read().unwrap_or_else(PoisonError::into_inner);
            ask(database.as_ref().ok_or(LedgerError::Closed)?, &shared.recent)
        });
        asked.await.map_err(|_| LedgerError::Closed)?
    }

    pub(super) async fn append(&self, changes: Vec<Change>) -> Result<Vec<Appended>, LedgerError> {
        let changes = changes.into_iter().map(Prepared::of).collect();
        let (answer, answered) = oneshot::channel();
        self.appends.try_send(Job::Append { changes, answer }).map_err(|error| match error {
            TrySendError::Full(_) => LedgerError::Busy,
            TrySendError::Disconnected(_) => LedgerError::Closed,
        })?;
        answered.await.map_err(|_| LedgerError::Closed)?
    }

    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        let appends = self.appends.clone();
        // Sending may wait for room behind many appends; a closed appender answers at once.
        let _ = tokio::task::spawn_blocking(move || appends.send(Job::Close { done })).await;
        let _ = closed.await;
    }
}

impl Shared {
    fn database(&self) -> Result<Arc<Database>, LedgerError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        database.clone().ok_or(LedgerError::Closed)
    }
}

impl Appender {
    /// Writes until the ledger is closed.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where the storage failed: nothing more can be written then, and what was
    /// being written may or may not be durable. The process should end, and be started again.
    pub fn run(mut self) -> Result<(), LedgerError> {
        let outcome = self.write();
        *self.shared.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        outcome.map(|closed| {
            if let Some(done) = closed {
                let _ = done.send(());
            }
        })
    }

    fn write(&mut self) -> Result<Option<oneshot::Sender<()>>, LedgerError> {
        let database = self.shared.database()?;
        let mut next_sweep = SWEEP_EVERY;
        // What was recorded up to here is to be in the pairs' tree by the end of this sweep.
        let mut settle = 0;
        let started = clock::boot();
        loop {
            // Due by the clock: a ledger that is never idle is swept too.
            let up = clock::boot().saturating_sub(started);
            if up >= next_sweep {
                // A part at a time: what waits to be appended comes in between.
                let more = self.sweep(&database, settle)?;
                next_sweep = if more { up } else { up + SWEEP_EVERY };
                if !more {
                    settle = self.shared.recent.end().0;
                }
            }
            let job = match self.jobs.recv_timeout(next_sweep.saturating_sub(up)) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            };
            if let Some(done) = self.commit_group(&database, job)? {
                while store::move_pairs(&database, &self.shared.recent, &mut self.mover)? {}
                return Ok(Some(done));
            }
        }
    }

    /// Moves some of what was recorded up to `settle` to where it stays, and removes some of what
    /// has outlived its retention; tells whether there may be more.
    fn sweep(&mut self, database: &Database, settle: Revision) -> Result<bool, LedgerError> {
        let moved = self.mover.settled() < settle
            && store::move_pairs(database, &self.shared.recent, &mut self.mover)?;
        Ok(retention::sweep(database, self.mover.settled(), self.retention)? || moved)
    }

    /// Writes `first` and all that waits behind it in one transaction.
    fn commit_group(
        &mut self,
        database: &Database,
        first: Job,
    ) -> Result<Option<oneshot::Sender<()>>, LedgerError> {
        let mut groups = Vec::new();
        let mut answers = Vec::new();
        let mut size = 0;
        let mut next = Some(first);
        let mut closed = None;
        while let Some(job) = next {
            match job {
                Job::Append { changes, answer } => {
                    size += changes.len();
                    groups.push(changes);
                    answers.push(answer);
                }
                Job::Close { done } => closed = Some(done),
            }
            let more = closed.is_none() && size < MAX_GROUP;
            next = if more { self.jobs.try_recv().ok() } else { None };
        }
        let recent = &self.shared.recent;
        match store::append(database, recent, &mut self.mover, groups, self.retention) {
            Ok(committed) => {
                // Announced before it is acknowledged: whoever hears of it finds it applied.
                if !committed.entries.is_empty() {
                    let entries = committed.entries.into();
                    let epoch = self.shared.identity.epoch;
                    let announcement = Heard::Announcement(Announcement { epoch, entries });
                    let _ = self.shared.announcements.send(announcement);
                }
                for (answer, outcome) in answers.into_iter().zip(committed.outcomes) {
                    let _ = answer.send(Ok(outcome));
                }
                Ok(closed)
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
                Err(error)
            }
        }
    }
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path },
        DatabaseError::Storage(redb::StorageError::Io(source))
            // Where the file is too short for what it should hold, it is not the system's fault.
            if !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
        {
            OpenError::Io { path, source }
        }
        source => OpenError::NotALedger { path, source: source.into() },
    }
}

/// A file beside `path`. It holds user ids and the keys' secret: a temporary file is its owner's
/// alone.
fn temporary(path: &Path) -> Result<tempfile::NamedTempFile, OpenError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let mut made = tempfile::Builder::new();
    made.prefix(".consentd-")
        .tempfile_in(parent.unwrap_or(Path::new(".")))
        .map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

/// Makes a ledger beside `path`, and gives it that name once it is whole: a process that dies
/// meanwhile leaves nothing there that could not be opened.
fn make(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let folder = File::open(parent).map_err(io)?;
    let new = temporary(path)?;
    let database = Database::create(new.path()).map_err(|error| open_error(path, error))?;
    store::prepare(&database, path)?;
    drop(database);
    match new.persist_noclobber(path) {
        Ok(_) => {}
        // Another process was faster, and its file is as good.
        Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => {}
        Err(failed) => return Err(io(failed.error)),
    }
    // A new file is durable only once its folder is.
    folder.sync_all().map_err(io)
}
