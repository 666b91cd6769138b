//! What a recorder of a ledger in several partitions reads, and the change that it makes of it.

use std::time::Duration;

use consentd::recorder::linked_ids;
use consentd::recorder::linked_read::LinkedRead;
use consentd_core::event::What;
use consentd_core::id::Key;
use consentd_core::record::{HistoryEntry, Link};
use consentd_core::state::{Choice, Effect};
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, Update};

use super::append::{Purpose, record_of};
use super::recorder::{Step, Wish};
use super::world::World;
use crate::append::version;
use crate::erase::erased_before;
use crate::held::business_of;
use crate::ledger::{Said, Server, Stored, secret, user};
use crate::linked::denial;
use crate::oracle::is_denial;
use crate::recorder::{counted, time_of};
use crate::sidecar::true_time;

impl World {
    /// The server that answers what is asked of a user. It may be a former owner: the append tells.
    fn reads(&mut self, number: usize) -> Option<&Server> {
        let at = self.place[number];
        if self.random.percent(self.partitions[at].wire.page_loss / 2) {
            return None;
        }
        if self.partitions[at].is_missing {
            return None;
        }
        self.reached(at).map(|(server, _)| server)
    }

    /// What is read of a user, and the clock of the node that answers.
    pub fn read(&mut self, number: usize) -> Option<(Option<Stored>, Timestamp)> {
        let now = true_time(self.time());
        let server = self.reads(number)?;
        Some((server.stored[number].clone(), server.clock(now)))
    }

    pub fn recorder_reads(&mut self, index: usize) {
        let number = self.recorders[index].user;
        let (wrote, now) = (self.recorders[index].wrote.clone(), true_time(self.time()));
        let Some(server) = self.reads(number) else { return self.recorder_fails(index) };
        let (base, clock) = (server.stored[number].clone(), server.clock(now));
        // By its request id the record tells of an event that it has, and when that was.
        let is_known = wrote.iter().any(|position| server.has(*position));
        let recorder = &mut self.recorders[index];
        let clock = *recorder.clock.get_or_insert(clock);
        recorder.is_known = is_known;
        if recorder.ago.is_none() && !is_known && !recorder.is_replay {
            recorder.effects.clear();
            recorder.link_time = None;
        }
        let is_untimed = matches!(recorder.wish, Some(Wish::Denied(_)))
            && recorder.ago.is_none()
            && recorder.effects.is_empty();
        let has_links = base.as_ref().is_some_and(|base| !base.said.links.is_empty());
        let names = |other: usize| base.as_ref().is_some_and(|base| base.said.names(other));
        let other = match recorder.wish {
            Some(Wish::Link(other)) if recorder.link_time.is_none() => Some(other),
            _ => None,
        };
        if is_untimed && has_links || other.is_some_and(|other| !names(other)) {
            let primary = &self.partitions[0].primary;
            let pair = (user(number), business_of(number));
            let own = (primary.key_of(number), record_of(base.as_ref()).unwrap());
            let mut others = LinkedRead::new(&secret(primary.secret), pair, own, true);
            if let Some(other) = other {
                others.add(user(other));
            }
            recorder.others = Some((others, base, clock));
            return self.recorder_goes_on(index, 0, Step::ReadOthers);
        }
        let latest = base.as_ref().and_then(|base| base.said.state.latest());
        self.recorder_plans(index, base.as_ref(), clock, latest);
    }

    /// A denial without a time is no earlier than anything that is recorded of the person: the next question or append.
    pub fn reads_others(&mut self, index: usize) {
        let Some((mut others, base, clock)) = self.recorders[index].others.take() else { return };
        match others.step() {
            linked_ids::Step::Read(keys) => {
                let Some(read) = self.read_all(&keys) else { return self.recorder_fails(index) };
                others.read(&keys, read).unwrap();
                self.recorders[index].others = Some((others, base, clock));
                let wait = self.soon();
                self.recorder_goes_on(index, wait, Step::ReadOthers);
            }
            linked_ids::Step::Append(changes) if changes.is_empty() => {
                self.recorder_plans(index, base.as_ref(), clock, others.latest());
            }
            linked_ids::Step::Append(changes) => {
                self.recorders[index].others = Some((others, base, clock));
                self.append_all(index, changes, Purpose::Proof);
            }
        }
    }

    /// What was read of the other ids is what is recorded, or it is read again.
    pub fn is_proven(&mut self, index: usize, changes: &[Change], outcomes: Vec<Appended>) {
        let keys: Vec<Key> = changes.iter().map(|change| change.key).collect();
        let Some((mut others, base, clock)) = self.recorders[index].others.take() else { return };
        match others.appended(&keys, outcomes) {
            Ok(true) => self.recorder_plans(index, base.as_ref(), clock, others.latest()),
            Ok(false) => {
                self.recorders[index].others = Some((others, base, clock));
                let wait = self.soon();
                self.recorder_goes_on(index, wait, Step::ReadOthers);
            }
            Err(_) => self.recorder_fails(index),
        }
    }

    fn recorder_plans(
        &mut self,
        index: usize,
        base: Option<&Stored>,
        clock: Timestamp,
        latest: Option<Timestamp>,
    ) {
        let recorder = &mut self.recorders[index];
        let Some(wish) = recorder.wish.clone() else { return };
        if recorder.effects.is_empty() && recorder.link_time.is_none() {
            let said =
                recorder.ago.map(|ago| Timestamp::saturating_from_millis(clock.as_millis() - ago));
            let denied = said.unwrap_or_else(|| latest.map_or(clock, |at| at.max(clock)));
            let time = said.unwrap_or(clock);
            match wish {
                Wish::Said(effect) => recorder.effects = vec![as_of(effect, time)],
                Wish::Denied(effect) => recorder.effects = vec![as_of(effect, denied)],
                // No id takes links from before it was erased.
                Wish::Link(_) => {
                    let next = latest.map(|latest| latest.plus(Duration::from_millis(1)));
                    recorder.link_time = Some(next.map_or(clock, |next| next.max(clock)));
                }
                Wish::Erase | Wish::Again => {}
                Wish::Category(category, lifts) => {
                    let lift = Some(if lifts { time } else { Timestamp::MIN });
                    let reference = String::new();
                    let what = What::TemplateCategory { category, lift, reference };
                    recorder.effects = what.effects(denied);
                }
            }
        }
        // What was said before the pair was erased leaves no trace; nor does a repeat.
        let time = recorder.effects.first().map(time_of).or(recorder.link_time);
        let is_said_before = recorder.is_known || recorder.is_replay || recorder.ago.is_some();
        recorder.leaves_no_trace =
            is_said_before && base.is_some_and(|base| erased_before(&base.said, time));
        let Some(change) = self.planned(index, base, clock) else {
            return self.recorder_starts(index);
        };
        let wait = self.soon();
        self.recorder_goes_on(index, wait, Step::Append(Box::new(change)));
    }

    /// The change of the user's own pair.
    fn planned(&mut self, index: usize, base: Option<&Stored>, clock: Timestamp) -> Option<Change> {
        let recorder = &mut self.recorders[index];
        let number = recorder.user;
        let mut state = base.map(|base| base.said.state.clone()).unwrap_or_default();
        let mut history = Vec::new();
        let entry = |time, what| HistoryEntry {
            user_id: user(number).to_owned(),
            business_id: business_of(number).to_owned(),
            time,
            record_time: clock,
            what,
        };
        for effect in recorder.effects.iter().filter(|_| !recorder.leaves_no_trace) {
            let effect = counted(&state, effect);
            state.apply(&effect).ok()?;
            if is_denial(&effect) {
                let denial = denial(&effect);
                history.push(entry(denial.time, denial.what));
            }
        }
        state.forget_clamped();
        let mut links = base.map(|base| base.said.links.clone()).unwrap_or_default();
        if let (Some(Wish::Link(other)), Some(time)) = (&recorder.wish, recorder.link_time)
            && !recorder.leaves_no_trace
            && !links.iter().any(|link| link.user_id == user(*other))
        {
            links.push(Link { user_id: user(*other).to_owned(), time, moved: false });
            let other_user_id = user(*other).to_owned();
            history.push(entry(time, What::Link { other_user_id, moved: false }));
        }
        recorder.is_linked = !links.is_empty();
        let known = base.map(|base| (&base.said.state, &base.said.links));
        let is_same = known == Some((&state, &links));
        let erased = base.and_then(|base| base.said.erased);
        let record = Said::new(state, true).linked(links).erased_at(erased).record().unwrap();
        let (user_id, business_id) = (user(number).to_owned(), business_of(number).to_owned());
        let update = Update { user_id, business_id, record, history, record_time: clock };
        let key = self.partitions[0].primary.key_of(number);
        Some(Change { key, base: version(base), update: (!is_same).then_some(update) })
    }
}

/// The same, at that time.
fn as_of(effect: Effect, at: Timestamp) -> Effect {
    match effect {
        Effect::Choice(scope, word) if word.is_opt_out() => {
            Effect::Choice(scope, Choice::opt_out(at))
        }
        Effect::Choice(scope, _) => Effect::Choice(scope, Choice::opt_in(at, None)),
        Effect::Inbound(_) => Effect::Inbound(at),
        Effect::Platform { stopped, number, .. } => Effect::Platform { time: at, stopped, number },
        Effect::Suppression { suppressed, .. } => Effect::Suppression { time: at, suppressed },
        other => panic!("{other:?} at {:?}", time_of(&other)),
    }
}
