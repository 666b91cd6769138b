//! When the table is saved, and how it is read back at the start.
//!
//! What is saved is what was proven: never a table that is stale or not valid, and none while it
//! remembers denials that the ledger has lost, for they are not in the file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;
use tracing::{info, warn};

use super::scheduler::Scheduler;
use super::snapshot_file::{self, SnapshotHeader, WrittenPairs};
use super::state_machine::{Attempt, WarmStart};
use super::{Completion, Follower, PendingOperations};
use crate::table::TableImageError;
use consentd_os::clock::{self, Moment};
use consentd_os::files::{Lock, beside};
use consentd_os::io_hint;

/// How long the last saving may take, at the end.
const FINAL_SAVE_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the table is saved, and how often.
#[derive(Debug)]
pub struct SnapshotTarget {
    path: PathBuf,
    /// How often, beside the end; unset for never.
    pub(super) every: Option<Duration>,
    /// Nobody else saves there while we have it.
    lock: Option<Lock>,
    /// Whether it was told that somebody else does.
    told: bool,
}

/// Why no table can be saved in a file.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotTargetError {
    /// It holds something else.
    #[error(
        "{path} is there, and is no saved table: saving would replace it; move it away, or give \
         another path"
    )]
    ForeignFile {
        /// The file.
        path: PathBuf,
    },
    /// Its lock cannot be had.
    #[error("cannot lock {path}: {source}{}", io_hint::hint(path, source))]
    Lock {
        /// The lock.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl SnapshotTarget {
    /// Saves in this file, this often beside the end. Where another sidecar saves there already,
    /// this one waits until that one has ended.
    ///
    /// # Errors
    ///
    /// [`SnapshotTargetError`] where the file is something else, or cannot be locked.
    pub fn new(path: PathBuf, every: Option<Duration>) -> Result<Self, SnapshotTargetError> {
        if snapshot_file::is_foreign_file(&path) {
            return Err(SnapshotTargetError::ForeignFile { path });
        }
        let mut saving = Self { path, every, lock: None, told: false };
        match saving.lock() {
            Ok(_) => Ok(saving),
            Err(source) => {
                Err(SnapshotTargetError::Lock { path: beside(&saving.path, "lock"), source })
            }
        }
    }

    /// Sees that this process is the only one that saves there; says so once where it is not.
    fn lock(&mut self) -> std::io::Result<bool> {
        if self.lock.is_none() {
            self.lock = Lock::beside(&self.path)?;
        }
        let path = self.path.display();
        if self.lock.is_some() && self.told {
            info!(%path, "no other sidecar saves its table in this file any more: this one does");
        } else if self.lock.is_none() && !self.told {
            warn!(
                %path,
                "another sidecar saves its table in this file: this one does not, until that one \
                 has ended; give each a --snapshot of its own"
            );
        }
        self.told = self.lock.is_none();
        Ok(self.lock.is_some())
    }
}

/// The saved tables in a folder, of which so many entries are looked at.
#[must_use]
pub fn snapshot_files_in(folder: &Path, most: usize) -> Vec<PathBuf> {
    snapshot_file::snapshot_files_in(folder, most)
}

/// Why a table was not saved.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error("the file cannot be written")]
    Io(#[from] std::io::Error),
    #[error("the writing of it failed")]
    Failed(#[from] JoinError),
}

/// A saving that is under way.
pub(super) struct SnapshotJob {
    attempt: Attempt,
    began: Duration,
    /// Told to end where it is dropped.
    resumable: Arc<AtomicBool>,
}

impl Drop for SnapshotJob {
    fn drop(&mut self) {
        self.resumable.store(false, Ordering::Relaxed);
    }
}

/// The causes of an error, one behind the other.
fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

impl Follower {
    /// Reads the table that was saved, where one was and it is whole.
    pub(super) async fn read_snapshot(&mut self) -> Option<WarmStart> {
        let saving = self.saving.as_ref()?;
        let (path, is_ours) = (saving.path.clone(), saving.lock.is_some());
        let began = clock::boot();
        let read = spawn_blocking(move || {
            if is_ours {
                snapshot_file::clear(&path)?;
            }
            snapshot_file::read(&path)
        });
        let (cause, why) = match read.await {
            Ok(Ok(None)) => return None,
            Ok(Ok(Some((warm, saved, start)))) => {
                let age = clock::wall().since(start.proven);
                let took = clock::boot().saturating_sub(began);
                info!(
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
        self.refused(cause, &why);
        None
    }

    /// Tells that a saved table is not used.
    pub(super) fn refused(&self, cause: &str, why: &str) {
        warn!(cause = why, "the saved table is not used: the ledger is read whole");
        self.metrics.snapshot_refused(cause);
    }

    /// What a table that may be saved now begins with; otherwise why it may not.
    fn start(&mut self, driver: &Scheduler) -> Result<SnapshotHeader, &'static str> {
        let (machine, now) = (driver.state_machine(), Moment::now());
        let accepted = self.applier.may_save(machine, self.bound, now)?;
        let freshness = self.applier.writer().table().freshness();
        let proven = now.wall.minus(freshness.staleness(now));
        Ok(SnapshotHeader { from: machine.position(), accepted, seen: self.applier.seen(), proven })
    }

    /// Sets out to save the table, where it may be: where to, what it begins with, and whether that
    /// is still wanted.
    fn start_job(
        &mut self,
        driver: &Scheduler,
    ) -> Option<(PathBuf, SnapshotHeader, Arc<AtomicBool>)> {
        let saving = self.saving.as_mut()?;
        match saving.lock() {
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
        let path = saving.path.clone();
        let start = self.start(driver).map_err(|why| self.metrics.snapshot(why)).ok()?;
        let resumable = Arc::new(AtomicBool::new(true));
        self.snapshot_job = Some(SnapshotJob {
            attempt: driver.state_machine().attempt(),
            began: clock::boot(),
            resumable: Arc::clone(&resumable),
        });
        Some((path, start, resumable))
    }

    /// Begins to save the table, where it may be and is not being saved already.
    pub(super) fn start_snapshot(&mut self, driver: &Scheduler, pending: &PendingOperations) {
        if self.snapshot_job.is_some() {
            return;
        }
        let Some((path, start, resumable)) = self.start_job(driver) else { return };
        let table = self.applier.writer().table();
        let written = spawn_blocking(move || {
            snapshot_file::write(&path, &start, &table, || resumable.load(Ordering::Relaxed))
        });
        pending.push(Box::pin(async move {
            let written = written.await.map_err(SnapshotError::from);
            Completion::PairsWritten(written.and_then(|written| Ok(written?)))
        }));
    }

    /// The pairs were written: they are a table if that was followed without a break meanwhile.
    pub(super) fn finish_snapshot(
        &mut self,
        driver: &Scheduler,
        pending: &PendingOperations,
        written: Result<WrittenPairs, SnapshotError>,
    ) {
        let written = match written {
            Ok(written) => written,
            Err(error) => return self.on_snapshot_result(Err(error)),
        };
        let attempt = self.snapshot_job.as_ref().map(|snapshot_job| snapshot_job.attempt);
        if attempt != Some(driver.state_machine().attempt()) {
            self.snapshot_job = None;
            return self.metrics.snapshot("not_live");
        }
        if let Err(why) = self.start(driver) {
            self.snapshot_job = None;
            return self.metrics.snapshot(why);
        }
        let Some(path) = self.saving.as_ref().map(|saving| saving.path.clone()) else { return };
        let (until, secret) = (driver.state_machine().position(), self.applier.writer().secret());
        let saved = spawn_blocking(move || snapshot_file::finish(&path, written, &until, &secret));
        pending.push(Box::pin(async move {
            let saved = saved.await.map_err(SnapshotError::from);
            Completion::SnapshotSaved(saved.and_then(|saved| Ok(saved?)))
        }));
    }

    /// Tells what came of it.
    pub(super) fn on_snapshot_result(&mut self, saved: Result<u64, SnapshotError>) {
        let snapshot_job = self.snapshot_job.take();
        match (saved, snapshot_job) {
            (Ok(bytes), Some(snapshot_job)) => {
                let took = clock::boot().saturating_sub(snapshot_job.began);
                let now = clock::wall().since(consentd_core::time::Timestamp::MIN);
                self.metrics.snapshot_saved(now, bytes, took);
                info!(bytes, took_ms = took.as_millis(), "the table was saved");
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                warn!(cause = error_chain(&error), "the table could not be saved");
                self.metrics.snapshot("failed");
            }
        }
    }

    /// Saves the table once more, now that nothing changes it.
    pub(super) async fn save_final_snapshot(&mut self, driver: &Scheduler) {
        let Some((path, start, resumable)) = self.start_job(driver) else { return };
        let (table, secret) = (self.applier.writer().table(), self.applier.writer().secret());
        let saved = spawn_blocking(move || {
            let resumable = || resumable.load(Ordering::Relaxed);
            let written = snapshot_file::write(&path, &start, &table, resumable)?;
            snapshot_file::finish(&path, written, &start.from, &secret)
        });
        let saved = timeout(FINAL_SAVE_TIMEOUT, saved).await;
        let saved = saved.unwrap_or_else(|_| Ok(Err(std::io::ErrorKind::TimedOut.into())));
        let saved = saved.map_err(SnapshotError::from).and_then(|saved| Ok(saved?));
        self.on_snapshot_result(saved);
    }
}
