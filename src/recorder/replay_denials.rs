//! Replays denials and erasures that a failover lost: records them again.
//!
//! A failover may lose acknowledged events. A lost denial or erasure may be known only to the process
//! that recorded it. So that process retains both in memory for [`REPLAY_PERIOD`]. A background task
//! records them again if the follower noticed that the ledger lost changes, and if the outcome of their
//! recording is unknown. Recording again is idempotent: what the ledger still has changes nothing.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::linked_ids::must_stay;
use super::{MAX_EVENTS, Recorder, Refusal};
use consentd_core::event::Event;
use consentd_core::id::Key;
use consentd_core::record::HistoryEntry;
use consentd_core::submission::Submission;
use consentd_core::time::Timestamp;
use consentd_ledger::{Change, UnreadableRecord};
use consentd_os::clock;

/// How long denials and erasures are retained for a replay.
pub const REPLAY_PERIOD: Duration = Duration::from_mins(10);

/// The most denials and erasures that are retained, of about 300 bytes each. The oldest are dropped
/// first.
pub const MAX_RETAINED: usize = 200_000;

/// The pause before a replay that failed is retried.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A change that can be replayed.
#[derive(Clone, Debug, PartialEq)]
pub enum Replayable {
    /// A denial, or a link.
    Denial(Box<HistoryEntry>),
    /// The erasure of a pair. Only its key is retained, which names no user.
    Erase {
        /// The pair's key.
        key: Key,
        /// The time of the tombstone. An event that happened until then is never recorded again.
        time: Timestamp,
    },
}

impl Replayable {
    /// The parts of a change that must not be lost.
    pub(super) fn of(change: &Change) -> Vec<Self> {
        let Some(update) = &change.update else { return Vec::new() };
        if let Some(erased) = &update.record.erased
            && update.history.is_empty()
            && update.record.is_tombstone()
        {
            return vec![Self::Erase { key: change.key, time: erased.time }];
        }
        let denials = update.history.iter().filter(|entry| must_stay(&entry.what));
        denials.cloned().map(|denial| Self::Denial(Box::new(denial))).collect()
    }
}

/// The changes that were recorded recently and can be replayed. Pure: time is a parameter.
///
/// A change is *confirmed* while the ledger is known to have it. A detected loss makes every change
/// unconfirmed; a replay confirms it again.
#[derive(Debug, Default)]
pub struct ReplayBuffer {
    /// Oldest first.
    entries: VecDeque<RetainedChange>,
    next_number: u64,
    /// The number from which the next batch starts, so that changes which cannot be confirmed yet do
    /// not starve the others.
    next_in_batch: u64,
    /// The changes that were dropped while unconfirmed and not reported yet.
    given_up: usize,
    /// The number of losses that were detected.
    losses: u64,
}

#[derive(Debug)]
struct RetainedChange {
    number: u64,
    /// When it was retained, by the clock since boot.
    at: Duration,
    change: Replayable,
    /// Whether the ledger is known to have it.
    is_confirmed: bool,
}

impl ReplayBuffer {
    /// Retains a change. `is_confirmed` is whether the ledger is known to have it.
    pub fn retain(&mut self, now: Duration, change: Replayable, is_confirmed: bool) {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        self.entries.push_back(RetainedChange { number, at: now, change, is_confirmed });
        self.drop_old(now);
    }

    /// Notes that the ledger lost changes: no change is confirmed any more.
    pub fn note_loss(&mut self) {
        self.losses = self.losses.wrapping_add(1);
        self.entries.iter_mut().for_each(|entry| entry.is_confirmed = false);
    }

    /// The number of losses that were detected.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// The next batch of unconfirmed changes, oldest first and at most `max`, with their numbers.
    pub fn unconfirmed(&mut self, now: Duration, max: usize) -> Vec<(u64, Replayable)> {
        self.drop_old(now);
        let batch_from = |first: u64| -> Vec<(u64, Replayable)> {
            let unconfirmed = self.entries.iter().filter(|entry| !entry.is_confirmed);
            let batch = unconfirmed.filter(|entry| entry.number >= first).take(max);
            batch.map(|entry| (entry.number, entry.change.clone())).collect()
        };
        let mut batch = batch_from(self.next_in_batch);
        if batch.is_empty() {
            batch = batch_from(0);
        }
        self.next_in_batch = batch.last().map_or(0, |(number, _)| number.saturating_add(1));
        batch
    }

    /// The number of changes that were dropped while unconfirmed, since the last call.
    pub fn take_given_up(&mut self) -> usize {
        std::mem::take(&mut self.given_up)
    }

    /// Confirms the changes with these numbers: the ledger has them.
    pub fn confirm(&mut self, numbers: &HashSet<u64>) {
        let confirmed = self.entries.iter_mut().filter(|entry| numbers.contains(&entry.number));
        confirmed.for_each(|entry| entry.is_confirmed = true);
    }

    /// Forgets the denials of pairs that were erased.
    pub fn forget(&mut self, is_erased: impl Fn(&HistoryEntry) -> bool) {
        self.entries.retain(|entry| match &entry.change {
            Replayable::Denial(denial) => !is_erased(denial),
            Replayable::Erase { .. } => true,
        });
    }

    fn drop_old(&mut self, now: Duration) {
        while self.entries.front().is_some_and(|entry| now.saturating_sub(entry.at) > REPLAY_PERIOD)
            || self.entries.len() > MAX_RETAINED
        {
            let oldest = self.entries.pop_front();
            let is_given_up = oldest.is_some_and(|entry| !entry.is_confirmed);
            self.given_up = self.given_up.saturating_add(usize::from(is_given_up));
        }
    }
}

/// The replay buffer of one recorder. Clones share it.
#[derive(Clone, Default)]
pub(super) struct RecentDenials(Arc<Shared>);

#[derive(Default)]
struct Shared {
    buffer: Mutex<ReplayBuffer>,
    /// Notified when an unconfirmed change was retained.
    unconfirmed: Notify,
}

impl RecentDenials {
    /// Retains a change. `confirmed_since` is set if the ledger was found to have the change, to the
    /// number of losses when its recording began. The change is confirmed only if no loss was detected
    /// since: this holds the lock that [`ReplayBuffer::note_loss`] needs, so that no loss goes unnoticed
    /// in between.
    pub(super) fn retain(&self, change: Replayable, confirmed_since: Option<u64>) {
        let mut buffer = self.buffer();
        let is_confirmed = confirmed_since == Some(buffer.losses());
        buffer.retain(clock::boot(), change, is_confirmed);
        drop(buffer);
        if !is_confirmed {
            self.0.unconfirmed.notify_one();
        }
    }

    /// The number of losses that were detected.
    pub(super) fn losses(&self) -> u64 {
        self.buffer().losses()
    }

    pub(super) fn forget(&self, is_erased: impl Fn(&HistoryEntry) -> bool) {
        self.buffer().forget(is_erased);
    }

    /// Notes that the ledger may have lost changes, so that all that is retained is replayed.
    pub(super) fn note_loss(&self) {
        self.buffer().note_loss();
        self.0.unconfirmed.notify_one();
    }

    pub(super) fn buffer(&self) -> MutexGuard<'_, ReplayBuffer> {
        self.0.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many denials and erasures were lost and recorded again.
#[derive(Default)]
struct Replayed {
    denials: usize,
    erases: usize,
}

impl Recorder {
    /// Replays the retained denials and erasures whenever the ledger was detected to have lost changes,
    /// and those whose outcome is unknown. `losses` are those that the followers detect; those of partitions that
    /// have none are looked for here. Returns when the sender of `losses` is dropped.
    pub async fn replay_after_loss(&self, losses: watch::Receiver<u64>) {
        tokio::select! {
            () = self.replay_whenever_lost(losses) => {}
            () = self.watch_unfollowed() => {}
        }
    }

    async fn replay_whenever_lost(&self, mut losses: watch::Receiver<u64>) {
        loop {
            let is_loss = tokio::select! {
                changed = losses.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    true
                }
                () = self.recent_denials.0.unconfirmed.notified() => false,
            };
            if is_loss {
                self.recent_denials.buffer().note_loss();
            }
            let Replayed { denials, erases } = self.replay_all(&mut losses).await;
            if denials > 0 || erases > 0 {
                warn!(
                    denials,
                    erases,
                    "a failover or an outage lost denials or erases that were acknowledged here: they \
                     were recorded again, and nothing is left to do for these; see that replicas \
                     keep up (--durability replicas:N)"
                );
            } else if is_loss {
                info!(
                    "after a loss the ledger still has all denials and erases that were recorded here \
                     in the last ten minutes: nothing is to be done"
                );
            }
        }
    }

    /// Replays until every retained change is confirmed, or too old.
    async fn replay_all(&self, losses: &mut watch::Receiver<u64>) -> Replayed {
        let mut replayed = Replayed::default();
        loop {
            if losses.has_changed().unwrap_or(false) {
                losses.mark_unchanged();
                self.recent_denials.buffer().note_loss();
            }
            let (batch, given_up) = {
                let mut buffer = self.recent_denials.buffer();
                (buffer.unconfirmed(clock::boot(), MAX_EVENTS), buffer.take_given_up())
            };
            if given_up > 0 {
                warn!(
                    given_up,
                    "gave up recording lost denials or erases again: for ten minutes the ledger could \
                     not be written to; have the senders repeat the opt-outs of that time"
                );
            }
            if batch.is_empty() {
                return replayed;
            }
            let count = batch.len();
            let confirmed = self.replay(batch, &mut replayed).await;
            self.recent_denials.buffer().confirm(&confirmed);
            if confirmed.len() < count {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }

    /// Replays a batch. Returns the numbers of the changes that are confirmed now.
    async fn replay(&self, batch: Vec<(u64, Replayable)>, replayed: &mut Replayed) -> HashSet<u64> {
        let mut confirmed = HashSet::new();
        let (mut numbers, mut submissions) = (Vec::new(), Vec::new());
        for (number, change) in batch {
            match change {
                Replayable::Denial(denial) => {
                    numbers.push(number);
                    submissions.push(resubmission(&denial));
                }
                Replayable::Erase { key, time } => {
                    let result = self.erase_again(key, time).await;
                    if self.is_erase_confirmed(result, replayed) {
                        confirmed.insert(number);
                    }
                }
            }
        }
        let results = self.record_tracked(&submissions, false).await;
        for (number, result) in numbers.into_iter().zip(results) {
            match result {
                Err(refusal) if is_unknown(&refusal) => continue,
                Ok(outcome) if outcome.applied => {
                    replayed.denials = replayed.denials.saturating_add(1);
                    self.metrics.gave_back(1);
                }
                Ok(_) => {}
                Err(refusal) => {
                    warn!(cause = %refusal, "the ledger refuses to record a lost denial again");
                }
            }
            confirmed.insert(number);
        }
        confirmed
    }

    /// Counts the replay of an erasure by its result. Returns whether the change is confirmed. A refused
    /// one is, because a retry cannot help, as when the pair's record needs a newer version to be erased.
    fn is_erase_confirmed(&self, result: Result<bool, Refusal>, replayed: &mut Replayed) -> bool {
        match result {
            Ok(is_new) => {
                replayed.erases = replayed.erases.saturating_add(usize::from(is_new));
                self.metrics.erased_again(usize::from(is_new));
            }
            Err(refusal) if is_unknown(&refusal) => return false,
            Err(refusal) => {
                self.metrics.recorded("refused");
                warn!(cause = %refusal, "the ledger refuses to record a lost erase again");
            }
        }
        true
    }
}

/// The submission that records a denial as it was recorded the first time.
pub(super) fn resubmission(denial: &HistoryEntry) -> Submission {
    let event = Event {
        user_id: denial.user_id.clone(),
        business_id: denial.business_id.clone(),
        time: Some(denial.time),
        what: denial.what.clone(),
    };
    Submission { is_replay: true, ..Submission::new(event, String::new()) }
}

/// Whether it is unknown if the change is recorded, so that it must be retried.
fn is_unknown(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Ledger(_)
            | Refusal::Contended
            | Refusal::Unknown(_)
            | Refusal::Unreadable(UnreadableRecord::Lost { .. })
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::sync::watch;

    use super::{Replayable, Replayed};
    use crate::metrics::Metrics;
    use crate::recorder::{Recorder, Refusal};
    use consentd_core::event::{Event, PlatformNames, What};
    use consentd_core::keyword::{KeywordLists, Keywords};
    use consentd_core::record::HistoryEntry;
    use consentd_core::submission::Submission;
    use consentd_core::time::Timestamp;
    use consentd_ledger::{Embedded, Ledger, Retention, UnreadableRecord};
    use consentd_os::clock;

    /// The log of a test.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn refused_replay_of_an_erasure_is_confirmed_logged_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let registry = prometheus::Registry::new();
        let recorder = recorder_with(folder.path(), registry.clone());
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let mut replayed = Replayed::default();
        let unknown = Refusal::Unreadable(UnreadableRecord::Lost { bucket: 7 });
        assert!(!recorder.is_erase_confirmed(Err(unknown), &mut replayed));
        assert!(log.0.lock().unwrap().is_empty());
        let refused = Refusal::Unreadable(UnreadableRecord::Newer { format: 99 });
        assert!(recorder.is_erase_confirmed(Err(refused), &mut replayed));
        let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(said.contains("refuses to record a lost erase again"), "{said}");
        assert!(said.contains("format 99"), "{said}");
        let metrics = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(metrics.contains("consent_records_total{outcome=\"refused\"} 1"), "{metrics}");
        assert!(recorder.is_erase_confirmed(Ok(true), &mut replayed));
        assert_eq!((replayed.denials, replayed.erases), (0, 1));
    }

    fn recorder_in(folder: &Path) -> Recorder {
        recorder_with(folder, prometheus::Registry::new())
    }

    fn recorder_with(folder: &Path, registry: prometheus::Registry) -> Recorder {
        let path = folder.join("ledger.redb");
        let (ledger, appender) = Embedded::open(&path, Retention::default(), 1 << 20).unwrap();
        std::thread::spawn(move || appender.run());
        let names = PlatformNames::default();
        let keywords = Keywords::new(KeywordLists::default());
        let metrics = Metrics::new(registry).unwrap();
        Recorder::new(Ledger::Embedded(ledger), names, keywords, Arc::new(metrics))
    }

    #[tokio::test]
    async fn file_ledger_retains_no_denials_for_a_replay() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder_in(folder.path());
        let what = What::Suppression { suppressed: true, reference: String::new() };
        let (user_id, business_id) = ("US.1".to_owned(), "acme".to_owned());
        let event = Event { user_id, business_id, time: None, what };
        let results = recorder.record(&[Submission::new(event, String::new())]).await;
        assert!(results[0].as_ref().is_ok_and(|outcome| outcome.applied), "{results:?}");
        assert!(recorder.recent_denials.buffer().entries.is_empty());
    }

    fn suppression(user: &str, business: &str) -> Replayable {
        let time = Timestamp::from_millis(1).unwrap();
        Replayable::Denial(Box::new(HistoryEntry {
            user_id: user.to_owned(),
            business_id: business.to_owned(),
            time,
            record_time: time,
            what: What::Suppression { suppressed: true, reference: String::new() },
        }))
    }

    /// A denial that the ledger will never accept must not be retried for ever, nor prevent the replay of
    /// others.
    #[tokio::test]
    async fn refused_replay_of_a_denial_is_confirmed_and_the_next_is_replayed() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder_in(folder.path());
        recorder.recent_denials.retain(suppression("", "acme"), None);
        recorder.recent_denials.retain(suppression("US.1", "acme"), None);
        let (_sender, mut losses) = watch::channel(0);
        let all = recorder.replay_all(&mut losses);
        let replayed = tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
        assert_eq!((replayed.denials, replayed.erases), (1, 0));
        assert!(recorder.recent_denials.buffer().unconfirmed(clock::boot(), 10).is_empty());
        let history = crate::history::of_pair(&recorder.ledger, "US.1", "acme").await.unwrap();
        assert_eq!(history.entries.len(), 1);
    }
}
