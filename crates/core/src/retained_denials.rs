//! Retained denials: the denials that a pair had before the ledger lost data. They stay in force.
//!
//! The table stores no event times. So retained denials are stamped with the time at which the loss was
//! detected, and only a later event lifts them.

use std::collections::BTreeSet;

use super::id::PhoneNumberId;
use super::scope::{Category, Class, Scope};
use super::standing::{ExpiriesRef, Facts, Profile, ScopeStanding, Standing};
use super::state::{Choice, Effect, State};
use super::time::Timestamp;

/// Since when a class or a topic is opted out of.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Denial {
    /// The moment from which the opt-out applies, [`Timestamp::MIN`] if it applies already: an opt-in
    /// that expires may suspend it until then. `None` if there is no opt-out.
    start: Option<Timestamp>,
    /// Whether the opt-out, or the opt-in that suspends it, is of this scope itself, and not of a
    /// broader one.
    own: bool,
}

impl Denial {
    /// The denial of a scope with this standing, and with this expiry if an opt-in of it expires.
    fn of(on_scope: ScopeStanding, expire: Option<Timestamp>) -> Self {
        let start = on_scope.kind.opt_out_start(expire);
        Self { start, own: start.is_some() && on_scope.own }
    }

    /// The denial of a scope by a state.
    fn by(state: &State, scope: &Scope) -> (Self, ScopeStanding) {
        let (on_scope, expire) = ScopeStanding::of(state, scope);
        (Self::of(on_scope, expire), on_scope)
    }

    /// The earlier of both.
    fn join(self, other: Self) -> Self {
        let start = [self.start, other.start].into_iter().flatten().min();
        Self { start, own: self.own || other.own }
    }
}

/// The denials of a pair: opt-outs, a stop inside WhatsApp, and a suppression.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RetainedDenials {
    suppressed: bool,
    /// At which of the business's numbers marketing is stopped inside WhatsApp; `None` stands for a stop
    /// whose number is unknown. In order.
    stops: Box<[Option<PhoneNumberId>]>,
    /// Whether there was an opt-out of everything, even if there were narrower opt-ins since.
    all: bool,
    classes: [Denial; 4],
    /// The topics whose denial may differ from that of their class.
    topics: Vec<(Class, Box<str>, Denial)>,
}

impl RetainedDenials {
    /// The denials of a pair with this profile and these times, or `None` if it has none. An opt-out that
    /// applies only once an opt-in has expired is a denial from then on.
    #[must_use]
    pub fn of(profile: &Profile, times: ExpiriesRef<'_>) -> Option<Self> {
        let scopes = profile.classes.iter().chain(profile.topics.iter().map(|(_, _, on)| on));
        let denies = profile.suppressed
            || profile.platform_stopped()
            || profile.opted_out_all.is_some()
            || scopes.into_iter().any(|on_scope| on_scope.kind.opt_out_start(None).is_some());
        if !denies {
            return None;
        }
        let mut classes = [Denial::default(); 4];
        for (index, (slot, on_scope)) in classes.iter_mut().zip(profile.classes).enumerate() {
            *slot = Denial::of(on_scope, times.expiry(index));
        }
        let topics = profile.topics.iter().enumerate().map(|(index, (class, topic, on_scope))| {
            let expire = times.expiry(Class::ALL.len().saturating_add(index));
            (*class, topic.clone(), Denial::of(*on_scope, expire))
        });
        Some(Self {
            suppressed: profile.suppressed,
            stops: profile.stops.clone(),
            all: profile.opted_out_all.is_some(),
            classes,
            topics: topics.collect(),
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
        let mut topics: Vec<(Class, Box<str>, Denial)> = Vec::new();
        for (class, topic, _) in named {
            if !topics.iter().any(|(known, name, _)| known == class && name == topic) {
                let denial = self.on_topic(*class, topic).join(other.on_topic(*class, topic));
                topics.push((*class, topic.clone(), denial));
            }
        }
        let stops: BTreeSet<_> = self.stops.iter().chain(&other.stops).collect();
        Self {
            suppressed: self.suppressed || other.suppressed,
            stops: stops.into_iter().cloned().collect(),
            all: self.all || other.all,
            classes,
            topics,
        }
    }

    fn on_class(&self, class: Class) -> Denial {
        let mut all = Class::ALL.into_iter().zip(self.classes);
        all.find(|(known, _)| *known == class).map(|(_, denial)| denial).unwrap_or_default()
    }

    fn on_topic(&self, class: Class, topic: &str) -> Denial {
        let own = self.topics.iter().find(|(known, name, _)| *known == class && **name == *topic);
        own.map_or_else(|| Denial { own: false, ..self.on_class(class) }, |(_, _, denial)| *denial)
    }

    fn on_scope(&self, scope: &Scope) -> Denial {
        match scope {
            Scope::All => Denial::default(),
            Scope::Class(class) => self.on_class(*class),
            Scope::Topic(class, topic) => self.on_topic(*class, topic),
        }
    }

    /// Whether a later message from the user does not lift the denial of this scope for replies, because
    /// of an opt-out narrower than everything. Marketing is never a reply.
    fn is_narrow(&self, scope: &Scope) -> bool {
        let is_own = |class| self.on_scope(scope).own || self.on_class(class).own;
        scope.class().is_some_and(|class| class != Class::Marketing && is_own(class))
    }

    /// Whether `state` denies this scope at least as early, and as narrowly, as these denials do.
    fn is_implied(&self, scope: &Scope, state: &State) -> bool {
        let Some(start) = self.on_scope(scope).start else { return true };
        let (theirs, on_scope) = Denial::by(state, scope);
        theirs.start.is_some_and(|theirs| theirs <= start)
            && (on_scope.kind.is_narrow() || !self.is_narrow(scope))
    }

    /// The denials that `state` does not have, as a state in which they happened at `at`. `None` if
    /// `state` has all of them.
    #[must_use]
    pub fn missing_from(&self, state: &State, at: Timestamp) -> Option<State> {
        let mut lost = State::default();
        let is_set = |mark: Option<(Timestamp, bool)>| mark.is_some_and(|(_, set)| set);
        let is_missing = |scope: &Scope| !self.is_implied(scope, state);
        let classes: Vec<_> =
            Class::ALL.into_iter().map(Scope::Class).filter(|scope| is_missing(scope)).collect();
        let all = self.all && classes.len() == Class::ALL.len();
        if all {
            deny(&mut lost, &Effect::Choice(Scope::All, Choice::opt_out(at)));
        }
        for scope in classes {
            // An opt-out of everything may be lifted for replies, and the narrower one must not be.
            if !all || self.on_scope(&scope).own {
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
            if is_missing(&scope) && !self.is_implied(&scope, &lost) {
                deny(&mut lost, &Effect::Choice(scope, Choice::opt_out(at)));
            }
        }
        for number in &self.stops {
            if !state.platform.at(number.as_ref()).is_stopped() {
                deny(
                    &mut lost,
                    &Effect::Platform { time: at, stopped: true, number: number.clone() },
                );
            }
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
        let topics = self.topics.iter().filter(|(_, _, denial)| denial.own);
        let topics = topics.map(|(class, topic, _)| Scope::Topic(*class, topic.clone()));
        for scope in all.into_iter().chain(classes.map(Scope::Class)).chain(topics) {
            if state.scopes.get(&scope).is_none_or(|scope_state| scope_state.choice.is_none()) {
                deny(&mut lost, &Effect::Choice(scope, Choice::opt_out(at)));
            }
        }
        for number in &self.stops {
            if state.platform.at(number.as_ref()).latest.is_none() {
                deny(
                    &mut lost,
                    &Effect::Platform { time: at, stopped: true, number: number.clone() },
                );
            }
        }
        if self.suppressed && state.suppression.is_none() {
            deny(&mut lost, &Effect::Suppression { time: at, suppressed: true });
        }
        (lost != State::default()).then_some(lost)
    }

    /// The facts about `category` with these denials added. It does not know the time: an opt-out that an
    /// opt-in suspends applies at once, unless the facts say that it applies no later.
    #[must_use]
    pub fn overlay(&self, category: Category<'_>, facts: Facts) -> Facts {
        let denial = match category.topic {
            Some(topic) => self.on_topic(category.class, topic),
            None => self.on_class(category.class),
        };
        let standing = match (denial.start, facts.standing) {
            (None, standing) => standing,
            (Some(start), Standing::OptedInOverOptOut { expire, .. }) if expire <= start => {
                facts.standing
            }
            (Some(_), _) => Standing::OptedOut,
        };
        Facts {
            standing,
            suppressed: facts.suppressed || self.suppressed,
            platform_stopped: facts.platform_stopped || !self.stops.is_empty(),
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
        let resolved = ResolvedState::of(state);
        RetainedDenials::of(&resolved.profile, resolved.expiries.as_ref().into())
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

    fn lapsing(millis: i64, expire: i64) -> Choice {
        Choice::opt_in(at(millis), Some(at(expire)))
    }

    #[test]
    fn opt_out_under_an_expiring_opt_in_is_missing_if_both_are_lost() {
        for before in [
            state(&[("marketing", out(5)), ("marketing", lapsing(9, 20))]),
            state(&[("*", out(5)), ("marketing", lapsing(9, 20))]),
            state(&[("marketing", out(5)), ("marketing.sale", lapsing(9, 20))]),
        ] {
            let old = denied(&before).unwrap();
            assert_eq!(old.missing_from(&before, at(NOW)), None);
            assert_eq!(old.dropped_scopes(&before, at(NOW)), None);
            let lost = old.missing_from(&State::default(), at(NOW)).unwrap();
            for category in ["marketing", "marketing.sale"] {
                let standing = lost.standing_on(&scope(category));
                assert_eq!(standing.choice, Some(out(NOW)), "{category} after {before:?}");
            }
        }
    }

    #[test]
    fn opt_in_that_expires_later_than_the_lost_one_does_not_suspend_the_opt_out() {
        let before = [("marketing", out(10)), ("marketing", lapsing(20, 100))];
        let now = [("marketing", out(30)), ("marketing", lapsing(40, 45))];
        let old = denied(&state(&[before, now].concat())).unwrap();
        let lost = old.missing_from(&state(&before), at(NOW));
        assert_eq!(lost, Some(state(&[("marketing", out(NOW))])));
        let earlier = state(&[("marketing", out(30)), ("marketing", lapsing(40, 44))]);
        assert_eq!(old.missing_from(&earlier, at(NOW)), None);
    }

    #[test]
    fn narrower_opt_out_is_missing_beside_a_lost_opt_out_of_everything() {
        let before = state(&[("utility", out(5)), ("service.news", out(6)), ("*", out(7))]);
        let old = denied(&before).unwrap();
        assert_eq!(old.missing_from(&before, at(NOW)), None);
        let all = state(&[("utility", out(NOW)), ("service.news", out(NOW)), ("*", out(NOW))]);
        assert_eq!(old.missing_from(&State::default(), at(NOW)), Some(all));
        let narrow = state(&[("utility", out(NOW)), ("service.news", out(NOW))]);
        assert_eq!(old.missing_from(&state(&[("*", out(9))]), at(NOW)), Some(narrow));
    }

    #[test]
    fn overlay_keeps_an_opt_in_that_suspends_the_opt_out_no_longer() {
        let before = state(&[("marketing", out(5)), ("marketing", lapsing(9, 20))]);
        let old = denied(&before).unwrap();
        let marketing = Category::parse("marketing").unwrap();
        let over = |expire| Facts {
            standing: Standing::OptedInOverOptOut { expire: at(expire), all: false },
            ..Facts::NOTHING
        };
        assert_eq!(old.overlay(marketing, over(20)), over(20));
        assert_eq!(old.overlay(marketing, over(21)).standing, Standing::OptedOut);
        assert_eq!(old.overlay(marketing, Facts::NOTHING).standing, Standing::OptedOut);
    }

    #[test]
    fn stop_and_suppression_are_retained() {
        let mut before = State::default();
        before.apply(&Effect::Platform { time: at(3), stopped: true, number: None }).unwrap();
        before.apply(&Effect::Suppression { time: at(4), suppressed: true }).unwrap();
        let old = denied(&before).unwrap();
        let lost = old.missing_from(&State::default(), at(NOW)).unwrap();
        let stops: Vec<_> = lost.platform.standing().collect();
        assert_eq!((stops, lost.suppression), (vec![(None, at(NOW))], Some((at(NOW), true))));
        assert_eq!(old.dropped_scopes(&State::default(), at(NOW)), Some(lost));
        let mut lifted = before.clone();
        lifted.apply(&Effect::Suppression { time: at(9), suppressed: false }).unwrap();
        lifted.apply(&Effect::Platform { time: at(9), stopped: false, number: None }).unwrap();
        assert_eq!(old.dropped_scopes(&lifted, at(NOW)), None, "they were lifted, not lost");
    }

    #[test]
    fn stop_at_one_number_does_not_hide_the_loss_of_that_at_another() {
        let number = |id: &str| Some(PhoneNumberId::parse(id).unwrap());
        let preference = |millis, stopped, id| Effect::Platform {
            time: at(millis),
            stopped,
            number: number(id),
        };
        let with = |effects: &[Effect]| {
            let mut state = State::default();
            for effect in effects {
                state.apply(effect).unwrap();
            }
            state
        };
        let (one, two) = (preference(3, true, "1"), preference(4, true, "2"));
        let old = denied(&with(&[one.clone(), two.clone()])).unwrap();
        let lost = with(&[preference(NOW, true, "1")]);
        let now = with(&[two]);
        assert_eq!(old.missing_from(&now, at(NOW)), Some(lost.clone()));
        assert_eq!(old.dropped_scopes(&now, at(NOW)), Some(lost.clone()));
        let other = now.clone().join(with(&[preference(NOW + 1, false, "2")]));
        assert!(
            other.join(lost).platform.is_stopped(),
            "a resume at the other number lifts it not"
        );
        let both = old.join(&denied(&with(&[one])).unwrap());
        assert_eq!(both, old);
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
        assert!(both.on_topic(Class::Utility, "orders").start.is_some());
        assert!(one.on_topic(Class::Utility, "orders").start.is_none());
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
