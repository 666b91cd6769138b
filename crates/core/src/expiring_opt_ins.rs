//! Opt-ins that expire, or that wait for their confirmation: a business may want to ask these users
//! again before the opt-in ends.

use std::ops::Range;

use super::scope::{Class, Scope};
use super::standing::{ResolvedState, Standing};
use super::state::{Choice, ChoiceKind, Effect, Pending, State};
use super::time::Timestamp;

/// An opt-in that expires, or that waits for its confirmation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExpiringOptIn {
    /// The scope opted in to.
    pub scope: Scope,
    /// The event time of the opt-in.
    pub time: Timestamp,
    /// When it expires. `None` only if `pending`, for an opt-in that never expires.
    pub expire: Option<Timestamp>,
    /// Whether it waits for its confirmation.
    pub pending: bool,
}

impl ExpiringOptIn {
    /// Whether `effect` is the opt-in's effect on the state, by which its event is found in the history.
    /// It does not compare `confirms`, which records of older versions do not have.
    #[must_use]
    pub fn is_effect(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Pending(scope, pending) => {
                self.pending
                    && *scope == self.scope
                    && *pending == Pending::new(self.time, self.expire)
            }
            Effect::Choice(scope, Choice { time, kind: ChoiceKind::OptIn { expire, .. } }) => {
                !self.pending
                    && *scope == self.scope
                    && (*time, *expire) == (self.time, self.expire)
            }
            _ => false,
        }
    }
}

/// The opt-ins that expire within `span` and are in force on their scope: not withdrawn, renewed,
/// suppressed, or overridden by a stop inside WhatsApp.
#[must_use]
pub fn expiring(state: &State, span: &Range<Timestamp>) -> Vec<ExpiringOptIn> {
    let resolved = ResolvedState::of(state);
    let mut found = Vec::new();
    for (scope, scope_state) in &state.scopes {
        let Some(Choice { time, kind: ChoiceKind::OptIn { expire: Some(expire), .. } }) =
            scope_state.choice
        else {
            continue;
        };
        if !span.contains(&expire) || state.standing_on(scope).choice != scope_state.choice {
            continue;
        }
        let Some(category) = scope.category() else { continue };
        let facts = resolved.facts(category);
        let stopped = facts.platform_stopped && category.class == Class::Marketing;
        let stands = match facts.standing {
            Standing::OptedIn { expire: until } => until == Some(expire),
            Standing::OptedInOverOptOut { expire: until, .. } => until == expire,
            _ => false,
        };
        if stands && !stopped && !facts.suppressed {
            found.push(ExpiringOptIn {
                scope: scope.clone(),
                time,
                expire: Some(expire),
                pending: false,
            });
        }
    }
    found
}

/// The opt-ins that wait for their confirmation at `now`. None if the user is suppressed.
#[must_use]
pub fn unconfirmed(state: &State, now: Timestamp) -> Vec<ExpiringOptIn> {
    if state.suppression.is_some_and(|(_, suppressed)| suppressed) {
        return Vec::new();
    }
    let unconfirmed =
        state.pending().filter(|(_, pending)| pending.expire().is_none_or(|expire| now < expire));
    let opt_in = |(scope, pending): (&Scope, Pending)| ExpiringOptIn {
        scope: scope.clone(),
        time: pending.time,
        expire: pending.expire(),
        pending: true,
    };
    unconfirmed.map(opt_in).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    fn state(effects: &[Effect]) -> State {
        let mut state = State::default();
        for effect in effects {
            state.apply(effect).unwrap();
        }
        state
    }

    fn opt_in(scope: &str, time: i64, expire: Option<i64>) -> Effect {
        Effect::Choice(Scope::parse(scope).unwrap(), Choice::opt_in(at(time), expire.map(at)))
    }

    fn opt_out(scope: &str, time: i64) -> Effect {
        Effect::Choice(Scope::parse(scope).unwrap(), Choice::opt_out(at(time)))
    }

    fn scopes(effects: &[Effect]) -> Vec<String> {
        let found = expiring(&state(effects), &(at(100)..at(200)));
        found.iter().map(|due| due.scope.to_string()).collect()
    }

    #[test]
    fn opt_in_in_force_that_expires_within_the_span_is_found() {
        let sale = opt_in("marketing.sale", 1, Some(150));
        assert_eq!(scopes(std::slice::from_ref(&sale)), ["marketing.sale"]);
        for (outside, expire) in [("sooner", Some(99)), ("then", Some(200)), ("never", None)] {
            assert!(scopes(&[opt_in("marketing", 1, expire)]).is_empty(), "{outside}");
        }
        assert_eq!(scopes(&[opt_in("utility", 1, Some(100))]), ["utility"]);
        for later in [
            opt_in("marketing.sale", 2, Some(900)),
            opt_in("marketing", 2, None),
            opt_out("marketing.sale", 2),
            opt_out("marketing", 2),
            opt_out("*", 2),
            Effect::Suppression { time: at(2), suppressed: true },
            Effect::Platform { time: at(2), stopped: true, number: None },
        ] {
            assert!(scopes(&[sale.clone(), later.clone()]).is_empty(), "{later:?}");
        }
        for beside in [
            opt_in("marketing.other", 2, None),
            opt_out("utility", 2),
            Effect::Suppression { time: at(2), suppressed: false },
            opt_in("marketing.sale", 0, Some(900)),
        ] {
            assert_eq!(scopes(&[sale.clone(), beside]), ["marketing.sale"]);
        }
        let stop = Effect::Platform { time: at(2), stopped: true, number: None };
        assert_eq!(scopes(&[opt_in("utility", 1, Some(150)), stop]), ["utility"]);
    }

    #[test]
    fn pending_opt_in_is_found_until_it_expires_or_is_withdrawn() {
        let scope = Scope::parse("marketing").unwrap();
        let pending = Effect::Pending(scope.clone(), Pending::new(at(10), Some(at(50))));
        let waits = state(std::slice::from_ref(&pending));
        let due = ExpiringOptIn { scope, time: at(10), expire: Some(at(50)), pending: true };
        assert!(due.is_effect(&pending) && !due.is_effect(&opt_in("marketing", 10, Some(50))));
        assert_eq!(unconfirmed(&waits, at(49)), [due]);
        assert!(unconfirmed(&waits, at(50)).is_empty());
        assert!(unconfirmed(&state(&[pending.clone(), opt_out("*", 11)]), at(20)).is_empty());
        let suppressed = Effect::Suppression { time: at(2), suppressed: true };
        assert!(unconfirmed(&state(&[pending, suppressed]), at(20)).is_empty());
    }
}
