//! Converts between the contract's messages and the domain's types.

use std::time::Duration;

use super::fast_decode::RawCheckRequest;
use super::pb;
use crate::checker::{CheckResult, InvalidForm, TemplateName};
use crate::recorder::Refusal;
use consentd_core::Violation;
use consentd_core::decision::{Form, Reason};
use consentd_core::event::{Event, Evidence, Method, PlatformNames, StatementNames, What};
use consentd_core::expiring_opt_ins::ExpiringOptIn;
use consentd_core::failure::{self, HeldFailure};
use consentd_core::id::{Key, KeySecret, PhoneNumberId};
use consentd_core::record::{HistoryEntry, Outcome};
use consentd_core::scope::{Category, Class, Scope};
use consentd_core::submission::Submission;
use consentd_core::template::{self, Subject};
use consentd_core::time::Timestamp;
use consentd_ledger::{EntryPosition, History};

/// Why a message is not an event: it is malformed. Fields are seen from the event.
pub(super) struct NotAnEvent {
    /// What is wrong.
    pub(super) found: Vec<Violation>,
    /// What could be read, in which the rest of its faults can be found.
    pub(super) rest: Option<Box<What>>,
}

/// Parses the form of a message. `MESSAGE_FORM_UNSPECIFIED` stands for any.
pub(super) fn form(form: i32) -> Result<Form, InvalidForm> {
    match pb::MessageForm::try_from(form) {
        Ok(pb::MessageForm::Unspecified) => Ok(Form::Any),
        Ok(pb::MessageForm::FreeForm) => Ok(Form::FreeForm),
        Ok(pb::MessageForm::Template) => Ok(Form::Template),
        Err(_) => Err(InvalidForm {
            description: "unknown; one of MESSAGE_FORM_UNSPECIFIED, MESSAGE_FORM_FREE_FORM and \
                          MESSAGE_FORM_TEMPLATE",
        }),
    }
}

/// A pair's key in hexadecimal, as in the decision log.
pub(super) fn pair_key(key: Key) -> String {
    format!("{:032x}", u128::from_be_bytes(key.to_bytes()))
}

/// Converts a reason.
pub(super) const fn reason(reason: Reason) -> pb::Reason {
    match reason {
        Reason::OptedIn => pb::Reason::OptedIn,
        Reason::WindowOpen => pb::Reason::WindowOpen,
        Reason::ReplyAfterOptOut => pb::Reason::ReplyAfterOptOut,
        Reason::AllowedWhileStale => pb::Reason::AllowedWhileStale,
        Reason::NoConsent => pb::Reason::NoConsent,
        Reason::WindowClosed => pb::Reason::WindowClosed,
        Reason::OptedOut => pb::Reason::OptedOut,
        Reason::OptedOutAll => pb::Reason::OptedOutAll,
        Reason::PlatformStopped => pb::Reason::PlatformStopped,
        Reason::ConsentExpired => pb::Reason::ConsentExpired,
        Reason::ConsentPending => pb::Reason::ConsentPending,
        Reason::FrequencyCapped => pb::Reason::FrequencyCapped,
        Reason::Suppressed => pb::Reason::Suppressed,
        Reason::Stale => pb::Reason::Stale,
        Reason::PlatformRefused => pb::Reason::PlatformRefused,
        Reason::CountryBlocked => pb::Reason::CountryBlocked,
    }
}

/// Converts a time.
pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let millis = time.as_millis();
    prost_types::Timestamp {
        seconds: millis.div_euclid(1_000),
        // Below 10⁹ by construction.
        nanos: i32::try_from(millis.rem_euclid(1_000) * 1_000_000).unwrap_or(0),
    }
}

/// Converts a duration, at most 10,000 years.
pub(super) fn duration(span: Duration) -> prost_types::Duration {
    const MAX: Duration = Duration::from_hours(10_000 * 365 * 24);
    prost_types::Duration::try_from(span.min(MAX)).unwrap_or_default()
}

/// Converts a check's result.
pub(super) fn answer(asked: &RawCheckRequest<'_>, answer: &CheckResult) -> pb::CanSendResponse {
    let decision = &answer.decision;
    pb::CanSendResponse {
        allowed: decision.allowed(),
        reason: reason(decision.reason).into(),
        free_form_allowed: decision.free_form_allowed,
        template_allowed: decision.template_allowed,
        window_expire_time: decision.window_expire.map(timestamp),
        retry_time: decision.retry.map(timestamp),
        revision: answer.revision,
        staleness: Some(duration(answer.staleness)),
        category_used: match asked.template {
            None => String::new(),
            Some(_) => category_used(answer.stricter, asked.category),
        },
    }
}

/// The category that decided: the one asked for, or the stricter one that a template is known to be of.
pub(super) fn category_used(stricter: Option<Class>, asked: &str) -> String {
    match stricter {
        Some(class) => class.name().to_owned(),
        None => asked.to_owned(),
    }
}

/// Converts the name of a template.
pub(super) fn template_name(template: &pb::Template) -> TemplateName<'_> {
    TemplateName { name: &template.name, language: &template.language }
}

/// Converts a failure that still holds.
pub(super) fn held_failure(failure: &HeldFailure) -> pb::HeldFailure {
    let known = failure::of(failure.code);
    pb::HeldFailure {
        code: failure.code,
        meaning: known.map_or("", |known| known.meaning).to_owned(),
        again: known.map_or("", |known| known.again.text()).to_owned(),
        retry_time: failure.retry.map(timestamp),
    }
}

/// Converts an event to be recorded. Times are floored to the millisecond: at equal times a denial
/// wins.
pub(super) fn submission(
    event: Option<pb::ConsentEvent>,
    request_id: String,
) -> Result<Submission, NotAnEvent> {
    let Some(event) = event else {
        let why = "required: what happened, to whom and where";
        return Err(NotAnEvent { found: vec![Violation::new("", why)], rest: None });
    };
    let mut found = Vec::new();
    let time = moment("event_time", event.event_time, &mut found);
    let what = match event.what {
        None => {
            let why = "required: what happened, one of opt_in, opt_out, inbound_message, \
                       platform_preference, delivery_failure, suppression, link, \
                       template_category and template_restriction";
            found.push(Violation::new("what", why));
            None
        }
        Some(what) => what_of(what, &mut found),
    };
    let what = match what {
        Some(what) if found.is_empty() => what,
        rest => {
            let subject = rest.as_ref().map_or(Subject::Person, What::subject);
            let ids = id_violations(subject, &event.user_id, &event.business_id);
            let found = ids.into_iter().chain(found).collect();
            return Err(NotAnEvent { found, rest: rest.map(Box::new) });
        }
    };
    let (user_id, business_id) = (event.user_id, event.business_id);
    let user_id = match what.subject() {
        Subject::Person => user_id,
        Subject::Template | Subject::Account => template::canonical(&user_id).unwrap_or(user_id),
    };
    Ok(Submission::new(Event { user_id, business_id, time, what }, request_id))
}

/// What is wrong with the ids of an event.
fn id_violations(subject: Subject, user_id: &str, business_id: &str) -> Vec<Violation> {
    // The key is used for nothing else, so that its secret does not matter.
    let secret = KeySecret::new(&[0; 16]);
    secret.parse_subject(subject, user_id, business_id).err().unwrap_or_default()
}

/// Why no sidecar would record an event, so far as that can be said without the state of its pair. For
/// clients. `names` is what the sidecars are configured to demand of statements.
#[must_use]
pub fn event_error(event: pb::ConsentEvent, names: &PlatformNames) -> Option<pb::ItemError> {
    let found = match submission(Some(event), String::new()) {
        Ok(Submission { event: Event { user_id, business_id, what, .. }, .. }) => {
            let ids = id_violations(what.subject(), &user_id, &business_id);
            ids.into_iter().chain(what.violations(names)).collect()
        }
        Err(NotAnEvent { mut found, rest }) => {
            found.extend(rest.into_iter().flat_map(|what| what.violations(names)));
            found
        }
    };
    let refusal = (!found.is_empty()).then_some(Refusal::Invalid(found));
    refusal.as_ref().map(super::status::item_refusal)
}

fn what_of(what: pb::consent_event::What, found: &mut Vec<Violation>) -> Option<What> {
    use pb::consent_event::What as Pb;
    match what {
        Pb::OptIn(opt_in) => Some(what_of_opt_in(opt_in, found)),
        Pb::OptOut(opt_out) => match Scope::parse(&opt_out.scope) {
            Ok(scope) => Some(What::OptOut { scope, reference: opt_out.reference }),
            Err(violation) => {
                found.push(violation.within("opt_out"));
                None
            }
        },
        Pb::InboundMessage(inbound) => {
            Some(What::Inbound { message_id: inbound.message_id, text: inbound.text })
        }
        Pb::PlatformPreference(platform) => {
            let place = "platform_preference";
            let phone_number_id = phone_number_id(place, &platform.phone_number_id, found);
            Some(What::Platform { stopped: platform.marketing_stopped, phone_number_id })
        }
        Pb::DeliveryFailure(failure) => {
            let place = "delivery_failure";
            let phone_number_id = phone_number_id(place, &failure.phone_number_id, found);
            Some(What::Failure { code: failure.code, phone_number_id })
        }
        Pb::Suppression(suppression) => Some(What::Suppression {
            suppressed: suppression.suppressed,
            reference: suppression.reference,
        }),
        Pb::Link(link) => Some(What::Link { other_user_id: link.other_user_id, moved: link.moved }),
        Pb::TemplateCategory(template) => what_of_template(template, found),
        Pb::TemplateRestriction(account) => {
            let pb::TemplateRestriction { restricted, until_time, reference } = account;
            let until = moment("template_restriction.until_time", until_time, found);
            Some(What::TemplateRestriction { restricted, until, reference })
        }
    }
}

fn what_of_template(template: pb::TemplateCategory, found: &mut Vec<Violation>) -> Option<What> {
    let pb::TemplateCategory { category, lift_time, reference } = template;
    let lift = moment("template_category.lift_time", lift_time, found);
    match Category::parse(&category) {
        Ok(Category { class, topic: None }) => {
            Some(What::TemplateCategory { category: class, lift, reference })
        }
        Ok(_) => {
            let why = "must be a class alone: a template has no topic";
            found.push(Violation::new("template_category.category", why));
            None
        }
        Err(violation) => {
            found.push(violation.within("template_category"));
            None
        }
    }
}

fn what_of_opt_in(opt_in: pb::OptIn, found: &mut Vec<Violation>) -> What {
    let category = match Category::parse(&opt_in.category) {
        Ok(category) => Scope::from(category),
        Err(violation) => {
            found.push(violation.within("opt_in"));
            // A placeholder that is never recorded, because of the violation.
            Scope::All
        }
    };
    let expire = moment("opt_in.expire_time", opt_in.expire_time, found);
    // Missing evidence lacks every required field, and each is named.
    let evidence = opt_in.evidence.unwrap_or_default();
    let method = method_of(evidence.method).unwrap_or_else(|| {
        let why = "required: one of OPT_IN_METHOD_SMS, _WEBSITE, _WHATSAPP, _PHONE, _IN_PERSON and \
                   _WHATSAPP_SIGNUP";
        found.push(Violation::new("opt_in.evidence.method", why));
        // Also a placeholder: the most common method, by whose rules the other fields are checked.
        Method::Website
    });
    let evidence = Evidence {
        method,
        statement: evidence.statement,
        business_name: evidence.business_name,
        locale: evidence.locale,
        reference: evidence.reference,
        confirmation: evidence.confirmation,
        phone_number_id: phone_number_id("opt_in.evidence", &evidence.phone_number_id, found),
        statement_names: match evidence.statement_names {
            names if names == i32::from(pb::StatementNames::Business) => StatementNames::Business,
            _ => StatementNames::default(),
        },
    };
    What::OptIn { category, evidence, expire, pending: opt_in.pending }
}

/// The id of one of the business's numbers, in the message of this name. `None` if it is empty or wrong.
fn phone_number_id(place: &str, id: &str, found: &mut Vec<Violation>) -> Option<PhoneNumberId> {
    let parsed = (!id.is_empty()).then(|| PhoneNumberId::parse(id))?;
    parsed.map_err(|violation| found.push(violation.within(place))).ok()
}

pub(super) fn moment(
    field: &str,
    time: Option<prost_types::Timestamp>,
    found: &mut Vec<Violation>,
) -> Option<Timestamp> {
    let time = time?;
    let millis = (0..1_000_000_000)
        .contains(&time.nanos)
        .then(|| time.seconds.checked_mul(1_000))
        .flatten()
        .and_then(|millis| millis.checked_add(i64::from(time.nanos / 1_000_000)))
        .and_then(Timestamp::from_millis);
    if millis.is_none() {
        let why = "must be from 1970 to 9999: seconds (not milliseconds) since 1970, and nanos \
                   from 0 to 999,999,999";
        found.push(Violation::new(field, why));
    }
    millis
}

fn method_of(method: i32) -> Option<Method> {
    Some(match pb::OptInMethod::try_from(method).ok()? {
        pb::OptInMethod::Unspecified => return None,
        pb::OptInMethod::Sms => Method::Sms,
        pb::OptInMethod::Website => Method::Website,
        pb::OptInMethod::Whatsapp => Method::Whatsapp,
        pb::OptInMethod::Phone => Method::Phone,
        pb::OptInMethod::InPerson => Method::InPerson,
        pb::OptInMethod::WhatsappSignup => Method::WhatsappSignup,
    })
}

const fn method_on_wire(method: Method) -> pb::OptInMethod {
    match method {
        Method::Sms => pb::OptInMethod::Sms,
        Method::Website => pb::OptInMethod::Website,
        Method::Whatsapp => pb::OptInMethod::Whatsapp,
        Method::Phone => pb::OptInMethod::Phone,
        Method::InPerson => pb::OptInMethod::InPerson,
        Method::WhatsappSignup => pb::OptInMethod::WhatsappSignup,
    }
}

fn number_on_wire(number: Option<PhoneNumberId>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}

/// Where a pair is stopped: an empty id stands for a stop whose number is unknown.
pub(super) fn stopped_numbers(stops: &[Option<PhoneNumberId>]) -> Vec<String> {
    stops.iter().cloned().map(number_on_wire).collect()
}

/// Converts the outcome of an event.
pub(super) fn outcome(outcome: Outcome) -> pb::RecordEventResponse {
    pb::RecordEventResponse {
        revision: outcome.revision,
        applied: outcome.applied,
        opted_out_scope: outcome.opted_out_scope,
        opted_in_category: outcome.opted_in_category,
        matched_keyword: outcome.matched_keyword,
        keyword_locale: outcome.keyword_locale,
    }
}

/// Converts a history entry's event.
fn event(entry: HistoryEntry) -> pb::ConsentEvent {
    use pb::consent_event::What as Pb;
    let what = match entry.what {
        What::OptIn { category, evidence, expire, pending } => Pb::OptIn(pb::OptIn {
            category: category.to_string(),
            evidence: Some(pb::Evidence {
                method: method_on_wire(evidence.method).into(),
                statement: evidence.statement,
                business_name: evidence.business_name,
                locale: evidence.locale,
                reference: evidence.reference,
                confirmation: evidence.confirmation,
                phone_number_id: number_on_wire(evidence.phone_number_id),
                statement_names: match evidence.statement_names {
                    StatementNames::WhatsappAndBusiness => pb::StatementNames::Unspecified.into(),
                    StatementNames::Business => pb::StatementNames::Business.into(),
                },
            }),
            expire_time: expire.map(timestamp),
            pending,
        }),
        What::OptOut { scope, reference } => {
            Pb::OptOut(pb::OptOut { scope: scope.to_string(), reference })
        }
        What::Inbound { message_id, text: _ } => {
            Pb::InboundMessage(pb::InboundMessage { message_id, text: String::new() })
        }
        What::Platform { stopped, phone_number_id } => {
            Pb::PlatformPreference(pb::PlatformPreference {
                marketing_stopped: stopped,
                phone_number_id: number_on_wire(phone_number_id),
            })
        }
        What::Failure { code, phone_number_id } => Pb::DeliveryFailure(pb::DeliveryFailure {
            code,
            phone_number_id: number_on_wire(phone_number_id),
        }),
        What::Suppression { suppressed, reference } => {
            Pb::Suppression(pb::Suppression { suppressed, reference })
        }
        What::Link { other_user_id, moved } => Pb::Link(pb::Link { other_user_id, moved }),
        What::TemplateCategory { category, lift, reference } => {
            Pb::TemplateCategory(pb::TemplateCategory {
                category: category.name().to_owned(),
                lift_time: lift.map(timestamp),
                reference,
            })
        }
        What::TemplateRestriction { restricted, until, reference } => {
            let until_time = until.map(timestamp);
            Pb::TemplateRestriction(pb::TemplateRestriction { restricted, until_time, reference })
        }
    };
    pb::ConsentEvent {
        user_id: entry.user_id,
        business_id: entry.business_id,
        event_time: Some(timestamp(entry.time)),
        what: Some(what),
    }
}

/// Converts a listed event to the history entry that it stands for. For clients. `None` if this
/// version does not know the kind of event.
#[must_use]
pub fn entry(listed: pb::ListEventsResponse) -> Option<(EntryPosition, HistoryEntry)> {
    let pb::ListEventsResponse { event, record_time, revision, number, chain_head, chain: _ } =
        listed;
    let mut found = Vec::new();
    let record_time = moment("record_time", record_time, &mut found)?;
    let Event { user_id, business_id, time, what } = submission(event, String::new()).ok()?.event;
    let head = chain_head.try_into().ok()?;
    let entry = HistoryEntry { user_id, business_id, time: time?, record_time, what };
    Some((EntryPosition { revision, number, head }, entry))
}

/// Converts a history entry of a listing.
pub(super) fn listed(at: EntryPosition, entry: HistoryEntry) -> pb::ListEventsResponse {
    let record_time = Some(timestamp(entry.record_time));
    pb::ListEventsResponse {
        event: Some(event(entry)),
        record_time,
        revision: at.revision,
        number: at.number,
        chain_head: at.head.to_vec(),
        chain: None,
    }
}

/// Converts a history entry of an export.
pub(super) fn exported(at: EntryPosition, entry: HistoryEntry) -> pb::ExportEventsResponse {
    let record_time = Some(timestamp(entry.record_time));
    pb::ExportEventsResponse {
        event: Some(event(entry)),
        record_time,
        revision: at.revision,
        number: at.number,
        chain_head: at.head.to_vec(),
    }
}

/// Converts the result of verifying a history's chain.
pub(super) fn chain(history: &History) -> pb::ChainCheck {
    let record = &history.record;
    let state = &record.state;
    let failure = state.failure.map(|(time, _)| time);
    let last_failure = [state.window_closed, state.capped, failure].into_iter().flatten().max();
    pb::ChainCheck {
        intact: history.intact,
        head: record.chain.to_vec(),
        event_count: record.history_len,
        kept_count: u64::try_from(history.entries.len()).unwrap_or(u64::MAX),
        expired_count: history.expired,
        unreadable_count: history.unreadable,
        last_inbound_time: state.last_inbound.map(timestamp),
        last_failure_time: last_failure.map(timestamp),
    }
}

/// Converts an opt-in that expires or is pending, and the event that gave it.
pub(super) fn due(due: &ExpiringOptIn, by: HistoryEntry) -> pb::ListDueOptInsResponse {
    pb::ListDueOptInsResponse {
        user_id: by.user_id,
        business_id: by.business_id,
        category: due.scope.to_string(),
        event_time: Some(timestamp(due.time)),
        expire_time: due.expire.map(timestamp),
        pending: due.pending,
    }
}
