//! What a user wrote or pressed, wherever a message has it.
//!
//! A text that a user wrote in a conversation may be any keyword. Texts in other places are read for
//! opt-outs alone: an edit may come a quarter of an hour after its message, and the caption of a
//! picture or a field of a form is no answer to a question that was asked in the conversation.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::Value;

use super::fields::{member, text, word};
use super::json_repair::repair_json;
use super::{Rules, SkipCause};

/// The types of messages that may have a caption
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages>,
/// 2026-06-17).
const MEDIA: [&str; 6] = ["image", "video", "document", "audio", "sticker", "voice"];

/// The most different answers of one submitted form that are read. A form has at most 50 components a
/// screen, of which few have texts that the user wrote. A form with more answers is an opt-out of
/// everything: one of the others may be a STOP.
const MAX_FORM_ANSWERS: usize = 256;

/// The field of a submitted form that is the business's own: it identifies the form's session.
const FORM_TOKEN: &str = "flow_token";

/// A text that may be a keyword.
pub(super) struct Text<'a> {
    pub(super) text: Cow<'a, str>,
    /// Whether the business offered it: the label of a button or of a row, the payload behind it, or
    /// an answer in a form, which may be one of the form's own options.
    pub(super) is_button: bool,
}

impl<'a> Text<'a> {
    fn typed(text: &'a str) -> Self {
        Self { text: Cow::Borrowed(text), is_button: false }
    }

    fn button(text: &'a str) -> Self {
        Self { text: Cow::Borrowed(text), is_button: true }
    }
}

/// The texts of a message.
#[derive(Default)]
pub(super) struct Texts<'a> {
    /// Texts that may be any keyword. A button has two: its label, and the payload that the business
    /// gave it.
    pub(super) said: Vec<Text<'a>>,
    /// Texts that are read for opt-outs alone.
    pub(super) opt_outs: Vec<Text<'a>>,
    /// Whether the message has more texts than are read, so that an opt-out among them may be missed.
    pub(super) has_more: bool,
    /// The message's fault, if it is malformed.
    pub(super) malformed: Option<SkipCause>,
}

impl<'a> Texts<'a> {
    /// The texts of a message of this type. A text in an unexpected place is returned too, because it
    /// may be a STOP.
    pub(super) fn of(kind: Option<&str>, message: &'a Value) -> Self {
        let (said, malformed) = match kind {
            Some(kind) => said(kind, message),
            None => (said_anywhere(message), Some(SkipCause::BadShape)),
        };
        let mut texts = Self { said, malformed, ..Self::default() };
        texts.add_opt_outs(kind, message);
        texts
    }

    /// Adds the texts that are read for opt-outs alone.
    fn add_opt_outs(&mut self, kind: Option<&str>, message: &'a Value) {
        // The plain types have nothing but what they say, and are nearly all messages.
        if matches!(kind, Some("text" | "button" | "reaction")) {
            return;
        }
        let texts = &mut self.opt_outs;
        texts.extend(captions(message).map(Text::typed));
        texts.extend(beside_order(message).map(Text::typed));
        texts.extend(description(message).map(Text::button));
        texts.extend(edited(message));
        let answers = form_answers(message);
        self.has_more = answers.has_more;
        let answer = |text| Text { text: Cow::Owned(text), is_button: true };
        texts.extend(answers.texts.into_iter().map(answer));
    }
}

/// The texts that may be any keyword, and the message's fault if it is malformed.
fn said<'a>(kind: &str, message: &'a Value) -> (Vec<Text<'a>>, Option<SkipCause>) {
    let body = member(message, kind);
    let (texts, missing) = match kind {
        "text" => (typed(texts_in(body, ["body", "body"])), Some(SkipCause::NoText)),
        "button" => (pressed(texts_in(body, ["text", "payload"])), Some(SkipCause::NoText)),
        "interactive" => match body.and_then(|body| word(body, "type")).as_deref() {
            Some(reply @ ("button_reply" | "list_reply")) => {
                let reply = body.and_then(|body| body.get(reply));
                (pressed(texts_in(reply, ["title", "id"])), Some(SkipCause::NoText))
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
    let mut texts = said_anywhere(message);
    // A type that opens no window, or an unknown one.
    if !Rules::OPENS_WINDOW.contains(&kind) {
        texts.extend(typed(texts_in(body, ["body", "text"])));
    }
    let malformed = if texts.is_empty() { missing } else { Some(SkipCause::BadShape) };
    (texts, malformed)
}

/// The captions of a message's media.
fn captions(message: &Value) -> impl Iterator<Item = &str> {
    MEDIA.iter().filter_map(|kind| text(member(message, kind)?, "caption"))
}

/// The text that a user writes with an order
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages/order>,
/// 2026-05-21).
fn beside_order(message: &Value) -> Option<&str> {
    text(member(message, "order")?, "text")
}

/// The description of the row that a user chose in a list, which is shown below its title.
fn description(message: &Value) -> Option<&str> {
    text(member(message, "interactive")?.get("list_reply")?, "description")
}

/// The texts of an edited message. The message is in `edit.message`; for a time, edits came as
/// messages of the type `unsupported`
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages/edit>,
/// 2026-06-17).
fn edited(message: &Value) -> Vec<Text<'_>> {
    let edits = ["edit", "unsupported"].into_iter().filter_map(|kind| member(message, kind));
    let messages = edits.flat_map(|edit| edit.get("message").into_iter().chain([edit]));
    let texts = messages.flat_map(|message| {
        let mut texts = said_anywhere(message);
        texts.extend(captions(message).map(Text::typed));
        texts
    });
    texts.collect()
}

/// The texts of the answers in a submitted form. They are a JSON object in a text,
/// `interactive.nfm_reply.response_json`, whose fields the business has named
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/flows/guides/receiveflowresponse>,
/// read on 2026-11-28). What is no JSON is read as one text.
fn form_answers(message: &Value) -> FormAnswers {
    let mut answers = FormAnswers::default();
    let reply = member(message, "interactive").and_then(|body| body.get("nfm_reply"));
    let Some(response) = reply.and_then(|reply| reply.get("response_json")) else {
        return answers;
    };
    let Value::String(response) = response else {
        answers.add(response);
        return answers;
    };
    let parsed: Result<Value, _> = serde_json::from_str(response)
        .or_else(|_| serde_json::from_slice(&repair_json(response.as_bytes())));
    match parsed {
        Ok(parsed) => answers.add(&parsed),
        Err(_) => answers.texts.extend(Some(response.clone()).filter(|text| !text.is_empty())),
    }
    answers
}

/// The answers in a submitted form.
#[derive(Default)]
struct FormAnswers {
    /// Texts of which no two are equal.
    texts: Vec<String>,
    /// Whether the form has more than [`MAX_FORM_ANSWERS`] of them.
    has_more: bool,
}

impl FormAnswers {
    /// Adds the texts in a value and in all that is nested in it, but for the form's token. The nesting
    /// is bounded by the parser.
    fn add(&mut self, value: &Value) {
        let (mut seen, mut open) = (HashSet::new(), vec![value]);
        while let Some(value) = open.pop() {
            match value {
                Value::String(text) if !text.is_empty() && seen.insert(text) => {
                    if self.texts.len() >= MAX_FORM_ANSWERS {
                        self.has_more = true;
                        return;
                    }
                    self.texts.push(text.clone());
                }
                Value::Array(items) => open.extend(items.iter().rev()),
                Value::Object(fields) => {
                    let answers = fields.iter().rev().filter(|(name, _)| *name != FORM_TOKEN);
                    open.extend(answers.map(|(_, value)| value));
                }
                _ => {}
            }
        }
    }
}

fn typed(texts: Vec<&str>) -> Vec<Text<'_>> {
    texts.into_iter().map(Text::typed).collect()
}

fn pressed(texts: Vec<&str>) -> Vec<Text<'_>> {
    texts.into_iter().map(Text::button).collect()
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

/// The texts in every place where a message of any type has what the user said.
fn said_anywhere(message: &Value) -> Vec<Text<'_>> {
    let mut texts = typed(texts_in(message.get("text"), ["body", "body"]));
    texts.extend(pressed(texts_in(message.get("button"), ["text", "payload"])));
    texts.extend(pressed(replies(message)));
    texts
}
