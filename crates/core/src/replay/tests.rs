//! Histories replayed as of past times.

use proptest::prelude::*;

use super::*;
use crate::event::{Evidence, Method, StatementNames};
use crate::scope::ClassSet;

const DAY: i64 = 86_400_000;
const NOW: i64 = 100 * DAY;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap()
}

fn listed(number: u64, time: i64, recorded: i64, what: What) -> HistoryEvent {
    let entry = HistoryEntry {
        user_id: "US.1".into(),
        business_id: "acme".into(),
        time: at(time),
        record_time: at(recorded),
        what,
    };
    HistoryEvent { number, head: [0; 32], entry }
}

fn scope(text: &str) -> Scope {
    Scope::parse(text).unwrap()
}

fn opt_in(category: &str, expire: Option<i64>, pending: bool) -> What {
    let evidence = Evidence {
        method: Method::Website,
        statement: "Yes to WhatsApp from Acme".into(),
        business_name: "Acme".into(),
        locale: String::new(),
        reference: String::new(),
        confirmation: String::new(),
        phone_number_id: None,
        statement_names: StatementNames::default(),
    };
    What::OptIn { category: scope(category), evidence, expire: expire.map(at), pending }
}

fn opt_out(text: &str) -> What {
    What::OptOut { scope: scope(text), reference: String::new() }
}

fn inbound() -> What {
    What::Inbound { message_id: "wamid.1".into(), text: String::new() }
}

/// The decisions about a category at a time: the template's reason and the numbers of the events
/// that it rests on, then the free-form one's.
fn told(listed: &[HistoryEvent], moment: i64, category: &str) -> [(Reason, Vec<u64>); 2] {
    let policy = Policy::default();
    let gone =
        DeletedEvents { events: listed.len().try_into().unwrap(), ..DeletedEvents::default() };
    let past = AsOf::of(listed, &gone, &policy, at(moment)).unwrap();
    let answer = past.decision(Category::parse(category).unwrap(), &policy);
    [answer.template, answer.free_form].map(|said| {
        assert!(said.alternatives.is_empty());
        (said.reason, said.because.iter().map(|event| event.number).collect())
    })
}

#[test]
fn as_of_has_events_recorded_by_then_and_explains_the_decision() {
    use Reason::{
        ConsentExpired, ConsentPending, FrequencyCapped, NoConsent, OptedIn, OptedOut, OptedOutAll,
        PlatformStopped, ReplyAfterOptOut, Suppressed, WindowClosed, WindowOpen,
    };
    let happened = [
        opt_in("marketing.sale", None, true),
        opt_in("marketing.sale", Some(5 * DAY), false),
        inbound(),
        What::Failure { code: 131_047, phone_number_id: None },
        opt_in("marketing", None, false),
        What::Failure { code: 131_049, phone_number_id: None },
        What::Platform { stopped: true, phone_number_id: None },
        opt_out("marketing.sale"),
        opt_out("*"),
        inbound(),
        What::Suppression { suppressed: true, reference: String::new() },
    ];
    let days = 1..;
    let events: Vec<_> = happened
        .into_iter()
        .zip(days)
        .map(|(what, n): (_, i64)| listed(n.try_into().unwrap(), n * DAY, n * DAY, what))
        .collect();
    let closed = |by: &[u64]| (WindowClosed, by.to_vec());
    for (moment, category, template, free_form) in [
        (DAY - 1, "marketing.sale", (NoConsent, vec![]), closed(&[])),
        (DAY, "marketing.sale", (ConsentPending, vec![1]), closed(&[])),
        (2 * DAY, "marketing.sale", (OptedIn, vec![2]), closed(&[])),
        (2 * DAY, "marketing", (NoConsent, vec![]), closed(&[])),
        (3 * DAY, "utility", (WindowOpen, vec![3]), (WindowOpen, vec![3])),
        (3 * DAY, "marketing.sale", (OptedIn, vec![2]), (OptedIn, vec![2])),
        (4 * DAY - 60_001, "utility", (WindowOpen, vec![3]), (WindowOpen, vec![3])),
        (4 * DAY - 60_000, "utility", (NoConsent, vec![]), closed(&[3])),
        (4 * DAY, "utility", (NoConsent, vec![]), closed(&[4])),
        (5 * DAY - 1, "marketing.sale", (OptedIn, vec![2]), closed(&[4])),
        (5 * DAY, "marketing.sale", (OptedIn, vec![5]), closed(&[4])),
        (6 * DAY, "marketing.sale", (FrequencyCapped, vec![6]), closed(&[4])),
        (7 * DAY, "marketing", (PlatformStopped, vec![7]), (PlatformStopped, vec![7])),
        (8 * DAY, "marketing.sale", (OptedOut, vec![8]), (OptedOut, vec![8])),
        (9 * DAY, "service", (OptedOutAll, vec![9]), (OptedOutAll, vec![9])),
        (10 * DAY, "service", (OptedOutAll, vec![9]), (ReplyAfterOptOut, vec![10, 9])),
        (11 * DAY, "service", (Suppressed, vec![11]), (Suppressed, vec![11])),
    ] {
        assert_eq!(told(&events, moment, category), [template, free_form], "{moment} {category}");
    }
    let lapsed = [listed(1, DAY, DAY, opt_in("utility", Some(2 * DAY), false))];
    assert_eq!(told(&lapsed, 2 * DAY - 1, "utility.x")[0], (OptedIn, vec![1]));
    assert_eq!(told(&lapsed, 2 * DAY, "utility.x")[0], (ConsentExpired, vec![1]));
}

#[test]
fn opt_out_beneath_the_latest_choice_is_among_the_reasons() {
    use Reason::{ConsentExpired, OptedOut, OptedOutAll, ReplyAfterOptOut};
    let events: Vec<_> = [opt_out("utility.orders"), opt_out("*"), inbound()]
        .into_iter()
        .zip(1..)
        .map(|(what, n): (_, i64)| listed(n.try_into().unwrap(), n * DAY, n * DAY, what))
        .collect();
    let both = || (OptedOut, vec![1, 2]);
    assert_eq!(told(&events, 3 * DAY, "utility.orders"), [both(), both()]);
    let rest = [(OptedOutAll, vec![2]), (ReplyAfterOptOut, vec![3, 2])];
    assert_eq!(told(&events, 3 * DAY, "utility.other"), rest);
    for (out, again) in [("*", OptedOutAll), ("marketing", OptedOut)] {
        let lapsed = [
            listed(1, DAY, DAY, opt_out(out)),
            listed(2, 2 * DAY, 2 * DAY, opt_in("marketing", Some(3 * DAY), false)),
            listed(3, 3 * DAY, 3 * DAY, inbound()),
        ];
        let again = || (again, vec![1, 2]);
        assert_eq!(told(&lapsed, 3 * DAY, "marketing.sale"), [again(), again()], "{out}");
    }
    let other = [
        listed(1, DAY, DAY, opt_out("*")),
        listed(2, 2 * DAY, 2 * DAY, opt_in("utility", Some(3 * DAY), false)),
    ];
    assert_eq!(told(&other, 3 * DAY, "utility")[0], (ConsentExpired, vec![2]));
}

#[test]
fn event_recorded_later_is_not_known() {
    let events = [
        listed(1, DAY, DAY, opt_in("marketing", None, false)),
        listed(2, 2 * DAY, 5 * DAY, opt_out("marketing")),
        listed(3, 7 * DAY, 7 * DAY, inbound()),
    ];
    let policy = Policy::default();
    let past = AsOf::of(
        &events,
        &DeletedEvents { events: 3, ..DeletedEvents::default() },
        &policy,
        at(3 * DAY),
    );
    let past = past.unwrap();
    let numbers =
        |events: &[&HistoryEvent]| events.iter().map(|event| event.number).collect::<Vec<_>>();
    assert_eq!((numbers(&past.known), numbers(&past.late)), (vec![1], vec![2]));
    assert_eq!(told(&events, 3 * DAY, "marketing")[0], (Reason::OptedIn, vec![1]));
    assert_eq!(told(&events, 5 * DAY, "marketing")[0], (Reason::OptedOut, vec![2]));
}

#[test]
fn decision_uses_the_given_policy() {
    let events = [listed(1, DAY, DAY, inbound())];
    let strict = Policy { window_implies: ClassSet::NONE, ..Policy::default() };
    let past = AsOf::of(
        &events,
        &DeletedEvents { events: 1, ..DeletedEvents::default() },
        &strict,
        at(DAY),
    )
    .unwrap();
    let answer = past.decision(Category::parse("utility").unwrap(), &strict);
    assert_eq!(answer.free_form.reason, Reason::NoConsent);
    assert_eq!(answer.window_expire, Some(at(2 * DAY - 60_000)));
}

#[test]
fn categories_are_all_classes_and_every_named_topic() {
    let events = [
        listed(1, 1, 1, opt_in("utility.orders", None, false)),
        listed(2, 2, 2, opt_out("marketing.sale")),
        listed(3, 3, 3, opt_out("*")),
        listed(4, 4, 9, opt_out("marketing.later")),
    ];
    let past = AsOf::of(&events, &DeletedEvents::default(), &Policy::default(), at(4)).unwrap();
    let names: Vec<_> = past.categories().iter().map(ToString::to_string).collect();
    let classes = ["marketing", "utility", "authentication", "service"];
    assert_eq!(names, [&classes[..], &["marketing.sale", "utility.orders"]].concat());
}

#[test]
fn deleted_events_that_may_have_mattered_are_reported() {
    let kept = [
        listed(1, DAY, DAY, opt_in("utility", None, false)),
        listed(4, 10 * DAY, 10 * DAY, opt_out("utility")),
    ];
    // Numbers 2 and 3 were deleted: inbound messages or failures between the first and the tenth day.
    let gone = DeletedEvents { events: 4, last_inbound: Some(at(6 * DAY)), last_failure: None };
    let policy = Policy::default();
    let past = |moment: i64| AsOf::of(&kept, &gone, &policy, at(moment)).unwrap();
    let none = Uncertainty::default();
    assert_eq!(past(DAY - 1).uncertainty, none, "the first was recorded before them");
    let open = Uncertainty { events: 2, before: Some(at(10 * DAY)), inbound: true, failure: false };
    for moment in [DAY, 3 * DAY, 7 * DAY - 1] {
        assert_eq!(past(moment).uncertainty, open, "{moment}");
    }
    let closed = Uncertainty { inbound: false, ..open };
    for moment in [7 * DAY, 30 * DAY] {
        assert_eq!(past(moment).uncertainty, closed, "{moment}: the last message was too long ago");
    }
    let answer = |moment| past(moment).decision(Category::parse("service").unwrap(), &policy);
    assert_eq!(answer(3 * DAY).free_form.reason, Reason::WindowClosed);
    assert_eq!(answer(3 * DAY).free_form.alternatives, [Reason::WindowOpen]);
    assert!(answer(8 * DAY).free_form.alternatives.is_empty());
    let certain = past(3 * DAY).decision(Category::parse("utility").unwrap(), &policy);
    assert!(certain.template.alternatives.is_empty(), "an opt-in needs no window");

    let gone = DeletedEvents { last_failure: Some(at(5 * DAY)), ..gone };
    let past = AsOf::of(&kept, &gone, &policy, at(5 * DAY)).unwrap();
    assert!(past.uncertainty.inbound && past.uncertainty.failure);
    let answer = past.decision(Category::parse("marketing").unwrap(), &policy);
    let or_else: BTreeSet<_> =
        answer.template.alternatives.iter().map(|reason| reason.name()).collect();
    assert_eq!(or_else, BTreeSet::from(["FREQUENCY_CAPPED", "WINDOW_OPEN"]));

    // If no remaining event came after them, only the last event of their kind bounds them.
    let last = AsOf::of(&kept[..1], &gone, &policy, at(6 * DAY)).unwrap();
    assert_eq!((last.uncertainty.events, last.uncertainty.before), (3, None));
}

fn number(id: &str) -> Option<PhoneNumberId> {
    PhoneNumberId::parse(id).ok()
}

fn some_number() -> impl Strategy<Value = Option<PhoneNumberId>> {
    prop::sample::select(vec![None, number("1"), number("2")])
}

#[test]
fn every_stop_that_stands_is_a_reason_and_a_resume_at_another_number_is_none() {
    let preference = |stopped, id: &str| What::Platform { stopped, phone_number_id: number(id) };
    let at_a_failure = What::Failure { code: 131_050, phone_number_id: number("2") };
    let events: Vec<_> = [
        opt_in("marketing", None, false),
        preference(true, "1"),
        at_a_failure,
        preference(true, ""),
        preference(false, "1"),
        preference(false, ""),
        preference(false, "2"),
    ]
    .into_iter()
    .zip(1..)
    .map(|(what, n): (_, i64)| listed(n.try_into().unwrap(), n * DAY, n * DAY, what))
    .collect();
    for (moment, by) in
        [(2, vec![2]), (3, vec![3, 2]), (4, vec![4, 3, 2]), (5, vec![4, 3]), (6, vec![3])]
    {
        let [template, _] = told(&events, moment * DAY, "marketing");
        assert_eq!(template, (Reason::PlatformStopped, by), "{moment}");
    }
    assert_eq!(told(&events, 7 * DAY, "marketing")[0], (Reason::OptedIn, vec![1]));
}

fn some_what() -> impl Strategy<Value = What> {
    let scopes = prop::sample::select(vec!["marketing", "marketing.a", "utility", "utility.b"]);
    prop_oneof![
        (scopes.clone(), prop::option::of(NOW..2 * NOW), any::<bool>())
            .prop_map(|(category, expire, pending)| opt_in(category, expire, pending)),
        scopes.prop_map(opt_out),
        Just(opt_out("*")),
        Just(inbound()),
        (any::<bool>(), some_number())
            .prop_map(|(stopped, phone_number_id)| What::Platform { stopped, phone_number_id }),
        (prop::sample::select(vec![131_047, 131_049, 131_050, 131_026]), some_number())
            .prop_map(|(code, phone_number_id)| What::Failure { code, phone_number_id }),
        any::<bool>()
            .prop_map(|suppressed| What::Suppression { suppressed, reference: String::new() }),
    ]
}

proptest! {
    /// For any history: the decision is that of the rules on the known events; every allow, and every
    /// denial except for those because of missing consent, names an event; and that event was known.
    #[test]
    fn replayed_answers_are_those_of_the_rules(
        happened in prop::collection::vec((some_what(), 0..3 * DAY, 0..DAY), 0..12),
        moment in 0..5 * DAY,
    ) {
        let mut events = Vec::new();
        let mut recorded = NOW;
        for (what, ago, later) in happened {
            recorded += later / 4;
            let number = u64::try_from(events.len()).unwrap() + 1;
            events.push(listed(number, recorded - ago, recorded, what));
        }
        let moment = at(NOW + moment);
        let policy = Policy::default();
        let gone = DeletedEvents { events: events.len().try_into().unwrap(), ..DeletedEvents::default() };
        let past = AsOf::of(&events, &gone, &policy, moment).unwrap();
        prop_assert_eq!(past.uncertainty, Uncertainty::default());
        let mut state = State::default();
        for event in events.iter().filter(|event| event.entry.record_time <= moment) {
            for effect in event.entry.what.effects(event.entry.time) {
                state.apply(&effect).unwrap();
            }
        }
        for scope in past.categories() {
            let category = scope.category().unwrap();
            let facts = ResolvedState::of(&state).facts(category);
            let answer = past.decision(category, &policy);
            for (form, said) in [(Form::Template, answer.template), (Form::FreeForm, answer.free_form)] {
                let clock = Clock::at(moment);
                let rules = decide(&facts, category.class, form, &policy, clock, Proof::Fresh);
                prop_assert_eq!(said.reason, rules.reason);
                let nothing = matches!(said.reason, Reason::NoConsent | Reason::WindowClosed);
                prop_assert!(nothing || !said.because.is_empty(), "{:?} rests on nothing", said.reason);
                for event in said.because {
                    prop_assert!(event.entry.record_time <= moment);
                }
            }
        }
    }
}
