//! Recorders: they read, apply the real rules for states, and append by compare-and-set.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use consentd::recorder::sent_changes::Origin;
use consentd_core::event::What;
use consentd_core::record::{HistoryEntry, Link};
use consentd_core::state::{Choice, Effect, Pending, State};
use consentd_core::time::Timestamp;
use consentd_ledger::{AppendReceipt, Appended, Change, Update};

use crate::append::version;
use crate::erase::{Erasing, ErasingAgain, erased_before};
use crate::ledger::{BUSINESS, Said, Server, Stored, USERS, user};
use crate::lifts::{PLACES, place_of};
use crate::linked::{PEOPLE, Walking, denial};
use crate::oracle::{is_denial, scope};
use crate::process::{Call, OWN, Owed, gives_back, patience, process_of};
use crate::random::Random;
use crate::sidecar::{Brought, true_time};
use crate::world::{Happening, MILLI, World};

/// How often an event is tried again before its caller gives up.
const MAX_TRIES: u64 = 6;

/// What a recorder is at.
pub enum Step {
    Start,
    Read,
    Append(Option<Stored>, Rc<Said>),
    Appended,
    /// It is on its way through the ids of a person: see [`crate::linked`].
    PropagationRound,
    Walked,
    /// It is on its way through the ids of a person who is to be erased: see [`crate::erase`].
    Erase,
    Erased,
    /// The tombstone of an erase that is given back is there.
    ErasedAgain,
    TimedOut,
}

/// What a caller wants recorded.
#[derive(Clone)]
enum Wish {
    OptOut(&'static str),
    OptIn(&'static str),
    Pending(&'static str),
    Inbound,
    /// Whether marketing is stopped, and at which of [`PLACES`].
    Platform(bool, usize),
    Suppression(bool),
    Capped,
    /// The other one is the same person.
    Link(usize),
    Erase,
    /// What was recorded before is given back.
    Again,
}

#[derive(Default)]
pub struct Recorder {
    pub operation: u64,
    pub user: usize,
    wish: Option<Wish>,
    /// How long ago the caller says that it was, where it does; less than nothing where its clock
    /// is ahead.
    ago: Option<i64>,
    /// What it came to be by the first answer of the ledger: a retry says the same.
    pub effect: Option<Effect>,
    /// Whether that allows, and was clamped to the ledger's clock.
    clamped: bool,
    /// How many records were written when it began: what comes of them it came after.
    pub began: u64,
    tries: u64,
    /// What it appended last.
    said: Option<Rc<Said>>,
    pub walking: Option<Walking>,
    /// Who was one person with the user, and how often something was lost, when it last tried.
    pub person: BTreeSet<usize>,
    pub losses: u64,
    /// What a denial counts as, over the record that it was last applied to.
    counted: Option<Effect>,
    /// Whether it happened before the pair was erased, so that it leaves no trace.
    leaves_no_trace: bool,
    /// When it was said that the other one is the same person.
    pub link_time: Option<Timestamp>,
    pub call: Option<Call>,
    pub erasing: Option<Erasing>,
    pub erasing_again: Option<ErasingAgain>,
}

const OUT: [&str; 5] = ["*", "marketing", "marketing.news", "utility", "utility.orders"];
const IN: [&str; 5] = ["marketing", "marketing.news", "utility", "utility.orders", "service"];

fn wish(random: &mut Random) -> Wish {
    match random.below(100) {
        0..32 => Wish::OptOut(random.pick(&OUT)),
        32..62 => Wish::OptIn(random.pick(&IN)),
        62..67 => Wish::Pending(random.pick(&IN)),
        67..77 => Wish::Inbound,
        roll @ 77..86 => Wish::Platform(random.percent(50), usize::from(roll % 2 == 1)),
        86..95 => Wish::Suppression(random.percent(40)),
        _ => Wish::Capped,
    }
}

impl Wish {
    /// The effect: a denial that has no time of its own is no earlier than what is known, and one
    /// that has keeps it; what allows is clamped to the ledger's clock.
    fn effect(&self, state: &State, clock: Timestamp, ago: Option<i64>) -> Option<Effect> {
        let said = ago.map(|ago| Timestamp::saturating_from_millis(clock.as_millis() - ago));
        let denied = said.unwrap_or_else(|| state.latest().map_or(clock, |at| at.max(clock)));
        let time = said.unwrap_or(clock).min(clock);
        Some(match *self {
            Self::OptOut(on) => Effect::Choice(scope(on), Choice::opt_out(denied)),
            Self::OptIn(on) => Effect::Choice(scope(on), Choice::opt_in(time, None)),
            Self::Pending(on) => Effect::Pending(scope(on), Pending::new(time, None)),
            Self::Inbound => Effect::Inbound(time),
            Self::Platform(stopped, place) => {
                let time = if stopped { denied } else { time };
                Effect::Platform { time, stopped, number: place_of(PLACES[place]) }
            }
            Self::Suppression(suppressed) => {
                Effect::Suppression { time: if suppressed { denied } else { time }, suppressed }
            }
            Self::Capped => Effect::Capped(time),
            Self::Link(_) | Self::Erase | Self::Again => return None,
        })
    }
}

/// When something happened.
pub fn time_of(effect: &Effect) -> Timestamp {
    match effect {
        Effect::Choice(_, word) => word.time,
        Effect::Pending(_, pending) => pending.time,
        Effect::Inbound(time)
        | Effect::WindowClosed(time)
        | Effect::Capped(time)
        | Effect::Failure { time, .. }
        | Effect::Platform { time, .. }
        | Effect::Suppression { time, .. } => *time,
    }
}

/// The time of what allows.
fn clamped_at(effect: &Effect) -> Option<Timestamp> {
    match effect {
        Effect::Choice(_, word) => (!word.is_opt_out()).then_some(word.time),
        Effect::Pending(_, pending) => Some(pending.time),
        Effect::Inbound(time)
        | Effect::Platform { time, stopped: false, .. }
        | Effect::Suppression { time, suppressed: false } => Some(*time),
        _ => None,
    }
}

/// An effect as of when it counts over this state.
pub fn counted(state: &State, effect: &Effect) -> Effect {
    match effect {
        Effect::Choice(scope, word) if word.is_opt_out() => {
            let time = state.counts_as_of(effect, word.time);
            Effect::Choice(scope.clone(), Choice::opt_out(time))
        }
        Effect::Platform { time, stopped: true, number } => {
            let (time, number) = (state.counts_as_of(effect, *time), number.clone());
            Effect::Platform { time, stopped: true, number }
        }
        Effect::Suppression { time, suppressed: true } => {
            Effect::Suppression { time: state.counts_as_of(effect, *time), suppressed: true }
        }
        other => other.clone(),
    }
}

impl Recorder {
    /// What it was to record is done with.
    pub fn forget_wish(&mut self) {
        (self.wish, self.effect, self.ago, self.link_time) = (None, None, None, None);
        (self.clamped, self.tries, self.began) = (false, MAX_TRIES, 0);
        (self.counted, self.leaves_no_trace) = (None, false);
        (self.erasing, self.erasing_again) = (None, None);
    }

    /// The user that it links its own to.
    fn link(&self) -> Option<usize> {
        match self.wish {
            Some(Wish::Link(other)) => Some(other),
            _ => None,
        }
    }
}

impl World {
    pub fn recorder_starts(&mut self, index: usize) {
        self.end_call(index, false);
        if gives_back(index) {
            self.recorders[index].forget_wish();
            self.recorders[index].operation += 1;
            return self.gives_next(index);
        }
        let most = 2 * self.plan.write_every;
        let wait = self.random.between(MILLI, most);
        self.recorders[index].operation += 1;
        let operation = self.recorders[index].operation;
        self.after(wait, Happening::Recorder(index, operation, Step::Start));
    }

    pub fn recorder(&mut self, index: usize, operation: u64, step: Step) {
        if self.recorders[index].operation != operation {
            return;
        }
        if self.plan.memories && process_of(index) == Some(OWN) && self.frozen_until > self.now {
            // Its process is suspended.
            let wait = self.frozen_until - self.now;
            return self.after(wait, Happening::Recorder(index, operation, step));
        }
        match step {
            Step::Start if !self.writing => self.recorder_starts(index),
            Step::Start => {
                let recorder = &mut self.recorders[index];
                recorder.user = self.random.index(USERS);
                recorder.wish = Some(wish(&mut self.random));
                if self.plan.people && self.random.percent(15) {
                    let (one, other) = self.random.pick(&PEOPLE);
                    let (one, other) =
                        if self.random.percent(50) { (one, other) } else { (other, one) };
                    (recorder.user, recorder.wish) = (one, Some(Wish::Link(other)));
                }
                if self.plan.erases && self.random.percent(8) {
                    self.recorders[index].wish = Some(Wish::Erase);
                }
                let timed = self.random.percent(30);
                let ahead = timed && self.random.percent(40);
                let off = i64::try_from(self.random.below(20_000)).unwrap();
                let recorder = &mut self.recorders[index];
                recorder.ago = timed.then_some(if ahead { -off } else { off });
                recorder.effect = None;
                recorder.link_time = None;
                recorder.clamped = false;
                recorder.tries = 0;
                recorder.began = self.acks.writes();
                self.recorder_tries(index);
            }
            Step::Read if self.recorders[index].erasing_again.is_some() => {
                self.erase_again(index);
            }
            Step::Read => self.recorder_reads(index),
            Step::Append(base, said) => self.recorder_appends(index, base.as_ref(), said),
            Step::Appended => {
                let recorder = &self.recorders[index];
                let linked = recorder.said.as_ref().is_some_and(|said| !said.links.is_empty());
                let denies = recorder.effect.as_ref().is_some_and(is_denial);
                let spreads = denies || recorder.link().is_some();
                if linked && spreads && !recorder.leaves_no_trace {
                    let link = recorder.link();
                    return self.walk_begins(index, link);
                }
                if !self.is_followed(index) {
                    return self.follows_on(index, Step::Appended);
                }
                self.appended(index);
            }
            Step::PropagationRound => self.walk(index),
            Step::Walked if !self.is_followed(index) => self.follows_on(index, Step::Walked),
            Step::Erase => self.erase(index),
            Step::Erased if !self.is_followed(index) => self.follows_on(index, Step::Erased),
            Step::Erased => self.erased(index),
            Step::ErasedAgain if !self.is_followed(index) => {
                self.follows_on(index, Step::ErasedAgain);
            }
            Step::ErasedAgain => self.erased_again(index),
            Step::Walked => {
                let link = self.recorders[index].link();
                self.walked(index, link);
                self.is_answered(index);
            }
            Step::TimedOut if self.recorders[index].tries >= MAX_TRIES || gives_back(index) => {
                self.recorder_starts(index);
            }
            Step::TimedOut => self.recorder_tries(index),
        }
    }

    /// Its own follower does not have all of it yet.
    fn follows_on(&mut self, index: usize, step: Step) {
        let operation = self.recorders[index].operation;
        if process_of(index) == Some(OWN) {
            // It is asked to read the log.
            self.after(0, Happening::Brought(self.life, Brought::Wanted));
        }
        self.after(50 * MILLI, Happening::Recorder(index, operation, step));
    }

    /// What was said under one id alone is acknowledged.
    fn appended(&mut self, index: usize) {
        let recorder = &self.recorders[index];
        let (number, effect) = (recorder.user, recorder.effect.clone());
        let effect = effect.filter(|effect| is_denial(effect) && !recorder.leaves_no_trace);
        // What a failover took on the way here is lost, as if it had been taken later.
        let may_be_taken = self.may_be_taken(index);
        let state = self.primary.stored[number].as_ref();
        let state = state.map(|stored| stored.said.state.clone()).unwrap_or_default();
        let is_there = |effect: &Effect| state.clone().apply(effect) == Ok(false);
        if let Some(effect) = effect.filter(|it| !may_be_taken || is_there(it)) {
            let began = self.recorders[index].began;
            self.acknowledge(number, effect, began);
        }
        self.is_answered(index);
    }

    /// The caller is answered that it is recorded.
    pub fn is_answered(&mut self, index: usize) {
        self.end_call(index, true);
        if gives_back(index) {
            self.settles(index);
        }
        self.recorder_starts(index);
    }

    /// What is given back is refused, and nothing helps but a newer version.
    pub fn is_refused(&mut self, index: usize) {
        self.refuses(self.recorders[index].user);
        self.settles(index);
        self.recorder_starts(index);
    }

    /// A process gives back what denied, or linked ids.
    pub fn records_again(&mut self, index: usize, entry: &HistoryEntry) -> bool {
        let number_of = |name: &str| (0..USERS).find(|number| user(*number) == name);
        let Some(number) = number_of(&entry.user_id) else { return false };
        let recorder = &mut self.recorders[index];
        recorder.forget_wish();
        recorder.user = number;
        if let What::Link { other_user_id, .. } = &entry.what {
            let Some(other) = number_of(other_user_id) else { return false };
            (recorder.wish, recorder.link_time) = (Some(Wish::Link(other)), Some(entry.time));
        } else {
            recorder.wish = Some(Wish::Again);
            recorder.effect = entry.what.effects(entry.time).into_iter().next();
        }
        true
    }

    pub fn recorder_tries(&mut self, index: usize) {
        let recorder = &mut self.recorders[index];
        recorder.tries += 1;
        recorder.walking = None;
        recorder.person = self.acks.person(recorder.user);
        recorder.losses = self.losses;
        recorder.operation += 1;
        let operation = recorder.operation;
        self.begin_call(index);
        if matches!(self.recorders[index].wish, Some(Wish::Erase)) {
            return self.erase_begins(index);
        }
        let patience = if self.plan.memories { patience(index) } else { 400 * MILLI };
        self.after(patience, Happening::Recorder(index, operation, Step::TimedOut));
        let wait = self.random.between(1, 10) * MILLI;
        self.after(wait, Happening::Recorder(index, operation, Step::Read));
    }

    /// The question reaches a server, which may be an isolated one: the append will tell.
    fn recorder_reads(&mut self, index: usize) {
        if self.is_down() {
            return;
        }
        let number = self.recorders[index].user;
        let now = true_time(self.time());
        let server = self.reader();
        if server.has_lost(number) {
            return; // It says so, and the caller tries again.
        }
        let clock = server.clock(now);
        let base = server.stored[number].clone();
        self.recorder_plans(index, base, clock);
    }

    /// The server that a question reaches.
    pub fn reader(&mut self) -> &Server {
        let stray = self.random.percent(self.wire.stray);
        match &self.isolated {
            Some(isolated) if stray => &isolated.server,
            _ => &self.primary,
        }
    }

    fn recorder_plans(&mut self, index: usize, base: Option<Stored>, clock: Timestamp) {
        if base.as_ref().is_some_and(|base| !base.said.readable) {
            if gives_back(index) {
                return self.is_refused(index);
            }
            return; // It must not be rewritten: the caller will give up.
        }
        let recorder = &mut self.recorders[index];
        let Some(wish) = &recorder.wish else { return };
        let mut state = base.as_ref().map(|base| base.said.state.clone()).unwrap_or_default();
        let ago = recorder.ago;
        let is_repeat = recorder.effect.is_some() || recorder.link_time.is_some();
        if recorder.effect.is_none() {
            recorder.effect = wish.effect(&state, clock, ago);
            let allowed = recorder.effect.as_ref().and_then(clamped_at);
            if let Some(time) = allowed.filter(|_| ago.is_some_and(|ago| ago < 0)) {
                recorder.clamped = true;
                self.acks.clamps(recorder.user, time);
            }
        }
        if let (Wish::Link(other), None) = (wish, recorder.link_time) {
            // No id takes links from before it was erased.
            let latest = [recorder.user, *other].map(|number| {
                self.primary.stored[number].as_ref().and_then(|stored| stored.said.state.latest())
            });
            let latest = latest.into_iter().flatten().max().filter(|_| self.plan.erases);
            let next = latest.map(|latest| latest.plus(Duration::from_millis(1)));
            recorder.link_time = Some(next.map_or(clock, |next| next.max(clock)));
        }
        let time = recorder.effect.as_ref().map(time_of).or(recorder.link_time);
        // What was said before the pair was erased leaves no trace; nor does a repeat.
        recorder.leaves_no_trace = (is_repeat || ago.is_some())
            && base.as_ref().is_some_and(|base| erased_before(&base.said, time));
        recorder.counted = None;
        if let Some(effect) = recorder.effect.as_ref().filter(|_| !recorder.leaves_no_trace) {
            if recorder.clamped {
                state.clamped.extend(clamped_at(effect));
            }
            let effect = counted(&state, effect);
            if state.apply(&effect).is_err() {
                return;
            }
            state.forget_clamped();
            recorder.counted = Some(effect).filter(is_denial);
        }
        let mut links = base.as_ref().map(|base| base.said.links.clone()).unwrap_or_default();
        if let (Wish::Link(other), Some(time)) = (wish, recorder.link_time)
            && !recorder.leaves_no_trace
            && !links.iter().any(|link| link.user_id == user(*other))
        {
            links.push(Link { user_id: user(*other).to_owned(), time, moved: false });
        }
        let erased = base.as_ref().and_then(|base| base.said.erased);
        let operation = recorder.operation;
        let said = Rc::new(Said::new(state, true).linked(links).erased_at(erased));
        let wait = self.random.between(1, 15) * MILLI;
        self.after(wait, Happening::Recorder(index, operation, Step::Append(base, said)));
    }

    /// The change to append, and what must not be lost of it.
    fn change(&self, index: usize, base: Option<&Stored>, said: &Said) -> (Change, Vec<Owed>) {
        let recorder = &self.recorders[index];
        let number = recorder.user;
        let key = self.primary.key_of(number);
        let record_time = self.primary.clock(true_time(self.time()));
        let (mut history, mut owes) = (Vec::new(), Vec::new());
        let mut enter = |time, what| {
            let (user_id, business_id) = (user(number).to_owned(), BUSINESS.to_owned());
            history.push(HistoryEntry { user_id, business_id, time, record_time, what });
        };
        if let Some(effect) = &recorder.counted {
            let denial = denial(effect);
            enter(denial.time, denial.what);
            owes.push(Owed::Denied(number, effect.clone()));
        }
        let known = |other: usize| base.is_some_and(|base| base.said.names(other));
        if let (Some(other), Some(time)) = (recorder.link(), recorder.link_time)
            && !recorder.leaves_no_trace
            && !known(other)
        {
            enter(time, What::Link { other_user_id: user(other).to_owned(), moved: false });
            owes.push(Owed::Linked(number, other, time));
        }
        let same =
            base.is_some_and(|base| base.said.state == said.state && base.said.links == said.links);
        let (user_id, business_id) = (user(number).to_owned(), BUSINESS.to_owned());
        let record = said.record().unwrap();
        let update = Update { user_id, business_id, record, history, record_time };
        let update = (!same).then_some(update);
        (Change { key, base: version(base), update }, owes)
    }

    fn recorder_appends(&mut self, index: usize, base: Option<&Stored>, said: Rc<Said>) {
        if self.is_down() || self.random.percent(self.wire.page_loss / 2) {
            return;
        }
        let number = self.recorders[index].user;
        if self.primary.has_lost(number) {
            return;
        }
        self.recorders[index].said = Some(Rc::clone(&said));
        let (change, owes) = self.change(index, base, &said);
        let said = change.update.is_some().then_some(said);
        let what = (Origin::Event, owes);
        match self.append_of_call(index, number, change, said, what) {
            // Another came first, perhaps on another branch: start again from that.
            Some(Ok(AppendReceipt { outcome: Appended::Conflict(_), .. })) => {
                let known = self.primary.stored[number].clone();
                let clock = self.primary.clock(true_time(self.time()));
                return self.recorder_plans(index, known, clock);
            }
            Some(Ok(_)) => {}
            // Nobody knows what came of it: the caller tries again.
            Some(Err(_)) | None => return,
        }
        if self.random.percent(self.wire.page_loss / 2) {
            return; // The answer is lost.
        }
        let wait = self.random.between(1, 15) * MILLI;
        let operation = self.recorders[index].operation;
        self.after(wait, Happening::Recorder(index, operation, Step::Appended));
    }

    /// Appends to the primary, and tells of it.
    pub fn write(&mut self, number: usize, said: Rc<Said>, readable: bool) {
        let now = true_time(self.time());
        self.acks.written(number, &said);
        let entry = self.primary.append(&mut self.random, number, said, now, readable);
        if self.plan.log < 1_000_000 {
            let trimmed = self.primary.end().revision.saturating_sub(self.plan.log);
            self.primary.trimmed = self.primary.trimmed.max(trimmed);
        }
        self.know();
        if self.primary.stored[number].as_ref().is_some_and(|it| it.said.is_tombstone()) {
            self.lose(); // It names nobody any more.
        }
        let epoch = self.primary.end().epoch;
        self.announce(epoch, &[entry]);
    }
}
