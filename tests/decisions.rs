//! The decision against `decisions.md` beside this file: every combination, and every boundary to
//! the millisecond.

use std::collections::BTreeSet;
use std::time::Duration;

use consentd_core::decision::{Decision, Form, Policy, Proof, Reason, decide};
use consentd_core::failure::{UserFailure, UserFailures};
use consentd_core::scope::{Class, ClassSet};
use consentd_core::standing::{Facts, Standing};
use consentd_core::time::{Clock, Timestamp};

const NOW: i64 = 1_750_000_000_000;
const HOUR: i64 = 3_600_000;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap()
}

/// One table of the page: its rows' cells, and which rows were ever the first to match.
struct Rows {
    rows: Vec<Vec<String>>,
    hit: BTreeSet<usize>,
}

impl Rows {
    fn read(section: &str) -> Self {
        let page = include_str!("decisions.md");
        let (_, rest) = page.split_once(&format!("## {section}\n")).expect("the page has it");
        let rest = rest.split("\n## ").next().unwrap_or_default();
        let rows = rest.lines().filter(|line| line.starts_with('|')).skip(2);
        let cells =
            |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().into()).collect();
        Self { rows: rows.map(cells).collect(), hit: BTreeSet::new() }
    }

    /// The last cell of the first row whose cells from `first` on match these values.
    fn verdict(&mut self, first: usize, values: &[&str]) -> String {
        let matches = |row: &Vec<String>| {
            values.iter().zip(&row[first..]).all(|(value, cell)| {
                cell == "any" || cell.split(';').any(|part| part.trim() == *value)
            })
        };
        let index = self.rows.iter().position(matches);
        let index = index.unwrap_or_else(|| panic!("no row for {values:?}"));
        self.hit.insert(index);
        self.rows[index].last().expect("rows have cells").clone()
    }

    fn assert_all_hit(&self, section: &str) {
        for (index, row) in self.rows.iter().enumerate() {
            assert!(self.hit.contains(&index), "{section}: no combination reaches {row:?}");
        }
    }
}

const STANDINGS: [(&str, Standing); 13] = [
    ("none", Standing::None),
    ("in", Standing::OptedIn { expire: None }),
    ("pending", Standing::Pending),
    ("expired", Standing::OptedIn { expire: Some(Timestamp::MIN) }),
    ("in over out", Standing::OptedInOverOptOut { expire: Timestamp::MAX, all: false }),
    ("lapsed over out", Standing::OptedInOverOptOut { expire: Timestamp::MIN, all: false }),
    ("lapsed over all", Standing::OptedInOverOptOut { expire: Timestamp::MIN, all: true }),
    ("out", Standing::OptedOut),
    ("all", Standing::OptedOutAll { answerable: false }),
    ("all, wrote", Standing::OptedOutAll { answerable: true }),
    ("pending over out", Standing::PendingOverOptOut { answerable: false }),
    ("pending over all", Standing::PendingOverOptOut { answerable: false }),
    ("pending over all, wrote", Standing::PendingOverOptOut { answerable: true }),
];
const WINDOWS: [&str; 5] = ["never", "closed", "refused", "ahead", "open"];
const MARKS: [&str; 10] = [
    "none",
    "stopped",
    "capped",
    "both",
    "suppressed",
    "failed",
    "blocked",
    "country",
    "experiment",
    "barred",
];
const PROOFS: [(&str, Proof); 3] =
    [("fresh", Proof::Fresh), ("late", Proof::Late), ("invalid", Proof::Invalid)];

fn facts(standing: Standing, window: &str, marks: &str) -> Facts {
    Facts {
        standing,
        suppressed: marks == "suppressed",
        platform_stopped: matches!(marks, "stopped" | "both"),
        capped: matches!(marks, "capped" | "both").then(|| at(NOW - HOUR)),
        last_inbound: match window {
            "never" => None,
            "closed" => Some(at(NOW - 25 * HOUR)),
            "ahead" => Some(at(NOW + 5 * 60_000 + 1)),
            _ => Some(at(NOW - HOUR)),
        },
        window_closed: window == "refused",
        failures: match marks {
            "failed" => UserFailure::ALL.into_iter().collect(),
            marks => failures(marks),
        },
    }
}

/// The failures that are denied beside these marks.
fn failures(marks: &str) -> UserFailures {
    let failure = match marks {
        "blocked" => Some(UserFailure::Blocked),
        "country" => Some(UserFailure::Country),
        "experiment" => Some(UserFailure::Experiment),
        _ => None,
    };
    failure.into_iter().collect()
}

fn name(reason: Reason) -> &'static str {
    reason.name()
}

fn allows(verdict: &str) -> bool {
    Reason::ALL.iter().any(|reason| reason.name() == verdict && reason.allows())
}

#[test]
fn every_combination_is_as_the_page_says() {
    let mut template = Rows::read("Template");
    let mut free_form = Rows::read("Free-form");
    let mut table = Rows::read("Table");
    let mut any_form = Rows::read("No form asked for");
    let mut combinations = 0;
    for (standing_name, standing) in STANDINGS {
        for window in WINDOWS {
            for marks in MARKS {
                for class in Class::ALL {
                    for implied in ["yes", "no"] {
                        let values = [marks, standing_name, class.name(), window, implied];
                        let rows = [template.verdict(1, &values), free_form.verdict(1, &values)];
                        let facts = facts(standing, window, marks);
                        for (proof_name, proof) in PROOFS {
                            for lenient in ["yes", "no"] {
                                let policy = Policy {
                                    window_implies: only(class, implied),
                                    stale_allow: only(class, lenient),
                                    deny_after: failures(marks),
                                    bars_marketing_templates: marks == "barred",
                                    ..Policy::default()
                                };
                                let expected = rows.each_ref().map(|verdict| {
                                    let said = if allows(verdict) { "allow" } else { "deny" };
                                    match table.verdict(1, &[proof_name, lenient, said]).as_str() {
                                        "the same" => verdict.clone(),
                                        other => other.to_owned(),
                                    }
                                });
                                let decided = |form| {
                                    decide(&facts, class, form, &policy, Clock::at(at(NOW)), proof)
                                };
                                check(&expected, &mut any_form, &decided, &values);
                                combinations += 3;
                            }
                        }
                    }
                }
            }
        }
    }
    assert_eq!(combinations, 13 * 5 * 10 * 4 * 2 * 3 * 2 * 3);
    template.assert_all_hit("Template");
    free_form.assert_all_hit("Free-form");
    table.assert_all_hit("Table");
    any_form.assert_all_hit("No form asked for");
}

/// A class set that has the class or not, and for everything else the opposite.
fn only(class: Class, in_it: &str) -> ClassSet {
    Class::ALL.into_iter().filter(|other| (*other == class) == (in_it == "yes")).collect()
}

fn check(
    expected: &[String; 2],
    any_form: &mut Rows,
    decided: &impl Fn(Form) -> Decision,
    values: &[&str],
) {
    let [template, free_form] = expected;
    let allow = |verdict: &str| if allows(verdict) { "allows" } else { "denies" };
    let any = match any_form.verdict(0, &[allow(template), allow(free_form)]).as_str() {
        "template" => template,
        _ => free_form,
    };
    for (form, reason) in
        [(Form::Template, template), (Form::FreeForm, free_form), (Form::Any, any)]
    {
        let decision = decided(form);
        assert_eq!(name(decision.reason), reason, "{form:?} {values:?}");
        assert_eq!(decision.allowed(), allows(reason), "{form:?} {values:?}");
        assert_eq!(decision.template_allowed, allows(template), "{form:?} {values:?}");
        assert_eq!(decision.free_form_allowed, allows(free_form), "{form:?} {values:?}");
        assert_eq!(decision.retry.is_some(), reason == "FREQUENCY_CAPPED", "{form:?} {values:?}");
    }
}

fn at_clock(facts: &Facts, class: Class, form: Form, clock: Clock) -> Decision {
    decide(facts, class, form, &Policy::default(), clock, Proof::Fresh)
}

fn reason_at(facts: &Facts, form: Form, now: i64) -> Reason {
    at_clock(facts, Class::Marketing, form, Clock::at(at(now))).reason
}

#[test]
fn the_window_closes_to_the_millisecond() {
    let inbound = NOW;
    let end = NOW + 24 * HOUR - 60_000;
    let facts = Facts { last_inbound: Some(at(inbound)), ..Facts::NOTHING };
    for (now, reason) in [
        (inbound - 5 * 60_000 - 1, Reason::WindowClosed), // further ahead than a clock may be
        (inbound - 5 * 60_000, Reason::WindowOpen),
        (inbound, Reason::WindowOpen),
        (end - 1, Reason::WindowOpen),
        (end, Reason::WindowClosed),
        (end + 1, Reason::WindowClosed),
    ] {
        assert_eq!(reason_at(&facts, Form::FreeForm, now), reason, "{}", now - end);
    }
    let decision = at_clock(&facts, Class::Utility, Form::Any, Clock::at(at(end)));
    assert_eq!(decision.window_expire, Some(at(end)));
}

#[test]
fn consent_lapses_to_the_millisecond() {
    let expire = Some(at(NOW));
    let facts = Facts { standing: Standing::OptedIn { expire }, ..Facts::NOTHING };
    assert_eq!(reason_at(&facts, Form::Template, NOW - 1), Reason::OptedIn);
    assert_eq!(reason_at(&facts, Form::Template, NOW), Reason::ConsentExpired);
    assert_eq!(reason_at(&facts, Form::Template, NOW + 1), Reason::ConsentExpired);
    let standing = Standing::OptedInOverOptOut { expire: at(NOW), all: true };
    let facts = Facts { standing, ..Facts::NOTHING };
    assert_eq!(reason_at(&facts, Form::Template, NOW - 1), Reason::OptedIn);
    assert_eq!(reason_at(&facts, Form::Template, NOW), Reason::OptedOutAll, "it stands again");
    let clocks = Clock::of(at(NOW - 1), at(NOW));
    let apart = at_clock(&facts, Class::Marketing, Form::Template, clocks);
    assert_eq!(apart.reason, Reason::OptedOutAll, "by the later clock");
}

#[test]
fn a_cap_ends_to_the_millisecond() {
    let standing = Standing::OptedIn { expire: None };
    let facts = Facts { standing, capped: Some(at(NOW)), ..Facts::NOTHING };
    let end = NOW + 24 * HOUR;
    assert_eq!(reason_at(&facts, Form::Template, end - 1), Reason::FrequencyCapped);
    assert_eq!(reason_at(&facts, Form::Template, end), Reason::OptedIn);
    let decision = at_clock(&facts, Class::Marketing, Form::Template, Clock::at(at(end - 1)));
    assert_eq!(decision.retry, Some(at(end)));
    let utility = at_clock(&facts, Class::Utility, Form::Template, Clock::at(at(end - 1)));
    assert_eq!(utility.reason, Reason::OptedIn, "a cap is about marketing alone");
}

#[test]
fn where_clocks_differ_the_one_that_denies_decides() {
    let both = |a: i64, b: i64| Clock::of(at(a), at(b));
    let end = NOW + 24 * HOUR - 60_000;
    let inbound = Facts { last_inbound: Some(at(NOW)), ..Facts::NOTHING };
    let free = |clock| at_clock(&inbound, Class::Service, Form::FreeForm, clock).reason;
    assert_eq!(free(both(end - 2, end - 1)), Reason::WindowOpen);
    assert_eq!(free(both(end - 2, end)), Reason::WindowClosed, "a window ends by the later");
    assert_eq!(free(both(end, end - 2)), Reason::WindowClosed, "whichever of the two it is");
    let early = NOW - 5 * 60_000;
    assert_eq!(free(both(early - 1, early)), Reason::WindowClosed, "ahead by the earlier");

    let standing = Standing::OptedIn { expire: Some(at(NOW)) };
    let lapsing = Facts { standing, ..Facts::NOTHING };
    let template = |facts, clock| at_clock(facts, Class::Marketing, Form::Template, clock).reason;
    assert_eq!(template(&lapsing, both(NOW - 1, NOW)), Reason::ConsentExpired, "by the later");

    let standing = Standing::OptedIn { expire: None };
    let capped = Facts { standing, capped: Some(at(NOW)), ..Facts::NOTHING };
    let end = NOW + 24 * HOUR;
    let reason = template(&capped, both(end - 1, end));
    assert_eq!(reason, Reason::FrequencyCapped, "a cap ends by the earlier");
}

#[test]
fn a_margin_longer_than_the_window_opens_nothing() {
    let policy = Policy {
        window: Duration::from_secs(1),
        margin: Duration::from_secs(2),
        ..Policy::default()
    };
    let facts = Facts { last_inbound: Some(at(NOW)), ..Facts::NOTHING };
    let clock = Clock::at(at(NOW));
    let decision = decide(&facts, Class::Service, Form::FreeForm, &policy, clock, Proof::Fresh);
    assert_eq!(decision.reason, Reason::WindowClosed);
}
