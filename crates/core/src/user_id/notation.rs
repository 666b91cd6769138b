//! What a phone number is written with: digits of any script, separators, invisible characters.

use icu_properties::CodePointMapData;
use icu_properties::props::GeneralCategory;

use super::number::PhoneNumber;
use super::refusal::Refusal;
use crate::hidden_chars;

/// What a character is in a phone number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sign {
    /// A decimal digit of any script.
    Digit(u8),
    /// A plus sign.
    Plus,
    /// An opening bracket.
    Open,
    /// A closing bracket.
    Close,
    /// A point, which may be a decimal one.
    Dot,
    /// A slash, which may part two numbers.
    Slash,
    /// A space, a hyphen or a dash.
    Separator,
    /// A character without a shape of its own.
    Invisible,
    /// A letter.
    Letter,
    /// Anything else.
    Other,
}

/// What this character is in a phone number.
#[inline]
pub(super) fn sign(c: char) -> Sign {
    match c {
        '0'..='9' => Sign::Digit(digit_from(c, '0')),
        '+' => Sign::Plus,
        ' ' | '-' | '~' => Sign::Separator,
        '(' | '[' | '{' => Sign::Open,
        ')' | ']' | '}' => Sign::Close,
        '.' => Sign::Dot,
        '/' => Sign::Slash,
        'a'..='z' | 'A'..='Z' => Sign::Letter,
        _ if c.is_ascii() => Sign::Other,
        _ => sign_beyond_ascii(c),
    }
}

fn sign_beyond_ascii(c: char) -> Sign {
    match c {
        '\u{ff0b}' | '\u{fe62}' => return Sign::Plus,
        // Middle dots, bullets, ideographic and full-width full stops.
        '\u{b7}' | '\u{2022}' | '\u{2024}' | '\u{2027}' | '\u{3002}' | '\u{30fb}' | '\u{fe52}'
        | '\u{ff0e}' | '\u{ff61}' => return Sign::Dot,
        // Fraction, division and full-width slashes.
        '\u{2044}' | '\u{2215}' | '\u{ff0f}' => return Sign::Slash,
        // Minus signs, the prolonged sound mark that stands for a hyphen, swung dashes.
        '\u{2212}' | '\u{2043}' | '\u{30fc}' | '\u{ff70}' | '\u{2053}' | '\u{223c}'
        | '\u{ff5e}' => return Sign::Separator,
        // Low quotation marks, which Unicode counts among the brackets.
        '\u{201a}' | '\u{201e}' | '\u{301d}'..='\u{301f}' => return Sign::Other,
        _ => {}
    }
    if let Some(digit) = digit_of_any_script(c) {
        return Sign::Digit(digit);
    }
    if c.is_whitespace() && !c.is_control() {
        return Sign::Separator;
    }
    if hidden_chars::is_invisible(c) {
        return Sign::Invisible;
    }
    match CodePointMapData::<GeneralCategory>::new().get(c) {
        GeneralCategory::DashPunctuation => Sign::Separator,
        GeneralCategory::OpenPunctuation => Sign::Open,
        GeneralCategory::ClosePunctuation => Sign::Close,
        _ if c.is_alphabetic() => Sign::Letter,
        _ => Sign::Other,
    }
}

/// The digit zero of every script that has decimal digits of its own (Unicode's category Nd); each
/// is followed by its other nine. A test compares them with Unicode's data.
const ZEROS: [u32; 76] = [
    0x0660, 0x06f0, 0x07c0, 0x0966, 0x09e6, 0x0a66, 0x0ae6, 0x0b66, 0x0be6, 0x0c66, 0x0ce6, 0x0d66,
    0x0de6, 0x0e50, 0x0ed0, 0x0f20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90,
    0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
    0x104a0, 0x10d30, 0x10d40, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0,
    0x11650, 0x116c0, 0x116d0, 0x116da, 0x11730, 0x118e0, 0x11950, 0x11bf0, 0x11c50, 0x11d50,
    0x11da0, 0x11de0, 0x11f50, 0x16130, 0x16a60, 0x16ac0, 0x16b50, 0x16d70, 0x1ccf0, 0x1d7ce,
    0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e4f0, 0x1e5f1, 0x1e950, 0x1fbf0,
];

fn digit_of_any_script(c: char) -> Option<u8> {
    let code = u32::from(c);
    let zero = *ZEROS.get(ZEROS.partition_point(|zero| *zero <= code).checked_sub(1)?)?;
    u8::try_from(code.saturating_sub(zero)).ok().filter(|digit| *digit < 10)
}

fn digit_from(c: char, zero: char) -> u8 {
    u8::try_from(u32::from(c).saturating_sub(u32::from(zero))).unwrap_or_default()
}

/// The text without white space and invisible characters at its ends.
pub(super) fn trim(text: &str) -> &str {
    let is_plain = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_graphic);
    if is_plain(text.as_bytes().first()) && is_plain(text.as_bytes().last()) {
        return text;
    }
    text.trim_matches(|c: char| {
        c.is_whitespace() || (!c.is_ascii() && hidden_chars::is_invisible(c))
    })
}

/// A character that is no part of a phone number, and how many digits are before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unexpected {
    /// The character.
    pub(super) character: char,
    /// Where it is, in bytes.
    pub(super) place: usize,
    /// How many digits are before it.
    pub(super) digits_before: usize,
}

/// The digits of a text, up to the first character that is no part of a phone number, and what must
/// be known of how they are written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Digits {
    /// The number that the digits make.
    value: u64,
    /// How many they are.
    len: usize,
    /// Whether a `+` stands behind a digit.
    has_plus_inside: bool,
    /// How many points there are.
    dots: usize,
    /// How many digits stand before the last point.
    before_dot: usize,
    /// The number that the digits behind the last point make.
    fraction: u64,
    /// Whether brackets, slashes, spaces or hyphens are between the digits.
    has_separator: bool,
    /// How many digits stand before each slash, the last one.
    before_slash: usize,
    /// How many digits before a slash are a number of their own: more behind a + or 00.
    number_before_slash: usize,
    /// Whether a slash has a number before it and another one behind it.
    has_two_numbers: bool,
    /// How many digits stand before a 0 that is alone in brackets.
    before_bracketed_zero: Option<usize>,
    /// The first character that is no part of a phone number.
    pub(super) unexpected: Option<Unexpected>,
}

/// How many digits make a number of its own, and not a part of one.
pub(super) const DIGITS_OF_A_NUMBER: usize = 7;

/// How many digits before a slash are a number of their own behind a + or 00.
const DIGITS_BEFORE_A_SLASH: usize = 11;

/// The most digits that are kept: the longest number, with a prefix of either kind before it. They
/// fit: 10¹⁹ < 2⁶⁴.
const MAX_SCANNED: usize = 19;

impl Digits {
    /// Reads a text up to the first character that is no part of a phone number.
    pub(super) fn scan(text: &str) -> Self {
        let mut found = Self { number_before_slash: DIGITS_OF_A_NUMBER, ..Self::default() };
        let mut opened_at = None;
        for (place, character) in text.char_indices() {
            match sign(character) {
                Sign::Digit(digit) => found.push(digit),
                Sign::Plus => {
                    found.has_plus_inside |= found.len > 0;
                    found.number_before_slash = DIGITS_BEFORE_A_SLASH;
                }
                Sign::Open => {
                    opened_at = Some(found.len);
                    found.has_separator = true;
                }
                Sign::Close => {
                    let is_alone = opened_at.is_some_and(|at| at.saturating_add(1) == found.len);
                    if is_alone && found.value.is_multiple_of(10) {
                        found.before_bracketed_zero =
                            found.before_bracketed_zero.or(opened_at).filter(|at| *at > 0);
                    }
                    opened_at = None;
                    found.has_separator = true;
                }
                Sign::Dot => {
                    found.dots = found.dots.saturating_add(1);
                    (found.before_dot, found.fraction) = (found.len, 0);
                }
                Sign::Slash => {
                    found.end_of_part();
                    found.has_separator = true;
                }
                Sign::Separator => found.has_separator = true,
                Sign::Invisible => {}
                Sign::Letter | Sign::Other => {
                    let digits_before = found.len;
                    found.unexpected = Some(Unexpected { character, place, digits_before });
                    break;
                }
            }
        }
        found.end_of_part();
        found
    }

    /// How many digits there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn push(&mut self, digit: u8) {
        let digit = u64::from(digit);
        if self.len < MAX_SCANNED {
            self.value = self.value.wrapping_mul(10).wrapping_add(digit);
        }
        self.fraction = self.fraction.saturating_mul(10).saturating_add(digit);
        self.len = self.len.saturating_add(1);
        if self.len == 2 && self.value == 0 {
            self.number_before_slash = DIGITS_BEFORE_A_SLASH;
        }
    }

    /// A slash, or the end.
    fn end_of_part(&mut self) {
        let behind = self.len.saturating_sub(self.before_slash);
        // Country and area code, with the prefixes before either, may be before a slash.
        self.has_two_numbers |=
            self.before_slash >= self.number_before_slash && behind >= DIGITS_OF_A_NUMBER;
        self.before_slash = self.len;
    }

    /// The phone number that these digits are.
    pub(super) fn number(&self) -> Result<PhoneNumber, Refusal> {
        if self.len == 0 {
            return Err(Refusal::NoDigit);
        }
        if self.has_two_numbers {
            return Err(Refusal::SeveralNumbers);
        }
        if self.has_plus_inside {
            let is_several = self.len >= DIGITS_OF_A_NUMBER.saturating_mul(2);
            return Err(if is_several { Refusal::SeveralNumbers } else { Refusal::PlusInside });
        }
        self.check_fraction()?;
        if self.len > MAX_SCANNED {
            return Err(Refusal::TooManyDigits);
        }
        PhoneNumber::of_digits(self.value, self.len, self.before_bracketed_zero)
    }

    /// Refuses what a spreadsheet made of a number that it took for a quantity.
    fn check_fraction(&self) -> Result<(), Refusal> {
        let behind = self.len.saturating_sub(self.before_dot);
        if self.dots == 0 || self.before_dot == 0 || behind == 0 {
            return Ok(());
        }
        if behind <= 2 && self.fraction == 0 {
            return Err(Refusal::SpreadsheetDecimal);
        }
        let is_quantity = self.dots == 1 && !self.has_separator && behind <= 3;
        if is_quantity && self.before_dot >= DIGITS_OF_A_NUMBER {
            return Err(Refusal::Decimal);
        }
        Ok(())
    }
}
