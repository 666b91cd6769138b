//! Reading a user id: a phone number in any of the world's notations, an id of WhatsApp's, or an
//! operator's own.
//!
//! One pure function, [`read`], serves recording, asking, importing, webhooks and erasing, so that a
//! person is the same pair wherever the id comes from. What looks like a number and cannot be read as one is refused with the reason: as an opaque
//! id it would be acknowledged, and would forbid nothing.
//!
//! [`address`] takes channel prefixes, links and gateways' addresses off, [`notation`] knows what a
//! number is written with, [`number`] makes the number of a line out of its digits by
//! [`numbering_plan`] (generated from libphonenumber) and [`renumbering`], and [`opaque`] looks
//! for numbers in disguise in all other ids. [`former`] is how versions before read an id: what they
//! recorded has its key. [`national`] completes the numbers of a list that was kept in one country.

mod address;
mod former;
mod national;
mod notation;
mod number;
mod numbering_plan;
mod opaque;
mod refusal;
mod renumbering;

#[cfg(test)]
mod example_tests;
#[cfg(test)]
mod tests;

pub use former::read as read_formerly;
pub(crate) use former::was_never_taken;
pub use national::{NationalRefusal, Region};
use notation::Digits;
use number::Marks;
pub use number::PhoneNumber;
pub use refusal::Refusal;

/// The longest user id, in bytes of UTF-8.
pub const MAX_USER_ID_BYTES: usize = 160;

/// A user id as it was read. No reading allocates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reading<'a> {
    /// A phone number, of which only the line counts.
    Phone(PhoneNumber),
    /// WhatsApp's business-scoped id, or an id by the operator's own naming; case counts.
    Opaque(&'a str),
}

/// Reads a user id. Allocates nothing for an id that can be read.
///
/// # Errors
///
/// A [`Refusal`], which says what was wrong and what would be right, and does not hold the id.
pub fn read(id: &str) -> Result<Reading<'_>, Refusal> {
    read_both(id).map(|(reading, _)| reading)
}

/// Reads a user id as [`read`] does; gives also how versions before read it, if that was otherwise:
/// what they recorded has the key of that reading.
///
/// # Errors
///
/// As for [`read`].
#[inline]
pub fn read_both(id: &str) -> Result<(Reading<'_>, Option<Reading<'_>>), Refusal> {
    // Nearly all ids are plain digits, as the platform writes them.
    match PhoneNumber::of_plain_digits(id.as_bytes()) {
        Some((number, marks)) if marks.is_empty() => Ok((Reading::Phone(number), None)),
        // Mobile numbers of Brazil, Mexico and Argentina, which versions before read so, too.
        Some((number, marks)) if marks.is_of_mobile_digit(number.len()) => {
            Ok((Reading::Phone(renumbering::without_mobile_digit(number)), None))
        }
        Some((number, marks)) => read_marked(number, marks),
        // The other kind that is common; versions before read it so, too.
        None if opaque::is_platform_id(id)? => Ok((Reading::Opaque(id), None)),
        None => {
            let reading = read_notation(id)?;
            Ok((reading, former::read(id).filter(|former| *former != reading)))
        }
    }
}

/// Reads plain digits whose line may have another notation.
fn read_marked<'a>(
    number: PhoneNumber,
    marks: Marks,
) -> Result<(Reading<'a>, Option<Reading<'a>>), Refusal> {
    let former = renumbering::without_mobile_digit(number);
    let line = if marks.has_trunk() { number.line()? } else { renumbering::current(number) };
    Ok((Reading::Phone(line), (former != line).then_some(Reading::Phone(former))))
}

/// Reads whatever is not just digits.
#[inline(never)]
fn read_notation(id: &str) -> Result<Reading<'_>, Refusal> {
    match id.len() {
        0 => return Err(Refusal::Empty),
        1..=MAX_USER_ID_BYTES => {}
        _ => return Err(Refusal::TooLong),
    }
    let trimmed = notation::trim(id);
    let body = address::body(trimmed)?;
    // White space is dropped around a number alone: around any other id it is refused by name.
    if trimmed.len() == id.len() && opaque::is_platform_id(body)? {
        return Ok(Reading::Opaque(body));
    }
    let digits = Digits::scan(body);
    match digits.unexpected {
        None => digits.number().map(Reading::Phone),
        Some(unexpected) => opaque::read(id, body, unexpected).map(Reading::Opaque),
    }
}
