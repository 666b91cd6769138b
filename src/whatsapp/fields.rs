//! The fields of a JSON object, as far as they are what they should be.

use serde_json::Value;

use consentd_core::hidden;
use consentd_core::time::Timestamp;

/// A text that is not empty.
pub(super) fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// A word that says what something is. One of which a part could not be parsed is none: then it is
/// not known what was said.
pub(super) fn word<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    text(object, name).map(str::trim).filter(|word| !word.is_empty() && is_whole(word))
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
/// others.
pub(super) fn seconds(object: &Value, name: &str) -> Option<Timestamp> {
    let seconds: i64 = match object.get(name)? {
        // The parser would take a sign.
        Value::String(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok()?,
        Value::Number(number) => number.as_i64()?,
        _ => return None,
    };
    Timestamp::from_millis(seconds.checked_mul(1_000)?)
}

/// An error's code, of which 0 is none.
pub(super) fn code(object: &Value, name: &str) -> Option<i32> {
    let code: i32 = match object.get(name)? {
        Value::String(text) => text.parse().ok()?,
        Value::Number(number) => number.as_i64()?.try_into().ok()?,
        _ => return None,
    };
    (code > 0).then_some(code)
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
