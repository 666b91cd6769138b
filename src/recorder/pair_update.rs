//! The update of one pair: the rules, applied to its record event by event. Pure: no clock, no I/O.

use std::time::Duration;

use super::Refusal;
use super::keyword_match::keyword_match;
use super::linked_ids::{Denial, TooManyIds, known_link};
use super::message_references::{by_keyword, by_message, confirmed_by};
use super::request_identity::{RequestIdentity, reused};
use super::template_lift::with_lift;
use consentd_core::Violation;
use consentd_core::claims::Claim;
use consentd_core::event::{Event, Evidence, MAX_AHEAD, OTHER_USER_ID, What};
use consentd_core::id::{Key, KeySecret};
use consentd_core::keyword::{KeywordMatch, Keywords, Meaning};
use consentd_core::record::{HistoryEntry, Link, Outcome, Record, Request};
use consentd_core::scope::Scope;
use consentd_core::state::{Pending, State};
use consentd_core::submission::{InboundEffect, SourcePrecision, Submission};
use consentd_core::time::Timestamp;
use consentd_ledger::{Change, History, StoredRecord, Update};

/// A pair's record, to which events are applied one by one.
pub(super) struct PairUpdate<'a> {
    stored: &'a StoredRecord,
    record: Record,
    /// The new history entries.
    history: Vec<HistoryEntry>,
    clock: Timestamp,
    /// The clock that denials without a time go by: never before `clock`.
    pub(super) denial_clock: Timestamp,
    keywords: &'a Keywords,
    /// The pair's history in the ledger, if it was read.
    known: Option<&'a History>,
    /// Whether the record was changed, be it only by a remembered request id.
    is_changed: bool,
    linked: LinkedState,
    propagation: Propagation,
}

/// What an update needs to know of the person's other ids.
#[derive(Clone, Copy, Default)]
pub(super) struct LinkedState {
    /// The time of the latest event under any of them.
    pub(super) latest: Option<Timestamp>,
    /// Whether the person has the maximum number of ids, or would have more with this link.
    pub(super) is_full: bool,
}

/// What must hold under all ids of a person before the events are acknowledged.
#[derive(Clone, Debug, Default)]
pub(super) struct Propagation {
    pub(super) links: Vec<Link>,
    pub(super) denials: Vec<Denial>,
    /// For each of the pair's events, in order, whether it waits for the propagation.
    pub(super) waits: Vec<bool>,
}

/// What a denial adds to its time if the source states times in whole seconds: the denial then counts
/// as of the last millisecond of its second.
const REST_OF_SECOND: Duration = Duration::from_millis(999);

/// The time as of which an event counts.
struct ResolvedTime {
    time: Timestamp,
    /// The event's own time, if that was ahead of the ledger's clock when the event was first
    /// recorded, so that the event was clamped.
    claimed: Option<Timestamp>,
}

impl ResolvedTime {
    /// An event that was not clamped.
    fn at(time: Timestamp) -> Self {
        Self { time, claimed: None }
    }
}

impl<'a> PairUpdate<'a> {
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
            denial_clock: clock,
            keywords,
            known,
            is_changed: false,
            linked: LinkedState::default(),
            propagation: Propagation::default(),
        }
    }

    /// The update of a pair whose user has linked ids, or gets them by its events.
    pub(super) fn with_linked(self, linked: LinkedState) -> Self {
        Self { linked, ..self }
    }

    /// The record after the events so far.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// What the events so far must propagate.
    pub(super) fn propagation(&self) -> &Propagation {
        &self.propagation
    }

    /// Applies one event. A revision of 0 in its outcome stands for the revision at which the update
    /// will be appended.
    pub(super) fn add(
        &mut self,
        submission: &Submission,
        secret: &KeySecret,
    ) -> Result<Outcome, Refusal> {
        let before = (self.propagation.links.len(), self.propagation.denials.len());
        let outcome = self.add_to_pair(submission, secret);
        let after = (self.propagation.links.len(), self.propagation.denials.len());
        // A repeated denial may have no entry in `denials`, such as one from before there were links.
        // The propagation finds it in the record.
        let denies = match &submission.event.what {
            What::Inbound { .. } => outcome.as_ref().is_ok_and(|o| !o.opted_out_scope.is_empty()),
            what => what.is_denial(),
        };
        let waits = before != after || (denies && !self.record.links.is_empty());
        self.propagation.waits.push(outcome.is_ok() && waits);
        outcome
    }

    fn add_to_pair(
        &mut self,
        submission: &Submission,
        secret: &KeySecret,
    ) -> Result<Outcome, Refusal> {
        let Submission { event, request_id, .. } = submission;
        if self.is_erased(event) || !self.is_linked_as_required(submission, secret) {
            return Ok(Outcome::default());
        }
        let request = RequestIdentity::of(event, request_id, secret);
        if let Some(request) = &request
            && let Some(known) = self.record.request(&request.id).cloned()
        {
            if request.what != known.what {
                return Err(reused());
            }
            self.propagate_again(event, &known, secret);
            return Ok(known.outcome);
        }
        let resolved = self.resolve_time(submission)?;
        if let Some(claimed) = resolved.claimed {
            let claim = Claim { from: claimed, until: claimed, moment: resolved.time };
            self.record.state.clamped.insert(resolved.time);
            self.is_changed |= self.record.state.claims.add(claim);
        }
        let denied = self.propagation.denials.len();
        let outcome = match &event.what {
            What::Link { other_user_id, moved } => {
                self.link(event, other_user_id, *moved, resolved.time, secret)?
            }
            _ => self.apply(submission, &resolved)?,
        };
        if let Some(RequestIdentity { id, what }) = request {
            let time = self.propagation.denials.get(denied).map(|denial| denial.time);
            self.record.remember(Request { id, what, outcome: outcome.clone(), time });
            self.is_changed = true;
        }
        Ok(outcome)
    }

    /// Links the pair's id to another one. The propagation adds the reverse link.
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
            self.push_history(event, what, time);
        }
        // The record keeps the time of the first link; a repeat is propagated as of its own time.
        self.propagation.links.push(Link { time: link.time.max(time), ..link });
        Ok(Outcome { applied, ..Outcome::default() })
    }

    /// Propagates what a repeated request said: the first attempt may have failed before the
    /// propagation was complete.
    fn propagate_again(&mut self, event: &Event, known: &Request, secret: &KeySecret) {
        if let What::Link { other_user_id, .. } = &event.what {
            let business_id = &event.business_id;
            let other = secret.read(other_user_id, business_id).ok();
            let link = other.and_then(|key| known_link(&self.record, secret, business_id, key));
            self.propagation.links.extend(link);
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
        self.propagation.denials.extend(whats.into_iter().map(|what| Denial { time, what }));
    }

    /// Whether an event happened before the pair was erased. Such an event leaves no trace: a webhook
    /// may be repeated for days, and an import may be years old.
    fn is_erased(&self, event: &Event) -> bool {
        let erased = self.record.erased.as_ref().map(|erased| erased.time);
        erased.is_some_and(|erased| event.time.is_some_and(|time| time <= erased))
    }

    /// Whether the pair's id is linked to the one that the event requires, if it requires one. A link
    /// may have been accepted without an effect, as one from before an erasure is.
    fn is_linked_as_required(&self, submission: &Submission, secret: &KeySecret) -> bool {
        let business_id = &submission.event.business_id;
        submission.only_if_linked_to.as_ref().is_none_or(|other| {
            let other = secret.read(other, business_id).ok();
            other.is_some_and(|key| known_link(&self.record, secret, business_id, key).is_some())
        })
    }

    /// The change to append. It writes nothing, and only compares, if the record is unchanged. `last`
    /// is the pair's last event; its ids are those of the log entry.
    pub(super) fn into_change(mut self, key: Key, last: Option<&Submission>) -> Change {
        self.record.state.forget_clamped();
        let last = last.filter(|_| self.is_changed);
        let update = last.map(|last| Update {
            user_id: last.event.user_id.clone(),
            business_id: last.event.business_id.clone(),
            record: self.record,
            history: self.history,
            record_time: self.clock,
        });
        Change { key, base: self.stored.version, update }
    }

    /// Resolves the time as of which an event counts: its own, or the clock of the pair's partition if it has none;
    /// a denial that has none goes by the latest clock of the ledger's partitions.
    ///
    /// If the event's time is ahead of the ledger's clock, one of the two is wrong. An allow is clamped
    /// to the ledger's clock. A denial keeps its time, so that no event from before the denial ever
    /// counts as later.
    fn resolve_time(&self, submission: &Submission) -> Result<ResolvedTime, Refusal> {
        let Submission { event, request_id, precision, is_replay, .. } = submission;
        let now = self.clock;
        let refuse =
            |field: &str, why: String| Err(Refusal::Invalid(vec![Violation::new(field, why)]));
        if let What::OptIn { expire: Some(expire), .. } = &event.what
            && *expire <= event.time.unwrap_or(now)
        {
            let why = "must be later than the event's own time: an opt-in that expires before it is \
                       given allows nothing";
            return refuse("opt_in.expire_time", why.to_owned());
        }
        match event.time {
            // A replay is accepted whatever the ledger's clock: after a failover, the new primary's
            // clock may be behind.
            Some(time) if time > now.plus(MAX_AHEAD) && !is_replay => {
                let ahead = Duration::from_secs(time.since(now).as_secs());
                let ahead = humantime::format_duration(ahead);
                refuse(
                    "event_time",
                    format!(
                        "{ahead} ahead of the ledger's clock, by which it is {}; at most 5 minutes \
                         are taken: set the clock of the sender, or of the ledger's \
                         machine, whichever is wrong, or check the time zone and that the unit is \
                         seconds",
                        now.rfc3339_seconds()
                    ),
                )
            }
            Some(own) if event.what.is_clamped() => {
                // A repeat counts as of when it was first recorded, even after its own time has passed.
                let known = self.record.state.claims.moment_of(own);
                let time = known.unwrap_or(own).min(now);
                Ok(ResolvedTime { time, claimed: (time < own).then_some(own) })
            }
            Some(own) if event.what.is_denial() => Ok(ResolvedTime::at(denied_at(own, *precision))),
            Some(own) => Ok(ResolvedTime::at(own)),
            None if event.what.lifts() && request_id.is_empty() => refuse(
                "request_id",
                "required for what lifts a denial (an opt-in, a resume, a lifted suppression) and \
                 has no event_time: a retry would otherwise be newer than a denial that came \
                 between"
                    .to_owned(),
            ),
            None if matches!(event.what, What::Link { .. }) => {
                Ok(ResolvedTime::at(self.assign_link_time()))
            }
            None if event.what.is_denial() => Ok(ResolvedTime::at(self.assign_denial_time())),
            None => Ok(ResolvedTime::at(self.clock)),
        }
    }

    /// The time of the latest event under any of the person's ids.
    fn latest(&self) -> Option<Timestamp> {
        self.record.state.latest().max(self.linked.latest)
    }

    /// The time of a denial that has none: the latest clock of the ledger's partitions, because an allow under
    /// another id of the person may have counted as of that, but no earlier than the latest event, whose
    /// sender's clock may have been ahead.
    fn assign_denial_time(&self) -> Timestamp {
        self.latest().map_or(self.denial_clock, |latest| latest.max(self.denial_clock))
    }

    /// The time of a link that has none: the ledger's clock, but later than the latest event under
    /// either id. An erased id accepts only links from after its tombstone, and a fast clock may have
    /// put that ahead.
    fn assign_link_time(&self) -> Timestamp {
        let next = self.latest().map(|latest| latest.plus(Duration::from_millis(1)));
        next.map_or(self.clock, |next| next.max(self.clock))
    }

    fn apply(
        &mut self,
        submission: &Submission,
        resolved: &ResolvedTime,
    ) -> Result<Outcome, Refusal> {
        let Submission { event, request_id, precision, inbound_effect, is_replay, .. } = submission;
        let time = resolved.time;
        let mut outcome = Outcome::default();
        let What::Inbound { message_id, text } = &event.what else {
            let (what, claims) = with_lift(submission, &mut self.record.state, time, self.clock);
            self.is_changed |= claims;
            let is_repeat = *is_replay && self.has_entry(&what, time);
            let time = if is_repeat { time } else { self.counts_as_of(&what, time) };
            outcome.applied = self.apply_effects_at(event, what, time)?;
            return Ok(outcome);
        };
        let matched = keyword_match(self.keywords, submission, text, &self.record.state);
        if *inbound_effect == InboundEffect::WindowAndKeywords {
            let inbound = What::Inbound { message_id: message_id.clone(), text: String::new() };
            outcome.applied = self.apply_effects(event, inbound, time)?;
        }
        let Some(KeywordMatch { meaning, keyword, locale }) = matched else { return Ok(outcome) };
        match meaning {
            Meaning::OptOut(scopes) => {
                // The message may be clamped as an allow, because it opens the window. The denial in
                // it keeps its own time.
                let own = event.time.map(|own| denied_at(own, *precision));
                let time = own.unwrap_or_else(|| self.assign_denial_time());
                outcome.opted_out_scope = list(&scopes);
                for scope in scopes {
                    outcome.applied |=
                        self.apply_effects(event, by_keyword(scope, message_id), time)?;
                }
            }
            _ if *inbound_effect == InboundEffect::OptOutKeywords => {}
            // Without a time or a request id, a retry would count as later than an opt-out between the
            // two attempts.
            _ if event.time.is_none() && request_id.is_empty() => {}
            Meaning::OptIn(keyword) => {
                let mut evidence = keyword.evidence.clone();
                evidence.reference = by_message("keyword in message", message_id);
                let category = keyword.category.clone();
                outcome.opted_in_category = category.to_string();
                let what = What::OptIn { category, evidence, expire: None, pending: false };
                // The message itself is recorded even if the pair has no room for the scope.
                match self.apply_effects(event, what, time) {
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
        // A keyword without effect, such as `yes` while nothing is pending, is not reported.
        if !(outcome.opted_out_scope.is_empty() && outcome.opted_in_category.is_empty()) {
            outcome.matched_keyword = keyword;
            outcome.keyword_locale = locale;
        }
        Ok(outcome)
    }

    /// Confirms every opt-in that was pending before the message and had not expired by then. Returns
    /// their scopes.
    ///
    /// A confirmed opt-in counts as of the time of the pending one, so that an opt-out between the two
    /// wins, whether it arrives before the confirmation or after it.
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
            if self.apply_effects(event, what, pending.time)? {
                confirmed.push(category);
            }
        }
        Ok(confirmed)
    }

    /// The evidence of a pending opt-in, from its history entry.
    fn evidence_of(&self, scope: &Scope, opt_in: Pending) -> Option<Evidence> {
        let before = self.known.map(|known| known.entries.as_slice()).unwrap_or_default();
        let before = before.iter().map(|(_, entry)| entry);
        before.chain(&self.history).rev().find_map(|entry| match &entry.what {
            What::OptIn { category, evidence, pending: true, .. }
                if category == scope && entry.time == opt_in.time =>
            {
                Some(evidence.clone())
            }
            _ => None,
        })
    }

    /// Whether the pair's history has this event, perhaps as of a later time to which it was moved.
    /// This makes the replay of a denial idempotent: the denial is moved behind a clamped allow at most
    /// once, and never behind an allow that was recorded after the denial.
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

    /// Applies an event to the state as of the time that it counts as of, and adds it to the history
    /// if it changed the state. Returns whether it did.
    fn apply_effects(
        &mut self,
        event: &Event,
        what: What,
        time: Timestamp,
    ) -> Result<bool, Refusal> {
        let time = self.counts_as_of(&what, time);
        self.apply_effects_at(event, what, time)
    }

    /// Applies an event as [`apply_effects`](Self::apply_effects) does, but as of exactly this time.
    fn apply_effects_at(
        &mut self,
        event: &Event,
        what: What,
        time: Timestamp,
    ) -> Result<bool, Refusal> {
        let mut changed = false;
        for effect in what.effects(time) {
            changed |= self.record.state.apply(&effect)?;
        }
        // Even if the denial changes nothing here, the person's other ids may lack it.
        if what.is_denial() && !self.record.links.is_empty() {
            self.propagation.denials.push(Denial { time, what: what.clone() });
        }
        if changed {
            self.push_history(event, what, time);
        }
        Ok(changed)
    }

    /// Adds an entry to the history.
    fn push_history(&mut self, event: &Event, what: What, time: Timestamp) {
        self.is_changed = true;
        self.history.push(HistoryEntry {
            user_id: event.user_id.clone(),
            business_id: event.business_id.clone(),
            time,
            record_time: self.clock,
            what,
        });
    }
}

/// The time as of which a denial counts: the end of its second if its source has only seconds.
fn denied_at(own: Timestamp, precision: SourcePrecision) -> Timestamp {
    match precision {
        SourcePrecision::Milliseconds => own,
        SourcePrecision::Seconds => own.plus(REST_OF_SECOND),
    }
}

/// The time as of which an event of `time` counts if it is recorded on top of this state: see
/// [`State::counts_as_of`].
pub(super) fn counts_as_of(state: &State, what: &What, time: Timestamp) -> Timestamp {
    let effects = what.effects(time);
    effects.iter().map(|effect| state.counts_as_of(effect, time)).max().unwrap_or(time)
}

fn list(scopes: &[Scope]) -> String {
    scopes.iter().map(Scope::to_string).collect::<Vec<_>>().join(", ")
}
