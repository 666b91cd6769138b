//! What a record says of a template's category: the record of a template, and of an account.
//!
//! Both are kept as choices about classes. A template that is known to be of one class is opted out of
//! every class that is less strict; an account whose utility templates count as marketing is opted out of
//! utility. So whatever keeps opt-outs keeps the stricter category.

use super::{Facts, Profile, Standing, StandingKind};
use crate::event::UNTIL;
use crate::scope::{Category, Class};
use crate::time::Timestamp;

impl Profile {
    fn is_denied(&self, class: Class) -> bool {
        self.standing_kind(Category { class, topic: None }).1.is_opt_out()
    }

    /// The least strict class that the template of this profile may be sent as. It is
    /// [`Class::Service`], the least strict of all, of a template that nothing is known of.
    #[must_use]
    pub fn least_class(&self) -> Class {
        // An erased template counts as marketing until its category is recorded again.
        if self.suppressed || self.is_denied(Class::Utility) || self.is_denied(Class::Marketing) {
            Class::Marketing
        } else if self.is_denied(Class::Authentication) {
            Class::Utility
        } else if self.is_denied(Class::Service) {
            Class::Authentication
        } else {
            Class::Service
        }
    }

    /// Until when the utility templates of the account of this profile count as marketing:
    /// [`Timestamp::MAX`] if no end is known, `None` if there is no restriction.
    #[must_use]
    pub fn restricted_until(&self) -> Option<Timestamp> {
        if self.suppressed || self.is_denied(Class::Utility) {
            return Some(Timestamp::MAX);
        }
        let ends = self.topics.iter().filter(|(class, _, on_scope)| {
            *class == Class::Utility && StandingKind::is_opt_out(on_scope.kind)
        });
        ends.map(|(_, topic, _)| end_of(topic).unwrap_or(Timestamp::MAX)).max()
    }
}

/// The end of a restriction, by the topic that stands for it.
fn end_of(topic: &str) -> Option<Timestamp> {
    let seconds: i64 = topic.strip_prefix(UNTIL)?.parse().ok()?;
    Timestamp::from_millis(seconds.checked_mul(1_000)?)
}

impl Facts {
    /// These facts, about the class that a template counts as, with what the user opted out of in the
    /// category that was asked for: both deny. So does an opt-in there that has expired at this time, because
    /// the opt-out that it replaced is not known any more.
    #[must_use]
    pub fn denied_as(self, asked: &Self, at: Timestamp) -> Self {
        let standing = match (asked.standing, self.standing) {
            (
                Standing::OptedIn { expire: Some(expire) },
                Standing::None | Standing::OptedIn { .. } | Standing::OptedInOverOptOut { .. },
            ) if expire <= at => asked.standing,
            // It may expire until the decision is made.
            (Standing::OptedIn { expire: Some(expire) }, Standing::OptedIn { expire: own }) => {
                Standing::OptedIn { expire: Some(own.map_or(expire, |own| own.min(expire))) }
            }
            (asked, own) => own.denied_by(asked),
        };
        Self { standing, ..self }
    }
}

impl Standing {
    fn denied_by(self, asked: Self) -> Self {
        match asked {
            Self::OptedOut | Self::PendingOverOptOut { .. } => Self::OptedOut,
            Self::OptedOutAll { .. } if self != Self::OptedOut => {
                Self::OptedOutAll { answerable: false }
            }
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::What;
    use crate::retained_denials::RetainedDenials;
    use crate::standing::{ExpiriesRef, ResolvedState};
    use crate::state::State;
    use proptest::prelude::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    fn category(category: Class) -> What {
        What::TemplateCategory { category, lift: None, reference: String::new() }
    }

    fn restriction(restricted: bool, until: Option<i64>) -> What {
        let until = until.map(at);
        What::TemplateRestriction { restricted, until, reference: String::new() }
    }

    fn profile(events: &[(i64, What)]) -> Profile {
        let mut state = State::default();
        for effect in events.iter().flat_map(|(time, what)| what.effects(at(*time))) {
            state.apply(&effect).unwrap();
        }
        ResolvedState::of(&state).profile
    }

    #[test]
    fn opt_in_to_the_asked_category_that_has_expired_denies() {
        use crate::scope::Scope;
        use crate::state::{Choice, Effect};
        let orders = Scope::parse("utility.orders").unwrap();
        for class in [Some(Class::Marketing), None] {
            let mut state = State::default();
            let opted_in = class.map(|class| (Scope::Class(class), Choice::opt_in(at(1), None)));
            let choices = [
                (orders.clone(), Choice::opt_out(at(2))),
                (orders.clone(), Choice::opt_in(at(3), Some(at(10)))),
            ];
            for (scope, choice) in opted_in.into_iter().chain(choices) {
                state.apply(&Effect::Choice(scope, choice)).unwrap();
            }
            let state = ResolvedState::of(&state);
            let facts = |category: &str| state.facts(Category::parse(category).unwrap());
            let (marketing, asked) = (facts("marketing"), facts("utility.orders"));
            let before = marketing.denied_as(&asked, at(9)).standing;
            match class {
                // It may expire between the look-up and the decision.
                Some(_) => assert_eq!(before, Standing::OptedIn { expire: Some(at(10)) }),
                None => assert_eq!(before, marketing.standing),
            }
            assert_eq!(marketing.denied_as(&asked, at(10)).standing, asked.standing);
        }
    }

    #[test]
    fn latest_category_counts_and_at_equal_times_the_stricter() {
        use Class::{Authentication, Marketing, Service, Utility};
        assert_eq!(profile(&[]).least_class(), Service);
        for class in [Authentication, Utility, Marketing] {
            assert_eq!(profile(&[(1, category(class))]).least_class(), class);
            for other in [Authentication, Utility, Marketing] {
                let later = profile(&[(2, category(class)), (1, category(other))]);
                assert_eq!(later.least_class(), class, "{class:?} over {other:?}");
                let same = profile(&[(1, category(class)), (1, category(other))]);
                assert_eq!(same.least_class(), class.stricter(other), "{class:?} and {other:?}");
            }
        }
    }

    #[test]
    fn what_lifts_counts_as_of_its_own_time() {
        let lift = |lift| What::TemplateCategory {
            category: Class::Utility,
            lift,
            reference: String::new(),
        };
        let marketing = (5, category(Class::Marketing));
        let after = |lift_time| profile(&[marketing.clone(), (9, lift(lift_time))]).least_class();
        assert_eq!(after(None), Class::Utility);
        assert_eq!(after(Some(at(6))), Class::Utility);
        assert_eq!(after(Some(at(5))), Class::Marketing);
        assert_eq!(after(Some(Timestamp::MIN)), Class::Marketing);
    }

    #[test]
    fn restriction_ends_when_it_says_or_is_lifted() {
        let until = |events: &[(i64, What)]| profile(events).restricted_until();
        assert_eq!(until(&[]), None);
        assert_eq!(until(&[(1, restriction(true, None))]), Some(Timestamp::MAX));
        let dated = (1, restriction(true, Some(7_000)));
        assert_eq!(until(std::slice::from_ref(&dated)), Some(at(7_000)));
        // A part of a second is rounded up.
        assert_eq!(until(&[(1, restriction(true, Some(7_001)))]), Some(at(8_000)));
        let longer = (2, restriction(true, Some(9_000)));
        assert_eq!(until(&[dated.clone(), longer.clone()]), Some(at(9_000)));
        let free = (2, restriction(false, None));
        assert_eq!(until(&[dated.clone(), free.clone()]), None);
        assert_eq!(until(&[longer, free.clone()]), Some(at(9_000)), "at equal times it stands");
        assert_eq!(until(&[(3, restriction(true, None)), free]), Some(Timestamp::MAX));
    }

    #[test]
    fn erased_template_is_marketing_until_its_category_is_recorded_again() {
        let erased = crate::record::Record::default().tombstone_at(at(5)).state;
        let after = |events: &[(i64, What)]| {
            let mut state = erased.clone();
            for effect in events.iter().flat_map(|(time, what)| what.effects(at(*time))) {
                state.apply(&effect).unwrap();
            }
            ResolvedState::of(&state).profile
        };
        assert_eq!(after(&[]).least_class(), Class::Marketing);
        assert_eq!(after(&[]).restricted_until(), Some(Timestamp::MAX));
        assert_eq!(after(&[(4, category(Class::Utility))]).least_class(), Class::Marketing);
        assert_eq!(after(&[(6, category(Class::Utility))]).least_class(), Class::Utility);
        assert_eq!(after(&[(6, restriction(false, None))]).restricted_until(), None);
    }

    /// What a table retains of a rule that the ledger lost is as strict as the rule was.
    #[test]
    fn lost_rule_is_retained_with_its_end() {
        for events in [
            vec![(1, category(Class::Authentication))],
            vec![(1, category(Class::Utility))],
            vec![(1, category(Class::Utility)), (2, category(Class::Marketing))],
            vec![(1, restriction(true, None))],
            vec![(1, restriction(true, Some(7_000))), (2, restriction(true, Some(9_000)))],
        ] {
            let profile = profile(&events);
            let retained = RetainedDenials::of(&profile, ExpiriesRef::None).unwrap();
            let lost = retained.missing_from(&State::default(), at(9)).unwrap();
            let kept = ResolvedState::of(&lost).profile;
            assert_eq!(kept.least_class(), profile.least_class(), "{events:?}");
            assert_eq!(kept.restricted_until(), profile.restricted_until(), "{events:?}");
        }
    }

    fn any_event() -> impl Strategy<Value = (i64, What)> {
        let class =
            prop::sample::select(vec![Class::Marketing, Class::Utility, Class::Authentication]);
        let lift = prop::option::of((0_i64..4).prop_map(at));
        let category = (class, lift).prop_map(|(category, lift)| What::TemplateCategory {
            category,
            lift,
            reference: String::new(),
        });
        let until = prop::option::of((0_i64..4).prop_map(|end| end * 1_000));
        let restriction =
            (any::<bool>(), until).prop_map(|(restricted, until)| restriction(restricted, until));
        (1_i64..5, prop_oneof![category, restriction])
    }

    proptest! {
        /// Neither the order of arrival nor repeats change what is known of a category.
        #[test]
        fn order_and_repeats_of_rules_do_not_matter(
            (events, shuffled) in prop::collection::vec(any_event(), 0..8).prop_flat_map(|events| {
                let repeated = [&events[..], &events[..events.len().min(3)]].concat();
                (Just(events), Just(repeated).prop_shuffle())
            }),
        ) {
            let known = profile(&events);
            prop_assert_eq!(&known, &profile(&shuffled));
            // One more event of a time makes a category no less strict than it was at that time.
            let is_category = |what: &What| matches!(what, What::TemplateCategory { .. });
            let strictest = events.iter().filter_map(|(time, what)| match what {
                What::TemplateCategory { category, .. } => Some((*time, category.strictness())),
                _ => None,
            }).max();
            if let Some((_, strictness)) = strictest
                && events.iter().all(|(_, what)| is_category(what))
            {
                prop_assert!(known.least_class().strictness() >= strictness);
            }
        }
    }
}
