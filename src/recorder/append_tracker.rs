//! Tracks the appends of one call to the recorder, until all of them are acknowledged or unknown.
//!
//! An event is recorded once its change is durable on the proven branch of the log, and this process'
//! own follower, if there is one, has applied that change. Otherwise its outcome is *unknown*: it is never
//! answered as recorded, and a denial is retained and recorded again in the background, because its
//! change may be on a branch that a failover abandoned.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::replay_denials::Replayable;
use super::sent_changes::{AwaitedVersion, FollowedPartitions, Origin, SentChanges};
use super::{Recorder, Refusal};
use consentd_ledger::{Appended, Change, FollowTimeout, FollowerCheckpoint, LedgerError};

/// How long this process' own follower may take to apply the appended changes.
pub const MAX_FOLLOW: Duration = Duration::from_secs(5);

/// The appends of one call. If it is dropped before it finished, as when the caller disconnects, the
/// outcome of all its changes is unknown.
pub(super) struct AppendTracker<'a> {
    recorder: &'a Recorder,
    /// The followers of the partitions that are appended to, with where each was before the first append there.
    followed: Mutex<FollowedPartitions>,
    /// How far the logs of the other partitions were read before the first append there.
    unfollowed: Mutex<BTreeMap<u32, FollowerCheckpoint>>,
    /// Whether it is a replay that is recorded, whose changes are retained already.
    is_replay: bool,
    /// The number of losses that were detected before the first append. A later loss may be of changes
    /// of this call.
    losses: u64,
    sent: Mutex<SentChanges>,
}

impl<'a> AppendTracker<'a> {
    pub(super) fn new(recorder: &'a Recorder, retains: bool) -> Self {
        // A log that cannot fork loses nothing.
        let can_lose = recorder.ledger.can_fail_over();
        let (retains, is_replay) = (retains && can_lose, !retains && can_lose);
        let losses = recorder.recent_denials.losses();
        let (followed, unfollowed) = (Mutex::default(), Mutex::default());
        let sent = Mutex::new(SentChanges::new(retains));
        Self { recorder, followed, unfollowed, is_replay, losses, sent }
    }

    /// Appends changes, and tracks their outcomes.
    pub(super) async fn append(
        &self,
        changes: Vec<Change>,
        origin: Origin,
    ) -> Result<Vec<Appended>, LedgerError> {
        let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
        self.note_followers(&changes);
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
        let must_watch = self.is_replay || !retained.is_empty();
        for (change, is_confirmed) in retained {
            self.recorder.recent_denials.retain(change, is_confirmed.then_some(self.losses));
        }
        // After they are retained: a loss that is found from now on makes them be replayed.
        if must_watch {
            self.watch_unfollowed();
        }
        followed
    }

    /// Watches over what was appended to partitions that this process does not follow.
    fn watch_unfollowed(&self) {
        let unfollowed = self.unfollowed.lock().unwrap_or_else(PoisonError::into_inner);
        if unfollowed.is_empty() {
            return;
        }
        for (partition, version) in self.sent().versions() {
            if let Some(before) = unfollowed.get(&partition) {
                self.recorder.unfollowed.watch(partition, version, *before);
            }
        }
    }

    /// Notes where the followers are of the partitions that these changes are in.
    fn note_followers(&self, changes: &[Change]) {
        // Reading the pairs has made the layout known.
        let layout = self.recorder.ledger.known_layout().unwrap_or_default();
        let followers = self.recorder.followers.borrow();
        let mut followed = self.followed();
        let mut unfollowed = self.unfollowed.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            let partition = layout.partition_of(change.key);
            let Entry::Vacant(entry) = followed.entry(partition) else { continue };
            if let Some(follower) = followers.get(&partition) {
                entry.insert((follower.clone(), follower.now()));
            } else if self.recorder.ledger.can_fail_over() {
                let logs = &self.recorder.unfollowed;
                unfollowed.entry(partition).or_insert_with(|| logs.checkpoint(partition));
            }
        }
    }

    async fn follow(&self) -> Result<(), FollowTimeout> {
        let deadline = Instant::now() + MAX_FOLLOW;
        let awaited = self.sent().awaited(&self.followed());
        for AwaitedVersion { partition, follower, before, version } in awaited {
            let left = deadline.saturating_duration_since(Instant::now());
            let arrived = tokio::select! {
                biased;
                arrived = follower.wait_for(version, before, left) => arrived,
                () = self.unfollowed(partition) => Ok(()),
            };
            arrived.map_err(|_| FollowTimeout(MAX_FOLLOW))?;
        }
        Ok(())
    }

    /// Waits until a partition is not followed any more: then no table is to have what was recorded there.
    async fn unfollowed(&self, partition: u32) {
        let mut followers = self.recorder.followers.clone();
        let gone =
            followers.wait_for(|followers| !followers.contains_key(&partition)).await.is_ok();
        if !gone {
            std::future::pending::<()>().await;
        }
    }

    fn followed(&self) -> MutexGuard<'_, FollowedPartitions> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
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
