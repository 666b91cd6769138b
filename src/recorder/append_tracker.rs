//! Tracks the appends of one call to the recorder, until all of them are acknowledged or unknown.
//!
//! An event is recorded once its change is durable on the proven branch of the log, and this process'
//! own follower, if there is one, has applied that change. Otherwise its outcome is *unknown*: it is never
//! answered as recorded, and a denial is retained and recorded again in the background, because its
//! change may be on a branch that a failover abandoned.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::replay_denials::Replayable;
use super::{Recorder, Refusal};
use consentd_ledger::{
    AppendReceipt, Appended, Change, FollowTimeout, FollowerCheckpoint, FollowerPosition,
    LedgerError, Version,
};

/// How long this process' own follower may take to apply the appended changes.
pub const MAX_FOLLOW: Duration = Duration::from_secs(5);

/// The appends of one call. If it is dropped before it finished, as when the caller disconnects, the
/// outcome of all its changes is unknown.
pub(super) struct AppendTracker<'a> {
    recorder: &'a Recorder,
    /// The follower's position before the first append.
    before: Option<FollowerCheckpoint>,
    /// The number of losses that were detected before the first append. A later loss may be of changes
    /// of this call.
    losses: u64,
    /// Whether its denials are retained for a replay.
    pub(super) retains: bool,
    sent: Mutex<Sent>,
}

#[derive(Default)]
struct Sent {
    /// The versions of the records that were written, or compared and unchanged.
    versions: Vec<Version>,
    /// The denials and erasures that were sent.
    retained: Vec<SentChange>,
    /// The number of changes that were sent.
    changes: u64,
}

struct SentChange {
    /// The number of the change, in the order in which the call sent them.
    number: u64,
    change: Replayable,
    is_written: bool,
}

impl<'a> AppendTracker<'a> {
    pub(super) fn new(recorder: &'a Recorder, retains: bool) -> Self {
        let before = recorder.follower.as_ref().map(FollowerPosition::now);
        // A log that cannot fork loses nothing.
        let retains = retains && recorder.ledger.can_fail_over();
        let losses = recorder.recent_denials.losses();
        Self { recorder, before, losses, retains, sent: Mutex::default() }
    }

    /// Appends changes, and tracks their outcomes.
    pub(super) async fn append(&self, changes: Vec<Change>) -> Result<Vec<Appended>, LedgerError> {
        let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
        let first = self.send(&changes);
        let written = match self.recorder.ledger.append_with_receipts(changes).await {
            Ok(written) => written,
            Err(error) => {
                if !error.may_be_written() {
                    // Only these: other appends of the call may be in flight concurrently.
                    let own = first..first.saturating_add(count);
                    self.sent().retained.retain(|sent| !own.contains(&sent.number));
                }
                return Err(error);
            }
        };
        self.answered(first, &written);
        Ok(written.into_iter().map(|written| written.outcome).collect())
    }

    /// Takes the outcomes of changes; `first` is the number of the first change.
    pub(super) fn answered(&self, first: u64, written: &[AppendReceipt]) {
        let mut sent = self.sent();
        for (number, written) in (first..).zip(written) {
            sent.answered(number, written);
        }
    }

    /// Numbers the changes and retains their denials and erasures. Returns the number of the first.
    pub(super) fn send(&self, changes: &[Change]) -> u64 {
        let mut sent = self.sent();
        let first = sent.changes;
        for change in changes {
            let number = sent.changes;
            sent.changes = number.saturating_add(1);
            if self.retains {
                let retained = Replayable::of(change).into_iter();
                let sent_change = |change| SentChange { number, change, is_written: false };
                sent.retained.extend(retained.map(sent_change));
            }
        }
        first
    }

    /// Also retains a change that the ledger was found to have.
    pub(super) fn retain(&self, change: Replayable) {
        if self.retains {
            let number = u64::MAX;
            self.sent().retained.push(SentChange { number, change, is_written: true });
        }
    }

    /// Waits until this process' own follower has applied all appended changes.
    pub(super) async fn finish(self) -> Result<(), FollowTimeout> {
        let followed = self.follow().await;
        if followed.is_err() {
            // The connection may be to a server that is no longer the proven primary.
            self.recorder.ledger.reconnect_appends();
        }
        let retained = std::mem::take(&mut self.sent().retained);
        for SentChange { change, is_written, .. } in retained {
            let is_confirmed = is_written && followed.is_ok();
            self.recorder.recent_denials.retain(change, is_confirmed.then_some(self.losses));
        }
        followed
    }

    async fn follow(&self) -> Result<(), FollowTimeout> {
        let (Some(follower), Some(before)) = (&self.recorder.follower, self.before) else {
            return Ok(());
        };
        let deadline = Instant::now() + MAX_FOLLOW;
        let mut versions = std::mem::take(&mut self.sent().versions);
        // The last version first: a follower that has reached it has passed the others.
        versions.sort_unstable_by_key(|version| std::cmp::Reverse(version.revision));
        versions.dedup();
        for version in versions {
            let left = deadline.saturating_duration_since(Instant::now());
            follower
                .wait_for(version, before, left)
                .await
                .map_err(|_| FollowTimeout(MAX_FOLLOW))?;
        }
        Ok(())
    }

    fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sent {
    fn answered(&mut self, number: u64, written: &AppendReceipt) {
        match &written.outcome {
            Appended::Committed(_) => {
                self.versions.extend(written.version());
                let own = self.retained.iter_mut().filter(|sent| sent.number == number);
                own.for_each(|sent| sent.is_written = true);
            }
            Appended::Failed(error) if error.may_be_written() => {}
            // The append lost on the branch that answered, but an earlier attempt may have written the
            // change to another branch, and only this process knows of it.
            Appended::Conflict(_) if written.maybe_written => {}
            Appended::Conflict(_) | Appended::Failed(_) => {
                self.retained.retain(|sent| sent.number != number);
            }
        }
    }
}

impl Drop for AppendTracker<'_> {
    fn drop(&mut self) {
        let retained = std::mem::take(&mut self.sent().retained);
        for SentChange { change, .. } in retained {
            self.recorder.recent_denials.retain(change, None);
        }
    }
}

impl From<FollowTimeout> for Refusal {
    fn from(why: FollowTimeout) -> Self {
        Self::Unknown(why)
    }
}
