//! The embedded ledger: one file, written by one process, in redb's copy-on-write B-trees.
//!
//! An append is acknowledged once the transaction that holds it has been synced to the disk. All
//! appends that wait while one transaction is synced go into the next one together. It writes the
//! log and the histories, both by revision; the pairs' own tree follows (see `recent`).

mod backend;
mod compact;
mod erase;
mod guard;
mod history;
mod mark;
mod opening;
mod place;
mod recent;
mod retention;
mod space;
mod store;
#[cfg(test)]
mod tests;
mod transfer;

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redb::Database;
use tokio::sync::{broadcast, oneshot};

pub use self::compact::CompactionReport;
use self::erase::Reaper;
use self::guard::guarded;
use self::mark::{End, Mark};
use self::opening::{LedgerFile, open_error, temporary};
pub use self::opening::{OpenError, OpenedLedger, has_ledger_signature, leftover_files};
use self::place::Place;
use self::recent::{Mover, Recent};
pub use self::space::DiskUsage;
use self::store::{Prepared, failed};
pub use self::transfer::NewFile;
use super::{
    Announcement, Appended, Bucket, Change, Cursor, Events, History, Identity, LedgerError,
    MAX_ANNOUNCEMENTS, Notification, Page, Read, Retention,
};
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::Revision;
use consentd_os::clock;

/// How many appends may wait to be written; one more is answered [`LedgerError::Busy`].
const MAX_WAITING: usize = 8_192;

/// The most changes of one transaction.
const MAX_GROUP: usize = 8_192;

/// How often it is looked whether the file is still where it was, while nothing is recorded.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    place: Option<Place>,
    recent: Recent,
    identity: Arc<Identity>,
    describe: String,
    retention: Retention,
    announcements: broadcast::Sender<Notification>,
}

/// The part of the ledger that writes. [`run`](Self::run) it on a thread of its own.
pub struct Appender {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    mover: Mover,
    reaper: Reaper,
    /// Says beside the file what was acknowledged; none where it is not opened to serve.
    mark: Option<Mark>,
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
        opening::telling_of_damage(path, || {
            let LedgerFile { database, place, .. } = LedgerFile::open(path, cache_bytes)?;
            Self::with_database(database, Some(place), path, retention)
        })
    }

    /// The place is none where the ledger is in no file of the system's.
    fn with_database(
        database: Database,
        place: Option<Place>,
        path: &Path,
        retention: Retention,
    ) -> Result<(Self, Appender), OpenError> {
        let meta = store::prepare(&database, path)?;
        let damaged = |error| opening::damaged(path, error);
        let (recent, mover) = store::load_recent(&database).map_err(damaged)?;
        let pairs = store::count_pairs(&database).map_err(damaged)?;
        let buckets = buckets_for(pairs);
        let (appends, jobs) = sync_channel(MAX_WAITING);
        let shared = Arc::new(Shared {
            database: RwLock::new(Some(Arc::new(database))),
            place,
            recent,
            identity: Arc::new(Identity {
                epoch: meta.epoch,
                secret: KeySecret::new(&meta.secret),
                buckets,
            }),
            describe: format!("file:{}", path.display()),
            retention,
            announcements: broadcast::Sender::new(MAX_ANNOUNCEMENTS),
        });
        let reaper = Reaper::default();
        let appender = Appender { shared: Arc::clone(&shared), jobs, mover, reaper, mark: None };
        Ok((Self { shared, appends }, appender))
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.shared.identity)
    }

    /// What to call it in the log, such as `file:consentd.redb`.
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
            let database = database.as_ref().ok_or(LedgerError::Closed)?;
            guarded(|| ask(database, &shared.recent)).unwrap_or_else(|panic| Err(failed(panic)))
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

    fn check_place(&self) -> Result<(), LedgerError> {
        self.place.as_ref().map_or(Ok(()), Place::check)
    }

    /// Where the ledger ends.
    fn end(&self) -> End {
        let (revision, head) = self.recent.end();
        End { epoch: self.identity.epoch, revision, head }
    }
}

/// What came of some jobs.
struct Group {
    /// Who waits for the end.
    closed: Option<oneshot::Sender<()>>,
    /// Whether anything was erased.
    erased: bool,
}

impl Appender {
    /// Writes until the ledger is closed.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where the storage failed: nothing more can be written then, and what was
    /// being written may or may not be durable. The process should end, and be started again.
    pub fn run(mut self) -> Result<(), LedgerError> {
        let outcome = guarded(|| self.write()).unwrap_or_else(|panic| Err(failed(panic)));
        // Nobody reads it any more, and redb closes it. What of that fails is mended at the next
        // start, from what was synced.
        let _ = guarded(|| {
            *self.shared.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        });
        match (outcome, &self.shared.place) {
            (Ok(None), _) => Ok(()),
            (Ok(Some(done)), _) => {
                let _ = done.send(());
                Ok(())
            }
            (Err(error), None) => Err(error),
            (Err(error), Some(place)) => Err(place.last_words(error)),
        }
    }

    /// Sees that what was committed would be found by a restart, and says beside the file up to
    /// where that is. Before anything of it is acknowledged.
    fn confirm(&mut self) -> Result<(), LedgerError> {
        self.shared.check_place()?;
        if let Some(mark) = &mut self.mark {
            mark.set(self.shared.end());
        }
        Ok(())
    }

    fn write(&mut self) -> Result<Option<oneshot::Sender<()>>, LedgerError> {
        let database = self.shared.database()?;
        let sweep_interval = self.shared.retention.sweep_interval();
        let mut next_sweep = sweep_interval;
        // What was recorded up to here is to be in the pairs' tree by the end of this sweep.
        let mut settle = 0;
        let started = clock::boot();
        let mut next_look = LOOK_EVERY;
        self.confirm()?;
        loop {
            // Due by the clock: a ledger that is never idle is swept too.
            let up = clock::boot().saturating_sub(started);
            if up >= next_look {
                // Also where nothing is recorded: checks must not go on from a file that is gone.
                self.shared.check_place()?;
                next_look = up + LOOK_EVERY;
            }
            if up >= next_sweep {
                // A part at a time: what waits to be appended comes in between.
                let more = self.sweep(&database, settle)?;
                next_sweep = if more { up } else { up + sweep_interval };
                if !more {
                    settle = self.shared.recent.end().0;
                }
            }
            let job = match self.jobs.recv_timeout(next_sweep.min(next_look).saturating_sub(up)) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            };
            let Group { closed, erased } = self.commit_group(&database, job)?;
            if erased {
                // What was erased is not to wait for its statements' sake.
                next_sweep = up;
            }
            if let Some(done) = closed {
                while store::move_pairs(&database, &self.shared.recent, &mut self.mover)? {}
                return Ok(Some(done));
            }
        }
    }

    /// Moves some of what was recorded up to `settle` to where it stays, and removes some of what
    /// has outlived its retention; tells whether there may be more.
    fn sweep(&mut self, database: &Database, settle: Revision) -> Result<bool, LedgerError> {
        self.shared.check_place()?;
        let moved = self.mover.settled() < settle
            && store::move_pairs(database, &self.shared.recent, &mut self.mover)?;
        let removed = retention::sweep(database, self.mover.settled(), self.shared.retention)?;
        Ok(self.reaper.step(database)? || removed || moved)
    }

    /// Writes `first` and all that waits behind it in one transaction.
    fn commit_group(&mut self, database: &Database, first: Job) -> Result<Group, LedgerError> {
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
        let retention = self.shared.retention;
        // Also before: redb's own writes make a file that was cut as long as it was.
        let is_whole = self.shared.check_place();
        let committed = is_whole
            .and_then(|()| store::append(database, recent, &mut self.mover, groups, retention));
        match committed.and_then(|committed| self.confirm().map(|()| committed)) {
            Ok(committed) => {
                // Announced before it is acknowledged: whoever hears of it finds it applied.
                if !committed.entries.is_empty() {
                    let entries = committed.entries.into();
                    let epoch = self.shared.identity.epoch;
                    let announcement = Notification::Announcement(Announcement { epoch, entries });
                    let _ = self.shared.announcements.send(announcement);
                }
                for (answer, outcome) in answers.into_iter().zip(committed.outcomes) {
                    let _ = answer.send(Ok(outcome));
                }
                Ok(Group { closed, erased: committed.erased })
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
