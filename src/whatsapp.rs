//! The parser of WhatsApp's webhook payloads: updates become events. It is pure: it has no clock,
//! network or secret.
//!
//! The parser is lenient. An unknown or malformed value costs the one update that contains it, which
//! is skipped and counted by its cause, and never the whole request: the platform would repeat a
//! refused request for seven days. A denial in a malformed update is kept, so that no STOP is lost
//! to a mistake in its form. An event that allows needs a well-formed update with a valid time.
//!
//! In reading order: this file (the result), `payload` (the updates of a payload), `source` (which part
//! of it an update is in), `update` (the events of an update), `texts` (what a user wrote or pressed),
//! `templates` (changes of the account's templates), `ids` (whom it is about), `copies` (events under
//! several ids), `denial_at_arrival` (denials without a usable time), `fields` (typed access to JSON),
//! `json_repair` (JSON of which a part cannot be parsed).

mod copies;
mod denial_at_arrival;
mod fields;
mod ids;
mod json_repair;
mod payload;
mod source;
mod templates;
#[cfg(test)]
mod tests;
mod texts;
mod update;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub(crate) use self::denial_at_arrival::denial_at_arrival;
use consentd_core::submission::Submission;

/// Which business a payload is for, and which messages open the window.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rules {
    /// The business id of each `phone_number_id`.
    pub numbers: HashMap<String, String>,
    /// The business id of each WhatsApp business account, for what names the account alone. If none is
    /// named, and all numbers are of one business, every account is that one's.
    pub accounts: HashMap<String, String>,
    /// The types of messages that open the window. [`CALL`] stands for calls, [`GROUP`] for
    /// messages in groups, [`STANDBY`] for messages in a conversation that another app holds, and
    /// [`CALL_PERMISSION`] for replies to requests for the permission to call.
    pub opens_window: BTreeSet<String>,
    /// Whether a `signup` among the preferences is an opt-in to marketing. Neither the value nor its
    /// shape is documented: WhatsApp's page on its sign-up speaks of "a webhook notification" alone
    /// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/in-app-signup>,
    /// 2026-07-03). So it is assumed to be like a `resume` with a `signup_id`, and allows only if an
    /// operator says so.
    pub takes_signup: bool,
}

/// The pseudo-type of calls by users, in [`Rules::opens_window`].
pub(crate) const CALL: &str = "call";

/// The pseudo-type of messages in groups, in [`Rules::opens_window`].
pub(crate) const GROUP: &str = "group";

/// The pseudo-type of replies to requests for the permission to call, in [`Rules::opens_window`].
pub(crate) const CALL_PERMISSION: &str = "call_permission_reply";

/// The pseudo-type of messages in the field `standby`, in [`Rules::opens_window`].
pub(crate) const STANDBY: &str = "standby";

impl Rules {
    /// The types of messages that open the window by default.
    pub const OPENS_WINDOW: [&'static str; 12] = [
        "text",
        "image",
        "audio",
        "video",
        "document",
        "sticker",
        "location",
        "contacts",
        "order",
        "interactive",
        "button",
        CALL,
    ];

    /// Rules with these numbers, and the defaults of all else.
    #[must_use]
    pub fn new(numbers: HashMap<String, String>) -> Self {
        let opens_window = Self::OPENS_WINDOW.map(str::to_owned).into();
        Self { numbers, accounts: HashMap::new(), opens_window, takes_signup: false }
    }

    /// All businesses.
    fn businesses(&self) -> BTreeSet<&str> {
        self.numbers.values().chain(self.accounts.values()).map(String::as_str).collect()
    }

    /// The business of a WhatsApp business account.
    fn business_of_account(&self, account: &str) -> Option<&str> {
        if !self.accounts.is_empty() {
            return self.accounts.get(account).map(String::as_str);
        }
        let mut businesses = self.businesses().into_iter();
        businesses.next().filter(|_| businesses.next().is_none())
    }

    fn opens(&self, kind: &str) -> bool {
        self.opens_window.contains(kind)
    }
}

/// The kind of an update.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum UpdateKind {
    /// A message from a user.
    Message,
    /// A call.
    Call,
    /// A user's preference about marketing.
    Preference,
    /// The status of a message to a user.
    Status,
    /// A user's new number or other id.
    NumberChange,
    /// Two ids of one user.
    Link,
    /// The category of a template.
    Template,
    /// The state of a WhatsApp business account.
    Account,
    /// Anything else.
    Other,
}

impl UpdateKind {
    /// Every kind.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 9] = [
        Self::Message,
        Self::Call,
        Self::Preference,
        Self::Status,
        Self::NumberChange,
        Self::Link,
        Self::Template,
        Self::Account,
        Self::Other,
    ];

    /// The value of the metric's label.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Call => "call",
            Self::Preference => "preference",
            Self::Status => "status",
            Self::NumberChange => "number_change",
            Self::Link => "link",
            Self::Template => "template",
            Self::Account => "account",
            Self::Other => "other",
        }
    }
}

/// Why an update was skipped.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum SkipCause {
    /// The payload's object is no WhatsApp account.
    UnknownObject,
    /// The change's field does not concern consent, such as echoes.
    UnknownField,
    /// The message's type is unknown.
    UnknownType,
    /// The message's type is known and opens no window.
    OpensNoWindow,
    /// The status is no failure.
    NotFailed,
    /// The call is by the business and not accepted, or the update is about a call's end.
    NotACallByUser,
    /// The preference is neither stop, resume nor signup, or is not about marketing.
    UnknownPreference,
    /// No business is configured for the `phone_number_id`.
    UnknownNumber,
    /// The message was to a group.
    ToGroup,
    /// No business is configured for the WhatsApp business account.
    UnknownAccount,
    /// The category of a template is announced, and not changed yet.
    Announced,
    /// The update of the account does not concern its templates.
    NotARestriction,
    /// The message is the business's own, such as one in the history of a conversation.
    NotByUser,
    /// A value has the wrong type, or a required one is missing.
    BadShape,
    /// The `phone_number_id` is missing.
    NoNumber,
    /// The account's id is missing.
    NoAccount,
    /// The template's name or language is missing or malformed.
    NoTemplate,
    /// The user's id is missing.
    NoUser,
    /// The time is missing or unusable.
    NoTime,
    /// The text is missing from a message whose type has one.
    NoText,
    /// The code is missing from a failure.
    NoCode,
    /// The signup's id is missing.
    NoSignupId,
}

impl SkipCause {
    /// Every cause.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 22] = [
        Self::UnknownObject,
        Self::UnknownField,
        Self::UnknownType,
        Self::OpensNoWindow,
        Self::NotFailed,
        Self::NotACallByUser,
        Self::UnknownPreference,
        Self::UnknownNumber,
        Self::ToGroup,
        Self::UnknownAccount,
        Self::Announced,
        Self::NotARestriction,
        Self::NotByUser,
        Self::BadShape,
        Self::NoNumber,
        Self::NoAccount,
        Self::NoTemplate,
        Self::NoUser,
        Self::NoTime,
        Self::NoText,
        Self::NoCode,
        Self::NoSignupId,
    ];

    /// The value of the metric's label.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::UnknownObject => "unknown_object",
            Self::UnknownField => "unknown_field",
            Self::UnknownType => "unknown_type",
            Self::OpensNoWindow => "opens_no_window",
            Self::NotFailed => "not_failed",
            Self::NotACallByUser => "not_a_call_by_user",
            Self::UnknownPreference => "unknown_preference",
            Self::UnknownNumber => "unknown_number",
            Self::ToGroup => "to_group",
            Self::UnknownAccount => "unknown_account",
            Self::Announced => "announced",
            Self::NotARestriction => "not_a_restriction",
            Self::NotByUser => "not_by_user",
            Self::BadShape => "bad_shape",
            Self::NoNumber => "no_number",
            Self::NoAccount => "no_account",
            Self::NoTemplate => "no_template",
            Self::NoUser => "no_user",
            Self::NoTime => "no_time",
            Self::NoText => "no_text",
            Self::NoCode => "no_code",
            Self::NoSignupId => "no_signup_id",
        }
    }

    /// Whether the update is malformed, and not just irrelevant.
    #[must_use]
    pub(crate) fn is_malformed(self) -> bool {
        self >= Self::BadShape
    }
}

/// An update with the events to record for it.
#[derive(Clone, Debug)]
pub(crate) struct WebhookUpdate {
    /// Its kind.
    pub kind: UpdateKind,
    /// Its events. There can be several, such as for a button, which has two texts.
    pub submissions: Vec<Submission>,
    /// Its events under other ids of the same user, which may allow: each is recorded only once the
    /// ids are linked, so that what is denied under one id denies under the other before.
    pub copies: Vec<LinkedCopy>,
}

/// An event under another id of its user.
#[derive(Clone, Debug)]
pub(crate) struct LinkedCopy {
    /// The index of the link between the two ids in [`ParsedPayload::links`].
    pub link: usize,
    /// The event, which requires the two ids to be linked.
    pub submission: Submission,
}

/// The arrival of updates of one kind, in one field of the webhook, for one configured number. An
/// update arrives whether or not it is about consent, and even if it is malformed.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Arrival {
    /// The field of the webhook.
    pub field: &'static str,
    /// The kind of the list that the updates are in.
    pub kind: UpdateKind,
    /// The `phone_number_id`; empty for a field that concerns the account.
    pub number: String,
}

/// A parsed payload.
#[derive(Debug, Default)]
pub(crate) struct ParsedPayload {
    /// What arrived for which configured number.
    pub arrivals: BTreeSet<Arrival>,
    /// The links between ids, which are recorded before the other updates: a message from a new id
    /// opens no window that is denied under the old one.
    pub links: Vec<WebhookUpdate>,
    /// The other updates to record, in order.
    pub updates: Vec<WebhookUpdate>,
    /// The number of skipped updates by kind and cause. A malformed update of which only denials are
    /// recorded is counted here too.
    pub skipped: BTreeMap<(UpdateKind, SkipCause), u64>,
    /// The first `phone_number_id` for which no business is configured.
    pub unknown_number: Option<String>,
    /// The first account for which no business is configured.
    pub unknown_account: Option<String>,
}

/// A body that is no payload.
#[derive(Debug, thiserror::Error)]
#[error("not a webhook's payload: {0}")]
pub(crate) enum PayloadError {
    /// The body is no JSON.
    Json(#[from] serde_json::Error),
    /// The body is JSON, but no object.
    #[error("not a webhook's payload: JSON, but no object")]
    NotAnObject,
}

/// Parses a request's body. A value that cannot be parsed, such as a text with a lone surrogate or an
/// array that is nested more than 127 deep, costs only the update that contains it.
///
/// # Errors
///
/// [`PayloadError`] means that the body is no JSON object.
pub(crate) fn parse(body: &[u8], rules: &Rules) -> Result<ParsedPayload, PayloadError> {
    let parsed = serde_json::from_slice(body);
    // Nearly every body is well formed. If the repair fails too, the first error is reported: it
    // describes the body as it was sent.
    let payload: serde_json::Value = match parsed {
        Ok(payload) => payload,
        Err(error) => serde_json::from_slice(&json_repair::repair_json(body)).map_err(|_| error)?,
    };
    if !payload.is_object() {
        return Err(PayloadError::NotAnObject);
    }
    Ok(payload::parse(&payload, rules))
}
