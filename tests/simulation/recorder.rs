//! Recorders: they read, apply the real rules for states, and append by compare-and-set.

use std::collections::BTreeSet;
use std::rc::Rc;

use consentd_core::record::Link;
use consentd_core::state::{Choice, Effect, Pending, State};
use consentd_core::time::Timestamp;

use crate::ledger::{Said, Stored, USERS, user};
use crate::linked::{PEOPLE, Walking};
use crate::oracle::{is_denial, scope};
use crate::random::Random;
use crate::sidecar::true_time;
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
    TimedOut,
}

/// What a caller wants recorded.
#[derive(Clone)]
enum Wish {
    OptOut(&'static str),
    OptIn(&'static str),
    Pending(&'static str),
    Inbound,
    Platform(bool),
    Suppression(bool),
    Capped,
    /// The other one is the same person.
    Link(usize),
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
}

const OUT: [&str; 5] = ["*", "marketing", "marketing.news", "utility", "utility.orders"];
const IN: [&str; 5] = ["marketing", "marketing.news", "utility", "utility.orders", "service"];

fn wish(random: &mut Random) -> Wish {
    match random.below(100) {
        0..32 => Wish::OptOut(random.pick(&OUT)),
        32..62 => Wish::OptIn(random.pick(&IN)),
        62..67 => Wish::Pending(random.pick(&IN)),
        67..77 => Wish::Inbound,
        77..86 => Wish::Platform(random.percent(50)),
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
            Self::Platform(stopped) => {
                Effect::Platform { time: if stopped { denied } else { time }, stopped }
            }
            Self::Suppression(suppressed) => {
                Effect::Suppression { time: if suppressed { denied } else { time }, suppressed }
            }
            Self::Capped => Effect::Capped(time),
            Self::Link(_) => return None,
        })
    }
}

/// The time of what allows.
fn clamped_at(effect: &Effect) -> Option<Timestamp> {
    match effect {
        Effect::Choice(_, choice) => (!choice.is_opt_out()).then_some(choice.time),
        Effect::Pending(_, pending) => Some(pending.time),
        Effect::Inbound(time)
        | Effect::Platform { time, stopped: false }
        | Effect::Suppression { time, suppressed: false } => Some(*time),
        _ => None,
    }
}

/// An effect as of when it counts over this state.
fn counted(state: &State, effect: &Effect) -> Effect {
    match effect {
        Effect::Choice(scope, choice) if choice.is_opt_out() => {
            let time = state.counts_as_of(effect, choice.time);
            Effect::Choice(scope.clone(), Choice::opt_out(time))
        }
        Effect::Platform { time, stopped: true } => {
            Effect::Platform { time: state.counts_as_of(effect, *time), stopped: true }
        }
        Effect::Suppression { time, suppressed: true } => {
            Effect::Suppression { time: state.counts_as_of(effect, *time), suppressed: true }
        }
        other => other.clone(),
    }
}

impl Recorder {
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
                let timed = self.random.percent(30);
                let ahead = timed && self.random.percent(40);
                let off = i64::try_from(self.random.below(20_000)).unwrap();
                let recorder = &mut self.recorders[index];
                recorder.ago = timed.then_some(if ahead { -off } else { off });
                recorder.effect = None;
                recorder.clamped = false;
                recorder.tries = 0;
                recorder.began = self.acks.writes();
                self.recorder_tries(index);
            }
            Step::Read => self.recorder_reads(index),
            Step::Append(base, said) => self.recorder_appends(index, base.as_ref(), said),
            Step::Appended => {
                let recorder = &self.recorders[index];
                let linked = recorder.said.as_ref().is_some_and(|said| !said.links.is_empty());
                let denies = recorder.effect.as_ref().is_some_and(is_denial);
                if linked && (denies || recorder.link().is_some()) {
                    let link = recorder.link();
                    return self.walk_begins(index, link);
                }
                let (number, effect) = (recorder.user, recorder.effect.clone());
                // What a failover took on the way here is lost, as if it had been taken later.
                let state = self.primary.stored[number].as_ref();
                let state = state.map(|stored| stored.said.state.clone()).unwrap_or_default();
                let is_there = |effect: &Effect| state.clone().apply(effect) == Ok(false);
                if let Some(effect) = effect.filter(|it| is_denial(it) && is_there(it)) {
                    let began = self.recorders[index].began;
                    self.acknowledge(number, effect, began);
                }
                self.recorder_starts(index);
            }
            Step::PropagationRound => self.walk(index),
            Step::Walked => {
                let link = self.recorders[index].link();
                self.walked(index, link);
                self.recorder_starts(index);
            }
            Step::TimedOut if self.recorders[index].tries >= MAX_TRIES => {
                self.recorder_starts(index);
            }
            Step::TimedOut => self.recorder_tries(index),
        }
    }

    pub fn recorder_tries(&mut self, index: usize) {
        let recorder = &mut self.recorders[index];
        recorder.tries += 1;
        recorder.walking = None;
        recorder.person = self.acks.person(recorder.user);
        recorder.losses = self.losses;
        recorder.operation += 1;
        let operation = recorder.operation;
        self.after(400 * MILLI, Happening::Recorder(index, operation, Step::TimedOut));
        let wait = self.random.between(1, 10) * MILLI;
        self.after(wait, Happening::Recorder(index, operation, Step::Read));
    }

    /// The question reaches a server, which may be an isolated one: the append will tell.
    fn recorder_reads(&mut self, index: usize) {
        if self.is_down() {
            return;
        }
        let number = self.recorders[index].user;
        let stray = self.random.percent(self.wire.stray);
        let server = match &self.isolated {
            Some(isolated) if stray => &isolated.server,
            _ => &self.primary,
        };
        if server.has_lost(number) {
            return; // It says so, and the caller tries again.
        }
        let clock = server.clock(true_time(self.time()));
        let base = server.stored[number].clone();
        self.recorder_plans(index, base, clock);
    }

    fn recorder_plans(&mut self, index: usize, base: Option<Stored>, clock: Timestamp) {
        if base.as_ref().is_some_and(|base| !base.said.readable) {
            return; // It must not be rewritten: the caller will give up.
        }
        let recorder = &mut self.recorders[index];
        let Some(wish) = &recorder.wish else { return };
        let mut state = base.as_ref().map(|base| base.said.state.clone()).unwrap_or_default();
        let ago = recorder.ago;
        if recorder.effect.is_none() {
            recorder.effect = wish.effect(&state, clock, ago);
            let allowed = recorder.effect.as_ref().and_then(clamped_at);
            if let Some(time) = allowed.filter(|_| ago.is_some_and(|ago| ago < 0)) {
                recorder.clamped = true;
                self.acks.clamps(recorder.user, time);
            }
        }
        if let Some(effect) = &recorder.effect {
            if recorder.clamped {
                state.clamped.extend(clamped_at(effect));
            }
            let effect = counted(&state, effect);
            if state.apply(&effect).is_err() {
                return;
            }
            state.forget_clamped();
        }
        let mut links = base.as_ref().map(|base| base.said.links.clone()).unwrap_or_default();
        if let Wish::Link(other) = *wish
            && !links.iter().any(|link| link.user_id == user(other))
        {
            links.push(Link { user_id: user(other).to_owned(), time: clock, moved: false });
        }
        let operation = recorder.operation;
        let said = Rc::new(Said::new(state, true).linked(links));
        let wait = self.random.between(1, 15) * MILLI;
        self.after(wait, Happening::Recorder(index, operation, Step::Append(base, said)));
    }

    fn recorder_appends(&mut self, index: usize, base: Option<&Stored>, said: Rc<Said>) {
        if self.is_down() || self.random.percent(self.wire.page_loss / 2) {
            return;
        }
        let number = self.recorders[index].user;
        if self.primary.has_lost(number) {
            return;
        }
        let known = self.primary.stored[number].as_ref();
        let version = |stored: Option<&Stored>| stored.map(|stored| stored.version);
        if version(known) != version(base) {
            // Another came first, perhaps on another branch: start again from that.
            let (known, clock) = (known.cloned(), self.primary.clock(true_time(self.time())));
            return self.recorder_plans(index, known, clock);
        }
        let same = known
            .is_some_and(|known| known.said.state == said.state && known.said.links == said.links);
        self.recorders[index].said = Some(Rc::clone(&said));
        if !same {
            self.write(number, said, true);
        }
        if self.plan.confirmed {
            // An append that the replica does not have is not acknowledged.
            if self.replica_lags || self.random.percent(self.wire.page_loss) {
                return;
            }
            self.replica = self.primary.clone();
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
        self.acks.written(number, &said.state);
        let entry = self.primary.append(&mut self.random, number, said, now, readable);
        if self.plan.log < 1_000_000 {
            let trimmed = self.primary.end().revision.saturating_sub(self.plan.log);
            self.primary.trimmed = self.primary.trimmed.max(trimmed);
        }
        self.know();
        let epoch = self.primary.end().epoch;
        self.announce(epoch, &[entry]);
    }
}
