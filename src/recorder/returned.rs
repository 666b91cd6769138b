//! What a recorder gives back: a failover may lose what was acknowledged, and a denial that the
//! ledger has lost is one that nobody else may know of.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::{MAX_EVENTS, Recorder, Refusal, Submission, Told};
use crate::clock;
use crate::consent::event::Event;
use crate::consent::record::HistoryEntry;

/// For how long a recorder can give back what it acknowledged.
const KEPT: Duration = Duration::from_mins(10);

/// How many denials are kept to be given back; the oldest go first. At about 300 bytes each.
const MAX_KEPT: usize = 200_000;

/// How long to wait before another try to give back.
const PAUSE: Duration = Duration::from_millis(500);

/// The denials that were acknowledged of late, oldest first, and when.
#[derive(Clone, Default)]
pub(super) struct Acknowledged(Arc<Mutex<VecDeque<(Duration, HistoryEntry)>>>);

impl Acknowledged {
    /// Keeps denials that are acknowledged now.
    pub(super) fn keep(&self, denials: Vec<HistoryEntry>) {
        if denials.is_empty() {
            return;
        }
        let now = clock::boot();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(denials.into_iter().map(|denial| (now, denial)));
        while kept.front().is_some_and(|(at, _)| now.saturating_sub(*at) > KEPT)
            || kept.len() > MAX_KEPT
        {
            kept.pop_front();
        }
    }

    /// Forgets what was denied to pairs that were erased.
    pub(super) fn forget(&self, is_erased: impl Fn(&HistoryEntry) -> bool) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(_, denial)| !is_erased(denial));
    }

    /// All that may still be given back.
    fn all(&self) -> Vec<HistoryEntry> {
        let now = clock::boot();
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let young = kept.iter().filter(|(at, _)| now.saturating_sub(*at) <= KEPT);
        young.map(|(_, denial)| denial.clone()).collect()
    }
}

impl Recorder {
    /// Records the denials of the last ten minutes again whenever the ledger was seen to have lost
    /// changes. What it still has changes nothing; the rest is as when it was first recorded.
    pub async fn give_back(&self, mut losses: watch::Receiver<u64>) {
        while losses.changed().await.is_ok() {
            losses.mark_unchanged();
            let mut waiting = self.acknowledged.all();
            let all = waiting.len();
            let mut returned = 0_usize;
            while !waiting.is_empty() {
                let rest = waiting.split_off(waiting.len().min(MAX_EVENTS));
                let submissions: Vec<_> = waiting.iter().map(again).collect();
                let results = self.record(&submissions).await;
                let failed = results.iter().any(is_unknown);
                let changed = results.iter().flatten().filter(|outcome| outcome.applied).count();
                returned = returned.saturating_add(changed);
                if failed {
                    // As a whole: what was recorded the first time changes nothing now.
                    waiting.extend(rest);
                    tokio::time::sleep(PAUSE).await;
                    let young = self.acknowledged.all();
                    waiting.retain(|denial| young.contains(denial));
                } else {
                    waiting = rest;
                }
            }
            self.metrics.gave_back(returned);
            if returned > 0 {
                warn!(denials = returned, "the ledger had lost denials: they are recorded again");
            } else {
                info!(denials = all, "the ledger has all denials that were recorded here of late");
            }
        }
    }
}

/// What happened, to be recorded as it was the first time.
fn again(denial: &HistoryEntry) -> Submission {
    let event = Event {
        user_id: denial.user_id.clone(),
        business_id: denial.business_id.clone(),
        time: Some(denial.time),
        what: denial.what.clone(),
    };
    let told = Told { is_recorded: true, ..Told::default() };
    Submission { event, request_id: String::new(), told }
}

/// Whether an event may not be durable, so that it is tried again.
fn is_unknown(result: &super::Recorded) -> bool {
    matches!(result, Err(Refusal::Ledger(_) | Refusal::Contended))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use crate::consent::event::{Event, PlatformNames, What};
    use crate::consent::keyword::{KeywordLists, Keywords};
    use crate::ledger::{Embedded, Ledger, Retention};
    use crate::metrics::Metrics;
    use crate::recorder::{Recorder, Submission};

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
        assert_eq!(recorder.acknowledged.all(), []);
    }
}
