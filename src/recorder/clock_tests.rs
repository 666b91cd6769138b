//! The rules of time under clock skew between writers and the ledger.

use proptest::prelude::*;

use super::linked_ids::{LinkedIds, PropagationRound, Step};
use super::pair_update::{PairUpdate, Propagation};
use super::pair_update_tests::{
    MINUTE, NOW, Pair, at, by_webhook, event, inbound, opt_in, opt_out,
};
use super::propagation::linked_state;
use consentd_core::decision::{Decision, Form, Policy, Proof, Reason, decide};
use consentd_core::event::{Event, What};
use consentd_core::id::{Key, KeySecret, PhoneNumberId};
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::record::{Link, Record};
use consentd_core::scope::{Category, Class, Scope};
use consentd_core::standing::ResolvedState;
use consentd_core::state::{ChoiceKind, State};
use consentd_core::submission::{InboundEffect, Submission};
use consentd_core::time::Clock;
use consentd_ledger::{Read, StoredRecord, Version};

fn decided(state: &State, category: &str, form: Form) -> Decision {
    let category = Category::parse(category).unwrap();
    let facts = ResolvedState::of(state).facts(category);
    let clock = Clock::at(at(NOW + 60 * MINUTE));
    decide(&facts, category.class, form, &Policy::default(), clock, Proof::Fresh)
}

fn reason(pair: &Pair, category: &str) -> Reason {
    decided(pair.state(), category, Form::Template).reason
}

#[test]
fn stop_ahead_of_the_ledger_is_not_lifted_by_an_older_opt_in() {
    let stop = event(opt_out("*"), Some(NOW + MINUTE), "");
    let older = event(opt_in("utility", false), Some(NOW + MINUTE / 2), "");
    // The opt-in arrives at once, before its own time, after it, and after the time of the STOP.
    for later in [1, MINUTE / 4, MINUTE / 2, MINUTE, 2 * MINUTE] {
        let mut pair = Pair::new();
        pair.record(NOW, &stop).unwrap();
        pair.record(NOW + later, &older).unwrap();
        assert_eq!(reason(&pair, "utility"), Reason::OptedOutAll, "{later} ms later");
        assert_eq!(pair.said_on("*"), Some((at(NOW + MINUTE), ChoiceKind::OptOut)));
    }
}

#[test]
fn webhook_stop_on_a_late_ledger_is_not_undone_by_an_older_opt_in() {
    // The ledger's clock is 30 seconds behind.
    let late = |now: i64| now - 30_000;
    let stop = by_webhook(inbound("STOP"), NOW, InboundEffect::WindowAndKeywords);
    let older = event(opt_in("marketing", false), Some(NOW - 1_000), "");
    let mut pair = Pair::new();
    pair.record(late(NOW + 200), &stop).unwrap();
    pair.record(late(NOW + 900), &older).unwrap();
    assert_eq!(reason(&pair, "marketing"), Reason::OptedOutAll);
    assert_eq!(pair.state().last_inbound, Some(at(late(NOW + 200))), "the window is clamped");
    let newer = event(opt_in("marketing", false), Some(NOW + MINUTE), "");
    pair.record(late(NOW + MINUTE), &newer).unwrap();
    assert_eq!(reason(&pair, "marketing"), Reason::OptedIn, "and a later one lifts it");
}

#[test]
fn denial_recorded_after_a_clamped_allow_counts_as_of_it() {
    let ahead = |what| event(what, Some(NOW + MINUTE), "");
    let before = |what, millis| event(what, Some(NOW - millis), "");
    for millis in [1, MINUTE, 5 * MINUTE] {
        let mut pair = Pair::new();
        pair.record(NOW, &ahead(opt_in("utility", false))).unwrap();
        pair.record(NOW, &ahead(opt_in("marketing", false))).unwrap();
        pair.record(NOW, &ahead(inbound("hi"))).unwrap();
        pair.record(NOW, &ahead(What::Platform { stopped: true, phone_number_id: None })).unwrap();
        assert!(pair.record(NOW + 5, &before(opt_out("*"), millis)).unwrap().applied);
        assert_eq!(pair.said_on("*"), Some((at(NOW), ChoiceKind::OptOut)));
        let utility = decided(pair.state(), "utility", Form::FreeForm);
        assert_eq!(utility.reason, Reason::OptedOutAll, "no reply to what was said before it");
        // A repeat changes nothing.
        let known = pair.state().clone();
        assert!(!pair.record(NOW + 6, &before(opt_out("*"), millis)).unwrap().applied);
        assert_eq!(*pair.state(), known);
    }
    let mut pair = Pair::new();
    pair.record(NOW, &ahead(opt_in("utility", false))).unwrap();
    pair.record(NOW + 5, &before(opt_out("*"), 5 * MINUTE + 1)).unwrap();
    assert_eq!(reason(&pair, "utility"), Reason::OptedIn, "no clock is as wrong as that");
}

#[test]
fn repeat_of_a_denial_before_a_clamped_allow_lifts_and_denies_nothing() {
    let mut pair = Pair::new();
    let stop = event(opt_out("*"), Some(NOW - MINUTE), "");
    let suppress = What::Suppression { suppressed: true, reference: String::new() };
    let suppress = event(suppress, Some(NOW - MINUTE), "");
    pair.record(NOW, &stop).unwrap();
    pair.record(NOW, &suppress).unwrap();
    let lift = What::Suppression { suppressed: false, reference: String::new() };
    for what in [opt_in("utility", false), lift] {
        pair.record(NOW, &event(what, Some(NOW + MINUTE), "")).unwrap();
    }
    for again in [&stop, &suppress] {
        assert!(!pair.record(NOW + 5, again).unwrap().applied);
    }
    assert_eq!(reason(&pair, "utility"), Reason::OptedIn);
}

#[test]
fn denial_at_the_moment_that_an_earlier_denial_counts_as_of_is_no_repeat() {
    let platform = |stopped| What::Platform { stopped, phone_number_id: None };
    let suppress = |suppressed| What::Suppression { suppressed, reference: String::new() };
    for (denies, allows) in [
        (opt_out("*"), opt_in("marketing", false)),
        (opt_out("marketing"), opt_in("marketing", false)),
        (platform(true), platform(false)),
        (suppress(true), suppress(false)),
    ] {
        // Between the two denials are up to more clamped allows than the record knows one by one.
        for between in [0, 1, 20] {
            let mut pair = Pair::new();
            let ahead = |millis| event(allows.clone(), Some(NOW + millis), "");
            let denial = |millis| event(denies.clone(), Some(NOW + millis), "");
            pair.record(NOW, &ahead(MINUTE)).unwrap();
            // It counts as of the allow's moment.
            pair.record(NOW + 1, &denial(-1)).unwrap();
            for n in 0..=between {
                pair.record(NOW + 2 + n, &ahead(2 * MINUTE + n)).unwrap();
            }
            let outcome = pair.record(NOW + 3 + between, &denial(0)).unwrap();
            assert!(outcome.applied, "{denies:?} after {between}");
            let (_, _, made) = answers(&pair)[0];
            assert!(!made.allowed(), "{denies:?} after {between}: {made:?}");
        }
    }
}

#[test]
fn denial_replayed_repeatedly_is_recorded_once() {
    let given_back = |what: What, millis| {
        let mut denial = event(what, Some(millis), "");
        denial.is_replay = true;
        denial
    };
    let suppress = |suppressed| What::Suppression { suppressed, reference: String::new() };
    for (denies, allows) in [
        (opt_out("*"), opt_in("utility", false)),
        (suppress(true), suppress(false)),
        (
            What::Platform { stopped: true, phone_number_id: None },
            What::Platform { stopped: false, phone_number_id: None },
        ),
    ] {
        // The ledger has lost the denial; then a sender with a fast clock allows several times.
        let lost = given_back(denies.clone(), NOW - 1_000);
        let mut pair = Pair::new();
        pair.record(NOW, &event(allows.clone(), Some(NOW + MINUTE), "")).unwrap();
        let mut written = 0;
        for n in 1..=5 {
            written += u32::from(pair.record(NOW + n, &lost).unwrap().applied);
            let later = event(allows.clone(), Some(NOW + MINUTE + n), "");
            pair.record(NOW + n, &later).unwrap();
        }
        assert_eq!(written, 1, "{denies:?}");
        // A denial that the ledger still has is unchanged, even if the ledger has a later one.
        let mut pair = Pair::new();
        for millis in [2_000, 1_000] {
            pair.record(NOW, &event(denies.clone(), Some(NOW - millis), "")).unwrap();
        }
        pair.record(NOW, &event(allows.clone(), Some(NOW + MINUTE), "")).unwrap();
        let known = pair.state().clone();
        for millis in [2_000, 1_000] {
            let again = given_back(denies.clone(), NOW - millis);
            assert!(!pair.record(NOW + 5, &again).unwrap().applied, "{denies:?}");
        }
        assert_eq!(*pair.state(), known);
    }
}

#[test]
fn clamped_time_is_forgotten_once_its_allows_are_superseded() {
    let mut pair = Pair::new();
    for n in 0..50 {
        pair.record(NOW + n, &event(inbound("hi"), Some(NOW + n + MINUTE), "")).unwrap();
    }
    assert_eq!(pair.state().clamped.len(), 1);
    pair.record(NOW + 2 * MINUTE, &event(inbound("hi"), Some(NOW + 2 * MINUTE), "")).unwrap();
    assert!(pair.state().clamped.is_empty());
}

#[test]
fn repeat_of_a_clamped_allow_after_many_others_lifts_nothing() {
    let ahead = event(opt_in("utility", false), Some(NOW + MINUTE), "");
    let message = event(inbound("hi"), Some(NOW + MINUTE), "");
    let stop = event(opt_out("*"), Some(NOW + 1_000), "");
    let mut pair = Pair::new();
    pair.record(NOW, &ahead).unwrap();
    pair.record(NOW, &message).unwrap();
    pair.record(NOW + 1_000, &stop).unwrap();
    for n in 0..100 {
        let other = event(opt_in("marketing", false), Some(NOW - n), &format!("request {n}"));
        pair.record(NOW + 2_000, &other).unwrap();
        let other =
            event(What::Failure { code: 1, phone_number_id: None }, Some(NOW + 4 * MINUTE + n), "");
        pair.record(NOW + 2_000, &other).unwrap();
    }
    let known = pair.state().clone();
    for again in [&ahead, &message] {
        assert!(!pair.record(NOW + 2 * MINUTE, again).unwrap().applied);
    }
    assert_eq!(*pair.state(), known);
    for (category, form, made) in answers(&pair) {
        assert_eq!(made.reason, Reason::OptedOutAll, "{category} {form:?}");
    }
    // A newer one with another time does.
    pair.record(NOW + 2 * MINUTE, &event(opt_in("utility", false), Some(NOW + 2_000), "")).unwrap();
    assert_eq!(reason(&pair, "utility"), Reason::OptedIn);
}

#[test]
fn yes_confirms_nothing_across_an_opt_out_whichever_arrives_first() {
    let pending = event(opt_in("marketing", true), Some(NOW), "");
    let yes = event(inbound("yes"), Some(NOW + 20), "");
    for (said, denied) in [(NOW, true), (NOW + 10, true), (NOW + 30, true), (NOW - 1, false)] {
        let stop = event(opt_out("*"), Some(said), "");
        for order in [[&pending, &stop, &yes], [&pending, &yes, &stop], [&stop, &pending, &yes]] {
            let mut pair = Pair::new();
            for one in order {
                pair.record(NOW + MINUTE, one).unwrap();
            }
            let is_denied = reason(&pair, "marketing") == Reason::OptedOutAll;
            assert_eq!(is_denied, denied, "{order:?}");
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    In(&'static str),
    Out(&'static str),
    Pending(&'static str),
    Hi,
    Yes,
    StopText,
    /// Whether marketing is stopped, and at which number of the business.
    Platform(bool, usize),
    Suppression(bool),
    Closed,
}

use Kind::{Closed, Hi, In, Out, Pending, Platform, StopText, Suppression, Yes};

const CATEGORIES: [&str; 4] = ["marketing", "marketing.news", "utility", "utility.orders"];

fn kind() -> impl Strategy<Value = Kind> {
    let some = || proptest::sample::select(&CATEGORIES[..]);
    prop_oneof![
        6 => some().prop_map(In),
        3 => prop_oneof![Just("*"), some()].prop_map(Out),
        2 => Just(StopText),
        2 => some().prop_map(Pending),
        2 => Just(Hi),
        1 => Just(Yes),
        2 => (any::<bool>(), 0..3_usize).prop_map(|(stopped, at)| Platform(stopped, at)),
        1 => any::<bool>().prop_map(Suppression),
        1 => Just(Closed),
    ]
}

impl Kind {
    fn submission(self, time: i64) -> Submission {
        let what = match self {
            In(scope) => opt_in(scope, false),
            Pending(scope) => opt_in(scope, true),
            Out(scope) => opt_out(scope),
            Hi => inbound("hi"),
            Yes => inbound("yes"),
            StopText => inbound("STOP"),
            Platform(stopped, place) => {
                let phone_number_id = PhoneNumberId::parse(["", "1", "2"][place]).ok();
                What::Platform { stopped, phone_number_id }
            }
            Suppression(suppressed) => What::Suppression { suppressed, reference: String::new() },
            Closed => What::Failure { code: 131_047, phone_number_id: None },
        };
        event(what, Some(time), "")
    }
}

/// An event as its writer claimed it.
#[derive(Clone, Copy, Debug)]
struct Sent {
    kind: Kind,
    claimed: i64,
    arrived: usize,
    /// The ledger's clock, if that was behind.
    clamped_to: Option<i64>,
}

impl Sent {
    /// Whether this allow happened after a denial, as far as can be known.
    fn beats(&self, denial: &Self) -> bool {
        let outlives = self.clamped_to.is_some_and(|moment| {
            denial.arrived > self.arrived && denial.claimed >= moment - 5 * MINUTE
        });
        self.claimed > denial.claimed && !outlives
    }
}

fn covers(scope: &str, category: &str) -> bool {
    let class = category.split('.').next() == Some(scope);
    scope == "*" || scope == category || class
}

/// Whether one allow beats all of these denials.
fn lifted(events: &[Sent], denies: impl Fn(Kind) -> bool, allows: impl Fn(Kind) -> bool) -> bool {
    let denials: Vec<&Sent> = events.iter().filter(|event| denies(event.kind)).collect();
    denials.is_empty()
        || events.iter().any(|it| allows(it.kind) && denials.iter().all(|denial| it.beats(denial)))
}

/// An independent implementation of the rules: why a check must not be allowed.
fn objection(events: &[Sent], category: &str, form: Form, reason: Reason) -> Option<&'static str> {
    let out = |kind: Kind| match kind {
        Out(scope) => covers(scope, category),
        StopText => true,
        _ => false,
    };
    let all = |kind: Kind| matches!(kind, Out("*") | StopText);
    let said_yes = events.iter().any(|event| event.kind == Yes);
    let opts_in = |kind: Kind| match kind {
        In(scope) => covers(scope, category),
        Pending(scope) => said_yes && covers(scope, category),
        _ => false,
    };
    let wrote = |kind: Kind| matches!(kind, Hi | Yes | StopText);
    let set = |kind: Kind| kind == Suppression(true);
    if !lifted(events, set, |kind| kind == Suppression(false)) {
        return Some("suppressed");
    }
    let is_reply = reason == Reason::ReplyAfterOptOut;
    if is_reply && !lifted(events, all, wrote) {
        return Some("no message after the STOP");
    }
    let narrower = |kind: Kind| out(kind) && !all(kind);
    if is_reply && !lifted(events, narrower, opts_in) {
        return Some("opted out of what is narrower");
    }
    if !is_reply && !lifted(events, out, opts_in) {
        return Some("opted out");
    }
    let marketing = covers(Class::Marketing.name(), category);
    let lifts = |place| {
        let stop = move |kind: Kind| kind == Platform(true, place);
        lifted(events, stop, move |kind| kind == Platform(false, place))
    };
    if marketing && !(0..3).all(lifts) {
        return Some("stopped inside WhatsApp");
    }
    let needs_window = form == Form::FreeForm || reason == Reason::WindowOpen;
    if needs_window && !lifted(events, |kind| kind == Closed, wrote) {
        return Some("the window was closed");
    }
    None
}

/// The decisions for every category and form.
fn answers(pair: &Pair) -> Vec<(&'static str, Form, Decision)> {
    let forms = [Form::Template, Form::FreeForm];
    let all = CATEGORIES.iter().flat_map(|category| forms.map(|form| (*category, form)));
    all.map(|(category, form)| (category, form, decided(pair.state(), category, form))).collect()
}

/// Every permutation of `0..count`.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for order in orders(count - 1) {
        for place in 0..count {
            let mut order = order.clone();
            order.insert(place, count - 1);
            all.push(order);
        }
    }
    all
}

/// A clock's reading, within five minutes of the true time, which is [`NOW`].
fn reading() -> impl Strategy<Value = i64> {
    prop_oneof![-5 * MINUTE..=5 * MINUTE, -2_i64..=2, (-5_i64..=5).prop_map(|m| m * MINUTE)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// The writers' clocks and the ledger's are up to five minutes off, and the ledger's clock changes.
    #[test]
    fn no_order_of_arrival_allows_what_the_latest_word_denies(
        said in proptest::collection::vec((kind(), reading()), 2..=4),
        ledger in proptest::collection::vec(reading(), 4),
    ) {
        // Two events of one time and kind are a repeat of one event. So are two opt-outs of everything
        // at one millisecond, however they were said: a record holds the scope and the time alone.
        let mut said = said;
        let mut seen = Vec::new();
        said.retain(|(kind, time)| {
            let denial = if *kind == StopText { Out("*") } else { *kind };
            !seen.contains(&(denial, *time)) && { seen.push((denial, *time)); true }
        });
        let mut without_clamps = None;
        for order in orders(said.len()) {
            let (mut pair, mut events, mut odd) = (Pair::new(), Vec::new(), false);
            for (arrived, index) in order.iter().enumerate() {
                let (kind, off) = said[*index];
                let (claimed, now) = (NOW + off, NOW + ledger[arrived]);
                let result = pair.record(now, &kind.submission(claimed));
                odd |= result.is_err() || claimed > now || matches!(kind, Yes | Pending(_));
                if result.is_ok() {
                    let clamped_to = (claimed > now).then_some(now);
                    events.push(Sent { kind, claimed, arrived, clamped_to });
                }
            }
            let answers = answers(&pair);
            for (category, form, made) in &answers {
                let objection = objection(&events, category, *form, made.reason);
                let why = objection.filter(|_| made.allowed());
                prop_assert!(why.is_none(), "{category} {form:?} {made:?}: {why:?} {events:#?}");
            }
            // Delivered again, when no event is ahead of any clock, they allow no more than before.
            for Sent { kind, claimed, .. } in &events {
                pair.record(NOW + 30 * MINUTE, &kind.submission(*claimed)).unwrap();
                for (category, form, made) in &self::answers(&pair) {
                    let objection = objection(&events, category, *form, made.reason);
                    let why = objection.filter(|_| made.allowed());
                    let so = format!("{category} {form:?} {made:?}");
                    prop_assert!(why.is_none(), "again {so}: {why:?} {events:#?}");
                }
            }
            if !odd {
                let first = without_clamps.get_or_insert_with(|| answers.clone());
                prop_assert_eq!(&*first, &answers, "nothing was clamped: {:#?}", events);
            }
        }
    }
}

#[test]
fn scopes_of_the_property_are_scopes() {
    assert!(CATEGORIES.iter().all(|scope| Scope::parse(scope).is_ok()));
}

/// Two linked ids in partitions on two nodes, of which the other one's clock is seconds ahead.
#[test]
fn untimed_stop_copied_to_a_partition_with_a_faster_clock_beats_what_was_recorded_there_before() {
    let secret = KeySecret::new(&[3; 16]);
    let key = |user: &str| secret.read(user, "acme").unwrap();
    let linked = |to: &str| {
        let mut record = Record::default();
        record.link(Link { user_id: to.to_owned(), time: at(NOW - MINUTE), moved: false });
        StoredRecord { version: Version { revision: 1, head_prefix: 0 }, record }
    };
    for ahead in [0, 1, 5_000, 4 * MINUTE] {
        let (own, mut other) = (linked("US.two"), linked("US.one"));
        // It was recorded there by that partition's clock, a moment before.
        for effect in opt_in("marketing", false).effects(at(NOW + ahead)) {
            other.record.state.apply(&effect).unwrap();
        }
        let mut ids = LinkedIds::new(&secret, "acme", "US.one");
        ids.set_record(key("US.one"), own.clone());
        assert_eq!(ids.unread(), [key("US.two")]);
        ids.set_record(key("US.two"), other.clone());
        let keywords = Keywords::new(KeywordLists::default());
        let stop = Event {
            user_id: "US.one".to_owned(),
            business_id: "acme".to_owned(),
            time: None,
            what: opt_out("*"),
        };
        let stop = Submission::new(stop, String::new());
        let update = PairUpdate::new(&own, at(NOW + 1), &keywords, None);
        let mut update = update.with_linked(linked_state(Some(&ids)));
        assert!(update.add(&stop, &secret).unwrap().applied);
        let Propagation { links, denials, .. } = update.propagation().clone();
        let change = update.into_change(key("US.one"), Some(&stop));
        let own = StoredRecord { version: own.version, record: change.update.unwrap().record };
        let mut round = PropagationRound::new(&secret, "acme", "US.one", links, denials);
        let changes = loop {
            match round.step() {
                Step::Append(changes) => break changes,
                Step::Read(keys) => {
                    let stored = |read: &Key| {
                        Ok(if *read == key("US.one") { own.clone() } else { other.clone() })
                    };
                    let pairs = keys.iter().map(stored).collect();
                    // The clock of the slower node.
                    round.read(&keys, Read { clock: at(NOW + 2), pairs }).unwrap();
                }
            }
        };
        for user in ["US.one", "US.two"] {
            let written = changes.iter().find(|change| change.key == key(user)).unwrap();
            let state = written.update.as_ref().map_or(&own.record.state, |new| &new.record.state);
            let reason = decided(state, "marketing", Form::Template).reason;
            assert_eq!(reason, Reason::OptedOutAll, "{user}, {ahead} ms ahead");
        }
    }
}
