//! One call to the recorder: what it appended, and whether all of that is known to be recorded.
//!
//! An event is recorded once its change is durable on the branch of the log that is proven to be the
//! primary's, and this process' own follower, where there is one, has got to that very change. What
//! is not known to be so is *unknown*: it is never answered as recorded, and what denies is kept and
//! recorded again in the background, because the change may be on a branch that a failover has left.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::returned::Returnable;
use super::{Recorder, Refusal};
use consentd_ledger::{
    AppendReceipt, Appended, Change, FollowTimeout, FollowerCheckpoint, FollowerPosition,
    LedgerError, Version,
};

/// How long this process' own follower may take to get to what was appended.
pub const MAX_FOLLOW: Duration = Duration::from_secs(5);

/// One call. Where it is dropped half-way, as for a caller that has gone, all that it sent is unknown.
pub(super) struct Call<'a> {
    recorder: &'a Recorder,
    /// Where the follower was before anything was appended.
    before: Option<FollowerCheckpoint>,
    /// How many losses had been noticed before anything was appended. A loss that is noticed later
    /// may be of what this call appended, however far it had got by then.
    losses: u64,
    /// Whether what it sends is to be given back should the ledger lose it.
    pub(super) keeps: bool,
    sent: Mutex<Sent>,
}

#[derive(Default)]
struct Sent {
    /// What was written, or found as it should be.
    versions: Vec<Version>,
    /// What was sent and must not be lost, by the number of its change.
    kept: Vec<Kept>,
    changes: u64,
}

struct Kept {
    change: u64,
    what: Returnable,
    is_written: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(recorder: &'a Recorder, keeps: bool) -> Self {
        let before = recorder.follower.as_ref().map(FollowerPosition::now);
        // What is in a log that cannot fork is not lost.
        let keeps = keeps && recorder.ledger.can_fail_over();
        let losses = recorder.acknowledged.losses();
        Self { recorder, before, losses, keeps, sent: Mutex::default() }
    }

    /// Appends changes, and remembers what has to be found in the end.
    pub(super) async fn append(&self, changes: Vec<Change>) -> Result<Vec<Appended>, LedgerError> {
        let count = u64::try_from(changes.len()).unwrap_or(u64::MAX);
        let first = self.send(&changes);
        let written = match self.recorder.ledger.append_with_receipts(changes).await {
            Ok(written) => written,
            Err(error) => {
                if !error.may_be_written() {
                    // Others may be under way beside these, for other ids of the same person.
                    let own = first..first.saturating_add(count);
                    self.sent().kept.retain(|kept| !own.contains(&kept.change));
                }
                return Err(error);
            }
        };
        self.answered(first, &written);
        Ok(written.into_iter().map(|written| written.outcome).collect())
    }

    /// Takes what came of changes, from the one with this number on.
    pub(super) fn answered(&self, first: u64, written: &[AppendReceipt]) {
        let mut sent = self.sent();
        for (change, written) in (first..).zip(written) {
            sent.answered(change, written);
        }
    }

    /// Takes down what these changes say that must not be lost; gives the number of the first.
    pub(super) fn send(&self, changes: &[Change]) -> u64 {
        let mut sent = self.sent();
        let first = sent.changes;
        for change in changes {
            let number = sent.changes;
            sent.changes = number.saturating_add(1);
            if self.keeps {
                let kept = Returnable::of(change).into_iter();
                sent.kept.extend(kept.map(|what| Kept { change: number, what, is_written: false }));
            }
        }
        first
    }

    /// Also keeps something that the ledger was found to have.
    pub(super) fn keep(&self, what: Returnable) {
        if self.keeps {
            let change = u64::MAX;
            self.sent().kept.push(Kept { change, what, is_written: true });
        }
    }

    /// Waits until this process' own follower has all that was appended.
    pub(super) async fn finish(self) -> Result<(), FollowTimeout> {
        let followed = self.follow().await;
        if followed.is_err() {
            // It may go to a server that is no longer the one that is followed.
            self.recorder.ledger.reconnect_appends();
        }
        let kept = std::mem::take(&mut self.sent().kept);
        for Kept { what, is_written, .. } in kept {
            let is_settled = is_written && followed.is_ok();
            self.recorder.acknowledged.keep(what, is_settled.then_some(self.losses));
        }
        followed
    }

    async fn follow(&self) -> Result<(), FollowTimeout> {
        let (Some(follower), Some(before)) = (&self.recorder.follower, self.before) else {
            return Ok(());
        };
        let deadline = Instant::now() + MAX_FOLLOW;
        let mut versions = std::mem::take(&mut self.sent().versions);
        // Whoever is at the last of them has gone past the others.
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
    fn answered(&mut self, change: u64, written: &AppendReceipt) {
        match &written.outcome {
            Appended::Committed(_) => {
                self.versions.extend(written.version());
                let kept = self.kept.iter_mut().filter(|kept| kept.change == change);
                kept.for_each(|kept| kept.is_written = true);
            }
            Appended::Failed(error) if error.may_be_written() => {}
            // Another change came first on the branch that answered; an earlier attempt may have
            // written this one to another branch, and nobody else knows of it.
            Appended::Conflict(_) if written.maybe_written => {}
            Appended::Conflict(_) | Appended::Failed(_) => {
                self.kept.retain(|kept| kept.change != change);
            }
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let kept = std::mem::take(&mut self.sent().kept);
        for Kept { what, .. } in kept {
            self.recorder.acknowledged.keep(what, None);
        }
    }
}

impl From<FollowTimeout> for Refusal {
    fn from(why: FollowTimeout) -> Self {
        Self::Unknown(why)
    }
}
