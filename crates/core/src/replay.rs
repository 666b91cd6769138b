//! The state of a pair as of a past time, and the decisions that checks would have got then. Pure.
//!
//! The history is replayed by the rules that recorders and checks use ([`State::apply`], [`decide`]), up
//! to the events that were recorded by that time. An event that had happened but was recorded later was
//! not known then.

mod category;
#[cfg(test)]
mod tests;

pub use self::category::UsedCategory;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::decision::{CAP, Form, Policy, Proof, Reason, decide};
use crate::event::{MAX_AHEAD, What};
use crate::failure::UserFailures;
use crate::id::PhoneNumberId;
use crate::record::{ChainHead, HistoryEntry};
use crate::scope::{Category, Class, Scope};
use crate::standing::{Facts, ResolvedState};
use crate::state::{Choice, Effect, Pending, State, TooManyScopes};
use crate::time::{Clock, Timestamp};

/// An event in a pair's history.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEvent {
    /// Its number in the history, from 1; deleted events are counted.
    pub number: u64,
    /// The head of the hash chain after it.
    pub head: ChainHead,
    /// The history entry.
    pub entry: HistoryEntry,
}

/// What is known of the events that were deleted by retention. They are inbound messages and failures.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeletedEvents {
    /// The number of events that the history ever had, including those that are left.
    pub events: u64,
    /// The latest time of all inbound messages, including deleted ones.
    pub last_inbound: Option<Timestamp>,
    /// The latest time of all failures, including deleted ones.
    pub last_failure: Option<Timestamp>,
}

/// What is uncertain about a past time, because events were deleted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Uncertainty {
    /// The number of deleted events that may have been recorded by then.
    pub events: u64,
    /// The time before which all of them were recorded, if a remaining event shows it.
    pub before: Option<Timestamp>,
    /// Whether one of them may have been a message that kept the window open at that time.
    pub inbound: bool,
    /// Whether one of them may have been a failure that denied at that time.
    pub failure: bool,
}

/// A pair as it was known at a past time.
#[derive(Debug)]
pub struct AsOf<'a> {
    /// The time.
    pub at: Timestamp,
    /// The events that had been recorded by then.
    pub known: Vec<&'a HistoryEvent>,
    /// The events that had happened by then and were recorded later.
    pub late: Vec<&'a HistoryEvent>,
    /// What is uncertain because events were deleted.
    pub uncertainty: Uncertainty,
    /// Whether a failure may be among the deleted events, at any time: some of them deny without an end.
    may_lack_failure: bool,
    state: State,
}

/// The decisions that checks about one category would have got.
#[derive(Debug)]
pub struct PastDecision<'a> {
    /// For a template.
    pub template: FormDecision<'a>,
    /// For a free-form message.
    pub free_form: FormDecision<'a>,
    /// When the window, less the margin, closed or was to close.
    pub window_expire: Option<Timestamp>,
}

/// The decision that a check about one form of message would have got.
#[derive(Debug, PartialEq)]
pub struct FormDecision<'a> {
    /// The reason.
    pub reason: Reason,
    /// The events that explain it.
    pub because: Vec<&'a HistoryEvent>,
    /// The other reasons that are possible, depending on the deleted events.
    pub alternatives: Vec<Reason>,
}

impl<'a> AsOf<'a> {
    /// The pair as it was known at `at`. `listed` is its history, oldest first.
    ///
    /// # Errors
    ///
    /// [`TooManyScopes`] if the history was not written by a recorder.
    pub fn of(
        listed: &'a [HistoryEvent],
        deleted: &DeletedEvents,
        policy: &Policy,
        at: Timestamp,
    ) -> Result<Self, TooManyScopes> {
        let is_known = |event: &&HistoryEvent| event.entry.record_time <= at;
        let known: Vec<_> = listed.iter().filter(is_known).collect();
        let is_late = |event: &&HistoryEvent| !is_known(event) && event.entry.time <= at;
        let late = listed.iter().filter(is_late).collect();
        let mut state = State::default();
        for effect in known.iter().flat_map(|event| event.entry.what.effects(event.entry.time)) {
            state.apply(&effect)?;
        }
        let uncertainty = uncertainty(listed, deleted, policy, at);
        let may_lack_failure = uncertainty.events > 0 && deleted.last_failure.is_some();
        Ok(Self { at, known, late, uncertainty, may_lack_failure, state })
    }

    /// The categories worth a decision: every class, and every topic that the events name.
    #[must_use]
    pub fn categories(&self) -> Vec<Scope> {
        let classes = Class::ALL.into_iter().map(Scope::Class);
        let named = self.known.iter().filter_map(|event| match &event.entry.what {
            What::OptIn { category: scope, .. } | What::OptOut { scope, .. } => Some(scope.clone()),
            _ => None,
        });
        let topics: BTreeSet<_> = named.filter(|scope| matches!(scope, Scope::Topic(..))).collect();
        classes.chain(topics).collect()
    }

    /// The decisions of checks about this category, by a sidecar whose table was fresh.
    #[must_use]
    pub fn decision(&self, category: Category<'_>, policy: &Policy) -> PastDecision<'a> {
        let facts = |state: &State| ResolvedState::of(state).facts(category);
        self.decide_by(facts, category.class, &[category.into()], policy)
    }

    /// The decisions of checks of this class by these facts, which are about these scopes.
    fn decide_by(
        &self,
        facts: impl Fn(&State) -> Facts,
        class: Class,
        scopes: &[Scope],
        policy: &Policy,
    ) -> PastDecision<'a> {
        let decide = |state: &State, form| {
            decide(&facts(state), class, form, policy, Clock::at(self.at), Proof::Fresh)
        };
        let possible_states = self.possible_states(policy.deny_after);
        let decision = |form| {
            let reason = decide(&self.state, form).reason;
            let mut alternatives = Vec::new();
            for other in possible_states.iter().map(|state| decide(state, form).reason) {
                if other != reason && !alternatives.contains(&other) {
                    alternatives.push(other);
                }
            }
            let mut because = Vec::new();
            for event in scopes.iter().flat_map(|scope| self.because(reason, scope)) {
                if !because.contains(&event) {
                    because.push(event);
                }
            }
            FormDecision { reason, because, alternatives }
        };
        PastDecision {
            template: decision(Form::Template),
            free_form: decision(Form::FreeForm),
            window_expire: decide(&self.state, Form::Any).window_expire,
        }
    }

    /// The states that were possible, depending on the deleted events.
    fn possible_states(&self, denied_after: UserFailures) -> Vec<State> {
        let mut states = vec![self.state.clone()];
        let mut also = |possible: bool, effect: Effect| {
            if possible {
                let mut more = states.clone();
                for state in &mut more {
                    // This cannot fail: only an effect on a scope can.
                    let _ = state.apply(&effect);
                }
                states.append(&mut more);
            }
        };
        also(self.uncertainty.inbound, Effect::Inbound(self.at));
        also(self.uncertainty.failure, Effect::Capped(self.at));
        also(self.uncertainty.failure, Effect::WindowClosed(self.at));
        for failure in denied_after.iter() {
            let code = failure.code();
            also(self.may_lack_failure, Effect::Failure { time: self.at, code });
        }
        states
    }

    /// The events that explain a decision about this scope.
    fn because(&self, reason: Reason, scope: &Scope) -> Vec<&'a HistoryEvent> {
        let effects = self.effects_behind(reason, scope);
        effects.iter().filter_map(|effect| self.event_of(effect)).collect()
    }

    fn effects_behind(&self, reason: Reason, scope: &Scope) -> Vec<Effect> {
        let state = &self.state;
        let inbound = state.last_inbound.map(Effect::Inbound);
        match reason {
            Reason::OptedIn | Reason::ConsentExpired => self.choices(scope),
            Reason::OptedOut | Reason::OptedOutAll => {
                self.opt_outs(scope).into_iter().chain(self.choices(scope)).collect()
            }
            Reason::ConsentPending => self.pending(scope).into_iter().collect(),
            Reason::WindowOpen => inbound.into_iter().collect(),
            Reason::ReplyAfterOptOut => inbound.into_iter().chain(self.choices(scope)).collect(),
            Reason::WindowClosed => match state.window_closed {
                Some(closed) if state.last_inbound.is_none_or(|inbound| closed >= inbound) => {
                    vec![Effect::WindowClosed(closed)]
                }
                _ => inbound.into_iter().collect(),
            },
            Reason::PlatformStopped => {
                let mut stops: Vec<_> = state.platform.standing().collect();
                stops.sort_by_key(|(_, time)| Reverse(*time));
                let stop = |(number, time): (Option<&PhoneNumberId>, _)| Effect::Platform {
                    time,
                    stopped: true,
                    number: number.cloned(),
                };
                stops.into_iter().map(stop).collect()
            }
            Reason::FrequencyCapped => state.capped.map(Effect::Capped).into_iter().collect(),
            Reason::Suppressed => {
                let suppression = |(time, suppressed)| Effect::Suppression { time, suppressed };
                state.suppression.map(suppression).into_iter().collect()
            }
            Reason::PlatformRefused => {
                let failures = state.user_failures.iter();
                failures
                    .map(|(failure, time)| Effect::Failure { time, code: failure.code() })
                    .collect()
            }
            Reason::NoConsent
            | Reason::Stale
            | Reason::AllowedWhileStale
            | Reason::CountryBlocked => Vec::new(),
        }
    }

    /// The latest choice about a scope, for each of the covering scopes about which it was made.
    fn choices(&self, scope: &Scope) -> Vec<Effect> {
        let Some(standing) = self.state.standing_on(scope).choice else { return Vec::new() };
        let same_choice = |scope: Scope| {
            let choice = self.state.scopes.get(&scope)?.choice?;
            (choice == standing).then_some(Effect::Choice(scope, choice))
        };
        covering(scope).into_iter().filter_map(same_choice).collect()
    }

    /// The opt-outs that deny a scope in addition to its latest choice: a narrower one that is older than
    /// an opt-out of everything, or the one that an expired opt-in had replaced.
    fn opt_outs(&self, scope: &Scope) -> Vec<Effect> {
        let standing = self.state.standing_on(scope);
        let is_over = standing.choice.is_some_and(Choice::is_opt_out);
        let mut scopes = covering(scope);
        scopes.retain(|scope| !is_over || *scope != Scope::All);
        let opt_out = |scope: &Scope| self.state.scopes.get(scope)?.opt_out;
        let latest = scopes.iter().filter_map(opt_out).max();
        let latest = latest.filter(|latest| {
            // A narrower opt-out that was lifted denies nothing, even after an opt-out of everything.
            let choices = scopes.iter().filter_map(|scope| self.state.scopes.get(scope)?.choice);
            !is_over || choices.max() == Some(Choice::opt_out(*latest))
        });
        let denied = scopes.iter().filter(|scope| latest.is_some() && opt_out(scope) == latest);
        let effect = |scope: &Scope| Some(Effect::Choice(scope.clone(), Choice::opt_out(latest?)));
        let choices = self.choices(scope);
        denied.filter_map(effect).filter(|effect| !choices.contains(effect)).collect()
    }

    fn pending(&self, scope: &Scope) -> Option<Effect> {
        let standing: Pending = self.state.standing_on(scope).pending?;
        covering(scope).into_iter().find_map(|scope| {
            let pending = self.state.scopes.get(&scope)?.pending?;
            (pending == standing).then_some(Effect::Pending(scope, pending))
        })
    }

    /// The event that had this effect on the state.
    fn event_of(&self, effect: &Effect) -> Option<&'a HistoryEvent> {
        let did =
            |event: &&&HistoryEvent| event.entry.what.effects(event.entry.time).contains(effect);
        // If a pair has very many scopes, an opt-out of a topic is kept on the topic's class; and if it
        // has very many numbers, a stop is kept without its number.
        let widened = |event: &&&HistoryEvent| match (&event.entry.what, effect) {
            (What::OptOut { scope, .. }, Effect::Choice(kept, choice)) => {
                *choice == Choice::opt_out(event.entry.time) && scope.class() == kept.class()
            }
            (_, Effect::Platform { time, stopped: true, number: None }) => {
                let effects = event.entry.what.effects(*time);
                let is_stop = |effect: &Effect| matches!(effect, Effect::Platform { stopped, .. } if *stopped);
                event.entry.time == *time && effects.iter().any(is_stop)
            }
            _ => false,
        };
        let known = || self.known.iter().rev();
        known().find(did).or_else(|| known().find(widened)).copied()
    }
}

/// The scopes that cover a scope, the broadest first.
fn covering(scope: &Scope) -> BTreeSet<Scope> {
    [Some(Scope::All), scope.class().map(Scope::Class), Some(scope.clone())]
        .into_iter()
        .flatten()
        .collect()
}

/// What is uncertain because of the numbers that are missing in the history. A deleted event was recorded
/// between its remaining neighbours, and happened no later than the last event of its kind.
fn uncertainty(
    listed: &[HistoryEvent],
    deleted: &DeletedEvents,
    policy: &Policy,
    at: Timestamp,
) -> Uncertainty {
    let mut uncertainty = Uncertainty::default();
    let mut before: (u64, Option<Timestamp>) = (0, None);
    let ends = listed.iter().map(|event| (event.number, Some(event.entry.record_time)));
    for (number, recorded) in ends.chain([(deleted.events.saturating_add(1), None)]) {
        let missing = number.saturating_sub(before.0).saturating_sub(1);
        let (earliest, latest) = (before.1, recorded);
        before = (number, recorded);
        if missing == 0 || earliest.is_some_and(|earliest| earliest > at) {
            continue;
        }
        uncertainty.events = uncertainty.events.saturating_add(missing);
        uncertainty.before = latest;
        let may_reach = |last: Option<Timestamp>, span: Duration| {
            let latest = latest.map_or(Timestamp::MAX, |latest| latest.plus(MAX_AHEAD));
            last.is_some_and(|last| last.min(latest) > at.minus(span))
        };
        uncertainty.inbound |= may_reach(deleted.last_inbound, policy.window);
        uncertainty.failure |= may_reach(deleted.last_failure, CAP.max(policy.window));
    }
    uncertainty
}
