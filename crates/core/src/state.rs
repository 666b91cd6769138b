//! The state of a pair, and how events change it.
//!
//! A state is a join semilattice (a state-based CRDT). Each part of it is the maximum of the events
//! that concern it, ordered by time and, at equal times, by what denies more. So neither the order in
//! which events arrive nor repeats matter, and [`State::join`] of two states is the state of all their
//! events.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};

use super::claims::Claims;
use super::event::MAX_AHEAD;
use super::failure::{UserFailure, UserFailureTimes};
use super::id::PhoneNumberId;
use super::platform_stops::PlatformStops;
use super::scope::Scope;
use super::time::Timestamp;

/// The most scopes of a pair. An opt-in to one more is refused; a denial is not.
pub const MAX_SCOPES: usize = 64;

/// The number of scopes from which on an opt-out of a new topic is recorded on the topic's class. A
/// denial is never refused, and the size of a record stays bounded.
pub const MAX_DENIED_SCOPES: usize = 1_024;

/// A user's choice about a scope: an opt-out, or an opt-in that is not pending.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Choice {
    /// The event time.
    pub time: Timestamp,
    /// An opt-in or an opt-out.
    pub kind: ChoiceKind,
}

/// The kind of a [`Choice`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChoiceKind {
    /// An opt-in.
    OptIn {
        /// When it expires; never if unset.
        expire: Option<Timestamp>,
        /// Whether it confirms a pending opt-in. Its time is then the time of that pending opt-in, so
        /// that an opt-out between the request and the confirmation wins, whichever arrives first.
        confirms: bool,
    },
    /// An opt-out.
    OptOut,
}

impl Choice {
    /// An opt-in at `time`. An expiry at [`Timestamp::MAX`] is never reached and is the same as none.
    #[must_use]
    pub fn opt_in(time: Timestamp, expire: Option<Timestamp>) -> Self {
        let expire = expire.filter(|end| *end < Timestamp::MAX);
        Self { time, kind: ChoiceKind::OptIn { expire, confirms: false } }
    }

    /// The confirmation of an opt-in that has been pending since `time`.
    #[must_use]
    pub fn confirmed(time: Timestamp, expire: Option<Timestamp>) -> Self {
        let expire = expire.filter(|end| *end < Timestamp::MAX);
        Self { time, kind: ChoiceKind::OptIn { expire, confirms: true } }
    }

    /// An opt-out at `time`.
    #[must_use]
    pub const fn opt_out(time: Timestamp) -> Self {
        Self { time, kind: ChoiceKind::OptOut }
    }

    /// Whether this is an opt-out.
    #[must_use]
    pub const fn is_opt_out(self) -> bool {
        matches!(self.kind, ChoiceKind::OptOut)
    }

    /// Orders choices of the same time: what denies more is greater.
    fn strength(self) -> (bool, bool, Reverse<Timestamp>) {
        match self.kind {
            ChoiceKind::OptOut => (true, false, Reverse(Timestamp::MIN)),
            ChoiceKind::OptIn { expire, confirms } => {
                (false, confirms, Reverse(expire.unwrap_or(Timestamp::MAX)))
            }
        }
    }
}

/// Later choices are greater. At equal times, the choice that denies more is greater: an opt-out, then
/// the opt-in that expires sooner. A confirmation is greater than an opt-in of the same time that
/// confirms nothing, because it belongs to the pending opt-in of that time.
impl Ord for Choice {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.time, self.strength()).cmp(&(other.time, other.strength()))
    }
}

impl PartialOrd for Choice {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// An opt-in that waits for its double opt-in confirmation. Later ones are greater; at equal times, the
/// one that expires sooner is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Pending {
    /// The event time.
    pub time: Timestamp,
    /// When it expires once confirmed; [`Timestamp::MAX`] if never.
    expire: Reverse<Timestamp>,
}

impl Pending {
    /// An opt-in at `time` that is not confirmed yet.
    #[must_use]
    pub fn new(time: Timestamp, expire: Option<Timestamp>) -> Self {
        Self { time, expire: Reverse(expire.unwrap_or(Timestamp::MAX)) }
    }

    /// When it expires once confirmed; never if `None`.
    #[must_use]
    pub fn expire(self) -> Option<Timestamp> {
        Some(self.expire.0).filter(|end| *end < Timestamp::MAX)
    }

    /// Whether it is still pending if `choice` is the latest choice: it is later, or of the same time
    /// and the choice is neither an opt-out nor its confirmation.
    #[must_use]
    pub fn is_pending_over(self, choice: Option<Choice>) -> bool {
        choice.is_none_or(|choice| {
            let yields = matches!(choice.kind, ChoiceKind::OptIn { confirms: false, .. });
            self.time > choice.time || (self.time == choice.time && yields)
        })
    }
}

/// The state of one scope.
///
/// A pending opt-in is kept in addition to the latest choice and does not replace it: until it is
/// confirmed, anyone may have typed that number into a form, so it must not lift an opt-out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ScopeState {
    /// The latest choice.
    pub choice: Option<Choice>,
    /// The latest opt-in that waits for its confirmation.
    pub pending: Option<Pending>,
    /// The latest opt-out, even if a later opt-in is the latest choice: the opt-out may apply again once
    /// that opt-in has expired.
    pub opt_out: Option<Timestamp>,
}

impl From<Choice> for ScopeState {
    fn from(choice: Choice) -> Self {
        let opt_out = choice.is_opt_out().then_some(choice.time);
        Self { choice: Some(choice), pending: None, opt_out }
    }
}

/// One change that an event makes to a state.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// A choice about a scope.
    Choice(Scope, Choice),
    /// An opt-in to a scope that waits for its confirmation.
    Pending(Scope, Pending),
    /// The user wrote or called.
    Inbound(Timestamp),
    /// WhatsApp said that the window is closed.
    WindowClosed(Timestamp),
    /// WhatsApp capped marketing to this user.
    Capped(Timestamp),
    /// Another refusal by WhatsApp. A decision uses only those that the operator names, out of
    /// [`UserFailure`].
    Failure {
        /// The event time.
        time: Timestamp,
        /// WhatsApp's code.
        code: i32,
    },
    /// Marketing stopped or resumed inside WhatsApp.
    Platform {
        /// The event time.
        time: Timestamp,
        /// Whether it was stopped.
        stopped: bool,
        /// The business's number, if it is known.
        number: Option<PhoneNumberId>,
    },
    /// A suppression set or lifted.
    Suppression {
        /// The event time.
        time: Timestamp,
        /// Whether it was set.
        suppressed: bool,
    },
}

impl Effect {
    /// The event time, if this is a denial that an allow can lift. A frequency cap is not one of them:
    /// only time ends it.
    fn denied_at(&self) -> Option<Timestamp> {
        match self {
            Self::Choice(_, choice) if choice.is_opt_out() => Some(choice.time),
            Self::WindowClosed(time)
            | Self::Platform { time, stopped: true, .. }
            | Self::Suppression { time, suppressed: true } => Some(*time),
            // A later message of the user lifts it.
            Self::Failure { time, code }
                if UserFailure::of(*code) == Some(UserFailure::Blocked) =>
            {
                Some(*time)
            }
            _ => None,
        }
    }
}

/// An opt-in would need one scope more than [`MAX_SCOPES`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "this user has consent events on 64 scopes of this business already, the most there may be"
)]
pub struct TooManyScopes;

/// The state of a pair. It only grows: no event makes a part of it smaller.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct State {
    /// The state of each scope that an event named.
    pub scopes: BTreeMap<Scope, ScopeState>,
    /// When the user last wrote or called.
    pub last_inbound: Option<Timestamp>,
    /// When WhatsApp last said that the window is closed (131047).
    pub window_closed: Option<Timestamp>,
    /// When WhatsApp last capped marketing (131049).
    pub capped: Option<Timestamp>,
    /// The latest other refusal and its code.
    pub failure: Option<(Timestamp, i32)>,
    /// When WhatsApp last refused a message with each of the codes about the user.
    pub user_failures: UserFailureTimes,
    /// The preferences inside WhatsApp, by the business's number.
    pub platform: PlatformStops,
    /// The latest suppression event: its time, and whether it was set.
    pub suppression: Option<(Timestamp, bool)>,
    /// When a suppression was last set, even if it was lifted since.
    pub last_suppressed: Option<Timestamp>,
    /// The times to which allows were clamped, because their senders' clocks were ahead of the
    /// ledger's. A denial that is recorded after such an allow never counts as earlier than it: see
    /// [`State::counts_as_of`].
    pub clamped: BTreeSet<Timestamp>,
    /// The times that clamped events claimed, so that their repeats are recognised.
    pub claims: Claims,
}

/// Raises `slot` to `value` if that is greater. Returns whether it was.
pub(super) fn raise<T: Ord>(slot: &mut Option<T>, value: T) -> bool {
    let greater = slot.as_ref().is_none_or(|known| value > *known);
    if greater {
        *slot = Some(value);
    }
    greater
}

impl State {
    /// Applies one effect. Returns whether it changed the state.
    ///
    /// # Errors
    ///
    /// [`TooManyScopes`] if an opt-in would exceed [`MAX_SCOPES`].
    pub fn apply(&mut self, effect: &Effect) -> Result<bool, TooManyScopes> {
        Ok(match effect {
            Effect::Choice(scope, choice) => {
                let scope = self.room_for(scope, choice.is_opt_out())?;
                let scope_state = self.scopes.entry(scope).or_default();
                let opted_out = choice.is_opt_out() && raise(&mut scope_state.opt_out, choice.time);
                raise(&mut scope_state.choice, *choice) || opted_out
            }
            Effect::Pending(scope, pending) => {
                let scope = self.room_for(scope, false)?;
                raise(&mut self.scopes.entry(scope).or_default().pending, *pending)
            }
            Effect::Inbound(time) => raise(&mut self.last_inbound, *time),
            Effect::WindowClosed(time) => raise(&mut self.window_closed, *time),
            Effect::Capped(time) => raise(&mut self.capped, *time),
            Effect::Failure { time, code } => {
                let noted = UserFailure::of(*code)
                    .is_some_and(|failure| self.user_failures.raise(failure, *time));
                raise(&mut self.failure, (*time, *code)) || noted
            }
            Effect::Platform { time, stopped, number } => {
                self.platform.apply(number.as_ref(), *time, *stopped)
            }
            // `true` is the greater bool, so that the denial wins at equal times.
            Effect::Suppression { time, suppressed } => {
                let denied = *suppressed && raise(&mut self.last_suppressed, *time);
                raise(&mut self.suppression, (*time, *suppressed)) || denied
            }
        })
    }

    /// The time as of which an effect of `time` counts if it is recorded now. That is its own time,
    /// except for some denials.
    ///
    /// Clock skew: an allow whose time is ahead of the ledger's clock is clamped to the ledger's current
    /// time. How far its sender's clock is ahead is unknown, and so is the true order of that allow and
    /// of a denial that is recorded after it. The denial wins: if its own time is before such a clamped
    /// time by at most five minutes, it counts as of the clamped time.
    ///
    /// A denial that is recorded already with its own time is a repeat and keeps its time. Where the
    /// recorded time is one to which an allow was clamped, it may be the time as of which another denial
    /// counts. Then this one may be new, and is not taken for a repeat: that can only deny too much.
    #[must_use]
    pub fn counts_as_of(&self, effect: &Effect, time: Timestamp) -> Timestamp {
        let Some(own) = effect.denied_at() else { return time };
        let known = match effect {
            Effect::Choice(scope, _) => {
                self.scopes.get(scope).and_then(|scope_state| scope_state.opt_out)
            }
            Effect::WindowClosed(_) => self.window_closed,
            Effect::Failure { .. } => self.user_failures.time(UserFailure::Blocked),
            Effect::Platform { number, .. } => self.platform.last_stop(number.as_ref()),
            Effect::Suppression { .. } => self.last_suppressed,
            _ => None,
        };
        if known == Some(own) && !self.claims.may_clamp_to(own) {
            return own;
        }
        self.clamped.range(own..=own.plus(MAX_AHEAD)).next_back().copied().unwrap_or(own)
    }

    /// Forgets the clamped times of allows that were superseded, so that there are never more clamped
    /// times than allows in the state.
    pub fn forget_clamped(&mut self) {
        let mut clamped = std::mem::take(&mut self.clamped);
        clamped.retain(|moment| self.is_allowed_at(*moment));
        self.clamped = clamped;
    }

    /// Whether an allow that is the latest of its kind has this time.
    fn is_allowed_at(&self, moment: Timestamp) -> bool {
        let on_scope = |scope_state: &ScopeState| {
            let choice =
                scope_state.choice.filter(|choice| !choice.is_opt_out()).map(|choice| choice.time);
            choice == Some(moment)
                || scope_state.pending.is_some_and(|pending| pending.time == moment)
        };
        self.last_inbound == Some(moment)
            || self.platform.is_resumed_at(moment)
            || self.suppression == Some((moment, false))
            || self.scopes.values().any(on_scope)
    }

    /// The scope under which a choice about `scope` is kept: see [`MAX_DENIED_SCOPES`].
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

    /// The state of all events of both.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        for (scope, scope_state) in other.scopes {
            let known = self.scopes.entry(scope).or_default();
            known.choice = known.choice.max(scope_state.choice);
            known.pending = known.pending.max(scope_state.pending);
            known.opt_out = known.opt_out.max(scope_state.opt_out);
        }
        self.clamped.extend(other.clamped);
        Self {
            scopes: self.scopes,
            last_inbound: self.last_inbound.max(other.last_inbound),
            window_closed: self.window_closed.max(other.window_closed),
            capped: self.capped.max(other.capped),
            failure: self.failure.max(other.failure),
            user_failures: self.user_failures.join(other.user_failures),
            platform: self.platform.join(other.platform),
            suppression: self.suppression.max(other.suppression),
            last_suppressed: self.last_suppressed.max(other.last_suppressed),
            clamped: self.clamped,
            claims: self.claims.join(&other.claims),
        }
    }

    /// The time of the pair's latest event of any kind.
    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        let choices = self
            .scopes
            .values()
            .filter_map(|scope_state| scope_state.choice.map(|choice| choice.time));
        let pending = self
            .scopes
            .values()
            .filter_map(|scope_state| scope_state.pending.map(|scope_state| scope_state.time));
        let choices = choices.chain(pending).max();
        let marks = [self.suppression.map(|(time, _)| time), self.platform.latest()];
        let failure = self.failure.map(|(time, _)| time);
        [choices, self.last_inbound, self.window_closed, self.capped, failure]
            .into_iter()
            .chain(marks)
            .flatten()
            .max()
    }

    /// The standing of a scope: the latest choice, pending opt-in and opt-out on it or on a broader scope.
    #[must_use]
    pub fn standing_on(&self, scope: &Scope) -> ScopeState {
        let class = scope.class().map(Scope::Class);
        let covering = [Some(&Scope::All), class.as_ref(), Some(scope)];
        let mut standing = ScopeState::default();
        for scope_state in covering.into_iter().flatten().filter_map(|scope| self.scopes.get(scope))
        {
            standing.choice = standing.choice.max(scope_state.choice);
            standing.pending = standing.pending.max(scope_state.pending);
            standing.opt_out = standing.opt_out.max(scope_state.opt_out);
        }
        standing
    }

    /// The scopes with an opt-in that waits for its confirmation, and that opt-in.
    pub fn pending(&self) -> impl Iterator<Item = (&Scope, Pending)> {
        self.scopes.iter().filter_map(|(scope, scope_state)| {
            let pending = scope_state.pending?;
            pending.is_pending_over(self.standing_on(scope).choice).then_some((scope, pending))
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
    fn choice_that_denies_more_wins_at_equal_times() {
        let never = Choice::opt_in(at(5), None);
        let later = Choice::opt_in(at(5), Some(at(90)));
        let sooner = Choice::opt_in(at(5), Some(at(80)));
        let out = Choice::opt_out(at(5));
        let ascending = [never, later, sooner, out, Choice::opt_in(at(6), None)];
        for pair in ascending.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
        }
        let pending = Pending::new(at(5), None);
        assert!(pending.is_pending_over(Some(sooner)) && pending.is_pending_over(None));
        assert!(!pending.is_pending_over(Some(out)));
        assert!(Pending::new(at(6), None).is_pending_over(Some(out)));
        assert!(Pending::new(at(5), Some(at(9))) > pending);
    }

    #[test]
    fn scope_over_the_limit_is_refused_except_for_a_denial() {
        let topic = |n: usize| Scope::Topic(Class::Utility, format!("t{n}").into());
        let mut state = State::default();
        for n in 0..MAX_SCOPES {
            let choice = Choice::opt_in(at(1), None);
            assert_eq!(state.apply(&Effect::Choice(topic(n), choice)), Ok(true));
        }
        let opt_in = Effect::Choice(topic(MAX_SCOPES), Choice::opt_in(at(2), None));
        assert_eq!(state.apply(&opt_in), Err(TooManyScopes));
        let known = Effect::Choice(topic(0), Choice::opt_in(at(2), None));
        assert_eq!(state.apply(&known), Ok(true), "a known scope still accepts a choice");
        for n in MAX_SCOPES..MAX_DENIED_SCOPES + 50 {
            let out = Effect::Choice(topic(n), Choice::opt_out(at(3)));
            state.apply(&out).unwrap();
        }
        assert_eq!(state.scopes.len(), MAX_DENIED_SCOPES + 1);
        let class = state.scopes.get(&Scope::Class(Class::Utility));
        let denied = class.and_then(|scope_state| scope_state.choice);
        assert_eq!(denied, Some(Choice::opt_out(at(3))), "denials widen to their class");
    }

    #[test]
    fn latest_is_the_maximum_over_all_parts() {
        let mut state = State::default();
        let scope = Scope::Class(Class::Service);
        let effects = [
            Effect::Choice(scope, Choice::opt_out(at(1))),
            Effect::Inbound(at(2)),
            Effect::WindowClosed(at(3)),
            Effect::Capped(at(4)),
            Effect::Failure { time: at(5), code: 131_026 },
            Effect::Platform { time: at(6), stopped: false, number: None },
            Effect::Suppression { time: at(7), suppressed: false },
        ];
        for (index, effect) in effects.iter().enumerate() {
            state.apply(effect).unwrap();
            let expected = i64::try_from(index).unwrap() + 1;
            assert_eq!(state.latest(), Some(at(expected)));
        }
    }
}
