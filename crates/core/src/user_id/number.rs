//! A phone number: the digits of a line, country code first, in the one notation that stands for all
//! of them.

use std::fmt;

use super::numbering_plan::{LEADING_ZERO, TRUNKS, TWO_DIGIT_CODES, Trunk};
use super::refusal::Refusal;
use super::renumbering;

/// The most digits of a phone number (ITU-T E.164).
pub(super) const MAX_PHONE_DIGITS: usize = 15;

/// A phone line: the number that its digits make, and how many they are.
///
/// Two notations of a line are the same value, and two lines are two values.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct PhoneNumber {
    value: u64,
    len: usize,
}

impl fmt::Debug for PhoneNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} digits", self.len)
    }
}

/// Ten to this power. Beyond 10¹⁹, which no number here reaches, it is the most that 64 bits hold, so
/// that it divides without a panic.
#[inline]
#[allow(clippy::indexing_slicing, reason = "the index is below the length")]
pub(super) const fn ten_to(power: usize) -> u64 {
    if power < POWERS.len() { POWERS[power] } else { u64::MAX }
}

const POWERS: [u64; 20] = powers();

#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "run by the compiler, where a panic is a compile error"
)]
const fn powers() -> [u64; 20] {
    let mut powers = [1; 20];
    let mut power = 1;
    while power < powers.len() {
        powers[power] = powers[power - 1] * 10;
        power += 1;
    }
    powers
}

impl PhoneNumber {
    /// These digits, as they are.
    pub(super) const fn new(value: u64, len: usize) -> Self {
        Self { value, len }
    }

    /// The number that the digits make.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.value
    }

    /// How many digits there are.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether it begins with these digits, which are `len` many.
    #[inline]
    #[must_use]
    pub(crate) fn has_prefix(self, digits: u64, len: usize) -> bool {
        let more = self.len.checked_sub(len);
        more.is_some_and(|more| self.value.checked_div(ten_to(more)) == Some(digits))
    }

    /// Whether there is no digit, which is so of no number that was read.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The number of 8 to 15 ASCII digits without a leading zero, as they are, and what its beginning is
    /// marked with; `None` for any other notation.
    #[inline]
    pub(super) fn of_plain_digits(text: &[u8]) -> Option<(Self, Marks)> {
        let (number, first_four) = plain_digits(text)?;
        Some((number, Marks::of(first_four)))
    }

    /// The number of these digits, which may have an international prefix, a 0 in brackets with so
    /// many digits before it, or a trunk prefix.
    pub(super) fn of_digits(
        value: u64,
        len: usize,
        before_bracketed_zero: Option<usize>,
    ) -> Result<Self, Refusal> {
        let mut number = Self { value, len };
        let mut before_zero = before_bracketed_zero;
        if number.len > 2 && number.first(2) == 0 {
            number.len = number.len.saturating_sub(2);
            before_zero = before_zero.and_then(|before| before.checked_sub(2));
        }
        if number.first(1) == 0 {
            return Err(Refusal::LeadingZero);
        }
        if before_zero == Some(number.code_len()) {
            number = number.without_bracketed_zero()?;
        }
        number.line()
    }

    /// The number that the first digits make.
    #[allow(clippy::arithmetic_side_effects, reason = "no power of ten is 0")]
    pub(super) const fn first(self, digits: usize) -> u64 {
        self.value / ten_to(self.len.saturating_sub(digits))
    }

    /// The number that the digits from `from` to before `until` make.
    #[allow(clippy::arithmetic_side_effects, reason = "no power of ten is 0")]
    pub(super) const fn part(self, from: usize, until: usize) -> u64 {
        self.first(until) % ten_to(until.saturating_sub(from))
    }

    /// The same number with the digits from `from` to before `until` replaced by these.
    #[must_use]
    pub(super) const fn with(self, from: usize, until: usize, digits: u64, count: usize) -> Self {
        let rest = self.len.saturating_sub(until);
        let start = self.first(from).wrapping_mul(ten_to(count)).wrapping_add(digits);
        let value = start.wrapping_mul(ten_to(rest)).wrapping_add(self.part(until, self.len));
        Self { value, len: from.saturating_add(count).saturating_add(rest) }
    }

    /// How many digits the country code has.
    const fn code_len(self) -> usize {
        match self.first(1) {
            1 | 7 => 1,
            _ if TWO_DIGIT_CODES >> self.first(2) & 1 == 1 => 2,
            _ => 3,
        }
    }

    /// The country code.
    fn code(self) -> u16 {
        u16::try_from(self.first(self.code_len())).unwrap_or_default()
    }

    /// Takes off the 0 that is written in brackets behind the country code.
    fn without_bracketed_zero(self) -> Result<Self, Refusal> {
        let code = self.code();
        let has_trunk_zero = trunks(code).iter().any(|trunk| trunk.prefix == 0);
        if !has_trunk_zero && LEADING_ZERO.contains(&code) {
            return Err(Refusal::BracketedZero);
        }
        let place = self.code_len();
        Ok(self.with(place, place.saturating_add(1), 0, 0))
    }

    /// The line: without a trunk prefix, and in one of the notations that reach it.
    pub(super) fn line(self) -> Result<Self, Refusal> {
        let has_trunk = self.len >= 4 && Marks::of(self.first(4)).has_trunk();
        let line = renumbering::current(if has_trunk { self.without_trunk() } else { self });
        if line.len > MAX_PHONE_DIGITS { Err(Refusal::TooManyDigits) } else { Ok(line) }
    }

    /// Takes off a trunk prefix behind the country code, where it cannot be a part of the number.
    fn without_trunk(self) -> Self {
        let (code, code_len) = (self.code(), self.code_len());
        let own_len = self.len.saturating_sub(code_len);
        let applies = |trunk: &&Trunk| {
            let prefix_len = usize::from(trunk.prefix_len);
            let until = code_len.saturating_add(prefix_len);
            let start = self.part(code_len, until);
            let following = self.part(until, until.saturating_add(2));
            usize::from(trunk.len) == own_len
                && start == u64::from(trunk.prefix)
                && (trunk.following >> following) & 1 == 1
        };
        match trunks(code).iter().find(applies) {
            Some(trunk) => {
                let until = code_len.saturating_add(usize::from(trunk.prefix_len));
                self.with(code_len, until, 0, 0)
            }
            None => self,
        }
    }
}

/// The trunk prefixes of a country code.
fn trunks(code: u16) -> &'static [Trunk] {
    let from = TRUNKS.partition_point(|trunk| trunk.code < code);
    let until = TRUNKS.partition_point(|trunk| trunk.code <= code);
    TRUNKS.get(from..until).unwrap_or_default()
}

/// What is known of the first four digits of a number. Most have no mark, and their numbers are looked
/// at no further.
#[derive(Clone, Copy)]
pub(super) struct Marks(u8);

/// A trunk prefix may be behind the country code.
const TRUNK: u8 = 1;
/// The line may have another number, of another length than 13 digits.
const RENUMBERED: u8 = 2;
/// The line may have a mobile digit, as one of 13.
const MOBILE_DIGIT: u8 = 4;

static MARKS: [u8; 10_000] = marks();

impl Marks {
    #[inline]
    fn of(first_four: u64) -> Self {
        let place = usize::try_from(first_four).unwrap_or(usize::MAX);
        Self(MARKS.get(place).copied().unwrap_or_default())
    }

    /// Whether there is none.
    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a mobile digit is all that a number of this length may have more than its line.
    #[inline]
    pub(super) fn is_of_mobile_digit(self, len: usize) -> bool {
        self.0 == MOBILE_DIGIT || (len == 13 && !self.has_trunk())
    }

    /// Whether a trunk prefix may be behind the country code.
    #[inline]
    pub(super) fn has_trunk(self) -> bool {
        self.0 & TRUNK != 0
    }
}

#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "run by the compiler, where a panic is a compile error"
)]
const fn marks() -> [u8; 10_000] {
    let mut marks = [0; 10_000];
    let mut row = 0;
    while row < TRUNKS.len() {
        let Trunk { code, prefix, prefix_len, .. } = TRUNKS[row];
        let start = code as u64 * ten_to(prefix_len as usize) + prefix as u64;
        let code_len = 1 + (code >= 10) as usize + (code >= 100) as usize;
        marks = mark(marks, start, code_len + prefix_len as usize, TRUNK);
        // The rows of one prefix follow each other.
        while row + 1 < TRUNKS.len()
            && TRUNKS[row + 1].code == code
            && TRUNKS[row + 1].prefix == prefix
        {
            row += 1;
        }
        row += 1;
    }
    let mut row = 0;
    while row < renumbering::BEGINNINGS.len() {
        let (start, len) = renumbering::BEGINNINGS[row];
        marks = mark(marks, start, len, RENUMBERED);
        row += 1;
    }
    let mut row = 0;
    while row < renumbering::MOBILE_DIGITS.len() {
        let (start, len) = renumbering::MOBILE_DIGITS[row];
        marks = mark(marks, start, len, MOBILE_DIGIT);
        row += 1;
    }
    marks
}

/// Marks the four digits that begin with these, or that these begin with.
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "run by the compiler, where a panic is a compile error"
)]
const fn mark(mut marks: [u8; 10_000], start: u64, len: usize, with: u8) -> [u8; 10_000] {
    let (mut four, count) = match len {
        4.. => (start / ten_to(len - 4), 1),
        _ => (start * ten_to(4 - len), ten_to(4 - len)),
    };
    let end = four + count;
    while four < end {
        marks[four as usize] |= with;
        four += 1;
    }
    marks
}

/// The number of 8 to 15 ASCII digits without a leading zero, and the first four of them. Eight are read
/// at a time (SWAR: SIMD within a register).
#[inline]
fn plain_digits(text: &[u8]) -> Option<(PhoneNumber, u64)> {
    const ZEROS: u64 = u64::from_le_bytes([b'0'; 8]);
    let len = text.len();
    if len > MAX_PHONE_DIGITS {
        return None;
    }
    // The two overlap; what both have is shifted out of the first one.
    let (first, last) = (text.first_chunk::<8>()?, text.last_chunk::<8>()?);
    let (first, last) = (u64::from_le_bytes(*first), u64::from_le_bytes(*last));
    if !are_digits(first) || !are_digits(last) || first & 0xff == u64::from(b'0') {
        return None;
    }
    // 64 bits and more would be shifted where there are eight digits.
    let overlap = 16_usize.wrapping_sub(len).wrapping_mul(8);
    let upper = u32::try_from(overlap).ok().and_then(|bits| (first ^ ZEROS).checked_shl(bits));
    let value = eight_digits(upper.unwrap_or(0)).wrapping_mul(ten_to(8));
    let number = PhoneNumber { value: value.wrapping_add(eight_digits(last ^ ZEROS)), len };
    Some((number, four_digits(first ^ ZEROS)))
}

/// The number that the digits in the four lowest bytes make, the first one in the lowest.
#[inline]
fn four_digits(digits: u64) -> u64 {
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    (pairs & 0xff).wrapping_mul(100).wrapping_add((pairs >> 16) & 0xff)
}

/// Whether all eight bytes are ASCII digits.
#[inline]
fn are_digits(bytes: u64) -> bool {
    const HIGH: u64 = u64::from_le_bytes([0xf0; 8]);
    const THIRTY: u64 = u64::from_le_bytes([0x30; 8]);
    const SIX: u64 = u64::from_le_bytes([6; 8]);
    // A byte of 0x3a to 0x3f carries into its high half. No byte overflows if all begin with 3.
    bytes & HIGH == THIRTY && bytes.wrapping_add(SIX) & HIGH == THIRTY
}

/// The number that eight digits make, the first one in the lowest byte.
#[inline]
fn eight_digits(digits: u64) -> u64 {
    const PAIRS: u64 = 0x0000_00ff_0000_00ff;
    // Pairs of digits, then fours, then all eight.
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let outer = (pairs & PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let inner = ((pairs >> 16) & PAIRS).wrapping_mul(1 + (10_000 << 32));
    outer.wrapping_add(inner) >> 32
}
