//! References of history entries to the messages that caused them.

use consentd_core::event::{MAX_REFERENCE_BYTES, What};
use consentd_core::scope::Scope;
use consentd_core::time::Timestamp;

/// The opt-out by a keyword in a message.
pub(super) fn by_keyword(scope: Scope, message_id: &str) -> What {
    What::OptOut { scope, reference: by_message("keyword in message", message_id) }
}

/// Names the message that confirmed an opt-in, with the message's time: the opt-in itself counts as of
/// the time of the request.
pub(super) fn confirmed_by(message_id: &str, time: Timestamp) -> String {
    let mut text = by_message("message", message_id);
    let at = format!(" at {}", time.rfc3339_millis());
    text.truncate(text.floor_char_boundary(MAX_REFERENCE_BYTES.saturating_sub(at.len())));
    text + &at
}

/// Names a message, within the length of a reference.
pub(super) fn by_message(what: &str, message_id: &str) -> String {
    let mut text = format!("{what} {message_id}").trim_end().to_owned();
    text.truncate(text.floor_char_boundary(MAX_REFERENCE_BYTES));
    text
}
