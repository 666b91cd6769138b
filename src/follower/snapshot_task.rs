//! Takes snapshots of the table, and reads one back at the start.
//!
//! A snapshot is taken only of a table that is proven and valid, and that retains no denials which the
//! ledger has lost, for the file does not have them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;
use tracing::{info, warn};

use super::scheduler::Scheduler;
use super::snapshot_file::{self, SnapshotHeader, WrittenPairs};
use super::state_machine::{Attempt, WarmStart};
use super::{Completion, Follower, PendingOperations};
use crate::table::TableImageError;
use consentd_core::businesses::Businesses;
use consentd_os::clock::{self, Moment};
use consentd_os::files::{Lock, beside};
use consentd_os::io_hint;

/// The timeout of the last snapshot, when the process ends.
const FINAL_SAVE_TIMEOUT: Duration = Duration::from_secs(15);

/// The file for snapshots, and how often they are taken.
#[derive(Debug)]
pub struct SnapshotTarget {
    path: PathBuf,
    /// How often snapshots are taken while the process runs; `None` for only at its end.
    pub(super) interval: Option<Duration>,
    /// Shared by the files of a ledger's partitions.
    lock: Arc<Mutex<TargetLock>>,
}

/// The lock on the files of one process.
#[derive(Debug)]
struct TargetLock {
    /// The file beside which it is.
    path: PathBuf,
    /// Held while this process is the one that saves there.
    lock: Option<Lock>,
    /// Whether it was logged that another process holds the lock.
    wait_logged: bool,
}

/// Why a file cannot be used for snapshots.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotTargetError {
    /// The file is not a snapshot.
    #[error(
        "{path} is there, and is no saved table: saving would replace it; move it away, or give \
         another path"
    )]
    ForeignFile {
        /// The file.
        path: PathBuf,
    },
    /// The lock file cannot be opened or locked.
    #[error("cannot lock {path}: {source}{}", io_hint::hint(path, source))]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
}

impl SnapshotTarget {
    /// Saves snapshots in this file, in this interval and at the end. If another sidecar saves there
    /// already, this one does not until that one has ended.
    ///
    /// # Errors
    ///
    /// [`SnapshotTargetError`] if the file is something else, or cannot be locked.
    pub fn new(path: PathBuf, interval: Option<Duration>) -> Result<Self, SnapshotTargetError> {
        if snapshot_file::is_foreign_file(&path) {
            return Err(SnapshotTargetError::ForeignFile { path });
        }
        let lock = TargetLock { path: path.clone(), lock: None, wait_logged: false };
        let target = Self { path, interval, lock: Arc::new(Mutex::new(lock)) };
        match target.lock() {
            Ok(_) => Ok(target),
            Err(source) => {
                Err(SnapshotTargetError::Lock { path: beside(&target.path, "lock"), source })
            }
        }
    }

    /// The file of one of several partitions, beside this one and under the same lock.
    ///
    /// # Errors
    ///
    /// [`SnapshotTargetError::ForeignFile`] if that file is something else.
    pub(super) fn of_partition(&self, number: u32) -> Result<Self, SnapshotTargetError> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        let path = PathBuf::from(path);
        if snapshot_file::is_foreign_file(&path) {
            return Err(SnapshotTargetError::ForeignFile { path });
        }
        Ok(Self { path, interval: self.interval, lock: Arc::clone(&self.lock) })
    }

    /// Acquires the lock, if it is free; returns whether this process holds it.
    fn lock(&self) -> std::io::Result<bool> {
        self.locking().acquire()
    }

    fn is_locked(&self) -> bool {
        self.locking().lock.is_some()
    }

    fn locking(&self) -> MutexGuard<'_, TargetLock> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TargetLock {
    /// Acquires the lock, if it is free; returns whether this process holds it. Logs once when another
    /// process holds it, and when that one has ended.
    fn acquire(&mut self) -> std::io::Result<bool> {
        if self.lock.is_none() {
            self.lock = Lock::beside(&self.path)?;
        }
        let path = self.path.display();
        if self.lock.is_some() && self.wait_logged {
            info!(%path, "no other sidecar saves its table in this file any more: this one does");
        } else if self.lock.is_none() && !self.wait_logged {
            warn!(
                %path,
                "another sidecar saves its table in this file: this one does not, until that one \
                 has ended; give each a --snapshot of its own"
            );
        }
        self.wait_logged = self.lock.is_none();
        Ok(self.lock.is_some())
    }
}

/// The snapshots in a folder, of which at most `most` entries are looked at.
#[must_use]
pub fn snapshot_files_in(folder: &Path, most: usize) -> Vec<PathBuf> {
    snapshot_file::snapshot_files_in(folder, most)
}

/// Why no snapshot was saved.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error("the file cannot be written")]
    Io(#[from] std::io::Error),
    #[error("the writing thread panicked")]
    Failed(#[from] JoinError),
}

/// A snapshot that is being taken.
pub(super) struct SnapshotJob {
    attempt: Attempt,
    /// The businesses that the table held, and how many additions it had seen: were others added or dropped
    /// meanwhile, the file may have some of their pairs.
    businesses: (Businesses, u64),
    began: Duration,
    /// Whether to go on. Dropping the job cancels it.
    resumable: Arc<AtomicBool>,
}

impl Drop for SnapshotJob {
    fn drop(&mut self) {
        self.resumable.store(false, Ordering::Relaxed);
    }
}

/// An error and its causes, separated by colons.
fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |chain, cause| format!("{chain}: {cause}"))
}

fn businesses_of(scheduler: &Scheduler) -> (Businesses, u64) {
    let machine = scheduler.state_machine();
    (machine.held().clone(), machine.addition())
}

impl Follower {
    /// Reads the snapshot, if there is one and it is intact.
    pub(super) async fn read_snapshot(&mut self) -> Option<WarmStart> {
        let target = self.snapshot_target.as_ref()?;
        let (path, is_ours) = (target.path.clone(), target.is_locked());
        let began = clock::boot();
        let read = spawn_blocking(move || {
            if is_ours {
                snapshot_file::clear(&path)?;
            }
            snapshot_file::read(&path)
        });
        let (cause, why) = match read.await {
            Ok(Ok(None)) => return None,
            Ok(Ok(Some((_, _, start))))
                if start.businesses != self.applier.writer().businesses() =>
            {
                ("businesses", "it holds other businesses than this sidecar is to hold".to_owned())
            }
            Ok(Ok(Some((warm, saved, start)))) => {
                let age = clock::wall().since(start.proven);
                let took = clock::boot().saturating_sub(began);
                info!(partition = self.report.partition(),
                    pairs = saved.pairs(),
                    revision = warm.until.revision,
                    age = %humantime::format_duration(Duration::from_secs(age.as_secs())),
                    took_ms = took.as_millis(),
                    "a saved table was read; it is caught up from the ledger's log"
                );
                self.applier.keep(saved, start.seen);
                return Some(warm);
            }
            Ok(Err(error @ TableImageError::Damaged)) => ("damaged", error_chain(&error)),
            Ok(Err(error)) => ("unreadable", error_chain(&error)),
            Err(error) => ("unreadable", error_chain(&error)),
        };
        self.report.on_snapshot_rejected(cause, &why);
        None
    }

    /// The header of a snapshot that is taken now; otherwise why none may be, as a metric's label.
    fn header(&mut self, scheduler: &Scheduler) -> Result<SnapshotHeader, &'static str> {
        let (machine, now) = (scheduler.state_machine(), Moment::now());
        let accepted = self.applier.may_save(machine, self.max_staleness, now)?;
        let freshness = self.applier.writer().table().freshness();
        let proven = now.wall.minus(freshness.staleness(now));
        Ok(SnapshotHeader {
            from: machine.position(),
            accepted,
            seen: self.applier.latest_seen(),
            proven,
            businesses: machine.held().clone(),
        })
    }

    /// Creates the job of a snapshot, if one may be taken; returns its file, its header, and whether
    /// to go on with it.
    fn start_job(
        &mut self,
        scheduler: &Scheduler,
    ) -> Option<(PathBuf, SnapshotHeader, Arc<AtomicBool>)> {
        let target = self.snapshot_target.as_ref()?;
        match target.lock() {
            Ok(true) => {}
            Ok(false) => {
                self.metrics.snapshot("in_use");
                return None;
            }
            Err(error) => {
                self.on_snapshot_result(Err(error.into()));
                return None;
            }
        }
        let path = target.path.clone();
        let header = self.header(scheduler).map_err(|why| self.metrics.snapshot(why)).ok()?;
        let resumable = Arc::new(AtomicBool::new(true));
        self.snapshot_job = Some(SnapshotJob {
            attempt: scheduler.state_machine().attempt(),
            businesses: businesses_of(scheduler),
            began: clock::boot(),
            resumable: Arc::clone(&resumable),
        });
        Some((path, header, resumable))
    }

    /// Starts to take a snapshot, unless one may not be taken or is being taken.
    pub(super) fn start_snapshot(&mut self, scheduler: &Scheduler, pending: &PendingOperations) {
        if self.snapshot_job.is_some() {
            return;
        }
        let Some((path, header, resumable)) = self.start_job(scheduler) else { return };
        let table = self.applier.writer().table();
        let written = spawn_blocking(move || {
            snapshot_file::write(&path, &header, &table, || resumable.load(Ordering::Relaxed))
        });
        pending.push(Box::pin(async move {
            let written = written.await.map_err(SnapshotError::from);
            Completion::PairsWritten(written.and_then(|written| Ok(written?)))
        }));
    }

    /// Completes a snapshot whose pairs were written, if the ledger was followed without a resync
    /// meanwhile: otherwise they are not of one ledger.
    pub(super) fn finish_snapshot(
        &mut self,
        scheduler: &Scheduler,
        pending: &PendingOperations,
        written: Result<WrittenPairs, SnapshotError>,
    ) {
        let written = match written {
            Ok(written) => written,
            Err(error) => return self.on_snapshot_result(Err(error)),
        };
        let machine = scheduler.state_machine();
        let is_of = |job: &SnapshotJob| {
            job.attempt == machine.attempt() && job.businesses == businesses_of(scheduler)
        };
        if !self.snapshot_job.as_ref().is_some_and(is_of) {
            self.snapshot_job = None;
            return self.metrics.snapshot("not_live");
        }
        if let Err(why) = self.header(scheduler) {
            self.snapshot_job = None;
            return self.metrics.snapshot(why);
        }
        let Some(target) = &self.snapshot_target else { return };
        let path = target.path.clone();
        let (until, secret) =
            (scheduler.state_machine().position(), self.applier.writer().secret());
        let saved = spawn_blocking(move || snapshot_file::finish(&path, written, &until, &secret));
        pending.push(Box::pin(async move {
            let saved = saved.await.map_err(SnapshotError::from);
            Completion::SnapshotSaved(saved.and_then(|saved| Ok(saved?)))
        }));
    }

    /// Reports the result of a snapshot.
    pub(super) fn on_snapshot_result(&mut self, saved: Result<u64, SnapshotError>) {
        let job = self.snapshot_job.take();
        match (saved, job) {
            (Ok(bytes), Some(job)) => {
                let took = clock::boot().saturating_sub(job.began);
                let now = clock::wall().since(consentd_core::time::Timestamp::MIN);
                self.metrics.snapshot_saved(now, bytes, took);
                info!(
                    partition = self.report.partition(),
                    bytes,
                    took_ms = took.as_millis(),
                    "the table was saved"
                );
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                warn!(
                    partition = self.report.partition(),
                    cause = error_chain(&error),
                    "the table could not be saved"
                );
                self.metrics.snapshot("failed");
            }
        }
    }

    /// Takes the last snapshot, now that nothing changes the table any more.
    pub(super) async fn save_final_snapshot(&mut self, scheduler: &Scheduler) {
        let Some((path, header, resumable)) = self.start_job(scheduler) else { return };
        let (table, secret) = (self.applier.writer().table(), self.applier.writer().secret());
        let saved = spawn_blocking(move || {
            let resumable = || resumable.load(Ordering::Relaxed);
            let written = snapshot_file::write(&path, &header, &table, resumable)?;
            snapshot_file::finish(&path, written, &header.from, &secret)
        });
        let saved = timeout(FINAL_SAVE_TIMEOUT, saved).await;
        let saved = saved.unwrap_or_else(|_| Ok(Err(std::io::ErrorKind::TimedOut.into())));
        let saved = saved.map_err(SnapshotError::from).and_then(|saved| Ok(saved?));
        self.on_snapshot_result(saved);
    }
}
