//! What one update means.

use serde_json::Value;

use super::denial_at_arrival::{denial_at_arrival, denies};
use super::fields::{code, has, id, list, member, name, seconds, text, word};
use super::{CALL, GROUP, Rules, SkipCause, UpdateKind};
use crate::recorder::{Counts, Submission, Told};
use consentd_core::event::{Event, Evidence, MAX_REFERENCE_BYTES, Method, What};
use consentd_core::scope::{Class, Scope};
use consentd_core::time::Timestamp;

/// The category of the preferences that we know.
const MARKETING: &str = "marketing_messages";

/// Types of messages that are known and open no window unless that is configured.
const TYPES_WITHOUT_WINDOW: [&str; 6] =
    ["reaction", "edit", "revoke", "unsupported", "unknown", "request_welcome"];

/// Where an update stands.
pub(super) struct UpdateContext<'a> {
    pub(super) rules: &'a Rules,
    pub(super) business: &'a str,
    /// What holds its list.
    pub(super) value: &'a Value,
    /// What is wrong around it, if anything is: then only what it denies is read.
    pub(super) broken: Option<SkipCause>,
}

/// What an update means.
pub(super) struct ParsedUpdate {
    pub(super) kind: UpdateKind,
    pub(super) submissions: Vec<Submission>,
    /// What of it cannot be read, where only what it denies is told.
    pub(super) malformed: Option<SkipCause>,
}

/// One user's ids, as far as an update tells them: one of them at the least.
struct UserIds {
    number: Option<String>,
    scoped: Option<String>,
}

impl UserIds {
    /// The id under which an update's events are recorded: the number, where there is one.
    fn id(&self) -> Option<&String> {
        self.number.as_ref().or(self.scoped.as_ref())
    }
}

type UpdateResult = Result<ParsedUpdate, (UpdateKind, SkipCause)>;

/// What an update comes to, and what is wrong with it: then only what it denies is to be kept.
type FoundSubmissions = Result<(Vec<Submission>, Option<SkipCause>), SkipCause>;

impl UpdateContext<'_> {
    /// What an item means of a list whose items are about this.
    pub(super) fn read(&self, kind: UpdateKind, item: &Value) -> UpdateResult {
        match kind {
            UpdateKind::Message => self.message(item),
            UpdateKind::Status => {
                self.keep_denials_if_malformed(UpdateKind::Status, self.failure(item))
            }
            UpdateKind::Call => self.call(item),
            _ => self.keep_denials_if_malformed(UpdateKind::Preference, self.preference(item)),
        }
    }

    /// What was found: all of it, or what it denies where anything is wrong with it.
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
            // A time that can be read counts, and makes a repeat change nothing.
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
        // What opens no window is still read: somebody may have said STOP. In a group a yes is no
        // answer to a question that was asked elsewhere.
        let rest = if in_group { Counts::OptOut } else { Counts::Keyword };
        let inbound = |text: &str, counts| {
            let what = What::Inbound { message_id: message_id.clone(), text: text.to_owned() };
            self.submission(&user, time, what, counts)
        };
        let first = inbound(
            texts.first().copied().unwrap_or_default(),
            if opens { Counts::All } else { rest },
        );
        let others = texts.iter().skip(1).map(|text| inbound(text, rest));
        Ok((std::iter::once(first).chain(others).collect(), malformed))
    }

    /// What the platform says of a user in the place of a message.
    fn system(&self, message: &Value) -> UpdateResult {
        let system = message.get("system").filter(|system| has(system, "type"));
        let system = system.ok_or((UpdateKind::Other, SkipCause::BadShape))?;
        if word(system, "type").as_deref() != Some("user_changed_number") {
            return Err((UpdateKind::Other, SkipCause::UnknownType));
        }
        let read = || {
            // By its own fields alone: the contact may be the old number or the new one.
            let old = name(message, "from").ok_or(SkipCause::NoUser)?;
            let new = name(system, "wa_id").or_else(|| name(system, "new_wa_id"));
            let other_user_id = new.ok_or(SkipCause::NoUser)?;
            let what = What::Link { other_user_id, moved: true };
            let time = seconds(message, "timestamp");
            Ok((vec![self.submission(&old, time, what, Counts::All)], None))
        };
        self.keep_denials_if_malformed(UpdateKind::NumberChange, read())
    }

    /// That the two ids of an update are one user's, where it has both. Without a time it is so as
    /// of its arrival: to say it again changes nothing.
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
            self.submission(&number, time, what, Counts::All)
        })
    }

    /// A call.
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
        let submissions = vec![self.submission(&user, time, what, Counts::All)];
        self.keep_denials_if_malformed(UpdateKind::Call, Ok((submissions, None)))
    }

    /// What a user prefers of marketing.
    fn preference(&self, preference: &Value) -> FoundSubmissions {
        let what = preference_event(preference)?;
        let (user, time) = self.user_and_time(preference, "wa_id", "user_id")?;
        Ok((vec![self.submission(&user, time, what, Counts::All)], None))
    }

    /// What became of a message to a user.
    fn failure(&self, status: &Value) -> FoundSubmissions {
        let told = word(status, "status");
        let failed = told.as_deref() == Some("failed");
        let errors = list(status, "errors");
        let codes = errors.as_ref().map_or(&[][..], |errors| *errors).iter();
        let mut codes: Vec<i32> = codes.filter_map(|error| code(error, "code")).collect();
        codes.dedup();
        // A code that denies tells of a failure whatever the status is called.
        if !failed && !codes.iter().any(|code| denies(*code)) {
            return Err(if told.is_some() { SkipCause::NotFailed } else { SkipCause::BadShape });
        }
        if word(status, "recipient_type").as_deref() == Some("group") {
            return Err(SkipCause::ToGroup);
        }
        if codes.is_empty() {
            return Err(if errors.is_err() { SkipCause::BadShape } else { SkipCause::NoCode });
        }
        let malformed = (!failed).then_some(SkipCause::BadShape);
        let (user, time) = self.user_and_time(status, "recipient_id", "recipient_user_id")?;
        let failure = |code| self.submission(&user, time, What::Failure { code }, Counts::All);
        Ok((codes.into_iter().map(failure).collect(), malformed))
    }

    /// Whose an update is, and when it happened, where that can be read.
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

    /// A user's ids, of the update itself and of the contact that it is about.
    fn user_ids(&self, update: &Value, number: &str, scoped: &str) -> UserIds {
        let mut ids = UserIds { number: name(update, number), scoped: name(update, scoped) };
        let contacts = list(self.value, "contacts").unwrap_or_default();
        let is_meant = |contact: &&Value| {
            let same =
                |ours: &Option<String>, field| ours.is_some() && *ours == name(contact, field);
            same(&ids.number, "wa_id") || same(&ids.scoped, "user_id")
        };
        let meant = match contacts {
            // Nobody else can be meant.
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
        counts: Counts,
    ) -> Submission {
        let event =
            Event { user_id: user.to_owned(), business_id: self.business.to_owned(), time, what };
        // Its time makes a repeat change nothing: a request id would be forgotten after eight.
        let told = Told { whole_seconds: true, counts, ..Told::default() };
        Submission { event, request_id: String::new(), told }
    }
}

/// The texts of a message, each of which may be a keyword: a button has what it shows, and what the
/// business wrote behind it. And what is wrong with it: a text that is not where the message's type
/// has one is read all the same, for it may be a STOP.
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
            // A form that was filled in, and what may come yet.
            Some(_) => (Vec::new(), None),
            None => (Vec::new(), Some(SkipCause::BadShape)),
        },
        _ => (Vec::new(), None),
    };
    if !texts.is_empty() {
        return (texts, None);
    }
    let mut texts = texts_of_any(message);
    // Of a type that opens no window, or that nobody knows.
    if !Rules::OPENS_WINDOW.contains(&kind) {
        texts.extend(texts_in(body, ["body", "text"]));
    }
    let malformed = if texts.is_empty() { missing } else { Some(SkipCause::BadShape) };
    (texts, malformed)
}

/// The texts of these names in an object, or of what is itself a text in its place.
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

/// The texts of a message, wherever a message of any type has them.
fn texts_of_any(message: &Value) -> Vec<&str> {
    let mut texts = texts_in(message.get("text"), ["body", "body"]);
    texts.extend(texts_in(message.get("button"), ["text", "payload"]));
    texts.extend(replies(message));
    texts
}

/// A message's id; one that could not be recorded is none, for a STOP must not be lost for it.
fn message_id(message: &Value) -> String {
    let id = id(message, "id").filter(|id| id.len() <= MAX_REFERENCE_BYTES);
    id.unwrap_or_default()
}

/// What a preference says.
fn preference_event(preference: &Value) -> Result<What, SkipCause> {
    let is_marketing = word(preference, "category").map(|category| category == MARKETING);
    match (text(preference, "value").ok_or(SkipCause::BadShape)?, is_marketing) {
        (_, Some(false)) => Err(SkipCause::UnknownPreference),
        // One without a category can only be of marketing: there is no other.
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
