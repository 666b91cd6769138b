//! What a pair was denied, so that it stays denied where a ledger has lost the events that said so.
//!
//! A table knows no times: what stood in it is remembered as of the moment at which the loss was
//! seen, so that what is said later, and only that, can lift it.

use super::facts::{Facts, Marked, Profile, Standing};
use super::scope::{Category, Class, Scope};
use super::state::{Effect, State, Word};
use super::time::Timestamp;

/// Whether messages of a class or a topic were denied by an opt-out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Deny {
    denied: bool,
    /// Whether by a word on this very scope.
    own: bool,
}

impl Deny {
    fn of(marked: Marked) -> Self {
        let denied = marked.mark.is_opt_out();
        Self { denied, own: denied && marked.own }
    }

    fn or(self, other: Self) -> Self {
        Self { denied: self.denied || other.denied, own: self.own || other.own }
    }
}

/// What a pair was denied by its user's word, by WhatsApp, or by a suppression.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denied {
    suppressed: bool,
    platform_stopped: bool,
    /// Whether there was an opt-out of everything, whatever was opted in to again since.
    all: bool,
    classes: [Deny; 4],
    /// Those on which something else may have stood than on their class.
    topics: Vec<(Class, Box<str>, Deny)>,
}

impl Denied {
    /// What a pair of this profile is denied; none where it is denied nothing.
    #[must_use]
    pub fn of(profile: &Profile) -> Option<Self> {
        let denies = profile.suppressed
            || profile.platform_stopped
            || profile.opted_out_all.is_some()
            || profile.classes.iter().any(|marked| marked.mark.is_opt_out())
            || profile.topics.iter().any(|(_, _, marked)| marked.mark.is_opt_out());
        denies.then(|| Self {
            suppressed: profile.suppressed,
            platform_stopped: profile.platform_stopped,
            all: profile.opted_out_all.is_some(),
            classes: profile.classes.map(Deny::of),
            topics: profile
                .topics
                .iter()
                .map(|(class, topic, marked)| (*class, topic.clone(), Deny::of(*marked)))
                .collect(),
        })
    }

    /// What either was denied.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        let mut classes = self.classes;
        for (ours, theirs) in classes.iter_mut().zip(other.classes) {
            *ours = ours.or(theirs);
        }
        let named = self.topics.iter().chain(&other.topics);
        let mut topics: Vec<(Class, Box<str>, Deny)> = Vec::new();
        for (class, topic, _) in named {
            if !topics.iter().any(|(known, name, _)| known == class && name == topic) {
                let deny = self.on_topic(*class, topic).or(other.on_topic(*class, topic));
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

    /// What this denied and `state` does not deny, as said at `at`; none where that is nothing.
    #[must_use]
    pub fn beyond(&self, state: &State, at: Timestamp) -> Option<State> {
        let mut lost = State::default();
        let denies = |scope: &Scope| state.standing_on(scope).word.is_some_and(Word::is_opt_out);
        let is_set = |mark: Option<(Timestamp, bool)>| mark.is_some_and(|(_, set)| set);
        let classes = Class::ALL.into_iter().filter(|class| self.on_class(*class).denied);
        let classes: Vec<_> = classes.map(Scope::Class).filter(|scope| !denies(scope)).collect();
        if self.all && classes.len() == Class::ALL.len() {
            say(&mut lost, &Effect::Word(Scope::All, Word::opt_out(at)));
        } else {
            for scope in classes {
                say(&mut lost, &Effect::Word(scope, Word::opt_out(at)));
            }
        }
        let ours = self.topics.iter().map(|(class, topic, _)| (*class, topic));
        let theirs = state.scopes.keys().filter_map(|scope| match scope {
            Scope::Topic(class, topic) => Some((*class, topic)),
            _ => None,
        });
        for (class, topic) in ours.chain(theirs) {
            let scope = Scope::Topic(class, topic.clone());
            let covered = lost.standing_on(&scope).word.is_some();
            if !covered && self.on_topic(class, topic).denied && !denies(&scope) {
                say(&mut lost, &Effect::Word(scope, Word::opt_out(at)));
            }
        }
        if self.platform_stopped && !is_set(state.platform) {
            say(&mut lost, &Effect::Platform { time: at, stopped: true });
        }
        if self.suppressed && !is_set(state.suppression) {
            say(&mut lost, &Effect::Suppression { time: at, suppressed: true });
        }
        (lost != State::default()).then_some(lost)
    }

    /// What this denied on scopes that `state` knows nothing of any more, as said at `at`; none
    /// where that is nothing. Records only grow, so nothing but a loss makes a scope vanish; an
    /// erased one has none, and denies everything.
    #[must_use]
    pub fn vanished_from(&self, state: &State, at: Timestamp) -> Option<State> {
        // A suppression alone makes no tombstone: one that has scopes may be lifted, and what it hid
        // would be forgotten.
        if state.scopes.is_empty() && state.suppression.is_some_and(|(_, set)| set) {
            return None;
        }
        let mut lost = State::default();
        let all = self.all.then_some(Scope::All);
        let classes = Class::ALL.into_iter().filter(|class| self.on_class(*class).own);
        let topics = self.topics.iter().filter(|(_, _, deny)| deny.own);
        let topics = topics.map(|(class, topic, _)| Scope::Topic(*class, topic.clone()));
        for scope in all.into_iter().chain(classes.map(Scope::Class)).chain(topics) {
            if state.scopes.get(&scope).is_none_or(|said| said.word.is_none()) {
                say(&mut lost, &Effect::Word(scope, Word::opt_out(at)));
            }
        }
        if self.platform_stopped && state.platform.is_none() {
            say(&mut lost, &Effect::Platform { time: at, stopped: true });
        }
        if self.suppressed && state.suppression.is_none() {
            say(&mut lost, &Effect::Suppression { time: at, suppressed: true });
        }
        (lost != State::default()).then_some(lost)
    }

    /// These facts about `category`, with what this denies on top.
    #[must_use]
    pub fn over(&self, category: Category<'_>, facts: Facts) -> Facts {
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

/// Adds a denial, which no state is too full for.
fn say(state: &mut State, effect: &Effect) {
    let _ = state.apply(effect);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Resolved;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    fn scope(text: &str) -> Scope {
        Scope::parse(text).unwrap()
    }

    fn state(words: &[(&str, Word)]) -> State {
        let mut state = State::default();
        for (on, word) in words {
            state.apply(&Effect::Word(scope(on), *word)).unwrap();
        }
        state
    }

    fn denied(state: &State) -> Option<Denied> {
        Denied::of(&Resolved::of(state).profile)
    }

    fn out(millis: i64) -> Word {
        Word::opt_out(at(millis))
    }

    fn opt_in(millis: i64) -> Word {
        Word::opt_in(at(millis), None)
    }

    const NOW: i64 = 1_000;

    #[test]
    fn who_is_denied_nothing_leaves_nothing() {
        assert_eq!(denied(&state(&[("marketing", opt_in(1))])), None);
        assert_eq!(denied(&State::default()), None);
    }

    #[test]
    fn what_is_still_denied_is_not_said_again() {
        let before = state(&[("*", out(5)), ("marketing", opt_in(9))]);
        let old = denied(&before).unwrap();
        assert_eq!(old.beyond(&before, at(NOW)), None);
        assert_eq!(old.vanished_from(&before, at(NOW)), None);
        let later = state(&[("*", out(5)), ("marketing", opt_in(20))]);
        assert_eq!(old.beyond(&later, at(NOW)), None, "marketing was allowed before, too");
    }

    #[test]
    fn a_lost_opt_out_is_said_again_where_it_stood() {
        let old = denied(&state(&[("*", out(5))])).unwrap();
        assert_eq!(old.beyond(&State::default(), at(NOW)), Some(state(&[("*", out(NOW))])));
        let old = denied(&state(&[("marketing", out(5))])).unwrap();
        let lost = old.beyond(&state(&[("marketing", opt_in(1))]), at(NOW));
        assert_eq!(lost, Some(state(&[("marketing", out(NOW))])));
        // All but marketing was denied: that it was opted in to again must not be lost as well.
        let old = denied(&state(&[("*", out(5)), ("marketing", opt_in(9))])).unwrap();
        let lost = old.beyond(&state(&[("marketing", opt_in(9))]), at(NOW)).unwrap();
        assert_eq!(
            lost.scopes.keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["utility", "authentication", "service"]
        );
    }

    #[test]
    fn an_older_opt_out_does_not_hide_that_a_newer_one_is_lost() {
        let old = denied(&state(&[("*", out(30)), ("marketing", opt_in(20))])).unwrap();
        let now = state(&[("*", out(10)), ("marketing", opt_in(20))]);
        assert_eq!(old.beyond(&now, at(NOW)), Some(state(&[("marketing", out(NOW))])));
        let topic = [("utility", out(10)), ("utility.orders", opt_in(20))];
        let old = denied(&state(&[("utility", out(30))])).unwrap();
        let lost = old.beyond(&state(&topic), at(NOW));
        assert_eq!(lost, Some(state(&[("utility.orders", out(NOW))])));
        let old = denied(&state(&topic)).unwrap();
        assert_eq!(old.beyond(&state(&topic), at(NOW)), None);
    }

    #[test]
    fn marks_are_remembered_too() {
        let mut before = State::default();
        before.apply(&Effect::Platform { time: at(3), stopped: true }).unwrap();
        before.apply(&Effect::Suppression { time: at(4), suppressed: true }).unwrap();
        let old = denied(&before).unwrap();
        let lost = old.beyond(&State::default(), at(NOW)).unwrap();
        assert_eq!(
            (lost.platform, lost.suppression),
            (Some((at(NOW), true)), Some((at(NOW), true)))
        );
        assert_eq!(old.vanished_from(&State::default(), at(NOW)), Some(lost));
        let mut lifted = before.clone();
        lifted.apply(&Effect::Suppression { time: at(9), suppressed: false }).unwrap();
        lifted.apply(&Effect::Platform { time: at(9), stopped: false }).unwrap();
        assert_eq!(old.vanished_from(&lifted, at(NOW)), None, "they were lifted, not lost");
    }

    #[test]
    fn a_scope_that_was_said_again_has_not_vanished() {
        let old = denied(&state(&[("marketing", out(5)), ("utility.orders", out(6))])).unwrap();
        let mut now = state(&[("marketing", opt_in(9))]);
        let lost = old.vanished_from(&now, at(NOW));
        now.apply(&Effect::Suppression { time: at(9), suppressed: true }).unwrap();
        assert_eq!(old.vanished_from(&now, at(NOW)), lost, "a suppression may be lifted");
        let mut erased = State::default();
        erased.apply(&Effect::Suppression { time: at(9), suppressed: true }).unwrap();
        assert_eq!(old.vanished_from(&erased, at(NOW)), None);
        assert_eq!(lost, Some(state(&[("utility.orders", out(NOW))])));
    }

    #[test]
    fn what_either_denied_is_denied_by_both_together() {
        let one = denied(&state(&[("utility", out(10)), ("utility.orders", opt_in(20))])).unwrap();
        let other = denied(&state(&[("utility", out(30))])).unwrap();
        let both = one.join(&other);
        assert!(both.on_topic(Class::Utility, "orders").denied);
        assert!(!one.on_topic(Class::Utility, "orders").denied);
        assert_eq!(both, other.join(&one));
        assert_eq!(both.join(&both), both);
    }

    #[test]
    fn it_denies_over_whatever_is_known() {
        let old = denied(&state(&[("marketing", out(5))])).unwrap();
        let on = |category| old.over(Category::parse(category).unwrap(), Facts::NOTHING).standing;
        assert_eq!(on("marketing"), Standing::OptedOut);
        assert_eq!(on("marketing.sale"), Standing::OptedOut);
        assert_eq!(on("utility"), Standing::None);
    }
}
