//! The change feed: which pairs have changed in the table, for the watchers of `WatchConsents`.
//!
//! The follower's [`Publisher`] publishes the changes that are in the table, and each [`Subscription`]
//! reads them at its own pace. They share one bounded backlog, in which a change stays until the
//! slowest subscription has read it. If the backlog is full, the oldest changes are dropped; the
//! subscriptions that have not read them get [`MissedChanges`] and go on from the end. So a slow
//! watcher never holds up the publisher. Without watchers no user's id is kept, and a change costs a
//! fence and a load.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use consentd_core::record::Revision;

/// The most changes in the backlog.
pub(crate) const MAX_KEPT: usize = 65_536;
/// The most bytes of the backlog, ids included.
pub(crate) const MAX_KEPT_BYTES: usize = 8 * 1024 * 1024;

/// How many changes are added to the backlog under one lock.
const MAX_STAGED: usize = 64;
/// How many changes a subscription reads under one lock, so that others can read in between.
const MAX_READ: usize = 64;

/// A pair whose state changed.
#[derive(Debug, Eq, PartialEq)]
pub struct PairChange {
    /// The user's id, as recorded in the ledger.
    pub user_id: Box<str>,
    /// The business' id.
    pub business_id: Box<str>,
    /// The partition that the pair is in.
    pub partition: u32,
    /// The revision of that partition that changed it.
    pub revision: Revision,
}

impl PairChange {
    /// The bytes that it takes in the backlog.
    fn bytes(&self) -> usize {
        /// The two reference counts of an `Arc`.
        const COUNTS: usize = 2 * size_of::<usize>();
        size_of::<Entry>()
            + COUNTS
            + size_of::<Self>()
            + self.user_id.len()
            + self.business_id.len()
    }
}

/// Why changes are missing from the feed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GapCause {
    /// The subscription read too slowly.
    Slow,
    /// The table was loaded again.
    Rebuilt,
    /// Pairs were corrected of which only the keys are known.
    Mended,
    /// The table holds other businesses than before.
    Businesses,
}

impl GapCause {
    /// The cause as a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Rebuilt => "rebuilt",
            Self::Mended => "mended",
            Self::Businesses => "businesses",
        }
    }
}

/// Changes were missed: any pair may have changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("changes up to revision {revision} were missed")]
pub struct MissedChanges {
    /// The cause.
    pub cause: GapCause,
    /// The changes that are read next are later than this revision; 0 where the ledger has several partitions, each
    /// with revisions of its own: the table has theirs.
    pub revision: Revision,
}

/// The limit on subscriptions is reached.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the limit on watchers is reached")]
pub struct TooManySubscribers;

/// The publisher was dropped.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no more changes are published")]
pub struct FeedClosed;

struct Entry {
    change: Arc<PairChange>,
    /// How many subscriptions read it next.
    readers: usize,
}

/// The changes that some subscription has not read yet. They are numbered; a skipped number is a gap,
/// so that every subscription which has not passed it misses changes.
///
/// Invariant: each subscription is counted either by the entry that it reads next, or by `at_end`, or it
/// is behind `first`.
struct Backlog {
    /// The number of the first entry.
    first: u64,
    entries: VecDeque<Entry>,
    /// How many subscriptions have read all entries.
    at_end: usize,
    bytes: usize,
    /// The revision of the last change that was added.
    revision: Revision,
    /// The number of the last gap, and its cause.
    skipped: Option<(u64, GapCause)>,
}

struct Shared {
    backlog: Mutex<Backlog>,
    /// How many subscriptions there are; written while the backlog is locked.
    watchers: AtomicUsize,
    /// Cloned for each subscription. The publisher has the sender.
    news: watch::Receiver<()>,
    /// The most changes of the backlog, and the most bytes.
    limits: (usize, usize),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Backlog> {
        // No change of the backlog can panic half-way, so a poisoned lock is still consistent.
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backlog {
    /// The number of the next change.
    fn end(&self) -> u64 {
        self.first + u64::try_from(self.entries.len()).unwrap_or(u64::MAX)
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.first += 1;
            self.bytes -= entry.change.bytes();
        }
    }

    /// The number of subscriptions that read this number next.
    fn readers(&mut self, next: u64) -> &mut usize {
        let place = usize::try_from(next - self.first).unwrap_or(usize::MAX);
        self.entries.get_mut(place).map_or(&mut self.at_end, |entry| &mut entry.readers)
    }

    /// Drops the entries that all subscriptions have read.
    fn pop_read(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.readers == 0) {
            self.pop();
        }
    }

    /// Skips a number and drops all entries before it.
    fn skip(&mut self, cause: GapCause) {
        let skipped = self.end();
        self.entries = VecDeque::new();
        self.at_end = 0;
        self.bytes = 0;
        self.first = skipped + 1;
        self.skipped = Some((skipped, cause));
    }
}

/// Subscribes to the feed; clones share it.
#[derive(Clone)]
pub struct ChangeFeed(Arc<Shared>);

/// Publishes changes that are in the table, of one partition or of a ledger that is not divided.
pub(crate) struct Publisher {
    /// The partition, of several.
    partition: Option<u32>,
    shared: Arc<Shared>,
    news: watch::Sender<()>,
    /// Changes that are not in the backlog yet.
    staged: Vec<PairChange>,
    /// The last revision that the table holds.
    revision: Revision,
}

/// A feed without changes, and its publisher.
#[must_use]
pub(crate) fn new() -> (ChangeFeed, Publisher) {
    with_limits(MAX_KEPT, MAX_KEPT_BYTES)
}

fn with_limits(changes: usize, bytes: usize) -> (ChangeFeed, Publisher) {
    let (first, revision) = (0, 0);
    let entries = VecDeque::new();
    let backlog = Backlog { first, entries, at_end: 0, bytes: 0, revision, skipped: None };
    let (notifier, news) = watch::channel(());
    let shared = Arc::new(Shared {
        backlog: Mutex::new(backlog),
        watchers: AtomicUsize::new(0),
        news,
        limits: (changes, bytes),
    });
    let changes = ChangeFeed(Arc::clone(&shared));
    (changes, Publisher { partition: None, shared, news: notifier, staged: Vec::new(), revision })
}

impl ChangeFeed {
    /// Subscribes to the changes from now on, if there are fewer than `most` subscriptions.
    ///
    /// A caller that reads the table's revision after this gets all changes behind that revision.
    ///
    /// # Errors
    ///
    /// [`TooManySubscribers`] if there are that many already.
    pub fn subscribe(&self, most: usize) -> Result<Subscription, TooManySubscribers> {
        let mut backlog = self.0.lock();
        let watchers = self.0.watchers.load(Ordering::Relaxed);
        if watchers >= most {
            return Err(TooManySubscribers);
        }
        self.0.watchers.store(watchers + 1, Ordering::Relaxed);
        let next = backlog.end();
        backlog.at_end += 1;
        drop(backlog);
        // Pairs with the fence in `is_watched`: either the publisher sees this subscription, or the
        // caller reads a revision that includes the change which was not published.
        fence(Ordering::SeqCst);
        Ok(Subscription { shared: Arc::clone(&self.0), next, news: self.0.news.clone() })
    }
}

/// The revision of [`MissedChanges`]: none where the ledger has several partitions, each with revisions of its own.
fn revision_of_whole(partition: Option<u32>, revision: Revision) -> Revision {
    partition.map_or(revision, |_| 0)
}

impl Publisher {
    /// Another publisher into the same feed, of a ledger that is not divided.
    pub(crate) fn of_whole(&self) -> Self {
        Self { partition: None, ..self.of_partition(0) }
    }

    /// Another publisher into the same feed, of one of several partitions.
    pub(crate) fn of_partition(&self, partition: u32) -> Self {
        let (shared, news) = (Arc::clone(&self.shared), self.news.clone());
        Self { partition: Some(partition), shared, news, staged: Vec::new(), revision: 0 }
    }

    /// Publishes that the table holds everything up to this revision, which changed the pair of these
    /// ids.
    pub(crate) fn publish(&mut self, revision: Revision, user_id: String, business_id: String) {
        self.revision = revision;
        if !self.is_watched() {
            return;
        }
        if user_id.is_empty() || business_id.is_empty() {
            // An operator's repair appended it from a history that lacks the ids.
            return self.publish_gap(GapCause::Mended);
        }
        let (user_id, business_id) = (user_id.into_boxed_str(), business_id.into_boxed_str());
        let partition = self.partition.unwrap_or(0);
        self.staged.push(PairChange { user_id, business_id, partition, revision });
        if self.staged.len() >= MAX_STAGED {
            self.flush();
        }
    }

    /// Notes that the table holds everything up to this revision, without a change to publish.
    pub(crate) fn set_revision(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// Publishes that the table changed in pairs whose ids are unknown.
    pub(crate) fn publish_gap(&mut self, cause: GapCause) {
        self.staged.clear();
        if self.is_watched() {
            let mut backlog = self.shared.lock();
            backlog.skip(cause);
            backlog.revision = revision_of_whole(self.partition, self.revision);
            drop(backlog);
            self.news.send_replace(());
        }
    }

    /// Adds the staged changes to the backlog, and wakes the subscriptions.
    pub(crate) fn flush(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let mut backlog = self.shared.lock();
        if self.shared.watchers.load(Ordering::Relaxed) == 0 {
            return self.staged.clear();
        }
        for change in self.staged.drain(..) {
            backlog.bytes += change.bytes();
            backlog.revision = revision_of_whole(self.partition, change.revision);
            // Subscriptions that have read everything read this entry next.
            let readers = std::mem::take(&mut backlog.at_end);
            backlog.entries.push_back(Entry { change: Arc::new(change), readers });
        }
        let (changes, bytes) = self.shared.limits;
        while backlog.entries.len() > changes || backlog.bytes > bytes {
            backlog.pop();
        }
        drop(backlog);
        self.news.send_replace(());
    }

    fn is_watched(&self) -> bool {
        // See `subscribe`.
        fence(Ordering::SeqCst);
        self.shared.watchers.load(Ordering::Relaxed) > 0
    }
}

/// A reader of the feed.
pub struct Subscription {
    shared: Arc<Shared>,
    /// The number of the change that is read next.
    next: u64,
    news: watch::Receiver<()>,
}

impl Subscription {
    /// Appends the next changes to `into`, at most a few dozen; none if there are none yet.
    ///
    /// # Errors
    ///
    /// [`MissedChanges`] if changes were dropped, or there was a gap. The next call goes on behind it.
    pub fn read(&mut self, into: &mut VecDeque<Arc<PairChange>>) -> Result<(), MissedChanges> {
        let mut backlog = self.shared.lock();
        if self.next < backlog.first {
            let cause = match backlog.skipped {
                Some((skipped, cause)) if skipped >= self.next => cause,
                _ => GapCause::Slow,
            };
            self.next = backlog.end();
            backlog.at_end += 1;
            backlog.pop_read();
            return Err(MissedChanges { cause, revision: backlog.revision });
        }
        *backlog.readers(self.next) -= 1;
        let skip = usize::try_from(self.next - backlog.first).unwrap_or(usize::MAX);
        for entry in backlog.entries.iter().skip(skip).take(MAX_READ) {
            into.push_back(Arc::clone(&entry.change));
            self.next += 1;
        }
        *backlog.readers(self.next) += 1;
        backlog.pop_read();
        Ok(())
    }

    /// Waits until there may be changes that were not there at the last read.
    ///
    /// # Errors
    ///
    /// [`FeedClosed`] if there will be none any more.
    pub async fn wait_for_changes(&mut self) -> Result<(), FeedClosed> {
        self.news.changed().await.map_err(|_| FeedClosed)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut backlog = self.shared.lock();
        self.shared.watchers.fetch_sub(1, Ordering::Relaxed);
        if self.next >= backlog.first {
            *backlog.readers(self.next) -= 1;
        }
        backlog.pop_read();
        if backlog.entries.is_empty() {
            backlog.entries = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests;
