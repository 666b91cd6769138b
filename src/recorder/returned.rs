//! What a recorder gives back: a failover may lose what was acknowledged, and a denial or an erase
//! that the ledger has lost is one that nobody else may know of.
//!
//! Both are kept in memory for [`KEPT`]. They are recorded again, by a background task, where the
//! follower saw that the ledger lost changes, and where it is unknown whether they were recorded in
//! the first place. Recording again is idempotent: what the ledger still has changes nothing.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::linked::must_stay;
use super::{MAX_EVENTS, Recorder, Refusal, Submission, Told};
use consentd_core::event::Event;
use consentd_core::id::Key;
use consentd_core::record::HistoryEntry;
use consentd_core::time::Timestamp;
use consentd_ledger::{Change, UnreadableRecord};
use consentd_os::clock;

/// For how long a recorder can give back what it recorded.
pub const KEPT: Duration = Duration::from_mins(10);

/// How many denials and erases are kept to be given back; the oldest go first. At about 300 bytes
/// each.
pub const MAX_KEPT: usize = 200_000;

/// How long to wait before another try to give back.
const PAUSE: Duration = Duration::from_millis(500);

/// What can be given back.
#[derive(Clone, Debug, PartialEq)]
pub enum Returnable {
    /// Something was denied, or ids were linked.
    Denial(Box<HistoryEntry>),
    /// A pair was erased. Nothing but its key is kept, for it names nobody.
    Erase {
        /// The pair's key.
        key: Key,
        /// When it was erased: what happened until then is never recorded any more.
        time: Timestamp,
    },
}

impl Returnable {
    /// What of a change must not be lost.
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

/// What was recorded of late and can be given back. Pure: time is a parameter.
#[derive(Debug, Default)]
pub struct Memory {
    /// Oldest first.
    kept: VecDeque<Kept>,
    next: u64,
    /// Where the next question for what is unsettled begins, so that some which cannot be settled
    /// yet do not keep the others from being tried.
    asked: u64,
    /// How many were too old before the ledger was known to have them, and were not told of yet.
    given_up: usize,
    /// How many losses were noticed.
    losses: u64,
}

#[derive(Debug)]
struct Kept {
    number: u64,
    at: Duration,
    what: Returnable,
    /// Whether the ledger is known to have it.
    is_settled: bool,
}

impl Memory {
    /// Keeps something, of which is known or not that the ledger has it.
    pub fn keep(&mut self, now: Duration, what: Returnable, is_settled: bool) {
        let number = self.next;
        self.next = number.wrapping_add(1);
        self.kept.push_back(Kept { number, at: now, what, is_settled });
        self.forget_old(now);
    }

    /// The ledger was seen to have lost changes: nothing is known to be there any more.
    pub fn doubt(&mut self) {
        self.losses = self.losses.wrapping_add(1);
        self.kept.iter_mut().for_each(|kept| kept.is_settled = false);
    }

    /// How many losses were noticed.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.losses
    }

    /// The oldest that are to be given back, at most so many, with the number of each.
    pub fn unsettled(&mut self, now: Duration, most: usize) -> Vec<(u64, Returnable)> {
        self.forget_old(now);
        let from = |first: u64| -> Vec<(u64, Returnable)> {
            let unsettled = self.kept.iter().filter(|kept| !kept.is_settled);
            let unsettled = unsettled.filter(|kept| kept.number >= first).take(most);
            unsettled.map(|kept| (kept.number, kept.what.clone())).collect()
        };
        let mut unsettled = from(self.asked);
        if unsettled.is_empty() {
            unsettled = from(0);
        }
        self.asked = unsettled.last().map_or(0, |(number, _)| number.saturating_add(1));
        unsettled
    }

    /// How many were too old before the ledger was known to have them, since this was asked last.
    pub fn given_up(&mut self) -> usize {
        std::mem::take(&mut self.given_up)
    }

    /// These are in the ledger.
    pub fn settle(&mut self, numbers: &HashSet<u64>) {
        let settled = self.kept.iter_mut().filter(|kept| numbers.contains(&kept.number));
        settled.for_each(|kept| kept.is_settled = true);
    }

    /// Forgets what was denied to pairs that were erased.
    pub fn forget(&mut self, is_erased: impl Fn(&HistoryEntry) -> bool) {
        self.kept.retain(|kept| match &kept.what {
            Returnable::Denial(denial) => !is_erased(denial),
            Returnable::Erase { .. } => true,
        });
    }

    fn forget_old(&mut self, now: Duration) {
        while self.kept.front().is_some_and(|kept| now.saturating_sub(kept.at) > KEPT)
            || self.kept.len() > MAX_KEPT
        {
            let oldest = self.kept.pop_front();
            let is_given_up = oldest.is_some_and(|kept| !kept.is_settled);
            self.given_up = self.given_up.saturating_add(usize::from(is_given_up));
        }
    }
}

/// The memory of one recorder; clones share it.
#[derive(Clone, Default)]
pub(super) struct Acknowledged(Arc<Shared>);

#[derive(Default)]
struct Shared {
    memory: Mutex<Memory>,
    /// Something is kept of which is not known that the ledger has it.
    unsettled: Notify,
}

impl Acknowledged {
    /// Keeps something. It is settled where the ledger was found to have it, by a caller that began
    /// when so many losses had been noticed, and none was noticed since: this and
    /// [`Memory::doubt`] exclude each other, so that no loss is noticed unseen in between.
    pub(super) fn keep(&self, what: Returnable, settled_since: Option<u64>) {
        let mut memory = self.memory();
        let is_settled = settled_since == Some(memory.losses());
        memory.keep(clock::boot(), what, is_settled);
        drop(memory);
        if !is_settled {
            self.0.unsettled.notify_one();
        }
    }

    /// How many losses were noticed.
    pub(super) fn losses(&self) -> u64 {
        self.memory().losses()
    }

    pub(super) fn forget(&self, is_erased: impl Fn(&HistoryEntry) -> bool) {
        self.memory().forget(is_erased);
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was given back.
#[derive(Default)]
struct GivenBack {
    denials: usize,
    erases: usize,
}

impl Recorder {
    /// Records the denials and erases of the last ten minutes again whenever the ledger was seen to
    /// have lost changes, and those whose recording was answered as unknown until it is known.
    pub async fn give_back(&self, mut losses: watch::Receiver<u64>) {
        loop {
            let is_loss = tokio::select! {
                changed = losses.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    true
                }
                () = self.acknowledged.0.unsettled.notified() => false,
            };
            if is_loss {
                self.acknowledged.memory().doubt();
            }
            let GivenBack { denials, erases } = self.settle_all(&mut losses).await;
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

    /// Tries until the ledger is known to have all of it, or it is too old.
    async fn settle_all(&self, losses: &mut watch::Receiver<u64>) -> GivenBack {
        let mut given = GivenBack::default();
        loop {
            if losses.has_changed().unwrap_or(false) {
                losses.mark_unchanged();
                self.acknowledged.memory().doubt();
            }
            let (unsettled, given_up) = {
                let mut memory = self.acknowledged.memory();
                (memory.unsettled(clock::boot(), MAX_EVENTS), memory.given_up())
            };
            if given_up > 0 {
                warn!(
                    given_up,
                    "gave up recording lost denials or erases again: for ten minutes the ledger could \
                     not be written to; have the senders repeat the opt-outs of that time"
                );
            }
            if unsettled.is_empty() {
                return given;
            }
            let all = unsettled.len();
            let settled = self.record_again(unsettled, &mut given).await;
            self.acknowledged.memory().settle(&settled);
            if settled.len() < all {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Records these again; gives the numbers of those that the ledger is known to have now.
    async fn record_again(
        &self,
        unsettled: Vec<(u64, Returnable)>,
        given: &mut GivenBack,
    ) -> HashSet<u64> {
        let mut settled = HashSet::new();
        let (mut numbers, mut submissions) = (Vec::new(), Vec::new());
        for (number, what) in unsettled {
            match what {
                Returnable::Denial(denial) => {
                    numbers.push(number);
                    submissions.push(again(&denial));
                }
                Returnable::Erase { key, time } => match self.erase_again(key, time).await {
                    Ok(is_new) => {
                        given.erases = given.erases.saturating_add(usize::from(is_new));
                        self.metrics.erased_again(usize::from(is_new));
                        settled.insert(number);
                    }
                    Err(refusal) if is_unknown(&refusal) => {}
                    // It can be erased by a newer version alone: see the answer to the erase.
                    Err(_) => drop(settled.insert(number)),
                },
            }
        }
        let results = self.record_for_good(&submissions, false).await;
        for (number, result) in numbers.into_iter().zip(results) {
            match result {
                Err(refusal) if is_unknown(&refusal) => continue,
                Ok(outcome) if outcome.applied => {
                    given.denials = given.denials.saturating_add(1);
                    self.metrics.gave_back(1);
                }
                Ok(_) => {}
                Err(refusal) => {
                    warn!(cause = %refusal, "the ledger refuses to record a lost denial again");
                }
            }
            settled.insert(number);
        }
        settled
    }
}

/// What happened, to be recorded as it was the first time.
pub(super) fn again(denial: &HistoryEntry) -> Submission {
    let event = Event {
        user_id: denial.user_id.clone(),
        business_id: denial.business_id.clone(),
        time: Some(denial.time),
        what: denial.what.clone(),
    };
    let told = Told { is_recorded: true, ..Told::default() };
    Submission { event, request_id: String::new(), told }
}

/// Whether something may not be recorded, so that it is tried again.
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
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::watch;

    use super::Returnable;
    use crate::metrics::Metrics;
    use crate::recorder::{Recorder, Submission};
    use consentd_core::event::{Event, PlatformNames, What};
    use consentd_core::keyword::{KeywordLists, Keywords};
    use consentd_core::record::HistoryEntry;
    use consentd_core::time::Timestamp;
    use consentd_ledger::{Embedded, Ledger, Retention};
    use consentd_os::clock;

    fn recorder_in(folder: &Path) -> Recorder {
        let path = folder.join("ledger.redb");
        let (ledger, appender) = Embedded::open(&path, Retention::default(), 1 << 20).unwrap();
        std::thread::spawn(move || appender.run());
        let names = PlatformNames::default();
        let keywords = Keywords::new(KeywordLists::default());
        let metrics = Metrics::new(prometheus::Registry::new()).unwrap();
        Recorder::new(Ledger::Embedded(ledger), names, keywords, Arc::new(metrics))
    }

    #[tokio::test]
    async fn a_file_ledger_keeps_no_denials_to_give_back() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder_in(folder.path());
        let what = What::Suppression { suppressed: true, reference: String::new() };
        let (user_id, business_id) = ("US.1".to_owned(), "acme".to_owned());
        let event = Event { user_id, business_id, time: None, what };
        let results = recorder.record(&[Submission::new(event, String::new())]).await;
        assert!(results[0].as_ref().is_ok_and(|outcome| outcome.applied), "{results:?}");
        assert!(recorder.acknowledged.memory().kept.is_empty());
    }

    fn suppression(user: &str, business: &str) -> Returnable {
        let time = Timestamp::from_millis(1).unwrap();
        Returnable::Denial(Box::new(HistoryEntry {
            user_id: user.to_owned(),
            business_id: business.to_owned(),
            time,
            record_time: time,
            what: What::Suppression { suppressed: true, reference: String::new() },
        }))
    }

    /// What the ledger will never take must not be tried for ever, nor keep the rest from being
    /// given back.
    #[tokio::test]
    async fn denial_that_is_refused_as_invalid_is_settled_and_the_next_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let recorder = recorder_in(folder.path());
        recorder.acknowledged.keep(suppression("", "acme"), None);
        recorder.acknowledged.keep(suppression("US.1", "acme"), None);
        let (_losses, mut heard) = watch::channel(0);
        let all = recorder.settle_all(&mut heard);
        let given = tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
        assert_eq!((given.denials, given.erases), (1, 0));
        assert!(recorder.acknowledged.memory().unsettled(clock::boot(), 10).is_empty());
        let history = recorder.history("US.1", "acme").await.unwrap();
        assert_eq!(history.entries.len(), 1);
    }
}
