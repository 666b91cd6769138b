//! Ids that are no phone numbers: WhatsApp's business-scoped ones, and an operator's own. A number in
//! disguise is refused, and so is an id without a letter.

use super::notation::{DIGITS_OF_A_NUMBER, Digits, Sign, Unexpected, sign};
use super::refusal::Refusal;
use crate::hidden_chars;
use crate::template::PREFIX;

/// The most letters and digits of a business-scoped id behind its country and point.
const MAX_PLATFORM_ID: usize = 128;

/// How many digits behind a plus sign are a phone number, even a short one.
const DIGITS_BEHIND_A_PLUS: usize = 5;

/// Whether this is a business-scoped id: `CC.` or `CC.ENT.` and letters and digits.
pub(super) fn is_platform_id(body: &str) -> Result<bool, Refusal> {
    let Some((country, rest)) = body.split_at_checked(3) else { return Ok(false) };
    let rest = rest.strip_prefix("ENT.").unwrap_or(rest);
    let is_country = matches!(country.as_bytes(), [b'A'..=b'Z', b'A'..=b'Z', b'.']);
    if !is_country || rest.is_empty() || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(false);
    }
    if rest.len() > MAX_PLATFORM_ID {
        return Err(Refusal::PlatformIdTooLong);
    }
    Ok(true)
}

/// Reads an id of the operator's own, in whose body this character is no part of a phone number.
pub(super) fn read<'a>(
    id: &'a str,
    body: &str,
    unexpected: Unexpected,
) -> Result<&'a str, Refusal> {
    if body.starts_with(PREFIX) {
        return Err(Refusal::Template);
    }
    if !body.chars().any(char::is_alphabetic) {
        return Err(without_letter(id, body, unexpected));
    }
    if let Some(refusal) = number_in_disguise(body, unexpected) {
        return Err(refusal);
    }
    match hidden_chars::find(id) {
        None => Ok(id),
        Some(hidden) => Err(Refusal::Hidden(hidden)),
    }
}

/// Why an id without letters is no number.
fn without_letter(id: &str, body: &str, unexpected: Unexpected) -> Refusal {
    let Unexpected { character, place, digits_before } = unexpected;
    if character.is_control()
        && let Some(hidden) = hidden_chars::find(id)
    {
        return Refusal::Hidden(hidden);
    }
    let (_, rest) = body.split_at_checked(place).unwrap_or_default();
    let behind = count_digits(rest);
    let are_two = digits_before >= DIGITS_OF_A_NUMBER && behind >= DIGITS_OF_A_NUMBER;
    match character {
        _ if digits_before == 0 && is_apostrophe(character) => Refusal::Apostrophe,
        _ if digits_before == 0 && (character == '=' || is_quotation_mark(character)) => {
            Refusal::Formula
        }
        ',' | ';' | '|' | '&' | '\u{60c}' | '\u{3001}' | '\u{ff0c}' | '\u{ff1b}' if are_two => {
            Refusal::SeveralNumbers
        }
        ',' | '\u{60c}' | '\u{66b}' | '\u{66c}' | '\u{ff0c}' => Refusal::Comma,
        '#' | ';' if digits_before >= DIGITS_OF_A_NUMBER => Refusal::Extension,
        _ => Refusal::NotANumber { character, place },
    }
}

/// Why an id with letters is a number that must be written otherwise.
fn number_in_disguise(body: &str, unexpected: Unexpected) -> Option<Refusal> {
    let total = count_digits(body);
    if body.starts_with('=') && total >= DIGITS_OF_A_NUMBER {
        return Some(Refusal::Formula);
    }
    if is_exponential(body) {
        return Some(Refusal::Exponent);
    }
    let (head, tail) = body.split_at_checked(unexpected.place)?;
    let is_number = unexpected.digits_before >= DIGITS_OF_A_NUMBER;
    if is_number && is_extension(tail) {
        return Some(Refusal::Extension);
    }
    if is_number && is_second_number(head, tail) {
        return Some(Refusal::SeveralNumbers);
    }
    if head.contains('+') && unexpected.digits_before > 0 {
        return Some(Refusal::LetterInNumber);
    }
    has_number_behind_text(body).then_some(Refusal::UnknownPrefix)
}

fn count_digits(text: &str) -> usize {
    text.chars().filter(|c| matches!(sign(*c), Sign::Digit(_))).count()
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '`' | '\u{b4}' | '\u{2018}' | '\u{2019}' | '\u{2032}' | '\u{ff07}')
}

fn is_quotation_mark(c: char) -> bool {
    matches!(c, '"' | '\u{ab}' | '\u{bb}' | '\u{201c}'..='\u{201e}' | '\u{ff02}')
}

/// `1.5550123456E+10`: digits with a fraction, or an exponent with a sign.
fn is_exponential(text: &str) -> bool {
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let Some((mantissa, exponent)) = text.split_once(['e', 'E']) else { return false };
    let unsigned = exponent.strip_prefix(['+', '-']);
    let is_whole = all_digits(mantissa);
    let has_fraction = mantissa
        .split_once(['.', ','])
        .is_some_and(|(whole, fraction)| all_digits(whole) && all_digits(fraction));
    let is_signed = unsigned.is_some();
    all_digits(unsigned.unwrap_or(exponent)) && (has_fraction || (is_whole && is_signed))
}

/// The words for an extension, in the languages that libphonenumber reads it in.
const EXTENSION_WORDS: [&str; 12] = [
    "extension",
    "extensión",
    "extn",
    "ext",
    "xtn",
    "x",
    "\u{ff58}",
    "#",
    ";ext",
    "int",
    "anexo",
    "доб",
];

/// Whether the text behind a number is an extension or a parameter of it.
fn is_extension(tail: &str) -> bool {
    if tail.starts_with(';') {
        return true;
    }
    let starts_with = |word: &&&str| {
        let mut letters = tail.chars().flat_map(char::to_lowercase);
        word.chars().all(|letter| letters.next() == Some(letter))
    };
    EXTENSION_WORDS.iter().filter(starts_with).any(|word| {
        let rest: usize = tail.chars().take(word.chars().count()).map(char::len_utf8).sum();
        let (_, rest) = tail.split_at_checked(rest).unwrap_or_default();
        let digits = rest.trim_start_matches([':', '=', '.', ' ', '\u{a0}', '\u{ff1a}']);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Whether a second number is behind a word, such as "or", that stands between spaces.
fn is_second_number(head: &str, tail: &str) -> bool {
    let Some(end) = tail.find(char::is_whitespace) else { return false };
    let (word, second) = tail.split_at_checked(end).unwrap_or_default();
    let second = Digits::scan(second);
    head.ends_with(char::is_whitespace)
        && word.chars().all(char::is_alphabetic)
        && second.unexpected.is_none()
        && second.len() >= DIGITS_OF_A_NUMBER
}

/// Whether a `+` and a number are behind text, parted from it by a colon, a slash or a space.
fn has_number_behind_text(body: &str) -> bool {
    let is_number = |text: &str| {
        let digits = Digits::scan(text);
        digits.unexpected.is_none() && digits.len() >= DIGITS_BEHIND_A_PLUS
    };
    let is_parted = |before: &str| {
        before.ends_with(|c: char| {
            matches!(c, ':' | '=' | '|' | ',' | ';' | '"' | '\'')
                || matches!(sign(c), Sign::Slash | Sign::Separator | Sign::Open | Sign::Invisible)
        })
    };
    let behind_plus = body.char_indices().filter(|(_, c)| sign(*c) == Sign::Plus);
    let mut plus = behind_plus.filter_map(|(place, _)| body.split_at_checked(place));
    let mut encoded = body.match_indices("%2B").filter_map(|(at, _)| body.split_at_checked(at));
    plus.any(|(before, number)| is_parted(before) && is_number(number))
        || encoded.any(|(_, number)| number.strip_prefix("%2B").is_some_and(is_number))
}
