//! How far this process' own follower has read the log. A recorder waits here until the follower
//! has applied the change that the recorder appended (read-your-writes).
//!
//! A revision alone does not identify a change: after a failover, both branches of the log use the
//! same revisions for different changes. Therefore the prefixes of the last heads that the follower
//! passed are kept, and a change has arrived only if the follower has its revision *with the same
//! head prefix*.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::log::head_prefix_of;
use super::{Epoch, LogHead, Position, Version};
use consentd_core::record::Revision;

/// How many head prefixes are kept, at 8 bytes each. It exceeds what a follower can apply before a
/// task that waits for one of these revisions is scheduled.
const MAX_HEAD_PREFIXES: usize = 65_536;

/// How long a change may take to arrive as an announcement before the follower is asked to poll the
/// log.
const FIRST_POLL_AFTER: Duration = Duration::from_millis(30);

/// The interval between further requests to poll.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// The position of a follower; clones share it.
#[derive(Clone)]
pub struct FollowerPosition(Arc<Shared>);

struct Shared {
    steps: Mutex<Steps>,
    /// The number of advances, to wake up waiting tasks.
    advances: watch::Sender<u64>,
    /// Notified when a task waits for a change that was not announced.
    wanted: Notify,
}

/// The last revisions that the follower applied without a gap.
struct Steps {
    epoch: Epoch,
    /// How often the follower jumped to a position instead of reading the log up to it.
    restarts: u64,
    end: Revision,
    /// The head prefixes of the last revisions; the last element belongs to `end`.
    head_prefixes: VecDeque<u64>,
}

/// The follower's position at some moment, for a later comparison.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FollowerCheckpoint {
    restarts: u64,
    end: Revision,
}

/// A change did not arrive in this process' own table within this time.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the ledger took the change, but this sidecar did not read it back from the ledger's log within \
     {}: a failover may have lost it; if this goes on, `consentd status` says why the sidecar does \
     not keep up with the ledger",
    humantime::format_duration(*.0)
)]
pub struct FollowTimeout(pub Duration);

impl Default for FollowerPosition {
    fn default() -> Self {
        let steps =
            Steps { epoch: [0; 16], restarts: 0, end: 0, head_prefixes: VecDeque::from([0]) };
        let (steps, advances) = (Mutex::new(steps), watch::Sender::new(0));
        Self(Arc::new(Shared { steps, advances, wanted: Notify::new() }))
    }
}

impl FollowerPosition {
    /// Publishes the follower's new position. `head_at` returns the head at one of its last
    /// revisions, as far as it still knows it.
    pub fn advance(&self, to: Position, head_at: impl Fn(Revision) -> Option<LogHead>) {
        if self.steps().advance(to, head_at) {
            self.0.advances.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// The follower's current position.
    #[must_use]
    pub fn now(&self) -> FollowerCheckpoint {
        let steps = self.steps();
        FollowerCheckpoint { restarts: steps.restarts, end: steps.end }
    }

    /// Whether it has moved along one branch of the log, without a jump, since it was at `before`.
    #[must_use]
    pub fn continues(&self, before: FollowerCheckpoint) -> bool {
        self.steps().restarts == before.restarts
    }

    /// Whether the follower has certainly applied the change of this version, which was appended
    /// after it was at `before`. `false` may also mean that this is unknown.
    #[must_use]
    pub fn has(&self, version: Version, before: FollowerCheckpoint) -> bool {
        self.steps().has(version, before)
    }

    /// Waits until the follower has applied a change, which was appended after it was at `before`.
    ///
    /// # Errors
    ///
    /// [`FollowTimeout`] if it does not within that time.
    pub async fn wait_for(
        &self,
        version: Version,
        before: FollowerCheckpoint,
        within: Duration,
    ) -> Result<(), FollowTimeout> {
        let mut advances = self.0.advances.subscribe();
        let begun = Instant::now();
        let (deadline, mut ask) = (begun + within, begun + FIRST_POLL_AFTER);
        loop {
            advances.mark_unchanged();
            if self.has(version, before) {
                return Ok(());
            }
            tokio::select! {
                // The timers are polled first. A follower that advances all the time makes `changed`
                // ready at every poll and would otherwise starve them.
                biased;
                () = sleep_until(deadline) => return Err(FollowTimeout(within)),
                () = sleep_until(ask) => {
                    self.0.wanted.notify_one();
                    ask = Instant::now() + POLL_INTERVAL;
                }
                // It fails only if the sender is dropped, but `self` owns the sender.
                _ = advances.changed() => {}
            }
        }
    }

    /// Waits until a task requests that the log is polled, for a change that was not announced.
    pub async fn catch_up_requested(&self) {
        self.0.wanted.notified().await;
    }

    fn steps(&self) -> MutexGuard<'_, Steps> {
        self.0.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steps {
    /// Moves to a position. Returns whether that changed anything.
    fn advance(&mut self, to: Position, head_at: impl Fn(Revision) -> Option<LogHead>) -> bool {
        let head_prefix = head_prefix_of(&to.head);
        let here = self.head_prefixes.back().copied();
        if self.epoch == to.epoch && self.end == to.revision && here == Some(head_prefix) {
            return false;
        }
        let is_behind = self.epoch == to.epoch && self.end < to.revision;
        let continues = is_behind && head_at(self.end).map(|head| head_prefix_of(&head)) == here;
        if !continues {
            self.restarts = self.restarts.wrapping_add(1);
            self.epoch = to.epoch;
            self.end = to.revision;
            self.head_prefixes = VecDeque::from([head_prefix]);
            return true;
        }
        for revision in self.end.saturating_add(1)..=to.revision {
            let head = if revision == to.revision { Some(to.head) } else { head_at(revision) };
            self.head_prefixes.extend(head.iter().map(head_prefix_of));
        }
        self.end = to.revision;
        while self.head_prefixes.len() > MAX_HEAD_PREFIXES {
            self.head_prefixes.pop_front();
        }
        true
    }

    fn has(&self, version: Version, before: FollowerCheckpoint) -> bool {
        let Some(back) = self.end.checked_sub(version.revision) else { return false };
        let place = usize::try_from(back).ok().and_then(|back| back.checked_add(1));
        let place = place.and_then(|back| self.head_prefixes.len().checked_sub(back));
        match place.and_then(|place| self.head_prefixes.get(place)) {
            // A log that cannot fork has no head prefixes.
            Some(head_prefix) => version.head_prefix == 0 || *head_prefix == version.head_prefix,
            // The follower passed that revision before the append, which found the version still
            // current, and has read the log without a restart since. Had it been on another branch,
            // the heads would have revealed that.
            None => before.restarts == self.restarts && before.end >= version.revision,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(branch: u8, revision: Revision) -> LogHead {
        let mut head = [branch; 20];
        head[1..9].copy_from_slice(&revision.to_be_bytes());
        head
    }

    fn at(branch: u8, revision: Revision) -> Position {
        Position { epoch: [7; 16], revision, head: head(branch, revision) }
    }

    fn version(branch: u8, revision: Revision) -> Version {
        Version { revision, head_prefix: head_prefix_of(&head(branch, revision)) }
    }

    #[test]
    fn wait_for_a_revision_of_another_branch_is_not_the_change() {
        let position = FollowerPosition::default();
        position.advance(at(1, 90), |_| None);
        let before = position.now();
        assert!(!position.has(version(1, 91), before), "not there yet");
        // A failover: others wrote revision 91 and more on the branch that is followed now.
        position
            .advance(at(2, 95), |revision| Some(head(if revision > 90 { 2 } else { 1 }, revision)));
        assert_eq!(position.now(), FollowerCheckpoint { restarts: before.restarts, end: 95 });
        assert!(!position.has(version(1, 91), before), "another change has its revision");
        assert!(position.has(version(2, 91), before) && position.has(version(1, 90), before));
    }

    #[test]
    fn wait_for_a_change_before_a_new_beginning_is_not_known() {
        let position = FollowerPosition::default();
        position.advance(at(1, 90), |_| None);
        let before = position.now();
        position.advance(at(2, 100), |_| None);
        assert!(!position.has(version(1, 80), before) && !position.has(version(1, 95), before));
        // What was found in the ledger, and the follower had gone past before, is there.
        let before = position.now();
        assert!(position.has(version(2, 80), before) && !position.has(version(2, 101), before));
    }

    #[test]
    fn wait_for_keeps_so_many_marks_and_no_more() {
        let position = FollowerPosition::default();
        position.advance(at(1, 1), |_| None);
        let before = position.now();
        let last = u64::try_from(MAX_HEAD_PREFIXES).unwrap() + 10;
        for revision in 2..=last {
            position.advance(at(1, revision), |revision| Some(head(1, revision)));
        }
        assert_eq!(position.steps().head_prefixes.len(), MAX_HEAD_PREFIXES);
        assert!(position.has(version(1, 11), before) && !position.has(version(1, 10), before));
    }

    #[tokio::test]
    async fn wait_for_ends_in_time_and_asks_for_the_log_meanwhile() {
        let position = FollowerPosition::default();
        position.advance(at(1, 1), |_| None);
        let (before, within) = (position.now(), Duration::from_millis(200));
        let (waited, ()) = tokio::join!(
            position.wait_for(version(1, 2), before, within),
            position.catch_up_requested()
        );
        assert_eq!(waited, Err(FollowTimeout(within)));
        let arrives = async { position.advance(at(1, 2), |revision| Some(head(1, revision))) };
        let (waited, ()) = tokio::join!(position.wait_for(version(1, 2), before, within), arrives);
        assert_eq!(waited, Ok(()));
    }

    #[tokio::test]
    async fn wait_for_under_a_follower_that_never_rests_ends_in_time() {
        let position = FollowerPosition::default();
        position.advance(at(1, 1), |_| None);
        let (before, within) = (position.now(), Duration::from_millis(50));
        let never_rests = async {
            for branch in (2..=250).cycle() {
                position.advance(at(branch, 1), |_| None);
                tokio::task::yield_now().await;
            }
        };
        let begun = Instant::now();
        tokio::select! {
            biased;
            () = sleep_until(begun + Duration::from_secs(10)) => panic!("it has overrun its time"),
            waited = position.wait_for(version(1, 2), before, within) => {
                assert_eq!(waited, Err(FollowTimeout(within)));
            }
            () = never_rests => unreachable!("it goes on for ever"),
        }
    }
}
