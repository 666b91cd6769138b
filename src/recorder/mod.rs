//! The only way in: validate, read, apply, append.
//!
//! A recorder reads the pair's record, lets the rules apply the events to it, and appends the new
//! record with the revision of the one that it read. Where another recorder came first, it starts
//! from that one's record, by the clock that it read the first time.

mod due;
mod erase;
mod plan;
#[cfg(test)]
mod plan_tests;
mod returned;
mod subject;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

pub use self::due::{Found, Wanted};
pub use self::erase::ErasedUser;
use self::plan::Plan;
use self::returned::Acknowledged;
pub use self::subject::{MAX_BUSINESSES, UserPair, UserPairs};
use crate::consent::Violation;
use crate::consent::event::{Event, MAX_REQUEST_ID_BYTES, PlatformNames, What};
use crate::consent::id::{Key, KeySecret};
use crate::consent::keyword::{KeywordBook, Meaning};
use crate::consent::record::{HistoryEntry, Outcome, Revision};
use crate::consent::state::TooManyScopes;
use crate::consent::time::Timestamp;
use crate::ledger::{
    Appended, Change, Cursor, Events, History, Ledger, LedgerError, MAX_APPEND, Position, Stored,
    UnreadableRecord,
};
use crate::metrics::Metrics;

/// How often a change is tried again where other recorders keep coming first.
const MAX_TRIES: usize = 32;

/// The longest pause before another try.
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// The most events of one call.
pub const MAX_EVENTS: usize = MAX_APPEND;

/// An event to be recorded.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What happened.
    pub event: Event,
    /// Makes a retry safe; empty where the caller gave none.
    pub request_id: String,
}

/// Why an event was not recorded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// It is malformed, or against a rule.
    #[error("the event is not valid")]
    Invalid(Vec<Violation>),
    /// The pair has as many scopes as there may be.
    #[error(transparent)]
    TooManyScopes(#[from] TooManyScopes),
    /// The pair's record must not be rewritten.
    #[error(transparent)]
    Unreadable(#[from] UnreadableRecord),
    /// The ledger has more businesses than are looked at.
    #[error("the ledger has more than {MAX_BUSINESSES} businesses, the most that are looked at")]
    TooManyBusinesses,
    /// Too many others wrote to the same pair at the same time.
    #[error("too many events of this user at once; try again")]
    Contended,
    /// The ledger did not take it. It may or may not be durable.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Records events in one ledger; clones share it.
#[derive(Clone)]
pub struct Recorder {
    ledger: Ledger,
    names: Arc<PlatformNames>,
    keywords: Arc<KeywordBook>,
    metrics: Arc<Metrics>,
    acknowledged: Acknowledged,
}

/// What came of one event.
pub type Recorded = Result<Outcome, Refusal>;

/// The events of one pair, in the order given.
struct Pair {
    key: Key,
    events: Vec<usize>,
    /// The pair as last read, from which the next try starts.
    stored: Result<Stored, UnreadableRecord>,
}

impl Recorder {
    /// A recorder by these rules.
    #[must_use]
    pub fn new(
        ledger: Ledger,
        names: PlatformNames,
        keywords: impl Into<KeywordBook>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (names, keywords) = (Arc::new(names), Arc::new(keywords.into()));
        Self { ledger, names, keywords, metrics, acknowledged: Acknowledged::default() }
    }

    /// Records events, [`MAX_EVENTS`] at most; answers in their order, once all are durable.
    /// Events of one pair are applied in that order.
    pub async fn record(&self, submissions: &[Submission]) -> Vec<Recorded> {
        let mut results: Vec<Option<Recorded>> = vec![None; submissions.len()];
        match self.ledger.identity().await {
            Ok(identity) => {
                let secret = &identity.secret;
                let pairs = self.sort(submissions, secret, &mut results);
                self.record_pairs(submissions, secret, pairs, &mut results).await;
            }
            Err(error) => results.fill(Some(Err(error.into()))),
        }
        // Every event was answered; one that was not must not pass for recorded.
        let missing = || Err(Refusal::Ledger(LedgerError::Closed));
        let results: Vec<_> = results.into_iter().map(|r| r.unwrap_or_else(missing)).collect();
        for result in &results {
            self.metrics.recorded(match result {
                Ok(outcome) if outcome.applied => "applied",
                Ok(_) => "unchanged",
                Err(Refusal::Contended | Refusal::Ledger(_)) => "failed",
                Err(_) => "refused",
            });
        }
        results
    }

    /// What is wrong with something that happened, whatever the pair's state.
    #[must_use]
    pub fn violations(&self, what: &What) -> Vec<Violation> {
        what.violations(&self.names)
    }

    /// A pair's history, with its chain checked.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the ids are malformed or the ledger cannot be read.
    pub async fn history(&self, user_id: &str, business_id: &str) -> Result<History, Refusal> {
        let identity = self.ledger.identity().await?;
        let key = identity.secret.read(user_id, business_id).map_err(Refusal::Invalid)?;
        Ok(self.ledger.history(key).await?)
    }

    /// What was recorded of all pairs: see [`Ledger::events_after`].
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the ledger cannot be read.
    pub async fn events_after(&self, cursor: Cursor) -> Result<Events, Refusal> {
        Ok(self.ledger.events_after(cursor).await?)
    }

    /// Which ledger this records in, and where that ends.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the ledger cannot be read.
    pub async fn end(&self) -> Result<Position, Refusal> {
        Ok(self.ledger.read_after(Revision::MAX).await?.end)
    }

    /// Refuses what is malformed, and sorts the rest by pair.
    fn sort(
        &self,
        submissions: &[Submission],
        secret: &KeySecret,
        results: &mut [Option<Recorded>],
    ) -> Vec<Pair> {
        let mut pairs: Vec<Pair> = Vec::new();
        let mut places = HashMap::new();
        for (index, submission) in submissions.iter().enumerate() {
            let event = &submission.event;
            let mut found = self.violations(&event.what);
            let key = secret.read(&event.user_id, &event.business_id);
            if submission.request_id.len() > MAX_REQUEST_ID_BYTES {
                found.push(Violation::new("request_id", "longer than 128 bytes of UTF-8"));
            }
            let key = match key {
                Ok(key) if found.is_empty() => key,
                key => {
                    let ids = key.err().unwrap_or_default();
                    let found = ids.into_iter().chain(found).collect();
                    set(results, index, Err(Refusal::Invalid(found)));
                    continue;
                }
            };
            let place = *places.entry(key).or_insert_with(|| {
                pairs.push(Pair { key, events: Vec::new(), stored: Ok(Stored::default()) });
                pairs.len() - 1
            });
            if let Some(pair) = pairs.get_mut(place) {
                pair.events.push(index);
            }
        }
        pairs
    }

    async fn record_pairs(
        &self,
        submissions: &[Submission],
        secret: &KeySecret,
        mut pairs: Vec<Pair>,
        results: &mut [Option<Recorded>],
    ) {
        if pairs.is_empty() {
            return;
        }
        let keys = pairs.iter().map(|pair| pair.key).collect();
        let read = match self.ledger.read(keys).await {
            Ok(read) => read,
            Err(error) => return fail(results, &pairs, &error.into()),
        };
        for (pair, stored) in pairs.iter_mut().zip(read.pairs) {
            pair.stored = stored;
        }
        for attempt in 0..MAX_TRIES {
            let planned = self.plan(submissions, secret, pairs, read.clock, results).await;
            if planned.is_empty() {
                return;
            }
            let (waiting, changes): (Vec<_>, Vec<_>) = planned.into_iter().unzip();
            let denials: Vec<_> = changes.iter().map(denials).collect();
            match self.ledger.append(changes).await {
                Ok(appended) => {
                    for (denials, appended) in denials.into_iter().zip(&appended) {
                        if matches!(appended, Appended::At(_)) {
                            self.acknowledged.keep(denials);
                        }
                    }
                    pairs = settle(waiting, appended, results);
                }
                Err(error) => {
                    let waiting: Vec<_> = waiting.into_iter().map(|(pair, _)| pair).collect();
                    return fail(results, &waiting, &error.into());
                }
            }
            if pairs.is_empty() {
                return;
            }
            pause(attempt).await;
        }
        fail(results, &pairs, &Refusal::Contended);
    }

    /// Applies the rules to every pair; gives the changes to append, with what is answered once
    /// they are.
    async fn plan(
        &self,
        submissions: &[Submission],
        secret: &KeySecret,
        pairs: Vec<Pair>,
        clock: Timestamp,
        results: &mut [Option<Recorded>],
    ) -> Vec<(Waiting, Change)> {
        let mut planned = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let stored = match &pair.stored {
                Ok(stored) => stored,
                Err(unreadable) => {
                    fail(results, &[&pair], &(*unreadable).into());
                    continue;
                }
            };
            let theirs: Vec<&Submission> =
                pair.events.iter().filter_map(|index| submissions.get(*index)).collect();
            // Only a confirmation needs to know in which words the opt-in was given.
            let history = if self.confirms(&theirs, stored) {
                match self.ledger.history(pair.key).await {
                    Ok(History { unreadable: 1.., .. }) => {
                        let damaged = LedgerError::Damaged("a history entry");
                        fail(results, &[&pair], &damaged.into());
                        continue;
                    }
                    Ok(history) => Some(history),
                    Err(error) => {
                        fail(results, &[&pair], &error.into());
                        continue;
                    }
                }
            } else {
                None
            };
            // A pair is of one business.
            let business = theirs.first().map_or("", |first| first.event.business_id.as_str());
            let keywords = self.keywords.of(business);
            let mut plan = Plan::new(stored, clock, keywords, history.as_ref());
            let outcomes: Vec<Recorded> = theirs.iter().map(|s| plan.add(s, secret)).collect();
            let change = plan.into_change(pair.key, &theirs);
            planned.push(((pair, outcomes), change));
        }
        planned
    }

    fn confirms(&self, submissions: &[&Submission], stored: &Stored) -> bool {
        let state = &stored.record.state;
        submissions.iter().any(|submission| match &submission.event.what {
            What::Inbound { text, .. } => {
                let keywords = self.keywords.of(&submission.event.business_id);
                let heard = keywords.meaning(text, state);
                heard.is_some_and(|heard| heard.meaning == Meaning::Confirm)
            }
            _ => false,
        })
    }
}

/// What a change denies.
fn denials(change: &Change) -> Vec<HistoryEntry> {
    let history = change.update.iter().flat_map(|update| &update.history);
    history.filter(|entry| entry.what.is_denial()).cloned().collect()
}

/// A pair whose change is being appended, and what its events are answered then.
type Waiting = (Pair, Vec<Recorded>);

/// Answers the pairs that were appended; gives those that another recorder was faster with.
fn settle(
    waiting: Vec<Waiting>,
    appended: Vec<Appended>,
    results: &mut [Option<Recorded>],
) -> Vec<Pair> {
    let mut again = Vec::new();
    for ((mut pair, outcomes), appended) in waiting.into_iter().zip(appended) {
        match appended {
            Appended::At(revision) => answer(results, &pair.events, outcomes, revision),
            Appended::Conflict(stored) => {
                pair.stored = stored;
                again.push(pair);
            }
            Appended::Failed(error) => fail(results, &[pair], &error.into()),
        }
    }
    again
}

/// Answers a pair's events; an outcome that does not know its revision has this one.
fn answer(
    results: &mut [Option<Recorded>],
    events: &[usize],
    outcomes: Vec<Recorded>,
    revision: Revision,
) {
    for (index, mut outcome) in events.iter().zip(outcomes) {
        if let Ok(outcome) = &mut outcome
            && outcome.revision == 0
        {
            outcome.revision = revision;
        }
        set(results, *index, outcome);
    }
}

/// Answers all events of these pairs with why they were not recorded.
fn fail(
    results: &mut [Option<Recorded>],
    pairs: &[impl std::borrow::Borrow<Pair>],
    refusal: &Refusal,
) {
    for index in pairs.iter().flat_map(|pair| &pair.borrow().events) {
        set(results, *index, Err(refusal.clone()));
    }
}

fn set(results: &mut [Option<Recorded>], index: usize, result: Recorded) {
    if let Some(slot) = results.get_mut(index) {
        *slot = Some(result);
    }
}

/// Waits a random while, longer with every attempt.
async fn pause(attempt: usize) {
    let mut random = [0; 1];
    // Without randomness recorders meet again sooner, no more.
    let _ = getrandom::fill(&mut random);
    let most = Duration::from_micros(100 << attempt.min(8)).min(MAX_PAUSE);
    tokio::time::sleep(most.mul_f64(f64::from(random[0]) / 255.0)).await;
}
