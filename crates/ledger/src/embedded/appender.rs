//! The writer of the ledger: commits queued appends in groups, and does the maintenance in between.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use redb::Database;
use tokio::sync::oneshot;

use super::append::{EncodedChange, append};
use super::high_water_mark::HighWaterMark;
use super::memtable::Flusher;
use super::panic_guard::catch_panic;
use super::statement_gc::StatementGc;
use super::tables::storage_error;
use super::{Shared, retention};
use crate::{Announcement, Appended, LedgerError, Notification};
use consentd_core::record::Revision;
use consentd_os::clock;

/// The most changes of one transaction.
const MAX_CHANGES_PER_TRANSACTION: usize = 8_192;

/// How often the file's identity is checked while nothing is appended.
const IDENTITY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A job of the appender.
pub(super) enum Job {
    Append {
        changes: Vec<EncodedChange>,
        response: oneshot::Sender<Result<Vec<Appended>, LedgerError>>,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

/// The part of the ledger that writes. [`run`](Self::run) it on a thread of its own.
pub struct Appender {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    flusher: Flusher,
    statement_gc: StatementGc,
    /// `None` unless the ledger was opened to be served.
    pub(super) mark: Option<HighWaterMark>,
}

/// The result of a group of jobs.
struct GroupOutcome {
    /// To be notified once the ledger is closed.
    closed: Option<oneshot::Sender<()>>,
    /// Whether anything was erased.
    erased: bool,
}

impl Appender {
    pub(super) fn new(shared: Arc<Shared>, jobs: Receiver<Job>, flusher: Flusher) -> Self {
        Self { shared, jobs, flusher, statement_gc: StatementGc::default(), mark: None }
    }

    /// Writes until the ledger is closed.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the storage failed. Nothing more can be written then, and what was being
    /// written may or may not be durable. The process should end and be restarted.
    pub fn run(mut self) -> Result<(), LedgerError> {
        let outcome =
            catch_panic(|| self.write()).unwrap_or_else(|panic| Err(storage_error(panic)));
        // Drops the database after all readers, which makes redb close it. If that fails, the next
        // start recovers from what was synced.
        let _ = catch_panic(|| {
            *self.shared.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        });
        match (outcome, &self.shared.file) {
            (Ok(None), _) => Ok(()),
            (Ok(Some(done)), _) => {
                let _ = done.send(());
                Ok(())
            }
            (Err(error), None) => Err(error),
            (Err(error), Some(file)) => Err(file.explain_loss(error)),
        }
    }

    /// Runs after a commit, before it is acknowledged: checks that a restart would find the commit,
    /// and advances the high-water mark.
    fn confirm(&mut self) -> Result<(), LedgerError> {
        self.shared.check_file()?;
        if let Some(mark) = &mut self.mark {
            mark.advance(self.shared.end());
        }
        Ok(())
    }

    fn write(&mut self) -> Result<Option<oneshot::Sender<()>>, LedgerError> {
        let database = self.shared.database()?;
        let sweep_interval = self.shared.retention.sweep_interval();
        let mut next_sweep = sweep_interval;
        // The current sweep flushes changes up to this revision.
        let mut flush_target = 0;
        let started = clock::boot();
        let mut next_check = IDENTITY_CHECK_INTERVAL;
        self.confirm()?;
        loop {
            // Scheduled by the clock, so that a ledger that is never idle is swept too.
            let up = clock::boot().saturating_sub(started);
            if up >= next_check {
                // Also when nothing is appended: checks must not go on after the file is gone.
                self.shared.check_file()?;
                next_check = up + IDENTITY_CHECK_INTERVAL;
            }
            if up >= next_sweep {
                // One batch at a time, so that queued appends are not delayed.
                let more = self.sweep(&database, flush_target)?;
                next_sweep = if more { up } else { up + sweep_interval };
                if !more {
                    flush_target = self.shared.memtable.end().0;
                }
            }
            let job = match self.jobs.recv_timeout(next_sweep.min(next_check).saturating_sub(up)) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            };
            let GroupOutcome { closed, erased } = self.commit_group(&database, job)?;
            if erased {
                // Collect the statements of erased histories without delay.
                next_sweep = up;
            }
            if let Some(done) = closed {
                while self.flusher.flush(&database, &self.shared.memtable)? {}
                return Ok(Some(done));
            }
        }
    }

    /// Runs one batch of maintenance: flushes up to `flush_target`, removes expired entries, and
    /// collects statements. Returns whether there may be more to do.
    fn sweep(&mut self, database: &Database, flush_target: Revision) -> Result<bool, LedgerError> {
        self.shared.check_file()?;
        let is_flushing = self.flusher.flushed_to() < flush_target
            && self.flusher.flush(database, &self.shared.memtable)?;
        let flushed_to = self.flusher.flushed_to();
        let removed = retention::sweep(database, flushed_to, self.shared.retention)?;
        Ok(self.statement_gc.step(database)? || removed || is_flushing)
    }

    /// Commits `first` and everything that queues behind it in one transaction.
    fn commit_group(
        &mut self,
        database: &Database,
        first: Job,
    ) -> Result<GroupOutcome, LedgerError> {
        let mut groups = Vec::new();
        let mut responses = Vec::new();
        let mut size = 0;
        let mut next = Some(first);
        let mut closed = None;
        while let Some(job) = next {
            match job {
                Job::Append { changes, response } => {
                    size += changes.len();
                    groups.push(changes);
                    responses.push(response);
                }
                Job::Close { done } => closed = Some(done),
            }
            let more = closed.is_none() && size < MAX_CHANGES_PER_TRANSACTION;
            next = if more { self.jobs.try_recv().ok() } else { None };
        }
        let memtable = &self.shared.memtable;
        let retention = self.shared.retention;
        // Checked before the commit too, because redb's writes would restore a truncated file's
        // length.
        let checked = self.shared.check_file();
        let committed =
            checked.and_then(|()| append(database, memtable, &mut self.flusher, groups, retention));
        match committed.and_then(|committed| self.confirm().map(|()| committed)) {
            Ok(committed) => {
                // Announced first, so that this process' follower can apply the change before the
                // recorder waits for that.
                if !committed.entries.is_empty() {
                    let entries = committed.entries.into();
                    let epoch = self.shared.identity.epoch;
                    let announcement = Notification::Announcement(Announcement { epoch, entries });
                    let _ = self.shared.announcements.send(announcement);
                }
                for (response, outcome) in responses.into_iter().zip(committed.outcomes) {
                    let _ = response.send(Ok(outcome));
                }
                Ok(GroupOutcome { closed, erased: committed.erased })
            }
            Err(error) => {
                for response in responses {
                    let _ = response.send(Err(error.clone()));
                }
                Err(error)
            }
        }
    }
}
