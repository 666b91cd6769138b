//! The read path allocates nothing, in table and decision.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use consentd::checker::{Campaign, CheckRequest, Checker, TemplateName};
use consentd::decision_log::{self, DecisionFilter, DecisionLogSettings, LogTarget};
use consentd::metrics::Metrics;
use consentd::table;
use consentd_core::country_list::CountryList;
use consentd_core::decision::{Form, Policy, Proof, decide};
use consentd_core::event::{Evidence, Method, StatementNames, What};
use consentd_core::id::{BusinessId, KeySecret, UserId};
use consentd_core::scope::{Category, Class, Scope};
use consentd_core::state::{Choice, Effect, State};
use consentd_core::template::TemplateId;
use consentd_core::time::{Clock, Timestamp};
use consentd_os::clock::Moment;

/// A user id in each kind of notation.
const NOTATIONS: [&str; 10] = [
    "15550123456",
    "+44 (0)7700 900123",
    "+54 11 15 2345 6789",
    "whatsapp:+15550123456",
    "https://wa.me/15550123456?text=hello",
    "15550123456:12@s.whatsapp.net",
    "\u{202a}+\u{661} \u{665}\u{665}\u{665} 0123456\u{202c}",
    "US.13491208655302741918",
    "customer-7",
    "caf\u{e9}",
];

#[test]
fn a_check_allocates_nothing() {
    let secret = KeySecret::new(&[1; 16]);
    let (table, mut writer) = table::new();
    writer.reset(&secret);
    let business = BusinessId::parse("acme").unwrap();
    let users: Vec<String> = (0..100).map(|n| format!("+1 (555) 010-{n:04}")).collect();
    for (n, user) in users.iter().enumerate() {
        let expire = (n % 2 == 0).then_some(Timestamp::MAX.minus(Duration::from_secs(1)));
        let evidence = Evidence {
            method: Method::Website,
            statement: String::new(),
            business_name: String::new(),
            locale: String::new(),
            reference: String::new(),
            confirmation: String::new(),
            phone_number_id: None,
            statement_names: StatementNames::default(),
        };
        let category = Scope::parse("utility.order_updates").unwrap();
        let what = What::OptIn { category, evidence, expire, pending: false };
        let mut state = State::default();
        for effect in what.effects(Timestamp::MIN) {
            state.apply(&effect).unwrap();
        }
        writer.apply(secret.key(&UserId::parse(user).unwrap(), business), Ok(&state));
    }
    let policy = Policy::default();
    let mut allowed = 0;
    let info = allocation_counter::measure(|| {
        for user in &users {
            // All of a check: reading the ids, the key, the look-up, the clocks, the decision.
            let pair = table.pair(user, "acme").unwrap();
            let category = Category::parse("utility.order_updates").unwrap();
            let (facts, freshness) = table.facts(pair, category);
            let now = Moment::now();
            let clock = Clock::of(now.wall, freshness.ledger_clock(now));
            let facts = facts.unwrap();
            let made = decide(&facts, category.class, Form::Any, &policy, clock, Proof::Fresh);
            black_box(freshness.staleness(now));
            allowed += u32::from(made.allowed());
        }
    });
    // An opt-in that lapses at the end of time has not lapsed on the ledger's clock either.
    assert_eq!(allowed, 100);
    assert_eq!(info.count_total, 0, "{info:?}");
    let info = allocation_counter::measure(|| {
        for id in NOTATIONS {
            black_box(table.key_deriver().parse(black_box(id), "acme").unwrap());
        }
    });
    assert_eq!(info.count_total, 0, "{info:?}");
    let counted = allocation_counter::measure(|| drop(black_box(Box::new(1_u64))));
    assert_eq!(counted.count_total, 1, "what counts can count");
}

#[test]
fn screening_allocates_by_the_message_and_not_by_the_recipient() {
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let (table, mut writer) = table::new();
    writer.reset(&KeySecret::new(&[1; 16]));
    writer.validate();
    let checker = Checker::new(table, Policy::default(), Duration::from_secs(5), metrics);
    let campaign = Campaign {
        business: BusinessId::parse("acme").unwrap(),
        category: Category::parse("marketing").unwrap(),
        form: Form::Template,
        template: None,
    };
    let users: Vec<String> = (0..1_000).map(|n| format!("4915550100{n:04}")).collect();
    let spent = |many: usize| {
        let mut denied = 0;
        let info = allocation_counter::measure(|| {
            let some = users[..many].iter().map(String::as_str);
            checker
                .filter(&campaign, some, |reason| denied += u32::from(reason.is_some()))
                .unwrap();
        });
        assert_eq!(denied, u32::try_from(many).unwrap());
        info.count_total
    };
    spent(1); // What a thread needs once.
    assert!(spent(1_000) <= spent(1) && spent(1) < 10, "{} and {}", spent(1_000), spent(1));
}

#[test]
fn a_logged_check_allocates_nothing() {
    let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
    let (table, mut writer) = table::new();
    let secret = KeySecret::new(&[1; 16]);
    writer.reset(&secret);
    let template = TemplateName { name: "order_update", language: "pt_BR" };
    let known = TemplateId::parse(template.name, template.language).unwrap();
    let (category, lift, reference) = (Class::Marketing, None, String::new());
    let mut state = State::default();
    for effect in (What::TemplateCategory { category, lift, reference }).effects(Timestamp::MAX) {
        state.apply(&effect).unwrap();
    }
    let key = secret.template_key(&known, BusinessId::parse("acme").unwrap());
    writer.apply(key, Ok(&state));
    writer.validate();
    let folder = tempfile::tempdir().unwrap();
    let settings = DecisionLogSettings {
        target: LogTarget::File(folder.path().join("log")),
        sample: 1.0,
        filter: DecisionFilter::All,
        max_size: 1 << 20,
        keep: 1,
    };
    let (log, _waiting) = decision_log::open(settings, Arc::clone(&metrics)).unwrap();
    let bound = Duration::from_secs(5);
    let checker =
        Checker::new(table, Policy::default(), bound, Arc::clone(&metrics)).logging(Some(log));
    let checker = checker.blocking(CountryList::parse(["49", "1212", "CA", "1"]).unwrap());
    let users: Vec<String> = (0..70_000).map(|n| format!("+1 (555) 01{n:05}")).collect();
    let ask_about = |user: &String, category, template| {
        let (business_id, form) = ("acme", Ok(Form::Template));
        let question =
            CheckRequest { user_id: user, business_id, category, form, min_revision: 0, template };
        black_box(checker.check(&question).unwrap()).stricter
    };
    // Its country is looked up, too.
    let ask = |user: &String| assert_eq!(ask_about(user, "marketing.sale", None), None);
    ask(&users[0]); // What a thread needs once.
    let info = allocation_counter::measure(|| users.iter().for_each(ask));
    assert_eq!(info.count_total, 0, "{info:?}");
    // Neither does one that finds the queue full.
    assert_eq!(metrics.decisions_dropped_by_queue(), 70_001 - 65_536);
    // Nor one that names a template, which is known to be of a stricter category.
    let info = allocation_counter::measure(|| {
        assert_eq!(
            ask_about(&users[0], "utility.order_updates", Some(template)),
            Some(Class::Marketing)
        );
    });
    assert_eq!(info.count_total, 0, "{info:?}");
}

/// What one user has after a change: topics that no other user and no other change has, and now and
/// then what makes the table keep a pair elsewhere.
fn ever_new(user: usize, change: usize) -> State {
    let mut state = State::default();
    let at = |seconds: usize| Timestamp::MIN.plus(Duration::from_secs(seconds as u64));
    let opted_in = |expire| Choice::opt_in(at(1), expire);
    for topic in 0..change % 4 {
        let scope = Scope::parse(&format!("utility.topic_{user}_{change}_{topic}")).unwrap();
        let choice = match (change / 7 % 4, topic) {
            (1, _) => opted_in(Some(at(9 + user))),
            (2, _) => opted_in(Some(at(9 + topic))),
            (3, 0) => Choice::opt_out(at(2)),
            _ => opted_in(None),
        };
        state.apply(&Effect::Choice(scope, choice)).unwrap();
    }
    state.apply(&Effect::Inbound(at(change))).unwrap();
    state
}

#[test]
fn a_table_takes_what_its_state_takes_however_often_that_changed() {
    const USERS: usize = 2_000;
    const CHANGES: usize = 150; // Of each user: 300,000 in all.
    let secret = KeySecret::new(&[1; 16]);
    let business = BusinessId::parse("acme").unwrap();
    let key = |user: usize| {
        let user = format!("user-{user}");
        secret.key(&UserId::parse(&user).unwrap(), business)
    };
    // Users end with the same kinds of state, however many changes they have had.
    let last = |user: usize| CHANGES + user % 28;
    let build = |begins: &dyn Fn(usize) -> usize| {
        let mut made = None;
        let info = allocation_counter::measure(|| {
            let (table, mut writer) = table::new();
            writer.reset(&secret);
            for back in (0..=CHANGES).rev() {
                for user in (0..USERS).filter(|user| begins(*user) <= last(*user) - back) {
                    writer.apply(key(user), Ok(&ever_new(user, last(user) - back)));
                }
            }
            made = Some((table, writer));
        });
        let (table, _writer) = made.unwrap();
        assert_eq!(table.pairs(), USERS);
        (info.bytes_current, table.bytes())
    };
    let (changed, changed_said) = build(&|_| 0);
    let (fresh, fresh_said) = build(&last);
    println!(
        "{changed} bytes on the heap after changes, {fresh} fresh; it says {changed_said} and {fresh_said}"
    );
    assert!(changed * 10 <= fresh * 12, "{changed} bytes after changes, {fresh} fresh");
    assert!(changed_said * 10 <= fresh_said * 12, "it says {changed_said} and {fresh_said}");
}
