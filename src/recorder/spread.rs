//! What must hold under all ids of a person, taken to the ledger.

use std::collections::HashSet;

use futures_util::StreamExt as _;
use futures_util::stream;

use super::call::Call;
use super::linked::{Group, MAX_IDS, Step, Walk};
use super::plan::{Linked, Plan, Spread};
use super::{MAX_TRIES, Pair, Recorded, Recorder, Refusal, Submission, pause, set};
use consentd_core::event::What;
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::{Link, Revision};
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, MAX_APPEND, StoredRecord};

/// How many pairs' denials are taken to other ids at once.
const MAX_AT_ONCE: usize = 64;

/// A pair whose change is durable, and some of whose events wait until what they say holds under
/// all ids.
pub(super) struct Spreading {
    pub(super) events: Vec<usize>,
    pub(super) outcomes: Vec<Recorded>,
    pub(super) user_id: String,
    pub(super) business_id: String,
    pub(super) spread: Spread,
}

impl Spreading {
    /// Answers the pair's events: those that waited for other ids, by what came of that.
    pub(super) fn answer(
        self,
        walked: &Result<Revision, Refusal>,
        results: &mut [Option<Recorded>],
    ) {
        let waits = self.spread.waits.into_iter().chain(std::iter::repeat(false));
        for ((index, outcome), waits) in self.events.into_iter().zip(self.outcomes).zip(waits) {
            let outcome = match (walked, outcome) {
                (Ok(revision), Ok(mut outcome)) if waits => {
                    // Whoever waits for it finds what was said under every id.
                    outcome.revision = outcome.revision.max(*revision);
                    Ok(outcome)
                }
                (Err(refusal), Ok(_)) if waits => Err(refusal.clone()),
                (_, outcome) => outcome,
            };
            set(results, index, outcome);
        }
    }
}

/// The last revision of changes that were all appended; none where one was not.
pub(super) fn last_of(appended: &[Appended]) -> Option<Revision> {
    appended.iter().try_fold(0, |last: Revision, outcome| match outcome {
        Appended::Committed(revision) => Some(last.max(*revision)),
        _ => None,
    })
}

/// What is written of a pair's other ids together with its own change.
#[derive(Default)]
pub(super) struct Beside {
    pub(super) changes: Vec<Change>,
    /// Whether all of it is as it should be already, so that comparing it proves that.
    pub(super) proves: bool,
}

impl Recorder {
    /// The ids of a pair's user, read as far as they are known, where its events need them.
    pub(super) async fn group_of(
        &self,
        secret: &KeySecret,
        pair: &Pair,
        stored: &StoredRecord,
        events: &[&Submission],
    ) -> Result<Option<Group>, Refusal> {
        let record = &stored.record;
        let links = events.iter().any(|one| matches!(one.event.what, What::Link { .. }));
        // It might be stamped by the clock: then no earlier than what is known under the other ids.
        let untimed = |one: &&Submission| {
            let text = matches!(&one.event.what, What::Inbound { text, .. } if !text.is_empty());
            one.event.time.is_none() && (text || one.event.what.is_denial())
        };
        let untimed = !record.links.is_empty() && events.iter().any(untimed);
        let Some(first) = events.first().filter(|_| links || untimed) else { return Ok(None) };
        let mut group = Group::new(secret, &first.event.business_id, &first.event.user_id);
        group.take(pair.key, stored.clone());
        for other in events.iter().filter_map(|one| other_id(&one.event.what)) {
            group.meet(other);
        }
        for (key, other) in &pair.others {
            group.take(*key, other.clone());
        }
        // Every turn reads ids that were not known before, and there are only so many.
        loop {
            let unread = group.unread();
            if unread.is_empty() {
                return Ok(Some(group));
            }
            let read = self.ledger.read(unread.clone()).await?;
            for (key, other) in unread.iter().zip(read.pairs) {
                group.take(*key, other?);
            }
        }
    }

    /// Takes what pairs' events say to all ids, and then answers them.
    pub(super) async fn finish(
        &self,
        call: &Call<'_>,
        secret: &KeySecret,
        waiting: Vec<Spreading>,
        results: &mut [Option<Recorded>],
    ) {
        let walks = waiting.into_iter().map(|waiting| async move {
            let walked = self.walk(call, secret, &waiting).await;
            (waiting, walked)
        });
        let mut walks = stream::iter(walks).buffer_unordered(MAX_AT_ONCE);
        while let Some((waiting, walked)) = walks.next().await {
            waiting.answer(&walked, results);
        }
    }

    /// Walks from the pair to all ids of its user; gives the last revision of any once what is
    /// denied under one is denied under all.
    async fn walk(
        &self,
        call: &Call<'_>,
        secret: &KeySecret,
        waiting: &Spreading,
    ) -> Result<Revision, Refusal> {
        let Spreading { user_id, business_id, spread, .. } = waiting;
        let Spread { links, denials, .. } = spread.clone();
        let mut walk = Walk::new(secret, business_id, user_id, links, denials);
        for attempt in 0..MAX_TRIES {
            let changes = loop {
                match walk.step() {
                    Step::Read(keys) => walk.read(&keys, self.ledger.read(keys.clone()).await?)?,
                    Step::Append(changes) => break changes,
                }
            };
            let appended = call.append(changes).await?;
            if let Some(revision) = walk.appended(&appended)? {
                return Ok(revision);
            }
            if appended.iter().any(|outcome| matches!(outcome, Appended::Conflict(_))) {
                pause(attempt).await;
            }
        }
        Err(Refusal::Contended)
    }
}

/// The id that an event links its own to.
pub(super) fn other_id(what: &What) -> Option<&str> {
    match what {
        What::Link { other_user_id, .. } => Some(other_user_id),
        _ => None,
    }
}

/// What to know of a person's other ids when a pair's events are planned.
pub(super) fn linked(group: Option<&Group>) -> Linked {
    group.map_or_else(Linked::default, |group| Linked {
        latest: group.latest(),
        is_full: group.len() > MAX_IDS,
    })
}

/// What can be written of the other ids together with a planned pair: where a link is told again,
/// as every message may, nothing is to be written, and one round is enough to know that.
pub(super) fn beside(
    group: Option<Group>,
    pair: &Pair,
    plan: &Plan<'_>,
    base: &StoredRecord,
    clock: Timestamp,
    taken: &mut HashSet<Key>,
) -> Beside {
    let (record, spread) = plan.spread();
    let is_useful = !spread.links.is_empty() && !pair.others.is_empty();
    let Some(mut group) = group.filter(|_| is_useful) else {
        return Beside::default();
    };
    group.take(pair.key, StoredRecord { version: base.version, record: record.clone() });
    let mut changes = group.changes(&spread.links, &spread.denials, clock);
    let own = changes.remove(0);
    let is_free = |change: &Change| !taken.contains(&change.key);
    if !changes.iter().all(is_free) || taken.len().saturating_add(changes.len()) > MAX_APPEND {
        return Beside::default();
    }
    taken.extend(changes.iter().map(|change| change.key));
    let nothing = |change: &Change| change.update.is_none();
    let known = |link: &Link| base.record.links.iter().any(|known| known.user_id == link.user_id);
    let proves = nothing(&own) && changes.iter().all(nothing) && spread.links.iter().all(known);
    Beside { changes, proves }
}
