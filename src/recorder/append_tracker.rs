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
use super::sent_changes::{Origin, SentChanges};
use super::{Recorder, Refusal};
use consentd_ledger::{
    Appended, Change, FollowTimeout, FollowerCheckpoint, FollowerPosition, LedgerError,
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
    sent: Mutex<SentChanges>,
}

impl<'a> AppendTracker<'a> {
    pub(super) fn new(recorder: &'a Recorder, retains: bool) -> Self {
        let before = recorder.follower.as_ref().map(FollowerPosition::now);
        // A log that cannot fork loses nothing.
        let retains = retains && recorder.ledger.can_fail_over();
        let losses = recorder.recent_denials.losses();
        Self { recorder, before, losses, sent: Mutex::new(SentChanges::new(retains)) }
    }

    /// Appends changes, and tracks their outcomes.
    pub(super) async fn append(
        &self,
        changes: Vec<Change>,
        origin: Origin,
    ) -> Result<Vec<Appended>, LedgerError> {
        let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
        let first = self.sent().send(&changes, origin);
        let written = match self.recorder.ledger.append_with_receipts(changes).await {
            Ok(written) => written,
            Err(error) => {
                if !error.may_be_written() {
                    // Only these: other appends of the call may be in flight concurrently.
                    self.sent().discard(first, count);
                }
                return Err(error);
            }
        };
        self.sent().answered(first, &written);
        Ok(written.into_iter().map(|written| written.outcome).collect())
    }

    /// Also retains a change that the ledger was found to have.
    pub(super) fn retain(&self, change: Replayable) {
        self.sent().retain(change);
    }

    /// Waits until this process' own follower has applied all appended changes.
    pub(super) async fn finish(self) -> Result<(), FollowTimeout> {
        let followed = self.follow().await;
        if followed.is_err() {
            // The connection may be to a server that is no longer the proven primary.
            self.recorder.ledger.reconnect_appends();
        }
        let retained = self.sent().take_retained(followed.is_ok());
        for (change, is_confirmed) in retained {
            self.recorder.recent_denials.retain(change, is_confirmed.then_some(self.losses));
        }
        followed
    }

    async fn follow(&self) -> Result<(), FollowTimeout> {
        let (Some(follower), Some(before)) = (&self.recorder.follower, self.before) else {
            return Ok(());
        };
        let deadline = Instant::now() + MAX_FOLLOW;
        let versions = self.sent().versions();
        for version in versions {
            let left = deadline.saturating_duration_since(Instant::now());
            follower
                .wait_for(version, before, left)
                .await
                .map_err(|_| FollowTimeout(MAX_FOLLOW))?;
        }
        Ok(())
    }

    pub(super) fn sent(&self) -> MutexGuard<'_, SentChanges> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AppendTracker<'_> {
    fn drop(&mut self) {
        let retained = self.sent().take_retained(false);
        for (change, _) in retained {
            self.recorder.recent_denials.retain(change, None);
        }
    }
}

impl From<FollowTimeout> for Refusal {
    fn from(why: FollowTimeout) -> Self {
        Self::Unknown(why)
    }
}
