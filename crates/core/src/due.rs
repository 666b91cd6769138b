//! Opt-ins that lapse: whom a business may want to ask again, before it must not write any more.

use std::ops::Range;

use super::facts::{Resolved, Standing};
use super::scope::{Class, Scope};
use super::state::{Effect, Pending, Said, State, Word};
use super::time::Timestamp;

/// An opt-in that lapses, or that waits for its confirmation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Due {
    /// What it is for.
    pub scope: Scope,
    /// When the user said so.
    pub time: Timestamp,
    /// When it lapses; never, of one that waits.
    pub expire: Option<Timestamp>,
    /// Whether it waits for its confirmation.
    pub pending: bool,
}

impl Due {
    /// Whether this is what the opt-in did to the state: by that its event is found. Records of
    /// older versions do not tell a confirmation from another opt-in.
    #[must_use]
    pub fn is_given_by(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Pending(scope, pending) => {
                self.pending
                    && *scope == self.scope
                    && *pending == Pending::new(self.time, self.expire)
            }
            Effect::Word(scope, Word { time, said: Said::OptIn { expire, .. } }) => {
                !self.pending
                    && *scope == self.scope
                    && (*time, *expire) == (self.time, self.expire)
            }
            _ => false,
        }
    }
}

/// The opt-ins that lapse within `span` and are what stands on their scope: not withdrawn, renewed,
/// suppressed, or made void by a stop inside WhatsApp.
#[must_use]
pub fn lapsing(state: &State, span: &Range<Timestamp>) -> Vec<Due> {
    let resolved = Resolved::of(state);
    let mut found = Vec::new();
    for (scope, said) in &state.scopes {
        let Some(Word { time, said: Said::OptIn { expire: Some(expire), .. } }) = said.word else {
            continue;
        };
        if !span.contains(&expire) || state.standing_on(scope).word != said.word {
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
            found.push(Due { scope: scope.clone(), time, expire: Some(expire), pending: false });
        }
    }
    found
}

/// The opt-ins that wait for their confirmation at `now`, unless the user must not be contacted.
#[must_use]
pub fn waiting(state: &State, now: Timestamp) -> Vec<Due> {
    if state.suppression.is_some_and(|(_, suppressed)| suppressed) {
        return Vec::new();
    }
    let waiting =
        state.pending().filter(|(_, pending)| pending.expire().is_none_or(|expire| now < expire));
    let due = |(scope, pending): (&Scope, Pending)| Due {
        scope: scope.clone(),
        time: pending.time,
        expire: pending.expire(),
        pending: true,
    };
    waiting.map(due).collect()
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
        Effect::Word(Scope::parse(scope).unwrap(), Word::opt_in(at(time), expire.map(at)))
    }

    fn opt_out(scope: &str, time: i64) -> Effect {
        Effect::Word(Scope::parse(scope).unwrap(), Word::opt_out(at(time)))
    }

    fn scopes(effects: &[Effect]) -> Vec<String> {
        let found = lapsing(&state(effects), &(at(100)..at(200)));
        found.iter().map(|due| due.scope.to_string()).collect()
    }

    #[test]
    fn what_lapses_within_the_time_and_still_stands_is_due() {
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
            Effect::Platform { time: at(2), stopped: true },
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
        let stop = Effect::Platform { time: at(2), stopped: true };
        assert_eq!(scopes(&[opt_in("utility", 1, Some(150)), stop]), ["utility"]);
    }

    #[test]
    fn what_waits_is_told_until_it_lapses_or_is_withdrawn() {
        let scope = Scope::parse("marketing").unwrap();
        let pending = Effect::Pending(scope.clone(), Pending::new(at(10), Some(at(50))));
        let waits = state(std::slice::from_ref(&pending));
        let due = Due { scope, time: at(10), expire: Some(at(50)), pending: true };
        assert!(due.is_given_by(&pending) && !due.is_given_by(&opt_in("marketing", 10, Some(50))));
        assert_eq!(waiting(&waits, at(49)), [due]);
        assert!(waiting(&waits, at(50)).is_empty());
        assert!(waiting(&state(&[pending.clone(), opt_out("*", 11)]), at(20)).is_empty());
        let suppressed = Effect::Suppression { time: at(2), suppressed: true };
        assert!(waiting(&state(&[pending, suppressed]), at(20)).is_empty());
    }
}
