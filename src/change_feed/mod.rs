//! What changes, told to whoever watches.
//!
//! The follower's [`Publisher`] tells what it has put into the table; each [`Subscription`] reads
//! that at its own pace. What is told is kept once for all, until the slowest has read it or it is
//! too much: then the slowest have missed something, are told so, and go on from the end. Nobody
//! who watches holds up who publishes. Where nobody does, nobody's name is kept, and a change
//! costs a fence and the load of a number.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use consentd_core::record::Revision;

/// How many changes are kept for the slowest watcher.
pub const MAX_KEPT: usize = 65_536;
/// How many bytes these may take, ids included.
pub const MAX_KEPT_BYTES: usize = 8 * 1024 * 1024;

/// How many changes are told together at most.
const MAX_TOGETHER: usize = 64;
/// How many changes a watcher reads at once, so that it lets others at them in between.
const MAX_READ: usize = 64;

/// A pair whose state changed.
#[derive(Debug, Eq, PartialEq)]
pub struct PairChange {
    /// The user, as written to the ledger.
    pub user_id: Box<str>,
    /// The business.
    pub business_id: Box<str>,
    /// The revision that changed it.
    pub revision: Revision,
}

impl PairChange {
    /// What it takes where it is kept.
    fn bytes(&self) -> usize {
        /// The two counts of an `Arc`.
        const COUNTS: usize = 2 * size_of::<usize>();
        size_of::<Entry>()
            + COUNTS
            + size_of::<Self>()
            + self.user_id.len()
            + self.business_id.len()
    }
}

/// Why a watcher missed changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GapCause {
    /// It read too slowly.
    Slow,
    /// The whole table was read anew.
    Rebuilt,
    /// Pairs were mended whose users are not known.
    Mended,
}

impl GapCause {
    /// The cause as a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::Rebuilt => "rebuilt",
            Self::Mended => "mended",
        }
    }
}

/// Changes were missed: any pair may be otherwise than it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("changes up to revision {revision} were missed")]
pub struct MissedChanges {
    /// Why.
    pub cause: GapCause,
    /// What comes next is later than this.
    pub revision: Revision,
}

/// There are as many watchers as there may be.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("as many watch already as may")]
pub struct TooManySubscribers;

/// Nothing more will be published.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("nobody publishes any more")]
pub struct FeedClosed;

struct Entry {
    change: Arc<PairChange>,
    /// How many watchers read it next.
    readers: usize,
}

/// What is kept. Changes are numbered; a number that is skipped stands for what nobody can read.
struct Backlog {
    /// The number of the first entry.
    first: u64,
    entries: VecDeque<Entry>,
    /// How many watchers have read all of them.
    at_end: usize,
    bytes: usize,
    /// The last revision that was told.
    revision: Revision,
    /// The last number that was skipped on purpose, and why.
    skipped: Option<(u64, GapCause)>,
}

struct Shared {
    kept: Mutex<Backlog>,
    /// How many watch; written while `kept` is locked.
    watchers: AtomicUsize,
    /// To be cloned: it is the publisher who holds the other end.
    news: watch::Receiver<()>,
    most: (usize, usize),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Backlog> {
        // Nothing that is done to it can be left half done by a panic.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// How many watchers read that number next.
    fn readers(&mut self, next: u64) -> &mut usize {
        let place = usize::try_from(next - self.first).unwrap_or(usize::MAX);
        self.entries.get_mut(place).map_or(&mut self.at_end, |entry| &mut entry.readers)
    }

    /// Forgets what everybody has read: what is before the first that somebody reads next.
    fn pop_read(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.readers == 0) {
            self.pop();
        }
    }

    /// Skips a number; forgets what was before.
    fn skip(&mut self, cause: GapCause) {
        let skipped = self.end();
        self.entries = VecDeque::new();
        self.at_end = 0;
        self.bytes = 0;
        self.first = skipped + 1;
        self.skipped = Some((skipped, cause));
    }
}

/// Where one can subscribe; clones share it.
#[derive(Clone)]
pub struct ChangeFeed(Arc<Shared>);

/// Tells what was put into the table.
pub struct Publisher {
    shared: Arc<Shared>,
    news: watch::Sender<()>,
    /// What was not told yet.
    staged: Vec<PairChange>,
    /// The last revision that the table holds.
    revision: Revision,
}

/// Changes of which none was told, and who tells them.
#[must_use]
pub fn new() -> (ChangeFeed, Publisher) {
    with_limits(MAX_KEPT, MAX_KEPT_BYTES)
}

fn with_limits(changes: usize, bytes: usize) -> (ChangeFeed, Publisher) {
    let (first, revision) = (0, 0);
    let entries = VecDeque::new();
    let kept = Backlog { first, entries, at_end: 0, bytes: 0, revision, skipped: None };
    let (teller, news) = watch::channel(());
    let shared = Arc::new(Shared {
        kept: Mutex::new(kept),
        watchers: AtomicUsize::new(0),
        news,
        most: (changes, bytes),
    });
    let changes = ChangeFeed(Arc::clone(&shared));
    (changes, Publisher { shared, news: teller, staged: Vec::new(), revision })
}

impl ChangeFeed {
    /// Watches from here on, as one of at most `most` who do.
    ///
    /// Whatever revision the table holds when it is read after this: all later ones are told.
    ///
    /// # Errors
    ///
    /// [`TooManySubscribers`] where that many watch already.
    pub fn subscribe(&self, most: usize) -> Result<Subscription, TooManySubscribers> {
        let mut kept = self.0.lock();
        let watchers = self.0.watchers.load(Ordering::Relaxed);
        if watchers >= most {
            return Err(TooManySubscribers);
        }
        self.0.watchers.store(watchers + 1, Ordering::Relaxed);
        let next = kept.end();
        kept.at_end += 1;
        drop(kept);
        // Pairs with the publisher's. Either it sees that somebody watches, or the table's revision
        // that is read after this is that of the change which it did not tell.
        fence(Ordering::SeqCst);
        Ok(Subscription { shared: Arc::clone(&self.0), next, news: self.0.news.clone() })
    }
}

impl Publisher {
    /// The table holds everything up to this revision, which changed the pair of these ids.
    pub fn publish(&mut self, revision: Revision, user_id: String, business_id: String) {
        self.revision = revision;
        if !self.is_watched() {
            return;
        }
        if user_id.is_empty() || business_id.is_empty() {
            // Appended by an operator's repair, from a history that no longer says whose it is.
            return self.publish_gap(GapCause::Mended);
        }
        let (user_id, business_id) = (user_id.into_boxed_str(), business_id.into_boxed_str());
        self.staged.push(PairChange { user_id, business_id, revision });
        if self.staged.len() >= MAX_TOGETHER {
            self.flush();
        }
    }

    /// The table holds everything up to this revision.
    pub fn set_revision(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// The table changed in ways that cannot be told.
    pub fn publish_gap(&mut self, cause: GapCause) {
        self.staged.clear();
        if self.is_watched() {
            let mut kept = self.shared.lock();
            kept.skip(cause);
            kept.revision = self.revision;
            drop(kept);
            self.news.send_replace(());
        }
    }

    /// Tells what was not told yet.
    pub fn flush(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let mut kept = self.shared.lock();
        if self.shared.watchers.load(Ordering::Relaxed) == 0 {
            return self.staged.clear();
        }
        for change in self.staged.drain(..) {
            kept.bytes += change.bytes();
            kept.revision = change.revision;
            // Whoever had read all there was reads this next.
            let readers = std::mem::take(&mut kept.at_end);
            kept.entries.push_back(Entry { change: Arc::new(change), readers });
        }
        let (changes, bytes) = self.shared.most;
        while kept.entries.len() > changes || kept.bytes > bytes {
            kept.pop();
        }
        drop(kept);
        self.news.send_replace(());
    }

    fn is_watched(&self) -> bool {
        // See `subscribe`.
        fence(Ordering::SeqCst);
        self.shared.watchers.load(Ordering::Relaxed) > 0
    }
}

/// One who watches.
pub struct Subscription {
    shared: Arc<Shared>,
    /// The number of the change to be read next.
    next: u64,
    news: watch::Receiver<()>,
}

impl Subscription {
    /// Reads what comes next, a few dozen changes at the most; none where there is nothing yet.
    ///
    /// # Errors
    ///
    /// [`MissedChanges`] where something came that can no longer be read. What comes then is newer.
    pub fn read(&mut self, into: &mut VecDeque<Arc<PairChange>>) -> Result<(), MissedChanges> {
        let mut kept = self.shared.lock();
        if self.next < kept.first {
            let cause = match kept.skipped {
                Some((skipped, cause)) if skipped >= self.next => cause,
                _ => GapCause::Slow,
            };
            self.next = kept.end();
            kept.at_end += 1;
            kept.pop_read();
            return Err(MissedChanges { cause, revision: kept.revision });
        }
        *kept.readers(self.next) -= 1;
        let skip = usize::try_from(self.next - kept.first).unwrap_or(usize::MAX);
        for entry in kept.entries.iter().skip(skip).take(MAX_READ) {
            into.push_back(Arc::clone(&entry.change));
            self.next += 1;
        }
        *kept.readers(self.next) += 1;
        kept.pop_read();
        Ok(())
    }

    /// Waits until there may be something that was not there at the last reading.
    ///
    /// # Errors
    ///
    /// [`FeedClosed`] where there never will be.
    pub async fn wait_for_changes(&mut self) -> Result<(), FeedClosed> {
        self.news.changed().await.map_err(|_| FeedClosed)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut kept = self.shared.lock();
        self.shared.watchers.fetch_sub(1, Ordering::Relaxed);
        if self.next >= kept.first {
            *kept.readers(self.next) -= 1;
        }
        kept.pop_read();
        if kept.entries.is_empty() {
            kept.entries = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests;
