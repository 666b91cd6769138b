//! What was known of a pair at a moment, and what a check would have been answered then. Pure.
//!
//! A history is replayed by the rules that recorders and checks go by ([`State::apply`],
//! [`decide`]), up to what the ledger had recorded at that moment: what happened before and was
//! recorded later was not known.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::decision::{CAP, Form, Policy, Proof, Reason, decide};
use crate::event::{MAX_AHEAD, What};
use crate::facts::Resolved;
use crate::record::{ChainHead, HistoryEntry};
use crate::scope::{Category, Class, Scope};
use crate::state::{Effect, Pending, State, TooManyScopes, Word};
use crate::time::{Clock, Timestamp};

/// An event of a pair's history that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// Its number among all that the history ever had, from 1.
    pub number: u64,
    /// The chain's head after it.
    pub head: ChainHead,
    /// What was recorded.
    pub entry: HistoryEntry,
}

/// What is known of the events that are no longer kept: inbound messages and failures alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gone {
    /// How many events the history ever had.
    pub events: u64,
    /// The latest time of all inbound messages, of those that are gone too.
    pub last_inbound: Option<Timestamp>,
    /// The latest time of all failures, likewise.
    pub last_failure: Option<Timestamp>,
}

/// What cannot be known of the moment, since events are no longer kept.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Unknown {
    /// How many events that may have been recorded by then are gone.
    pub events: u64,
    /// The moment before which all of them were recorded, where one of those kept tells.
    pub before: Option<Timestamp>,
    /// Whether one may have been a message that opened the window at the moment.
    pub inbound: bool,
    /// Whether one may have been a refusal that counted at the moment.
    pub failure: bool,
}

/// A pair as it was known at a moment.
#[derive(Debug)]
pub struct Past<'a> {
    /// The moment.
    pub at: Timestamp,
    /// What had been recorded by then.
    pub known: Vec<&'a Listed>,
    /// What had happened by then, and was recorded later.
    pub late: Vec<&'a Listed>,
    /// What cannot be known.
    pub unknown: Unknown,
    state: State,
}

/// What would have been answered about one category.
#[derive(Debug)]
pub struct Answer<'a> {
    /// About a template.
    pub template: Said<'a>,
    /// About a free-form message.
    pub free_form: Said<'a>,
    /// When the window, less the margin, closed or was to close.
    pub window_expire: Option<Timestamp>,
}

/// What would have been answered about one form of message.
#[derive(Debug, PartialEq)]
pub struct Said<'a> {
    /// Why it was allowed or denied.
    pub reason: Reason,
    /// The events that this rests on.
    pub because: Vec<&'a Listed>,
    /// What else it may have been, had one of the events that are gone happened.
    pub or_else: Vec<Reason>,
}

impl<'a> Past<'a> {
    /// The pair as it was known at `at`; `listed` is its history, oldest first.
    ///
    /// # Errors
    ///
    /// [`TooManyScopes`] where the history is not one that a recorder wrote.
    pub fn of(
        listed: &'a [Listed],
        gone: &Gone,
        policy: &Policy,
        at: Timestamp,
    ) -> Result<Self, TooManyScopes> {
        let is_known = |event: &&Listed| event.entry.record_time <= at;
        let known: Vec<_> = listed.iter().filter(is_known).collect();
        let is_late = |event: &&Listed| !is_known(event) && event.entry.time <= at;
        let late = listed.iter().filter(is_late).collect();
        let mut state = State::default();
        for effect in known.iter().flat_map(|event| event.entry.what.effects(event.entry.time)) {
            state.apply(&effect)?;
        }
        let unknown = unknown(listed, gone, policy, at);
        Ok(Self { at, known, late, unknown, state })
    }

    /// The categories to ask about: every class, and every topic that the events name.
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

    /// What a check about this category would have been answered by a sidecar that was current.
    #[must_use]
    pub fn answer(&self, category: Category<'_>, policy: &Policy) -> Answer<'a> {
        let decide = |state: &State, form| {
            let facts = Resolved::of(state).facts(category);
            decide(&facts, category.class, form, policy, Clock::at(self.at), Proof::Fresh)
        };
        let otherwise = self.otherwise();
        let said = |form| {
            let reason = decide(&self.state, form).reason;
            let mut or_else = Vec::new();
            for other in otherwise.iter().map(|state| decide(state, form).reason) {
                if other != reason && !or_else.contains(&other) {
                    or_else.push(other);
                }
            }
            Said { reason, because: self.because(reason, &category.into()), or_else }
        };
        Answer {
            template: said(Form::Template),
            free_form: said(Form::FreeForm),
            window_expire: decide(&self.state, Form::Any).window_expire,
        }
    }

    /// The states that it may have been as well, as far as events are gone.
    fn otherwise(&self) -> Vec<State> {
        let mut states = vec![self.state.clone()];
        let mut also = |possible: bool, effect: Effect| {
            if possible {
                let mut more = states.clone();
                for state in &mut more {
                    // These need no scope.
                    let _ = state.apply(&effect);
                }
                states.append(&mut more);
            }
        };
        also(self.unknown.inbound, Effect::Inbound(self.at));
        also(self.unknown.failure, Effect::Capped(self.at));
        also(self.unknown.failure, Effect::WindowClosed(self.at));
        states
    }

    /// The events that a decision about this scope rests on.
    fn because(&self, reason: Reason, scope: &Scope) -> Vec<&'a Listed> {
        let effects = self.effects_behind(reason, scope);
        effects.iter().filter_map(|effect| self.that_did(effect)).collect()
    }

    fn effects_behind(&self, reason: Reason, scope: &Scope) -> Vec<Effect> {
        let state = &self.state;
        let inbound = state.last_inbound.map(Effect::Inbound);
        match reason {
            Reason::OptedIn | Reason::ConsentExpired => self.words(scope),
            Reason::OptedOut | Reason::OptedOutAll => {
                self.opt_outs(scope).into_iter().chain(self.words(scope)).collect()
            }
            Reason::ConsentPending => self.pending(scope).into_iter().collect(),
            Reason::WindowOpen => inbound.into_iter().collect(),
            Reason::ReplyAfterOptOut => inbound.into_iter().chain(self.words(scope)).collect(),
            Reason::WindowClosed => match state.window_closed {
                Some(closed) if state.last_inbound.is_none_or(|inbound| closed >= inbound) => {
                    vec![Effect::WindowClosed(closed)]
                }
                _ => inbound.into_iter().collect(),
            },
            Reason::PlatformStopped => {
                let platform = |(time, stopped)| Effect::Platform { time, stopped };
                state.platform.map(platform).into_iter().collect()
            }
            Reason::FrequencyCapped => state.capped.map(Effect::Capped).into_iter().collect(),
            Reason::Suppressed => {
                let suppression = |(time, suppressed)| Effect::Suppression { time, suppressed };
                state.suppression.map(suppression).into_iter().collect()
            }
            Reason::NoConsent | Reason::Stale | Reason::AllowedWhileStale => Vec::new(),
        }
    }

    /// What stands on a scope, on each of the scopes that cover it on which it was said.
    fn words(&self, scope: &Scope) -> Vec<Effect> {
        let Some(standing) = self.state.standing_on(scope).word else { return Vec::new() };
        let said = |scope: Scope| {
            let word = self.state.scopes.get(&scope)?.word?;
            (word == standing).then_some(Effect::Word(scope, word))
        };
        covering(scope).into_iter().filter_map(said).collect()
    }

    /// The opt-outs that deny a scope beside the word that stands on it: a narrower one that is older
    /// than an opt-out of everything, or the one that an opt-in replaced which has lapsed.
    fn opt_outs(&self, scope: &Scope) -> Vec<Effect> {
        let standing = self.state.standing_on(scope);
        let is_over = standing.word.is_some_and(Word::is_opt_out);
        let mut scopes = covering(scope);
        scopes.retain(|scope| !is_over || *scope != Scope::All);
        let opt_out = |scope: &Scope| self.state.scopes.get(scope)?.opt_out;
        let latest = scopes.iter().filter_map(opt_out).max();
        let latest = latest.filter(|latest| {
            // Beside an opt-out of everything, a narrower one that was lifted denies nothing.
            let words = scopes.iter().filter_map(|scope| self.state.scopes.get(scope)?.word);
            !is_over || words.max() == Some(Word::opt_out(*latest))
        });
        let denied = scopes.iter().filter(|scope| latest.is_some() && opt_out(scope) == latest);
        let effect = |scope: &Scope| Some(Effect::Word(scope.clone(), Word::opt_out(latest?)));
        let words = self.words(scope);
        denied.filter_map(effect).filter(|effect| !words.contains(effect)).collect()
    }

    fn pending(&self, scope: &Scope) -> Option<Effect> {
        let standing: Pending = self.state.standing_on(scope).pending?;
        covering(scope).into_iter().find_map(|scope| {
            let pending = self.state.scopes.get(&scope)?.pending?;
            (pending == standing).then_some(Effect::Pending(scope, pending))
        })
    }

    /// The event that did something to the state.
    fn that_did(&self, effect: &Effect) -> Option<&'a Listed> {
        let did = |event: &&&Listed| event.entry.what.effects(event.entry.time).contains(effect);
        // Where a pair has very many scopes, an opt-out of a topic is kept on its class.
        let widened = |event: &&&Listed| match (&event.entry.what, effect) {
            (What::OptOut { scope, .. }, Effect::Word(kept, word)) => {
                *word == Word::opt_out(event.entry.time) && scope.class() == kept.class()
            }
            _ => false,
        };
        let known = || self.known.iter().rev();
        known().find(did).or_else(|| known().find(widened)).copied()
    }
}

/// The scopes whose events count for one, the broadest first.
fn covering(scope: &Scope) -> BTreeSet<Scope> {
    [Some(Scope::All), scope.class().map(Scope::Class), Some(scope.clone())]
        .into_iter()
        .flatten()
        .collect()
}

/// What the numbers that are missing among those kept leave open. A missing one was recorded
/// between its neighbours, and happened no later than the last of its kind.
fn unknown(listed: &[Listed], gone: &Gone, policy: &Policy, at: Timestamp) -> Unknown {
    let mut unknown = Unknown::default();
    let mut before: (u64, Option<Timestamp>) = (0, None);
    let ends = listed.iter().map(|event| (event.number, Some(event.entry.record_time)));
    for (number, recorded) in ends.chain([(gone.events.saturating_add(1), None)]) {
        let missing = number.saturating_sub(before.0).saturating_sub(1);
        let (earliest, latest) = (before.1, recorded);
        before = (number, recorded);
        if missing == 0 || earliest.is_some_and(|earliest| earliest > at) {
            continue;
        }
        unknown.events = unknown.events.saturating_add(missing);
        unknown.before = latest;
        let may_reach = |last: Option<Timestamp>, span: Duration| {
            let latest = latest.map_or(Timestamp::MAX, |latest| latest.plus(MAX_AHEAD));
            last.is_some_and(|last| last.min(latest) > at.minus(span))
        };
        unknown.inbound |= may_reach(gone.last_inbound, policy.window);
        unknown.failure |= may_reach(gone.last_failure, CAP.max(policy.window));
    }
    unknown
}
