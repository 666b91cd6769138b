//! What events are answered, by what came of appending their pairs' changes.

use super::spread::{self, Spreading};
use super::{Pair, Planned, Recorded, Refusal, Submission};
use consentd_core::event::What;
use consentd_core::record::Outcome;
use consentd_ledger::Appended;

/// Answers the pairs that were appended, but for what has to hold under other ids first; gives those
/// that are to be tried again: another recorder was faster, or only a part of their events can be
/// recorded.
pub(super) fn settle(
    submissions: &[Submission],
    waiting: Vec<Planned>,
    mut appended: Vec<Appended>,
    spreading: &mut Vec<Spreading>,
    results: &mut [Option<Recorded>],
) -> Vec<Pair> {
    let mut beside = appended.split_off(appended.len().min(waiting.len())).into_iter();
    let mut again = Vec::new();
    for (planned, appended) in waiting.into_iter().zip(appended) {
        let Planned { mut pair, mut outcomes, spread, proves, .. } = planned;
        let beside: Vec<_> = beside.by_ref().take(planned.beside).collect();
        match appended {
            Appended::Committed(revision) => {
                for outcome in outcomes.iter_mut().flatten().filter(|o| o.revision == 0) {
                    outcome.revision = revision;
                }
                let Some(spread) = spread else {
                    answer(results, pair.events, outcomes);
                    continue;
                };
                let waiting = Spreading { events: pair.events, outcomes, ..spread };
                match spread::last_of(&beside).filter(|_| proves) {
                    Some(revision) => waiting.answer(&Ok(revision), results),
                    None => spreading.push(waiting),
                }
            }
            Appended::Conflict(stored) => {
                pair.stored = stored;
                pair.others.clear();
                again.push(pair);
            }
            Appended::Failed(error) => {
                let refusal = error.clone().into();
                if error.lacks_statements()
                    && let Some(rest) = without_statements(submissions, &pair, &outcomes)
                {
                    let (rest, refused): (Vec<_>, Vec<_>) =
                        pair.events.iter().copied().partition(|index| rest.contains(index));
                    fail_events(results, &refused, &refusal);
                    again.push(Pair { events: rest, ..pair });
                } else {
                    fail(results, &[pair], &refusal);
                }
            }
        }
    }
    again
}

/// The events of a pair that can be recorded though the ledger has lost the key that statements are
/// kept in; none where that is no part of them, but all or nothing.
fn without_statements(
    submissions: &[Submission],
    pair: &Pair,
    outcomes: &[Recorded],
) -> Option<Vec<usize>> {
    let events = pair.events.iter().zip(outcomes);
    let rest = events.filter(|(index, outcome)| {
        let what = submissions.get(**index).map(|submission| &submission.event.what);
        let by_keyword = |outcome: &Outcome| !outcome.opted_in_category.is_empty();
        !matches!(what, Some(What::OptIn { .. })) && !outcome.as_ref().is_ok_and(by_keyword)
    });
    let rest: Vec<usize> = rest.map(|(index, _)| *index).collect();
    (!rest.is_empty() && rest.len() < pair.events.len()).then_some(rest)
}

/// Answers a pair's events.
fn answer(results: &mut [Option<Recorded>], events: Vec<usize>, outcomes: Vec<Recorded>) {
    for (index, outcome) in events.into_iter().zip(outcomes) {
        set(results, index, outcome);
    }
}

/// Answers all events of these pairs with why they were not recorded.
pub(super) fn fail(
    results: &mut [Option<Recorded>],
    pairs: &[impl std::borrow::Borrow<Pair>],
    refusal: &Refusal,
) {
    for pair in pairs {
        fail_events(results, &pair.borrow().events, refusal);
    }
}

fn fail_events(results: &mut [Option<Recorded>], events: &[usize], refusal: &Refusal) {
    for index in events {
        set(results, *index, Err(refusal.clone()));
    }
}

pub(super) fn set(results: &mut [Option<Recorded>], index: usize, result: Recorded) {
    if let Some(slot) = results.get_mut(index) {
        *slot = Some(result);
    }
}
