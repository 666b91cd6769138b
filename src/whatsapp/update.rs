//! What one update means.

use serde_json::Value;

use super::fields::{code, has, id, list, seconds, text};
use super::{CALL, Cause, GROUP, Kind, Rules};
use crate::consent::event::{Event, Evidence, MAX_REFERENCE_BYTES, Method, What};
use crate::consent::scope::{Class, Scope};
use crate::consent::time::Timestamp;
use crate::recorder::{Counts, Submission, Told};

/// The category of the preferences that we know.
const MARKETING: &str = "marketing_messages";

/// Types of messages that are known and open no window unless that is configured.
const OPEN_NOTHING: [&str; 6] =
    ["reaction", "edit", "revoke", "unsupported", "unknown", "request_welcome"];

/// Where an update stands.
pub(super) struct Context<'a> {
    pub(super) rules: &'a Rules,
    pub(super) business: &'a str,
    /// What holds its list.
    pub(super) value: &'a Value,
}

/// What an update means.
pub(super) struct Meant {
    pub(super) kind: Kind,
    pub(super) submissions: Vec<Submission>,
}

/// One user's ids, as far as an update tells them: one of them at the least.
struct Who {
    number: Option<String>,
    scoped: Option<String>,
}

impl Who {
    /// The id under which an update's events are recorded: the number, where there is one.
    fn id(&self) -> Option<&String> {
        self.number.as_ref().or(self.scoped.as_ref())
    }
}

type Read = Result<Meant, (Kind, Cause)>;

impl Context<'_> {
    /// What an item means of a list whose items are about this.
    pub(super) fn read(&self, kind: Kind, item: &Value) -> Read {
        match kind {
            Kind::Message => self.message(item),
            Kind::Status => self.status(item),
            Kind::Call => self.call(item),
            _ => self.preference(item),
        }
    }

    /// A message from a user.
    fn message(&self, message: &Value) -> Read {
        if text(message, "type") == Some("system") {
            return self.system(message);
        }
        self.inbound(message)
            .map(|submissions| Meant { kind: Kind::Message, submissions })
            .map_err(|cause| (Kind::Message, cause))
    }

    fn inbound(&self, message: &Value) -> Result<Vec<Submission>, Cause> {
        let kind = text(message, "type").ok_or(Cause::BadShape)?;
        let in_group = has(message, "group_id") && !self.rules.opens(GROUP);
        let opens = self.rules.opens(kind) && !in_group;
        let texts = texts(kind, message)?;
        if !opens && texts.is_empty() {
            let is_known = self.rules.opens(kind)
                || Rules::OPENS_WINDOW.contains(&kind)
                || OPEN_NOTHING.contains(&kind);
            return Err(if is_known { Cause::OpensNoWindow } else { Cause::UnknownType });
        }
        let (user, time) = self.whose(message, "from", "from_user_id")?;
        let message_id = message_id(message);
        // What opens no window is still read: somebody may have said STOP. In a group a yes is no
        // answer to a question that was asked elsewhere.
        let rest = if in_group { Counts::OptOut } else { Counts::Keyword };
        let inbound = |text: &str, counts| {
            let what = What::Inbound { message_id: message_id.clone(), text: text.to_owned() };
            self.told(&user, time, what, counts)
        };
        let first = inbound(
            texts.first().copied().unwrap_or_default(),
            if opens { Counts::All } else { rest },
        );
        let others = texts.iter().skip(1).map(|text| inbound(text, rest));
        Ok(std::iter::once(first).chain(others).collect())
    }

    /// What the platform says of a user in the place of a message.
    fn system(&self, message: &Value) -> Read {
        let system = message.get("system").filter(|system| has(system, "type"));
        let system = system.ok_or((Kind::Other, Cause::BadShape))?;
        if text(system, "type") != Some("user_changed_number") {
            return Err((Kind::Other, Cause::UnknownType));
        }
        let read = || {
            // By its own fields alone: the contact may be the old number or the new one.
            let old = id(message, "from").ok_or(Cause::NoUser)?;
            let new = id(system, "wa_id").or_else(|| id(system, "new_wa_id"));
            let other_user_id = new.ok_or(Cause::NoUser)?;
            let time = seconds(message, "timestamp").ok_or(Cause::NoTime)?;
            let what = What::Link { other_user_id, moved: true };
            Ok(vec![self.told(&old, time, what, Counts::All)])
        };
        read()
            .map(|submissions| Meant { kind: Kind::NumberChange, submissions })
            .map_err(|cause| (Kind::NumberChange, cause))
    }

    /// That the two ids of an update are one user's, where it has both.
    pub(super) fn link(&self, kind: Kind, item: &Value) -> Option<Submission> {
        let who = match kind {
            Kind::Status => self.who(item, "recipient_id", "recipient_user_id"),
            Kind::Preference => self.who(item, "wa_id", "user_id"),
            _ => self.who(item, "from", "from_user_id"),
        };
        let (number, other_user_id) = (who.number?, who.scoped?);
        let time = seconds(item, "timestamp")?;
        (number != other_user_id).then(|| {
            let what = What::Link { other_user_id, moved: false };
            self.told(&number, time, what, Counts::All)
        })
    }

    /// A call.
    fn call(&self, call: &Value) -> Read {
        let connects = text(call, "event") == Some("connect");
        if !connects || text(call, "direction") != Some("USER_INITIATED") {
            let is_read = text(call, "event").is_some() && text(call, "direction").is_some();
            let cause = if is_read { Cause::NotACallByUser } else { Cause::BadShape };
            return Err((Kind::Call, cause));
        }
        if !self.rules.opens(CALL) {
            return Err((Kind::Call, Cause::OpensNoWindow));
        }
        let (user, time) =
            self.whose(call, "from", "from_user_id").map_err(|cause| (Kind::Call, cause))?;
        let what = What::Inbound { message_id: message_id(call), text: String::new() };
        let submissions = vec![self.told(&user, time, what, Counts::All)];
        Ok(Meant { kind: Kind::Call, submissions })
    }

    /// What a user prefers of marketing.
    fn preference(&self, preference: &Value) -> Read {
        let read = || {
            let what = preferred(preference)?;
            let (user, time) = self.whose(preference, "wa_id", "user_id")?;
            Ok(vec![self.told(&user, time, what, Counts::All)])
        };
        read()
            .map(|submissions| Meant { kind: Kind::Preference, submissions })
            .map_err(|cause| (Kind::Preference, cause))
    }

    /// What became of a message to a user.
    fn status(&self, status: &Value) -> Read {
        self.failure(status)
            .map(|submissions| Meant { kind: Kind::Status, submissions })
            .map_err(|cause| (Kind::Status, cause))
    }

    fn failure(&self, status: &Value) -> Result<Vec<Submission>, Cause> {
        if text(status, "status").ok_or(Cause::BadShape)? != "failed" {
            return Err(Cause::NotFailed);
        }
        if text(status, "recipient_type") == Some("group") {
            return Err(Cause::ToGroup);
        }
        let errors = list(status, "errors").map_err(|_| Cause::BadShape)?;
        let mut codes: Vec<i32> = errors.iter().filter_map(|error| code(error, "code")).collect();
        codes.dedup();
        if codes.is_empty() {
            return Err(Cause::NoCode);
        }
        let (user, time) = self.whose(status, "recipient_id", "recipient_user_id")?;
        let failure = |code| self.told(&user, time, What::Failure { code }, Counts::All);
        Ok(codes.into_iter().map(failure).collect())
    }

    /// Whose an update is, and when it happened.
    fn whose(
        &self,
        update: &Value,
        number: &str,
        scoped: &str,
    ) -> Result<(String, Timestamp), Cause> {
        let who = self.who(update, number, scoped);
        let user = who.id().ok_or(Cause::NoUser)?;
        let time = seconds(update, "timestamp").ok_or(Cause::NoTime)?;
        Ok((user.clone(), time))
    }

    /// A user's ids, of the update itself and of the contact that it is about.
    fn who(&self, update: &Value, number: &str, scoped: &str) -> Who {
        let mut who = Who { number: id(update, number), scoped: id(update, scoped) };
        let contacts = list(self.value, "contacts").unwrap_or_default();
        let is_meant = |contact: &&Value| {
            let same = |ours: &Option<String>, name| ours.is_some() && *ours == id(contact, name);
            same(&who.number, "wa_id") || same(&who.scoped, "user_id")
        };
        let meant = match contacts {
            // Nobody else can be meant.
            [only] if who.id().is_none() => Some(only),
            contacts => contacts.iter().find(is_meant),
        };
        if let Some(contact) = meant {
            who.number = who.number.take().or_else(|| id(contact, "wa_id"));
            who.scoped = who.scoped.take().or_else(|| id(contact, "user_id"));
        }
        who
    }

    fn told(&self, user: &str, time: Timestamp, what: What, counts: Counts) -> Submission {
        let event = Event {
            user_id: user.to_owned(),
            business_id: self.business.to_owned(),
            time: Some(time),
            what,
        };
        // Its time makes a repeat change nothing: a request id would be forgotten after eight.
        let told = Told { whole_seconds: true, counts };
        Submission { event, request_id: String::new(), told }
    }
}

/// The texts of a message, each of which may be a keyword: a button has what it shows, and what the
/// business wrote behind it.
fn texts<'a>(kind: &str, message: &'a Value) -> Result<Vec<&'a str>, Cause> {
    let of = |object: Option<&'a Value>, names: [&str; 2]| {
        let mut texts: Vec<_> = names.iter().filter_map(|name| text(object?, name)).collect();
        texts.dedup();
        if texts.is_empty() { Err(Cause::NoText) } else { Ok(texts) }
    };
    let body = message.get(kind);
    match kind {
        "text" => of(body, ["body", "body"]),
        "button" => of(body, ["text", "payload"]),
        "interactive" => match body.and_then(|body| text(body, "type")) {
            Some(reply @ ("button_reply" | "list_reply")) => {
                of(body.and_then(|body| body.get(reply)), ["title", "id"])
            }
            // A form that was filled in, and what may come yet.
            Some(_) => Ok(Vec::new()),
            None => Err(Cause::BadShape),
        },
        _ => Ok(Vec::new()),
    }
}

/// A message's id; one that could not be recorded is none, for a STOP must not be lost for it.
fn message_id(message: &Value) -> String {
    let id = id(message, "id").filter(|id| id.len() <= MAX_REFERENCE_BYTES);
    id.unwrap_or_default()
}

/// What a preference says.
fn preferred(preference: &Value) -> Result<What, Cause> {
    let is_marketing = text(preference, "category").map(|category| category == MARKETING);
    match (text(preference, "value").ok_or(Cause::BadShape)?, is_marketing) {
        (_, Some(false)) => Err(Cause::UnknownPreference),
        // One without a category can only be of marketing: there is no other.
        ("stop", _) => Ok(What::Platform { stopped: true }),
        ("resume" | "signup", None) => Err(Cause::BadShape),
        ("resume", _) => Ok(What::Platform { stopped: false }),
        ("signup", _) => {
            let evidence = Evidence {
                method: Method::WhatsappSignup,
                statement: String::new(),
                business_name: String::new(),
                locale: String::new(),
                reference: id(preference, "signup_id").ok_or(Cause::NoSignupId)?,
                confirmation: String::new(),
            };
            let category = Scope::Class(Class::Marketing);
            Ok(What::OptIn { category, evidence, expire: None, pending: false })
        }
        _ => Err(Cause::UnknownPreference),
    }
}
