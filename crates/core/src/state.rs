//! How events make a pair's state.
//!
//! Every part of a state is the greatest of what happened, by time and then by what denies, so
//! the order in which events arrive, and how often, does not matter: [`State::join`] of two
//! states is the state of all their events.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use super::claims::Claims;
use super::event::MAX_AHEAD;
use super::scope::Scope;
use super::time::Timestamp;

/// The most scopes of a pair; one more is refused, denials excepted.
pub const MAX_SCOPES: usize = 64;

/// From so many scopes on, an opt-out of a new topic is recorded on its class: a denial is never
/// refused, and a record never grows without bound.
pub const MAX_DENIED_SCOPES: usize = 1_024;

/// A word on a scope that counts by itself: an opt-out, or an opt-in that is not pending.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Word {
    /// When it was said.
    pub time: Timestamp,
    /// What was said.
    pub said: Said,
}

/// What was said about a scope.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Said {
    /// An opt-in.
    OptIn {
        /// When it lapses; never, where unset.
        expire: Option<Timestamp>,
        /// Whether it confirms a pending opt-in. Its time is the one of that pending opt-in, so that
        /// an opt-out between the request and the confirmation stands, whichever arrives first.
        confirms: bool,
    },
    /// An opt-out.
    OptOut,
}

impl Word {
    /// An opt-in at `time`. An expiry at the end of time is none: neither is ever reached.
    #[must_use]
    pub fn opt_in(time: Timestamp, expire: Option<Timestamp>) -> Self {
        let expire = expire.filter(|end| *end < Timestamp::MAX);
        Self { time, said: Said::OptIn { expire, confirms: false } }
    }

    /// The confirmation of an opt-in that has been pending since `time`.
    #[must_use]
    pub fn confirmed(time: Timestamp, expire: Option<Timestamp>) -> Self {
        let expire = expire.filter(|end| *end < Timestamp::MAX);
        Self { time, said: Said::OptIn { expire, confirms: true } }
    }

    /// An opt-out at `time`.
    #[must_use]
    pub const fn opt_out(time: Timestamp) -> Self {
        Self { time, said: Said::OptOut }
    }

    /// Whether this is an opt-out.
    #[must_use]
    pub const fn is_opt_out(self) -> bool {
        matches!(self.said, Said::OptOut)
    }

    fn strength(self) -> (bool, bool, Reverse<Timestamp>) {
        match self.said {
            Said::OptOut => (true, false, Reverse(Timestamp::MIN)),
            Said::OptIn { expire, confirms } => {
                (false, confirms, Reverse(expire.unwrap_or(Timestamp::MAX)))
            }
        }
    }
}

/// Later words are greater; at equal times what denies more is: the opt-out, then the opt-in that
/// lapses sooner. A confirmation is greater than an opt-in of the same time that confirms nothing,
/// since it answers the pending opt-in of that time.
impl Ord for Word {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.time, self.strength()).cmp(&(other.time, other.strength()))
    }
}

impl PartialOrd for Word {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// An opt-in that waits for its double opt-in confirmation. Later ones are greater; at equal times
/// the one that lapses sooner is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Pending {
    /// When it was said.
    pub time: Timestamp,
    /// When it lapses, once confirmed; the end of time where never.
    expire: Reverse<Timestamp>,
}

impl Pending {
    /// An opt-in at `time` that is not confirmed yet.
    #[must_use]
    pub fn new(time: Timestamp, expire: Option<Timestamp>) -> Self {
        Self { time, expire: Reverse(expire.unwrap_or(Timestamp::MAX)) }
    }

    /// When it lapses, once confirmed; never, where unset.
    #[must_use]
    pub fn expire(self) -> Option<Timestamp> {
        Some(self.expire.0).filter(|end| *end < Timestamp::MAX)
    }

    /// Whether it stands where `word` is the latest that counts: it is later, or as late and the
    /// word is neither an opt-out nor its confirmation.
    #[must_use]
    pub fn stands_over(self, word: Option<Word>) -> bool {
        word.is_none_or(|word| {
            let yields = matches!(word.said, Said::OptIn { confirms: false, .. });
            self.time > word.time || (self.time == word.time && yields)
        })
    }
}

/// What was last said on one scope.
///
/// A pending opt-in is kept beside the word that counts and not in its place: until it is
/// confirmed, anybody may have typed that number into a form, so it must not lift an opt-out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OnScope {
    /// The latest word that counts.
    pub word: Option<Word>,
    /// The latest opt-in that waits for its confirmation.
    pub pending: Option<Pending>,
    /// The latest opt-out, even where a later opt-in is the word that counts: it may count again
    /// once that opt-in has lapsed.
    pub opt_out: Option<Timestamp>,
}

impl From<Word> for OnScope {
    fn from(word: Word) -> Self {
        let opt_out = word.is_opt_out().then_some(word.time);
        Self { word: Some(word), pending: None, opt_out }
    }
}

/// One thing that an event does to a state.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// A word on a scope.
    Word(Scope, Word),
    /// An opt-in to a scope that waits for its confirmation.
    Pending(Scope, Pending),
    /// The user wrote or called.
    Inbound(Timestamp),
    /// WhatsApp said that the window is closed.
    WindowClosed(Timestamp),
    /// WhatsApp capped marketing to this user.
    Capped(Timestamp),
    /// Another refusal, for the record alone.
    Failure {
        /// When.
        time: Timestamp,
        /// WhatsApp's code.
        code: i32,
    },
    /// Marketing stopped or resumed inside WhatsApp.
    Platform {
        /// When.
        time: Timestamp,
        /// Whether it was stopped.
        stopped: bool,
    },
    /// A do-not-contact mark set or lifted.
    Suppression {
        /// When.
        time: Timestamp,
        /// Whether it was set.
        suppressed: bool,
    },
}

impl Effect {
    /// The time of a denial that something allowed could lift. A frequency cap is none of them:
    /// nothing but time ends it.
    fn denied_at(&self) -> Option<Timestamp> {
        match self {
            Self::Word(_, word) if word.is_opt_out() => Some(word.time),
            Self::WindowClosed(time)
            | Self::Platform { time, stopped: true }
            | Self::Suppression { time, suppressed: true } => Some(*time),
            _ => None,
        }
    }
}

/// One scope more than [`MAX_SCOPES`] was asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "this user has consent events on 64 scopes of this business already, the most there may be"
)]
pub struct TooManyScopes;

/// All that events have said of a pair. Grows only.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct State {
    /// What was last said on each scope.
    pub scopes: BTreeMap<Scope, OnScope>,
    /// When the user last wrote or called.
    pub last_inbound: Option<Timestamp>,
    /// When WhatsApp last said that the window is closed (131047).
    pub window_closed: Option<Timestamp>,
    /// When WhatsApp last capped marketing (131049).
    pub capped: Option<Timestamp>,
    /// The latest other refusal and its code.
    pub failure: Option<(Timestamp, i32)>,
    /// The latest platform preference: when, and whether marketing was stopped.
    pub platform: Option<(Timestamp, bool)>,
    /// The latest suppression: when, and whether it was set.
    pub suppression: Option<(Timestamp, bool)>,
    /// When marketing was last stopped inside WhatsApp, even where it was resumed since.
    pub last_stop: Option<Timestamp>,
    /// When a suppression was last set, even where it was lifted since.
    pub last_suppressed: Option<Timestamp>,
    /// The moments to which events that allow were clamped, because their senders' clocks were
    /// ahead of the ledger's. A denial that is recorded after such an event never counts as
    /// earlier: see [`State::counts_as_of`].
    pub clamped: BTreeSet<Timestamp>,
    /// What times those events claimed, and others whose moment matters no more.
    pub claims: Claims,
}

/// Raises `slot` to `value` where that is greater; tells whether it was.
fn raise<T: Ord>(slot: &mut Option<T>, value: T) -> bool {
    let greater = slot.as_ref().is_none_or(|known| value > *known);
    if greater {
        *slot = Some(value);
    }
    greater
}

impl State {
    /// Adds one effect; tells whether it changed anything.
    ///
    /// # Errors
    ///
    /// [`TooManyScopes`] where an opt-in would need a scope too many.
    pub fn apply(&mut self, effect: &Effect) -> Result<bool, TooManyScopes> {
        Ok(match effect {
            Effect::Word(scope, word) => {
                let scope = self.room_for(scope, word.is_opt_out())?;
                let said = self.scopes.entry(scope).or_default();
                let opted_out = word.is_opt_out() && raise(&mut said.opt_out, word.time);
                raise(&mut said.word, *word) || opted_out
            }
            Effect::Pending(scope, pending) => {
                let scope = self.room_for(scope, false)?;
                raise(&mut self.scopes.entry(scope).or_default().pending, *pending)
            }
            Effect::Inbound(time) => raise(&mut self.last_inbound, *time),
            Effect::WindowClosed(time) => raise(&mut self.window_closed, *time),
            Effect::Capped(time) => raise(&mut self.capped, *time),
            Effect::Failure { time, code } => raise(&mut self.failure, (*time, *code)),
            // `true` is the greater bool: at equal times what denies stands.
            Effect::Platform { time, stopped } => {
                let denied = *stopped && raise(&mut self.last_stop, *time);
                raise(&mut self.platform, (*time, *stopped)) || denied
            }
            Effect::Suppression { time, suppressed } => {
                let denied = *suppressed && raise(&mut self.last_suppressed, *time);
                raise(&mut self.suppression, (*time, *suppressed)) || denied
            }
        })
    }

    /// The time that an effect counts as of when it is recorded now: its own, but for a denial.
    ///
    /// Clock skew: an event that allows and whose time is ahead of the ledger's clock is clamped to
    /// the ledger's now. Its sender's clock may be ahead by more than shows, so that the true order
    /// of that event and of a denial recorded after it is unknown. The denial wins: where its own
    /// time is before such a clamped moment, by five minutes at most, it counts as of that moment.
    ///
    /// A denial that is on record already with its own time is a repeat, and stays where it is.
    #[must_use]
    pub fn counts_as_of(&self, effect: &Effect, time: Timestamp) -> Timestamp {
        let Some(own) = effect.denied_at() else { return time };
        let known = match effect {
            Effect::Word(scope, _) => self.scopes.get(scope).and_then(|said| said.opt_out),
            Effect::WindowClosed(_) => self.window_closed,
            Effect::Platform { .. } => self.last_stop,
            Effect::Suppression { .. } => self.last_suppressed,
            _ => None,
        };
        if known == Some(own) {
            return own;
        }
        self.clamped.range(own..=own.plus(MAX_AHEAD)).next_back().copied().unwrap_or(own)
    }

    /// Forgets the clamped moments at which nothing that allows stands any more, so that there are
    /// never more than there are things that allow.
    pub fn forget_clamped(&mut self) {
        let mut clamped = std::mem::take(&mut self.clamped);
        clamped.retain(|moment| self.is_allowed_at(*moment));
        self.clamped = clamped;
    }

    /// Whether the latest of anything that allows is of this moment.
    fn is_allowed_at(&self, moment: Timestamp) -> bool {
        let on_scope = |said: &OnScope| {
            let word = said.word.filter(|word| !word.is_opt_out()).map(|word| word.time);
            word == Some(moment) || said.pending.is_some_and(|pending| pending.time == moment)
        };
        self.last_inbound == Some(moment)
            || self.platform == Some((moment, false))
            || self.suppression == Some((moment, false))
            || self.scopes.values().any(on_scope)
    }

    /// The scope that a word on `scope` is kept under.
    fn room_for(&self, scope: &Scope, denies: bool) -> Result<Scope, TooManyScopes> {
        let scopes = self.scopes.len();
        if scopes < MAX_SCOPES || self.scopes.contains_key(scope) {
            return Ok(scope.clone());
        }
        match scope {
            _ if !denies => Err(TooManyScopes),
            Scope::Topic(class, _) if scopes >= MAX_DENIED_SCOPES => Ok(Scope::Class(*class)),
            _ => Ok(scope.clone()),
        }
    }

    /// The state of all that either has seen.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        for (scope, said) in other.scopes {
            let known = self.scopes.entry(scope).or_default();
            known.word = known.word.max(said.word);
            known.pending = known.pending.max(said.pending);
            known.opt_out = known.opt_out.max(said.opt_out);
        }
        self.clamped.extend(other.clamped);
        Self {
            scopes: self.scopes,
            last_inbound: self.last_inbound.max(other.last_inbound),
            window_closed: self.window_closed.max(other.window_closed),
            capped: self.capped.max(other.capped),
            failure: self.failure.max(other.failure),
            platform: self.platform.max(other.platform),
            suppression: self.suppression.max(other.suppression),
            last_stop: self.last_stop.max(other.last_stop),
            last_suppressed: self.last_suppressed.max(other.last_suppressed),
            clamped: self.clamped,
            claims: self.claims.join(&other.claims),
        }
    }

    /// The time of the pair's latest event of any kind.
    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        let words = self.scopes.values().filter_map(|said| said.word.map(|word| word.time));
        let pending = self.scopes.values().filter_map(|said| said.pending.map(|said| said.time));
        let words = words.chain(pending).max();
        let marks = [self.platform, self.suppression].map(|mark| mark.map(|(time, _)| time));
        let failure = self.failure.map(|(time, _)| time);
        [words, self.last_inbound, self.window_closed, self.capped, failure]
            .into_iter()
            .chain(marks)
            .flatten()
            .max()
    }

    /// What stands on a scope: the latest word that counts on it or a broader one, and the latest
    /// pending opt-in likewise.
    #[must_use]
    pub fn standing_on(&self, scope: &Scope) -> OnScope {
        let class = scope.class().map(Scope::Class);
        let covering = [Some(&Scope::All), class.as_ref(), Some(scope)];
        let mut standing = OnScope::default();
        for said in covering.into_iter().flatten().filter_map(|scope| self.scopes.get(scope)) {
            standing.word = standing.word.max(said.word);
            standing.pending = standing.pending.max(said.pending);
            standing.opt_out = standing.opt_out.max(said.opt_out);
        }
        standing
    }

    /// The scopes on which an opt-in waits for its confirmation, and that opt-in.
    pub fn pending(&self) -> impl Iterator<Item = (&Scope, Pending)> {
        self.scopes.iter().filter_map(|(scope, said)| {
            let pending = said.pending?;
            pending.stands_over(self.standing_on(scope).word).then_some((scope, pending))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::Class;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    #[test]
    fn at_equal_times_what_denies_more_stands() {
        let never = Word::opt_in(at(5), None);
        let later = Word::opt_in(at(5), Some(at(90)));
        let sooner = Word::opt_in(at(5), Some(at(80)));
        let out = Word::opt_out(at(5));
        let ascending = [never, later, sooner, out, Word::opt_in(at(6), None)];
        for pair in ascending.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
        }
        let pending = Pending::new(at(5), None);
        assert!(pending.stands_over(Some(sooner)) && pending.stands_over(None));
        assert!(!pending.stands_over(Some(out)));
        assert!(Pending::new(at(6), None).stands_over(Some(out)));
        assert!(Pending::new(at(5), Some(at(9))) > pending);
    }

    #[test]
    fn a_scope_too_many_is_refused_unless_it_denies() {
        let topic = |n: usize| Scope::Topic(Class::Utility, format!("t{n}").into());
        let mut state = State::default();
        for n in 0..MAX_SCOPES {
            let word = Word::opt_in(at(1), None);
            assert_eq!(state.apply(&Effect::Word(topic(n), word)), Ok(true));
        }
        let opt_in = Effect::Word(topic(MAX_SCOPES), Word::opt_in(at(2), None));
        assert_eq!(state.apply(&opt_in), Err(TooManyScopes));
        let known = Effect::Word(topic(0), Word::opt_in(at(2), None));
        assert_eq!(state.apply(&known), Ok(true), "a known scope still takes a word");
        for n in MAX_SCOPES..MAX_DENIED_SCOPES + 50 {
            let out = Effect::Word(topic(n), Word::opt_out(at(3)));
            state.apply(&out).unwrap();
        }
        assert_eq!(state.scopes.len(), MAX_DENIED_SCOPES + 1);
        let class = state.scopes.get(&Scope::Class(Class::Utility));
        let denied = class.and_then(|said| said.word);
        assert_eq!(denied, Some(Word::opt_out(at(3))), "denials widen to their class");
    }

    #[test]
    fn the_latest_event_is_found_wherever_it_is() {
        let mut state = State::default();
        let scope = Scope::Class(Class::Service);
        let effects = [
            Effect::Word(scope, Word::opt_out(at(1))),
            Effect::Inbound(at(2)),
            Effect::WindowClosed(at(3)),
            Effect::Capped(at(4)),
            Effect::Failure { time: at(5), code: 131_026 },
            Effect::Platform { time: at(6), stopped: false },
            Effect::Suppression { time: at(7), suppressed: false },
        ];
        for (index, effect) in effects.iter().enumerate() {
            state.apply(effect).unwrap();
            let expected = i64::try_from(index).unwrap() + 1;
            assert_eq!(state.latest(), Some(at(expected)));
        }
    }
}
