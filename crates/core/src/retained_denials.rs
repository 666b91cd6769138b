//! Retained denials: the denials that a pair had before the ledger lost data. They stay in force.
//!
//! The table stores no event times. So retained denials are stamped with the time at which the loss was
//! detected, and only a later event lifts them.

use super::scope::{Category, Class, Scope};
use super::standing::{Facts, Profile, ScopeStanding, Standing};
use super::state::{Choice, Effect, State};
use super::time::Timestamp;

/// Whether a class or a topic was opted out of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Deny {
    denied: bool,
    /// Whether by an opt-out of this scope itself, and not of a broader one.
    own: bool,
}

impl Deny {
    fn of(on_scope: ScopeStanding) -> Self {
        let denied = on_scope.kind.is_opt_out();
        Self { denied, own: denied && on_scope.own }
    }

    fn join(self, other: Self) -> Self {
        Self { denied: self.denied || other.denied, own: self.own || other.own }
    }
}

/// The denials of a pair: opt-outs, a stop inside WhatsApp, and a suppression.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RetainedDenials {
    suppressed: bool,
    platform_stopped: bool,
    /// Whether there was an opt-out of everything, even if there were narrower opt-ins since.
    all: bool,
    classes: [Deny; 4],
    /// The topics whose denial may differ from that of their class.
    topics: Vec<(Class, Box<str>, Deny)>,
}

impl RetainedDenials {
    /// The denials of a pair with this profile, or `None` if it has none.
    #[must_use]
    pub fn of(profile: &Profile) -> Option<Self> {
        let denies = profile.suppressed
            || profile.platform_stopped
            || profile.opted_out_all.is_some()
            || profile.classes.iter().any(|on_scope| on_scope.kind.is_opt_out())
            || profile.topics.iter().any(|(_, _, on_scope)| on_scope.kind.is_opt_out());
        denies.then(|| Self {
            suppressed: profile.suppressed,
            platform_stopped: profile.platform_stopped,
            all: profile.opted_out_all.is_some(),
            classes: profile.classes.map(Deny::of),
            topics: profile
                .topics
                .iter()
                .map(|(class, topic, on_scope)| (*class, topic.clone(), Deny::of(*on_scope)))
                .collect(),
        })
    }

    /// The denials of both.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        let mut classes = self.classes;
        for (ours, theirs) in classes.iter_mut().zip(other.classes) {
            *ours = ours.join(theirs);
        }
        let named = self.topics.iter().chain(&other.topics);
        let mut topics: Vec<(Class, Box<str>, Deny)> = Vec::new();
        for (class, topic, _) in named {
            if !topics.iter().any(|(known, name, _)| known == class && name == topic) {
                let deny = self.on_topic(*class, topic).join(other.on_topic(*class, topic));
                topics.push((*class, topic.clone(), deny));
            }
        }
        Self {
            suppressed: self.suppressed || other.suppressed,
            platform_stopped: self.platform_stopped || other.platform_stopped,
            all: self.all || other.all,
            classes,
            topics,
        }
    }

    fn on_class(&self, class: Class) -> Deny {
        let all = Class::ALL.into_iter().zip(self.classes);
        all.into_iter().find(|(known, _)| *known == class).map(|(_, deny)| deny).unwrap_or_default()
    }

    fn on_topic(&self, class: Class, topic: &str) -> Deny {
        let own = self.topics.iter().find(|(known, name, _)| *known == class && **name == *topic);
        own.map_or_else(|| Deny { own: false, ..self.on_class(class) }, |(_, _, deny)| *deny)
    }

    /// The denials that `state` does not have, as a state in which they happened at `at`. `None` if
    /// `state` has all of them.
    #[must_use]
    pub fn missing_from(&self, state: &State, at: Timestamp) -> Option<State> {
        let mut lost = State::default();
        let denies =
            |scope: &Scope| state.standing_on(scope).choice.is_some_and(Choice::is_opt_out);
        let is_set = |mark: Option<(Timestamp, bool)>| mark.is_some_and(|(_, set)| set);
        let classes = Class::ALL.into_iter().filter(|class| self.on_class(*class).denied);
        let classes: Vec<_> = classes.map(Scope::Class).filter(|scope| !denies(scope)).collect();
        if self.all && classes.len() == Class::ALL.len() {
            deny(&mut lost, &Effect::Choice(Scope::All, Choice::opt_out(at)));
        } else {
            for scope in classes {
                deny(&mut lost, &Effect::Choice(scope, Choice::opt_out(at)));
            }
        }
        let ours = self.topics.iter().map(|(class, topic, _)| (*class, topic));
        let theirs = state.scopes.keys().filter_map(|scope| match scope {
            Scope::Topic(class, topic) => Some((*class, topic)),
            _ => None,
        });
        for (class, topic) in ours.chain(theirs) {
            let scope = Scope::Topic(class, topic.clone());
            let covered = lost.standing_on(&scope).choice.is_some();
            if !covered && self.on_topic(class, topic).denied && !denies(&scope) {
                deny(&mut lost, &Effect::Choice(scope, Choice::opt_out(at)));
            }
        }
        if self.platform_stopped && !is_set(state.platform) {
            deny(&mut lost, &Effect::Platform { time: at, stopped: true });
        }
        if self.suppressed && !is_set(state.suppression) {
            deny(&mut lost, &Effect::Suppression { time: at, suppressed: true });
        }
        (lost != State::default()).then_some(lost)
    }

    /// The denials on scopes that `state` does not have at all, as a state in which they happened at
    /// `at`. `None` if there are none. A record only grows, so that a scope disappears only if the ledger
    /// lost data, or the pair was erased: the tombstone has no scopes and denies everything.
    #[must_use]
    pub fn dropped_scopes(&self, state: &State, at: Timestamp) -> Option<State> {
        // A state with a suppression and scopes is no tombstone: the suppression may be lifted, and the
        // denials must then still be there.
        if state.scopes.is_empty() && state.suppression.is_some_and(|(_, set)| set) {
            return None;
        }
        let mut lost = State::default();
        let all = self.all.then_some(Scope::All);
        let classes = Class::ALL.into_iter().filter(|class| self.on_class(*class).own);
        let topics = self.topics.iter().filter(|(_, _, deny)| deny.own);
        let topics = topics.map(|(class, topic, _)| Scope::Topic(*class, topic.clone()));
        for scope in all.into_iter().chain(classes.map(Scope::Class)).chain(topics) {
            if state.scopes.get(&scope).is_none_or(|scope_state| scope_state.choice.is_none()) {
                deny(&mut lost, &Effect::Choice(scope, Choice::opt_out(at)));
            }
        }
        if self.platform_stopped && state.platform.is_none() {
            deny(&mut lost, &Effect::Platform { time: at, stopped: true });
        }
        if self.suppressed && state.suppression.is_none() {
            deny(&mut lost, &Effect::Suppression { time: at, suppressed: true });
        }
        (lost != State::default()).then_some(lost)
    }

    /// The facts about `category` with these denials added.
    #[must_use]
    pub fn overlay(&self, category: Category<'_>, facts: Facts) -> Facts {
        let deny = match category.topic {
            Some(topic) => self.on_topic(category.class, topic),
            None => self.on_class(category.class),
        };
        Facts {
            standing: if deny.denied { Standing::OptedOut } else { facts.standing },
            suppressed: facts.suppressed || self.suppressed,
            platform_stopped: facts.platform_stopped || self.platform_stopped,
            ..facts
        }
    }
}

/// Applies a denial. It cannot fail: a denial is accepted even if a state has the maximum number of
/// scopes.
fn deny(state: &mut State, effect: &Effect) {
    let _ = state.apply(effect);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standing::ResolvedState;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    fn scope(text: &str) -> Scope {
        Scope::parse(text).unwrap()
    }

    fn state(choices: &[(&str, Choice)]) -> State {
        let mut state = State::default();
        for (on, choice) in choices {
            state.apply(&Effect::Choice(scope(on), *choice)).unwrap();
        }
        state
    }

    fn denied(state: &State) -> Option<RetainedDenials> {
        RetainedDenials::of(&ResolvedState::of(state).profile)
    }

    fn out(millis: i64) -> Choice {
        Choice::opt_out(at(millis))
    }

    fn opt_in(millis: i64) -> Choice {
        Choice::opt_in(at(millis), None)
    }

    const NOW: i64 = 1_000;

    #[test]
    fn pair_without_denials_has_no_retained_denials() {
        assert_eq!(denied(&state(&[("marketing", opt_in(1))])), None);
        assert_eq!(denied(&State::default()), None);
    }

    #[test]
    fn denial_still_in_the_state_is_not_missing() {
        let before = state(&[("*", out(5)), ("marketing", opt_in(9))]);
        let old = denied(&before).unwrap();
        assert_eq!(old.missing_from(&before, at(NOW)), None);
        assert_eq!(old.dropped_scopes(&before, at(NOW)), None);
        let later = state(&[("*", out(5)), ("marketing", opt_in(20))]);
        assert_eq!(old.missing_from(&later, at(NOW)), None, "marketing was allowed before, too");
    }

    #[test]
    fn lost_opt_out_is_missing_on_its_scope() {
        let old = denied(&state(&[("*", out(5))])).unwrap();
        assert_eq!(old.missing_from(&State::default(), at(NOW)), Some(state(&[("*", out(NOW))])));
        let old = denied(&state(&[("marketing", out(5))])).unwrap();
        let lost = old.missing_from(&state(&[("marketing", opt_in(1))]), at(NOW));
        assert_eq!(lost, Some(state(&[("marketing", out(NOW))])));
        // All but marketing was denied: that it was opted in to again must not be lost as well.
        let old = denied(&state(&[("*", out(5)), ("marketing", opt_in(9))])).unwrap();
        let lost = old.missing_from(&state(&[("marketing", opt_in(9))]), at(NOW)).unwrap();
        assert_eq!(
            lost.scopes.keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["utility", "authentication", "service"]
        );
    }

    #[test]
    fn older_opt_out_does_not_hide_the_loss_of_a_newer_one() {
        let old = denied(&state(&[("*", out(30)), ("marketing", opt_in(20))])).unwrap();
        let now = state(&[("*", out(10)), ("marketing", opt_in(20))]);
        assert_eq!(old.missing_from(&now, at(NOW)), Some(state(&[("marketing", out(NOW))])));
        let topic = [("utility", out(10)), ("utility.orders", opt_in(20))];
        let old = denied(&state(&[("utility", out(30))])).unwrap();
        let lost = old.missing_from(&state(&topic), at(NOW));
        assert_eq!(lost, Some(state(&[("utility.orders", out(NOW))])));
        let old = denied(&state(&topic)).unwrap();
        assert_eq!(old.missing_from(&state(&topic), at(NOW)), None);
    }

    #[test]
    fn stop_and_suppression_are_retained() {
        let mut before = State::default();
        before.apply(&Effect::Platform { time: at(3), stopped: true }).unwrap();
        before.apply(&Effect::Suppression { time: at(4), suppressed: true }).unwrap();
        let old = denied(&before).unwrap();
        let lost = old.missing_from(&State::default(), at(NOW)).unwrap();
        assert_eq!(
            (lost.platform, lost.suppression),
            (Some((at(NOW), true)), Some((at(NOW), true)))
        );
        assert_eq!(old.dropped_scopes(&State::default(), at(NOW)), Some(lost));
        let mut lifted = before.clone();
        lifted.apply(&Effect::Suppression { time: at(9), suppressed: false }).unwrap();
        lifted.apply(&Effect::Platform { time: at(9), stopped: false }).unwrap();
        assert_eq!(old.dropped_scopes(&lifted, at(NOW)), None, "they were lifted, not lost");
    }

    #[test]
    fn scope_with_a_new_choice_is_not_dropped() {
        let old = denied(&state(&[("marketing", out(5)), ("utility.orders", out(6))])).unwrap();
        let mut now = state(&[("marketing", opt_in(9))]);
        let lost = old.dropped_scopes(&now, at(NOW));
        now.apply(&Effect::Suppression { time: at(9), suppressed: true }).unwrap();
        assert_eq!(old.dropped_scopes(&now, at(NOW)), lost, "a suppression may be lifted");
        let mut erased = State::default();
        erased.apply(&Effect::Suppression { time: at(9), suppressed: true }).unwrap();
        assert_eq!(old.dropped_scopes(&erased, at(NOW)), None);
        assert_eq!(lost, Some(state(&[("utility.orders", out(NOW))])));
    }

    #[test]
    fn joined_denials_have_those_of_both() {
        let one = denied(&state(&[("utility", out(10)), ("utility.orders", opt_in(20))])).unwrap();
        let other = denied(&state(&[("utility", out(30))])).unwrap();
        let both = one.join(&other);
        assert!(both.on_topic(Class::Utility, "orders").denied);
        assert!(!one.on_topic(Class::Utility, "orders").denied);
        assert_eq!(both, other.join(&one));
        assert_eq!(both.join(&both), both);
    }

    #[test]
    fn overlay_denies_whatever_the_facts() {
        let old = denied(&state(&[("marketing", out(5))])).unwrap();
        let on =
            |category| old.overlay(Category::parse(category).unwrap(), Facts::NOTHING).standing;
        assert_eq!(on("marketing"), Standing::OptedOut);
        assert_eq!(on("marketing.sale"), Standing::OptedOut);
        assert_eq!(on("utility"), Standing::None);
    }
}
