//! Recorders of a ledger in several partitions: each id of a person is in a partition of its own, whose appends
//! fail, conflict or come to nothing known by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use consentd::recorder::linked_ids::{self, PropagationRound, last_revision, places};
use consentd::recorder::linked_read::LinkedRead;
use consentd::recorder::sent_changes::{FollowedPartitions, SentChanges};
use consentd_core::event::What;
use consentd_core::id::Key;
use consentd_core::record::{HistoryEntry, Link, Revision};
use consentd_core::scope::Class;
use consentd_core::state::{Choice, Effect};
use consentd_core::time::Timestamp;
use consentd_ledger::{Appended, Change, Position, Read, Update};

use super::append::{KILLED, Pending, Purpose, record_of};
use super::checks::OF_TEMPLATE;
use super::erase::Erasing;
use super::world::{Happening, World};
use crate::append::version;
use crate::erase::{ErasingAgain, erased_before};
use crate::held::business_of;
use crate::ledger::{Said, Server, Stored, USERS, secret, user};
use crate::lifts::{PLACES, place_of};
use crate::linked::denial;
use crate::oracle::{Violation, is_denial, scope};
use crate::process::{Owed, gives_back, process_of};
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
    /// The other ids are read, and what was read of them is proven.
    ReadOthers,
    Append(Box<Change>),
    /// A part of what is appended reaches its partition.
    Part(usize),
    /// All parts are answered, or are not.
    Appended,
    /// The next round of the propagation.
    Round,
    /// It is on its way through the ids of a person who is to be erased: see [`super::erase`].
    Erase,
    /// Every id has its tombstone.
    Erased,
    /// The tombstone of an erase that is given back is there.
    ErasedAgain,
    Acknowledge,
    TimedOut,
}

impl Step {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Start => "starts",
            Self::Read => "reads",
            Self::ReadOthers => "reads the other ids",
            Self::Append(_) => "appends",
            Self::Part(_) => "reaches a partition",
            Self::Appended => "is answered",
            Self::Round => "goes on to the other ids",
            Self::Erase => "erases on",
            Self::Erased => "is answered that all ids are erased",
            Self::ErasedAgain => "has erased again",
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
    Erase,
    /// What was recorded before is given back.
    Again,
}

#[derive(Default)]
pub struct Recorder {
    pub operation: u64,
    pub user: usize,
    wish: Option<Wish>,
    /// How long ago the caller says that it was.
    ago: Option<i64>,
    pub effects: Vec<Effect>,
    pub link_time: Option<Timestamp>,
    /// The clock that was read first in this try.
    clock: Option<Timestamp>,
    /// Where the change of its own pair was written, on whatever branch.
    pub wrote: Vec<Position>,
    pub began: u64,
    /// Who was acknowledged to be one person with the user when it began.
    pub person: BTreeSet<usize>,
    /// How often something was lost, and somebody erased, by the time of this try.
    taken: (u64, u64),
    /// Whether the record that was read has the event already.
    is_known: bool,
    /// Whether it gives back what was recorded before, as of when that counts.
    is_replay: bool,
    /// Whether it happened before the pair was erased, so that it leaves no trace.
    pub leaves_no_trace: bool,
    /// How many losses its process had noticed when its call began, where that remembers what it writes.
    pub losses: Option<u64>,
    /// What it wrote, on whatever branch, and must not be lost.
    pub owes: Vec<Owed>,
    pub erasing: Option<Erasing>,
    pub erasing_again: Option<ErasingAgain>,
    tries: u64,
    pub sent: SentChanges,
    pub followed: FollowedPartitions,
    pub pending: Pending,
    /// The other ids, where a denial takes its time from them, with what was read of the user and when.
    others: Option<(LinkedRead, Option<Stored>, Timestamp)>,
    round: Option<PropagationRound>,
    pub is_linked: bool,
    pub revision: Revision,
}

impl World {
    pub fn recorder_starts(&mut self, index: usize) {
        self.end_call(index, false);
        let operation = self.recorders[index].operation + 1;
        self.recorders[index] = Recorder { operation, ..Recorder::default() };
        if gives_back(index) {
            return self.gives_next(index);
        }
        let wait = self.random.between(MILLI, 2 * self.plan.write_every);
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
        let is_own = index == OWN || gives_back(index) && process_of(index) == Some(OWN);
        if is_own && self.frozen_until > self.now {
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
            Step::Read if self.recorders[index].erasing_again.is_some() => self.erase_again(index),
            Step::Read => self.recorder_reads(index),
            Step::ReadOthers => self.reads_others(index),
            Step::Append(change) => {
                self.append_all(index, vec![*change], Purpose::Event);
            }
            Step::Part(at) => self.append_part(index, at),
            Step::Appended => self.appended(index),
            Step::Round => self.goes_round(index),
            Step::Erase => self.erase(index),
            Step::Erased | Step::ErasedAgain | Step::Acknowledge if !self.has_followed(index) => {
                self.follows_on(index, step);
            }
            Step::Erased => return self.erased(index),
            Step::ErasedAgain => self.erased_again(index),
            Step::Acknowledge => return self.acknowledges(index),
            Step::TimedOut if self.recorders[index].tries >= MAX_TRIES || gives_back(index) => {
                self.recorder_starts(index);
            }
            Step::TimedOut => self.recorder_tries(index),
        }
        Ok(())
    }

    /// A process gives back what denied, or linked ids.
    pub fn records_again(&mut self, index: usize, entry: &HistoryEntry) -> bool {
        let number_of = |name: &str| (0..USERS).find(|number| user(*number) == name);
        let Some(number) = number_of(&entry.user_id) else { return false };
        let (operation, person) = (self.recorders[index].operation, self.acks.person(number));
        let mut recorder = Recorder { operation, person, ..Recorder::default() };
        (recorder.user, recorder.is_replay) = (number, true);
        if let What::Link { other_user_id, .. } = &entry.what {
            let Some(other) = number_of(other_user_id) else { return false };
            (recorder.wish, recorder.link_time) = (Some(Wish::Link(other)), Some(entry.time));
        } else {
            recorder.wish = Some(Wish::Again);
            recorder.effects = entry.what.effects(entry.time);
        }
        self.recorders[index] = recorder;
        true
    }

    /// A process gives back an erase.
    pub fn erases_again(&mut self, index: usize, number: usize, time: Timestamp) -> bool {
        let operation = self.recorders[index].operation;
        let mut recorder = Recorder { operation, ..Recorder::default() };
        (recorder.user, recorder.is_replay) = (number, true);
        recorder.erasing_again = Some(ErasingAgain { time, later: None });
        self.recorders[index] = recorder;
        true
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
                    // At another business somebody is another person.
                    if business_of(one) == business_of(other) {
                        Wish::Link(other)
                    } else {
                        Wish::Said(Effect::Inbound(time))
                    }
                }
            }
        };
        let erases = self.plan.erases && of != OF_TEMPLATE && random.percent(8);
        let wish = if erases { Wish::Erase } else { wish };
        let ago = random.percent(25).then(|| i64::try_from(random.below(20_000)).unwrap());
        let person = self.acks.person(of);
        let began = self.acks.writes();
        let recorder = &mut self.recorders[index];
        (recorder.user, recorder.wish, recorder.ago) = (of, Some(wish), ago);
        (recorder.person, recorder.began) = (person, began);
    }

    pub fn recorder_tries(&mut self, index: usize) {
        self.begin_call(index);
        let taken = (self.taken, self.erasures);
        let recorder = &mut self.recorders[index];
        recorder.tries += 1;
        recorder.operation += 1;
        (recorder.taken, recorder.clock) = (taken, None);
        recorder.followed = BTreeMap::new();
        (recorder.round, recorder.pending, recorder.others) = (None, Pending::default(), None);
        let is_own = index == OWN || gives_back(index);
        let patience = if is_own { 5_000 } else { 1_500 };
        self.recorder_goes_on(index, patience * MILLI, Step::TimedOut);
        if matches!(self.recorders[index].wish, Some(Wish::Erase)) {
            return self.erase_begins(index);
        }
        let wait = self.soon();
        self.recorder_goes_on(index, wait, Step::Read);
    }

    /// It fails, and its caller comes again, or never.
    pub fn recorder_fails(&mut self, index: usize) {
        let wait = self.random.between(20, 300) * MILLI;
        self.recorders[index].operation += 1;
        self.recorder_goes_on(index, wait, Step::TimedOut);
    }

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

    fn recorder_reads(&mut self, index: usize) {
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
            other.into_iter().for_each(|other| others.add(user(other)));
            recorder.others = Some((others, base, clock));
            return self.recorder_goes_on(index, 0, Step::ReadOthers);
        }
        let latest = base.as_ref().and_then(|base| base.said.state.latest());
        self.recorder_plans(index, base.as_ref(), clock, latest);
    }

    /// A denial without a time is no earlier than anything that is recorded of the person: the next question or append.
    fn reads_others(&mut self, index: usize) {
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
        let business = business_of(recorder.user);
        recorder.round = Some(PropagationRound::new(&secret, business, name, links, denials));
        let wait = self.soon();
        self.recorder_goes_on(index, wait, Step::Round);
    }

    fn is_followed_at(&self, number: usize) -> bool {
        self.partitions[self.place[number]].is_followed
    }

    fn goes_round(&mut self, index: usize) {
        if self.random.percent(KILLED) {
            return self.recorder_fails(index);
        }
        let Some(round) = &mut self.recorders[index].round else { return };
        match round.step() {
            linked_ids::Step::Append(changes) => {
                self.append_all(index, changes, Purpose::Propagation);
            }
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
            pairs.push(record_of(stored.as_ref()));
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

    /// The own followers do not have all of it yet: they are asked to read the log.
    fn follows_on(&mut self, index: usize, step: Step) {
        let recorder = &self.recorders[index];
        let awaited = recorder.sent.awaited(&recorder.followed).into_iter();
        let missing: Vec<u32> =
            awaited.filter(|it| !it.has_arrived()).map(|it| it.partition).collect();
        for partition in missing {
            let at = usize::try_from(partition).unwrap();
            let life = self.partitions[at].life;
            self.after(0, Happening::Brought(at, life, Brought::Wanted));
        }
        self.recorder_goes_on(index, 50 * MILLI, step);
    }

    /// The caller is answered, once the own followers have all that was appended.
    fn acknowledges(&mut self, index: usize) -> Result<(), Violation> {
        self.is_acknowledged(index)?;
        self.is_answered(index);
        Ok(())
    }

    pub fn is_answered(&mut self, index: usize) {
        self.end_call(index, true);
        if gives_back(index) {
            self.settles(index);
        }
        self.recorder_starts(index);
    }

    fn is_acknowledged(&mut self, index: usize) -> Result<(), Violation> {
        let recorder = &mut self.recorders[index];
        let (effects, person) =
            (std::mem::take(&mut recorder.effects), std::mem::take(&mut recorder.person));
        let (number, began, taken) = (recorder.user, recorder.began, recorder.taken);
        let (revision, ago, wish) = (recorder.revision, recorder.ago, recorder.wish.clone());
        let link_time = recorder.link_time;
        if recorder.leaves_no_trace {
            return Ok(());
        }
        let is_whole = taken == (self.taken, self.erasures);
        let is_own = process_of(index) == Some(OWN) && self.is_followed_at(number);
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
        let is_erased = |number: usize| {
            stored[number].as_ref().is_some_and(|stored| erased_before(&stored.said, link_time))
        };
        if !both && (is_erased(number) || is_erased(other)) {
            return Ok(());
        }
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
