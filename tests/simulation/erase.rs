//! Erasing a person: of every linked id a tombstone is left, from the farthest id on, by the real
//! rules for tombstones; and erasing again what a failover lost.

use std::collections::BTreeSet;
use std::rc::Rc;

use consentd::recorder::replay_denials::Replayable;
use consentd::recorder::sent_changes::Origin;
use consentd_core::record::{HistoryEntry, Link, Record};
use consentd_core::state::{Choice, Effect, State};
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, Update};

use crate::append::version;
use crate::ledger::{BUSINESS, Said, Stored, USERS, user};
use crate::linked::denial;
use crate::oracle::is_denial;
use crate::process::{Owed, process_of};
use crate::recorder::{Step, time_of};
use crate::sidecar::true_time;
use crate::world::{Happening, MILLI, World};

/// How long a caller waits for an erase.
const PATIENCE: u64 = 1_500 * MILLI;

/// A recorder that erases a person.
pub struct Erasing {
    /// The ids that were read, by how far they are from the one given.
    levels: Vec<Vec<(usize, Option<Stored>)>>,
    /// What is to be read next.
    asked: Vec<usize>,
    clock: Timestamp,
    /// Of whom a tombstone is there, and its time.
    done: Vec<(usize, Timestamp)>,
    /// Who was acknowledged to be one person when it began, and how often something was lost by
    /// then.
    person: BTreeSet<usize>,
    taken: u64,
}

impl Erasing {
    fn drop_empty_levels(&mut self) {
        if self.asked.is_empty() {
            while self.levels.last().is_some_and(Vec::is_empty) {
                self.levels.pop();
            }
        }
    }
}

/// A pair that is erased again, as of the time at which it was.
pub struct ErasingAgain {
    pub time: Timestamp,
    /// What the tombstone took that happened later, once the tombstone is there.
    pub later: Option<(Vec<Effect>, Vec<Link>)>,
}

/// Whether a pair was erased then or later.
pub fn erased_before(said: &Said, time: Option<Timestamp>) -> bool {
    said.erased.zip(time).is_some_and(|(erased, time)| time <= erased)
}

/// What a state says of later than that: the events that made it.
pub fn later_than(state: &State, time: Timestamp) -> Vec<Effect> {
    let mut effects = Vec::new();
    for (scope, said) in &state.scopes {
        effects.extend(said.opt_out.map(|at| Effect::Choice(scope.clone(), Choice::opt_out(at))));
        effects.extend(said.choice.map(|word| Effect::Choice(scope.clone(), word)));
        effects.extend(said.pending.map(|pending| Effect::Pending(scope.clone(), pending)));
    }
    effects.extend(state.last_inbound.map(Effect::Inbound));
    effects.extend(state.capped.map(Effect::Capped));
    for (number, said) in state.platform.iter() {
        let marks = [said.last_stop.map(|at| (at, true)), said.latest].into_iter().flatten();
        let number = number.cloned();
        effects.extend(marks.map(|(time, stopped)| Effect::Platform {
            time,
            stopped,
            number: number.clone(),
        }));
    }
    let marks = [state.last_suppressed.map(|at| (at, true)), state.suppression];
    let marks = marks.into_iter().flatten();
    effects.extend(marks.map(|(time, suppressed)| Effect::Suppression { time, suppressed }));
    effects.retain(|effect| time_of(effect) > time);
    effects
}

impl World {
    /// A caller wants a person erased.
    pub fn erase_begins(&mut self, index: usize) {
        let recorder = &mut self.recorders[index];
        let (operation, number) = (recorder.operation, recorder.user);
        let person = self.acks.person(number);
        self.recorders[index].erasing = Some(Erasing {
            levels: Vec::new(),
            asked: vec![number],
            clock: Timestamp::MIN,
            done: Vec::new(),
            person,
            taken: self.taken,
        });
        self.after(PATIENCE, Happening::Recorder(index, operation, Step::TimedOut));
        self.erase_in_a_while(index);
    }

    fn erase_in_a_while(&mut self, index: usize) {
        let operation = self.recorders[index].operation;
        let wait = self.random.between(1, 10) * MILLI;
        self.after(wait, Happening::Recorder(index, operation, Step::Erase));
    }

    /// One question, or one tombstone, reaches the ledger.
    pub fn erase(&mut self, index: usize) {
        if self.is_down() || self.random.percent(self.wire.page_loss / 2) {
            return;
        }
        let Some(mut erasing) = self.recorders[index].erasing.take() else { return };
        let goes_on = if erasing.asked.is_empty() {
            self.leave_tombstone(index, &mut erasing)
        } else {
            self.read_level(&mut erasing)
        };
        if goes_on.is_none() {
            return; // It is not answered, or must not go on: the caller tries again.
        }
        let is_done = erasing.asked.is_empty() && erasing.levels.is_empty();
        self.recorders[index].erasing = Some(erasing);
        if is_done {
            let operation = self.recorders[index].operation;
            let wait = self.random.between(1, 15) * MILLI;
            return self.after(wait, Happening::Recorder(index, operation, Step::Erased));
        }
        self.erase_in_a_while(index);
    }

    /// Reads the ids of one level; what they name is the next one.
    fn read_level(&mut self, erasing: &mut Erasing) -> Option<()> {
        let now = true_time(self.time());
        let server = self.reader();
        let clock = server.clock(now);
        let asked = std::mem::take(&mut erasing.asked);
        if asked.iter().any(|number| server.has_lost(*number)) {
            return None;
        }
        let level: Vec<_> =
            asked.iter().map(|number| (*number, server.stored[*number].clone())).collect();
        if erasing.levels.is_empty() {
            erasing.clock = clock;
        }
        let known = |number: &usize| {
            asked.contains(number)
                || erasing.levels.iter().flatten().any(|(known, _)| known == number)
        };
        let named = |number: &usize| {
            let said = level.iter().filter_map(|(_, stored)| stored.as_ref());
            said.into_iter().any(|stored| stored.said.names(*number))
        };
        erasing.asked = (0..USERS).filter(|it| named(it) && !known(it)).collect();
        // Of what is not there nothing is left.
        let level = level.into_iter().filter(|(_, stored)| stored.is_some()).collect();
        erasing.levels.push(level);
        erasing.drop_empty_levels();
        Some(())
    }

    /// Leaves one tombstone, or makes sure of one that is there.
    fn leave_tombstone(&mut self, index: usize, erasing: &mut Erasing) -> Option<()> {
        let (number, stored) = erasing.levels.last_mut()?.pop()?;
        let record = match &stored {
            Some(stored) => stored.said.record().ok()?,
            None => Record::default(),
        };
        let is_there = record.is_tombstone();
        let tombstone = if is_there { record } else { record.tombstone(erasing.clock) };
        let time = tombstone.erased.as_ref()?.time;
        let answer = self.append_tombstone(
            index,
            number,
            stored.as_ref(),
            (!is_there).then_some(tombstone),
        )?;
        match answer {
            Appended::Committed(_) => {
                if let (true, Some(call)) = (is_there, &mut self.recorders[index].call) {
                    let key = self.primary.key_of(number);
                    call.sent.retain(Replayable::Erase { key, time });
                }
                erasing.done.push((number, time));
            }
            // Another came first: this is the pair now.
            Appended::Conflict(_) => {
                if self.primary.has_lost(number) {
                    return None;
                }
                let stored = self.primary.stored[number].clone();
                let known = |id: &usize| {
                    let read = erasing.levels.iter().flatten().map(|(known, _)| known);
                    read.chain(erasing.done.iter().map(|(known, _)| known)).any(|known| known == id)
                };
                // And whom it names by now goes first.
                let named = |id: &usize| stored.as_ref().is_some_and(|it| it.said.names(*id));
                let asked: Vec<usize> = (0..USERS).filter(|id| named(id) && !known(id)).collect();
                erasing.asked = asked;
                erasing.levels.last_mut()?.push((number, stored));
            }
            Appended::Failed(_) => return None,
        }
        erasing.drop_empty_levels();
        Some(())
    }

    fn append_tombstone(
        &mut self,
        index: usize,
        number: usize,
        stored: Option<&Stored>,
        tombstone: Option<Record>,
    ) -> Option<Appended> {
        if self.primary.has_lost(number) {
            return None;
        }
        let key = self.primary.key_of(number);
        let said = tombstone.clone().map(|record| Rc::new(Said::of(record)));
        let owes = said.iter().filter_map(|said| said.erased);
        let owes = owes.map(|time| Owed::Erased(number, time)).collect();
        let (user_id, business_id) = (String::new(), String::new());
        let record_time = self.primary.clock(true_time(self.time()));
        let update = tombstone.map(|record| Update {
            user_id,
            business_id,
            record,
            history: Vec::new(),
            record_time,
        });
        let change = Change { key, base: version(stored), update };
        let answer = self.append_of_call(index, number, change, said, (Origin::Event, owes))?;
        if self.random.percent(self.wire.page_loss / 2) {
            return None; // The answer is lost.
        }
        Some(answer.ok()?.outcome)
    }

    /// Every id has its tombstone, as far as this recorder knows.
    pub fn erased(&mut self, index: usize) {
        let Some(erasing) = self.recorders[index].erasing.take() else { return };
        let numbers: Vec<usize> = erasing.done.iter().map(|(number, _)| *number).collect();
        if let Some(process) = process_of(index).filter(|_| self.plan.memories) {
            self.forgets(process, &numbers);
        }
        let began = self.recorders[index].began;
        let whole = !self.may_be_taken(index) && erasing.taken == self.taken;
        for (number, time) in &erasing.done {
            let said = self.primary.stored[*number].as_ref().map(|stored| &*stored.said);
            let holds = said.is_some_and(|said| erased_before(said, Some(*time)));
            assert!(holds || !whole, "user {number} is erased, and the ledger knows nothing of it");
            if holds {
                let effect = Effect::Suppression { time: *time, suppressed: true };
                self.acknowledge(*number, effect, began);
            }
        }
        // Whoever was one person with the one given is erased with it, if anything is known of them.
        for number in erasing.person.iter().filter(|_| whole && !erasing.done.is_empty()) {
            let said = self.primary.stored[*number].as_ref().map(|stored| &*stored.said);
            assert!(
                said.is_none_or(|said| said.erased.is_some()),
                "user {number} is linked to one who is erased, and is not"
            );
        }
        self.is_answered(index);
    }

    /// A process gives back an erase.
    pub fn erases_again(&mut self, index: usize, number: usize, time: Timestamp) -> bool {
        let recorder = &mut self.recorders[index];
        recorder.forget_wish();
        recorder.user = number;
        recorder.erasing_again = Some(ErasingAgain { time, later: None });
        true
    }

    /// One try of that: it reads, and leaves the tombstone unless it is there still.
    pub fn erase_again(&mut self, index: usize) {
        let Some(again) = &self.recorders[index].erasing_again else { return };
        let (time, number) = (again.time, self.recorders[index].user);
        if self.is_down() || self.reader().has_lost(number) {
            return;
        }
        let stored = self.reader().stored[number].clone();
        let said = stored.as_ref().map(|stored| &*stored.said);
        let Ok(record) = said.map_or_else(|| Ok(Record::default()), Said::record) else {
            return self.is_refused(index);
        };
        let is_erased = said.is_some_and(|said| erased_before(said, Some(time)));
        let later = later_than(&record.state, time).into_iter().filter(|_| !is_erased);
        let later: Vec<Effect> = later.collect();
        let links = record.links.iter().filter(|link| link.time > time && !is_erased);
        let links: Vec<Link> = links.cloned().collect();
        let tombstone = (!is_erased).then(|| record.tombstone_at(time));
        // The tombstone takes the place of what denied later.
        for effect in later.iter().filter(|effect| is_denial(effect)) {
            self.keeps_denial(index, number, effect);
        }
        let answer = self.append_tombstone(index, number, stored.as_ref(), tombstone);
        if matches!(answer, Some(Appended::Committed(_))) {
            self.recorders[index].erasing_again =
                Some(ErasingAgain { time, later: Some((later, links)) });
            self.goes_on_erasing(index);
        }
    }

    fn goes_on_erasing(&mut self, index: usize) {
        let operation = self.recorders[index].operation;
        let wait = self.random.between(1, 5) * MILLI;
        self.after(wait, Happening::Recorder(index, operation, Step::ErasedAgain));
    }

    fn keeps_denial(&mut self, index: usize, number: usize, effect: &Effect) {
        let denial = denial(effect);
        let (user_id, business_id) = (user(number).to_owned(), BUSINESS.to_owned());
        let (time, what) = (denial.time, denial.what);
        let entry = HistoryEntry { user_id, business_id, time, record_time: time, what };
        if let Some(process) = process_of(index) {
            self.keeps(process, Replayable::Denial(Box::new(entry)));
        }
    }

    /// The tombstone is there: what happened later is recorded again.
    pub fn erased_again(&mut self, index: usize) {
        let Some(again) = self.recorders[index].erasing_again.take() else { return };
        let (time, number) = (again.time, self.recorders[index].user);
        let (later, links) = again.later.unwrap_or_default();
        if later.is_empty() && links.is_empty() {
            let said = self.primary.stored[number].as_ref().map(|stored| &stored.said);
            if said.is_some_and(|said| erased_before(said, Some(time))) {
                self.acknowledge(number, Effect::Suppression { time, suppressed: true }, 0);
            }
            return self.is_answered(index);
        }
        if self.is_down() || self.primary.has_lost(number) {
            return;
        }
        let stored = self.primary.stored[number].clone();
        let Some(stored) = stored.filter(|stored| stored.said.readable) else { return };
        let mut state = stored.said.state.clone();
        for effect in later.iter().filter(|it| !erased_before(&stored.said, Some(time_of(it)))) {
            let _ = state.apply(effect);
        }
        let mut known = stored.said.links.clone();
        let is_new = |link: &&Link| !known.iter().any(|known| known.user_id == link.user_id);
        let new: Vec<Link> = links.iter().filter(is_new).cloned().collect();
        known.extend(new);
        let said = Said::new(state, true).linked(known).erased_at(stored.said.erased);
        let base = version(Some(&stored));
        let answer = self.append(number, base, Some(Rc::new(said)));
        let (later, links) = match answer {
            Some(Ok(written)) if matches!(written.outcome, Appended::Committed(_)) => {
                (Vec::new(), Vec::new())
            }
            Some(Ok(_)) => (later, links),
            // The outcome is unknown. The denials are kept; what allowed must be recorded again by
            // its caller.
            _ => return,
        };
        self.recorders[index].erasing_again =
            Some(ErasingAgain { time, later: Some((later, links)) });
        self.goes_on_erasing(index);
    }
}
