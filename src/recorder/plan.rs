//! What events make of one pair: pure.

use std::time::{Duration, UNIX_EPOCH};

use super::linked::{Denial, TooManyIds, known_link};
use super::{Counts, Refusal, Submission, Told};
use consentd_core::Violation;
use consentd_core::claims::Claim;
use consentd_core::event::{Event, Evidence, MAX_AHEAD, MAX_REFERENCE_BYTES, OTHER_USER_ID, What};
use consentd_core::id::{Key, KeySecret};
use consentd_core::keyword::{Heard, Keywords, Meaning};
use consentd_core::record::{HistoryEntry, Link, Outcome, Record, Request};
use consentd_core::scope::Scope;
use consentd_core::state::{Pending, State};
use consentd_core::time::Timestamp;
use consentd_ledger::{Change, History, StoredRecord, Update};

/// A pair's record, with events applied to it one by one.
pub(super) struct Plan<'a> {
    stored: &'a StoredRecord,
    record: Record,
    history: Vec<HistoryEntry>,
    clock: Timestamp,
    keywords: &'a Keywords,
    /// The pair's history, where a confirmation may need it.
    known: Option<&'a History>,
    /// Whether the record was changed at all, be it by a remembered request alone.
    touched: bool,
    linked: Linked,
    /// What is to be taken to the person's other ids.
    spread: Spread,
}

/// What is known of a person's other ids when a pair is planned.
#[derive(Clone, Copy, Default)]
pub(super) struct Linked {
    /// The latest event under any of them.
    pub(super) latest: Option<Timestamp>,
    /// Whether there are as many as there may be, or would be more.
    pub(super) is_full: bool,
}

/// What events have said that must hold under all ids of a person before they are acknowledged.
#[derive(Clone, Debug, Default)]
pub(super) struct Spread {
    pub(super) links: Vec<Link>,
    pub(super) denials: Vec<Denial>,
    /// Which of the pair's events wait for it, in their order.
    pub(super) waits: Vec<bool>,
}

/// How much later than its whole second a denial counts.
const REST_OF_SECOND: Duration = Duration::from_millis(999);

/// When an event happened, as far as the rules go.
struct Settled {
    time: Timestamp,
    /// The time that it claimed, where that was ahead of the ledger's clock when it was first
    /// recorded, and was clamped.
    claimed: Option<Timestamp>,
}

impl Settled {
    /// An event that was not clamped.
    fn at(time: Timestamp) -> Self {
        Self { time, claimed: None }
    }
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        stored: &'a StoredRecord,
        clock: Timestamp,
        keywords: &'a Keywords,
        known: Option<&'a History>,
    ) -> Self {
        let mut record = stored.record.clone();
        record.written_at(stored.version.revision);
        Self {
            stored,
            record,
            history: Vec::new(),
            clock,
            keywords,
            known,
            touched: false,
            linked: Linked::default(),
            spread: Spread::default(),
        }
    }

    /// The same, of a pair whose user has other ids, or is to have them.
    pub(super) fn linked(self, linked: Linked) -> Self {
        Self { linked, ..self }
    }

    /// The record as it will be, and what is to be taken to the person's other ids.
    pub(super) fn spread(&self) -> (&Record, &Spread) {
        (&self.record, &self.spread)
    }

    /// Applies one event. An outcome of revision 0 is of the revision that this plan will have.
    pub(super) fn add(
        &mut self,
        submission: &Submission,
        secret: &KeySecret,
    ) -> Result<Outcome, Refusal> {
        let before = (self.spread.links.len(), self.spread.denials.len());
        let outcome = self.add_to_pair(submission, secret);
        let after = (self.spread.links.len(), self.spread.denials.len());
        // What was denied before there were links is found in the record.
        let denies = match &submission.event.what {
            What::Inbound { .. } => outcome.as_ref().is_ok_and(|o| !o.opted_out_scope.is_empty()),
            what => what.is_denial(),
        };
        let waits = before != after || (denies && !self.record.links.is_empty());
        self.spread.waits.push(outcome.is_ok() && waits);
        outcome
    }

    fn add_to_pair(
        &mut self,
        submission: &Submission,
        secret: &KeySecret,
    ) -> Result<Outcome, Refusal> {
        let Submission { event, request_id, .. } = submission;
        if self.is_erased(event) {
            return Ok(Outcome::default());
        }
        let request = Identity::of(event, request_id, secret);
        if let Some(request) = &request
            && let Some(known) = self.record.request(&request.id).cloned()
        {
            if request.what != known.what {
                return Err(reused());
            }
            self.spread_again(event, &known, secret);
            return Ok(known.outcome);
        }
        let settled = self.settle(submission)?;
        if let Some(claimed) = settled.claimed {
            let claim = Claim { from: claimed, until: claimed, moment: settled.time };
            self.record.state.clamped.insert(settled.time);
            self.touched |= self.record.state.claims.add(claim);
        }
        let denied = self.spread.denials.len();
        let outcome = match &event.what {
            What::Link { other_user_id, moved } => {
                self.link(event, other_user_id, *moved, settled.time, secret)?
            }
            _ => self.apply(submission, &settled)?,
        };
        if let Some(Identity { id, what }) = request {
            let time = self.spread.denials.get(denied).map(|denial| denial.time);
            self.record.remember(Request { id, what, outcome: outcome.clone(), time });
            self.touched = true;
        }
        Ok(outcome)
    }

    /// Links the pair's id to another one. That the other one is to name it, too, is left to whoever
    /// takes the link there.
    fn link(
        &mut self,
        event: &Event,
        other_user_id: &str,
        moved: bool,
        time: Timestamp,
        secret: &KeySecret,
    ) -> Result<Outcome, Refusal> {
        let business_id = &event.business_id;
        let other = secret.read(other_user_id, business_id).map_err(Refusal::Invalid)?;
        if secret.read(&event.user_id, business_id).is_ok_and(|own| own == other) {
            let why = "is the event's own user_id, in this or another notation";
            return Err(Refusal::Invalid(vec![Violation::new(OTHER_USER_ID, why)]));
        }
        let known = known_link(&self.record, secret, business_id, other);
        if known.is_none() && self.linked.is_full {
            return Err(TooManyIds.into());
        }
        let link = match known {
            Some(known) => Link { moved: known.moved || moved, ..known },
            None => Link { user_id: other_user_id.to_owned(), time, moved },
        };
        let applied = self.record.link(link.clone());
        if applied {
            let what = What::Link { other_user_id: link.user_id.clone(), moved: link.moved };
            self.note(event, what, time);
        }
        self.spread.links.push(link);
        Ok(Outcome { applied, ..Outcome::default() })
    }

    /// A repeat changes nothing here, and what it said may not have come to the other ids.
    fn spread_again(&mut self, event: &Event, known: &Request, secret: &KeySecret) {
        if let What::Link { other_user_id, .. } = &event.what {
            let business_id = &event.business_id;
            let other = secret.read(other_user_id, business_id).ok();
            let link = other.and_then(|key| known_link(&self.record, secret, business_id, key));
            self.spread.links.extend(link);
        }
        let Some(time) = known.time else { return };
        let scopes = known.outcome.opted_out_scope.split(", ").filter(|scope| !scope.is_empty());
        let whats = match &event.what {
            What::Inbound { message_id, .. } => scopes
                .filter_map(|scope| Scope::parse(scope).ok())
                .map(|scope| by_keyword(scope, message_id))
                .collect(),
            what => vec![what.clone()],
        };
        self.spread.denials.extend(whats.into_iter().map(|what| Denial { time, what }));
    }

    /// Whether an event says that it happened no later than the pair was erased: then it leaves no
    /// trace. A webhook may be sent again for days, and an import may be years old.
    fn is_erased(&self, event: &Event) -> bool {
        let erased = self.record.erased.as_ref().map(|erased| erased.time);
        erased.is_some_and(|erased| event.time.is_some_and(|time| time <= erased))
    }

    /// The change to append; one that writes nothing where the record stays as it is.
    pub(super) fn into_change(mut self, key: Key, submissions: &[&Submission]) -> Change {
        self.record.state.forget_clamped();
        let last = submissions.last().filter(|_| self.touched);
        let update = last.map(|last| Update {
            user_id: last.event.user_id.clone(),
            business_id: last.event.business_id.clone(),
            record: self.record,
            history: self.history,
            record_time: self.clock,
        });
        Change { key, base: self.stored.version, update }
    }

    /// When the event happened: as it says, or now by the ledger's clock. Where the time is ahead of
    /// that clock, one of the two is wrong: what allows is clamped to now, and a denial keeps its
    /// time, so that nothing that was said before the denial is ever later than it.
    fn settle(&self, submission: &Submission) -> Result<Settled, Refusal> {
        let Submission { event, request_id, told } = submission;
        let now = self.clock;
        let refuse =
            |field: &str, why: String| Err(Refusal::Invalid(vec![Violation::new(field, why)]));
        if let What::OptIn { expire: Some(expire), .. } = &event.what
            && *expire <= event.time.unwrap_or(now)
        {
            let why = "must be later than the event's own time: an opt-in that had lapsed when it \
                       was given is none";
            return refuse("opt_in.expire_time", why.to_owned());
        }
        match event.time {
            // What was recorded once is given back whatever the ledger's clock: another server may
            // have taken over, whose clock is late.
            Some(time) if time > now.plus(MAX_AHEAD) && !told.is_recorded => {
                let ahead = Duration::from_secs(time.since(now).as_secs());
                let ahead = humantime::format_duration(ahead);
                refuse(
                    "event_time",
                    format!(
                        "{ahead} ahead of the ledger's clock, by which it is {}; at most 5 minutes \
                         are taken: set the clock of the sender, or of the ledger's \
                         machine, whichever is wrong, or check the time zone and that the unit is \
                         seconds",
                        humantime::format_rfc3339_seconds(UNIX_EPOCH + now.since(Timestamp::MIN))
                    ),
                )
            }
            Some(own) if event.what.is_clamped() => {
                // A repeat counts as of when it was first recorded, also once its time has passed.
                let known = self.record.state.claims.moment_of(own);
                let time = known.unwrap_or(own).min(now);
                Ok(Settled { time, claimed: (time < own).then_some(own) })
            }
            Some(own) if event.what.is_denial() => Ok(Settled::at(denied_at(own, *told))),
            Some(own) => Ok(Settled::at(own)),
            None if event.what.lifts() && request_id.is_empty() => refuse(
                "request_id",
                "required for what lifts a denial (an opt-in, a resume, a lifted suppression) and \
                 has no event_time: a retry would otherwise be newer than a denial that came \
                 between"
                    .to_owned(),
            ),
            None if matches!(event.what, What::Link { .. }) => {
                Ok(Settled::at(self.stamp_of_link()))
            }
            None if event.what.is_denial() => Ok(Settled::at(self.stamp_of_denial())),
            None => Ok(Settled::at(self.clock)),
        }
    }

    /// The time of the latest event of the pair, and of those that it is linked to.
    fn latest(&self) -> Option<Timestamp> {
        self.record.state.latest().max(self.linked.latest)
    }

    /// Now, and no earlier than the latest event, whatever other clocks said.
    fn stamp_of_denial(&self) -> Timestamp {
        self.latest().map_or(self.clock, |latest| latest.max(self.clock))
    }

    /// Now, and later than the latest event under either id: an id that was erased takes only links
    /// from after that, and a fast clock may have put its tombstone ahead.
    fn stamp_of_link(&self) -> Timestamp {
        let next = self.latest().map(|latest| latest.plus(Duration::from_millis(1)));
        next.map_or(self.clock, |next| next.max(self.clock))
    }

    fn apply(&mut self, submission: &Submission, settled: &Settled) -> Result<Outcome, Refusal> {
        let Submission { event, request_id, told } = submission;
        let time = settled.time;
        let mut outcome = Outcome::default();
        let What::Inbound { message_id, text } = &event.what else {
            let what = event.what.clone();
            let is_repeat = told.is_recorded && self.has_entry(&what, time);
            let time = if is_repeat { time } else { self.counts_as_of(&what, time) };
            outcome.applied = self.enter_at(event, what, time)?;
            return Ok(outcome);
        };
        let heard = self.keywords.meaning(text, &self.record.state);
        if told.counts == Counts::All {
            let inbound = What::Inbound { message_id: message_id.clone(), text: String::new() };
            outcome.applied = self.enter(event, inbound, time)?;
        }
        let Some(Heard { meaning, keyword, locale }) = heard else { return Ok(outcome) };
        match meaning {
            Meaning::OptOut(scopes) => {
                // A denial is stamped as one, though its message is not: it keeps its own time where
                // the message that opens the window is clamped.
                let own = event.time.map(|own| denied_at(own, *told));
                let time = own.unwrap_or_else(|| self.stamp_of_denial());
                outcome.opted_out_scope = list(&scopes);
                for scope in scopes {
                    outcome.applied |= self.enter(event, by_keyword(scope, message_id), time)?;
                }
            }
            _ if told.counts == Counts::OptOut => {}
            // Without a time or a request id, a retry would be newer than an opt-out between.
            _ if event.time.is_none() && request_id.is_empty() => {}
            Meaning::OptIn(keyword) => {
                let mut evidence = keyword.evidence.clone();
                evidence.reference = by_message("keyword in message", message_id);
                let category = keyword.category.clone();
                outcome.opted_in_category = category.to_string();
                let what = What::OptIn { category, evidence, expire: None, pending: false };
                // The message itself is recorded even where the pair has no room for the scope.
                match self.enter(event, what, time) {
                    Ok(applied) => outcome.applied |= applied,
                    Err(_) => outcome.opted_in_category.clear(),
                }
            }
            Meaning::Confirm => {
                let confirmed = self.confirm(event, message_id, time)?;
                outcome.applied |= !confirmed.is_empty();
                outcome.opted_in_category = list(&confirmed);
            }
        }
        // A word that did nothing, such as a `yes` while nothing is pending, was none.
        if !(outcome.opted_out_scope.is_empty() && outcome.opted_in_category.is_empty()) {
            outcome.matched_keyword = keyword;
            outcome.keyword_locale = locale;
        }
        Ok(outcome)
    }

    /// Confirms every opt-in that was pending before the message, and had not lapsed by then.
    ///
    /// The confirmed opt-in counts as of the time of the pending one. So an opt-out between the two
    /// stands, whether it arrives before the confirmation or after it.
    fn confirm(
        &mut self,
        event: &Event,
        message_id: &str,
        time: Timestamp,
    ) -> Result<Vec<Scope>, Refusal> {
        let pending: Vec<(Scope, Pending)> = self
            .record
            .state
            .pending()
            .filter(|(_, pending)| {
                pending.time < time && pending.expire().is_none_or(|end| time < end)
            })
            .map(|(scope, pending)| (scope.clone(), pending))
            .collect();
        let mut confirmed = Vec::new();
        for (category, pending) in pending {
            let Some(mut evidence) = self.evidence_of(&category, pending) else { continue };
            evidence.confirmation = confirmed_by(message_id, time);
            let expire = pending.expire();
            let what = What::OptIn { category: category.clone(), evidence, expire, pending: false };
            if self.enter(event, what, pending.time)? {
                confirmed.push(category);
            }
        }
        Ok(confirmed)
    }

    /// What proves a pending opt-in: the words are in its own history entry.
    fn evidence_of(&self, scope: &Scope, said: Pending) -> Option<Evidence> {
        let before = self.known.map(|known| known.entries.as_slice()).unwrap_or_default();
        let before = before.iter().map(|(_, entry)| entry);
        before.chain(&self.history).rev().find_map(|entry| match &entry.what {
            What::OptIn { category, evidence, pending: true, .. }
                if category == scope && entry.time == said.time =>
            {
                Some(evidence.clone())
            }
            _ => None,
        })
    }

    /// Whether the pair's history has this already, be it as of a later moment that it counts as of.
    /// A denial that is given back is idempotent by that: it is moved behind a clamped event that
    /// allows at most once, and never behind one that came after the denial was recorded.
    fn has_entry(&self, what: &What, time: Timestamp) -> bool {
        let known = self.known.map(|known| known.entries.as_slice()).unwrap_or_default();
        let entries = known.iter().map(|(_, entry)| entry).chain(&self.history);
        let latest = time.plus(MAX_AHEAD);
        let mut entries = entries.filter(|entry| (time..=latest).contains(&entry.time));
        entries.any(|entry| entry.what == *what)
    }

    fn counts_as_of(&self, what: &What, time: Timestamp) -> Timestamp {
        counts_as_of(&self.record.state, what, time)
    }

    /// Applies one thing that happened, and enters it into the history if it changed anything.
    fn enter(&mut self, event: &Event, what: What, time: Timestamp) -> Result<bool, Refusal> {
        let time = self.counts_as_of(&what, time);
        self.enter_at(event, what, time)
    }

    /// The same, as of exactly this time.
    fn enter_at(&mut self, event: &Event, what: What, time: Timestamp) -> Result<bool, Refusal> {
        let mut changed = false;
        for effect in what.effects(time) {
            changed |= self.record.state.apply(&effect)?;
        }
        // Whether or not it is news here, it may be under the person's other ids.
        if what.is_denial() && !self.record.links.is_empty() {
            self.spread.denials.push(Denial { time, what: what.clone() });
        }
        if changed {
            self.note(event, what, time);
        }
        Ok(changed)
    }

    /// Enters what changed the record into the history.
    fn note(&mut self, event: &Event, what: What, time: Timestamp) {
        self.touched = true;
        self.history.push(HistoryEntry {
            user_id: event.user_id.clone(),
            business_id: event.business_id.clone(),
            time,
            record_time: self.clock,
            what,
        });
    }
}

/// When a denial counts as having happened: at the end of its second, where its time has no more.
fn denied_at(own: Timestamp, told: Told) -> Timestamp {
    if told.whole_seconds { own.plus(REST_OF_SECOND) } else { own }
}

/// The time that what happened at `time` counts as of, where it is recorded over this state.
pub(super) fn counts_as_of(state: &State, what: &What, time: Timestamp) -> Timestamp {
    let effects = what.effects(time);
    effects.iter().map(|effect| state.counts_as_of(effect, time)).max().unwrap_or(time)
}

/// By what a repeat of a request is known.
struct Identity {
    id: [u8; 16],
    what: [u8; 16],
}

impl Identity {
    /// None where the caller gave no id: then an event is known by its time alone.
    fn of(event: &Event, request_id: &str, secret: &KeySecret) -> Option<Self> {
        if request_id.is_empty() {
            return None;
        }
        let mut named = b"request\0".to_vec();
        named.extend_from_slice(request_id.as_bytes());
        let what = secret.digest(&event.what.fingerprint());
        Some(Self { id: secret.digest(&named), what })
    }
}

fn reused() -> Refusal {
    let why = "was used for a different event of this user before; give every event its own";
    Refusal::Invalid(vec![Violation::new("request_id", why)])
}

fn list(scopes: &[Scope]) -> String {
    scopes.iter().map(Scope::to_string).collect::<Vec<_>>().join(", ")
}

/// The opt-out that a message's text means.
fn by_keyword(scope: Scope, message_id: &str) -> What {
    What::OptOut { scope, reference: by_message("keyword in message", message_id) }
}

/// Names the message that confirmed an opt-in, and when that was: the opt-in itself counts as of when
/// it was asked for.
fn confirmed_by(message_id: &str, time: Timestamp) -> String {
    let at = humantime::format_rfc3339_millis(UNIX_EPOCH + time.since(Timestamp::MIN));
    let mut said = by_message("message", message_id);
    let at = format!(" at {at}");
    said.truncate(said.floor_char_boundary(MAX_REFERENCE_BYTES.saturating_sub(at.len())));
    said + &at
}

/// Names a message, within the bounds of what may be recorded.
fn by_message(what: &str, message_id: &str) -> String {
    let mut said = format!("{what} {message_id}").trim_end().to_owned();
    said.truncate(said.floor_char_boundary(MAX_REFERENCE_BYTES));
    said
}
