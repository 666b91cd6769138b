//! Typed, lenient access to the fields of a JSON object.

use std::borrow::Cow;

use serde_json::Value;

use consentd_core::hidden_chars;
use consentd_core::time::Timestamp;

/// A text that is not empty.
pub(super) fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// The day WhatsApp Inc. was founded, 24 February 2009, as Unix time in seconds. An earlier time, such
/// as 0, is a default or a mistake. It would make a STOP older than every opt-in, so it counts as
/// missing.
const WHATSAPP_FOUNDED_SECONDS: i64 = 1_235_433_600;

/// A keyword of the format in lower case, such as a message's type. Nothing if a part of it could not
/// be parsed, because its meaning is unknown then.
pub(super) fn word<'a>(object: &'a Value, name: &str) -> Option<Cow<'a, str>> {
    let word = text(object, name)?.trim();
    if word.is_empty() || !is_whole(word) {
        return None;
    }
    let is_lower = !word.bytes().any(|byte| byte.is_ascii_uppercase());
    Some(if is_lower { Cow::Borrowed(word) } else { Cow::Owned(word.to_ascii_lowercase()) })
}

/// The member of this name, compared without regard to case.
pub(super) fn member<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| {
        let mut members = object.as_object()?.iter();
        members.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    })
}

/// Whether a text has no replacement character, and so was parsed completely.
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
    /// 2⁵³: above it, an `f64` cannot represent every whole number.
    const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
    ((0.0..MAX_EXACT).contains(&number) && number.fract() == 0.0).then(|| format!("{number:.0}"))
}

/// The longest id that is read, in bytes: the longest user id that can be recorded, and several invisible
/// characters before each of its own.
const MAX_NAME_BYTES: usize = 2 * 1024;

/// The id of a user or a number, without invisible characters. Checks refuse such characters, so a STOP
/// that was recorded with them would apply to another id. Nothing if it is longer than
/// [`MAX_NAME_BYTES`]: no id is, and the characters of each are looked up.
pub(super) fn name(object: &Value, name: &str) -> Option<String> {
    let id = id(object, name).filter(|id| id.len() <= MAX_NAME_BYTES && is_whole(id))?;
    Some(hidden_chars::cleaned(&id).into_owned()).filter(|id| !id.is_empty())
}

/// A Unix time in whole seconds, which the platform writes as a text or as a number. A time in
/// milliseconds exceeds the range of [`Timestamp`] and counts as missing.
pub(super) fn seconds(object: &Value, name: &str) -> Option<Timestamp> {
    let seconds: i64 = match object.get(name)? {
        // The parser would take a sign.
        Value::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok()?,
        Value::Number(number) => number.as_i64()?,
        _ => return None,
    };
    if seconds < WHATSAPP_FOUNDED_SECONDS {
        return None;
    }
    Timestamp::from_millis(seconds.checked_mul(1_000)?)
}

/// An error's code, written as a text or as a whole number. Nothing unless it is positive.
pub(super) fn code(object: &Value, name: &str) -> Option<i32> {
    id(object, name)?.trim().parse().ok().filter(|code| *code > 0)
}

/// Whether the object has a value of this name that is not null.
pub(super) fn has(object: &Value, name: &str) -> bool {
    object.get(name).is_some_and(|value| !value.is_null())
}

/// The items of a list. An object in place of a list counts as its one item, and a missing list as
/// empty.
pub(super) fn list<'a>(object: &'a Value, name: &str) -> Result<&'a [Value], NotAList> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(item @ Value::Object(_)) => Ok(std::slice::from_ref(item)),
        Some(_) => Err(NotAList),
    }
}

/// A value that should be a list and is neither list, object nor null.
pub(super) struct NotAList;
