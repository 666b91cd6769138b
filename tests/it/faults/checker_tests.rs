//! The checker catches what is planted, and excuses what may be excused.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checker::{check, compare};
use super::history::{Acknowledged, Answer, Did, Line, Sent};

const BOUND: Duration = Duration::from_nanos(100);

fn sent(name: &str, did: Did, scope: &str, event_time: Option<i64>, at: u64) -> Line {
    Line::Sent(Sent {
        process: "writer".into(),
        name: name.into(),
        user: "US.1".into(),
        did,
        scope: scope.into(),
        event_time,
        wall: i64::try_from(at).unwrap(),
        at,
    })
}

fn acknowledged(name: &str, at: u64) -> Line {
    Line::Acknowledged(Acknowledged { name: name.into(), at, revision: 1, applied: true })
}

fn allowed(category: &str, asked: u64) -> Line {
    Line::Answer(Answer {
        sidecar: "reader".into(),
        user: "US.1".into(),
        category: category.into(),
        asked,
        answered: asked + 5,
        allowed: true,
        reason: 1,
        revision: 1,
        staleness: 0,
    })
}

/// An opt-in at 10, an opt-out of a scope at 20 that is acknowledged at 30.
fn left(scope: &str) -> Vec<Line> {
    vec![
        sent("in", Did::OptIn, "marketing", Some(10), 10),
        acknowledged("in", 15),
        sent("out", Did::OptOut, scope, Some(20), 20),
        acknowledged("out", 30),
    ]
}

fn violated(more: Vec<Line>) -> usize {
    check(&[left("*"), more].concat(), BOUND).violated
}

#[test]
fn an_allow_later_than_the_bound_is_caught() {
    assert_eq!(violated(vec![allowed("marketing", 131)]), 1);
    // Within it, and up to it, none is; how late they come is told.
    let within = check(&[left("*"), vec![allowed("marketing", 130)]].concat(), BOUND);
    assert_eq!((within.violated, within.longest), (0, BOUND));
    assert_eq!(violated(vec![allowed("marketing", 29)]), 0);
    let verdict = check(&[left("*"), vec![allowed("marketing", 200)]].concat(), BOUND);
    assert_eq!(verdict.longest, Duration::from_nanos(170));
    assert_eq!((verdict.sent, verdict.acknowledged, verdict.opt_outs), (2, 2, 1));
    assert_eq!(verdict.longest_at, "reader");
}

#[test]
fn an_opt_out_that_nobody_acknowledged_binds_nobody() {
    let mut lines = left("*");
    lines.pop();
    lines.push(allowed("marketing", 1_000));
    assert_eq!(check(&lines, BOUND).violated, 0);
}

#[test]
fn a_newer_opt_in_excuses_acknowledged_or_not() {
    let again = |time, at| sent("again", Did::OptIn, "marketing", Some(time), at);
    assert_eq!(violated(vec![again(21, 40), allowed("marketing", 200)]), 0);
    assert_eq!(
        violated(vec![again(21, 40), acknowledged("again", 50), allowed("marketing", 200)]),
        0
    );
    // While the check is under way is early enough; afterwards is too late.
    assert_eq!(violated(vec![again(210, 205), allowed("marketing", 200)]), 0);
    assert_eq!(violated(vec![again(210, 206), allowed("marketing", 200)]), 1);
}

#[test]
fn an_opt_in_of_no_later_time_excuses_nothing() {
    for time in [10, 19, 20] {
        let late = sent("late", Did::OptIn, "marketing", Some(time), 40);
        assert_eq!(violated(vec![late, acknowledged("late", 50), allowed("marketing", 200)]), 1);
    }
    // One without a time may have any.
    let late = sent("late", Did::OptIn, "marketing", None, 40);
    assert_eq!(violated(vec![late, allowed("marketing", 200)]), 0);
}

#[test]
fn an_opt_out_without_a_time_is_no_earlier_than_it_was_sent() {
    let lines = |time| {
        vec![
            sent("in", Did::OptIn, "marketing", Some(time), 10),
            sent("out", Did::OptOut, "*", None, 20),
            acknowledged("out", 30),
            allowed("marketing", 200),
        ]
    };
    assert_eq!(check(&lines(20), BOUND).violated, 1);
    assert_eq!(check(&lines(21), BOUND).violated, 0);
}

#[test]
fn each_opt_out_must_be_excused() {
    let again = sent("again", Did::OptIn, "marketing", Some(25), 25);
    let out = sent("out 2", Did::OptOut, "marketing", Some(28), 28);
    let lines = vec![again.clone(), out.clone(), acknowledged("out 2", 40)];
    let verdict = check(&[left("*"), lines, vec![allowed("marketing", 150)]].concat(), BOUND);
    // The first one is excused, so that the second one's time counts.
    assert_eq!((verdict.violated, verdict.longest), (1, Duration::from_nanos(110)));
}

#[test]
fn a_scope_has_a_say_about_what_it_covers() {
    let violated = |scope: &str, category: &str| {
        let lines = [left(scope), vec![allowed(category, 500)]].concat();
        check(&lines, BOUND)
            .violations
            .iter()
            .any(|violation| violation.contains("after an opt-out"))
    };
    for scope in ["*", "marketing", "marketing.deals"] {
        assert!(violated(scope, "marketing.deals"), "{scope}");
    }
    for scope in ["utility", "marketing.deal", "marketing.deals.more"] {
        assert!(!violated(scope, "marketing.deals"), "{scope}");
    }
    assert!(!violated("marketing.deals", "marketing"));
    assert!(!violated("market", "marketing"));
}

#[test]
fn an_allow_without_an_opt_in_or_beyond_its_own_staleness_is_caught() {
    assert_eq!(check(&[allowed("marketing", 5)], BOUND).violated, 1);
    let mut lines = left("utility");
    let Line::Answer(mut answer) = allowed("marketing", 50) else { unreachable!() };
    answer.staleness = 101;
    lines.push(Line::Answer(answer));
    assert_eq!(check(&lines, BOUND).violated, 1);
}

#[test]
fn what_a_ledger_lost_or_has_twice_is_caught() {
    let listed = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        BTreeMap::from([("US.1".to_owned(), names)])
    };
    assert_eq!(compare(&left("*"), &listed(&["in", "out"])), [] as [&str; 0]);
    assert_eq!(compare(&left("*"), &listed(&["in"])), ["the ledger has lost out of US.1"]);
    let twice = compare(&left("*"), &listed(&["in", "out", "out"]));
    assert_eq!(twice, ["the ledger has out of US.1 twice"]);
    // A pair remembers its last few: with more in between it is no fault.
    let mut lines = left("*");
    let others = (0..8).map(|n| sent(&format!("other-{n}"), Did::OptIn, "utility", Some(1), 25));
    lines.extend(others);
    assert_eq!(compare(&lines, &listed(&["in", "out", "out"])), [] as [&str; 0]);
    // What changed nothing need not be there, nor what nobody acknowledged.
    let mut lines = left("*");
    lines.push(sent("lost", Did::OptIn, "utility", None, 50));
    lines.push(sent("old", Did::OptIn, "utility", Some(1), 60));
    let changed_nothing = Acknowledged { name: "old".into(), at: 70, revision: 1, applied: false };
    lines.push(Line::Acknowledged(changed_nothing));
    assert_eq!(compare(&lines, &listed(&["in", "out"])), [] as [&str; 0]);
}
