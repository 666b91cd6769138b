//! What must hold, by its own reckoning: of states of the ledger and times alone.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use consentd::table::Table;
use consentd_core::businesses::Businesses;
use consentd_core::id::BusinessId;
use consentd_core::scope::Scope;
use consentd_core::standing::{Facts, Standing};
use consentd_core::state::{Choice, Effect, State};
use consentd_core::time::Timestamp;

use crate::erase::erased_before;
use crate::held::business_of;
use crate::ledger::{CATEGORIES, Pairs, Said, USERS, covers, user};
use crate::lifts::{Lift, Lifts, PLACES, add, place_of};
pub use crate::violation::Violation;

fn is_word_denied(facts: &Facts) -> bool {
    matches!(
        facts.standing,
        Standing::OptedOut | Standing::OptedOutAll { .. } | Standing::PendingOverOptOut { .. }
    )
}

/// Whether a record looks like one that was erased.
fn is_tombstone(state: &State) -> bool {
    state.scopes.is_empty() && state.suppression.is_some_and(|(_, set)| set)
}

/// The kinds of denial of a pair: by word on each category, inside WhatsApp, by suppression.
const KINDS: usize = CATEGORIES.len() + 2;
const PLATFORM: usize = CATEGORIES.len();
const SUPPRESSION: usize = PLATFORM + 1;

/// A denial that the table made, and must go on making until something newer lifts it.
#[derive(Clone, Copy, Debug)]
struct Guard {
    on: bool,
    /// What lifts it is later than this.
    floor: Timestamp,
}

/// What the table denies, pair by pair, and must not forget.
#[derive(Clone, Debug)]
pub struct Guards {
    denials: [[Guard; KINDS]; USERS],
    /// Whether the table may deny the pair more than the ledger does.
    may: [bool; USERS],
    /// Whether something else than a fork was lost of the pair, at whatever time.
    vague: [bool; USERS],
    /// Whether the keys have changed since the log named the user: until it does, what was denied
    /// before cannot be lifted.
    unnamed: [bool; USERS],
    /// The latest clock that a denial may be stamped with.
    seen: Timestamp,
    /// The latest time of a ledger's clock or of an event that the table received; ledgers' clocks
    /// differ.
    latest: Timestamp,
}

impl Default for Guards {
    fn default() -> Self {
        let off = Guard { on: false, floor: Timestamp::MIN };
        Self {
            denials: [[off; KINDS]; USERS],
            may: [false; USERS],
            vague: [false; USERS],
            unnamed: [false; USERS],
            seen: Timestamp::MIN,
            latest: Timestamp::MIN,
        }
    }
}

impl Guards {
    /// What a table denies that was saved when these were its guards, some pairs of it when they
    /// were `later`; it remembers nothing that the ledger lost.
    pub fn or(&self, later: &Self, is_later: impl Fn(usize) -> bool) -> Self {
        let mut saved = Self { may: later.vague, ..later.clone() };
        for number in (0..USERS).filter(|number| !is_later(*number)) {
            saved.denials[number] = self.denials[number];
        }
        saved
    }

    /// What a table denies that knows nothing.
    pub fn forgotten(&self) -> Self {
        Self { may: self.vague, vague: self.vague, latest: self.latest, ..Self::default() }
    }

    /// An answer of a ledger had this clock.
    pub fn on_clock(&mut self, clock: Timestamp) {
        self.latest = self.latest.max(clock);
    }

    /// The table receives a record: a denial in it may be ahead of every ledger's clock, and so
    /// may be what is remembered of it once it is lost.
    pub fn on_state(&mut self, state: &State) {
        self.latest = self.latest.max(state.latest().unwrap_or(self.latest));
    }

    /// The table is emptied, at that time by the ledger's clock.
    pub fn on_begin(&mut self, clock: Timestamp, forgets: bool, first: bool, other_keys: bool) {
        self.seen = self.seen.max(self.latest);
        if forgets {
            *self =
                Self { vague: self.vague, seen: self.seen, latest: self.latest, ..Self::default() };
            self.may = self.vague;
        } else if !first {
            self.may = [true; USERS];
        }
        self.unnamed = self.unnamed.map(|unnamed| !forgets && (unnamed || other_keys));
        for guard in self.denials.iter_mut().flatten() {
            guard.floor = guard.floor.max(clock);
        }
    }

    /// A table that is not valid went past what the ledger says here: a denial that is the ledger's
    /// own is lifted as the ledger lifts it.
    pub fn pass(&mut self, pairs: &Pairs) {
        for (said, guards) in pairs.iter().zip(&mut self.denials) {
            let Some(said) = said else { continue };
            let state = &said.state;
            erase(guards, said);
            for (kind, guard) in guards.iter_mut().enumerate().filter(|(_, guard)| guard.on) {
                let theirs = match kind {
                    PLATFORM => state.platform.aggregated().latest,
                    SUPPRESSION => state.suppression,
                    category => latest_word(state, category).map(|w| (w.time, w.is_opt_out())),
                };
                match theirs {
                    Some((time, true)) => guard.floor = time,
                    Some((time, false)) if time > guard.floor => guard.on = false,
                    _ => {}
                }
            }
        }
    }

    /// The pairs of other businesses are dropped, with all that was remembered of them.
    pub fn on_drop(&mut self, businesses: &Businesses) {
        let off = Guard { on: false, floor: Timestamp::MIN };
        for number in 0..USERS {
            let business = BusinessId::parse(business_of(number)).unwrap();
            if !businesses.holds(business) {
                self.denials[number] = [off; KINDS];
            }
        }
    }

    /// What was loaded is taken out again.
    pub fn on_unload(&mut self) {
        self.seen = self.seen.max(self.latest);
        self.may = [true; USERS];
    }

    /// The log named a user: which of the pairs that other keys were made for it is, is known.
    pub fn on_named(&mut self, name: &str) {
        for number in (0..USERS).filter(|number| user(*number) == name) {
            self.unnamed[number] = false;
        }
    }

    /// The pair's record was written behind the log's back, or cannot be read.
    pub fn may_deny(&mut self, number: usize) {
        self.may[number] = true;
        self.vague[number] = true;
    }

    /// Properties 1 and 2: where nothing can have been lost, nothing is remembered.
    pub fn check_remembered(&self, table: &Table) -> Result<(), Violation> {
        let remembered = table.retained_pairs();
        if remembered > 0 && self.may == [false; USERS] {
            return Err(Violation::new(
                2,
                format!("{remembered} remembered, and nothing was lost"),
            ));
        }
        Ok(())
    }

    /// Compares a valid table with what the ledger said where it is. `loose` pairs were written
    /// behind the log's back: of them the table may hold either. The bucket of `doubted` ones was
    /// lost once.
    pub fn check(
        &mut self,
        table: &Table,
        pairs: &Pairs,
        loose: [bool; USERS],
        doubted: [bool; USERS],
    ) -> Result<(), Violation> {
        for number in 0..USERS {
            let said = pairs[number].as_deref();
            // What is not held is not answered, and nothing is known of it.
            let Ok(pair) = table.pair(user(number), business_of(number)) else { continue };
            if loose[number] {
                // What denies may be what the log does not tell; something must lift it at least.
                self.denials[number].iter_mut().for_each(|guard| guard.floor = Timestamp::MIN);
            }
            for category in 0..CATEGORIES.len() {
                let asked = crate::ledger::category(category);
                let facts = table.facts(pair, asked).0;
                let about = || format!("user {number}, {}", CATEGORIES[category]);
                let Ok(facts) = facts else {
                    let excepted = loose[number] || doubted[number];
                    if excepted || said.is_some_and(|said| !said.readable) {
                        break;
                    }
                    return Err(Violation::new(2, format!("{}: unreadable", about())));
                };
                if !loose[number] {
                    self.compare(number, category, &facts, said)
                        .map_err(|why| Violation::new(2, format!("{}: {why}", about())))?;
                }
                if let Some(said) = said {
                    erase(&mut self.denials[number], said);
                }
                if said.is_some_and(|said| is_tombstone(&said.state)) && facts.suppressed {
                    // What an erased record denies it denies as a whole.
                    self.denials[number][..SUPPRESSION].iter_mut().for_each(|it| it.on = false);
                }
                let denied = is_word_denied(&facts);
                let theirs = said.and_then(|said| latest_word(&said.state, category));
                self.guard(
                    number,
                    category,
                    denied,
                    theirs.map(|word| (word.time, word.is_opt_out())),
                )
                .map_err(|why| Violation::new(6, format!("{}: {why}", about())))?;
                if category == 0 {
                    let marks = [
                        (
                            PLATFORM,
                            facts.platform_stopped,
                            said.and_then(|s| s.state.platform.aggregated().latest),
                        ),
                        (SUPPRESSION, facts.suppressed, said.and_then(|s| s.state.suppression)),
                    ];
                    for (kind, denied, theirs) in marks {
                        self.guard(number, kind, denied, theirs)
                            .map_err(|why| Violation::new(6, format!("user {number}: {why}")))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Property 2: the table says what the ledger says, or denies more and may.
    fn compare(
        &self,
        number: usize,
        category: usize,
        ours: &Facts,
        said: Option<&Said>,
    ) -> Result<(), String> {
        if said.is_some_and(|said| !said.readable) {
            return Err("known though it cannot be read".into());
        }
        let theirs = said.map_or(Facts::NOTHING, |said| said.facts[category]);
        if *ours == theirs {
            return Ok(());
        }
        let told = || {
            let state = said.map(|said| &said.state);
            let seen = self.seen;
            Err(format!("{ours:?}, in the ledger {theirs:?}: {state:?}, loss seen at {seen:?}"))
        };
        let same = Facts {
            standing: theirs.standing,
            suppressed: theirs.suppressed,
            platform_stopped: theirs.platform_stopped,
            ..*ours
        } == theirs;
        let less = theirs.suppressed && !ours.suppressed
            || theirs.platform_stopped && !ours.platform_stopped
            || ours.standing != theirs.standing && !is_word_denied(ours);
        if !same || less || !self.may[number] {
            return told();
        }
        if self.vague[number] || self.unnamed[number] {
            return Ok(());
        }
        // What was said after the last loss was seen lifts whatever that left.
        let state = said.map(|said| &said.state);
        let lifted = state.and_then(|state| latest_word(state, category));
        let lifted = lifted.is_some_and(|word| !word.is_opt_out() && word.time > self.seen);
        if lifted && ours.standing != theirs.standing {
            return told();
        }
        let is_lifted = |mark: Option<(Timestamp, bool)>| {
            mark.is_some_and(|(time, set)| !set && time > self.seen)
        };
        // What is left of a loss may be of any number.
        let platform = state.is_some_and(|state| {
            let at = |place: &str| state.platform.at(place_of(place).as_ref()).latest;
            PLACES.iter().all(|place| is_lifted(at(place)))
        });
        let suppression = state.is_some_and(|state| is_lifted(state.suppression));
        if platform && ours.platform_stopped || suppression && ours.suppressed {
            return told();
        }
        Ok(())
    }

    /// Properties 3 and 6: a denial ends where something newer says so.
    fn guard(
        &mut self,
        number: usize,
        kind: usize,
        denied: bool,
        theirs: Option<(Timestamp, bool)>,
    ) -> Result<(), String> {
        let guard = &mut self.denials[number][kind];
        if guard.on && !denied {
            let lifted = theirs.is_some_and(|(time, denies)| !denies && time > guard.floor);
            if !lifted {
                return Err(format!(
                    "kind {kind} was denied, and is not: {theirs:?}, floor {:?}",
                    guard.floor
                ));
            }
        }
        if let Some((time, true)) = theirs {
            guard.floor = time;
        }
        guard.on = denied;
        Ok(())
    }
}

/// What was denied before a pair was erased is denied by the tombstone, which a later event may lift.
fn erase(guards: &mut [Guard; KINDS], said: &Said) {
    let Some(erased) = said.erased else { return };
    for guard in guards[..SUPPRESSION].iter_mut().filter(|guard| guard.floor <= erased) {
        guard.on = false;
    }
}

/// The latest word that covers a category; what denies where two are as late.
fn latest_word(state: &State, category: usize) -> Option<Choice> {
    let words = state.scopes.iter().filter(|(scope, _)| covers(scope, category));
    words.filter_map(|(_, said)| said.choice).max()
}

/// A denial that a recorder acknowledged.
pub struct Ack {
    pub effect: Effect,
    pub at: Duration,
    /// How many records were written when its recorder began.
    pub began: u64,
}

/// What was acknowledged, and must be enforced.
#[derive(Default)]
pub struct Acks {
    denied: [Vec<Ack>; USERS],
    /// All that was ever written, on whatever branch, that lifts a denial.
    lifts: [Lifts; USERS],
    /// How many records were written.
    writes: u64,
    /// To which moments what allows was clamped, by the recorders that did it.
    clamped: BTreeSet<(usize, Timestamp)>,
    /// Users of whom it was acknowledged that they are one person.
    pub linked: BTreeSet<(usize, usize)>,
}

impl Acks {
    pub fn written(&mut self, number: usize, said: &Said) {
        let state = &said.state;
        self.writes += 1;
        let (written, clamped) = (self.writes, &self.clamped);
        let lift = |time| Lift { time, written, clamped: clamped.contains(&(number, time)) };
        let lifts = &mut self.lifts[number];
        lifts.erased.extend(said.erased.filter(|at| !lifts.erased.contains(at)));
        for (scope, said) in &state.scopes {
            if let Some(word) = said.choice.filter(|word| !word.is_opt_out()) {
                add(lifts.words.entry(scope.clone()).or_default(), lift(word.time));
            }
        }
        for (number, said) in state.platform.iter() {
            if let Some((time, false)) = said.latest {
                add(lifts.platform.entry(number.cloned()).or_default(), lift(time));
            }
        }
        if let Some((time, false)) = state.suppression {
            add(&mut lifts.suppression, lift(time));
        }
        // What was lifted once is lifted for good: no fork takes back that it may have been.
        self.denied[number]
            .retain(|ack| (0..CATEGORIES.len()).any(|at| lifts.leave(&ack.effect, ack.began, at)));
    }

    /// A recorder clamps what allows to this moment, since its sender's clock is ahead.
    pub fn clamps(&mut self, number: usize, time: Timestamp) {
        self.clamped.insert((number, time));
    }

    /// How many records were written.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// All users that are one person with this one, itself among them.
    pub fn person(&self, number: usize) -> BTreeSet<usize> {
        let mut person = BTreeSet::from([number]);
        for _ in 0..USERS {
            for (one, other) in &self.linked {
                if person.contains(one) || person.contains(other) {
                    person.extend([one, other]);
                }
            }
        }
        person
    }

    /// What was acknowledged of a user, and was not lifted.
    pub fn of(&self, number: usize) -> Vec<(Effect, u64)> {
        self.denied[number].iter().map(|ack| (ack.effect.clone(), ack.began)).collect()
    }

    /// Whether nothing that was said of the user lifts a denial wholly.
    pub fn stands(&self, number: usize, effect: &Effect, began: u64) -> bool {
        (0..CATEGORIES.len()).any(|category| self.lifts[number].leave(effect, began, category))
    }

    /// Whether a denial still stands for a category.
    pub fn leave(&self, number: usize, effect: &Effect, began: u64, category: usize) -> bool {
        self.lifts[number].leave(effect, began, category)
    }

    /// Whether it would stand if nothing counted that was written before its recorder began.
    pub fn leave_since(&self, number: usize, effect: &Effect, began: u64, category: usize) -> bool {
        self.lifts[number].since(began).leave(effect, began, category)
    }

    /// Notes it, unless it is known or lifted already; whether it did.
    pub fn acknowledged(&mut self, number: usize, ack: Ack) -> bool {
        let lifts = &self.lifts[number];
        let known = &mut self.denied[number];
        // The first of two equal ones has been due for longer.
        let is_new = (0..CATEGORIES.len())
            .any(|category| lifts.leave(&ack.effect, ack.began, category))
            && !known.iter().any(|known| known.effect == ack.effect);
        if is_new {
            known.push(ack);
        }
        is_new
    }

    /// The ledger's state is another one now: what it lacks is lost.
    pub fn replaced(&mut self, said: impl Fn(usize) -> Option<Rc<Said>>) {
        for (number, acks) in
            self.denied.iter_mut().enumerate().filter(|(_, acks)| !acks.is_empty())
        {
            let Some(said) = said(number) else {
                acks.clear();
                continue;
            };
            acks.retain(|ack| {
                let mut with = said.state.clone();
                let is_erased = erased_before(&said, Some(crate::recorder::time_of(&ack.effect)));
                is_erased || matches!(with.apply(&ack.effect), Ok(false)) && with == said.state
            });
        }
    }

    /// Property 3: what is due by now is denied.
    pub fn check(
        &self,
        number: usize,
        now: Duration,
        bound: Duration,
        allows: impl Fn(usize) -> Result<bool, Violation>,
    ) -> Result<(), Violation> {
        // The wall clock is read in whole milliseconds.
        let due = |ack: &&Ack| ack.at + bound + Duration::from_millis(1) <= now;
        for ack in self.denied[number].iter().filter(due) {
            for category in 0..CATEGORIES.len() {
                if self.lifts[number].leave(&ack.effect, ack.began, category) && allows(category)? {
                    let ago = now.checked_sub(ack.at).unwrap_or_default();
                    let why = format!(
                        "user {number}, {} allowed; {:?} was acknowledged {ago:?} ago",
                        CATEGORIES[category], ack.effect
                    );
                    return Err(Violation::new(3, why));
                }
            }
        }
        Ok(())
    }
}

/// Whether an effect denies.
pub fn is_denial(effect: &Effect) -> bool {
    match effect {
        Effect::Choice(_, word) => word.is_opt_out(),
        Effect::Platform { stopped, .. } => *stopped,
        Effect::Suppression { suppressed, .. } => *suppressed,
        _ => false,
    }
}

/// Where a word may be said.
pub fn scope(text: &str) -> Scope {
    Scope::parse(text).unwrap()
}
