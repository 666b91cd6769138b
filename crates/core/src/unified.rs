//! One person whose pairs had several keys: the records of these pairs become one.
//!
//! Which of two pairs was spoken of later is not a matter of their event times alone: the same person was
//! denied under the one key whatever was said under the other. So what any of them denied stays denied, and
//! only a later event lifts it; what allows counts where none of them denied.

use std::collections::BTreeSet;

use crate::decision::Policy;
use crate::event::What;
use crate::record::{MAX_REQUESTS, Record};
use crate::scope::{Class, Scope};
use crate::standing::{ScopeStanding, StandingKind};
use crate::state::State;
use crate::time::Timestamp;

/// The reference of a denial that stands again in a unified record.
pub const UNIFIED: &str = "denied under another notation of this id";

/// The record of one person, from several pairs.
#[derive(Debug)]
pub struct Unified {
    /// The record. Its history's length and chain are those of its beginning: the caller adds the entries.
    pub record: Record,
    /// The denials that were recorded as older than an allow of another pair, with the times as of which they
    /// count now. They are in the record's state, and belong into its history.
    pub denials: Vec<(Timestamp, What)>,
}

/// Makes one record of the records of one person's pairs, as of `now`.
///
/// The history begins behind the latest erasure of any of them.
#[must_use]
pub fn unify(parts: &[Record], now: Timestamp) -> Unified {
    let mut state = parts.iter().fold(State::default(), |all, part| all.join(part.state.clone()));
    let mut denials = Vec::new();
    let erased = parts.iter().filter_map(|part| part.erased.as_ref());
    let erased = erased.max_by_key(|erased| erased.time).cloned();
    let is_alive = |part: &Record, time| {
        !part.is_tombstone() && part.erased.as_ref().is_none_or(|own| own.time < time)
    };
    if let Some(time) = erased.as_ref().map(|erased| erased.time)
        && parts.iter().any(|part| is_alive(part, time))
    {
        // What is older than the erasure leaves no trace from now on, a denial neither. So no allow that is
        // older may stand.
        let reference = UNIFIED.to_owned();
        deny(&mut state, &mut denials, time, What::OptOut { scope: Scope::All, reference });
    }
    for part in parts {
        for (time, what) in [denied_marks(&state, &part.state), replies(&state, &part.state, now)]
            .into_iter()
            .flatten()
        {
            deny(&mut state, &mut denials, time, what);
        }
        // Broader scopes come first: their denial covers narrower ones.
        for scope in scopes(&state) {
            let known = state.standing_on(&scope).choice;
            let Some(theirs) = denial_start(&part.state, &scope, now) else { continue };
            let is_denied = denial_start(&state, &scope, now).is_some_and(|start| start <= theirs);
            // Who opted out of everything and wrote again may be answered; who opted out of this scope or its
            // class may not.
            if is_denied
                && (is_of_everything(&part.state, &scope) || !is_of_everything(&state, &scope))
            {
                continue;
            }
            // At equal times the opt-out stands.
            let time = known.map_or(now, |choice| choice.time);
            let reference = UNIFIED.to_owned();
            deny(&mut state, &mut denials, time, What::OptOut { scope, reference });
        }
    }
    state.forget_clamped();
    let mut requests: Vec<_> =
        parts.iter().flat_map(|part| part.requests.iter().cloned()).collect();
    requests.sort_by_key(|request| request.outcome.revision);
    requests.drain(..requests.len().saturating_sub(MAX_REQUESTS));
    let mut record = Record { state, requests, erased, ..Record::default() };
    (record.history_len, record.chain) = record.history_start();
    for link in parts.iter().flat_map(|part| &part.links) {
        record.link(link.clone());
    }
    Unified { record, denials }
}

/// The scopes that may be decided on otherwise than as their class is.
fn scopes(state: &State) -> BTreeSet<Scope> {
    let classes = Class::ALL.into_iter().map(Scope::Class);
    std::iter::once(Scope::All).chain(classes).chain(state.scopes.keys().cloned()).collect()
}

/// From when an opt-out of this scope stands: [`Timestamp::MIN`] if it does already, and the expiry of an opt-in
/// to marketing that suspends it. `None` if there is none.
fn denial_start(state: &State, scope: &Scope, now: Timestamp) -> Option<Timestamp> {
    let (standing, expire) = ScopeStanding::of(state, scope);
    let start = standing.kind.opt_out_start(expire)?;
    Some(if start <= now { Timestamp::MIN } else { start })
}

/// Whether an opt-out of everything stands for this scope, and none of the scope or of its class.
fn is_of_everything(state: &State, scope: &Scope) -> bool {
    let (standing, _) = ScopeStanding::of(state, scope);
    matches!(standing.kind, StandingKind::OptedOutAll | StandingKind::PendingOverOptOutAll)
}

/// The suppression and the stop inside WhatsApp that a part has, and the whole has not.
fn denied_marks(whole: &State, part: &State) -> Vec<(Timestamp, What)> {
    let lifted = |part: Option<(Timestamp, bool)>, whole: Option<(Timestamp, bool)>| {
        let stands = part.is_some_and(|(_, set)| set);
        whole.filter(|(_, set)| stands && !set).map(|(time, _)| time)
    };
    let suppressed = lifted(part.suppression, whole.suppression)
        .map(|time| (time, What::Suppression { suppressed: true, reference: UNIFIED.to_owned() }));
    let stopped = part.platform.standing().filter_map(|(number, _)| {
        let time = lifted(part.platform.at(number).latest, whole.platform.at(number).latest)?;
        Some((time, What::Platform { stopped: true, phone_number_id: number.cloned() }))
    });
    suppressed.into_iter().chain(stopped).collect()
}

/// An opt-out of everything to which a reply would be allowed, because the user wrote under another id.
fn replies(whole: &State, part: &State, now: Timestamp) -> Vec<(Timestamp, What)> {
    let out = part.standing_on(&Scope::All).choice.filter(|choice| choice.is_opt_out());
    let (Some(out), Some(wrote)) = (out, whole.last_inbound) else { return Vec::new() };
    let is_open = |wrote: Timestamp| wrote > out.time && wrote.plus(Policy::WINDOW) > now;
    // An inbound whose window WhatsApp has reported as closed (131047) allows no reply.
    let is_closed =
        |state: &State, wrote| state.window_closed.is_some_and(|closed| closed >= wrote);
    let answered = part.last_inbound.is_some_and(|own| is_open(own) && !is_closed(part, own));
    if answered || !is_open(wrote) || is_closed(whole, wrote) {
        return Vec::new();
    }
    vec![(wrote, What::OptOut { scope: Scope::All, reference: UNIFIED.to_owned() })]
}

fn deny(state: &mut State, denials: &mut Vec<(Timestamp, What)>, time: Timestamp, what: What) {
    let mut is_new = false;
    for effect in what.effects(time) {
        // A denial is accepted even if the state has the maximum number of scopes.
        is_new |= state.apply(&effect).unwrap_or(false);
    }
    if is_new {
        denials.push((time, what));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decision::{Form, Proof, Reason, decide};
    use crate::event::{Method, StatementNames};
    use crate::id::PhoneNumberId;
    use crate::record::{Erased, Link, Outcome, Request};
    use crate::scope::Category;
    use crate::standing::ResolvedState;
    use crate::time::Clock;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + millis).unwrap()
    }

    const CATEGORIES: [&str; 5] =
        ["marketing", "marketing.deals", "utility", "utility.orders", "service"];

    /// What an event of any kind says, by its number.
    fn event((kind, scope, time): (u8, usize, i64)) -> (Timestamp, What) {
        let category = Scope::parse(CATEGORIES[scope]).unwrap();
        let reference = String::new();
        let number = PhoneNumberId::parse(["", "1", "2"][scope % 3]).ok();
        let opt_in = |expire, pending| What::OptIn {
            category: category.clone(),
            evidence: crate::event::Evidence {
                method: Method::Website,
                statement: String::new(),
                business_name: String::new(),
                locale: String::new(),
                reference: String::new(),
                confirmation: String::new(),
                phone_number_id: None,
                statement_names: StatementNames::default(),
            },
            expire,
            pending,
        };
        let what = match kind {
            0 => opt_in(None, false),
            1 => opt_in(Some(at(0)), false),
            12 => opt_in(Some(at(5_000)), false),
            2 => opt_in(None, true),
            3 => What::OptOut { scope: category.clone(), reference },
            4 => What::OptOut { scope: Scope::All, reference },
            5 => What::Inbound { message_id: String::new(), text: String::new() },
            6 => What::Platform { stopped: true, phone_number_id: number },
            7 => What::Platform { stopped: false, phone_number_id: number },
            8 => What::Suppression { suppressed: true, reference },
            9 => What::Suppression { suppressed: false, reference },
            10 => {
                What::Failure { code: crate::event::CODE_FREQUENCY_CAPPED, phone_number_id: None }
            }
            _ => What::Failure { code: crate::event::CODE_WINDOW_CLOSED, phone_number_id: None },
        };
        (at(time), what)
    }

    fn record(events: &[(u8, usize, i64)]) -> Record {
        let mut record = Record::default();
        for (time, what) in events.iter().copied().map(event) {
            for effect in what.effects(time) {
                record.state.apply(&effect).unwrap();
            }
        }
        record
    }

    fn reason(record: &Record, category: &str, form: Form, now: i64) -> Reason {
        let category = Category::parse(category).unwrap();
        let facts = ResolvedState::of(&record.state).facts(category);
        let clock = Clock::at(at(now));
        decide(&facts, category.class, form, &Policy::default(), clock, Proof::Fresh).reason
    }

    proptest! {
        /// The record of one person denies all that the record of any pair denied, and allows nothing
        /// that none of them allowed; its history makes its state.
        #[test]
        fn what_any_part_denies_is_denied(
            parts in proptest::collection::vec(
                proptest::collection::vec((0_u8..13, 0_usize..5, -1_000_i64..900), 0..8), 1..4)
        ) {
            let records: Vec<_> = parts.iter().map(|events| record(events)).collect();
            let Unified { record: whole, denials } = unify(&records, at(1_000));
            let forms = [Form::Template, Form::FreeForm];
            let clocks = forms.into_iter().flat_map(|form| [(form, 1_000), (form, 9_000)]);
            for category in CATEGORIES {
                for (form, now) in clocks.clone() {
                    let of_parts: Vec<_> =
                        records.iter().map(|part| reason(part, category, form, now)).collect();
                    let of_whole = reason(&whole, category, form, now);
                    if of_parts.iter().any(|one| one.is_denial_by_events()) {
                        prop_assert!(!of_whole.allows(), "{category} {form:?}: {of_parts:?} {of_whole:?}");
                    }
                    if of_whole.allows() {
                        prop_assert!(of_parts.iter().any(|one| one.allows()));
                    }
                }
            }
            let mut replayed = State::default();
            let events = parts.iter().flatten().copied().map(event).chain(denials);
            for (time, what) in events {
                for effect in what.effects(time) {
                    replayed.apply(&effect).unwrap();
                }
            }
            prop_assert_eq!(replayed, whole.state);
            if records.len() == 1 {
                prop_assert_eq!(&records[0].state, &unify(&records, at(1_000)).record.state);
            }
        }
    }

    #[test]
    fn reply_that_a_closed_window_forbade_stays_forbidden() {
        // The first part has an inbound message. The second has an opt-out of everything, an inbound message
        // after it, and the report that its window is closed.
        let parts = [vec![(5, 0, 538)], vec![(4, 0, 0), (5, 0, 1), (11, 0, 1)]];
        let records: Vec<_> = parts.iter().map(|events| record(events)).collect();
        let reason_of = |record| reason(record, "service", Form::FreeForm, 1_000);
        assert_eq!(reason_of(&records[1]), Reason::OptedOutAll);
        assert_eq!(reason_of(&unify(&records, at(1_000)).record), Reason::OptedOutAll);
    }

    #[test]
    fn tombstones_become_one_tombstone_and_a_tombstone_denies_the_other_id() {
        let request = |revision| Request {
            id: [1; 16],
            what: [2; 16],
            outcome: Outcome { revision, ..Outcome::default() },
            time: None,
        };
        let tombstone = |time, len| {
            let erased = Record {
                history_len: len,
                requests: vec![request(len)],
                ..record(&[(0, 0, time - 1)])
            };
            erased.tombstone_at(at(time))
        };
        let (older, later) = (tombstone(1, 7), tombstone(5, 3));
        let both = unify(&[later.clone(), older.clone()], at(9)).record;
        assert!(both.is_tombstone() && both.is_without_history());
        assert_eq!(both.erased, later.erased);
        assert_eq!(both.requests, [request(3), request(7)]);
        let mut live = record(&[(0, 0, 6), (9, 0, 8)]);
        let link = Link { user_id: "US.1".into(), time: at(2), moved: false };
        live.link(link.clone());
        let Unified { record: both, denials } = unify(&[live, older], at(9));
        let erased = Erased { time: at(1), history_len: 7, chain: [0; 32] };
        assert_eq!((both.erased.as_deref(), both.links), (Some(&erased), vec![link]));
        assert_eq!(both.state.suppression, Some((at(8), true)));
        // The opt-in is later than the erasure, and stands; one that is older does not.
        assert_eq!(denials.len(), 2);
        assert!(
            both.state
                .standing_on(&Scope::Class(Class::Marketing))
                .choice
                .is_some_and(|choice| !choice.is_opt_out())
        );
        let old = record(&[(0, 0, 2)]);
        let lifted = record(&[(8, 0, 3), (9, 0, 6)]);
        let erased = Record {
            erased: Some(Box::new(Erased { time: at(4), history_len: 1, chain: [0; 32] })),
            ..lifted
        };
        let both = unify(&[old, erased], at(9)).record;
        assert_eq!(reason(&both, "marketing", Form::Template, 1_000), Reason::OptedOutAll);
    }
}
