//! What must hold of all tables together, as the product's checker reads them.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use consentd::checker::{CheckError, CheckRequest, CheckResult, TemplateName};
use consentd::table::Validity;
use consentd_core::decision::{Form, Reason};
use consentd_core::record::Revision;
use consentd_core::standing::Facts;
use consentd_core::state::Effect;

use super::world::World;
use crate::held::business_of;
use crate::ledger::{BUSINESS, CATEGORIES, USERS, covers, secret, user};
use crate::oracle::{Ack, Violation};
use crate::round::LIVE_WITHIN;
use crate::world::MILLI;

/// The template's place among the users.
pub const OF_TEMPLATE: usize = USERS - 1;

/// Its name, as checks give it.
const NAME: TemplateName<'static> = TemplateName { name: "news", language: "en" };

/// How many of the last acknowledgements are checked by the revision that they told.
const MOST_TOLD: usize = 12;

/// The revision that an acknowledgement told: with it no check allows, wherever it is made.
pub struct Told {
    pub user: usize,
    effect: Effect,
    began: u64,
    revision: Revision,
}

/// A denial without a time of its own: nothing lifts it that was written before its recorder began, whichever
/// clock that was written by.
pub struct Strong {
    pub user: usize,
    effect: Effect,
    began: u64,
    due: Duration,
}

fn request(user_id: usize, category: usize, template: bool) -> CheckRequest<'static> {
    CheckRequest {
        user_id: user(user_id),
        business_id: business_of(user_id),
        category: CATEGORIES[category],
        form: Ok(Form::Template),
        min_revision: 0,
        template: template.then_some(NAME),
    }
}

impl World {
    fn ask(&self, request: &CheckRequest<'_>) -> Result<CheckResult, CheckError> {
        let moment = self.moment();
        self.checker.check_at(request, || moment)
    }

    /// The partitions that an answer rests on.
    fn rests_on(&self, user: usize, template: bool) -> Vec<usize> {
        // What is known of a template, and of its account, is in one partition of the business.
        let known = template.then(|| self.place_of_template(business_of(user)));
        known.into_iter().chain([self.place[user]]).collect()
    }

    fn place_of_template(&self, business: &str) -> usize {
        let secret = secret(self.partitions[0].primary.secret);
        let key = secret.read(user(OF_TEMPLATE), business).unwrap();
        usize::try_from(self.layout.partition_of(key)).unwrap()
    }

    /// Properties 4 and 5, of one answer: it is as current as all that it rests on, and no less.
    fn judged(
        &self,
        user: usize,
        category: usize,
        template: bool,
    ) -> Result<CheckResult, Violation> {
        let rests_on = self.rests_on(user, template);
        let moment = self.moment();
        let live_within = u64::try_from(LIVE_WITHIN.as_micros()).unwrap();
        let is_well = |at: &usize| self.now > self.partitions[*at].ill_until + live_within;
        let are_well = rests_on.iter().all(is_well);
        let about = || format!("user {user}, {}, template {template}", CATEGORIES[category]);
        let nothing = |error: CheckError| Violation::new(5, format!("{}: {error}", about()));
        let answer = self.ask(&request(user, category, template));
        if !self.is_held(user) {
            return match answer {
                Err(CheckError::NotHeld(_) | CheckError::NotReady) => Err(Violation::new(0, "")),
                answer => {
                    let why = format!("{}: {answer:?}, and the business is not held", about());
                    Err(Violation::new(4, why))
                }
            };
        }
        let Ok(answer) = answer else {
            let unloaded = rests_on.iter().any(|at| self.is_loading(*at));
            return match answer {
                Err(CheckError::NotReady) if unloaded && !are_well => Err(Violation::new(0, "")),
                Err(error) => Err(nothing(error)),
                Ok(_) => unreachable!(),
            };
        };
        let is_live = rests_on.iter().all(|at| self.partitions[*at].sidecar.is_live(moment));
        if answer.decision.allowed() && !is_live {
            return Err(Violation::new(4, format!("{}: allowed while not live", about())));
        }
        if answer.decision.reason == Reason::Stale && (are_well || is_live) {
            let why = format!("{}: stale, though nothing is wrong: well {are_well}", about());
            return Err(Violation::new(5, why));
        }
        Ok(answer)
    }

    fn is_loading(&self, at: usize) -> bool {
        self.partitions[at].sidecar.table.freshness().validity == Validity::Loading
    }

    /// Whether a check is allowed, by itself, with the template, or in a batch.
    fn allows(&self, user: usize, category: usize) -> Result<bool, Violation> {
        let mut allows = false;
        for template in [false, true] {
            match self.judged(user, category, template) {
                Ok(answer) => allows |= answer.decision.allowed(),
                Err(Violation { property: 0, .. }) => {}
                Err(violation) => return Err(violation),
            }
        }
        Ok(allows)
    }

    /// Whether the template may be sent to anybody as this class.
    fn allows_template(&self, category: usize) -> Result<bool, Violation> {
        for user in (0..OF_TEMPLATE).filter(|user| business_of(*user) == BUSINESS) {
            match self.judged(user, category, true) {
                Ok(it) if it.decision.allowed() && it.stricter.is_none() => return Ok(true),
                Ok(_) | Err(Violation { property: 0, .. }) => {}
                Err(violation) => return Err(violation),
            }
        }
        Ok(false)
    }

    /// All properties of answers, for one user or for the template.
    pub fn check(&mut self, user: usize) -> Result<(), Violation> {
        if self.frozen_until > self.now {
            return Ok(());
        }
        let (now, bound) = (self.time(), self.plan.bound);
        if self.random.percent(10) {
            self.batch_agrees()?;
        }
        if user == OF_TEMPLATE {
            return self.acks.check(user, now, bound, |category| self.allows_template(category));
        }
        let known: [Cell<Option<bool>>; CATEGORIES.len()] = Default::default();
        let allows = |category: usize| {
            if let Some(known) = known[category].get() {
                return Ok(known);
            }
            let allows = self.allows(user, category)?;
            known[category].set(Some(allows));
            Ok(allows)
        };
        allows(usize::try_from(self.steps).unwrap() % CATEGORIES.len())?;
        self.acks.check(user, now, bound, allows)?;
        for strong in self.strong.iter().filter(|it| it.user == user && it.due <= now) {
            let Strong { effect, began, .. } = strong;
            for category in concerned(effect) {
                if allows(category)? && self.acks.leave_since(user, effect, *began, category) {
                    let why = format!(
                        "user {user}, {}: {effect:?} is lifted by what was said before it",
                        CATEGORIES[category]
                    );
                    return Err(Violation::new(3, why));
                }
            }
        }
        // On a branch that was lost a revision says nothing of another one.
        let partition = &self.partitions[self.place[user]];
        let position = partition.sidecar.scheduler().state_machine().position();
        let is_there = partition.primary.has(position);
        let told = self.told.iter().filter(|it| it.user == user && is_there);
        for Told { effect, began, revision, .. } in told {
            for category in concerned(effect) {
                let asked =
                    CheckRequest { min_revision: *revision, ..request(user, category, false) };
                if allows(category)?
                    && self.acks.leave(user, effect, *began, category)
                    && self.ask(&asked).is_ok_and(|answer| answer.decision.allowed())
                {
                    let why = format!("user {user}: allowed, with revision {revision} told");
                    return Err(Violation::new(3, why));
                }
            }
        }
        Ok(())
    }

    /// A batch over all partitions answers each of its requests as it is answered alone.
    fn batch_agrees(&mut self) -> Result<(), Violation> {
        let mut requests = Vec::new();
        for user in 0..OF_TEMPLATE {
            let category = self.random.index(CATEGORIES.len());
            let template = self.random.percent(40);
            requests.push(request(user, category, template));
        }
        let from = self.random.index(OF_TEMPLATE);
        requests.rotate_left(from);
        let (moment, mut batch) = (self.moment(), Vec::new());
        let each = |answer: Result<CheckResult, CheckError>| batch.push(answer);
        let checked = self.checker.check_many_at(requests.iter().copied(), || moment, each);
        if checked.is_err() {
            // A table that was never loaded: the sidecar is not ready.
            let mut followed =
                (0..self.partitions.len()).filter(|at| self.partitions[*at].is_followed);
            let never = followed.any(|at| self.is_loading(at));
            return if never { Ok(()) } else { Err(Violation::new(5, "no answer to a batch")) };
        }
        for (request, answer) in requests.iter().zip(&batch) {
            let told = |answer: &Result<CheckResult, CheckError>| {
                answer
                    .as_ref()
                    .ok()
                    .map(|it| (it.decision.reason, it.revision, it.staleness, it.stricter))
            };
            let alone = self.ask(request);
            if told(&alone) != told(answer) {
                let why = format!("in a batch {:?}, alone {:?}", told(answer), told(&alone));
                return Err(Violation::new(4, format!("user {}: {why}", request.user_id)));
            }
        }
        Ok(())
    }

    /// A recorder was answered that a denial is durable under this id.
    pub fn acknowledge(&mut self, user: usize, effect: Effect, began: u64, is_own: bool) {
        let bound = self.plan.bound;
        // The own table has it by then.
        let before = if is_own { bound + Duration::from_millis(2) } else { Duration::ZERO };
        let at = self.time().saturating_sub(before);
        if is_own {
            self.after(0, super::world::Happening::Check(user));
        }
        if !self.acks.acknowledged(user, Ack { effect, at, began }) {
            return;
        }
        let bound = u64::try_from(bound.as_micros()).unwrap();
        let jitter = self.random.pick(&[0, 100, 1_000]) * MILLI;
        self.after(bound + 2 * MILLI + jitter, super::world::Happening::Check(user));
    }

    /// The same of a denial without a time of its own, under an id that was known to be one person's before.
    pub fn acknowledge_strong(&mut self, user: usize, effect: Effect, began: u64, is_own: bool) {
        let bound = self.plan.bound + Duration::from_millis(2);
        let due = self.time() + if is_own { Duration::ZERO } else { bound };
        self.strong.push(Strong { user, effect, began, due });
        if self.strong.len() > 2 * MOST_TOLD {
            self.strong.remove(0);
        }
    }

    /// The answer told a revision, which is one of the user's own partition.
    pub fn tell(
        &mut self,
        user: usize,
        effect: Effect,
        began: u64,
        revision: Revision,
    ) -> Result<(), Violation> {
        let at = self.place[user];
        if revision > self.partitions[at].revision() {
            let why = format!("user {user}: revision {revision} is none of partition {at}");
            return Err(Violation::new(5, why));
        }
        self.told.push(Told { user, effect, began, revision });
        if self.told.len() > MOST_TOLD {
            self.told.remove(0);
        }
        Ok(())
    }

    /// What one partition lost is not enforced any more; and what was known of links that it had.
    pub fn forget_lost(&mut self, at: usize) {
        let Self { partitions, place, acks, .. } = self;
        let said = |user: usize| {
            let stored = partitions[place[user]].primary.stored[user].as_ref();
            stored.map(|stored| Rc::clone(&stored.said))
        };
        let names = |one: usize, other: usize| said(one).is_some_and(|said| said.names(other));
        acks.linked.retain(|(one, other)| names(*one, *other) && names(*other, *one));
        acks.replaced(said);
        self.told.retain(|told| place[told.user] != at);
        self.strong.retain(|strong| place[strong.user] != at);
    }

    /// Property 1: every table says what its partition does.
    pub fn converged(&mut self) -> Result<(), Violation> {
        let moment = self.moment();
        for at in 0..self.partitions.len() {
            if !self.partitions[at].is_followed {
                continue;
            }
            let partition = &self.partitions[at];
            let position = partition.sidecar.scheduler().state_machine().position();
            if !partition.sidecar.is_live(moment) || position != partition.primary.end() {
                let end = partition.primary.end();
                let why = format!("partition {at} is at {position:?}, the ledger at {end:?}");
                return Err(Violation::new(1, why));
            }
            if partition.sidecar.table.retained_pairs() > 0 {
                continue;
            }
            let is_here = |user: &usize| self.place[*user] == at && self.is_held(*user);
            for user in (0..OF_TEMPLATE).filter(is_here) {
                let (table, business) = (&partition.sidecar.table, business_of(user));
                let pair = table.pair(user_id(user), business).unwrap();
                let joined = self.tables.pair(user_id(user), business).unwrap();
                let stored = partition.primary.stored[user].as_ref();
                for category in 0..CATEGORIES.len() {
                    let asked = crate::ledger::category(category);
                    let theirs = stored.map_or(Facts::NOTHING, |it| it.said.facts[category]);
                    let both = [table.facts(pair, asked).0, self.tables.facts(joined, asked).0];
                    if both != [Ok(theirs); 2] {
                        let why = format!("user {user}, {}: {both:?}", CATEGORIES[category]);
                        return Err(Violation::new(1, why));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Some of the categories that a denial is about: one of each kind.
fn concerned(effect: &Effect) -> impl Iterator<Item = usize> {
    let all = matches!(effect, Effect::Suppression { .. });
    (0..CATEGORIES.len()).filter(move |category| match effect {
        Effect::Choice(scope, _) => covers(scope, *category),
        Effect::Platform { .. } => CATEGORIES[*category].starts_with("marketing"),
        _ => all,
    })
}

fn user_id(number: usize) -> &'static str {
    user(number)
}
