//! Erasing a person whose ids are in different partitions: of every id a tombstone is left, from the farthest one on;
//! and erasing again what a failover of one partition lost.

use std::collections::BTreeSet;
use std::rc::Rc;

use consentd::recorder::replay_denials::Replayable;
use consentd_core::record::{HistoryEntry, Link, Record};
use consentd_core::state::{Effect, State};
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, StoredRecord, UnreadableRecord, Update};

use super::append::{KILLED, Purpose, record_of};
use super::process::OWN;
use super::recorder::Step;
use super::world::World;
use crate::append::version;
use crate::erase::{erased_before, later_than};
use crate::held::business_of;
use crate::ledger::{Said, Stored, USERS, user};
use crate::linked::denial;
use crate::oracle::{Violation, is_denial};
use crate::process::process_of;
use crate::recorder::time_of;

/// A recorder that erases a person.
#[derive(Default)]
pub struct Erasing {
    /// The ids that were read, by how far they are from the one given.
    levels: Vec<Vec<(usize, StoredRecord)>>,
    /// What is to be read next.
    asked: Vec<usize>,
    clock: Option<Timestamp>,
    /// Of whom a tombstone is being written: its time, and whether it was there.
    writing: Vec<(usize, Timestamp, bool)>,
    /// Of whom a tombstone is there, and its time.
    done: Vec<(usize, Timestamp)>,
    /// Who was acknowledged to be one person when it began, and how often something was lost by then.
    person: BTreeSet<usize>,
    taken: u64,
}

impl Erasing {
    fn drop_empty_levels(&mut self) {
        while self.asked.is_empty() && self.levels.last().is_some_and(Vec::is_empty) {
            self.levels.pop();
        }
    }

    fn knows(&self, number: usize) -> bool {
        let read = self.levels.iter().flatten().map(|(known, _)| known);
        let read = read.chain(self.done.iter().map(|(known, _)| known));
        let mut known = read.chain(self.writing.iter().map(|(known, ..)| known));
        known.any(|known| *known == number)
    }

    /// The ids that a record names and that are not known.
    fn named(&self, record: &Record) -> Vec<usize> {
        let names = |number: &usize| record.links.iter().any(|link| link.user_id == user(*number));
        (0..USERS).filter(|number| names(number) && !self.knows(*number)).collect()
    }
}

fn nameless(record: Record, record_time: Timestamp) -> Update {
    let (user_id, business_id) = (String::new(), String::new());
    Update { user_id, business_id, record, history: Vec::new(), record_time }
}

impl World {
    /// A tombstone is written: it names nobody.
    pub fn names_nobody(&mut self, number: usize) {
        self.erasures += 1;
        self.acks.linked.retain(|(one, other)| *one != number && *other != number);
    }

    /// A caller wants a person erased.
    pub fn erase_begins(&mut self, index: usize) {
        let number = self.recorders[index].user;
        let (person, taken) = (self.acks.person(number), self.taken);
        let erasing = Erasing { asked: vec![number], person, taken, ..Erasing::default() };
        self.recorders[index].erasing = Some(erasing);
        self.erases_on(index);
    }

    fn erases_on(&mut self, index: usize) {
        let wait = self.soon();
        self.recorder_goes_on(index, wait, Step::Erase);
    }

    /// The next question or append.
    pub fn erase(&mut self, index: usize) {
        if self.random.percent(KILLED) {
            return self.recorder_fails(index);
        }
        let Some(mut erasing) = self.recorders[index].erasing.take() else { return };
        if erasing.asked.is_empty() && erasing.levels.is_empty() {
            self.recorders[index].erasing = Some(erasing);
            return self.recorder_goes_on(index, 0, Step::Erased);
        }
        if erasing.asked.is_empty() {
            return self.leave_tombstones(index, erasing);
        }
        let mut level = Vec::new();
        for number in std::mem::take(&mut erasing.asked) {
            let Some((stored, clock)) = self.read(number) else {
                return self.recorder_fails(index);
            };
            erasing.clock = erasing.clock.max(Some(clock));
            // Of what is not there nothing is left.
            level.extend(stored.map(|stored| (number, record_of(Some(&stored)).unwrap())));
        }
        erasing.levels.push(level);
        let last = erasing.levels.last().into_iter().flatten();
        let mut asked: Vec<usize> =
            last.flat_map(|(_, stored)| erasing.named(&stored.record)).collect();
        asked.sort_unstable();
        asked.dedup();
        erasing.asked = asked;
        erasing.drop_empty_levels();
        self.recorders[index].erasing = Some(erasing);
        self.erases_on(index);
    }

    /// Leaves the tombstones of one level, or makes sure of those that are there.
    fn leave_tombstones(&mut self, index: usize, mut erasing: Erasing) {
        let clock = erasing.clock.unwrap();
        let level = erasing.levels.pop().unwrap_or_default();
        let mut changes = Vec::new();
        for (number, StoredRecord { version, record }) in level {
            let is_there = record.is_tombstone();
            let tombstone = if is_there { record } else { record.tombstone(clock) };
            let time = tombstone.erased.as_ref().unwrap().time;
            erasing.writing.push((number, time, is_there));
            let key = self.partitions[0].primary.key_of(number);
            let update = (!is_there).then(|| nameless(tombstone, clock));
            changes.push(Change { key, base: version, update });
        }
        erasing.drop_empty_levels();
        self.recorders[index].erasing = Some(erasing);
        self.append_all(index, changes, Purpose::Erase);
    }

    /// What came of the tombstones of one level.
    pub fn leaves_tombstones(&mut self, index: usize, outcomes: Vec<Appended>) {
        let Some(mut erasing) = self.recorders[index].erasing.take() else { return };
        let written = std::mem::take(&mut erasing.writing);
        let mut again = Vec::new();
        for ((number, time, is_there), outcome) in written.into_iter().zip(outcomes) {
            match outcome {
                Appended::Committed(_) => {
                    if is_there {
                        let key = self.partitions[0].primary.key_of(number);
                        self.recorders[index].sent.retain(Replayable::Erase { key, time });
                    }
                    erasing.done.push((number, time));
                }
                // Another came first: this is the pair now.
                Appended::Conflict(stored) => again.push((number, stored.unwrap())),
                Appended::Failed(_) => return self.recorder_fails(index),
            }
        }
        erasing.levels.push(again);
        // And whom they name by now goes first.
        let last = erasing.levels.last().into_iter().flatten();
        erasing.asked = last.flat_map(|(_, stored)| erasing.named(&stored.record)).collect();
        erasing.asked.sort_unstable();
        erasing.asked.dedup();
        erasing.drop_empty_levels();
        self.recorders[index].erasing = Some(erasing);
        self.erases_on(index);
    }

    /// Every id has its tombstone, as far as this recorder knows.
    pub fn erased(&mut self, index: usize) -> Result<(), Violation> {
        let Some(erasing) = self.recorders[index].erasing.take() else { return Ok(()) };
        let numbers: Vec<usize> = erasing.done.iter().map(|(number, _)| *number).collect();
        self.forgets(index, &numbers);
        let began = self.recorders[index].began;
        let is_whole = erasing.taken == self.taken;
        for (number, time) in &erasing.done {
            let said = self.stored(*number).map(|stored| &*stored.said);
            let holds = said.is_some_and(|said| erased_before(said, Some(*time)));
            if !holds && is_whole {
                let why = format!("user {number} is erased, and the ledger knows nothing of it");
                return Err(Violation::new(3, why));
            }
            if holds {
                let effect = Effect::Suppression { time: *time, suppressed: true };
                let at = self.place[*number];
                let is_own = process_of(index) == Some(OWN) && self.partitions[at].is_followed;
                self.acknowledge(*number, effect, began, is_own);
            }
        }
        // Whoever was one person with the one given is erased with it, if anything is known of them.
        for number in erasing.person.iter().filter(|_| is_whole && !erasing.done.is_empty()) {
            let said = self.stored(*number).map(|stored| &stored.said);
            if said.is_some_and(|said| said.erased.is_none()) {
                let why = format!("user {number} is linked to one who is erased, and is not");
                return Err(Violation::new(3, why));
            }
        }
        self.is_answered(index);
        Ok(())
    }

    /// An erase that is given back: the tombstone is left, unless it is there still.
    pub fn erase_again(&mut self, index: usize) {
        let Some(again) = &self.recorders[index].erasing_again else { return };
        let (time, number) = (again.time, self.recorders[index].user);
        let Some((stored, clock)) = self.read(number) else { return self.recorder_fails(index) };
        let said = stored.as_ref().map(|stored| &*stored.said);
        let record = record_of(stored.as_ref()).unwrap().record;
        let is_erased = said.is_some_and(|said| erased_before(said, Some(time)));
        let later = later_than(&record.state, time).into_iter().filter(|_| !is_erased);
        let later: Vec<Effect> = later.collect();
        let links = record.links.iter().filter(|link| link.time > time && !is_erased);
        let links: Vec<Link> = links.cloned().collect();
        // The tombstone takes the place of what denied later.
        for effect in later.iter().filter(|effect| is_denial(effect)) {
            let denial = denial(effect);
            let (user_id, business_id) = (user(number).to_owned(), business_of(number).to_owned());
            let (time, what) = (denial.time, denial.what);
            let entry = HistoryEntry { user_id, business_id, time, record_time: time, what };
            self.keeps(index, Replayable::Denial(Box::new(entry)));
        }
        let update = (!is_erased).then(|| nameless(record.tombstone_at(time), clock));
        let key = self.partitions[0].primary.key_of(number);
        self.recorders[index].erasing_again.as_mut().unwrap().later = Some((later, links));
        let change = Change { key, base: version(stored.as_ref()), update };
        self.append_all(index, vec![change], Purpose::EraseAgain);
    }

    pub fn has_erased_again(&mut self, index: usize, outcome: Option<&Appended>) {
        match outcome {
            Some(Appended::Committed(_)) => self.recorder_goes_on(index, 0, Step::ErasedAgain),
            Some(Appended::Conflict(_)) => {
                let wait = self.soon();
                self.recorder_goes_on(index, wait, Step::Read);
            }
            _ => self.recorder_fails(index),
        }
    }

    /// The tombstone is there: what happened later is recorded again.
    pub fn erased_again(&mut self, index: usize) {
        let Some(again) = &self.recorders[index].erasing_again else { return };
        let (time, number) = (again.time, self.recorders[index].user);
        let (later, links) = again.later.clone().unwrap_or_default();
        if later.is_empty() && links.is_empty() {
            let said = self.stored(number).map(|stored| &stored.said);
            if said.is_some_and(|said| erased_before(said, Some(time))) {
                let effect = Effect::Suppression { time, suppressed: true };
                self.acknowledge(number, effect, 0, false);
            }
            return self.is_answered(index);
        }
        let Some((stored, clock)) = self.read(number) else { return self.recorder_fails(index) };
        let Ok(change) = self.later_change(number, stored.as_ref(), (&later, &links), clock) else {
            return self.recorder_fails(index);
        };
        self.append_all(index, vec![change], Purpose::Later);
    }

    fn later_change(
        &self,
        number: usize,
        stored: Option<&Stored>,
        (later, links): (&[Effect], &[Link]),
        clock: Timestamp,
    ) -> Result<Change, UnreadableRecord> {
        let mut record = record_of(stored)?.record;
        let mut state: State = record.state.clone();
        let erased = record.erased.as_ref().map(|erased| erased.time);
        let is_later = |time: Timestamp| erased.is_none_or(|erased| time > erased);
        for effect in later.iter().filter(|effect| is_later(time_of(effect))) {
            let _ = state.apply(effect);
        }
        for link in links.iter().filter(|link| is_later(link.time)) {
            record.link(link.clone());
        }
        let said = Said::new(state, true).linked(record.links).erased_at(erased);
        let said = Rc::new(said);
        let (user_id, business_id) = (user(number).to_owned(), business_of(number).to_owned());
        let (record, history) = (said.record()?, Vec::new());
        let update = Update { user_id, business_id, record, history, record_time: clock };
        let key = self.partitions[0].primary.key_of(number);
        Ok(Change { key, base: version(stored), update: Some(update) })
    }

    pub fn has_recorded_later(&mut self, index: usize, outcome: Option<&Appended>) {
        if matches!(outcome, Some(Appended::Committed(_)))
            && let Some(again) = &mut self.recorders[index].erasing_again
        {
            again.later = Some((Vec::new(), Vec::new()));
        }
        match outcome {
            // The outcome is unknown. The denials are kept; what allowed must be recorded again by its caller.
            Some(Appended::Failed(_)) | None => self.recorder_fails(index),
            Some(_) => {
                let wait = self.soon();
                self.recorder_goes_on(index, wait, Step::ErasedAgain);
            }
        }
    }
}
