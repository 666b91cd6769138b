//! The events of one update.

use serde_json::Value;

use super::denial_at_arrival::{denial_at_arrival, denies};
use super::fields::{code, has, id, list, member, seconds, text, word};
use super::ids::{self, Contacts, UserIds};
use super::source::Source;
use super::texts::{Text, Texts};
use super::{CALL, CALL_PERMISSION, GROUP, Rules, SkipCause, UpdateKind};
use consentd_core::event::{
    CODE_PLATFORM_STOPPED, Event, Evidence, MAX_REFERENCE_BYTES, Method, StatementNames, What,
};
use consentd_core::id::PhoneNumberId;
use consentd_core::scope::{Class, Scope};
use consentd_core::submission::{InboundEffect, SourcePrecision, Submission};
use consentd_core::time::Timestamp;

/// The category of the preferences that are parsed.
const MARKETING: &str = "marketing_messages";

/// Known types of messages that open no window, unless the configuration says so.
const TYPES_WITHOUT_WINDOW: [&str; 6] =
    ["reaction", "edit", "revoke", "unsupported", "unknown", "request_welcome"];

/// The parts of a payload that enclose an update.
pub(super) struct UpdateContext<'a> {
    pub(super) rules: &'a Rules,
    pub(super) business: &'a str,
    /// The business's number that the update came to, if it is known.
    pub(super) number: Option<&'a PhoneNumberId>,
    /// The contacts beside the update's list.
    pub(super) contacts: &'a Contacts,
    /// Which part of the payload the update is in.
    pub(super) source: Source<'a>,
    /// A fault of the enclosing parts, if there is one: then only denials are taken from the update.
    pub(super) broken: Option<SkipCause>,
}

/// The events of an update.
pub(super) struct ParsedUpdate {
    pub(super) kind: UpdateKind,
    pub(super) submissions: Vec<Submission>,
    /// The fault of a malformed update, of which only denials were kept.
    pub(super) malformed: Option<SkipCause>,
}

type UpdateResult = Result<ParsedUpdate, (UpdateKind, SkipCause)>;

/// The events that were found in an update, and its fault if it is malformed.
type FoundSubmissions = Result<(Vec<Submission>, Option<SkipCause>), SkipCause>;

impl UpdateContext<'_> {
    /// Parses an item of a list of this kind.
    pub(super) fn parse(&self, kind: UpdateKind, item: &Value) -> UpdateResult {
        match kind {
            UpdateKind::Message => self.message(item),
            UpdateKind::Status => {
                self.keep_denials_if_malformed(UpdateKind::Status, self.failure(item))
            }
            UpdateKind::Call => self.call(item),
            _ => self.keep_denials_if_malformed(UpdateKind::Preference, self.preference(item)),
        }
    }

    /// Keeps all events of a well-formed update, and the denials of a malformed one.
    fn keep_denials_if_malformed(&self, kind: UpdateKind, found: FoundSubmissions) -> UpdateResult {
        let (submissions, malformed) = found.map_err(|cause| (kind, cause))?;
        let untimed = submissions.iter().any(|submission| submission.event.time.is_none());
        let malformed = malformed.or(self.broken).or(untimed.then_some(SkipCause::NoTime));
        let Some(cause) = malformed else {
            return Ok(ParsedUpdate { kind, submissions, malformed });
        };
        let denials = submissions.iter().filter_map(|submission| {
            let denial = denial_at_arrival(submission)?;
            if submission.event.time.is_none() {
                return Some(denial);
            }
            // A usable time is kept: it makes a repeat idempotent, without a request id.
            let event = submission.event.clone();
            Some(Submission { event, request_id: String::new(), ..denial })
        });
        let submissions: Vec<_> = denials.collect();
        if submissions.is_empty() {
            return Err((kind, cause));
        }
        Ok(ParsedUpdate { kind, submissions, malformed })
    }

    /// A message from a user.
    fn message(&self, message: &Value) -> UpdateResult {
        if !self.source.is_by_user(message) {
            return Err((UpdateKind::Message, SkipCause::NotByUser));
        }
        if word(message, "type").as_deref() == Some("system") {
            if !self.source.links() {
                return Err((UpdateKind::Message, SkipCause::NotByUser));
            }
            return self.system(message);
        }
        self.keep_denials_if_malformed(UpdateKind::Message, self.inbound(message))
    }

    fn inbound(&self, message: &Value) -> FoundSubmissions {
        let kind = word(message, "type");
        let kind = kind.as_deref();
        // Only the user's own conversation with this receiver opens a window and confirms an opt-in.
        // In a group, a yes does not confirm an opt-in that was asked for elsewhere.
        let is_elsewhere = (has(message, "group_id") && !self.rules.opens(GROUP))
            || !self.source.is_conversation(self.rules);
        let opens = kind.is_some_and(|kind| self.rules.opens(kind))
            && !is_elsewhere
            && (self.rules.opens(CALL_PERMISSION) || !is_call_permission(message));
        let Texts { said, opt_outs, has_more, malformed } = Texts::of(kind, message);
        if said.is_empty() && opt_outs.is_empty() {
            if let Some(cause) = malformed {
                return Err(cause);
            }
            if let Some(kind) = kind.filter(|_| !opens) {
                let is_known = self.rules.opens(kind)
                    || Rules::OPENS_WINDOW.contains(&kind)
                    || TYPES_WITHOUT_WINDOW.contains(&kind);
                return Err(if is_known {
                    SkipCause::OpensNoWindow
                } else {
                    SkipCause::UnknownType
                });
            }
        }
        let (user, time) = self.user_and_time(UpdateKind::Message, message)?;
        let message_id = message_id(message);
        // A message that opens no window may still be a STOP.
        let rest =
            if is_elsewhere { InboundEffect::OptOutKeywords } else { InboundEffect::Keywords };
        let inbound = |text: Option<Text<'_>>, effect| {
            let is_button = text.as_ref().is_some_and(|text| text.is_button);
            let text = text.map_or(String::new(), |text| text.text.into_owned());
            let what = What::Inbound { message_id: message_id.clone(), text };
            Submission { is_button, ..self.submission(&user, time, what, effect) }
        };
        let mut submissions = Vec::with_capacity(said.len() + opt_outs.len() + 1);
        let mut said = said.into_iter();
        if opens {
            submissions.push(inbound(said.next(), InboundEffect::WindowAndKeywords));
        }
        submissions.extend(said.map(|text| inbound(Some(text), rest)));
        submissions.extend(
            opt_outs.into_iter().map(|text| inbound(Some(text), InboundEffect::OptOutKeywords)),
        );
        submissions.extend(has_more.then(|| {
            let what = What::OptOut { scope: Scope::All, reference: unread_texts(&message_id) };
            self.submission(&user, time, what, InboundEffect::default())
        }));
        Ok((submissions, malformed))
    }

    /// A message by the platform about a user, such as a change of number.
    fn system(&self, message: &Value) -> UpdateResult {
        let system = message.get("system").filter(|system| has(system, "type"));
        let system = system.ok_or((UpdateKind::Other, SkipCause::BadShape))?;
        let kind = word(system, "type");
        if !matches!(kind.as_deref(), Some("user_changed_number" | "user_changed_user_id")) {
            return Err((UpdateKind::Other, SkipCause::UnknownType));
        }
        let time = seconds(message, "timestamp");
        let links = ids::changes(message, system).into_iter().map(|(old, other_user_id)| {
            let what = What::Link { other_user_id, moved: true };
            self.submission(&old, time, what, InboundEffect::WindowAndKeywords)
        });
        let links: Vec<_> = links.collect();
        let found = if links.is_empty() { Err(SkipCause::NoUser) } else { Ok((links, None)) };
        self.keep_denials_if_malformed(UpdateKind::NumberChange, found)
    }

    /// The links between the ids of an update's user. Without a time they count from their arrival,
    /// because a link is idempotent.
    pub(super) fn links(&self, kind: UpdateKind, item: &Value, ids: &UserIds) -> Vec<Submission> {
        let Some(id) = ids.id().filter(|_| self.source.links()) else { return Vec::new() };
        // In a group the recipient is the group.
        if kind == UpdateKind::Status && is_to_group(item) {
            return Vec::new();
        }
        let shared = match kind {
            UpdateKind::Message => ids::shared_numbers(item),
            _ => Vec::new(),
        };
        let time = seconds(item, "timestamp");
        let others = ids.others().chain(&shared).filter(|other| *other != id);
        let links = others.map(|other| {
            let what = What::Link { other_user_id: other.clone(), moved: false };
            self.submission(id, time, what, InboundEffect::WindowAndKeywords)
        });
        links.collect()
    }

    /// The user's ids in an item of a list of this kind.
    pub(super) fn ids(&self, kind: UpdateKind, item: &Value) -> UserIds {
        let fields = match kind {
            UpdateKind::Status => ids::RECIPIENT,
            UpdateKind::Preference => ids::CONTACT,
            UpdateKind::Call if has(item, "status") => ids::RECIPIENT,
            UpdateKind::Call
                if word(item, "direction").as_deref() == Some("business_initiated") =>
            {
                ids::CALLEE
            }
            _ => ids::SENDER,
        };
        let ids = UserIds::of(item, fields, self.contacts);
        match self.source {
            Source::History { thread: Some(thread), .. } => ids.or_of_thread(thread),
            _ => ids,
        }
    }

    /// A call that opens the window: one that a user has begun, answered or not, or one by the
    /// business that the user has accepted
    /// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/calling/pricing>,
    /// 2026-05-21). A call by SIP begins with `call_created` in place of `connect`
    /// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/calling>, sample).
    fn call(&self, call: &Value) -> UpdateResult {
        let opens = if has(call, "status") {
            let status = word(call, "status").ok_or((UpdateKind::Call, SkipCause::BadShape))?;
            status == "accepted" && word(call, "type").is_none_or(|kind| kind == "call")
        } else {
            match (word(call, "event").as_deref(), word(call, "direction").as_deref()) {
                (Some(event), Some(direction)) => {
                    matches!(event, "connect" | "call_created") && direction == "user_initiated"
                }
                _ => return Err((UpdateKind::Call, SkipCause::BadShape)),
            }
        };
        if !opens {
            return Err((UpdateKind::Call, SkipCause::NotACallByUser));
        }
        if !self.rules.opens(CALL) {
            return Err((UpdateKind::Call, SkipCause::OpensNoWindow));
        }
        let (user, time) = self
            .user_and_time(UpdateKind::Call, call)
            .map_err(|cause| (UpdateKind::Call, cause))?;
        let what = What::Inbound { message_id: message_id(call), text: String::new() };
        let submissions =
            vec![self.submission(&user, time, what, InboundEffect::WindowAndKeywords)];
        self.keep_denials_if_malformed(UpdateKind::Call, Ok((submissions, None)))
    }

    /// A user's preference about marketing.
    fn preference(&self, preference: &Value) -> FoundSubmissions {
        let what = preference_event(preference, self.rules, self.number)?;
        let (user, time) = self.user_and_time(UpdateKind::Preference, preference)?;
        let event = |what| self.submission(&user, time, what, InboundEffect::WindowAndKeywords);
        let also = self.resume_without_number(&what);
        Ok((std::iter::once(what).chain(also).map(event).collect(), None))
    }

    /// What a resume at the only number of a business says beside that: a stop whose number is unknown was
    /// at this one, too. So it was with versions before, which recorded no numbers.
    fn resume_without_number(&self, what: &What) -> Option<What> {
        let resumes = !what.is_denial();
        let own = self.rules.numbers.values().filter(|business| *business == self.business);
        let is_only = self.number.is_some() && own.count() == 1;
        (resumes && is_only).then_some(What::Platform { stopped: false, phone_number_id: None })
    }

    /// The status of a message to a user; only a failure is an event.
    fn failure(&self, status: &Value) -> FoundSubmissions {
        let name = word(status, "status");
        let failed = name.as_deref() == Some("failed");
        let errors = list(status, "errors");
        let codes = errors.as_ref().map_or(&[][..], |errors| *errors).iter();
        let mut codes: Vec<i32> = codes.filter_map(|error| code(error, "code")).collect();
        codes.dedup();
        // A code that denies means a failure, whatever the status is called.
        if !failed && !codes.iter().any(|code| denies(*code)) {
            return Err(if name.is_some() { SkipCause::NotFailed } else { SkipCause::BadShape });
        }
        if is_to_group(status) {
            return Err(SkipCause::ToGroup);
        }
        if codes.is_empty() {
            return Err(if errors.is_err() { SkipCause::BadShape } else { SkipCause::NoCode });
        }
        let malformed = (!failed).then_some(SkipCause::BadShape);
        let (user, time) = self.user_and_time(UpdateKind::Status, status)?;
        let failure = |code| {
            // Only a stop is of one of the business's numbers; the window is of them all.
            let number = self.number.filter(|_| code == CODE_PLATFORM_STOPPED);
            let what = What::Failure { code, phone_number_id: number.cloned() };
            self.submission(&user, time, what, InboundEffect::WindowAndKeywords)
        };
        Ok((codes.into_iter().map(failure).collect(), malformed))
    }

    /// The user of an update, and its time if that is usable.
    fn user_and_time(
        &self,
        kind: UpdateKind,
        update: &Value,
    ) -> Result<(String, Option<Timestamp>), SkipCause> {
        let ids = self.ids(kind, update);
        let user = ids.id().ok_or(SkipCause::NoUser)?;
        Ok((user.clone(), seconds(update, "timestamp")))
    }

    fn submission(
        &self,
        user: &str,
        time: Option<Timestamp>,
        what: What,
        effect: InboundEffect,
    ) -> Submission {
        let event =
            Event { user_id: user.to_owned(), business_id: self.business.to_owned(), time, what };
        // The event's time makes a repeat idempotent. A pair remembers only its last 8 request ids.
        let precision = SourcePrecision::Seconds;
        Submission { precision, inbound_effect: effect, ..Submission::new(event, String::new()) }
    }
}

/// Whether a message is a reply to a request for the permission to call. Such a reply also comes by
/// itself: `accept` if the user calls, which opens the window as a call, and `reject` after four calls
/// that were not answered
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/calling/user-call-permissions>,
/// 2026-06-26). That the user's own reply opens the window is not documented, so none does by default.
fn is_call_permission(message: &Value) -> bool {
    let body = member(message, "interactive");
    body.and_then(|body| word(body, "type")).as_deref() == Some(CALL_PERMISSION)
        || body.is_some_and(|body| has(body, CALL_PERMISSION))
}

/// Whether a status is of a message to a group.
fn is_to_group(status: &Value) -> bool {
    word(status, "recipient_type").as_deref() == Some("group")
}

/// A message's id; empty if it is too long to be recorded, so that a STOP is recorded without it.
fn message_id(message: &Value) -> String {
    let id = id(message, "id").filter(|id| id.len() <= MAX_REFERENCE_BYTES);
    id.unwrap_or_default()
}

/// The reference of the opt-out by a message with more texts than are read. It has the message's whole
/// id, by which a repeat is recognised, and is empty without one.
fn unread_texts(message_id: &str) -> String {
    let reference = format!("more answers than are read in message {message_id}");
    let fits = !message_id.is_empty() && reference.len() <= MAX_REFERENCE_BYTES;
    if fits { reference } else { message_id.to_owned() }
}

/// The event of a preference.
fn preference_event(
    preference: &Value,
    rules: &Rules,
    number: Option<&PhoneNumberId>,
) -> Result<What, SkipCause> {
    let phone_number_id = number.cloned();
    let is_marketing = word(preference, "category").map(|category| category == MARKETING);
    match (text(preference, "value").ok_or(SkipCause::BadShape)?, is_marketing) {
        (_, Some(false)) => Err(SkipCause::UnknownPreference),
        // Without a category it can only be about marketing: there is no other category.
        (stop, _) if stop.trim().eq_ignore_ascii_case("stop") => {
            Ok(What::Platform { stopped: true, phone_number_id })
        }
        ("signup", _) if !rules.takes_signup => Err(SkipCause::UnknownPreference),
        ("resume" | "signup", None) => Err(SkipCause::BadShape),
        ("resume", _) => Ok(What::Platform { stopped: false, phone_number_id }),
        ("signup", _) => {
            let evidence = Evidence {
                method: Method::WhatsappSignup,
                statement: String::new(),
                business_name: String::new(),
                locale: String::new(),
                reference: id(preference, "signup_id").ok_or(SkipCause::NoSignupId)?,
                confirmation: String::new(),
                phone_number_id,
                statement_names: StatementNames::default(),
            };
            let category = Scope::Class(Class::Marketing);
            Ok(What::OptIn { category, evidence, expire: None, pending: false })
        }
        _ => Err(SkipCause::UnknownPreference),
    }
}
