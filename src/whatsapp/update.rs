//! The events of one update.

use serde_json::Value;

use super::denial_at_arrival::{denial_at_arrival, denies};
use super::fields::{code, has, id, list, member, name, seconds, text, word};
use super::{CALL, GROUP, Rules, SkipCause, UpdateKind};
use consentd_core::event::{Event, Evidence, MAX_REFERENCE_BYTES, Method, What};
use consentd_core::scope::{Class, Scope};
use consentd_core::submission::{InboundEffect, SourcePrecision, Submission};
use consentd_core::time::Timestamp;

/// The category of the preferences that are parsed.
const MARKETING: &str = "marketing_messages";

/// Known types of messages that open no window, unless the configuration says so.
const TYPES_WITHOUT_WINDOW: [&str; 6] =
    ["reaction", "edit", "revoke", "unsupported", "unknown", "request_welcome"];

/// The surroundings of an update.
pub(super) struct UpdateContext<'a> {
    pub(super) rules: &'a Rules,
    pub(super) business: &'a str,
    /// The object that holds the update's list.
    pub(super) value: &'a Value,
    /// A fault of the surroundings, if there is one: then only denials are kept.
    pub(super) broken: Option<SkipCause>,
}

/// The events of an update.
pub(super) struct ParsedUpdate {
    pub(super) kind: UpdateKind,
    pub(super) submissions: Vec<Submission>,
    /// The fault of a malformed update, of which only denials were kept.
    pub(super) malformed: Option<SkipCause>,
}

/// The ids of one user, as far as an update has them.
struct UserIds {
    number: Option<String>,
    scoped: Option<String>,
}

impl UserIds {
    /// The id under which the events are recorded: the phone number, or else the scoped id.
    fn id(&self) -> Option<&String> {
        self.number.as_ref().or(self.scoped.as_ref())
    }
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
        if word(message, "type").as_deref() == Some("system") {
            return self.system(message);
        }
        self.keep_denials_if_malformed(UpdateKind::Message, self.inbound(message))
    }

    fn inbound(&self, message: &Value) -> FoundSubmissions {
        let kind = word(message, "type");
        let kind = kind.as_deref();
        let in_group = has(message, "group_id") && !self.rules.opens(GROUP);
        let opens = kind.is_some_and(|kind| self.rules.opens(kind)) && !in_group;
        let (texts, malformed) = match kind {
            Some(kind) => texts(kind, message),
            None => (texts_of_any(message), Some(SkipCause::BadShape)),
        };
        if texts.is_empty() {
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
        let (user, time) = self.user_and_time(message, "from", "from_user_id")?;
        let message_id = message_id(message);
        // A message that opens no window may still be a STOP. In a group, a yes does not confirm an
        // opt-in that was asked for elsewhere.
        let rest = if in_group { InboundEffect::OptOutKeywords } else { InboundEffect::Keywords };
        let inbound = |text: &str, effect| {
            let what = What::Inbound { message_id: message_id.clone(), text: text.to_owned() };
            self.submission(&user, time, what, effect)
        };
        let first = inbound(
            texts.first().copied().unwrap_or_default(),
            if opens { InboundEffect::WindowAndKeywords } else { rest },
        );
        let others = texts.iter().skip(1).map(|text| inbound(text, rest));
        Ok((std::iter::once(first).chain(others).collect(), malformed))
    }

    /// A message by the platform about a user, such as a change of number.
    fn system(&self, message: &Value) -> UpdateResult {
        let system = message.get("system").filter(|system| has(system, "type"));
        let system = system.ok_or((UpdateKind::Other, SkipCause::BadShape))?;
        if word(system, "type").as_deref() != Some("user_changed_number") {
            return Err((UpdateKind::Other, SkipCause::UnknownType));
        }
        let read = || {
            // The contact is ignored: it may have the old number or the new one.
            let old = name(message, "from").ok_or(SkipCause::NoUser)?;
            let new = name(system, "wa_id").or_else(|| name(system, "new_wa_id"));
            let other_user_id = new.ok_or(SkipCause::NoUser)?;
            let what = What::Link { other_user_id, moved: true };
            let time = seconds(message, "timestamp");
            Ok((vec![self.submission(&old, time, what, InboundEffect::WindowAndKeywords)], None))
        };
        self.keep_denials_if_malformed(UpdateKind::NumberChange, read())
    }

    /// The link between the two ids of an update, if it has both. Without a time it counts from its
    /// arrival, because a link is idempotent.
    pub(super) fn link(&self, kind: UpdateKind, item: &Value) -> Option<Submission> {
        let ids = match kind {
            UpdateKind::Status => self.user_ids(item, "recipient_id", "recipient_user_id"),
            UpdateKind::Preference => self.user_ids(item, "wa_id", "user_id"),
            _ => self.user_ids(item, "from", "from_user_id"),
        };
        let (number, other_user_id) = (ids.number?, ids.scoped?);
        let time = seconds(item, "timestamp");
        (number != other_user_id).then(|| {
            let what = What::Link { other_user_id, moved: false };
            self.submission(&number, time, what, InboundEffect::WindowAndKeywords)
        })
    }

    /// A call; only one that a user has begun opens the window.
    fn call(&self, call: &Value) -> UpdateResult {
        match (word(call, "event").as_deref(), word(call, "direction").as_deref()) {
            (Some("connect"), Some("user_initiated")) => {}
            (Some(_), Some(_)) => return Err((UpdateKind::Call, SkipCause::NotACallByUser)),
            _ => return Err((UpdateKind::Call, SkipCause::BadShape)),
        }
        if !self.rules.opens(CALL) {
            return Err((UpdateKind::Call, SkipCause::OpensNoWindow));
        }
        let (user, time) = self
            .user_and_time(call, "from", "from_user_id")
            .map_err(|cause| (UpdateKind::Call, cause))?;
        let what = What::Inbound { message_id: message_id(call), text: String::new() };
        let submissions =
            vec![self.submission(&user, time, what, InboundEffect::WindowAndKeywords)];
        self.keep_denials_if_malformed(UpdateKind::Call, Ok((submissions, None)))
    }

    /// A user's preference about marketing.
    fn preference(&self, preference: &Value) -> FoundSubmissions {
        let what = preference_event(preference)?;
        let (user, time) = self.user_and_time(preference, "wa_id", "user_id")?;
        Ok((vec![self.submission(&user, time, what, InboundEffect::WindowAndKeywords)], None))
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
        if word(status, "recipient_type").as_deref() == Some("group") {
            return Err(SkipCause::ToGroup);
        }
        if codes.is_empty() {
            return Err(if errors.is_err() { SkipCause::BadShape } else { SkipCause::NoCode });
        }
        let malformed = (!failed).then_some(SkipCause::BadShape);
        let (user, time) = self.user_and_time(status, "recipient_id", "recipient_user_id")?;
        let failure = |code| {
            self.submission(&user, time, What::Failure { code }, InboundEffect::WindowAndKeywords)
        };
        Ok((codes.into_iter().map(failure).collect(), malformed))
    }

    /// The user of an update, and its time if that is usable.
    fn user_and_time(
        &self,
        update: &Value,
        number: &str,
        scoped: &str,
    ) -> Result<(String, Option<Timestamp>), SkipCause> {
        let ids = self.user_ids(update, number, scoped);
        let user = ids.id().ok_or(SkipCause::NoUser)?;
        Ok((user.clone(), seconds(update, "timestamp")))
    }

    /// The user's ids, from the update itself and from the contact that it refers to.
    fn user_ids(&self, update: &Value, number: &str, scoped: &str) -> UserIds {
        let mut ids = UserIds { number: name(update, number), scoped: name(update, scoped) };
        let contacts = list(self.value, "contacts").unwrap_or_default();
        let is_meant = |contact: &&Value| {
            let same =
                |ours: &Option<String>, field| ours.is_some() && *ours == name(contact, field);
            same(&ids.number, "wa_id") || same(&ids.scoped, "user_id")
        };
        let meant = match contacts {
            // Without any id, the only contact must be the user.
            [only] if ids.id().is_none() => Some(only),
            contacts => contacts.iter().find(is_meant),
        };
        if let Some(contact) = meant {
            ids.number = ids.number.take().or_else(|| name(contact, "wa_id"));
            ids.scoped = ids.scoped.take().or_else(|| name(contact, "user_id"));
        }
        ids
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

/// The texts of a message, each of which may be a keyword, and the message's fault if it is malformed.
/// A button has two texts: its label, and the payload that the business gave it. A text in an
/// unexpected place is returned too, because it may be a STOP.
fn texts<'a>(kind: &str, message: &'a Value) -> (Vec<&'a str>, Option<SkipCause>) {
    let body = member(message, kind);
    let (texts, missing) = match kind {
        "text" => (texts_in(body, ["body", "body"]), Some(SkipCause::NoText)),
        "button" => (texts_in(body, ["text", "payload"]), Some(SkipCause::NoText)),
        "interactive" => match body.and_then(|body| word(body, "type")).as_deref() {
            Some(reply @ ("button_reply" | "list_reply")) => {
                let reply = body.and_then(|body| body.get(reply));
                (texts_in(reply, ["title", "id"]), Some(SkipCause::NoText))
            }
            // A submitted form, or a type that is not known yet.
            Some(_) => (Vec::new(), None),
            None => (Vec::new(), Some(SkipCause::BadShape)),
        },
        _ => (Vec::new(), None),
    };
    if !texts.is_empty() {
        return (texts, None);
    }
    let mut texts = texts_of_any(message);
    // A type that opens no window, or an unknown one.
    if !Rules::OPENS_WINDOW.contains(&kind) {
        texts.extend(texts_in(body, ["body", "text"]));
    }
    let malformed = if texts.is_empty() { missing } else { Some(SkipCause::BadShape) };
    (texts, malformed)
}

/// The texts of these names in an object; or the text itself, in place of an object.
fn texts_in<'a>(object: Option<&'a Value>, names: [&str; 2]) -> Vec<&'a str> {
    if let Some(Value::String(text)) = object {
        return Some(text.as_str()).filter(|text| !text.is_empty()).into_iter().collect();
    }
    let mut texts: Vec<_> = names.iter().filter_map(|name| text(object?, name)).collect();
    texts.dedup();
    texts
}

/// The texts of replies to a message with buttons or a list.
fn replies(message: &Value) -> Vec<&str> {
    let body = message.get("interactive");
    let replies = ["button_reply", "list_reply"].into_iter();
    replies
        .flat_map(|reply| texts_in(body.and_then(|body| body.get(reply)), ["title", "id"]))
        .collect()
}

/// The texts in every place where a message of any type has them.
fn texts_of_any(message: &Value) -> Vec<&str> {
    let mut texts = texts_in(message.get("text"), ["body", "body"]);
    texts.extend(texts_in(message.get("button"), ["text", "payload"]));
    texts.extend(replies(message));
    texts
}

/// A message's id; empty if it is too long to be recorded, so that a STOP is recorded without it.
fn message_id(message: &Value) -> String {
    let id = id(message, "id").filter(|id| id.len() <= MAX_REFERENCE_BYTES);
    id.unwrap_or_default()
}

/// The event of a preference.
fn preference_event(preference: &Value) -> Result<What, SkipCause> {
    let is_marketing = word(preference, "category").map(|category| category == MARKETING);
    match (text(preference, "value").ok_or(SkipCause::BadShape)?, is_marketing) {
        (_, Some(false)) => Err(SkipCause::UnknownPreference),
        // Without a category it can only be about marketing: there is no other category.
        (stop, _) if stop.trim().eq_ignore_ascii_case("stop") => {
            Ok(What::Platform { stopped: true })
        }
        ("resume" | "signup", None) => Err(SkipCause::BadShape),
        ("resume", _) => Ok(What::Platform { stopped: false }),
        ("signup", _) => {
            let evidence = Evidence {
                method: Method::WhatsappSignup,
                statement: String::new(),
                business_name: String::new(),
                locale: String::new(),
                reference: id(preference, "signup_id").ok_or(SkipCause::NoSignupId)?,
                confirmation: String::new(),
            };
            let category = Scope::Class(Class::Marketing);
            Ok(What::OptIn { category, evidence, expire: None, pending: false })
        }
        _ => Err(SkipCause::UnknownPreference),
    }
}
