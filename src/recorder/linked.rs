//! Ids of one person: how what is denied under one of them comes to hold under all. Pure.
//!
//! A pair's record names the ids that its own was linked to, and they name it. Whatever denies is
//! written under the id that it was given first; a [`Walk`] then takes it to all the others, and
//! only after that is it acknowledged. A link is acknowledged likewise. That nothing is missed, in
//! whatever order links and denials meet, follows from this:
//!
//! - A walk ends with a **proof**: all records were read after both ends of the link, or the
//!   denial, were durable; each holds what any of them denies; and each was then compared and set,
//!   so that it still was what had been read. Where one was not, the walk begins anew.
//! - A denial that was written before the proof of a link read its record is in what was read, and
//!   is copied. One that comes between makes the comparison fail. One that comes after finds the
//!   link, for both its ends are there, and walks along it before it is acknowledged itself.
//!
//! Only what denies is copied: as of its own time, so that what was said later under the other id
//! stands; but never as of before what was clamped there, see [`State::counts_as_of`]. What lifts a denial lifts it under its own id alone.

use std::collections::VecDeque;
use std::time::UNIX_EPOCH;

use super::plan::counts_as_of;
use consentd_core::event::{MAX_REFERENCE_BYTES, What};
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::{HistoryEntry, Link, Record, Revision};
use consentd_core::state::{Said, State};
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Appended, Change, LedgerError, Read, StoredRecord, UnreadableRecord, Update,
};

/// How many ids one person may have at a business; a link that would make them more is refused.
///
/// Links that are made at the same moment do not see each other, so that a few more are possible.
pub const MAX_IDS: usize = 16;

/// One more id than [`MAX_IDS`] was to be linked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "these ids would make one person of more than 16 ids at this business, the most there may be"
)]
pub struct TooManyIds;

/// Something that denies, and when it happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denial {
    /// When.
    pub time: Timestamp,
    /// What; its [`What::is_denial`] is true.
    pub what: What,
}

/// One id of a person.
struct Member {
    key: Key,
    user_id: String,
    /// What the ledger holds of it, once that was read.
    stored: Option<StoredRecord>,
    /// The ids that its record names, by key.
    links: Vec<(Key, Link)>,
}

/// The ids of one person, as far as they are known.
pub(super) struct Group {
    secret: KeySecret,
    business_id: String,
    /// The one that the event was given under is the first.
    members: Vec<Member>,
}

impl Group {
    pub(super) fn new(secret: &KeySecret, business_id: &str, user_id: &str) -> Self {
        let (secret, business_id) = (secret.clone(), business_id.to_owned());
        let mut group = Self { secret, business_id, members: Vec::new() };
        group.meet(user_id);
        group
    }

    /// Adds an id, unless it is known in some notation.
    pub(super) fn meet(&mut self, user_id: &str) {
        // What was recorded once is well formed.
        let Ok(key) = self.secret.read(user_id, &self.business_id) else { return };
        if !self.members.iter().any(|member| member.key == key) {
            let user_id = user_id.to_owned();
            self.members.push(Member { key, user_id, stored: None, links: Vec::new() });
        }
    }

    /// Adds what the ledger holds of an id, and the ids that this names.
    pub(super) fn take(&mut self, key: Key, stored: StoredRecord) {
        let read = |link: &Link| self.secret.read(&link.user_id, &self.business_id).ok();
        let links: Vec<_> = stored
            .record
            .links
            .iter()
            .filter_map(|link| Some((read(link)?, link.clone())))
            .collect();
        for (_, link) in &links {
            self.meet(&link.user_id);
        }
        if let Some(member) = self.members.iter_mut().find(|member| member.key == key) {
            (member.stored, member.links) = (Some(stored), links);
        }
    }

    /// What is still to be read.
    pub(super) fn unread(&self) -> Vec<Key> {
        let unread = self.members.iter().filter(|member| member.stored.is_none());
        unread.map(|member| member.key).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// The time of the latest event under any of the ids.
    pub(super) fn latest(&self) -> Option<Timestamp> {
        let stored = self.members.iter().filter_map(|member| member.stored.as_ref());
        stored.filter_map(|stored| stored.record.state.latest()).max()
    }

    /// The changes after which every id names the others that name it, and holds what any of them
    /// denies; one for each, which may write nothing.
    ///
    /// `links` and `denials` are the event's own: they are written even where the first id's record
    /// has lost them, or never held them.
    pub(super) fn changes(
        &self,
        links: &[Link],
        denials: &[Denial],
        clock: Timestamp,
    ) -> Vec<Change> {
        let denied = self.denied(denials);
        let changes = self.members.iter().enumerate().map(|(place, member)| {
            let stored = member.stored.clone().unwrap_or_default();
            let mut record = stored.record;
            record.written_at(stored.version.revision);
            let mut history = Vec::new();
            let mut enter = |time, what| {
                let (user_id, business_id) = (member.user_id.clone(), self.business_id.clone());
                history.push(HistoryEntry { user_id, business_id, time, record_time: clock, what });
            };
            let erased = record.erased.as_ref().map(|erased| erased.time);
            for link in self.missing_links(place, links) {
                if erased.is_none_or(|erased| link.time > erased) && record.link(link.clone()) {
                    let Link { user_id: other_user_id, time, moved } = link;
                    enter(time, What::Link { other_user_id, moved });
                }
            }
            // One that was erased, and not linked since, is here because another one still names it:
            // it denies everything, and is to name nobody.
            let is_left = erased.is_some() && record.links.is_empty();
            for (from, denial) in denied.iter().filter(|_| !is_left) {
                let own = *from == place;
                let what =
                    if own { denial.what.clone() } else { self.copy(place, *from, &denial.what) };
                let time = counts_as_of(&record.state, &what, denial.time);
                if deny(&mut record.state, &what, time) {
                    enter(time, what);
                }
            }
            record.state.forget_clamped();
            let update = (!history.is_empty()).then(|| Update {
                user_id: member.user_id.clone(),
                business_id: self.business_id.clone(),
                record,
                history,
                record_time: clock,
            });
            Change { key: member.key, base: stored.version, update }
        });
        changes.collect()
    }

    /// What is denied under any id, the latest first; with the id's place.
    fn denied(&self, denials: &[Denial]) -> Vec<(usize, Denial)> {
        let mut denied: Vec<_> = denials.iter().cloned().map(|denial| (0, denial)).collect();
        for (place, member) in self.members.iter().enumerate() {
            let state = member.stored.iter().flat_map(|stored| standing(&stored.record.state));
            denied.extend(state.map(|denial| (place, denial)));
        }
        // A stable sort: what the event itself says comes before what a state says of it.
        denied.sort_by_key(|(_, denial)| std::cmp::Reverse(denial.time));
        denied
    }

    /// The links that an id's record lacks.
    fn missing_links(&self, place: usize, links: &[Link]) -> Vec<Link> {
        let Some(member) = self.members.get(place) else { return Vec::new() };
        let knows = |key: Key| key == member.key || member.links.iter().any(|(k, _)| *k == key);
        let key_of = |link: &Link| self.secret.read(&link.user_id, &self.business_id).ok();
        let own = links.iter().filter(|link| place == 0 && key_of(link).is_some_and(|k| !knows(k)));
        let mut missing: Vec<Link> = own.cloned().collect();
        for (other_place, other) in self.members.iter().enumerate() {
            let said = other.links.iter().map(|(key, link)| (*key, link));
            let said = said.chain(
                links.iter().filter(|_| other_place == 0).filter_map(|l| Some((key_of(l)?, l))),
            );
            let named = said.filter(|(key, _)| *key == member.key).map(|(_, link)| link).next();
            if let Some(link) = named.filter(|_| !knows(other.key)) {
                let (user_id, time) = (other.user_id.clone(), link.time);
                // Who left an id for this one did not leave this one.
                missing.push(Link { user_id, time, moved: false });
            }
        }
        missing
    }

    /// What is recorded under the id at `to` of what was denied under the one at `from`.
    fn copy(&self, to: usize, from: usize, what: &What) -> What {
        let by = self.linked_at(to, from);
        match what {
            What::OptOut { scope, reference } => {
                What::OptOut { scope: scope.clone(), reference: by_link(by, reference) }
            }
            What::Suppression { suppressed, reference } => {
                What::Suppression { suppressed: *suppressed, reference: by_link(by, reference) }
            }
            // A failure that told of a stop was about another id's message.
            What::Failure { .. } => What::Platform { stopped: true },
            what => what.clone(),
        }
    }

    /// The time of the link by which the id at `to` hears of the one at `from`: the first step of
    /// the shortest way.
    fn linked_at(&self, to: usize, from: usize) -> Option<Timestamp> {
        let start = self.members.get(to)?;
        let goal = self.members.get(from)?.key;
        let mut ways: VecDeque<(Key, Timestamp)> =
            start.links.iter().map(|(key, link)| (*key, link.time)).collect();
        let mut seen = vec![start.key];
        while let Some((key, time)) = ways.pop_front() {
            if key == goal {
                return Some(time);
            }
            if !seen.contains(&key) {
                seen.push(key);
                let next = self.members.iter().find(|member| member.key == key)?;
                ways.extend(next.links.iter().map(|(key, _)| (*key, time)));
            }
        }
        // It is being linked: the other one names it already.
        let named = self.members.get(from)?.links.iter().find(|(key, _)| *key == start.key);
        named.map(|(_, link)| link.time)
    }
}

/// What a state denies, as events; none has a reference, for a state keeps none.
fn standing(state: &State) -> Vec<Denial> {
    let words = state.scopes.iter().filter_map(|(scope, said)| {
        let word = said.word.filter(|word| matches!(word.said, Said::OptOut))?;
        let what = What::OptOut { scope: scope.clone(), reference: String::new() };
        Some(Denial { time: word.time, what })
    });
    let set = |mark: Option<(Timestamp, bool)>| mark.filter(|(_, set)| *set).map(|(time, _)| time);
    let stop = set(state.platform);
    let stop = stop.map(|time| Denial { time, what: What::Platform { stopped: true } });
    let suppressed = set(state.suppression).map(|time| {
        let what = What::Suppression { suppressed: true, reference: String::new() };
        Denial { time, what }
    });
    words.chain(stop).chain(suppressed).collect()
}

/// Applies a denial; tells whether it changed anything. No state is too full for one.
fn deny(state: &mut State, what: &What, time: Timestamp) -> bool {
    let mut changed = false;
    for effect in what.effects(time) {
        changed |= state.apply(&effect).unwrap_or(false);
    }
    changed
}

/// Says by which link a denial holds here. The link is an entry of the same history, which names the
/// other id: a copy need not name it again.
fn by_link(time: Option<Timestamp>, reference: &str) -> String {
    let mut said = "under a linked id".to_owned();
    if let Some(time) = time {
        let since = UNIX_EPOCH + time.since(Timestamp::MIN);
        said = format!("under the id linked at {}", humantime::format_rfc3339_millis(since));
    }
    if !reference.is_empty() {
        said.push_str(": ");
        said.push_str(reference);
    }
    said.truncate(said.floor_char_boundary(MAX_REFERENCE_BYTES));
    said
}

/// What a [`Walk`] needs next.
#[derive(Debug)]
pub enum Step {
    /// These pairs, by [`Walk::read`].
    Read(Vec<Key>),
    /// These changes, by [`Walk::appended`].
    Append(Vec<Change>),
}

/// Takes an event's denials, or its link, to all ids of a person.
pub struct Walk {
    user_id: String,
    links: Vec<Link>,
    denials: Vec<Denial>,
    group: Group,
    clock: Timestamp,
    /// Whether what was given to append links ids: then no proof comes of it.
    linking: bool,
}

impl Walk {
    /// A walk from the id that an event was given under, whose own change is durable. `links` are
    /// what it linked the id to, and `denials` what it denied, whether or not that changed anything.
    #[must_use]
    pub fn new(
        secret: &KeySecret,
        business_id: &str,
        user_id: &str,
        links: Vec<Link>,
        denials: Vec<Denial>,
    ) -> Self {
        let group = Group::new(secret, business_id, user_id);
        let (user_id, clock) = (user_id.to_owned(), Timestamp::MIN);
        let mut walk = Self { user_id, links, denials, group, clock, linking: false };
        walk.begin();
        walk
    }

    fn begin(&mut self) {
        self.group = Group::new(&self.group.secret, &self.group.business_id, &self.user_id);
        for link in &self.links {
            self.group.meet(&link.user_id);
        }
    }

    /// What it needs next.
    pub fn step(&mut self) -> Step {
        let unread = self.group.unread();
        if !unread.is_empty() {
            return Step::Read(unread);
        }
        let changes = self.group.changes(&self.links, &self.denials, self.clock);
        let entries = changes.iter().filter_map(|change| change.update.as_ref());
        let mut entries = entries.flat_map(|update| &update.history);
        self.linking = entries.any(|entry| matches!(entry.what, What::Link { .. }));
        Step::Append(changes)
    }

    /// The pairs of these keys were read.
    ///
    /// # Errors
    ///
    /// [`UnreadableRecord`] where one of them must not be rewritten: then what is denied cannot be
    /// made to hold there, and is not acknowledged.
    pub fn read(&mut self, keys: &[Key], read: Read) -> Result<(), UnreadableRecord> {
        self.clock = self.clock.max(read.clock);
        for (key, stored) in keys.iter().zip(read.pairs) {
            self.group.take(*key, stored?);
        }
        Ok(())
    }

    /// The changes came to this. Gives the last revision of all ids once it is proven that what is
    /// denied under one is denied under all; until then it goes on.
    ///
    /// # Errors
    ///
    /// What kept the ledger from writing one of them.
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

/// What a change says that others must not lose: that something is denied, or that ids are linked.
pub(super) fn must_stay(what: &What) -> bool {
    what.is_denial() || matches!(what, What::Link { .. })
}

/// Whether a pair's record names this one, in whatever notation.
pub(super) fn known_link(
    record: &Record,
    secret: &KeySecret,
    business_id: &str,
    other: Key,
) -> Option<Link> {
    let is_other = |link: &&Link| secret.read(&link.user_id, business_id).is_ok_and(|k| k == other);
    record.links.iter().find(is_other).cloned()
}
