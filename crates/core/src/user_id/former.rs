//! How versions before read a user id. What they recorded has the key of this reading.
//!
//! An id made only of digits, white space and `+ ( ) . -` was a phone number, whatever its digits
//! were but for a mobile digit, and any other one was opaque.

use super::Reading;
use super::number::{MAX_PHONE_DIGITS, PhoneNumber};
use super::renumbering::without_mobile_digit;

/// The longest id that they took, in bytes.
const MAX_BYTES: usize = 128;

/// What an id was read as, if any version before took it.
#[must_use]
pub fn read(id: &str) -> Option<Reading<'_>> {
    if id.is_empty() || id.len() > MAX_BYTES {
        return None;
    }
    let is_phone = |c: char| {
        matches!(c, '0'..='9' | '+' | '(' | ')' | '.' | '-')
            || (c.is_whitespace() && !c.is_control())
    };
    if !id.chars().all(is_phone) {
        return (!id.chars().any(was_never_taken)).then_some(Reading::Opaque(id));
    }
    let trimmed = id.trim_end();
    if trimmed.ends_with(".0") || trimmed.ends_with(".00") {
        return None;
    }
    let (mut value, mut len) = (0_u64, 0_usize);
    for digit in id.bytes().filter(u8::is_ascii_digit) {
        if len >= MAX_PHONE_DIGITS {
            return None;
        }
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')));
        len = len.saturating_add(1);
    }
    (len > 0).then(|| Reading::Phone(without_mobile_digit(PhoneNumber::new(value, len))))
}

/// Characters that were refused from the first version on.
pub(crate) fn was_never_taken(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}
