//! Ids of one person: recorders that take what denies to all of them, by the real walk, and are
//! killed anywhere.

use std::collections::VecDeque;
use std::rc::Rc;

use consentd::recorder::linked_ids::{self, Denial, PropagationRound};
use consentd::recorder::sent_changes::Origin;
use consentd_core::event::What;
use consentd_core::id::Key;
use consentd_core::record::Link;
use consentd_core::state::{Effect, State};
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, Epoch, Read, UnreadableRecord};

use crate::append::version;
use crate::erase::erased_before;
use crate::ledger::{BUSINESS, Said, secret, user};
use crate::process::gives_back;
use crate::recorder::Step;
use crate::sidecar::true_time;
use crate::world::{Happening, MILLI, World};

/// Who may be linked to whom: chains of three ids and of two, and one person of a single id.
pub const PEOPLE: [(usize, usize); 3] = [(0, 1), (1, 2), (3, 4)];

/// How often a recorder is killed at each step of its walk.
const KILLED: u64 = 3;

/// How long a caller waits for a walk.
const PATIENCE: u64 = 1_000 * MILLI;

/// A recorder on its way through the ids of a person.
pub struct Walking {
    walk: PropagationRound,
    /// The ledger that its keys are of.
    epoch: Epoch,
    asked: Vec<Key>,
    changes: VecDeque<Change>,
    outcomes: Vec<Appended>,
}

/// The event that has this effect.
pub fn denial(effect: &Effect) -> Denial {
    let reference = String::new();
    match effect {
        Effect::Choice(scope, word) => {
            let what = What::OptOut { scope: scope.clone(), reference };
            Denial { time: word.time, what }
        }
        Effect::Platform { time, number, .. } => {
            let what = What::Platform { stopped: true, phone_number_id: number.clone() };
            Denial { time: *time, what }
        }
        Effect::Suppression { time, .. } => {
            Denial { time: *time, what: What::Suppression { suppressed: true, reference } }
        }
        other => panic!("{other:?} denies nothing"),
    }
}

impl World {
    /// Something was lost, or written behind the log's back: only what both ids still say is known
    /// to be one person.
    pub fn lose(&mut self) {
        self.losses += 1;
        let stored = &self.primary.stored;
        let names = |one: usize, other: usize| {
            stored[one].as_ref().is_some_and(|stored| stored.said.names(other))
        };
        self.acks.linked.retain(|(one, other)| names(*one, *other) && names(*other, *one));
    }

    /// The recorder's own change is durable: what it says goes to the person's other ids.
    pub fn walk_begins(&mut self, index: usize, link: Option<usize>) {
        let recorder = &mut self.recorders[index];
        recorder.operation += 1;
        let operation = recorder.operation;
        let links = link.map(|other| {
            let user_id = user(other).to_owned();
            let time = recorder.link_time.unwrap_or(Timestamp::from_millis(1).unwrap());
            Link { user_id, time, moved: false }
        });
        let links = links.into_iter().collect();
        let denials = recorder.effect.iter().map(denial).collect();
        let secret = secret(self.primary.secret);
        let walk = PropagationRound::new(&secret, BUSINESS, user(recorder.user), links, denials);
        let epoch = self.primary.end().epoch;
        let (asked, changes, outcomes) = (Vec::new(), VecDeque::new(), Vec::new());
        recorder.walking = Some(Walking { walk, epoch, asked, changes, outcomes });
        self.after(PATIENCE, Happening::Recorder(index, operation, Step::TimedOut));
        self.walk_goes_on(index);
    }

    fn walk_goes_on(&mut self, index: usize) {
        let recorder = &mut self.recorders[index];
        let operation = recorder.operation;
        let Some(walking) = &mut recorder.walking else { return };
        match walking.walk.step() {
            linked_ids::Step::Read(keys) => walking.asked = keys,
            linked_ids::Step::Append(changes) => walking.changes = changes.into(),
        }
        self.walk_in_a_while(index, operation);
    }

    fn walk_in_a_while(&mut self, index: usize, operation: u64) {
        let wait = self.random.between(1, 15) * MILLI;
        self.after(wait, Happening::Recorder(index, operation, Step::PropagationRound));
    }

    /// One question, or one change, reaches the ledger; or the recorder is killed before it does.
    pub fn walk(&mut self, index: usize) {
        if self.random.percent(KILLED) {
            return self.killed(index);
        }
        if self.is_down() || self.random.percent(self.wire.page_loss / 2) {
            return;
        }
        let operation = self.recorders[index].operation;
        let Some(mut walking) = self.recorders[index].walking.take() else { return };
        if walking.epoch != self.primary.end().epoch {
            return; // Its keys are of a ledger that is gone.
        }
        if !walking.asked.is_empty() {
            let keys = std::mem::take(&mut walking.asked);
            let Some(read) = self.walk_reads(&keys) else { return };
            let read = walking.walk.read(&keys, read);
            if matches!(read, Err(UnreadableRecord::Newer { .. })) && gives_back(index) {
                return self.is_refused(index);
            }
            self.recorders[index].walking = read.is_ok().then_some(walking);
            return self.walk_goes_on(index);
        }
        if let Some(change) = walking.changes.pop_front() {
            let Some(outcome) = self.walk_appends(index, change) else { return };
            walking.outcomes.push(outcome);
        }
        if !walking.changes.is_empty() {
            self.recorders[index].walking = Some(walking);
            return self.walk_in_a_while(index, operation);
        }
        let outcomes = std::mem::take(&mut walking.outcomes);
        let proven = walking.walk.appended(&outcomes).unwrap();
        self.recorders[index].walking = Some(walking);
        if proven.is_none() {
            return self.walk_goes_on(index);
        }
        let wait = self.random.between(1, 15) * MILLI;
        self.after(wait, Happening::Recorder(index, operation, Step::Walked));
    }

    /// Its caller tries again, or never comes back.
    fn killed(&mut self, index: usize) {
        self.recorders[index].walking = None;
        if self.random.percent(50) || gives_back(index) {
            self.recorder_starts(index);
        } else {
            self.recorder_tries(index);
        }
    }

    /// An isolated server may be asked: the append will tell.
    fn walk_reads(&mut self, keys: &[Key]) -> Option<Read> {
        let stray = self.random.percent(self.wire.stray);
        let server = match &self.isolated {
            Some(isolated) if stray => &isolated.server,
            _ => &self.primary,
        };
        let clock = server.clock(true_time(self.time()));
        let mut pairs = Vec::new();
        for key in keys {
            let number = server.number_of(*key)?;
            if server.has_lost(number) {
                pairs.push(Err(UnreadableRecord::Lost { bucket: server.bucket_of(number) }));
                continue;
            }
            let stored = server.stored[number].as_ref();
            let record = stored.map(|stored| stored.said.record());
            let record = record.unwrap_or_else(|| Ok(consentd_core::record::Record::default()));
            pairs.push(
                record.map(|record| consentd_ledger::StoredRecord {
                    version: version(stored),
                    record,
                }),
            );
        }
        Some(Read { clock, pairs })
    }

    /// The outcome of a change; none where no answer comes, or the outcome is unknown.
    fn walk_appends(&mut self, index: usize, change: Change) -> Option<Appended> {
        let number = self.primary.number_of(change.key)?;
        if self.primary.has_lost(number) {
            return None;
        }
        let said = change.update.as_ref().map(|update| Rc::new(Said::of(update.record.clone())));
        let what = (Origin::Propagation, Vec::new());
        let answer = self.append_of_call(index, number, change, said, what)?;
        Some(answer.ok()?.outcome)
    }

    /// What was denied, or linked, is acknowledged: it holds under every id of the person, unless
    /// something was lost meanwhile, and it with that.
    pub fn walked(&mut self, index: usize, link: Option<usize>) {
        let recorder = &self.recorders[index];
        let (number, effect, before) =
            (recorder.user, recorder.effect.clone(), recorder.person.clone());
        let (began, time) = (recorder.began, recorder.link_time);
        let whole = recorder.losses == self.losses;
        let stored = self.primary.stored.clone();
        let state = |number: usize| {
            let stored = stored[number].as_ref();
            stored.map(|stored| stored.said.state.clone()).unwrap_or_default()
        };
        let holds = |number: usize, effect: &Effect| {
            whole || State::apply(&mut state(number), effect) == Ok(false)
        };
        if let Some(effect) = effect {
            for id in self.acks.person(number) {
                // An id that was linked meanwhile has a copy of what still denied by then.
                let told = before.contains(&id) || self.acks.stands(number, &effect, began);
                if told && holds(id, &effect) {
                    self.acknowledge(id, effect.clone(), began);
                }
            }
        }
        let names = |one: usize, other: usize| {
            stored[one].as_ref().is_some_and(|stored| stored.said.names(other))
        };
        let Some(other) = link else { return };
        let both = names(number, other) && names(other, number);
        // An id that was erased since must name no other.
        let is_erased = |number: usize| {
            stored[number].as_ref().is_some_and(|stored| erased_before(&stored.said, time))
        };
        let is_erased = is_erased(number) || is_erased(other);
        assert!(
            both || is_erased || !whole,
            "users {number} and {other} are linked, and do not know it"
        );
        if both {
            self.acks.linked.insert((number, other));
            let person = self.acks.person(number);
            let denied: Vec<(Effect, u64)> =
                person.iter().flat_map(|id| self.acks.of(*id)).collect();
            for (id, (effect, began)) in
                person.iter().flat_map(|id| denied.iter().map(|it| (*id, it)))
            {
                if holds(id, effect) {
                    self.acknowledge(id, effect.clone(), *began);
                }
            }
        }
    }
}
