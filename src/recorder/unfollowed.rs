//! Watches the logs of partitions that this process records in and does not follow.
//!
//! A sidecar that holds some businesses alone records for all of them, but it follows the partitions of its own
//! ones only. A lossy failover of another partition is seen by no follower of this process, although it may be the
//! only one that still knows what was lost. So for as long as denials are retained that were recorded in such a
//! partition, its log is polled now and then. If the log lacks what was appended, the denials are replayed.
//!
//! A poll reads what was appended to the log since the one before, and no table. Where nothing is recorded, nothing
//! is polled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::Recorder;
use super::replay_denials::REPLAY_PERIOD;
use consentd_core::record::Revision;
use consentd_ledger::{
    FollowerCheckpoint, FollowerPosition, LedgerError, LogHead, Page, Position, Tail, Version,
};
use consentd_os::clock;

/// The interval of the polls of a watched partition.
const POLL_INTERVAL: Duration = Duration::from_secs(3);

/// How many partitions are polled at once.
const MAX_CONCURRENT_POLLS: usize = 8;

/// The most pages of a log that one poll reads. What is behind them is not looked for, and so counts as lost.
const MAX_PAGES: usize = 16;

/// The most appended versions of a partition that wait for a poll. If there are more, they count as lost, and the
/// denials are compared with the ledger.
const MAX_PENDING: usize = 16_384;

/// The log of a partition that is recorded in and not followed. Pure.
#[derive(Default)]
struct WatchedLog {
    /// How far the log was read, and which branch of it that was.
    position: FollowerPosition,
    /// The same with the whole head, where the next page continues; `None` before the first page.
    cursor: Option<Position>,
    /// What was appended and was not found in the log yet, each with how far the log had been read before.
    pending: Vec<(Version, FollowerCheckpoint)>,
    /// Whether more was appended than `pending` has room for.
    is_overfull: bool,
    /// Until when it is watched, by the clock since boot.
    until: Duration,
}

/// What a page says about a watched log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// There are more pages to read.
    More,
    /// The log has all that was appended before the poll.
    Intact,
    /// It may lack some of it.
    Lost,
}

impl WatchedLog {
    fn add(&mut self, version: Version, before: FollowerCheckpoint, until: Duration) {
        self.until = self.until.max(until);
        if self.pending.len() < MAX_PENDING {
            self.pending.push((version, before));
        } else {
            self.is_overfull = true;
        }
    }

    /// The revision behind which the next page starts, with the head there if it is known. The first page begins
    /// with the first change that was appended.
    fn next(&self) -> (Revision, Option<LogHead>) {
        if let Some(cursor) = self.cursor {
            return (cursor.revision, Some(cursor.head));
        }
        let first = self.pending.iter().map(|(version, _)| version.revision).min();
        (first.map_or(Revision::MAX, |first| first.saturating_sub(1)), None)
    }

    /// Takes the page behind [`next`](Self::next). `asked` is how much was pending when the poll began.
    fn on_page(&mut self, page: &Page, asked: usize) -> Verdict {
        let before = self.position.now();
        let is_first = self.cursor.is_none();
        let entries = match &page.tail {
            Tail::Entries(entries) => entries.as_slice(),
            Tail::Trimmed => &[],
        };
        let last = entries.last().map(|last| (last.revision, last.head));
        let (revision, head) = last.unwrap_or((page.end.revision, page.end.head));
        let to = Position { epoch: page.end.epoch, revision, head };
        let head_at = |revision: Revision| {
            let first = entries.first()?;
            if first.revision == revision.saturating_add(1) {
                return Some(first.previous);
            }
            let place = usize::try_from(revision.checked_sub(first.revision)?).ok()?;
            entries.get(place).map(|entry| entry.head)
        };
        if let Some(first) = entries.first().filter(|_| is_first) {
            let (revision, head) = (first.revision.saturating_sub(1), first.previous);
            self.position.advance(Position { revision, head, ..to }, |_| None);
        }
        // It restarts where the page does not continue what was read before.
        self.position.advance(to, head_at);
        self.cursor = Some(to);
        let is_forked = !is_first && !self.position.continues(before);
        if !is_forked && to.revision < page.end.revision {
            return Verdict::More;
        }
        let mut is_lost = std::mem::take(&mut self.is_overfull) || is_forked;
        for (version, before) in self.pending.drain(..asked.min(self.pending.len())) {
            is_lost |= !self.position.has(version, before);
        }
        if is_lost { Verdict::Lost } else { Verdict::Intact }
    }

    /// Goes to the end of the log, without what is between. What was `asked` for is not known to be there.
    fn skip_to(&mut self, end: Position, asked: usize) {
        self.position.advance(end, |_| None);
        self.cursor = Some(end);
        self.pending.drain(..asked.min(self.pending.len()));
    }

    /// Ends the watch, until something is appended again.
    fn rest(&mut self) {
        self.pending.clear();
        self.is_overfull = false;
        self.cursor = None;
        // It keeps no heads meanwhile.
        let nowhere = Position { epoch: [0; 16], revision: 0, head: [0; 20] };
        self.position.advance(nowhere, |_| None);
    }
}

/// The watched logs of one recorder, by their partitions. Clones share them.
#[derive(Clone, Default)]
pub(super) struct UnfollowedLogs(Arc<Shared>);

#[derive(Default)]
struct Shared {
    logs: Mutex<BTreeMap<u32, WatchedLog>>,
    /// Notified when a log is to be watched.
    wanted: Notify,
}

impl UnfollowedLogs {
    /// How far a partition's log was read, before something is appended to it.
    pub(super) fn checkpoint(&self, partition: u32) -> FollowerCheckpoint {
        self.logs().entry(partition).or_default().position.now()
    }

    /// Watches over a version that was appended to a partition, and by which denials may be lost.
    pub(super) fn watch(&self, partition: u32, version: Version, before: FollowerCheckpoint) {
        let until = clock::boot().saturating_add(REPLAY_PERIOD);
        self.logs().entry(partition).or_default().add(version, before, until);
        self.0.wanted.notify_one();
    }

    /// The partitions that are to be polled. The watch over others ends.
    fn due(&self, now: Duration) -> Vec<u32> {
        let mut due = Vec::new();
        for (partition, log) in self.logs().iter_mut() {
            if log.until > now {
                due.push(*partition);
            } else {
                log.rest();
            }
        }
        due
    }

    fn logs(&self) -> MutexGuard<'_, BTreeMap<u32, WatchedLog>> {
        self.0.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    /// Polls the partitions that this process recorded denials in and does not follow, and has the denials replayed
    /// whenever one of the partitions may have lost some. Never returns.
    pub(super) async fn watch_unfollowed(&self) {
        loop {
            let due = self.unfollowed.due(clock::boot());
            if due.is_empty() {
                self.unfollowed.0.wanted.notified().await;
            }
            let polls = due.into_iter().map(|partition| async move {
                let polled = self.poll_unfollowed(partition).await;
                match polled {
                    Ok(is_lost) => is_lost,
                    Err(cause) => {
                        // It is polled again. What cannot be recorded there meanwhile is reported to the senders.
                        debug!(partition, %cause, "a partition that is not followed cannot be polled");
                        false
                    }
                }
            });
            let lost: Vec<bool> =
                stream::iter(polls).buffer_unordered(MAX_CONCURRENT_POLLS).collect().await;
            if lost.contains(&true) {
                self.recent_denials.note_loss();
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Polls a partition. Returns whether it may lack something that was appended before.
    async fn poll_unfollowed(&self, partition: u32) -> Result<bool, LedgerError> {
        let Some(handle) = self.ledger.partition(partition) else { return Ok(false) };
        let asked = self.unfollowed.logs().get(&partition).map_or(0, |log| log.pending.len());
        for pages in 1_usize.. {
            let next = self.unfollowed.logs().get(&partition).map(WatchedLog::next);
            let Some((after, head)) = next else { break };
            let page = match head {
                Some(head) => handle.read_after_head(after, head).await?,
                None => handle.read_after(after).await?,
            };
            let mut logs = self.unfollowed.logs();
            let log = logs.entry(partition).or_default();
            let verdict = log.on_page(&page, asked);
            if verdict == Verdict::More && pages < MAX_PAGES {
                continue;
            }
            if verdict == Verdict::More {
                log.skip_to(page.end, asked);
            }
            if verdict != Verdict::Intact {
                warn!(
                    partition,
                    "a partition that is not followed here may have lost changes that were recorded here: the \
                     denials and erases of the last ten minutes are compared with the ledger, and recorded again"
                );
            }
            return Ok(verdict != Verdict::Intact);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consentd_core::id::Key;
    use consentd_ledger::{LogEntry, UndecodedEntry};

    const EVER: Duration = Duration::MAX;

    /// The head of a branch at a revision. Branches have the revisions up to 10 in common.
    fn head(branch: u8, revision: Revision) -> LogHead {
        let mut head = [if revision > 10 { branch } else { 0 }; 20];
        head[1..8].copy_from_slice(&revision.to_be_bytes()[1..]);
        head
    }

    fn version(branch: u8, revision: Revision) -> Version {
        let head = head(branch, revision);
        let head_prefix = u64::from_be_bytes(head[..8].try_into().unwrap());
        Version { revision, head_prefix }
    }

    fn identity() -> Arc<consentd_ledger::Identity> {
        Arc::new(consentd_ledger::Identity {
            epoch: [7; 16],
            secret: consentd_core::id::KeySecret::new(&[3; 16]),
            key_version: 4,
            has_nameless: false,
            layout: consentd_core::partition::Layout::SINGLE,
            buckets: 1,
        })
    }

    /// A page of a branch, with the entries after a revision.
    fn page(branch: u8, after: Revision, end: Revision) -> Page {
        let entries = (after.saturating_add(1)..=end).map(|revision| LogEntry {
            revision,
            previous: head(branch, revision - 1),
            head: head(branch, revision),
            body: Err(UndecodedEntry::Skipped(Key::from_bytes([0; 16]))),
        });
        Page {
            identity: identity(),
            end: Position { epoch: [7; 16], revision: end, head: head(branch, end) },
            accepted: 0,
            clock: consentd_core::time::Timestamp::MIN,
            tail: Tail::Entries(entries.collect()),
        }
    }

    /// Polls a branch that ends there.
    fn poll(log: &mut WatchedLog, branch: u8, end: Revision) -> Verdict {
        let ((after, _), asked) = (log.next(), log.pending.len());
        log.on_page(&page(branch, after, end), asked)
    }

    /// A log that was polled once, behind what was appended at revision 12.
    fn watched() -> WatchedLog {
        let mut log = WatchedLog::default();
        let before = log.position.now();
        log.add(version(1, 12), before, EVER);
        assert_eq!(log.next(), (11, None), "it begins with what was appended");
        assert_eq!(poll(&mut log, 1, 13), Verdict::Intact);
        log
    }

    #[test]
    fn log_that_has_what_was_appended_is_intact_however_it_goes_on() {
        let mut log = watched();
        let before = log.position.now();
        log.add(version(1, 13), before, EVER);
        log.add(version(1, 20), before, EVER);
        // One that was found to be complete already, long before the watch began.
        log.add(version(1, 3), before, EVER);
        assert_eq!(poll(&mut log, 1, 30), Verdict::Intact);
        assert_eq!((log.pending.len(), log.next()), (0, (30, Some(head(1, 30)))));
        assert_eq!(poll(&mut log, 1, 30), Verdict::Intact, "nothing was appended since");
    }

    #[test]
    fn log_that_lacks_what_was_appended_is_lost_be_it_shorter_as_long_or_longer() {
        for end in [10, 11, 12, 13, 14, 40] {
            let mut log = watched();
            assert_eq!(poll(&mut log, 2, end), Verdict::Lost, "a branch that ends at {end}");
            assert_eq!(poll(&mut log, 2, end), Verdict::Intact, "it is followed from then on");
            let mut unread = WatchedLog::default();
            unread.add(version(1, 12), unread.position.now(), EVER);
            assert_eq!(
                poll(&mut unread, 2, end),
                Verdict::Lost,
                "read first when it ends at {end}"
            );
        }
    }

    /// The branch has all that was read, and not what was appended after that.
    #[test]
    fn log_that_lacks_only_what_was_appended_since_the_last_poll_is_lost() {
        for end in [13, 14, 20] {
            let mut log = watched();
            log.add(version(9, 14), log.position.now(), EVER);
            assert_eq!(poll(&mut log, 1, end), Verdict::Lost, "{end}");
        }
    }

    #[test]
    fn log_of_which_the_beginning_was_trimmed_counts_as_lost_once() {
        let mut log = WatchedLog::default();
        log.add(version(1, 12), log.position.now(), EVER);
        let trimmed = Page { tail: Tail::Trimmed, ..page(1, 0, 90) };
        assert_eq!(log.on_page(&trimmed, 1), Verdict::Lost);
        // The replay finds it complete, at its old revision.
        log.add(version(1, 12), log.position.now(), EVER);
        assert_eq!(poll(&mut log, 1, 90), Verdict::Intact);
    }

    #[test]
    fn log_rests_when_the_time_is_over_and_begins_anew_without_a_loss() {
        let logs = UnfollowedLogs::default();
        assert!(logs.due(clock::boot()).is_empty(), "nothing is polled where nothing is recorded");
        logs.watch(5, version(1, 12), logs.checkpoint(5));
        assert_eq!(logs.due(clock::boot()), [5]);
        assert_eq!(poll(logs.logs().get_mut(&5).unwrap(), 1, 13), Verdict::Intact);
        let later = clock::boot() + REPLAY_PERIOD + Duration::from_secs(1);
        assert!(logs.due(later).is_empty());
        let before = logs.checkpoint(5);
        logs.watch(5, version(2, 50), before);
        assert_eq!(poll(logs.logs().get_mut(&5).unwrap(), 2, 51), Verdict::Intact);
    }
}
