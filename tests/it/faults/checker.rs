//! Judges a history, knowing nothing of how the sidecar decides.
//!
//! The invariant: no check that was asked later than an opt-out's acknowledgement and the bound
//! is allowed, unless an opt-in may stand above that opt-out: one that was sent before the answer
//! came, acknowledged or not, and may have the later event time. Where a history leaves open what
//! came first, the sidecar has the benefit of the doubt: a moment that is only known to lie
//! between two is taken as the one that excuses it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::history::{Acknowledged, Answer, Did, Line, Sent, nanos};

/// How many request ids a pair remembers.
const REMEMBERED: usize = 8;

/// At most so many violations are told; all are counted.
const MAX_TOLD: usize = 10;

/// What became of a history.
#[derive(Debug, Default)]
pub struct Verdict {
    /// What must not be, in words; the first few.
    pub violations: Vec<String>,
    /// How many there are.
    pub violated: usize,
    /// The longest time from an opt-out's acknowledgement to an allow in spite of it.
    pub longest: Duration,
    /// By which sidecar that was.
    pub longest_at: String,
    /// Events that were sent.
    pub sent: usize,
    /// Those of them that were acknowledged.
    pub acknowledged: usize,
    /// Those of them that were opt-outs.
    pub opt_outs: usize,
    /// Checks that were allowed.
    pub allowed: u64,
    /// Checks that were denied, by sidecar and reason.
    pub denied: BTreeMap<(String, i32), u64>,
}

impl Verdict {
    fn violated(&mut self, what: impl FnOnce() -> String) {
        self.violated += 1;
        if self.violations.len() < MAX_TOLD {
            self.violations.push(what());
        }
    }

    /// Checks that were denied for a reason, by all sidecars.
    pub fn denied_for(&self, reason: i32) -> u64 {
        self.denied.iter().filter(|((_, why), _)| *why == reason).map(|(_, count)| count).sum()
    }
}

/// Whether an event on a scope has a say about a category.
fn covers(scope: &str, category: &str) -> bool {
    let topic = category.strip_prefix(scope);
    scope == "*" || topic.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The events of one user that have a say about one category, as far as checks need them.
#[derive(Default)]
struct Standing {
    /// Opt-outs: when acknowledged, and the highest of the earliest event times up to there.
    outs: Vec<(u64, i64)>,
    /// Opt-ins: when sent, and the highest of the latest event times up to there.
    ins: Vec<(u64, i64)>,
}

impl Standing {
    fn of(events: &[(&Sent, Option<&Acknowledged>)], category: &str) -> Self {
        let mut standing = Self::default();
        for (sent, acknowledged) in events.iter().filter(|(sent, _)| covers(&sent.scope, category))
        {
            match (sent.did, acknowledged) {
                // Without a time of its own an opt-out happened when it was sent, or later.
                (Did::OptOut, Some(acknowledged)) => {
                    let earliest = sent.event_time.unwrap_or(sent.wall);
                    standing.outs.push((acknowledged.at, earliest));
                }
                // Nobody knows whether it holds: a check may say so or not.
                (Did::OptOut, None) => {}
                // Without a time of its own an opt-in may have happened at any time.
                (Did::OptIn, _) => {
                    standing.ins.push((sent.at, sent.event_time.unwrap_or(i64::MAX)));
                }
            }
        }
        for list in [&mut standing.outs, &mut standing.ins] {
            list.sort_unstable();
            let mut highest = i64::MIN;
            for (_, time) in list {
                highest = highest.max(*time);
                *time = highest;
            }
        }
        standing
    }

    /// When the earliest opt-out was acknowledged that no opt-in excuses at this answer.
    fn unexcused(&self, answer: &Answer) -> Option<u64> {
        let sent = self.ins.partition_point(|(at, _)| *at <= answer.answered);
        let excused = sent.checked_sub(1).map_or(i64::MIN, |last| self.ins[last].1);
        // At equal times the opt-out wins.
        let first = self.outs.partition_point(|(_, time)| *time < excused);
        self.outs.get(first).map(|(at, _)| *at).filter(|at| *at < answer.asked)
    }
}

/// Judges all checks of a history whose sidecars have this bound.
pub fn check(lines: &[Line], bound: Duration) -> Verdict {
    let mut verdict = Verdict::default();
    let mut acknowledged: HashMap<&str, &Acknowledged> = HashMap::new();
    for line in lines {
        match line {
            Line::Acknowledged(event) => {
                acknowledged.entry(&event.name).or_insert(event);
            }
            Line::Answer(answer) if answer.allowed => verdict.allowed += 1,
            Line::Answer(answer) => {
                *verdict.denied.entry((answer.sidecar.clone(), answer.reason)).or_default() += 1;
            }
            Line::Denied { sidecar, reason, count } => {
                *verdict.denied.entry((sidecar.clone(), *reason)).or_default() += count;
            }
            Line::Sent(_) => {}
        }
    }
    let mut names = BTreeSet::new();
    let mut events: HashMap<&str, Vec<(&Sent, Option<&Acknowledged>)>> = HashMap::new();
    for line in lines {
        let Line::Sent(sent) = line else { continue };
        let known = acknowledged.get(sent.name.as_str()).copied();
        assert!(names.insert(&sent.name), "{} is the name of two events", sent.name);
        verdict.sent += 1;
        verdict.acknowledged += usize::from(known.is_some());
        verdict.opt_outs += usize::from(known.is_some() && sent.did == Did::OptOut);
        events.entry(&sent.user).or_default().push((sent, known));
    }
    let mut standings: HashMap<(&str, &str), Standing> = HashMap::new();
    for line in lines {
        let Line::Answer(answer) = line else { continue };
        if !answer.allowed {
            continue;
        }
        let (user, category) = (answer.user.as_str(), answer.category.as_str());
        let of_user = events.get(user).map(Vec::as_slice).unwrap_or_default();
        let standing =
            standings.entry((user, category)).or_insert_with(|| Standing::of(of_user, category));
        if standing.ins.first().is_none_or(|(at, _)| *at > answer.answered) {
            verdict.violated(|| format!("allowed, and nobody had opted in: {answer:?}"));
        }
        if answer.staleness > nanos(bound) {
            verdict.violated(|| format!("allowed, being older than the bound: {answer:?}"));
        }
        let Some(known) = standing.unexcused(answer) else { continue };
        let took = Duration::from_nanos(answer.asked - known);
        if took > verdict.longest {
            verdict.longest = took;
            verdict.longest_at.clone_from(&answer.sidecar);
        }
        if took > bound {
            verdict.violated(|| format!("allowed {took:?} after an opt-out: {answer:?}"));
        }
    }
    verdict
}

/// Events that were acknowledged as having changed something and that a ledger does not list, and
/// events that it lists twice, though the pair should have known them. `listed` has the events'
/// names in the ledger, by user.
pub fn compare(lines: &[Line], listed: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    compare_where(lines, listed, |_| false)
}

/// The same, but for events that may be there twice, since their pair may have forgotten them.
pub fn compare_where(
    lines: &[Line],
    listed: &BTreeMap<String, Vec<String>>,
    is_forgotten: impl Fn(&Sent) -> bool,
) -> Vec<String> {
    let sent = lines.iter().filter_map(|line| match line {
        Line::Sent(sent) => Some((sent.name.as_str(), sent)),
        _ => None,
    });
    let sent: HashMap<&str, &Sent> = sent.collect();
    let mut wrong = Vec::new();
    let mut until: HashMap<&str, u64> = HashMap::new();
    for line in lines {
        if let Line::Acknowledged(event) = line {
            until.insert(&event.name, event.at);
        }
    }
    let until = |name: &str| until.get(name).copied().unwrap_or(u64::MAX);
    for (user, names) in listed {
        let mut seen = BTreeSet::new();
        for name in names.iter().filter(|name| !seen.insert(*name)) {
            let Some(event) = sent.get(name.as_str()) else { continue };
            // A retry is known again for as long as not too many others came in between.
            let others = sent.values().filter(|other| {
                let meanwhile = other.at < until(name) && until(&other.name) > event.at;
                other.user == *user && other.name != *name && meanwhile
            });
            if others.count() < REMEMBERED && !is_forgotten(event) {
                wrong.push(format!("the ledger has {name} of {user} twice"));
            }
        }
    }
    for line in lines {
        let Line::Acknowledged(event) = line else { continue };
        let Some(user) = sent.get(event.name.as_str()).map(|sent| &sent.user) else {
            wrong.push(format!("{} was acknowledged and never sent", event.name));
            continue;
        };
        let is_there = listed.get(user).is_some_and(|names| names.contains(&event.name));
        if event.applied && !is_there {
            wrong.push(format!("the ledger has lost {} of {user}", event.name));
        }
    }
    wrong
}
