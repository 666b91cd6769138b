//! Recorders of a ledger in several partitions: each id of a person is in a partition of its own, whose appends
//! fail, conflict or come to nothing known by themselves.

use std::collections::{BTreeMap, BTreeSet};

use consentd::recorder::linked_ids::{self, PropagationRound, last_revision, places};
use consentd::recorder::sent_changes::{FollowedPartitions, SentChanges};
use consentd_core::event::What;
use consentd_core::id::Key;
use consentd_core::record::{HistoryEntry, Link, Revision};
use consentd_core::scope::Class;
use consentd_core::state::{Choice, Effect, State};
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, Read, StoredRecord, Update};

use super::append::{KILLED, Pending};
use super::checks::OF_TEMPLATE;
use super::world::{Happening, World};
use crate::append::version;
use crate::ledger::{BUSINESS, Said, Stored, USERS, secret, user};
use crate::lifts::{PLACES, place_of};
use crate::linked::denial;
use crate::oracle::{Violation, is_denial, scope};
use crate::recorder::{counted, time_of};
use crate::sidecar::{Brought, true_time};
use crate::world::MILLI;

pub const WRITERS: usize = 3;
/// The recorder of the sidecar's own process, which waits for that sidecar's followers.
pub const OWN: usize = 0;
const MAX_TRIES: u64 = 6;
/// Who may be linked to whom.
const PEOPLE: [(usize, usize); 4] = [(0, 1), (1, 2), (2, 3), (3, 4)];

const OUT: [&str; 5] = ["*", "marketing", "marketing.news", "utility", "utility.orders"];
const IN: [&str; 5] = ["marketing", "marketing.news", "utility", "utility.orders", "service"];

/// What a recorder is at.
pub enum Step {
    Start,
    Read,
    Append(Box<Change>),
    /// A part of what is appended reaches its partition.
    Part(usize),
    /// All parts are answered, or are not.
    Appended,
    /// The next round of the propagation.
    Round,
    Acknowledge,
    TimedOut,
}

impl Step {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start => "starts",
            Self::Read => "reads",
            Self::Append(_) => "appends",
            Self::Part(_) => "reaches a partition",
            Self::Appended => "is answered",
            Self::Round => "goes on to the other ids",
            Self::Acknowledge => "acknowledges",
            Self::TimedOut => "waits no longer",
        }
    }
}

#[derive(Clone)]
enum Wish {
    Said(Effect),
    Denied(Effect),
    Link(usize),
    Category(Class, bool),
}

#[derive(Default)]
pub struct Recorder {
    pub operation: u64,
    user: usize,
    wish: Option<Wish>,
    /// How long ago the caller says that it was.
    ago: Option<i64>,
    pub effects: Vec<Effect>,
    pub link_time: Option<Timestamp>,
    began: u64,
    /// Who was acknowledged to be one person with the user when it began.
    person: BTreeSet<usize>,
    /// How often something was lost by the time of this try.
    taken: u64,
    tries: u64,
    pub sent: SentChanges,
    pub followed: FollowedPartitions,
    pub pending: Pending,
    round: Option<PropagationRound>,
    pub is_linked: bool,
    pub revision: Revision,
}

impl World {
    pub fn recorder_starts(&mut self, index: usize) {
        let wait = self.random.between(MILLI, 2 * self.plan.write_every);
        let operation = self.recorders[index].operation + 1;
        self.recorders[index] = Recorder { operation, ..Recorder::default() };
        self.recorder_goes_on(index, wait, Step::Start);
    }

    pub fn recorder_goes_on(&mut self, index: usize, wait: u64, step: Step) {
        let operation = self.recorders[index].operation;
        self.after(wait, Happening::Recorder(index, operation, step));
    }

    pub fn soon(&mut self) -> u64 {
        self.random.between(1, 15) * MILLI
    }

    pub fn recorder(&mut self, index: usize, step: Step) -> Result<(), Violation> {
        if index == OWN && self.frozen_until > self.now {
            let wait = self.frozen_until - self.now;
            self.recorder_goes_on(index, wait, step);
            return Ok(());
        }
        match step {
            Step::Start if !self.writing => self.recorder_starts(index),
            Step::Start => {
                self.wishes(index);
                self.recorder_tries(index);
            }
            Step::Read => self.recorder_reads(index),
            Step::Append(change) => {
                self.append_all(index, vec![*change], false);
            }
            Step::Part(at) => self.append_part(index, at),
            Step::Appended => self.appended(index),
            Step::Round => self.goes_round(index),
            Step::Acknowledge => return self.acknowledges(index),
            Step::TimedOut if self.recorders[index].tries >= MAX_TRIES => {
                self.recorder_starts(index);
            }
            Step::TimedOut => self.recorder_tries(index),
        }
        Ok(())
    }

    fn wishes(&mut self, index: usize) {
        let time = Timestamp::from_millis(1).unwrap();
        let random = &mut self.random;
        let mut of = random.index(USERS);
        let wish = if of == OF_TEMPLATE {
            let class = random.pick(&[Class::Marketing, Class::Utility, Class::Authentication]);
            Wish::Category(class, random.percent(50))
        } else {
            match random.below(100) {
                0..32 => {
                    let on = random.pick(&OUT);
                    Wish::Denied(Effect::Choice(scope(on), Choice::opt_out(time)))
                }
                32..62 => {
                    let on = random.pick(&IN);
                    Wish::Said(Effect::Choice(scope(on), Choice::opt_in(time, None)))
                }
                62..67 => Wish::Said(Effect::Inbound(time)),
                roll @ 67..76 => {
                    let stopped = random.percent(50);
                    let number = place_of(PLACES[usize::from(roll % 2 == 1)]);
                    let effect = Effect::Platform { time, stopped, number };
                    if stopped { Wish::Denied(effect) } else { Wish::Said(effect) }
                }
                76..84 => {
                    let suppressed = random.percent(40);
                    let effect = Effect::Suppression { time, suppressed };
                    if suppressed { Wish::Denied(effect) } else { Wish::Said(effect) }
                }
                _ => {
                    let (one, other) = random.pick(&PEOPLE);
                    let (one, other) = if random.percent(50) { (one, other) } else { (other, one) };
                    of = one;
                    Wish::Link(other)
                }
            }
        };
        let ago = random.percent(25).then(|| i64::try_from(random.below(20_000)).unwrap());
        let person = self.acks.person(of);
        let began = self.acks.writes();
        let recorder = &mut self.recorders[index];
        (recorder.user, recorder.wish, recorder.ago) = (of, Some(wish), ago);
        (recorder.person, recorder.began) = (person, began);
    }

    fn recorder_tries(&mut self, index: usize) {
        let taken = self.taken;
        let recorder = &mut self.recorders[index];
        recorder.tries += 1;
        recorder.operation += 1;
        recorder.taken = taken;
        (recorder.sent, recorder.followed) = (SentChanges::new(false), BTreeMap::new());
        (recorder.round, recorder.pending) = (None, Pending::default());
        let patience = if index == OWN { 5_000 } else { 1_500 };
        self.recorder_goes_on(index, patience * MILLI, Step::TimedOut);
        let wait = self.soon();
        self.recorder_goes_on(index, wait, Step::Read);
    }

    /// It fails, and its caller comes again, or never.
    pub fn recorder_fails(&mut self, index: usize) {
        let wait = self.random.between(20, 300) * MILLI;
        self.recorders[index].operation += 1;
        self.recorder_goes_on(index, wait, Step::TimedOut);
    }

    /// What is read of a user, and the clock of the node that answers. A former owner may be asked: the append tells.
    fn read(&mut self, number: usize) -> Option<(Option<Stored>, Timestamp)> {
        let at = self.place[number];
        let now = true_time(self.time());
        if self.random.percent(self.partitions[at].wire.page_loss / 2) {
            return None;
        }
        if self.partitions[at].is_missing {
            return None;
        }
        let (server, _) = self.reached(at)?;
        Some((server.stored[number].clone(), server.clock(now)))
    }

    /// The latest of all that is recorded of a person's other ids; nothing if one cannot be read.
    fn latest_of_others(&mut self, base: Option<&Stored>) -> Option<Timestamp> {
        let named = |stored: Option<&Stored>| -> Vec<usize> {
            let Some(stored) = stored else { return Vec::new() };
            (0..USERS).filter(|number| stored.said.names(*number)).collect()
        };
        let (mut unread, mut known) = (named(base), BTreeSet::new());
        let mut latest = Timestamp::MIN;
        while let Some(number) = unread.pop() {
            if known.insert(number) {
                let (stored, _) = self.read(number)?;
                let state = stored.as_ref().map(|stored| &stored.said.state);
                latest = latest.max(state.and_then(State::latest).unwrap_or(latest));
                unread.extend(named(stored.as_ref()));
            }
        }
        Some(latest)
    }

    fn recorder_reads(&mut self, index: usize) {
        let number = self.recorders[index].user;
        let Some((base, clock)) = self.read(number) else { return self.recorder_fails(index) };
        let recorder = &self.recorders[index];
        let Some(wish) = recorder.wish.clone() else { return };
        let mut latest = base.as_ref().and_then(|base| base.said.state.latest());
        if matches!(wish, Wish::Denied(_)) && recorder.ago.is_none() && recorder.effects.is_empty()
        {
            let Some(others) = self.latest_of_others(base.as_ref()) else {
                return self.recorder_fails(index);
            };
            latest = latest.max(Some(others));
        }
        let recorder = &mut self.recorders[index];
        if recorder.effects.is_empty() && recorder.link_time.is_none() {
            let said =
                recorder.ago.map(|ago| Timestamp::saturating_from_millis(clock.as_millis() - ago));
            let denied = said.unwrap_or_else(|| latest.map_or(clock, |at| at.max(clock)));
            let time = said.unwrap_or(clock);
            match wish {
                Wish::Said(effect) => recorder.effects = vec![as_of(effect, time)],
                Wish::Denied(effect) => recorder.effects = vec![as_of(effect, denied)],
                Wish::Link(_) => recorder.link_time = Some(clock),
                Wish::Category(category, lifts) => {
                    let lift = Some(if lifts { time } else { Timestamp::MIN });
                    let reference = String::new();
                    let what = What::TemplateCategory { category, lift, reference };
                    recorder.effects = what.effects(denied);
                }
            }
        }
        let Some(change) = self.planned(index, base.as_ref(), clock) else {
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
            business_id: BUSINESS.to_owned(),
            time,
            record_time: clock,
            what,
        };
        for effect in &recorder.effects {
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
            && !links.iter().any(|link| link.user_id == user(*other))
        {
            links.push(Link { user_id: user(*other).to_owned(), time, moved: false });
            let other_user_id = user(*other).to_owned();
            history.push(entry(time, What::Link { other_user_id, moved: false }));
        }
        recorder.is_linked = !links.is_empty();
        let known = base.map(|base| (&base.said.state, &base.said.links));
        let is_same = known == Some((&state, &links));
        let record = Said::new(state, true).linked(links).record().unwrap();
        let (user_id, business_id) = (user(number).to_owned(), BUSINESS.to_owned());
        let update = Update { user_id, business_id, record, history, record_time: clock };
        let key = self.partitions[0].primary.key_of(number);
        Some(Change { key, base: version(base), update: (!is_same).then_some(update) })
    }

    /// The recorder's own change is durable: what it says goes to the person's other ids.
    pub fn propagate(&mut self, index: usize) {
        let secret = secret(self.partitions[0].primary.secret);
        let recorder = &mut self.recorders[index];
        let link = match (&recorder.wish, recorder.link_time) {
            (Some(Wish::Link(other)), Some(time)) => {
                Some(Link { user_id: user(*other).to_owned(), time, moved: false })
            }
            _ => None,
        };
        let denials = recorder.effects.iter().filter(|it| is_denial(it)).map(denial).collect();
        let links = link.into_iter().collect();
        let name = user(recorder.user);
        recorder.round = Some(PropagationRound::new(&secret, BUSINESS, name, links, denials));
        let wait = self.soon();
        self.recorder_goes_on(index, wait, Step::Round);
    }

    fn goes_round(&mut self, index: usize) {
        if self.random.percent(KILLED) {
            return self.recorder_fails(index);
        }
        let Some(round) = &mut self.recorders[index].round else { return };
        match round.step() {
            linked_ids::Step::Append(changes) => self.append_all(index, changes, true),
            linked_ids::Step::Read(keys) => {
                let Some(read) = self.read_all(&keys) else { return self.recorder_fails(index) };
                let round = self.recorders[index].round.as_mut().unwrap();
                round.read(&keys, read).unwrap();
                let wait = self.soon();
                self.recorder_goes_on(index, wait, Step::Round);
            }
        }
    }

    fn read_all(&mut self, keys: &[Key]) -> Option<Read> {
        let (mut latest, mut pairs) = (Timestamp::MIN, Vec::new());
        for key in keys {
            let number = self.partitions[0].primary.number_of(*key)?;
            let (stored, clock) = self.read(number)?;
            latest = latest.max(clock);
            let record = stored.as_ref().map(|stored| stored.said.record());
            let record = record.unwrap_or_else(|| Ok(consentd_core::record::Record::default()));
            let version = version(stored.as_ref());
            pairs.push(record.map(|record| StoredRecord { version, record }));
        }
        Some(Read { clock: latest, pairs })
    }

    pub fn propagated(&mut self, index: usize, changes: &[Change], outcomes: &[Appended]) {
        let layout = self.layout;
        let wait = self.soon();
        let recorder = &mut self.recorders[index];
        let Some(round) = &mut recorder.round else { return };
        let proven = match round.appended(outcomes) {
            Ok(proven) => proven.is_some(),
            Err(_) => return self.recorder_fails(index),
        };
        if !proven {
            return self.recorder_goes_on(index, wait, Step::Round);
        }
        let own = changes.first().map(|change| change.key);
        let here = own.map(|own| places(changes, layout, own)).unwrap_or_default();
        let revision = last_revision(outcomes, &here).unwrap_or_default();
        recorder.revision = recorder.revision.max(revision);
        self.recorder_goes_on(index, wait, Step::Acknowledge);
    }

    /// The caller is answered, once the own followers have all that was appended.
    fn acknowledges(&mut self, index: usize) -> Result<(), Violation> {
        let recorder = &self.recorders[index];
        let awaited = recorder.sent.awaited(&recorder.followed);
        let missing: Vec<u32> =
            awaited.iter().filter(|it| !it.has_arrived()).map(|it| it.partition).collect();
        if !missing.is_empty() {
            let life = self.life;
            for partition in missing {
                let at = usize::try_from(partition).unwrap();
                self.after(0, Happening::Brought(at, life, Brought::Wanted));
            }
            self.recorder_goes_on(index, 50 * MILLI, Step::Acknowledge);
            return Ok(());
        }
        self.is_acknowledged(index)?;
        self.recorder_starts(index);
        Ok(())
    }

    fn is_acknowledged(&mut self, index: usize) -> Result<(), Violation> {
        let recorder = std::mem::take(&mut self.recorders[index]);
        let Recorder { operation, user: number, effects, began, .. } = recorder;
        let Recorder { person, taken, revision, ago, wish, .. } = recorder;
        self.recorders[index].operation = operation;
        let (is_whole, is_own) = (taken == self.taken, index == OWN);
        let place = self.place;
        let stored: Vec<Option<Stored>> =
            (0..USERS).map(|it| self.partitions[place[it]].primary.stored[it].clone()).collect();
        let has = |id: usize, effect: &Effect| {
            let state = stored[id].as_ref().map(|stored| stored.said.state.clone());
            state.unwrap_or_default().apply(effect) == Ok(false)
        };
        for effect in effects.into_iter().filter(is_denial) {
            for id in self.acks.person(number) {
                if is_whole && (id == number || person.contains(&id)) && !has(id, &effect) {
                    let why = format!("{effect:?} of {number} is acknowledged, and {id} lacks it");
                    return Err(Violation::new(3, why));
                }
                // An id that was linked meanwhile has a copy of what still denied by then.
                let told = person.contains(&id) || self.acks.stands(number, &effect, began);
                if told && (is_whole || has(id, &effect)) {
                    self.acknowledge(id, effect.clone(), began, is_own);
                    let is_untimed = ago.is_none() && matches!(wish, Some(Wish::Denied(_)));
                    if is_untimed && is_whole && person.contains(&id) {
                        self.acknowledge_strong(id, effect.clone(), began, is_own);
                    }
                }
            }
            if is_whole && number != OF_TEMPLATE {
                self.tell(number, effect, began, revision)?;
            }
        }
        let Some(Wish::Link(other)) = wish else { return Ok(()) };
        let names = |one: usize, other: usize| {
            stored[one].as_ref().is_some_and(|stored| stored.said.names(other))
        };
        let both = names(number, other) && names(other, number);
        if !both {
            let why = format!("users {number} and {other} are linked, and do not know it");
            return if is_whole { Err(Violation::new(3, why)) } else { Ok(()) };
        }
        self.acks.linked.insert((number, other));
        let person = self.acks.person(number);
        let denied: Vec<(Effect, u64)> = person.iter().flat_map(|id| self.acks.of(*id)).collect();
        for id in person {
            for (effect, began) in &denied {
                if is_whole || has(id, effect) {
                    self.acknowledge(id, effect.clone(), *began, is_own);
                }
            }
        }
        Ok(())
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
