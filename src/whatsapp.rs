//! What WhatsApp's webhooks say, as events: pure, without clock, network or secret.
//!
//! A payload is read leniently: what is unknown, or not as it should be, costs the one update that
//! it is in and is counted by its cause, and never the whole request, for the platform would send
//! that again for seven days. And of an update that is malformed, what denies is read all the same:
//! a STOP is never dropped for its form. What allows needs all of it, its time above all.
//!
//! In reading order: here (what comes out), `payload` (which updates a payload has), `update` (what
//! each of them means), `denial_at_arrival` (denials that count as of their arrival), `fields` (JSON's fields,
//! as far as they are what they should be), `json_repair` (JSON of which a part cannot be parsed).

mod denial_at_arrival;
mod fields;
mod json_repair;
mod payload;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub use self::denial_at_arrival::denial_at_arrival;
use crate::recorder::Submission;

/// Whose a payload is, and what of it opens the window.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rules {
    /// The business of each `phone_number_id`.
    pub numbers: HashMap<String, String>,
    /// The types of messages that open the window; also [`CALL`], and [`GROUP`] where messages in
    /// groups do.
    pub opens_window: BTreeSet<String>,
}

/// Stands for calls by users among the types of messages.
pub const CALL: &str = "call";

/// Stands for messages in groups among the types of messages.
pub const GROUP: &str = "group";

impl Rules {
    /// What opens the window where nothing is said of it.
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

    /// These numbers; the window is opened by what opens it by default.
    #[must_use]
    pub fn new(numbers: HashMap<String, String>) -> Self {
        Self { numbers, opens_window: Self::OPENS_WINDOW.map(str::to_owned).into() }
    }

    fn opens(&self, kind: &str) -> bool {
        self.opens_window.contains(kind)
    }
}

/// What an update is about.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum UpdateKind {
    /// A message from a user.
    Message,
    /// A call.
    Call,
    /// What a user prefers of marketing.
    Preference,
    /// What became of a message to a user.
    Status,
    /// A user's new number.
    NumberChange,
    /// A number and a business-scoped id of one user.
    Link,
    /// Anything else.
    Other,
}

impl UpdateKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Message,
        Self::Call,
        Self::Preference,
        Self::Status,
        Self::NumberChange,
        Self::Link,
        Self::Other,
    ];

    /// In a word, for metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Call => "call",
            Self::Preference => "preference",
            Self::Status => "status",
            Self::NumberChange => "number_change",
            Self::Link => "link",
            Self::Other => "other",
        }
    }
}

/// Why an update is no event.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum SkipCause {
    /// Of something else than a WhatsApp account.
    UnknownObject,
    /// Of a field that says nothing of consent, such as echoes.
    UnknownField,
    /// A message of a type that nobody knows.
    UnknownType,
    /// A message of a type that opens no window.
    OpensNoWindow,
    /// A status that tells of no failure.
    NotFailed,
    /// A call by the business, or what became of one.
    NotACallByUser,
    /// A preference that is none of stop, resume and signup.
    UnknownPreference,
    /// To a number of which nothing is configured.
    UnknownNumber,
    /// Of a message to a group.
    ToGroup,
    /// Not of the shape that it should have.
    BadShape,
    /// Without the number that it is about.
    NoNumber,
    /// Without a user.
    NoUser,
    /// Without a moment.
    NoTime,
    /// Without the text that such a message has.
    NoText,
    /// A failure without its code.
    NoCode,
    /// A signup without its id.
    NoSignupId,
}

impl SkipCause {
    /// Every cause.
    pub const ALL: [Self; 16] = [
        Self::UnknownObject,
        Self::UnknownField,
        Self::UnknownType,
        Self::OpensNoWindow,
        Self::NotFailed,
        Self::NotACallByUser,
        Self::UnknownPreference,
        Self::UnknownNumber,
        Self::ToGroup,
        Self::BadShape,
        Self::NoNumber,
        Self::NoUser,
        Self::NoTime,
        Self::NoText,
        Self::NoCode,
        Self::NoSignupId,
    ];

    /// In a word, for metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
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
            Self::BadShape => "bad_shape",
            Self::NoNumber => "no_number",
            Self::NoUser => "no_user",
            Self::NoTime => "no_time",
            Self::NoText => "no_text",
            Self::NoCode => "no_code",
            Self::NoSignupId => "no_signup_id",
        }
    }

    /// Whether the update is not as it should be, and not merely none of ours.
    #[must_use]
    pub fn is_malformed(self) -> bool {
        self >= Self::BadShape
    }
}

/// An update that is to be recorded.
#[derive(Clone, Debug)]
pub struct WebhookUpdate {
    /// What it is about.
    pub kind: UpdateKind,
    /// What it comes to: one event, or several, such as where a button has two texts.
    pub submissions: Vec<Submission>,
}

/// What a payload says.
#[derive(Debug, Default)]
pub struct ParsedPayload {
    /// What is to be recorded, in order.
    pub updates: Vec<WebhookUpdate>,
    /// How many updates are no events, by what they are about and why; also those that are malformed
    /// and of which a denial alone is recorded.
    pub skipped: BTreeMap<(UpdateKind, SkipCause), u64>,
    /// The first `phone_number_id` of which nothing is configured.
    pub unknown_number: Option<String>,
}

/// A body that is no payload at all.
#[derive(Debug, thiserror::Error)]
#[error("not a webhook's payload: {0}")]
pub enum PayloadError {
    /// It is no JSON.
    Json(#[from] serde_json::Error),
    /// It is JSON, and no object.
    #[error("not a webhook's payload: JSON, but no object")]
    NotAnObject,
}

/// Reads a request's body. A value that cannot be parsed, such as a text with a lone surrogate or an
/// array that is nested more than 127 deep, costs the update that it is in, and not the others.
///
/// # Errors
///
/// [`PayloadError`] where it is no JSON object.
pub fn read(body: &[u8], rules: &Rules) -> Result<ParsedPayload, PayloadError> {
    let parsed = serde_json::from_slice(body);
    // Nearly every body is well formed; the first error is the one that tells what is wrong.
    let payload: serde_json::Value = match parsed {
        Ok(payload) => payload,
        Err(error) => serde_json::from_slice(&json_repair::repair_json(body)).map_err(|_| error)?,
    };
    if !payload.is_object() {
        return Err(PayloadError::NotAnObject);
    }
    Ok(payload::read(&payload, rules))
}
