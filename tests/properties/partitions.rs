//! The tables of several partitions answer as one table with all pairs does, and each for itself where one of them
//! is lost, behind, or not there.

use std::sync::Arc;
use std::time::Duration;

use consentd::checker::{
    Campaign, CheckError, CheckRequest, CheckResult, Checker, TablePhase, TemplateName,
};
use consentd::metrics::Metrics;
use consentd::table::{self, Table, Tables, UnreadablePair, Writer};
use consentd_core::businesses::{BusinessSet, Businesses};
use consentd_core::decision::{Decision, Form, Policy, Reason};
use consentd_core::event::What;
use consentd_core::id::{BusinessId, Key, KeySecret, UserId};
use consentd_core::partition::Layout;
use consentd_core::scope::{Category, Class, Scope};
use consentd_core::state::State;
use consentd_core::template::TemplateId;
use consentd_core::time::Timestamp;
use consentd_os::clock::{self, Moment};
use proptest::prelude::*;

use super::{CATEGORIES, NOW, Timed, moment, state_of, what};

const USERS: [&str; 8] = [
    "15550100001",
    "15550100002",
    "15550100003",
    "15550100004",
    "US.one",
    "US.two",
    // Versions before read these two otherwise, so that each has a second pair, perhaps in another partition.
    "whatsapp:+15550100005",
    "+44 (0)7700 900123",
];
const BUSINESSES: [&str; 3] = ["acme", "globex", "initech"];
const TEMPLATE: TemplateName<'static> = TemplateName { name: "news", language: "en" };
const BOUND: Duration = Duration::from_hours(1);

fn secret() -> KeySecret {
    KeySecret::new(&[7; 16])
}

fn business(id: &str) -> BusinessId<'_> {
    BusinessId::parse(id).unwrap()
}

fn key(user: &str, at: &str) -> Key {
    secret().key(&UserId::parse(user).unwrap(), business(at))
}

/// A writer of a table that was loaded and proven just now.
fn loaded() -> (Table, Writer) {
    proven_before(Duration::ZERO)
}

/// The same of one that was proven this long ago.
fn proven_before(age: Duration) -> (Table, Writer) {
    let (table, mut writer) = table::new();
    writer.reset(&secret());
    let now = Moment::now();
    let asked = Moment { boot: now.boot.saturating_sub(age), wall: now.wall.minus(age) };
    writer.set_proof(asked, clock::wall().minus(age));
    writer.validate();
    (table, writer)
}

fn checker(tables: impl Into<Tables>) -> Checker {
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    Checker::new(tables, Policy::default(), BOUND, metrics)
}

/// A ledger that is divided, and the writers of its tables.
struct Parted {
    layout: Layout,
    tables: Tables,
    writers: Vec<Writer>,
}

impl Parted {
    fn new(layout: Layout) -> Self {
        let (first, writer) = loaded();
        let tables = Tables::from(first.clone());
        let all: Vec<u32> = layout.all().collect();
        tables.divide(layout, Businesses::All, &all);
        tables.insert(0, first);
        let mut writers = vec![writer];
        for number in 1..layout.partitions() {
            let (table, writer) = loaded();
            tables.insert(number, table);
            writers.push(writer);
        }
        Self { layout, tables, writers }
    }

    fn at(&mut self, key: Key) -> &mut Writer {
        let partition = self.layout.partition_of(key);
        &mut self.writers[partition as usize]
    }

    fn opt_in(&mut self, user: &str) {
        self.at(key(user, "acme")).apply(key(user, "acme"), Ok(&opted_in()));
    }
}

fn opted_in() -> State {
    let evidence = super::evidence(consentd_core::event::Method::Website);
    let category = Scope::parse("marketing").unwrap();
    let what = What::OptIn { category, evidence, expire: None, pending: false };
    state_of(&[(Timestamp::from_millis(NOW).unwrap(), what)])
}

fn asked<'a>(user: &'a str, business: &'a str, category: &'a str) -> CheckRequest<'a> {
    CheckRequest {
        user_id: user,
        business_id: business,
        category,
        form: Ok(Form::Template),
        min_revision: 0,
        template: None,
    }
}

/// Two users of a business in different partitions.
fn apart(layout: Layout) -> [String; 2] {
    let user = |number: u32| format!("155501{number:05}");
    let place = |number: u32| layout.partition_of(key(&user(number), "acme"));
    let other = (1..1_000).find(|number| place(*number) != place(0)).unwrap();
    [user(0), user(other)]
}

fn reasons(checker: &Checker, users: &[String]) -> Vec<Reason> {
    let mut found = Vec::new();
    let requests = users.iter().map(|user| asked(user, "acme", "marketing"));
    let each =
        |result: Result<CheckResult, CheckError>| found.push(result.unwrap().decision.reason);
    checker.check_many(requests, each).unwrap();
    let single = |user: &String| {
        checker.check_unrecorded(&asked(user, "acme", "marketing")).unwrap().decision.reason
    };
    assert_eq!(found, users.iter().map(single).collect::<Vec<_>>());
    let category = Category::parse("marketing").unwrap();
    let campaign =
        Campaign { business: business("acme"), category, form: Form::Template, template: None };
    let mut filtered = Vec::new();
    let users = users.iter().map(String::as_str);
    checker.filter(&campaign, users, |reason| filtered.push(reason.unwrap())).unwrap();
    assert_eq!(found, filtered);
    found
}

#[test]
fn pairs_of_a_lost_or_late_partition_are_denied_as_stale_while_others_are_answered() {
    let mut parted = Parted::new(Layout::new(8, 4).unwrap());
    let users = apart(parted.layout);
    for user in &users {
        parted.opt_in(user);
    }
    let checker = checker(parted.tables.clone());
    assert_eq!(reasons(&checker, &users), [Reason::OptedIn; 2]);
    assert!(checker.is_live());
    parted.at(key(&users[1], "acme")).invalidate();
    assert_eq!(reasons(&checker, &users), [Reason::OptedIn, Reason::Stale]);
    assert!(!checker.is_live() && checker.is_ready());
    let status = checker.status();
    assert_eq!((status.phase, status.pairs), (TablePhase::Invalid, 2));
    let lost = parted.layout.partition_of(key(&users[1], "acme"));
    assert!(status.cause.starts_with(&format!("partition {lost}: ")), "{}", status.cause);
    let (invalid, live): (Vec<_>, Vec<_>) =
        status.partitions.iter().partition(|one| one.phase == TablePhase::Invalid);
    assert_eq!((invalid.len(), invalid[0].number, live.len()), (1, lost, 7));
    // Its summary is refused, and the other one's is not.
    assert!(matches!(checker.summary(&users[1], "acme"), Err(CheckError::Reloading)));
    assert!(checker.summary(&users[0], "acme").is_ok());
}

#[test]
fn former_pair_in_a_lost_partition_denies_the_user() {
    let layout = Layout::new(64, 64).unwrap();
    let mut parted = Parted::new(layout);
    let user = "whatsapp:+15550100005";
    let former = secret().former_key(&UserId::parse(user).unwrap(), business("acme")).unwrap();
    assert_ne!(layout.partition_of(former), layout.partition_of(key(user, "acme")));
    parted.opt_in(user);
    let checker = checker(parted.tables.clone());
    let users = [user.to_owned()];
    assert_eq!(reasons(&checker, &users), [Reason::OptedIn]);
    let stop = What::OptOut { scope: Scope::All, reference: String::new() };
    let stop = state_of(&[(Timestamp::from_millis(NOW + 1).unwrap(), stop)]);
    parted.at(former).apply(former, Ok(&stop));
    assert_eq!(reasons(&checker, &users), [Reason::OptedOutAll]);
    parted.at(former).apply(former, Ok(&State::default()));
    parted.at(former).invalidate();
    assert_eq!(reasons(&checker, &users), [Reason::Stale]);
    // The oldest proof counts.
    let age = Duration::from_mins(10);
    let (late, _writer) = proven_before(age);
    parted.tables.insert(layout.partition_of(former), late);
    let answer = checker.check_unrecorded(&asked(user, "acme", "marketing")).unwrap();
    assert_eq!(answer.decision.reason, Reason::OptedIn);
    assert!(answer.staleness >= age, "{answer:?}");
    // So does a partition whose table is not there.
    parted.tables.remove(layout.partition_of(former));
    let answer = checker.check_unrecorded(&asked(user, "acme", "marketing"));
    assert!(matches!(answer, Err(CheckError::NotReady)), "{answer:?}");
}

#[test]
fn template_in_a_lost_partition_denies_what_names_it_and_nothing_else() {
    let layout = Layout::new(64, 64).unwrap();
    let mut parted = Parted::new(layout);
    let template = TemplateId::parse(TEMPLATE.name, TEMPLATE.language).unwrap();
    let kept = secret().template_key(&template, business("acme"));
    let user = "15550100001";
    assert_ne!(layout.partition_of(kept), layout.partition_of(key(user, "acme")));
    parted.opt_in(user);
    parted.at(kept).invalidate();
    let checker = checker(parted.tables.clone());
    let plain = asked(user, "acme", "marketing");
    let named = CheckRequest { template: Some(TEMPLATE), ..plain };
    let reason =
        |request: &CheckRequest<'_>| checker.check_unrecorded(request).unwrap().decision.reason;
    assert_eq!([reason(&plain), reason(&named)], [Reason::OptedIn, Reason::Stale]);
    let mut found = Vec::new();
    let each =
        |result: Result<CheckResult, CheckError>| found.push(result.unwrap().decision.reason);
    checker.check_many([plain, named, plain].into_iter(), each).unwrap();
    assert_eq!(found, [Reason::OptedIn, Reason::Stale, Reason::OptedIn]);
}

#[tokio::test]
async fn min_revision_is_one_of_the_pairs_own_partition() {
    let mut parted = Parted::new(Layout::new(8, 8).unwrap());
    let [behind, ahead] = apart(parted.layout);
    parted.opt_in(&behind);
    parted.opt_in(&ahead);
    parted.at(key(&ahead, "acme")).set_revision(100);
    parted.at(key(&behind, "acme")).set_revision(7);
    let checker = checker(parted.tables.clone());
    let of = |user, min_revision| CheckRequest { min_revision, ..asked(user, "acme", "marketing") };
    assert!(checker.missing_revision(&of(&ahead, 100)).is_none());
    let missing = checker.missing_revision(&of(&behind, 100)).unwrap();
    assert_eq!((missing.wanted, missing.applied), (100, 7));
    let answer = |user| checker.check_unrecorded(&of(user, 100)).unwrap();
    let (known, unknown) = (answer(&*ahead), answer(&*behind));
    assert_eq!((known.decision.reason, known.revision), (Reason::OptedIn, 100));
    assert_eq!((unknown.decision.reason, unknown.revision), (Reason::Stale, 7));
    let soon = Some(tokio::time::Instant::now() + Duration::from_millis(20));
    let both = [of(&ahead, 100), of(&behind, 100)];
    assert!(checker.wait_for_revisions(both.into_iter(), soon).await.is_err());
    let partition = parted.layout.partition_of(key(&behind, "acme")) as usize;
    assert_eq!(checker.revisions()[partition], 7);
    let waits = checker.wait_for_revisions(both.into_iter(), None);
    let arrives = async { parted.at(key(&behind, "acme")).set_revision(100) };
    let (waited, ()) = tokio::join!(waits, arrives);
    waited.unwrap();
}

#[test]
fn nothing_is_answered_before_the_layout_is_known_and_ready_is_what_was_followed_at_the_start() {
    let layout = Layout::new(4, 2).unwrap();
    let (first, _writer) = table::new();
    let tables = Tables::from(first.clone());
    let checker = checker(tables.clone());
    let answer = checker.check_unrecorded(&asked("15550100001", "acme", "marketing"));
    assert!(matches!(answer, Err(CheckError::NotReady)), "{answer:?}");
    assert!(!checker.is_ready() && checker.status().phase == TablePhase::Loading);
    let of = |ids: &[&str]| Businesses::only(BusinessSet::of(ids.iter().copied()).unwrap());
    let initial: Vec<u32> = layout.partitions_of(business("acme").tag()).collect();
    tables.divide(layout, of(&["acme"]), &initial);
    let answer = checker.check_unrecorded(&asked("15550100001", "acme", "marketing"));
    assert!(matches!(answer, Err(CheckError::NotReady)), "{answer:?}");
    let mut writers = Vec::new();
    for number in &initial {
        assert!(!checker.is_ready());
        let (table, writer) = loaded();
        tables.insert(*number, table);
        writers.push(writer);
    }
    // Without their tables, partitions are not waited for; with them they are loaded.
    assert!(checker.is_ready() && checker.is_live());
    let answer = checker.check_unrecorded(&asked("15550100001", "acme", "marketing")).unwrap();
    assert_eq!(answer.decision.reason, Reason::NoConsent);
    // Another business is refused, whatever its partitions, and a new table takes nothing out of service.
    let answer = checker.check_unrecorded(&asked("15550100001", "globex", "marketing"));
    assert!(matches!(answer, Err(CheckError::NotHeld(_))), "{answer:?}");
    let other = (0..4).find(|number| !initial.contains(number)).unwrap();
    let (table, _loading) = table::new();
    tables.insert(other, table);
    assert!(checker.is_ready() && !checker.is_live());
}

#[test]
fn table_that_is_taken_away_is_freed() {
    let mut parted = Parted::new(Layout::new(4, 4).unwrap());
    let users: Vec<_> = (0..4_000).map(|number| format!("155501{number:05}")).collect();
    for user in &users {
        parted.opt_in(user);
    }
    let checker = checker(parted.tables.clone());
    let before = checker.gauges();
    assert_eq!(before.pairs, users.len());
    parted.tables.remove(3);
    parted.writers.remove(3);
    let after = checker.gauges();
    assert!(after.pairs < before.pairs && after.bytes < before.bytes, "{before:?} {after:?}");
    assert_eq!(after.partitions.len(), 3);
    assert!(parted.tables.table(3).is_none());
}

#[derive(Clone, Debug)]
enum Write {
    User { user: usize, at: usize, former: bool, events: Vec<Timed> },
    Unreadable { user: usize, at: usize },
    Template { at: usize, class: Class },
    Restriction { at: usize, restricted: bool },
}

fn write() -> impl Strategy<Value = Write> {
    let (user, at) = (0..USERS.len(), 0..BUSINESSES.len());
    let class = proptest::sample::select(&[Class::Marketing, Class::Utility][..]);
    prop_oneof![
        8 => (user.clone(), at.clone(), any::<bool>(), proptest::collection::vec((moment(), what()), 0..4))
            .prop_map(|(user, at, former, events)| Write::User { user, at, former, events }),
        1 => (user, at.clone()).prop_map(|(user, at)| Write::Unreadable { user, at }),
        1 => (at.clone(), class).prop_map(|(at, class)| Write::Template { at, class }),
        1 => (at, any::<bool>())
            .prop_map(|(at, restricted)| Write::Restriction { at, restricted }),
    ]
}

/// The pair that is written, and its new state.
fn written(write: &Write) -> (Key, Result<State, UnreadablePair>) {
    let time = Timestamp::from_millis(NOW).unwrap();
    match write {
        Write::User { user, at, former, events } => {
            let (user, at) = (UserId::parse(USERS[*user]).unwrap(), business(BUSINESSES[*at]));
            let former = secret().former_key(&user, at).filter(|_| *former);
            (former.unwrap_or_else(|| secret().key(&user, at)), Ok(state_of(events)))
        }
        Write::Unreadable { user, at } => (key(USERS[*user], BUSINESSES[*at]), Err(UnreadablePair)),
        Write::Template { at, class } => {
            let template = TemplateId::parse(TEMPLATE.name, TEMPLATE.language).unwrap();
            let what =
                What::TemplateCategory { category: *class, lift: None, reference: String::new() };
            let state = state_of(&[(time, what)]);
            (secret().template_key(&template, business(BUSINESSES[*at])), Ok(state))
        }
        Write::Restriction { at, restricted } => {
            let what = What::TemplateRestriction {
                restricted: *restricted,
                until: None,
                reference: String::new(),
            };
            (secret().account_key(business(BUSINESSES[*at])), Ok(state_of(&[(time, what)])))
        }
    }
}

/// Every question, and what a checker decides about it, asked singly and in a batch.
fn decisions(checker: &Checker) -> Vec<Decision> {
    let now = Moment { wall: Timestamp::from_millis(NOW).unwrap(), ..Moment::now() };
    let mut requests = Vec::new();
    for business in BUSINESSES {
        for user in USERS {
            for category in CATEGORIES {
                for template in [None, Some(TEMPLATE)] {
                    requests.push(CheckRequest { template, ..asked(user, business, category) });
                }
            }
        }
    }
    let single = requests.iter().map(|request| checker.check_at(request, || now).unwrap().decision);
    let mut all: Vec<_> = single.collect();
    let each = |result: Result<CheckResult, CheckError>| all.push(result.unwrap().decision);
    checker.check_many(requests.into_iter(), each).unwrap();
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tables_of_partitions_answer_as_one_table_does(
        (partitions, spread) in (1_u32..=6)
            .prop_flat_map(|p| (Just(1 << p), (0..=p).prop_map(|s| 1 << s))),
        writes in proptest::collection::vec(write(), 1..60),
    ) {
        let mut parted = Parted::new(Layout::new(partitions, spread).unwrap());
        let (whole, mut writer) = loaded();
        for write in &writes {
            let (key, state) = written(write);
            let state = state.as_ref().map_err(|_| UnreadablePair);
            parted.at(key).apply(key, state);
            writer.apply(key, state);
        }
        let (one, several) = (checker(whole), checker(parted.tables.clone()));
        prop_assert_eq!(one.gauges().pairs, several.gauges().pairs);
        prop_assert_eq!(decisions(&one), decisions(&several));
    }
}
