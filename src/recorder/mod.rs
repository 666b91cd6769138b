//! The only way to write: validate events, read their pairs, apply the rules, append the result.
//!
//! A recorder reads a pair's record, applies the events to it, and appends the new record by
//! compare-and-set: the append succeeds only if the record is still the one that was read. If another
//! recorder was faster, it retries from the current record, with random backoff. All attempts use the
//! clock that was read first, so that a retry does not make an event younger.
//!
//! A person may have several linked ids. A denial under one of them is copied to all others before it
//! is acknowledged: see [`linked_ids`].
//!
//! In reading order: this file, `transaction` (the events of one pair, from reading to the result),
//! `pair_update` (what events make of a record; pure), [`linked_read`], [`linked_ids`] and `propagation` (what
//! linked ids say, and copies of denials; pure, and on the ledger), `append_tracker` (when an append is acknowledged),
//! [`replay_denials`] (recording again what a failover lost), `unfollowed` (noticing that where there is no follower),
//! `erase`.

mod append_tracker;
#[cfg(test)]
mod append_tracker_tests;
mod backoff;
#[cfg(test)]
mod clock_tests;
mod erase;
mod former;
mod keyword_match;
pub mod linked_ids;
pub mod linked_read;
mod message_references;
mod pair_update;
#[cfg(test)]
mod pair_update_tests;
mod propagation;
pub mod replay_denials;
mod request_identity;
pub mod sent_changes;
mod template_lift;
mod transaction;
mod unfollowed;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::watch;

use self::append_tracker::AppendTracker;
pub use self::append_tracker::MAX_FOLLOW;
use self::backoff::pause;
pub use self::erase::ErasedUser;
use self::linked_ids::TooManyIds;
use self::replay_denials::RecentDenials;
use self::sent_changes::Origin;
use self::transaction::{PairTransaction, PreparedTransaction, Resolution, Results};
use self::unfollowed::UnfollowedLogs;
use crate::history::ReadError;
use crate::history::by_user::TooManyBusinesses;
use crate::metrics::Metrics;
use consentd_core::Violation;
use consentd_core::event::{MAX_AHEAD, MAX_REQUEST_ID_BYTES, PlatformNames, What};
use consentd_core::id::{Key, KeySecret};
use consentd_core::keyword::KeywordBook;
use consentd_core::record::Outcome;
use consentd_core::state::TooManyScopes;
use consentd_core::submission::Submission;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Appended, FollowTimeout, FollowerPosition, Ledger, LedgerError, MAX_APPEND, UnreadableRecord,
};

/// The most attempts of a compare-and-set that other recorders keep winning.
const MAX_TRIES: usize = 32;

/// The most events of one call.
pub const MAX_EVENTS: usize = MAX_APPEND;

/// Why an event was not recorded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// The event is malformed, or a rule forbids it.
    #[error("the event is not valid")]
    Invalid(Vec<Violation>),
    /// The pair has the maximum number of scopes.
    #[error(transparent)]
    TooManyScopes(#[from] TooManyScopes),
    /// The person has the maximum number of linked ids.
    #[error(transparent)]
    TooManyIds(#[from] TooManyIds),
    /// The pair's record is damaged, lost, or in a newer format, and must not be overwritten.
    #[error(transparent)]
    Unreadable(#[from] UnreadableRecord),
    /// The ledger has too many businesses to find all pairs of a user that is to be erased.
    #[error(transparent)]
    TooManyBusinesses(#[from] TooManyBusinesses),
    /// Other recorders won every attempt of the compare-and-set.
    #[error("too many events of this user at once; try again")]
    Contended,
    /// The ledger failed. The event may or may not be durable.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ledger accepted the event, but perhaps on a branch of its log that a failover abandoned.
    #[error(
        "the event may or may not be recorded: {0}; repeat it with the same event_time or request_id"
    )]
    Unknown(FollowTimeout),
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Invalid(violations) => Self::Invalid(violations),
            ReadError::TooManyBusinesses(error) => Self::TooManyBusinesses(error),
            ReadError::Unreadable(error) => Self::Unreadable(error),
            ReadError::Ledger(error) => Self::Ledger(error),
        }
    }
}

/// The positions of a process' followers, by the partitions that they follow.
pub type FollowerPositions = watch::Receiver<BTreeMap<u32, FollowerPosition>>;

/// Records events in one ledger. Clones share all state.
#[derive(Clone)]
pub struct Recorder {
    ledger: Ledger,
    names: Arc<PlatformNames>,
    keywords: Arc<KeywordBook>,
    metrics: Arc<Metrics>,
    recent_denials: RecentDenials,
    /// The logs of the partitions that denials were recorded in and that this process does not follow.
    unfollowed: UnfollowedLogs,
    /// The positions of this process' own followers, by the partitions that they follow.
    followers: FollowerPositions,
}

/// The result of recording one event.
pub type Recorded = Result<Outcome, Refusal>;

impl Recorder {
    /// A recorder in a process without a follower.
    #[must_use]
    pub fn new(
        ledger: Ledger,
        names: PlatformNames,
        keywords: impl Into<KeywordBook>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (names, keywords) = (Arc::new(names), Arc::new(keywords.into()));
        let (recent_denials, unfollowed) = (RecentDenials::default(), UnfollowedLogs::default());
        let followers = watch::channel(BTreeMap::new()).1;
        Self { ledger, names, keywords, metrics, recent_denials, unfollowed, followers }
    }

    /// The same recorder in a process with a follower of the same ledger's one partition: see
    /// [`with_followers`](Self::with_followers).
    #[must_use]
    pub fn with_follower(self, follower: FollowerPosition) -> Self {
        self.with_followers(watch::channel(BTreeMap::from([(0, follower)])).1)
    }

    /// The same recorder in a process with followers of the same ledger. It acknowledges an event only after they
    /// have applied it to their tables. What is in a partition that none of them follows is not waited for.
    #[must_use]
    pub fn with_followers(self, followers: FollowerPositions) -> Self {
        Self { followers, ..self }
    }

    /// Records events, at most [`MAX_EVENTS`], and returns their results in the same order. Events of
    /// one pair are applied in that order. A result is `Ok` only if the event is durable on the
    /// proven branch of the log and this process' own follower has applied it.
    pub async fn record(&self, submissions: &[Submission]) -> Vec<Recorded> {
        self.record_tracked(submissions, true).await
    }

    /// Records events as [`record`](Self::record) does. `retain` is whether to retain denials for a
    /// replay; it is false for a replay, whose denials are retained already.
    async fn record_tracked(&self, submissions: &[Submission], retain: bool) -> Vec<Recorded> {
        let submissions = &*self.under_own_rule(submissions);
        let refused = self.take_over_former(submissions).await;
        if refused.iter().all(Option::is_none) {
            return self.record_events(submissions, retain).await;
        }
        let others = submissions.iter().zip(&refused).filter(|(_, refused)| refused.is_none());
        let others: Vec<_> = others.map(|(one, _)| one.clone()).collect();
        let mut recorded = self.record_events(&others, retain).await.into_iter();
        let mut results = Results::new(submissions.len());
        for (position, refused) in refused.into_iter().enumerate() {
            if let Some(result) = refused.map(Err).or_else(|| recorded.next()) {
                results.set(position, result);
            }
        }
        results.into_vec()
    }

    /// The events with the rule under which this recorder takes the statements of their opt-ins.
    fn under_own_rule<'a>(&self, submissions: &'a [Submission]) -> Cow<'a, [Submission]> {
        let is_other = |one: &Submission| match &one.event.what {
            What::OptIn { evidence, .. } => {
                evidence.statement_names != self.names.rule_for(evidence.method)
            }
            _ => false,
        };
        if !submissions.iter().any(is_other) {
            return Cow::Borrowed(submissions);
        }
        let mut submissions = submissions.to_vec();
        for submission in &mut submissions {
            if let What::OptIn { evidence, .. } = &mut submission.event.what {
                evidence.statement_names = self.names.rule_for(evidence.method);
            }
        }
        Cow::Owned(submissions)
    }

    async fn record_events(&self, submissions: &[Submission], retain: bool) -> Vec<Recorded> {
        let tracker = AppendTracker::new(self, retain);
        let mut results = Results::new(submissions.len());
        match self.ledger.secret().await {
            Ok(secret) => {
                let transactions = self.group_by_pair(submissions, &secret, &mut results);
                self.record_pairs(&tracker, &secret, transactions, &mut results).await;
            }
            Err(error) => results.fail_all(&error.into()),
        }
        let mut results = results.into_vec();
        if let Err(why) = tracker.finish().await {
            // An event that is not in the table may be lost, even if the ledger accepted it.
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

    /// What is invalid about an event, regardless of the pair's state.
    #[must_use]
    pub fn violations(&self, what: &What) -> Vec<Violation> {
        what.violations(&self.names)
    }

    /// Refuses invalid events, and groups the others by pair.
    fn group_by_pair<'a>(
        &self,
        submissions: &'a [Submission],
        secret: &KeySecret,
        results: &mut Results,
    ) -> Vec<PairTransaction<'a>> {
        let mut transactions: Vec<PairTransaction<'a>> = Vec::new();
        let mut index_of = HashMap::new();
        for (position, submission) in submissions.iter().enumerate() {
            let event = &submission.event;
            let (mut found, key) = if submission.is_replay {
                (Vec::new(), secret.read(&event.user_id, &event.business_id))
            } else {
                let subject = event.what.subject();
                let key = secret.parse_subject(subject, &event.user_id, &event.business_id);
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
                    results.set(position, Err(Refusal::Invalid(found)));
                    continue;
                }
            };
            let index = *index_of.entry(key).or_insert_with(|| {
                transactions.push(PairTransaction::new(key));
                transactions.len() - 1
            });
            if let Some(transaction) = transactions.get_mut(index) {
                transaction.add(position, submission);
            }
        }
        transactions
    }

    /// Records the events of pairs, each as one compare-and-set that is retried on a conflict.
    async fn record_pairs(
        &self,
        tracker: &AppendTracker<'_>,
        secret: &KeySecret,
        mut transactions: Vec<PairTransaction<'_>>,
        results: &mut Results,
    ) {
        if transactions.is_empty() {
            return;
        }
        transactions = self.read_pairs(secret, transactions, results).await;
        let mut propagations = Vec::new();
        for attempt in 0..MAX_TRIES {
            let mut prepared = self.prepare(tracker, secret, transactions, results).await;
            let changes: Vec<_> =
                prepared.iter_mut().flat_map(PreparedTransaction::take_changes).collect();
            let count = changes.len();
            let appended = tracker.append(changes, Origin::Event).await;
            // An error of the whole append is the result of each of its changes.
            let appended = appended.unwrap_or_else(|error| vec![Appended::Failed(error); count]);
            let mut appended = appended.into_iter();
            transactions = Vec::new();
            for one in prepared {
                let own = appended.by_ref().take(one.change_count()).collect();
                match one.resolve(own, results) {
                    Resolution::Resolved => {}
                    Resolution::Propagate(propagation) => propagations.push(propagation),
                    Resolution::Retry(transaction) => transactions.push(transaction),
                }
            }
            if transactions.is_empty() {
                break;
            }
            pause(attempt).await;
        }
        for transaction in transactions {
            transaction.fail(&Refusal::Contended, results);
        }
        self.propagate_all(tracker, secret, propagations, results).await;
    }

    /// Reads the records of the pairs and of the ids that their events link them to, each partition in one read,
    /// with its clock. Returns the transactions whose partitions could be read; the others fail.
    ///
    /// Partitions on different servers have different clocks, and are not read at the same moment. A denial without a
    /// time therefore goes by the latest clock of all of them, and what allows by the clock of its own pair's
    /// partition: so no allow of this call counts as later than a denial of it, under whichever linked ids they are.
    /// What was allowed in an earlier call may have gone by the clock of yet another partition, so a denial also goes
    /// by the latest one that is known.
    async fn read_pairs<'a>(
        &self,
        secret: &KeySecret,
        mut transactions: Vec<PairTransaction<'a>>,
        results: &mut Results,
    ) -> Vec<PairTransaction<'a>> {
        // The identity was read, and with it the layout.
        let layout = self.ledger.known_layout().unwrap_or_default();
        let mut keys: BTreeMap<u32, Vec<Key>> = BTreeMap::new();
        for transaction in &transactions {
            keys.entry(layout.partition_of(transaction.key)).or_default().push(transaction.key);
        }
        // The keys of linked ids come after those of the transactions, and are found by their places among their
        // partition's keys.
        let mut others = Vec::new();
        for (index, transaction) in transactions.iter().enumerate() {
            for key in transaction.named_keys(secret) {
                let partition = layout.partition_of(key);
                let keys = keys.entry(partition).or_default();
                others.push((index, key, partition, keys.len()));
                keys.push(key);
            }
        }
        let reads = keys.into_iter().map(|(partition, keys)| async move {
            let read = self.ledger.read(keys).await.map_err(Refusal::from);
            (partition, read.map(|read| (read.clock, read.pairs.into_iter())))
        });
        let mut reads: BTreeMap<_, _> = join_all(reads).await.into_iter().collect();
        for (index, key, partition, place) in others {
            if let Some(Ok((_, pairs))) = reads.get(&partition)
                && let Some(Ok(stored)) = pairs.as_slice().get(place)
                && let Some(transaction) = transactions.get_mut(index)
            {
                transaction.others.push((key, stored.clone()));
            }
        }
        let latest = reads.values().flatten().map(|(clock, _)| *clock).max();
        let latest = latest.unwrap_or(Timestamp::MIN);
        let known = self.ledger.latest_clock();
        let mut read = Vec::with_capacity(transactions.len());
        for mut transaction in transactions {
            let partition = layout.partition_of(transaction.key);
            let named = transaction.named_keys(secret).map(|key| layout.partition_of(key));
            let refusal = std::iter::once(partition)
                .chain(named)
                .find_map(|partition| reads.get(&partition)?.as_ref().err().cloned());
            // The records of a partition are in the order of its transactions. So each transaction takes its own,
            // also one that is refused because of a linked id's partition.
            let partition_read = reads.get_mut(&partition).and_then(|read| read.as_mut().ok());
            let own = partition_read.and_then(|(clock, pairs)| Some((*clock, pairs.next()?)));
            match (refusal, own) {
                (None, Some((clock, stored))) => {
                    (transaction.clock, transaction.stored) = (clock, stored);
                    transaction.denial_clock = latest.max(bounded(known, clock));
                    read.push(transaction);
                }
                (refusal, _) => {
                    let missing = Refusal::Ledger(LedgerError::Closed);
                    transaction.fail(&refusal.unwrap_or(missing), results);
                }
            }
        }
        read
    }

    /// Applies the rules to the events of every pair. A pair that cannot be read fails here.
    async fn prepare<'a>(
        &self,
        tracker: &AppendTracker<'_>,
        secret: &KeySecret,
        transactions: Vec<PairTransaction<'a>>,
        results: &mut Results,
    ) -> Vec<PreparedTransaction<'a>> {
        // The keys that this append changes: an append must not change a pair twice.
        let mut claimed = HashSet::new();
        if transactions.iter().any(|one| !one.others.is_empty()) {
            claimed.extend(transactions.iter().map(|one| one.key));
        }
        let linked_ids = self.read_all_linked_ids(tracker, secret, &transactions).await;
        let mut prepared = Vec::with_capacity(transactions.len());
        for (transaction, linked_ids) in transactions.into_iter().zip(linked_ids) {
            let update = match linked_ids {
                Ok(ids) => self.update_pair(secret, &transaction, ids, &mut claimed).await,
                Err(refusal) => Err(refusal),
            };
            match update {
                Ok(update) => prepared.push(transaction.prepared(update)),
                Err(refusal) => transaction.fail(&refusal, results),
            }
        }
        prepared
    }
}

/// What is known of the latest clock of all partitions, no more than an event may be ahead of this partition's.
fn bounded(known: Option<Timestamp>, clock: Timestamp) -> Timestamp {
    known.map_or(clock, |known| known.min(clock.plus(MAX_AHEAD)))
}
