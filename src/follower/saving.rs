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

use super::driver::Driver;
use super::machine::{Attempt, Warm};
use super::saved::{self, Start, Written};
use super::{Answer, Follower, Questions};
use crate::table::SavedError;
use consentd_os::access;
use consentd_os::clock::{self, Moment};
use consentd_os::files::{Lock, beside};

/// How long the last saving may take, at the end.
const AT_THE_END: Duration = Duration::from_secs(15);

/// Where the table is saved, and how often.
#[derive(Debug)]
pub struct Saving {
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
pub enum CannotSave {
    /// It holds something else.
    #[error(
        "{path} is there, and is no saved table: saving would replace it; move it away, or give \
         another path"
    )]
    Anothers {
        /// The file.
        path: PathBuf,
    },
    /// Its lock cannot be had.
    #[error("cannot lock {path}: {source}{}", access::hint(path, source))]
    Lock {
        /// The lock.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Saving {
    /// Saves in this file, this often beside the end. Where another sidecar saves there already,
    /// this one waits until that one has ended.
    ///
    /// # Errors
    ///
    /// [`CannotSave`] where the file is something else, or cannot be locked.
    pub fn new(path: PathBuf, every: Option<Duration>) -> Result<Self, CannotSave> {
        if saved::is_anothers(&path) {
            return Err(CannotSave::Anothers { path });
        }
        let mut saving = Self { path, every, lock: None, told: false };
        match saving.lock() {
            Ok(_) => Ok(saving),
            Err(source) => Err(CannotSave::Lock { path: beside(&saving.path, "lock"), source }),
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
pub fn saved_tables(folder: &Path, most: usize) -> Vec<PathBuf> {
    saved::all_in(folder, most)
}

/// Why a table was not saved.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSaved {
    #[error("the file cannot be written")]
    Io(#[from] std::io::Error),
    #[error("the writing of it failed")]
    Failed(#[from] JoinError),
}

/// A saving that is under way.
pub(super) struct Underway {
    attempt: Attempt,
    began: Duration,
    /// Told to end where it is dropped.
    goes_on: Arc<AtomicBool>,
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.goes_on.store(false, Ordering::Relaxed);
    }
}

/// The causes of an error, one behind the other.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

impl Follower {
    /// Reads the table that was saved, where one was and it is whole.
    pub(super) async fn read_saved(&mut self) -> Option<Warm> {
        let saving = self.saving.as_ref()?;
        let (path, is_ours) = (saving.path.clone(), saving.lock.is_some());
        let began = clock::boot();
        let read = spawn_blocking(move || {
            if is_ours {
                saved::clear(&path)?;
            }
            saved::read(&path)
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
            Ok(Err(error @ SavedError::Damaged)) => ("damaged", told(&error)),
            Ok(Err(error)) => ("unreadable", told(&error)),
            Err(error) => ("unreadable", told(&error)),
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
    fn start(&mut self, driver: &Driver) -> Result<Start, &'static str> {
        let (machine, now) = (driver.machine(), Moment::now());
        let accepted = self.applier.may_save(machine, self.bound, now)?;
        let freshness = self.applier.writer().table().freshness();
        let proven = now.wall.minus(freshness.staleness(now));
        Ok(Start { from: machine.position(), accepted, seen: self.applier.seen(), proven })
    }

    /// Sets out to save the table, where it may be: where to, what it begins with, and whether that
    /// is still wanted.
    fn set_out(&mut self, driver: &Driver) -> Option<(PathBuf, Start, Arc<AtomicBool>)> {
        let saving = self.saving.as_mut()?;
        match saving.lock() {
            Ok(true) => {}
            Ok(false) => {
                self.metrics.snapshot("in_use");
                return None;
            }
            Err(error) => {
                self.on_saved(Err(error.into()));
                return None;
            }
        }
        let path = saving.path.clone();
        let start = self.start(driver).map_err(|why| self.metrics.snapshot(why)).ok()?;
        let goes_on = Arc::new(AtomicBool::new(true));
        self.underway = Some(Underway {
            attempt: driver.machine().attempt(),
            began: clock::boot(),
            goes_on: Arc::clone(&goes_on),
        });
        Some((path, start, goes_on))
    }

    /// Begins to save the table, where it may be and is not being saved already.
    pub(super) fn begin_saving(&mut self, driver: &Driver, questions: &Questions) {
        if self.underway.is_some() {
            return;
        }
        let Some((path, start, goes_on)) = self.set_out(driver) else { return };
        let table = self.applier.writer().table();
        let written = spawn_blocking(move || {
            saved::write(&path, &start, &table, || goes_on.load(Ordering::Relaxed))
        });
        questions.push(Box::pin(async move {
            let written = written.await.map_err(NotSaved::from);
            Answer::Written(written.and_then(|written| Ok(written?)))
        }));
    }

    /// The pairs were written: they are a table if that was followed without a break meanwhile.
    pub(super) fn finish_saving(
        &mut self,
        driver: &Driver,
        questions: &Questions,
        written: Result<Written, NotSaved>,
    ) {
        let written = match written {
            Ok(written) => written,
            Err(error) => return self.on_saved(Err(error)),
        };
        let attempt = self.underway.as_ref().map(|underway| underway.attempt);
        if attempt != Some(driver.machine().attempt()) {
            self.underway = None;
            return self.metrics.snapshot("not_live");
        }
        if let Err(why) = self.start(driver) {
            self.underway = None;
            return self.metrics.snapshot(why);
        }
        let Some(path) = self.saving.as_ref().map(|saving| saving.path.clone()) else { return };
        let (until, secret) = (driver.machine().position(), self.applier.writer().secret());
        let saved = spawn_blocking(move || saved::finish(&path, written, &until, &secret));
        questions.push(Box::pin(async move {
            let saved = saved.await.map_err(NotSaved::from);
            Answer::Saved(saved.and_then(|saved| Ok(saved?)))
        }));
    }

    /// Tells what came of it.
    pub(super) fn on_saved(&mut self, saved: Result<u64, NotSaved>) {
        let underway = self.underway.take();
        match (saved, underway) {
            (Ok(bytes), Some(underway)) => {
                let took = clock::boot().saturating_sub(underway.began);
                let now = clock::wall().since(consentd_core::time::Timestamp::MIN);
                self.metrics.snapshot_saved(now, bytes, took);
                info!(bytes, took_ms = took.as_millis(), "the table was saved");
            }
            (Ok(_), None) => {}
            (Err(error), _) => {
                warn!(cause = told(&error), "the table could not be saved");
                self.metrics.snapshot("failed");
            }
        }
    }

    /// Saves the table once more, now that nothing changes it.
    pub(super) async fn save_at_the_end(&mut self, driver: &Driver) {
        let Some((path, start, goes_on)) = self.set_out(driver) else { return };
        let (table, secret) = (self.applier.writer().table(), self.applier.writer().secret());
        let saved = spawn_blocking(move || {
            let goes_on = || goes_on.load(Ordering::Relaxed);
            let written = saved::write(&path, &start, &table, goes_on)?;
            saved::finish(&path, written, &start.from, &secret)
        });
        let saved = timeout(AT_THE_END, saved).await;
        let saved = saved.unwrap_or_else(|_| Ok(Err(std::io::ErrorKind::TimedOut.into())));
        let saved = saved.map_err(NotSaved::from).and_then(|saved| Ok(saved?));
        self.on_saved(saved);
    }
}
