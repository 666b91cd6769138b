//! Pairs that kept the key of an earlier reading of user ids.
//!
//! A copy re-keys the pairs of an older ledger, except for those whose names are gone, such as tombstones. A
//! check of a notation that was read otherwise looks at both keys. Before anything more is recorded of such an
//! id, what the former pair denies is recorded under the key of today as well, as of its own time.

use std::collections::{BTreeMap, BTreeSet};

use super::linked_ids::denials_of;
use super::{MAX_EVENTS, Recorder, Refusal};
use consentd_core::event::{Event, What};
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::Record;
use consentd_core::submission::Submission;
use consentd_ledger::MAX_APPEND;

/// An id that versions before read otherwise, at a business.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
struct Renamed<'a> {
    user_id: &'a str,
    business_id: &'a str,
    former: [u8; 16],
}

impl Recorder {
    /// Records what the former pairs of the ids that these events name deny. Returns for each event why
    /// that failed for one of its ids; such an event must not be recorded.
    pub(super) async fn take_over_former(
        &self,
        submissions: &[Submission],
    ) -> Vec<Option<Refusal>> {
        let none = vec![None; submissions.len()];
        // Most events name no such id, and this is then all that is done.
        let any = KeySecret::new(&[0; 16]);
        if !submissions.iter().any(|one| renamed_ids(one, &any).next().is_some()) {
            return none;
        }
        let secret = match self.ledger.secret().await {
            Ok(secret) => secret,
            Err(error) => return vec![Some(error.into()); submissions.len()],
        };
        let renamed: BTreeSet<_> =
            submissions.iter().flat_map(|one| renamed_ids(one, &secret)).collect();
        let renamed: Vec<_> = renamed.into_iter().collect();
        let failed = self.take_over(&renamed).await;
        if failed.is_empty() {
            return none;
        }
        let failure = |one| renamed_ids(one, &secret).find_map(|id| failed.get(&id).cloned());
        submissions.iter().map(failure).collect()
    }

    /// Records what these former pairs deny. Returns those of which that failed.
    async fn take_over<'a>(&self, renamed: &[Renamed<'a>]) -> BTreeMap<Renamed<'a>, Refusal> {
        let mut failed = BTreeMap::new();
        let mut denials = Vec::new();
        for some in renamed.chunks(MAX_APPEND) {
            let keys = some.iter().map(|one| Key::from_bytes(one.former)).collect();
            let read = match self.ledger.read(keys).await {
                Ok(read) => read,
                Err(error) => {
                    failed.extend(some.iter().map(|one| (*one, error.clone().into())));
                    continue;
                }
            };
            for (one, stored) in some.iter().zip(read.pairs) {
                match stored {
                    Ok(stored) => {
                        denials.extend(taken_over(one, &stored.record).map(|event| (*one, event)));
                    }
                    Err(unreadable) => {
                        failed.insert(*one, unreadable.into());
                    }
                }
            }
        }
        for some in denials.chunks(MAX_EVENTS) {
            let (ids, events): (Vec<_>, Vec<_>) = some.iter().cloned().unzip();
            for (id, result) in ids.into_iter().zip(self.record_events(&events, true).await) {
                match result {
                    // An id that is refused today is found under its former key alone.
                    Ok(_) | Err(Refusal::Invalid(_)) => {}
                    Err(refusal) => {
                        failed.insert(id, refusal);
                    }
                }
            }
        }
        failed
    }
}

/// The ids that an event names and that versions before read otherwise.
fn renamed_ids<'a>(
    submission: &'a Submission,
    secret: &KeySecret,
) -> impl Iterator<Item = Renamed<'a>> {
    let business_id = submission.event.business_id.as_str();
    ids(&submission.event).filter_map(move |user_id| {
        let former = secret.read_formerly(user_id, business_id)?.to_bytes();
        Some(Renamed { user_id, business_id, former })
    })
}

/// The user ids that an event names.
fn ids(event: &Event) -> impl Iterator<Item = &str> {
    let other = match &event.what {
        What::Link { other_user_id, .. } => Some(other_user_id.as_str()),
        _ => None,
    };
    std::iter::once(event.user_id.as_str()).chain(other)
}

/// The denials of a former pair, as events of the id. Those that are known change nothing.
fn taken_over(
    Renamed { user_id, business_id, .. }: &Renamed<'_>,
    record: &Record,
) -> impl Iterator<Item = Submission> {
    let (user_id, business_id) = ((*user_id).to_owned(), (*business_id).to_owned());
    denials_of(&record.state).into_iter().map(move |denial| {
        let event = Event {
            user_id: user_id.clone(),
            business_id: business_id.clone(),
            time: Some(denial.time),
            what: denial.what,
        };
        Submission { is_replay: true, ..Submission::new(event, String::new()) }
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use redb::{Database, ReadableTable as _, TableDefinition};

    use super::*;
    use crate::metrics::Metrics;
    use consentd_core::event::PlatformNames;
    use consentd_core::keyword::{KeywordLists, Keywords};
    use consentd_core::record::Record;
    use consentd_core::scope::Scope;
    use consentd_core::time::Timestamp;
    use consentd_ledger::{Appender, Change, Embedded, Ledger, Retention, Update};

    const FORMER: &str = "whatsapp:+15550100006";

    fn submission(user: &str) -> Submission {
        let what = What::OptOut { scope: Scope::All, reference: String::new() };
        let (user_id, business_id) = (user.to_owned(), "acme".to_owned());
        let time = Timestamp::from_millis(9);
        Submission::new(Event { user_id, business_id, time, what }, String::new())
    }

    fn open(path: &Path) -> (Ledger, std::thread::JoinHandle<()>) {
        let (ledger, appender): (_, Appender) =
            Embedded::open(path, Retention::default(), 1 << 20).unwrap();
        let appending = std::thread::spawn(move || appender.run().unwrap());
        (Ledger::Embedded(ledger), appending)
    }

    #[tokio::test]
    async fn record_beside_a_damaged_former_pair_fails_the_events_of_that_id_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let (ledger, appending) = open(&path);
        let former = ledger.identity().await.unwrap().secret.read_formerly(FORMER, "acme").unwrap();
        let base = ledger.read(vec![former]).await.unwrap().pairs.remove(0).unwrap().version;
        let update = Update {
            user_id: String::new(),
            business_id: String::new(),
            record: Record::default().tombstone(Timestamp::from_millis(5).unwrap()),
            history: Vec::new(),
            record_time: Timestamp::from_millis(5).unwrap(),
        };
        ledger.append(vec![Change { key: former, base, update: Some(update) }]).await.unwrap();
        ledger.close().await;
        drop(ledger);
        appending.join().unwrap();
        // Its row ends early.
        let database = Database::open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        {
            const PAIRS: TableDefinition<&[u8; 16], &[u8]> = TableDefinition::new("pairs");
            let mut pairs = transaction.open_table(PAIRS).unwrap();
            let row = pairs.get(&former.to_bytes()).unwrap().unwrap().value().to_vec();
            pairs.insert(&former.to_bytes(), &row[..row.len() - 1]).unwrap();
        }
        transaction.commit().unwrap();
        drop(database);

        let (ledger, _appending) = open(&path);
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let keywords = Keywords::new(KeywordLists::default());
        let recorder = Recorder::new(ledger, PlatformNames::default(), keywords, metrics);
        let results = recorder.record(&[submission("US.1"), submission(FORMER)]).await;
        assert!(results[0].is_ok(), "{results:?}");
        assert!(matches!(results[1], Err(Refusal::Unreadable(_))), "{results:?}");
    }
}
