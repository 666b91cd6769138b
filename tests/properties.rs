//! What must hold whatever happens: for any events, in any order, however often.

#[path = "../benches/hot_table/dashmap_table/mod.rs"]
mod dashmap_table;
#[path = "properties/hot_table.rs"]
mod hot_table;
#[path = "properties/partitions.rs"]
mod partitions;
#[path = "../benches/hot_table/tables.rs"]
#[allow(dead_code, reason = "the benchmark calls what the test does not")]
mod tables;

use consentd_core::decision::{Form, Policy, Proof, Reason, decide};
use consentd_core::event::{CODE_PLATFORM_STOPPED, Evidence, Method, StatementNames, What};
use consentd_core::id::PhoneNumberId;
use consentd_core::scope::{Category, Class, Scope};
use consentd_core::standing::ResolvedState;
use consentd_core::state::State;
use consentd_core::time::{Clock, Timestamp};
use proptest::prelude::*;

/// Few scopes and few moments, so that events meet.
const SCOPES: [&str; 6] =
    ["marketing", "marketing.news", "utility", "utility.order_updates", "utility.news", "service"];
const CATEGORIES: [&str; 7] = [
    "marketing",
    "marketing.news",
    "marketing.other",
    "utility.order_updates",
    "utility.news",
    "service",
    "authentication",
];
const NOW: i64 = 1_750_000_000_000;
const HOUR: i64 = 3_600_000;

type Timed = (Timestamp, What);

fn moment() -> impl Strategy<Value = Timestamp> {
    let hours = prop_oneof![Just(-30), Just(-20), -5_i64..0];
    (hours, 0_i64..3)
        .prop_map(|(hours, millis)| Timestamp::from_millis(NOW + hours * HOUR + millis).unwrap())
}

/// One of several numbers of the business, or none.
fn number() -> impl Strategy<Value = Option<PhoneNumberId>> {
    proptest::sample::select(&["", "1", "2"][..]).prop_map(|id| PhoneNumberId::parse(id).ok())
}

fn what() -> impl Strategy<Value = What> {
    let scope = proptest::sample::select(&SCOPES[..]);
    let out = prop_oneof![Just("*"), proptest::sample::select(&SCOPES[..])];
    let expire = proptest::option::of(prop_oneof![Just(-1_i64), Just(2)]);
    let code = proptest::sample::select(&[131_047, 131_049, 131_050, 131_026, 131_048][..]);
    prop_oneof![
        4 => (scope, expire, any::<bool>(), proptest::option::of(number())).prop_map(
            |(scope, expire, pending, signup)| What::OptIn {
                category: Scope::parse(scope).unwrap(),
                evidence: if let Some(phone_number_id) = signup {
                    Evidence { phone_number_id, ..evidence(Method::WhatsappSignup) }
                } else {
                    evidence(Method::Website)
                },
                expire: expire.map(|hours| Timestamp::from_millis(NOW + hours * HOUR).unwrap()),
                pending,
            }
        ),
        4 => out.prop_map(|scope| What::OptOut {
            scope: Scope::parse(scope).unwrap(),
            reference: String::new(),
        }),
        2 => Just(What::Inbound { message_id: String::new(), text: String::new() }),
        2 => (any::<bool>(), number())
            .prop_map(|(stopped, phone_number_id)| What::Platform { stopped, phone_number_id }),
        1 => (code, number())
            .prop_map(|(code, phone_number_id)| What::Failure { code, phone_number_id }),
        1 => any::<bool>().prop_map(|suppressed| What::Suppression {
            suppressed,
            reference: String::new(),
        }),
    ]
}

fn evidence(method: Method) -> Evidence {
    Evidence {
        method,
        statement: String::new(),
        business_name: String::new(),
        locale: String::new(),
        reference: String::new(),
        confirmation: String::new(),
        phone_number_id: None,
        statement_names: StatementNames::default(),
    }
}

fn events() -> impl Strategy<Value = Vec<Timed>> {
    proptest::collection::vec((moment(), what()), 0..12)
}

fn state_of<'a>(events: impl IntoIterator<Item = &'a Timed>) -> State {
    let mut state = State::default();
    for (time, what) in events {
        for effect in what.effects(*time) {
            state.apply(&effect).expect("fewer scopes than there may be");
        }
    }
    state
}

/// Every decision about a state that can be asked for.
fn decisions(state: &State) -> Vec<(&'static str, Form, Reason, bool, bool)> {
    let resolved = ResolvedState::of(state);
    let mut all = Vec::new();
    for text in CATEGORIES {
        let category = Category::parse(text).unwrap();
        let facts = resolved.facts(category);
        for form in [Form::Any, Form::FreeForm, Form::Template] {
            let clock = Clock::at(Timestamp::from_millis(NOW).unwrap());
            let policy = Policy::default();
            let made = decide(&facts, category.class, form, &policy, clock, Proof::Fresh);
            all.push((text, form, made.reason, made.free_form_allowed, made.template_allowed));
        }
    }
    all
}

fn covers(scope: &Scope, category: Category<'_>) -> bool {
    match scope {
        Scope::All => true,
        Scope::Class(class) => *class == category.class,
        Scope::Topic(class, topic) => *class == category.class && category.topic == Some(&**topic),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    /// Replays and reordering change nothing.
    #[test]
    fn any_order_and_any_repetition_make_the_same_state(
        (events, shuffled) in events().prop_flat_map(|events| {
            let mut twice = events.clone();
            twice.extend(events.iter().step_by(2).cloned());
            (Just(events), Just(twice).prop_shuffle())
        }),
        split in any::<prop::sample::Index>(),
    ) {
        let state = state_of(&events);
        prop_assert_eq!(&state_of(&shuffled), &state);
        let (a, b) = shuffled.split_at(split.index(shuffled.len() + 1));
        prop_assert_eq!(state_of(a).join(state_of(b)), state.clone());
        prop_assert_eq!(state_of(b).join(state_of(a)), state.clone());
        prop_assert_eq!(state.clone().join(state.clone()), state);
    }

    /// A stop at one number stands whatever is said at others, and after a resume that is older.
    #[test]
    fn a_stop_is_lifted_at_its_own_number_alone(
        events in events(),
        own in number(),
        time in moment(),
    ) {
        let stop = What::Platform { stopped: true, phone_number_id: own.clone() };
        let lifts = |what: &What| match what {
            What::Platform { stopped: false, phone_number_id } => *phone_number_id == own,
            What::OptIn { evidence, pending: false, .. } => {
                evidence.method == Method::WhatsappSignup && evidence.phone_number_id == own
            }
            _ => false,
        };
        let is_lifted = events.iter().any(|(at, what)| *at > time && lifts(what));
        let again = |what: &What| match what {
            What::Platform { stopped: true, phone_number_id }
            | What::Failure { code: CODE_PLATFORM_STOPPED, phone_number_id } => {
                *phone_number_id == own
            }
            _ => false,
        };
        let is_stopped_again = events.iter().any(|(at, what)| *at > time && again(what));
        let mut events = events;
        events.push((time, stop));
        let stopped = ResolvedState::of(&state_of(&events)).profile.stops().contains(&own);
        prop_assert!(stopped || is_lifted);
        prop_assert!(!stopped || !is_lifted || is_stopped_again);
    }

    /// The latest word is obeyed. A pending opt-in is no such word, however late.
    #[test]
    fn an_opt_out_with_the_latest_time_is_never_followed_by_an_allow(
        events in events(),
        out in prop_oneof![Just("*"), proptest::sample::select(&SCOPES[..])],
    ) {
        let latest = events
            .iter()
            .filter(|(_, what)| matches!(what, What::OptIn { pending: false, .. }))
            .map(|(time, _)| *time)
            .max()
            .unwrap_or(Timestamp::MIN);
        let scope = Scope::parse(out).unwrap();
        let what = What::OptOut { scope: scope.clone(), reference: String::new() };
        let mut events = events;
        events.push((latest, what));
        for (text, form, reason, free_form, template) in decisions(&state_of(&events)) {
            if covers(&scope, Category::parse(text).unwrap()) {
                prop_assert!(!template, "{text} {form:?} {reason:?}");
                let replied = reason == Reason::ReplyAfterOptOut || form == Form::Template;
                prop_assert!(!free_form || replied, "{text} {form:?} {reason:?}");
            }
        }
    }

    /// What is older than what is known of the same thing changes no decision.
    #[test]
    fn adding_an_older_event_changes_no_decision(
        events in events(),
        older in what(),
        by in 1_i64..2 * HOUR,
    ) {
        let same = |a: &What, b: &What| match (a, b) {
            (
                What::OptIn { category: a, pending: p, .. },
                What::OptIn { category: b, pending: q, .. },
            ) => a == b && p == q,
            (What::OptOut { scope: a, .. }, What::OptIn { category: b, pending: false, .. })
            | (What::OptIn { category: a, pending: false, .. }, What::OptOut { scope: b, .. })
            | (What::OptOut { scope: a, .. }, What::OptOut { scope: b, .. }) => a == b,
            (What::Inbound { .. }, What::Inbound { .. })
            | (What::Suppression { .. }, What::Suppression { .. }) => true,
            (
                What::Platform { phone_number_id: a, .. },
                What::Platform { phone_number_id: b, .. },
            ) => a == b,
            (
                What::Failure { code: a, phone_number_id: one },
                What::Failure { code: b, phone_number_id: other },
            ) => a == b && (*a != CODE_PLATFORM_STOPPED || one == other),
            _ => false,
        };
        // A signup says two things, of which one may be news.
        let signup = matches!(&older, What::OptIn { evidence, .. }
            if evidence.method == Method::WhatsappSignup);
        let known = events.iter().filter(|(_, what)| same(what, &older)).map(|(time, _)| *time);
        if let Some(known) = known.max().filter(|_| !signup) {
            let before = decisions(&state_of(&events));
            let mut events = events;
            // An opt-out stands again once an opt-in that replaced it has lapsed.
            let lapses = |what: &What| matches!(what, What::OptIn { expire: Some(_), .. });
            let again = matches!(older, What::OptOut { .. })
                && events.iter().any(|(_, what)| lapses(what));
            events.push((Timestamp::from_millis(known.as_millis() - by).unwrap(), older));
            let after = decisions(&state_of(&events));
            if again {
                for (before, after) in before.iter().zip(&after) {
                    prop_assert!(before.3 || !after.3, "{before:?} {after:?}");
                    prop_assert!(before.4 || !after.4, "{before:?} {after:?}");
                }
            } else {
                prop_assert_eq!(after, before);
            }
        }
    }

    /// Over an older opt-out, an opt-in to marketing that has lapsed leaves that standing.
    #[test]
    fn lapsed_opt_ins_alone_never_allow_marketing_over_an_opt_out(
        out in prop_oneof![Just("*"), Just("marketing"), Just("marketing.news")],
        lapsed in proptest::collection::vec((0_i64..9, any::<bool>()), 1..4),
        wrote in any::<bool>(),
    ) {
        let at = |minutes: i64| Timestamp::from_millis(NOW - 5 * HOUR + minutes * 60_000).unwrap();
        let opt_out = What::OptOut { scope: Scope::parse(out).unwrap(), reference: String::new() };
        let mut events = vec![(at(0), opt_out)];
        for (minutes, on_topic) in lapsed {
            let category = Scope::parse(if on_topic { "marketing.news" } else { "marketing" });
            events.push((at(minutes), What::OptIn {
                category: category.unwrap(),
                evidence: evidence(Method::Website),
                expire: Some(at(100)),
                pending: false,
            }));
        }
        if wrote {
            let what = What::Inbound { message_id: String::new(), text: String::new() };
            events.push((at(200), what));
        }
        let scope = Scope::parse(out).unwrap();
        for (text, form, reason, free_form, template) in decisions(&state_of(&events)) {
            let category = Category::parse(text).unwrap();
            if covers(&scope, category) && category.class == Class::Marketing {
                prop_assert!(!free_form && !template, "{text} {form:?} {reason:?}");
            }
        }
    }

    /// An unconfirmed opt-in never allows what was not allowed without it.
    #[test]
    fn a_pending_opt_in_never_allows_anything(events in events(), pending in events()) {
        let confirmed: Vec<Timed> = events;
        let with: Vec<Timed> = confirmed
            .iter()
            .cloned()
            .chain(pending.into_iter().filter(|(_, what)| {
                matches!(what, What::OptIn { pending: true, .. })
            }))
            .collect();
        let before = decisions(&state_of(&confirmed));
        for (without, with) in before.into_iter().zip(decisions(&state_of(&with))) {
            prop_assert!(without.3 || !with.3, "{without:?} {with:?}");
            prop_assert!(without.4 || !with.4, "{without:?} {with:?}");
        }
    }
}

#[test]
fn every_class_is_asked_about() {
    let asked = |class| CATEGORIES.iter().any(|text| text.starts_with(Class::name(class)));
    assert!(Class::ALL.into_iter().all(asked));
}
