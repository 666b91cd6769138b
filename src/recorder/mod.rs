//! The only way in: validate, read, apply, append.
//!
//! A recorder reads the pair's record, lets the rules apply the events to it, and appends the new
//! record with the revision of the one that it read. Where another recorder came first, it starts
//! from that one's record, by the clock that it read the first time.
//!
//! Where a person has several ids, what denies is taken to all of them before it is acknowledged:
//! see [`linked`].

mod backoff;
mod call;
#[cfg(test)]
mod call_tests;
#[cfg(test)]
mod clock_tests;
mod due;
mod erase;
pub mod linked;
mod plan;
#[cfg(test)]
mod plan_tests;
pub mod returned;
mod settle;
mod spread;
mod subject;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use self::backoff::pause;
use self::call::Call;
pub use self::call::MAX_FOLLOW;
pub use self::due::{Found, Wanted};
pub use self::erase::ErasedUser;
use self::linked::TooManyIds;
use self::plan::{Plan, Spread};
use self::returned::Acknowledged;
use self::settle::{fail, set, settle};
use self::spread::{Beside, Spreading};
pub use self::subject::{MAX_BUSINESSES, UserPair, UserPairs};
use crate::metrics::Metrics;
use consentd_core::Violation;
use consentd_core::event::{Event, MAX_REQUEST_ID_BYTES, PlatformNames, What};
use consentd_core::id::{Key, KeySecret};
use consentd_core::keyword::{KeywordBook, Meaning};
use consentd_core::record::{Outcome, Revision};
use consentd_core::state::TooManyScopes;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Appended, Change, Cursor, Events, FollowTimeout, FollowerPosition, History, Ledger,
    LedgerError, MAX_APPEND, Position, StoredRecord, UnreadableRecord,
};

/// How often a change is tried again where other recorders keep coming first.
const MAX_TRIES: usize = 32;

/// The most events of one call.
pub const MAX_EVENTS: usize = MAX_APPEND;

/// An event to be recorded.
#[derive(Clone, Debug)]
pub struct Submission {
    /// What happened.
    pub event: Event,
    /// Makes a retry safe; empty where the caller gave none.
    pub request_id: String,
    /// How it was told.
    pub told: Told,
}

/// How an event was told, where that bears on what it means. By default as a caller of our own
/// tells it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Told {
    /// Whether its time has whole seconds: a denial then counts as the last millisecond of its
    /// second, and everything else as the first.
    pub whole_seconds: bool,
    /// What of an inbound message counts.
    pub counts: Counts,
    /// Whether it is in a ledger already, as when a denial is given back: then its ids are read as
    /// versions before took them.
    pub is_recorded: bool,
}

/// What of an inbound message counts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Counts {
    /// That it came, and what it says.
    #[default]
    All,
    /// What it says, where that is a keyword: the window stays as it is.
    Keyword,
    /// What it says, where that opts out.
    OptOut,
}

impl Submission {
    /// An event as a caller of our own tells it.
    #[must_use]
    pub fn new(event: Event, request_id: String) -> Self {
        Self { event, request_id, told: Told::default() }
    }
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
    /// The person has as many ids as there may be.
    #[error(transparent)]
    TooManyIds(#[from] TooManyIds),
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
    /// The ledger took it, perhaps on a branch of its log that a failover has left.
    #[error(
        "the event may or may not be recorded: {0}; repeat it with the same event_time or request_id"
    )]
    Unknown(FollowTimeout),
}

/// Records events in one ledger; clones share it.
#[derive(Clone)]
pub struct Recorder {
    ledger: Ledger,
    names: Arc<PlatformNames>,
    keywords: Arc<KeywordBook>,
    metrics: Arc<Metrics>,
    acknowledged: Acknowledged,
    /// Where this process' own follower is, where it has one.
    follower: Option<FollowerPosition>,
}

/// What came of one event.
pub type Recorded = Result<Outcome, Refusal>;

/// The events of one pair, in the order given.
struct Pair {
    key: Key,
    events: Vec<usize>,
    /// The pair as last read, from which the next try starts.
    stored: Result<StoredRecord, UnreadableRecord>,
    /// The ids that its events link it to, as first read; what cannot be read is left out.
    others: Vec<(Key, StoredRecord)>,
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
        let (acknowledged, follower) = (Acknowledged::default(), None);
        Self { ledger, names, keywords, metrics, acknowledged, follower }
    }

    /// The same beside a follower of the same ledger, which has to get to what is recorded before
    /// that is acknowledged.
    #[must_use]
    pub fn beside(self, follower: FollowerPosition) -> Self {
        Self { follower: Some(follower), ..self }
    }

    /// Records events, [`MAX_EVENTS`] at most; answers in their order, once all are durable on the
    /// branch of the log that is followed. Events of one pair are applied in that order.
    pub async fn record(&self, submissions: &[Submission]) -> Vec<Recorded> {
        self.record_for_good(submissions, true).await
    }

    /// The same; what denies is kept to be given back, or is not, for it is kept already.
    async fn record_for_good(&self, submissions: &[Submission], keeps: bool) -> Vec<Recorded> {
        let call = Call::new(self, keeps);
        let mut results: Vec<Option<Recorded>> = vec![None; submissions.len()];
        match self.ledger.identity().await {
            Ok(identity) => {
                let secret = &identity.secret;
                let pairs = self.sort(submissions, secret, &mut results);
                self.record_pairs(&call, submissions, secret, pairs, &mut results).await;
            }
            Err(error) => results.fill(Some(Err(error.into()))),
        }
        // Every event was answered; one that was not must not pass for recorded.
        let missing = || Err(Refusal::Ledger(LedgerError::Closed));
        let mut results: Vec<_> = results.into_iter().map(|r| r.unwrap_or_else(missing)).collect();
        if let Err(why) = call.finish().await {
            // What does not stand in the table that is followed may be lost, whatever was answered.
            results.iter_mut().filter(|r| r.is_ok()).for_each(|r| *r = Err(why.into()));
        }
        for result in &results {
            self.metrics.recorded(match result {
                Ok(outcome) if outcome.applied => "applied",
                Ok(_) => "unchanged",
                Err(Refusal::Contended | Refusal::Ledger(_) | Refusal::Unknown(_)) => "failed",
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

    /// A pair's history, with its chain checked; also of ids that only versions before took.
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
            let (mut found, key) = if submission.told.is_recorded {
                (Vec::new(), secret.read(&event.user_id, &event.business_id))
            } else {
                let key = secret.parse(&event.user_id, &event.business_id);
                (self.violations(&event.what), key)
            };
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
                let (events, others) = (Vec::new(), Vec::new());
                pairs.push(Pair { key, events, stored: Ok(StoredRecord::default()), others });
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
        call: &Call<'_>,
        submissions: &[Submission],
        secret: &KeySecret,
        mut pairs: Vec<Pair>,
        results: &mut [Option<Recorded>],
    ) {
        if pairs.is_empty() {
            return;
        }
        let clock = match self.read_pairs(submissions, secret, &mut pairs).await {
            Ok(clock) => clock,
            Err(refusal) => return fail(results, &pairs, &refusal),
        };
        let mut spreading = Vec::new();
        for attempt in 0..MAX_TRIES {
            let planned = self.plan(submissions, secret, pairs, clock, results).await;
            let (waiting, changes): (Vec<_>, Vec<_>) = planned.into_iter().unzip();
            let (mut changes, beside): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
            changes.extend(beside.into_iter().flatten());
            let count = changes.len();
            let appended = call.append(changes).await;
            // There may be one error for all of them.
            let appended = appended.unwrap_or_else(|error| vec![Appended::Failed(error); count]);
            pairs = settle(submissions, waiting, appended, &mut spreading, results);
            if pairs.is_empty() {
                break;
            }
            pause(attempt).await;
        }
        fail(results, &pairs, &Refusal::Contended);
        self.finish(call, secret, spreading, results).await;
    }

    /// Reads pairs, and with them the ids that their events link them to; gives the ledger's clock.
    async fn read_pairs(
        &self,
        submissions: &[Submission],
        secret: &KeySecret,
        pairs: &mut [Pair],
    ) -> Result<Timestamp, Refusal> {
        let mut keys: Vec<Key> = pairs.iter().map(|pair| pair.key).collect();
        let mut others = Vec::new();
        for (place, pair) in pairs.iter().enumerate() {
            let events = pair.events.iter().filter_map(|index| submissions.get(*index));
            for Submission { event, .. } in events {
                let other = spread::other_id(&event.what);
                let other = other.and_then(|id| secret.read(id, &event.business_id).ok());
                others.extend(other.map(|key| (place, key)));
            }
        }
        keys.extend(others.iter().map(|(_, key)| *key));
        let read = self.ledger.read(keys).await?;
        let mut stored = read.pairs.into_iter();
        for (pair, stored) in pairs.iter_mut().zip(stored.by_ref()) {
            pair.stored = stored;
        }
        for ((place, key), stored) in others.into_iter().zip(stored) {
            if let (Some(pair), Ok(stored)) = (pairs.get_mut(place), stored) {
                pair.others.push((key, stored));
            }
        }
        Ok(read.clock)
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
    ) -> Vec<(Planned, Changes)> {
        let mut planned = Vec::with_capacity(pairs.len());
        let mut taken = HashSet::new();
        if pairs.iter().any(|pair| !pair.others.is_empty()) {
            taken.extend(pairs.iter().map(|pair| pair.key));
        }
        for pair in pairs {
            let theirs: Vec<&Submission> =
                pair.events.iter().filter_map(|index| submissions.get(*index)).collect();
            let plan = match self.plan_one(secret, &pair, &theirs, clock, &mut taken).await {
                Ok(plan) => plan,
                Err(refusal) => {
                    fail(results, &[&pair], &refusal);
                    continue;
                }
            };
            let (outcomes, change, Beside { changes, proves }, spread) = plan;
            let beside = changes.len();
            let first = theirs.first().filter(|_| spread.waits.contains(&true));
            let spread = first.map(|first| {
                let Event { user_id, business_id, .. } = first.event.clone();
                Spreading { events: Vec::new(), outcomes: Vec::new(), user_id, business_id, spread }
            });
            planned.push((Planned { pair, outcomes, beside, proves, spread }, (change, changes)));
        }
        planned
    }

    async fn plan_one(
        &self,
        secret: &KeySecret,
        pair: &Pair,
        theirs: &[&Submission],
        clock: Timestamp,
        taken: &mut HashSet<Key>,
    ) -> Result<(Vec<Recorded>, Change, Beside, Spread), Refusal> {
        let stored = pair.stored.as_ref().map_err(|unreadable| *unreadable)?;
        // A confirmation needs to know in which words the opt-in was given, and a denial that is
        // given back whether the ledger lacks it; where that cannot be read, it counts as lacking.
        let history = if self.confirms(theirs, stored) {
            match self.ledger.history(pair.key).await? {
                History { unreadable: 1.., .. } => {
                    return Err(LedgerError::Damaged("a history entry").into());
                }
                history => Some(history),
            }
        } else if may_be_moved(theirs, stored) {
            self.ledger.history(pair.key).await.ok()
        } else {
            None
        };
        let group = self.group_of(secret, pair, stored, theirs).await?;
        // A pair is of one business.
        let business = theirs.first().map_or("", |first| first.event.business_id.as_str());
        let keywords = self.keywords.of(business);
        let plan = Plan::new(stored, clock, keywords, history.as_ref());
        let mut plan = plan.linked(spread::linked(group.as_ref()));
        let outcomes: Vec<Recorded> = theirs.iter().map(|s| plan.add(s, secret)).collect();
        let beside = spread::beside(group, pair, &plan, stored, clock, taken);
        let spread = plan.spread().1.clone();
        Ok((outcomes, plan.into_change(pair.key, theirs), beside, spread))
    }

    fn confirms(&self, submissions: &[&Submission], stored: &StoredRecord) -> bool {
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

/// A pair whose change is to be appended.
struct Planned {
    pair: Pair,
    /// What its events are answered once it is.
    outcomes: Vec<Recorded>,
    /// How many changes of other ids are appended beside it.
    beside: usize,
    /// Whether those prove that all ids hold what any of them denies.
    proves: bool,
    /// What must hold under other ids before some of its events are answered.
    spread: Option<Spreading>,
}

/// A pair's change, and what is written of other ids beside it.
type Changes = (Change, Vec<Change>);

/// Whether a denial that is given back may count as of later than its own time.
fn may_be_moved(submissions: &[&Submission], stored: &StoredRecord) -> bool {
    let mut given_back = submissions.iter().filter(|submission| submission.told.is_recorded);
    !stored.record.state.clamped.is_empty() && given_back.any(|one| one.event.what.is_denial())
}
