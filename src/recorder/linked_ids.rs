//! The linked ids of one person: a denial under one of them comes to hold under all. Pure.
//!
//! A pair's record names the ids that its own id is linked to, and their records name it: links are
//! symmetric. A denial is first written under the id that it was given under. A [`PropagationRound`]
//! then copies it to all other ids, and only after that is it acknowledged. A link is acknowledged
//! likewise. No denial is missed, in whatever order links and denials arrive:
//!
//! - A propagation ends with a **proof**: all records were read after both ends of the link, or the
//!   denial, were durable; each record holds what any of them denies; and each was then compared
//!   (compare-and-set), so that it was still the record that was read. If one was not, the propagation
//!   starts again.
//! - A denial that was written before the proof of a link read its record is in that record, and is
//!   copied. A denial that comes between the read and the comparison makes the comparison fail. A
//!   denial that comes later finds the link, because both of its ends are durable, and is propagated
//!   along it before it is acknowledged.
//!
//! Only denials are copied. A copy counts as of the denial's own time, so that a later event under the
//! other id wins, but never as of before an event that was clamped there: see
//! [`State::counts_as_of`]. An event that lifts a denial lifts it under its own id alone.

use std::collections::VecDeque;

use super::pair_update::counts_as_of;
use consentd_core::event::{MAX_REFERENCE_BYTES, What};
use consentd_core::id::{Key, KeySecret};
use consentd_core::partition::Layout;
use consentd_core::record::{HistoryEntry, Link, Record, Revision};
use consentd_core::state::{ChoiceKind, State};
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Appended, Change, LedgerError, Read, StoredRecord, UnreadableRecord, Update, Version,
};

/// The most ids of one person at a business. A link that would exceed it is refused.
///
/// Concurrent links do not see each other, so that a few more ids are possible.
pub const MAX_IDS: usize = 16;

/// A link would give a person more than [`MAX_IDS`] ids.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "these ids would make one person of more than 16 ids at this business, the most there may be"
)]
pub struct TooManyIds;

/// A denial, with the time as of which it counts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denial {
    /// The time as of which it counts.
    pub time: Timestamp,
    /// The event, whose [`What::is_denial`] is true.
    pub what: What,
}

/// One id of a person.
struct LinkedId {
    key: Key,
    user_id: String,
    /// Its record, once it was read.
    stored: Option<StoredRecord>,
    /// The ids that its record names, with their keys.
    links: Vec<(Key, Link)>,
}

/// The ids of one person, as far as they are known: the transitive closure of the links that were
/// read so far.
pub(super) struct LinkedIds {
    secret: KeySecret,
    business_id: String,
    /// The first is the id that the event was given under.
    ids: Vec<LinkedId>,
}

impl LinkedIds {
    pub(super) fn new(secret: &KeySecret, business_id: &str, user_id: &str) -> Self {
        let (secret, business_id) = (secret.clone(), business_id.to_owned());
        let mut ids = Self { secret, business_id, ids: Vec::new() };
        ids.add(user_id);
        ids
    }

    /// Adds an id, unless it is known in some notation.
    pub(super) fn add(&mut self, user_id: &str) {
        // An id that was recorded once is well formed.
        let Ok(key) = self.secret.read(user_id, &self.business_id) else { return };
        if !self.ids.iter().any(|id| id.key == key) {
            let user_id = user_id.to_owned();
            self.ids.push(LinkedId { key, user_id, stored: None, links: Vec::new() });
        }
    }

    /// Sets the record of an id, and adds the ids that the record names.
    pub(super) fn set_record(&mut self, key: Key, stored: StoredRecord) {
        let read = |link: &Link| self.secret.read(&link.user_id, &self.business_id).ok();
        let links: Vec<_> = stored
            .record
            .links
            .iter()
            .filter_map(|link| Some((read(link)?, link.clone())))
            .collect();
        for (_, link) in &links {
            self.add(&link.user_id);
        }
        if let Some(id) = self.ids.iter_mut().find(|id| id.key == key) {
            (id.stored, id.links) = (Some(stored), links);
        }
    }

    /// The keys of the ids whose records were not read yet.
    pub(super) fn unread(&self) -> Vec<Key> {
        let unread = self.ids.iter().filter(|id| id.stored.is_none());
        unread.map(|id| id.key).collect()
    }

    /// The versions of the records that were read.
    pub(super) fn versions(&self) -> impl Iterator<Item = (Key, Version)> {
        let read = |id: &LinkedId| Some((id.key, id.stored.as_ref()?.version));
        self.ids.iter().filter_map(read)
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The time of the latest event under any of the ids.
    pub(super) fn latest(&self) -> Option<Timestamp> {
        let stored = self.ids.iter().filter_map(|id| id.stored.as_ref());
        stored.filter_map(|stored| stored.record.state.latest()).max()
    }

    /// The changes after which links are symmetric and every id holds what any of them denies. There
    /// is one change for each id; it writes nothing, and only compares, if the id's record is complete.
    ///
    /// `links` and `denials` are the event's own. They are written even if the first id's record lacks
    /// them, as when the ledger lost it.
    pub(super) fn changes(
        &self,
        links: &[Link],
        denials: &[Denial],
        clock: Timestamp,
    ) -> Vec<Change> {
        let denied = self.all_denials(denials);
        let changes = self.ids.iter().enumerate().map(|(index, id)| {
            let stored = id.stored.clone().unwrap_or_default();
            let mut record = stored.record;
            record.written_at(stored.version.revision);
            let mut history = Vec::new();
            let mut push_history = |time, what| {
                let (user_id, business_id) = (id.user_id.clone(), self.business_id.clone());
                history.push(HistoryEntry { user_id, business_id, time, record_time: clock, what });
            };
            let erased = record.erased.as_ref().map(|erased| erased.time);
            for link in self.missing_links(index, links) {
                if erased.is_none_or(|erased| link.time > erased) && record.link(link.clone()) {
                    let Link { user_id: other_user_id, time, moved } = link;
                    push_history(time, What::Link { other_user_id, moved });
                }
            }
            // An id that was erased and not linked since is here only because another id still names
            // it. Its tombstone denies everything, and must not get entries that name a user.
            let is_tombstone = erased.is_some() && record.links.is_empty();
            for (from, denial) in denied.iter().filter(|_| !is_tombstone) {
                let own = *from == index;
                let what =
                    if own { denial.what.clone() } else { self.copy(index, *from, &denial.what) };
                let time = counts_as_of(&record.state, &what, denial.time);
                if deny(&mut record.state, &what, time) {
                    push_history(time, what);
                }
            }
            record.state.forget_clamped();
            let update = (!history.is_empty()).then(|| Update {
                user_id: id.user_id.clone(),
                business_id: self.business_id.clone(),
                record,
                history,
                record_time: clock,
            });
            Change { key: id.key, base: stored.version, update }
        });
        changes.collect()
    }

    /// The denials under all ids, the latest first, each with the index of its id.
    fn all_denials(&self, denials: &[Denial]) -> Vec<(usize, Denial)> {
        let mut denied: Vec<_> = denials.iter().cloned().map(|denial| (0, denial)).collect();
        for (index, id) in self.ids.iter().enumerate() {
            let state = id.stored.iter().flat_map(|stored| denials_of(&stored.record.state));
            denied.extend(state.map(|denial| (index, denial)));
        }
        // The sort is stable: an event's own denial, which has a reference, comes before the equal
        // denial of a state, which has none.
        denied.sort_by_key(|(_, denial)| std::cmp::Reverse(denial.time));
        denied
    }

    /// The links that the record of the id at `index` lacks.
    fn missing_links(&self, index: usize, links: &[Link]) -> Vec<Link> {
        let Some(id) = self.ids.get(index) else { return Vec::new() };
        let knows = |key: Key| key == id.key || id.links.iter().any(|(k, _)| *k == key);
        let key_of = |link: &Link| self.secret.read(&link.user_id, &self.business_id).ok();
        let own = links.iter().filter(|link| index == 0 && key_of(link).is_some_and(|k| !knows(k)));
        let mut missing: Vec<Link> = own.cloned().collect();
        for (other_index, other) in self.ids.iter().enumerate() {
            let named = other.links.iter().map(|(key, link)| (*key, link));
            let named = named.chain(
                links.iter().filter(|_| other_index == 0).filter_map(|l| Some((key_of(l)?, l))),
            );
            // A repeated link counts as of its latest time: the other id may have been erased in
            // between, and accepts only later links.
            let named = named.filter(|(key, _)| *key == id.key).map(|(_, link)| link);
            let named = named.max_by_key(|link| link.time);
            if let Some(link) = named.filter(|_| !knows(other.key)) {
                let (user_id, time) = (other.user_id.clone(), link.time);
                // A reverse link is never `moved`: the person left the other id for this one.
                missing.push(Link { user_id, time, moved: false });
            }
        }
        missing
    }

    /// The copy of a denial under the id at `from` that is recorded under the id at `to`.
    fn copy(&self, to: usize, from: usize, what: &What) -> What {
        let by = self.linked_at(to, from);
        match what {
            What::OptOut { scope, reference } => {
                What::OptOut { scope: scope.clone(), reference: by_link(by, reference) }
            }
            What::Suppression { suppressed, reference } => {
                What::Suppression { suppressed: *suppressed, reference: by_link(by, reference) }
            }
            // The failure was of a message to the other id; what it reported, a stop, holds here too.
            What::Failure { phone_number_id, .. } => {
                What::Platform { stopped: true, phone_number_id: phone_number_id.clone() }
            }
            what => what.clone(),
        }
    }

    /// The time of the link by which a denial reaches the id at `to` from the id at `from`: the first
    /// link of the shortest path, by a breadth-first search.
    fn linked_at(&self, to: usize, from: usize) -> Option<Timestamp> {
        let start = self.ids.get(to)?;
        let goal = self.ids.get(from)?.key;
        let mut queue: VecDeque<(Key, Timestamp)> =
            start.links.iter().map(|(key, link)| (*key, link.time)).collect();
        let mut seen = vec![start.key];
        while let Some((key, time)) = queue.pop_front() {
            if key == goal {
                return Some(time);
            }
            if !seen.contains(&key) {
                seen.push(key);
                let next = self.ids.iter().find(|id| id.key == key)?;
                queue.extend(next.links.iter().map(|(key, _)| (*key, time)));
            }
        }
        // This id's own link is only being written: the other id's record has it already.
        let named = self.ids.get(from)?.links.iter().find(|(key, _)| *key == start.key);
        named.map(|(_, link)| link.time)
    }
}

/// The last revision, in the pair's own partition, of changes that were all appended, or `None` if one was not.
/// `here` says which of them are in that partition: revisions of others say nothing about the pair.
#[must_use]
pub fn last_revision(appended: &[Appended], here: &[bool]) -> Option<Revision> {
    let here = here.iter().copied().chain(std::iter::repeat(false));
    appended.iter().zip(here).try_fold(0, |last: Revision, (outcome, is_here)| match outcome {
        Appended::Committed(revision) if is_here => Some(last.max(*revision)),
        Appended::Committed(_) => Some(last),
        Appended::Conflict(_) | Appended::Failed(_) => None,
    })
}

/// Which of these changes are in the partition of the pair with the key `own`.
#[must_use]
pub fn places(changes: &[Change], layout: Layout, own: Key) -> Vec<bool> {
    let own = layout.partition_of(own);
    changes.iter().map(|change| layout.partition_of(change.key) == own).collect()
}

/// The denials of a state, as events. They have no references, because a state keeps none.
pub(super) fn denials_of(state: &State) -> Vec<Denial> {
    let choices = state.scopes.iter().filter_map(|(scope, scope_state)| {
        let choice =
            scope_state.choice.filter(|choice| matches!(choice.kind, ChoiceKind::OptOut))?;
        let what = What::OptOut { scope: scope.clone(), reference: String::new() };
        Some(Denial { time: choice.time, what })
    });
    let set = |mark: Option<(Timestamp, bool)>| mark.filter(|(_, set)| *set).map(|(time, _)| time);
    let stops = state.platform.standing().map(|(number, time)| {
        let what = What::Platform { stopped: true, phone_number_id: number.cloned() };
        Denial { time, what }
    });
    let suppressed = set(state.suppression).map(|time| {
        let what = What::Suppression { suppressed: true, reference: String::new() };
        Denial { time, what }
    });
    choices.chain(stops).chain(suppressed).collect()
}

/// Applies a denial, and returns whether it changed the state. It cannot fail: a denial is accepted
/// even if the state has the maximum number of scopes.
fn deny(state: &mut State, what: &What, time: Timestamp) -> bool {
    let mut changed = false;
    for effect in what.effects(time) {
        changed |= state.apply(&effect).unwrap_or(false);
    }
    changed
}

/// The reference of a copied denial: the time of the link by which it holds here. The link is an entry
/// of the same history, which names the other id, so that the copy need not repeat it.
fn by_link(time: Option<Timestamp>, reference: &str) -> String {
    let mut text = "under a linked id".to_owned();
    if let Some(time) = time {
        text = format!("under the id linked at {}", time.rfc3339_millis());
    }
    if !reference.is_empty() {
        text.push_str(": ");
        text.push_str(reference);
    }
    text.truncate(text.floor_char_boundary(MAX_REFERENCE_BYTES));
    text
}

/// The next step of a [`PropagationRound`], which the caller carries out on the ledger.
#[derive(Debug)]
pub enum Step {
    /// Read these pairs, and pass them to [`PropagationRound::read`].
    Read(Vec<Key>),
    /// Append these changes, and pass the results to [`PropagationRound::appended`].
    Append(Vec<Change>),
}

/// The propagation of an event's denials, or of its link, to all ids of a person. It repeats its round
/// of reads and one append until an append proves that nothing is missing.
pub struct PropagationRound {
    user_id: String,
    links: Vec<Link>,
    denials: Vec<Denial>,
    ids: LinkedIds,
    clock: Timestamp,
    /// Whether the last changes add links. Their append is no proof: the records were read before
    /// both ends of the links were durable.
    linking: bool,
}

impl PropagationRound {
    /// The propagation from the id that an event was given under, whose own change is durable. `links`
    /// are the event's links, and `denials` its denials, whether or not they changed the record.
    #[must_use]
    pub fn new(
        secret: &KeySecret,
        business_id: &str,
        user_id: &str,
        links: Vec<Link>,
        denials: Vec<Denial>,
    ) -> Self {
        let ids = LinkedIds::new(secret, business_id, user_id);
        let (user_id, clock) = (user_id.to_owned(), Timestamp::MIN);
        let mut round = Self { user_id, links, denials, ids, clock, linking: false };
        round.begin();
        round
    }

    /// Forgets what was read, for another round.
    fn begin(&mut self) {
        self.ids = LinkedIds::new(&self.ids.secret, &self.ids.business_id, &self.user_id);
        for link in &self.links {
            self.ids.add(&link.user_id);
        }
    }

    /// The next step.
    pub fn step(&mut self) -> Step {
        let unread = self.ids.unread();
        if !unread.is_empty() {
            return Step::Read(unread);
        }
        let changes = self.ids.changes(&self.links, &self.denials, self.clock);
        let entries = changes.iter().filter_map(|change| change.update.as_ref());
        let mut entries = entries.flat_map(|update| &update.history);
        self.linking = entries.any(|entry| matches!(entry.what, What::Link { .. }));
        Step::Append(changes)
    }

    /// Takes the result of a [`Step::Read`].
    ///
    /// # Errors
    ///
    /// [`UnreadableRecord`] if one of the records must not be overwritten. The denial then cannot be
    /// made to hold under that id, and must not be acknowledged.
    pub fn read(&mut self, keys: &[Key], read: Read) -> Result<(), UnreadableRecord> {
        self.clock = self.clock.max(read.clock);
        for (key, stored) in keys.iter().zip(read.pairs) {
            self.ids.set_record(*key, stored?);
        }
        Ok(())
    }

    /// Takes the result of a [`Step::Append`]. Returns the last revision of all ids once it is proven
    /// that a denial under one id holds under all, or `None` if another round is needed.
    ///
    /// # Errors
    ///
    /// The first [`LedgerError`] among the results.
    pub fn appended(&mut self, appended: &[Appended]) -> Result<Option<Revision>, LedgerError> {
        let mut proven = Some(0);
        for outcome in appended {
            match outcome {
                Appended::Committed(revision) => {
                    proven = proven.map(|last: u64| last.max(*revision));
                }
                Appended::Conflict(_) => proven = None,
                Appended::Failed(error) => return Err(error.clone()),
            }
        }
        if self.linking {
            proven = None;
        }
        if proven.is_none() {
            self.begin();
        }
        Ok(proven)
    }
}

/// Whether an event must not be lost: a denial, or a link, which carries denials.
pub(super) fn must_stay(what: &What) -> bool {
    what.is_denial() || matches!(what, What::Link { .. })
}

/// The link of a record to another id, in whatever notation the record has it.
pub(super) fn known_link(
    record: &Record,
    secret: &KeySecret,
    business_id: &str,
    other: Key,
) -> Option<Link> {
    let is_other = |link: &&Link| secret.read(&link.user_id, business_id).is_ok_and(|k| k == other);
    record.links.iter().find(is_other).cloned()
}
