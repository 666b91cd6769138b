//! What was known of a template's category at a past time, and the decisions that checks would have got then
//! that named the template.

use super::{AsOf, HistoryEvent, PastDecision};
use crate::decision::Policy;
use crate::scope::{Category, Class, Scope};
use crate::standing::ResolvedState;
use crate::state::{Choice, Effect, State};
use crate::time::Timestamp;

/// The class that decided about a template, and the events that made it so.
#[derive(Debug)]
pub struct UsedCategory<'a> {
    /// The class.
    pub class: Class,
    /// The events of the template that explain it.
    pub by_template: Vec<&'a HistoryEvent>,
    /// The events of the account that explain it.
    pub by_account: Vec<&'a HistoryEvent>,
}

impl<'a> UsedCategory<'a> {
    /// The class that decided where this one was asked for, by what was known of the template and of the
    /// account. Those are their histories, as of the same time.
    #[must_use]
    pub fn of(asked: Class, template: &AsOf<'a>, account: &AsOf<'a>) -> Self {
        let profile = |as_of: &AsOf<'_>| ResolvedState::of(&as_of.state).profile;
        let known = asked.stricter(profile(template).least_class());
        let end = profile(account).restricted_until();
        let is_restricted = end.is_some_and(|end| template.at < end);
        let class = if is_restricted { known.restricted() } else { known };
        let by_template = if known == asked { Vec::new() } else { template.opt_outs_of(|_| true) };
        let stands = |scope: &Scope| match scope {
            Scope::Topic(..) => restricts_at(&account.state, scope, template.at),
            _ => true,
        };
        let by_account = if class == known { Vec::new() } else { account.opt_outs_of(stands) };
        Self { class, by_template, by_account }
    }
}

/// Whether the restriction that is kept under this scope had not ended.
fn restricts_at(state: &State, scope: &Scope, at: Timestamp) -> bool {
    let only = state.scopes.get(scope).map(|on| (scope.clone(), *on)).into_iter().collect();
    let only = State { scopes: only, ..State::default() };
    ResolvedState::of(&only).profile.restricted_until().is_some_and(|end| at < end)
}

impl<'a> AsOf<'a> {
    /// The decisions of checks that asked about a category and that this class decided, as for a template
    /// that is known to be of a stricter class: what was opted out of in the category that was asked for
    /// denies, too.
    #[must_use]
    pub fn decision_as(
        &self,
        asked: Category<'_>,
        class: Class,
        policy: &Policy,
    ) -> PastDecision<'a> {
        if class == asked.class {
            return self.decision(asked, policy);
        }
        let facts = |state: &State| {
            let state = ResolvedState::of(state);
            state.facts(Category { class, topic: None }).denied_as(&state.facts(asked), self.at)
        };
        self.decide_by(facts, class, &[Scope::Class(class), asked.into()], policy)
    }

    /// The events that made the opt-outs that stand, of these scopes.
    fn opt_outs_of(&self, is_asked: impl Fn(&Scope) -> bool) -> Vec<&'a HistoryEvent> {
        let mut found: Vec<&'a HistoryEvent> = Vec::new();
        for (scope, on_scope) in self.state.scopes.iter().filter(|(scope, _)| is_asked(scope)) {
            let stands = |choice: &Choice| {
                choice.is_opt_out() && self.state.standing_on(scope).choice == Some(*choice)
            };
            let Some(choice) = on_scope.choice.filter(stands) else { continue };
            let event = self.event_of(&Effect::Choice(scope.clone(), choice));
            found.extend(event.filter(|event| !found.contains(event)));
        }
        found.sort_by_key(|event| event.number);
        found
    }
}
