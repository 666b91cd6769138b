//! Warm starts from a snapshot whose ledger has forked or lost changes since.

use super::*;
use crate::follower::state_machine::WarmStart;

/// The actions after this page, of a machine that starts from a snapshot which was taken while the
/// ledger went from one of these states to the other.
fn begun_with(from: &Model, until: &Model, page: Page) -> Vec<Action> {
    let (from, until) = (from.end(), until.end());
    let hash = [7; 32];
    let seal = page.identity.secret.digest(&hash);
    let (mut machine, _) =
        StateMachine::from(Some(WarmStart { from, until, accepted: 0, hash, seal }));
    let attempt = machine.attempt();
    machine.on(Event::Page { attempt, asked: moment(11), after: from.revision, page })
}

/// Whether a fork is detected, and the table is not proven.
fn is_fork(actions: &[Action]) -> bool {
    let forks = |action: &Action| matches!(action, Action::Invalidate(ResyncCause::Fork));
    let lives = |action: &Action| matches!(action, Action::Validate | Action::SetProof(..));
    actions.iter().any(forks) && !actions.iter().any(lives)
}

/// A ledger, and the same two changes later.
fn two_later() -> (Model, Model) {
    let from = Model::new(4);
    let mut until = from.clone();
    until.append(0, true, 20);
    until.append(1, true, 21);
    (from, until)
}

#[test]
fn a_ledger_that_ends_before_a_saved_table_has_lost_something_at_once() {
    let (from, until) = two_later();
    let mut behind = until.clone();
    behind.log.pop();
    assert!(is_fork(&begun_with(&from, &until, behind.page(from.end().revision))));
    let whole = begun_with(&from, &until, until.page(from.end().revision));
    assert!(matches!(whole.last(), Some(Action::Validate)), "{whole:?}");
}

#[test]
fn a_ledger_that_parts_from_a_saved_table_before_its_end_has_lost_something() {
    let (from, until) = two_later();
    let mut other = until.clone();
    other.log.pop();
    other.append(2, true, 22);
    other.append(3, true, 23);
    assert!(is_fork(&begun_with(&from, &until, other.page(from.end().revision))));
}
