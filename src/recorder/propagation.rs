//! Takes denials and links to all linked ids of a person, on the ledger. The logic is in
//! [`linked_ids`](super::linked_ids), which is pure.

use std::collections::HashSet;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::append_tracker::AppendTracker;
use super::linked_ids::{
    LinkedIds, MAX_IDS, PropagationRound, Step, known_link, last_revision, places,
};
use super::linked_read::LinkedRead;
use super::pair_update::{LinkedState, PairUpdate, Propagation};
use super::sent_changes::Origin;
use super::transaction::{PairTransaction, Results};
use super::{MAX_TRIES, Recorded, Recorder, Refusal, pause};
use consentd_core::event::What;
use consentd_core::id::{Key, KeySecret};
use consentd_core::partition::Layout;
use consentd_core::record::{Link, Record, Revision};
use consentd_core::submission::Submission;
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, LedgerError, MAX_APPEND, StoredRecord};

/// The most pairs whose linked ids are read, or whose denials are propagated, concurrently.
const MAX_CONCURRENT: usize = 64;

/// A pair whose own change is durable, and which has events that must hold under all linked ids
/// before they are acknowledged.
pub(super) struct PendingPropagation {
    pub(super) user_id: String,
    pub(super) business_id: String,
    /// The positions of the pair's events in the call.
    pub(super) positions: Vec<usize>,
    /// The outcomes of the pair's events, in the same order.
    pub(super) outcomes: Vec<Recorded>,
    pub(super) propagation: Propagation,
}

impl PendingPropagation {
    /// Sets the results of the pair's events. An event that waited for the propagation has the
    /// propagation's result.
    pub(super) fn resolve(self, propagated: &Result<Revision, Refusal>, results: &mut Results) {
        let waits = self.propagation.waits.into_iter().chain(std::iter::repeat(false));
        for ((position, outcome), waits) in self.positions.into_iter().zip(self.outcomes).zip(waits)
        {
            let outcome = match (propagated, outcome) {
                (Ok(revision), Ok(mut outcome)) if waits => {
                    // A check with this revision as its `min_revision` sees the denial under any id.
                    outcome.revision = outcome.revision.max(*revision);
                    Ok(outcome)
                }
                (Err(refusal), Ok(_)) if waits => Err(refusal.clone()),
                (_, outcome) => outcome,
            };
            results.set(position, outcome);
        }
    }
}

/// The changes of linked ids that are appended together with a pair's own change.
#[derive(Default)]
pub(super) struct LinkedChanges {
    pub(super) changes: Vec<Change>,
    /// Which of them are in the pair's own partition.
    pub(super) here: Vec<bool>,
    /// Whether these changes only compare, because every id holds what it should already. Appending
    /// them then proves that.
    pub(super) proves: bool,
}

impl LinkedChanges {
    /// Notes which changes are in the partition of the pair with this key.
    pub(super) fn place(&mut self, layout: Layout, own: Key) {
        self.here = places(&self.changes, layout, own);
    }
}

/// What a pair's events need linked ids for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum LinkedIdsNeed {
    /// For what they say.
    Records,
    /// For their times, too: an event takes its own from them, so that the records must be proven.
    Times,
}

/// What the pair's events need linked ids for, if they need them.
///
/// # Errors
///
/// The pair's own record cannot be read.
fn linked_ids_need(
    transaction: &PairTransaction<'_>,
    secret: &KeySecret,
) -> Result<Option<LinkedIdsNeed>, Refusal> {
    let stored = transaction.stored.as_ref().map_err(|unreadable| *unreadable)?;
    let has_links = !stored.record.links.is_empty();
    let is_timed_by_ids = |one: &Submission| {
        has_links && is_untimed_denial(one)
            || is_new_link(one, &stored.record, secret) && one.event.time.is_none()
    };
    if transaction.submissions().any(is_timed_by_ids) {
        return Ok(Some(LinkedIdsNeed::Times));
    }
    let links = transaction.submissions().any(|one| is_link(&one.event.what));
    Ok(links.then_some(LinkedIdsNeed::Records))
}

impl Recorder {
    /// Reads the linked ids of a pair's user, transitively. If an event takes its time from them, their records are
    /// proven.
    async fn read_linked_ids(
        &self,
        tracker: &AppendTracker<'_>,
        secret: &KeySecret,
        transaction: &PairTransaction<'_>,
        need: LinkedIdsNeed,
    ) -> Result<Option<LinkedIds>, Refusal> {
        let stored = transaction.stored.as_ref().map_err(|unreadable| *unreadable)?;
        let Some(first) = transaction.submissions().next() else { return Ok(None) };
        let pair = (&*first.event.user_id, &*first.event.business_id);
        let own = (transaction.key, stored.clone());
        let must_prove = need == LinkedIdsNeed::Times && self.ledger.can_fail_over();
        let mut read = LinkedRead::new(secret, pair, own, must_prove);
        for other in transaction.submissions().filter_map(|one| linked_id(&one.event.what)) {
            read.add(other);
        }
        for (key, other) in &transaction.others {
            read.set_record(*key, other.clone());
        }
        for attempt in 0..MAX_TRIES {
            // The loop ends: each iteration reads ids that were unknown before, and their number is
            // bounded.
            let changes = loop {
                match read.step() {
                    Step::Read(keys) => read.read(&keys, self.ledger.read(keys.clone()).await?)?,
                    Step::Append(changes) => break changes,
                }
            };
            if changes.is_empty() {
                return Ok(Some(read.into_ids()));
            }
            let keys: Vec<Key> = changes.iter().map(|change| change.key).collect();
            let appended = tracker.append(changes, Origin::Propagation).await?;
            if read.appended(&keys, appended)? {
                return Ok(Some(read.into_ids()));
            }
            pause(attempt).await;
        }
        Err(Refusal::Contended)
    }

    /// Reads the linked ids of these pairs' users, if their events need them: see
    /// [`read_linked_ids`](Self::read_linked_ids).
    pub(super) async fn read_all_linked_ids(
        &self,
        tracker: &AppendTracker<'_>,
        secret: &KeySecret,
        transactions: &[PairTransaction<'_>],
    ) -> Vec<Result<Option<LinkedIds>, Refusal>> {
        let mut all = Vec::with_capacity(transactions.len());
        // Only these have a future: it is large, and few events need one.
        let mut reads = Vec::new();
        for (place, transaction) in transactions.iter().enumerate() {
            all.push(match linked_ids_need(transaction, secret) {
                Ok(None) => Ok(None),
                Err(refusal) => Err(refusal),
                Ok(Some(need)) => {
                    reads.push(async move {
                        let read = self.read_linked_ids(tracker, secret, transaction, need);
                        (place, read.await)
                    });
                    // Replaced below by what is read. Without linked ids a denial would not reach them, so that a
                    // result that were missing must be an error.
                    Err(LedgerError::Closed.into())
                }
            });
        }
        let mut reads = stream::iter(reads).buffer_unordered(MAX_CONCURRENT);
        while let Some((place, read)) = reads.next().await {
            if let Some(slot) = all.get_mut(place) {
                *slot = read;
            }
        }
        all
    }

    /// Propagates the denials and links of pairs, and sets the results of their events.
    pub(super) async fn propagate_all(
        &self,
        tracker: &AppendTracker<'_>,
        secret: &KeySecret,
        pending: Vec<PendingPropagation>,
        results: &mut Results,
    ) {
        let propagations = pending.into_iter().map(|pending| async move {
            let propagated = self.propagate(tracker, secret, &pending).await;
            (pending, propagated)
        });
        let mut propagations = stream::iter(propagations).buffer_unordered(MAX_CONCURRENT);
        while let Some((pending, propagated)) = propagations.next().await {
            pending.resolve(&propagated, results);
        }
    }

    /// Propagates the denials and links of one pair, until it is proven that every linked id denies
    /// what any of them denies. Returns the last revision of all ids in the pair's own partition.
    async fn propagate(
        &self,
        tracker: &AppendTracker<'_>,
        secret: &KeySecret,
        pending: &PendingPropagation,
    ) -> Result<Revision, Refusal> {
        let PendingPropagation { user_id, business_id, propagation, .. } = pending;
        let Propagation { links, denials, .. } = propagation.clone();
        let mut round = PropagationRound::new(secret, business_id, user_id, links, denials);
        for attempt in 0..MAX_TRIES {
            let changes = loop {
                match round.step() {
                    Step::Read(keys) => round.read(&keys, self.ledger.read(keys.clone()).await?)?,
                    Step::Append(changes) => break changes,
                }
            };
            // The first change is of the id that the event was given under.
            let own = changes.first().map(|change| change.key);
            let layout = self.ledger.known_layout().unwrap_or_default();
            let here = own.map(|own| places(&changes, layout, own)).unwrap_or_default();
            let appended = tracker.append(changes, Origin::Propagation).await?;
            if round.appended(&appended)?.is_some() {
                return Ok(last_revision(&appended, &here).unwrap_or_default());
            }
            if appended.iter().any(|outcome| matches!(outcome, Appended::Conflict(_))) {
                pause(attempt).await;
            }
        }
        Err(Refusal::Contended)
    }
}

fn is_link(what: &What) -> bool {
    matches!(what, What::Link { .. })
}

/// Whether an event links its id to one that the record does not name yet.
fn is_new_link(submission: &Submission, record: &Record, secret: &KeySecret) -> bool {
    linked_id(&submission.event.what).is_some_and(|other| {
        let business_id = &submission.event.business_id;
        let other = secret.read(other, business_id);
        other.is_ok_and(|other| known_link(record, secret, business_id, other).is_none())
    })
}

/// Whether an event without a time denies something, or may: it is stamped by the ledger's clock, but
/// no earlier than the latest event under any linked id.
fn is_untimed_denial(submission: &Submission) -> bool {
    let event = &submission.event;
    let is_text = matches!(&event.what, What::Inbound { text, .. } if !text.is_empty());
    event.time.is_none() && (is_text || event.what.is_denial())
}

/// The id that an event links its own id to.
pub(super) fn linked_id(what: &What) -> Option<&str> {
    match what {
        What::Link { other_user_id, .. } => Some(other_user_id),
        _ => None,
    }
}

/// What a pair's update needs to know of the linked ids.
pub(super) fn linked_state(ids: Option<&LinkedIds>) -> LinkedState {
    ids.map_or_else(LinkedState::default, |ids| LinkedState {
        latest: ids.latest(),
        is_full: ids.len() > MAX_IDS,
    })
}

/// The changes of linked ids that can be appended together with a pair's update. An optimisation:
/// most links are repeats, as every message brings one, and one append then both writes nothing and
/// proves that nothing is missing.
pub(super) fn linked_changes(
    ids: Option<LinkedIds>,
    transaction: &PairTransaction<'_>,
    update: &PairUpdate<'_>,
    base: &StoredRecord,
    clock: Timestamp,
    claimed: &mut HashSet<Key>,
) -> LinkedChanges {
    let propagation = update.propagation();
    let is_useful = !propagation.links.is_empty() && !transaction.others.is_empty();
    let Some(mut ids) = ids.filter(|_| is_useful) else {
        return LinkedChanges::default();
    };
    let record = update.record().clone();
    ids.set_record(transaction.key, StoredRecord { version: base.version, record });
    let mut changes = ids.changes(&propagation.links, &propagation.denials, clock);
    let own = changes.remove(0);
    let is_free = |change: &Change| !claimed.contains(&change.key);
    if !changes.iter().all(is_free) || claimed.len().saturating_add(changes.len()) > MAX_APPEND {
        return LinkedChanges::default();
    }
    claimed.extend(changes.iter().map(|change| change.key));
    let writes_nothing = |change: &Change| change.update.is_none();
    let is_known =
        |link: &Link| base.record.links.iter().any(|known| known.user_id == link.user_id);
    let proves = writes_nothing(&own)
        && changes.iter().all(writes_nothing)
        && propagation.links.iter().all(is_known);
    LinkedChanges { changes, here: Vec::new(), proves }
}
