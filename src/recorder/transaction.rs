//! The transaction of one pair: its events from reading the pair to their results.
//!
//! A [`PairTransaction`] owns the pair's events. [`Recorder::update_pair`] applies them to the record
//! that was read, which makes a [`PreparedTransaction`] of it: the changes to append and the outcomes
//! that the events will have. The result of the append resolves it: its events have results, or wait
//! for the propagation to linked ids, or the transaction is retried.

use std::collections::HashSet;

use super::keyword_match::keyword_match;
use super::linked_ids::LinkedIds;
use super::pair_update::{PairUpdate, Propagation};
use super::propagation::{self, LinkedChanges, PendingPropagation};
use super::{Recorded, Recorder, Refusal, linked_ids};
use consentd_core::event::What;
use consentd_core::id::{Key, KeySecret};
use consentd_core::keyword::Meaning;
use consentd_core::record::{Outcome, Revision};
use consentd_core::submission::Submission;
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, History, LedgerError, StoredRecord, UnreadableRecord};

/// The results of a call's events, by their positions in the call.
pub(super) struct Results(Vec<Option<Recorded>>);

impl Results {
    /// No result yet for any of `count` events.
    pub(super) fn new(count: usize) -> Self {
        Self(vec![None; count])
    }

    pub(super) fn set(&mut self, position: usize, result: Recorded) {
        if let Some(slot) = self.0.get_mut(position) {
            *slot = Some(result);
        }
    }

    pub(super) fn fail_all(&mut self, refusal: &Refusal) {
        self.0.fill(Some(Err(refusal.clone())));
    }

    /// The results. Every event has one; an event that had none must not count as recorded.
    pub(super) fn into_vec(self) -> Vec<Recorded> {
        let missing = || Err(Refusal::Ledger(LedgerError::Closed));
        self.0.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }
}

/// An event of a call.
#[derive(Clone, Copy)]
pub(super) struct CallEvent<'a> {
    /// Its position in the call.
    pub(super) position: usize,
    pub(super) submission: &'a Submission,
}

/// The events of one pair, to be recorded as one compare-and-set.
pub(super) struct PairTransaction<'a> {
    pub(super) key: Key,
    /// The pair's events, in the order of the call.
    events: Vec<CallEvent<'a>>,
    /// The pair's record as last read, from which the next attempt starts.
    pub(super) stored: Result<StoredRecord, UnreadableRecord>,
    /// The clock of the pair's partition, as first read. No retry goes by a later one, so that no allow becomes
    /// later than a denial of the same call.
    pub(super) clock: Timestamp,
    /// The clock that denials without a time go by: the latest of those that were read for the call.
    pub(super) denial_clock: Timestamp,
    /// The records of the ids that the events link this one to, as first read. Unreadable records are
    /// left out.
    pub(super) others: Vec<(Key, StoredRecord)>,
}

impl<'a> PairTransaction<'a> {
    pub(super) fn new(key: Key) -> Self {
        let (events, stored, others) = (Vec::new(), Ok(StoredRecord::default()), Vec::new());
        let (clock, denial_clock) = (Timestamp::MIN, Timestamp::MIN);
        Self { key, events, stored, clock, denial_clock, others }
    }

    pub(super) fn add(&mut self, position: usize, submission: &'a Submission) {
        self.events.push(CallEvent { position, submission });
    }

    pub(super) fn submissions(&self) -> impl DoubleEndedIterator<Item = &'a Submission> {
        self.events.iter().map(|event| event.submission)
    }

    /// The pair's business, as the first event writes it.
    fn business_id(&self) -> &'a str {
        self.submissions().next().map_or("", |first| first.event.business_id.as_str())
    }

    /// The keys of the ids that the events link this one to.
    pub(super) fn named_keys(&self, secret: &KeySecret) -> impl Iterator<Item = Key> {
        self.submissions().filter_map(move |submission| {
            let event = &submission.event;
            let other = propagation::linked_id(&event.what)?;
            secret.read(other, &event.business_id).ok()
        })
    }

    /// Gives all events the same refusal.
    pub(super) fn fail(self, refusal: &Refusal, results: &mut Results) {
        for event in self.events {
            results.set(event.position, Err(refusal.clone()));
        }
    }

    pub(super) fn prepared(self, update: PreparedUpdate) -> PreparedTransaction<'a> {
        let PreparedUpdate { outcomes, change, linked, propagation } = update;
        let must_propagate = propagation.waits.contains(&true);
        let LinkedChanges { changes, here, proves } = linked;
        let changes: Vec<_> = std::iter::once(change).chain(changes).collect();
        PreparedTransaction {
            transaction: self,
            outcomes,
            change_count: changes.len(),
            changes,
            here,
            proves,
            propagation: Some(propagation).filter(|_| must_propagate),
        }
    }
}

/// What the rules made of a pair's events.
pub(super) struct PreparedUpdate {
    /// The events' outcomes, in their order. A revision of 0 stands for the one of the append.
    outcomes: Vec<Recorded>,
    change: Change,
    linked: LinkedChanges,
    propagation: Propagation,
}

/// A transaction with the changes to append.
pub(super) struct PreparedTransaction<'a> {
    transaction: PairTransaction<'a>,
    /// The events' outcomes once the changes are appended.
    outcomes: Vec<Recorded>,
    /// The pair's own change, then the changes of linked ids.
    changes: Vec<Change>,
    change_count: usize,
    /// Which changes of linked ids are in the pair's own partition, in their order.
    here: Vec<bool>,
    /// Whether appending these changes proves that all linked ids hold what any of them denies.
    proves: bool,
    /// What must hold under linked ids before some of the events are acknowledged.
    propagation: Option<Propagation>,
}

/// What becomes of a transaction once its append has a result.
#[allow(clippy::large_enum_variant, reason = "each is matched at once, where it was returned")]
pub(super) enum Resolution<'a> {
    /// All events have results.
    Resolved,
    /// The pair's change is durable. Its events get their results after the propagation.
    Propagate(PendingPropagation),
    /// The remaining events must be tried again: another recorder was faster, or only a part of the
    /// events can be recorded.
    Retry(PairTransaction<'a>),
}

impl<'a> PreparedTransaction<'a> {
    /// Moves the changes out, to be appended.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// The number of changes, also after they were taken.
    pub(super) fn change_count(&self) -> usize {
        self.change_count
    }

    /// Resolves the transaction by the results of appending its changes, which are in their order.
    pub(super) fn resolve(
        self,
        mut appended: Vec<Appended>,
        results: &mut Results,
    ) -> Resolution<'a> {
        let linked = appended.split_off(appended.len().min(1));
        match appended.pop().unwrap_or(Appended::Failed(LedgerError::Closed)) {
            Appended::Committed(revision) => self.appended_at(revision, &linked, results),
            Appended::Conflict(stored) => {
                let mut transaction = self.transaction;
                transaction.stored = stored;
                transaction.others.clear();
                Resolution::Retry(transaction)
            }
            Appended::Failed(error) => self.failed(error, results),
        }
    }

    fn appended_at(
        mut self,
        revision: Revision,
        linked: &[Appended],
        results: &mut Results,
    ) -> Resolution<'a> {
        for outcome in self.outcomes.iter_mut().flatten().filter(|o| o.revision == 0) {
            outcome.revision = revision;
        }
        let events = self.transaction.events;
        let Some(propagation) = self.propagation else {
            for (event, outcome) in events.into_iter().zip(self.outcomes) {
                results.set(event.position, outcome);
            }
            return Resolution::Resolved;
        };
        let Some(first) = events.first() else { return Resolution::Resolved };
        let pending = PendingPropagation {
            user_id: first.submission.event.user_id.clone(),
            business_id: first.submission.event.business_id.clone(),
            positions: events.iter().map(|event| event.position).collect(),
            outcomes: self.outcomes,
            propagation,
        };
        match linked_ids::last_revision(linked, &self.here).filter(|_| self.proves) {
            Some(revision) => {
                pending.resolve(&Ok(revision), results);
                Resolution::Resolved
            }
            None => Resolution::Propagate(pending),
        }
    }

    fn failed(self, error: LedgerError, results: &mut Results) -> Resolution<'a> {
        let rest = if error.lacks_statements() { self.without_statements() } else { None };
        let refusal = Refusal::from(error);
        let Some(rest) = rest else {
            self.transaction.fail(&refusal, results);
            return Resolution::Resolved;
        };
        let (rest, refused): (Vec<_>, Vec<_>) =
            self.transaction.events.into_iter().partition(|event| rest.contains(&event.position));
        for event in refused {
            results.set(event.position, Err(refusal.clone()));
        }
        Resolution::Retry(PairTransaction { events: rest, ..self.transaction })
    }

    /// The positions of the events that can be recorded although the ledger has lost the key in which
    /// statements are kept. `None` if that is all or none of them.
    fn without_statements(&self) -> Option<Vec<usize>> {
        let events = self.transaction.events.iter().zip(&self.outcomes);
        let rest = events.filter(|(event, outcome)| {
            let opts_in_by_keyword = |outcome: &Outcome| !outcome.opted_in_category.is_empty();
            !matches!(event.submission.event.what, What::OptIn { .. })
                && !outcome.as_ref().is_ok_and(opts_in_by_keyword)
        });
        let rest: Vec<usize> = rest.map(|(event, _)| event.position).collect();
        (!rest.is_empty() && rest.len() < self.transaction.events.len()).then_some(rest)
    }
}

impl Recorder {
    /// Applies the rules to the events of a pair, whose linked ids were read if they are needed. `claimed` are the
    /// keys that the append changes already; the changes of linked ids are added to it.
    pub(super) async fn update_pair(
        &self,
        secret: &KeySecret,
        transaction: &PairTransaction<'_>,
        linked_ids: Option<LinkedIds>,
        claimed: &mut HashSet<Key>,
    ) -> Result<PreparedUpdate, Refusal> {
        let clock = transaction.clock;
        let stored = transaction.stored.as_ref().map_err(|unreadable| *unreadable)?;
        let history = self.history_for(transaction, stored).await?;
        let keywords = self.keywords.of(transaction.business_id());
        let mut update = PairUpdate::new(stored, clock, keywords, history.as_ref());
        update.denial_clock = transaction.denial_clock.max(clock);
        let mut update = update.with_linked(propagation::linked_state(linked_ids.as_ref()));
        let outcomes: Vec<Recorded> =
            transaction.submissions().map(|one| update.add(one, secret)).collect();
        let mut linked =
            propagation::linked_changes(linked_ids, transaction, &update, stored, clock, claimed);
        let layout = self.ledger.known_layout().unwrap_or_default();
        linked.place(layout, transaction.key);
        let propagation = update.propagation().clone();
        let last = transaction.submissions().next_back();
        let change = update.into_change(transaction.key, last);
        Ok(PreparedUpdate { outcomes, change, linked, propagation })
    }

    /// The pair's history, if its events need it. A confirmation needs the statement that was agreed
    /// to when the opt-in was given. A replayed denial needs to know whether the ledger still has it.
    async fn history_for(
        &self,
        transaction: &PairTransaction<'_>,
        stored: &StoredRecord,
    ) -> Result<Option<History>, Refusal> {
        if self.confirms(transaction, stored) {
            let history = self.ledger.history(transaction.key).await?;
            if history.unreadable > 0 {
                return Err(LedgerError::Damaged("a history entry").into());
            }
            return Ok(Some(history));
        }
        if may_be_moved(transaction, stored) {
            // If the history is unreadable, the denial counts as lost, which can only deny too much.
            return Ok(self.ledger.history(transaction.key).await.ok());
        }
        Ok(None)
    }

    /// Whether an event is a keyword that may confirm a pending opt-in of the stored record. Most pairs
    /// have none, and a `yes` that confirms nothing needs no history, which may be long. The evidence of
    /// an opt-in in the same call is not in the ledger yet.
    fn confirms(&self, transaction: &PairTransaction<'_>, stored: &StoredRecord) -> bool {
        let state = &stored.record.state;
        let is_pending = state.scopes.values().any(|scope_state| scope_state.pending.is_some());
        is_pending
            && transaction.submissions().any(|submission| match &submission.event.what {
                What::Inbound { text, .. } => {
                    let keywords = self.keywords.of(&submission.event.business_id);
                    let keyword = keyword_match(keywords, submission, text, state);
                    keyword.is_some_and(|keyword| keyword.meaning == Meaning::Confirm)
                }
                _ => false,
            })
    }
}

/// Whether a replayed denial may count as of a later time than its own, because of clamped events.
fn may_be_moved(transaction: &PairTransaction<'_>, stored: &StoredRecord) -> bool {
    let is_replayed_denial = |one: &Submission| one.is_replay && one.event.what.is_denial();
    !stored.record.state.clamped.is_empty() && transaction.submissions().any(is_replayed_denial)
}
