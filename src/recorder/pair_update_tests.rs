use super::Refusal;
use super::pair_update::PairUpdate;
use consentd_core::event::{
    Event, Evidence, MAX_REFERENCE_BYTES, Method, PlatformNames, StatementNames, What,
};
use consentd_core::id::KeySecret;
use consentd_core::keyword::{KeywordLists, Keywords};
use consentd_core::record::Outcome;
use consentd_core::scope::Scope;
use consentd_core::state::{Choice, ChoiceKind, State};
use consentd_core::submission::{InboundEffect, SourcePrecision, Submission};
use consentd_core::time::Timestamp;
use consentd_ledger::{Change, EntryPosition, History, StoredRecord, Update, Version};

pub(super) const NOW: i64 = 1_750_000_000_000;
pub(super) const MINUTE: i64 = 60_000;

pub(super) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap()
}

/// A ledger of one pair in memory, to which updates are appended without a recorder.
pub(super) struct Pair {
    stored: StoredRecord,
    history: History,
    keywords: Keywords,
}

impl Pair {
    pub(super) fn new() -> Self {
        Self {
            stored: StoredRecord::default(),
            history: History::default(),
            keywords: Keywords::new(KeywordLists::default()),
        }
    }

    /// Records one event by the ledger's clock; the ledger assigns the next revision.
    pub(super) fn record(&mut self, now: i64, submission: &Submission) -> Result<Outcome, Refusal> {
        let secret = KeySecret::new(&[3; 16]);
        let mut pair_update =
            PairUpdate::new(&self.stored, at(now), &self.keywords, Some(&self.history));
        let mut outcome = pair_update.add(submission, &secret)?;
        let key = consentd_core::id::Key::from_bytes([0; 16]);
        let Change { base, update, .. } = pair_update.into_change(key, Some(submission));
        assert_eq!(base, self.stored.version);
        if let Some(Update { record, history, .. }) = update {
            let revision = base.revision + 1;
            self.stored = StoredRecord { version: Version { revision, head_prefix: 0 }, record };
            let place = EntryPosition { revision, number: 0, head: [0; 32] };
            self.history.entries.extend(history.into_iter().map(|entry| (place, entry)));
        }
        if outcome.revision == 0 {
            outcome.revision = self.stored.version.revision;
        }
        Ok(outcome)
    }

    pub(super) fn state(&self) -> &State {
        &self.stored.record.state
    }

    pub(super) fn said_on(&self, scope: &str) -> Option<(Timestamp, ChoiceKind)> {
        let scope_state = self.state().scopes.get(&Scope::parse(scope).unwrap())?;
        scope_state.choice.map(|choice| (choice.time, choice.kind))
    }
}

pub(super) fn event(what: What, time: Option<i64>, request_id: &str) -> Submission {
    let event = Event { user_id: "1".into(), business_id: "acme".into(), time: time.map(at), what };
    Submission::new(event, request_id.into())
}

pub(super) fn opt_in(category: &str, pending: bool) -> What {
    let evidence = Evidence {
        method: Method::Website,
        statement: "Yes to WhatsApp from Acme".into(),
        business_name: "Acme".into(),
        locale: String::new(),
        reference: "form 7".into(),
        confirmation: String::new(),
        phone_number_id: None,
        statement_names: StatementNames::default(),
    };
    let category = Scope::parse(category).unwrap();
    What::OptIn { category, evidence, expire: None, pending }
}

pub(super) fn opt_out(scope: &str) -> What {
    What::OptOut { scope: Scope::parse(scope).unwrap(), reference: String::new() }
}

/// The caller did not hear that it was recorded, and the person was erased meanwhile.
#[test]
fn event_without_a_time_that_is_repeated_over_a_tombstone_leaves_no_trace() {
    let mut pair = Pair::new();
    let events = [
        event(opt_out("*"), None, "call 1"),
        event(inbound("stop"), None, "call 2"),
        event(opt_in("marketing", false), None, "call 3"),
    ];
    for event in &events {
        assert!(pair.record(NOW, event).unwrap().applied);
    }
    pair.stored.record = pair.stored.record.tombstone(at(NOW + MINUTE));
    let erased = pair.stored.record.clone();
    pair.history.entries.clear();
    for event in &events {
        let outcome = pair.record(NOW + 2 * MINUTE, event).unwrap();
        assert!(!outcome.applied && outcome.opted_out_scope.is_empty(), "{outcome:?}");
    }
    assert!(pair.stored.record.is_tombstone() && pair.history.entries.is_empty());
    assert_eq!(pair.stored.record, erased);
    assert!(pair.record(NOW + 2 * MINUTE, &event(opt_out("*"), None, "call 4")).unwrap().applied);
    assert!(!pair.stored.record.is_tombstone());
}

pub(super) fn inbound(text: &str) -> What {
    What::Inbound { message_id: "wamid.1".into(), text: text.into() }
}

pub(super) fn refused_field(result: Result<Outcome, Refusal>) -> String {
    match result {
        Err(Refusal::Invalid(violations)) => violations[0].field.clone(),
        other => panic!("not refused for a field: {other:?}"),
    }
}

#[test]
fn allow_is_clamped_up_to_five_minutes_ahead_and_refused_beyond() {
    for (ahead, stamped) in [(0, Some(NOW)), (1, Some(NOW)), (5 * MINUTE, Some(NOW))] {
        let mut pair = Pair::new();
        pair.record(NOW, &event(inbound(""), Some(NOW + ahead), "")).unwrap();
        assert_eq!(pair.state().last_inbound, stamped.map(at), "{ahead} ms ahead");
    }
    let mut pair = Pair::new();
    let refused = pair.record(NOW, &event(inbound(""), Some(NOW + 5 * MINUTE + 1), ""));
    assert_eq!(refused_field(refused), "event_time");
    pair.record(NOW, &event(inbound(""), Some(NOW - 1), "")).unwrap();
    assert_eq!(pair.state().last_inbound, Some(at(NOW - 1)), "the past is taken as it is");
}

#[test]
fn denial_without_a_time_is_never_earlier_than_a_recorded_event() {
    // The ledger's clock was set back by an hour after the opt-in.
    let behind = NOW - 60 * MINUTE;
    for what in [opt_out("marketing"), inbound("STOP")] {
        let mut pair = Pair::new();
        pair.record(NOW, &event(opt_in("marketing", false), Some(NOW), "")).unwrap();
        let outcome = pair.record(behind, &event(what, None, "")).unwrap();
        assert!(outcome.applied);
        let standing = pair.state().standing_on(&Scope::parse("marketing").unwrap());
        assert!(
            standing.choice.is_some_and(|choice| choice.is_opt_out() && choice.time == at(NOW))
        );
    }
    let mut pair = Pair::new();
    pair.record(NOW, &event(inbound(""), Some(NOW), "")).unwrap();
    let denial = What::Suppression { suppressed: true, reference: String::new() };
    pair.record(behind, &event(denial, None, "")).unwrap();
    assert_eq!(pair.state().suppression, Some((at(NOW), true)));
    let grant = What::Suppression { suppressed: false, reference: String::new() };
    let lifted = pair.record(behind, &event(grant, None, "lift")).unwrap();
    assert!(!lifted.applied, "what allows is stamped by the clock alone");
}

#[test]
fn event_that_lifts_a_denial_without_a_time_needs_a_request_id() {
    let suppression = |suppressed| What::Suppression { suppressed, reference: String::new() };
    let mut pair = Pair::new();
    for denial in [What::Platform { stopped: true, phone_number_id: None }, suppression(true)] {
        assert!(pair.record(NOW, &event(denial, None, "")).unwrap().applied);
    }
    let lifting = [
        opt_in("marketing", false),
        What::Platform { stopped: false, phone_number_id: None },
        suppression(false),
    ];
    for (what, id) in lifting.into_iter().zip(["a", "b", "c"]) {
        let refused = pair.record(NOW + 1, &event(what.clone(), None, ""));
        assert_eq!(refused_field(refused), "request_id", "{what:?}");
        assert!(pair.record(NOW + 1, &event(what, None, id)).unwrap().applied);
    }
}

#[test]
fn repeat_has_the_same_outcome_and_changes_nothing() {
    let mut pair = Pair::new();
    let given = event(opt_in("marketing", false), None, "a");
    let first = pair.record(NOW, &given).unwrap();
    pair.record(NOW + 1, &event(opt_out("*"), None, "b")).unwrap();
    let before = pair.stored.clone();
    assert_eq!(pair.record(NOW + 2, &given).unwrap(), first);
    assert_eq!(pair.stored, before);
    assert_eq!((first.revision, before.version.revision), (1, 2));
    // The request of an event that changed nothing is remembered too: by now it might change something.
    let late = event(inbound(""), Some(NOW - MINUTE), "c");
    pair.record(NOW + 3, &event(inbound(""), Some(NOW), "")).unwrap();
    let nothing = pair.record(NOW + 3, &late).unwrap();
    assert!(!nothing.applied);
    assert_eq!(pair.record(NOW + 4, &late).unwrap(), nothing);
    // The keyword is remembered too.
    let stop = event(inbound("ARRETEZ !"), None, "d");
    let stopped = pair.record(NOW + 5, &stop).unwrap();
    assert_eq!((&*stopped.matched_keyword, &*stopped.keyword_locale), ("arrêtez", "fr"));
    assert_eq!(pair.record(NOW + 6, &stop).unwrap(), stopped);
}

#[test]
fn request_id_of_another_event_is_refused() {
    let mut pair = Pair::new();
    pair.record(NOW, &event(opt_in("marketing", false), None, "a")).unwrap();
    let stop = pair.record(NOW + 1, &event(opt_out("*"), None, "a"));
    assert_eq!(refused_field(stop), "request_id", "a STOP must not be swallowed as a repeat");
    // A retry may have another time: it is the same event.
    let again = event(opt_in("marketing", false), Some(NOW), "a");
    assert_eq!(pair.record(NOW + 2, &again).unwrap().revision, 1);
}

#[test]
fn ninth_request_makes_the_pair_forget_the_first() {
    let mut pair = Pair::new();
    for n in 0..9_i64 {
        pair.record(NOW + n, &event(inbound(&n.to_string()), None, &n.to_string())).unwrap();
    }
    assert_eq!(pair.stored.record.requests.len(), 8);
    let repeat = |pair: &mut Pair, n: i64| {
        let event = event(inbound(&n.to_string()), None, &n.to_string());
        pair.record(NOW + 100, &event).unwrap().revision
    };
    assert_eq!(repeat(&mut pair, 1), 2);
    assert_eq!(repeat(&mut pair, 0), 10, "the oldest was forgotten, and is new again");
}

#[test]
fn retry_of_a_clamped_event_lifts_no_denial() {
    // A client whose clock is two minutes ahead, a lost response, a STOP, and the retry before and after
    // its time.
    for retried_at in [NOW + 10, NOW + 3 * MINUTE] {
        let mut pair = Pair::new();
        let given = event(opt_in("marketing", false), Some(NOW + 2 * MINUTE), "");
        assert!(pair.record(NOW, &given).unwrap().applied);
        pair.record(NOW + 5, &event(opt_out("*"), None, "")).unwrap();
        let before = pair.stored.clone();
        pair.record(retried_at, &given).unwrap();
        assert_eq!(pair.stored, before);
    }
}

#[test]
fn keyword_has_its_own_history_entry() {
    let mut pair = Pair::new();
    let outcome = pair.record(NOW, &event(inbound("Stop."), None, "")).unwrap();
    assert_eq!((outcome.applied, outcome.opted_out_scope.as_str()), (true, "*"));
    assert_eq!((&*outcome.matched_keyword, &*outcome.keyword_locale), ("stop", ""));
    assert_eq!(pair.said_on("*"), Some((at(NOW), ChoiceKind::OptOut)));
    let whats: Vec<_> = pair.history.entries.iter().map(|(_, entry)| entry.what.clone()).collect();
    let reference = "keyword in message wamid.1".to_owned();
    assert_eq!(whats, [inbound(""), What::OptOut { scope: Scope::All, reference }]);
}

#[test]
fn stop_with_a_topic_opts_out_in_every_class_that_has_it() {
    let mut pair = Pair::new();
    for category in ["marketing.news", "utility.news", "utility"] {
        pair.record(NOW, &event(opt_in(category, false), Some(NOW), "")).unwrap();
    }
    let outcome = pair.record(NOW + 1, &event(inbound("stop news"), None, "")).unwrap();
    assert_eq!(outcome.opted_out_scope, "marketing.news, utility.news");
    assert!(matches!(pair.said_on("utility"), Some((_, ChoiceKind::OptIn { .. }))));
}

#[test]
fn yes_confirms_a_pending_opt_in_with_its_statement() {
    let mut pair = Pair::new();
    let yes = |time| event(inbound("Yes!"), time, "");
    let nothing = pair.record(NOW, &yes(Some(NOW))).unwrap();
    assert_eq!((&*nothing.opted_in_category, &*nothing.matched_keyword), ("", ""));
    pair.record(NOW, &event(opt_in("marketing", true), Some(NOW), "")).unwrap();
    let early = pair.record(NOW + 1, &yes(Some(NOW))).unwrap();
    assert_eq!(early.opted_in_category, "", "it was not pending yet");
    let untimed = pair.record(NOW + 2, &yes(None)).unwrap();
    assert_eq!(untimed.opted_in_category, "", "a retry could not be distinguished from a new yes");
    let outcome = pair.record(NOW + 3, &yes(Some(NOW + 3))).unwrap();
    assert_eq!(outcome.opted_in_category, "marketing");
    assert_eq!((&*outcome.matched_keyword, &*outcome.keyword_locale), ("yes", "en"));
    let confirmed = ChoiceKind::OptIn { expire: None, confirms: true };
    assert_eq!(pair.said_on("marketing"), Some((at(NOW), confirmed)), "as of when it was asked");
    let (_, last) = pair.history.entries.last().unwrap();
    let What::OptIn { evidence, pending: false, .. } = &last.what else { panic!("{last:?}") };
    assert_eq!(evidence.statement, "Yes to WhatsApp from Acme");
    let by = "message wamid.1 at 2025-06-15T15:06:40.003Z";
    assert_eq!((&*evidence.reference, &*evidence.confirmation), ("form 7", by));
}

#[test]
fn yes_does_not_confirm_an_expired_opt_in() {
    let mut pair = Pair::new();
    let mut pending = event(opt_in("marketing", true), Some(NOW), "");
    let What::OptIn { expire, .. } = &mut pending.event.what else { unreachable!() };
    *expire = Some(at(NOW + 5));
    pair.record(NOW, &pending).unwrap();
    let late = pair.record(NOW + 5, &event(inbound("yes"), Some(NOW + 5), "")).unwrap();
    assert_eq!(late.opted_in_category, "");
    let in_time = pair.record(NOW + 6, &event(inbound("yes"), Some(NOW + 4), "")).unwrap();
    assert_eq!(in_time.opted_in_category, "marketing");
}

#[test]
fn history_entry_of_a_keyword_is_valid_when_imported_again() {
    let mut pair = Pair::new();
    let mut stop = event(inbound("stop"), Some(NOW), "");
    let What::Inbound { message_id, .. } = &mut stop.event.what else { unreachable!() };
    *message_id = "é".repeat(MAX_REFERENCE_BYTES / 2);
    pair.record(NOW, &stop).unwrap();
    for (_, entry) in &pair.history.entries {
        assert_eq!(entry.what.violations(&PlatformNames::default()), [], "{:?}", entry.what);
    }
}

#[test]
fn expiry_before_the_opt_in_is_refused() {
    let mut pair = Pair::new();
    let mut given = event(opt_in("marketing", false), Some(NOW), "");
    let What::OptIn { expire, .. } = &mut given.event.what else { unreachable!() };
    *expire = Some(at(NOW));
    assert_eq!(refused_field(pair.record(NOW, &given)), "opt_in.expire_time");
}

/// A submission as of a webhook: its time has whole seconds.
pub(super) fn by_webhook(what: What, time: i64, effect: InboundEffect) -> Submission {
    let precision = SourcePrecision::Seconds;
    Submission { precision, inbound_effect: effect, ..event(what, Some(time), "") }
}

#[test]
fn denial_in_whole_seconds_counts_as_of_the_last_millisecond() {
    const SECOND: i64 = NOW / 1_000 * 1_000;
    let stop = || by_webhook(inbound("Stop."), SECOND, InboundEffect::WindowAndKeywords);
    // Within its own second, at its end, and long after it.
    for now in [SECOND, SECOND + 300, SECOND + 999, SECOND + 60 * MINUTE] {
        let mut pair = Pair::new();
        assert!(pair.record(now, &stop()).unwrap().applied);
        assert_eq!(pair.state().last_inbound, Some(at(SECOND)));
        assert_eq!(pair.said_on("*"), Some((at(SECOND + 999), ChoiceKind::OptOut)));
        let preference = |stopped| {
            by_webhook(
                What::Platform { stopped, phone_number_id: None },
                SECOND,
                InboundEffect::WindowAndKeywords,
            )
        };
        for stopped in [true, false] {
            pair.record(now, &preference(stopped)).unwrap();
            assert_eq!(pair.state().platform.at(None).latest, Some((at(SECOND + 999), true)));
        }
        // Repeats change nothing, in any order.
        let before = pair.stored.clone();
        for again in [preference(true), stop(), preference(false), stop()] {
            pair.record(now + 1, &again).unwrap();
            assert_eq!(pair.stored, before);
        }
        // An opt-in of the same second is not newer; one of the next is.
        let opt_in =
            |time| by_webhook(opt_in("marketing", false), time, InboundEffect::WindowAndKeywords);
        pair.record(now, &opt_in(SECOND)).unwrap();
        let standing = |pair: &Pair| pair.state().standing_on(&Scope::parse("marketing").unwrap());
        assert!(standing(&pair).choice.is_some_and(Choice::is_opt_out));
        pair.record(SECOND + 2_000, &opt_in(SECOND + 1_000)).unwrap();
        assert!(standing(&pair).choice.is_some_and(|choice| !choice.is_opt_out()));
    }
}

#[test]
fn denial_in_whole_seconds_ahead_of_the_ledger_keeps_its_second() {
    const SECOND: i64 = NOW / 1_000 * 1_000;
    let mut pair = Pair::new();
    let stop = by_webhook(inbound("stop"), SECOND + 1_000, InboundEffect::WindowAndKeywords);
    pair.record(SECOND + 500, &stop).unwrap();
    assert_eq!(pair.state().last_inbound, Some(at(SECOND + 500)), "the window is clamped");
    assert_eq!(pair.said_on("*"), Some((at(SECOND + 1_999), ChoiceKind::OptOut)));
    let before = pair.stored.clone();
    pair.record(SECOND + 5_000, &stop).unwrap();
    assert_eq!(pair.stored, before);
}

#[test]
fn message_that_opens_no_window_is_read_for_keywords() {
    let mut pair = Pair::new();
    pair.record(NOW, &event(opt_in("marketing", true), Some(NOW - MINUTE), "")).unwrap();
    for (text, effect) in [("hi", InboundEffect::Keywords), ("yes", InboundEffect::OptOutKeywords)]
    {
        assert!(!pair.record(NOW, &by_webhook(inbound(text), NOW, effect)).unwrap().applied);
    }
    let yes = pair.record(NOW, &by_webhook(inbound("yes"), NOW, InboundEffect::Keywords)).unwrap();
    assert_eq!(yes.opted_in_category, "marketing");
    let stop =
        pair.record(NOW, &by_webhook(inbound("stop"), NOW, InboundEffect::OptOutKeywords)).unwrap();
    assert_eq!(stop.opted_out_scope, "*");
    assert_eq!(pair.state().last_inbound, None);
}
