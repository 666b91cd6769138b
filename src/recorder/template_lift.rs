//! What a template's category lifts, and as of when.

use consentd_core::claims::Claim;
use consentd_core::event::What;
use consentd_core::state::State;
use consentd_core::submission::Submission;
use consentd_core::time::Timestamp;

/// The event with the time as of which it lifts a stricter category of its template, by the rules for
/// allows: the event's own time, clamped to the ledger's clock. What the event denies counts as of
/// `denied`, by the rules for denials. Returns also whether the state knows a new clamped time.
pub(super) fn with_lift(
    submission: &Submission,
    state: &mut State,
    denied: Timestamp,
    clock: Timestamp,
) -> (What, bool) {
    let event = &submission.event;
    let What::TemplateCategory { category, lift, reference } = &event.what else {
        return (event.what.clone(), false);
    };
    let own = event.time.unwrap_or(clock);
    let own = lift.map_or(own, |lift| lift.min(own));
    // A replay counts as of what was recorded the first time.
    let known = state.claims.moment_of(own);
    let time = if submission.is_replay { own } else { known.unwrap_or(own).min(clock) };
    let mut is_claimed = false;
    if time < own {
        state.clamped.insert(time);
        is_claimed = state.claims.add(Claim { from: own, until: own, moment: time });
    }
    let lift = (time != denied).then_some(time);
    let what = What::TemplateCategory { category: *category, lift, reference: reference.clone() };
    (what, is_claimed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use consentd_core::event::Event;
    use consentd_core::scope::Class;
    use consentd_core::standing::ResolvedState;
    use consentd_core::state::Effect;

    const CLOCK: i64 = 1_000_000;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    /// Records a category at this time by the ledger's clock, as a recorder does.
    fn record(state: &mut State, category: Class, time: i64, clock: i64) {
        let what = What::TemplateCategory { category, lift: None, reference: String::new() };
        let (user_id, business_id) = ("template:a:en".to_owned(), "acme".to_owned());
        let event = Event { user_id, business_id, time: Some(at(time)), what };
        let submission = Submission::new(event, String::new());
        let (what, _) = with_lift(&submission, state, at(time), at(clock));
        let effects = what.effects(at(time));
        let denied = effects.iter().map(|effect: &Effect| state.counts_as_of(effect, at(time)));
        let denied = denied.max().unwrap();
        for effect in what.effects(denied) {
            state.apply(&effect).unwrap();
        }
    }

    fn least(state: &State) -> Class {
        ResolvedState::of(state).profile.least_class()
    }

    /// A fast clock's lift never outlives the stricter category that comes after it, in either order.
    #[test]
    fn lift_of_a_fast_clock_does_not_outlive_a_stricter_category() {
        let ahead = CLOCK + 60_000;
        let mut late = State::default();
        record(&mut late, Class::Utility, ahead, CLOCK);
        assert_eq!(least(&late), Class::Utility);
        record(&mut late, Class::Marketing, CLOCK + 1_000, CLOCK + 1_000);
        assert_eq!(least(&late), Class::Marketing, "it was said after the lift was recorded");
        // A repeat of the lift, once its own time has passed, lifts nothing.
        record(&mut late, Class::Utility, ahead, ahead + 1);
        assert_eq!(least(&late), Class::Marketing);
        let mut early = State::default();
        record(&mut early, Class::Marketing, ahead, CLOCK);
        record(&mut early, Class::Utility, ahead - 1, CLOCK + 30_000);
        assert_eq!(least(&early), Class::Marketing, "by their own times the lift came first");
        let later = at(ahead).plus(Duration::from_millis(1)).as_millis();
        record(&mut early, Class::Utility, later, later);
        assert_eq!(least(&early), Class::Utility);
    }
}
