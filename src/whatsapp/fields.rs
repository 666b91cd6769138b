//! The fields of a JSON object, as far as they are what they should be.

use std::borrow::Cow;

use serde_json::Value;

use consentd_core::hidden;
use consentd_core::time::Timestamp;

/// A text that is not empty.
pub(super) fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// WhatsApp Inc. was founded on 24 February 2009, in seconds of Unix time. An earlier time, 0 above
/// all, is a default or a mistake. Taken at its word it would make a STOP older than every opt-in,
/// so it is read as no time at all.
const WHATSAPP_FOUNDED: i64 = 1_235_433_600;

/// A word that says what something is, in lower case: `TEXT` is the same type as `text`. One of
/// which a part could not be parsed is none: then it is not known what was said.
pub(super) fn word<'a>(object: &'a Value, name: &str) -> Option<Cow<'a, str>> {
    let word = text(object, name)?.trim();
    if word.is_empty() || !is_whole(word) {
        return None;
    }
    let is_lower = !word.bytes().any(|byte| byte.is_ascii_uppercase());
    Some(if is_lower { Cow::Borrowed(word) } else { Cow::Owned(word.to_ascii_lowercase()) })
}

/// The member of this name, whatever the case of its letters.
pub(super) fn member<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| {
        let mut members = object.as_object()?.iter();
        members.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    })
}

/// Whether all of a text could be parsed.
fn is_whole(text: &str) -> bool {
    !text.contains(char::REPLACEMENT_CHARACTER)
}

/// An id: a text that is not empty, or a whole number, as some write numbers' ids.
pub(super) fn id(object: &Value, name: &str) -> Option<String> {
    match object.get(name)? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => {
            number.as_u64().map(|number| number.to_string()).or_else(|| whole(number.as_f64()?))
        }
        _ => None,
    }
}

/// A whole number that was written as a decimal one.
fn whole(number: f64) -> Option<String> {
    /// Beyond it not every whole number has an `f64` of its own.
    const MOST: f64 = 9_007_199_254_740_992.0;
    ((0.0..MOST).contains(&number) && number.fract() == 0.0).then(|| format!("{number:.0}"))
}

/// An id that names somebody, without the characters of it that nobody sees: whoever asks about it
/// has to leave them out, so with them a STOP would be recorded of somebody else.
pub(super) fn name(object: &Value, name: &str) -> Option<String> {
    let id = id(object, name).filter(|id| is_whole(id))?;
    Some(hidden::cleaned(&id).into_owned()).filter(|id| !id.is_empty())
}

/// A moment in whole seconds, which the platform gives as a text in some places and as a number in
/// others. Milliseconds in their place are beyond every time that can be kept, so they are none.
pub(super) fn seconds(object: &Value, name: &str) -> Option<Timestamp> {
    let seconds: i64 = match object.get(name)? {
        // The parser would take a sign.
        Value::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok()?,
        Value::Number(number) => number.as_i64()?,
        _ => return None,
    };
    if seconds < WHATSAPP_FOUNDED {
        return None;
    }
    Timestamp::from_millis(seconds.checked_mul(1_000)?)
}

/// An error's code, as a text or as a whole number. 0 is none.
pub(super) fn code(object: &Value, name: &str) -> Option<i32> {
    id(object, name)?.trim().parse().ok().filter(|code| *code > 0)
}

/// Whether there is something of this name.
pub(super) fn has(object: &Value, name: &str) -> bool {
    object.get(name).is_some_and(|value| !value.is_null())
}

/// The items of a list, of which an object alone is one. Nothing where there is none; an error where
/// it is neither.
pub(super) fn list<'a>(object: &'a Value, name: &str) -> Result<&'a [Value], NotAList> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(item @ Value::Object(_)) => Ok(std::slice::from_ref(item)),
        Some(_) => Err(NotAList),
    }
}

/// What should be a list is none.
pub(super) struct NotAList;
