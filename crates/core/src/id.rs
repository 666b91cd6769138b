//! User ids and their notations, business ids, and the key of a pair.
//!
//! Ids are parsed by one of two rules. `parse` is for checks and new events: it refuses an id with a
//! [hidden character](hidden_chars), so that two ids that look alike are never two users. `recorded` is
//! for ids that are in a ledger already, to show and erase what was recorded under them: older versions
//! accepted such ids, and their records keep their keys.

use std::fmt;

use siphasher::sip128::SipHasher24;

use super::{Violation, hidden_chars};

/// The longest user or business id, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 128;

/// The most digits of a phone number (ITU-T E.164).
pub const MAX_PHONE_DIGITS: usize = 15;

/// A parsed user id: the digits of a phone number, or an opaque id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum UserId<'a> {
    /// A phone number: only its digits count.
    Phone(Digits),
    /// Any other id, such as WhatsApp's business-scoped `US.1349…`; case counts.
    Opaque(&'a str),
}

/// The digits of a phone number, as a number and their count. The count distinguishes `01` from `1`.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Digits {
    value: u64,
    count: usize,
}

impl Digits {
    const NONE: Self = Self { value: 0, count: 0 };

    /// Appends an ASCII digit. `None` if there are [`MAX_PHONE_DIGITS`] already.
    fn push(self, digit: u8) -> Option<Self> {
        if self.count >= MAX_PHONE_DIGITS {
            return None;
        }
        let digit = u64::from(digit.wrapping_sub(b'0'));
        // Fifteen digits fit: 10¹⁵ < 2⁶⁴.
        let value = self.value.wrapping_mul(10).wrapping_add(digit);
        Some(Self { value, count: self.count.wrapping_add(1) })
    }

    /// The digits of a phone number in a usual notation, in one pass. The fast path: most ids are one.
    fn of_plain_phone(id: &str) -> Option<Self> {
        if id.len() > MAX_ID_BYTES {
            return None;
        }
        let mut digits = Self::NONE;
        for byte in id.bytes() {
            match byte {
                b'0'..=b'9' => digits = digits.push(byte)?,
                b'+' | b'(' | b')' | b'-' | b' ' => {}
                // A dot may come from a spreadsheet; the slow path checks that.
                _ => return None,
            }
        }
        (digits.count > 0).then_some(digits)
    }

    /// The shorter notation of the same phone line.
    ///
    /// The platform's `wa_id` and a CRM's number differ by a mobile digit in three countries:
    /// Mexico `521` + 10 digits / `52` + 10, Argentina `549` + 10 / `54` + 10, and Brazil
    /// `55 DD 9XXXXXXXX` / `55 DD XXXXXXXX`, mobiles only, whose eight digits start with 6 to 9.
    #[allow(clippy::arithmetic_side_effects, reason = "all are below 10 to the 13th")]
    fn folded(self) -> Self {
        const TEN: u64 = 10_u64.pow(10);
        const EIGHT: u64 = 10_u64.pow(8);
        const SEVEN: u64 = 10_u64.pow(7);
        if self.count != 13 {
            return self;
        }
        let (country, rest) = (self.value / TEN, self.value % TEN);
        let (prefix, mobile) = (self.value / EIGHT, self.value % EIGHT);
        let value = match country {
            521 => 52 * TEN + rest,
            549 => 54 * TEN + rest,
            // 55, two digits of an area, and the 9.
            550..=559 if prefix % 10 == 9 && mobile / SEVEN >= 6 => (prefix / 10) * EIGHT + mobile,
            _ => return self,
        };
        Self { value, count: 12 }
    }
}

impl fmt::Debug for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} digits", self.count)
    }
}

impl<'a> UserId<'a> {
    /// Parses a user id.
    ///
    /// An id made only of digits, `+ ( ) . -` and spaces is a phone number.
    ///
    /// # Errors
    ///
    /// A [`Violation`] of `user_id` if the id is empty, longer than [`MAX_ID_BYTES`], holds
    /// a [hidden character](hidden_chars), which is named, or is a phone number with no digits, with
    /// more than [`MAX_PHONE_DIGITS`], or ends in a spreadsheet's `.0`.
    pub fn parse(id: &'a str) -> Result<Self, Violation> {
        Self::read(id, check_plain)
    }

    /// Parses a user id that is in a ledger already. It may have the hidden characters that older
    /// versions accepted.
    ///
    /// # Errors
    ///
    /// As for [`parse`](Self::parse), except for those hidden characters.
    pub fn recorded(id: &'a str) -> Result<Self, Violation> {
        Self::read(id, check_recorded)
    }

    fn read(
        id: &'a str,
        check: impl FnOnce(&str, &str) -> Result<(), Violation>,
    ) -> Result<Self, Violation> {
        if let Some(digits) = Digits::of_plain_phone(id) {
            return Ok(Self::Phone(digits));
        }
        let is_phone = id.chars().all(is_phone_char) && !id.chars().any(char::is_control);
        if id.is_empty() || id.len() > MAX_ID_BYTES || !is_phone {
            check("user_id", id)?;
            return Ok(Self::Opaque(id));
        }
        let refuse = |why: &str| Err(Violation::new("user_id", why));
        let trimmed = id.trim_end();
        if trimmed.ends_with(".0") || trimmed.ends_with(".00") {
            return refuse(
                "a phone number that ends in \".0\" was read from a spreadsheet as a decimal \
                 number; format that column as text and give the number without it",
            );
        }
        let mut digits = Digits::NONE;
        for digit in id.bytes().filter(u8::is_ascii_digit) {
            let Some(more) = digits.push(digit) else {
                return refuse("a phone number has at most 15 digits (E.164), country code first");
            };
            digits = more;
        }
        if digits.count == 0 {
            return refuse("a phone number needs at least one digit, such as +1 555 012 3456");
        }
        Ok(Self::Phone(digits))
    }
}

/// The characters of phone numbers. White space of any kind is accepted: only digits count, so that it
/// cannot make another number.
fn is_phone_char(c: char) -> bool {
    matches!(c, '0'..='9' | '+' | '(' | ')' | '.' | '-') || c.is_whitespace()
}

fn check_length(field: &str, id: &str) -> Result<(), Violation> {
    let why = match id.len() {
        0 => "required: 1 to 128 bytes of UTF-8",
        1..=MAX_ID_BYTES => return Ok(()),
        _ => "longer than 128 bytes of UTF-8",
    };
    Err(Violation::new(field, why))
}

/// Refuses an id that looks like another one.
fn check_plain(field: &str, id: &str) -> Result<(), Violation> {
    check_length(field, id)?;
    match hidden_chars::find(id) {
        None => Ok(()),
        Some(hidden) => Err(Violation::new(field, hidden.to_string())),
    }
}

/// Refuses what every version refused.
fn check_recorded(field: &str, id: &str) -> Result<(), Violation> {
    if id.chars().any(was_always_refused) {
        check_plain(field, id)
    } else {
        check_length(field, id)
    }
}

/// Characters that were refused from the first version on.
fn was_always_refused(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// A business's id, by the deployment's own naming; opaque and case-sensitive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BusinessId<'a>(&'a str);

impl<'a> BusinessId<'a> {
    /// Parses a business id.
    ///
    /// # Errors
    ///
    /// A [`Violation`] of `business_id` if the id is empty, longer than [`MAX_ID_BYTES`], or
    /// holds a [hidden character](hidden_chars), which is named.
    pub fn parse(id: &'a str) -> Result<Self, Violation> {
        check_plain("business_id", id)?;
        Ok(Self(id))
    }

    /// Parses a business id that is in a ledger already: see [`UserId::recorded`].
    ///
    /// # Errors
    ///
    /// As for [`parse`](Self::parse), except for the hidden characters that older versions accepted.
    pub fn recorded(id: &'a str) -> Result<Self, Violation> {
        check_recorded("business_id", id)?;
        Ok(Self(id))
    }
}

/// The key of a pair: a keyed 128-bit hash (SipHash-2-4) of the folded user id and the business.
///
/// It is stored as two `u64`: the alignment of a `u128` would cost the table 8 bytes per entry.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    high: u64,
    low: u64,
}

impl Key {
    /// The 16 bytes that ledgers store.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        ((u128::from(self.high) << 64) | u128::from(self.low)).to_be_bytes()
    }

    /// The key of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(bytes);
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
        Self { high: half(bits >> 64), low: half(bits) }
    }

    /// The two halves. Their bits are uniform, so that a map needs no further hash.
    #[must_use]
    pub fn halves(self) -> (u64, u64) {
        (self.high, self.low)
    }

    /// The key of these halves.
    #[must_use]
    pub fn from_halves((high, low): (u64, u64)) -> Self {
        Self { high, low }
    }

    /// 64 bits of the key. They are uniform, so that a map needs no further hash.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.high
    }
}

/// The secret with which a ledger's keys are hashed.
#[derive(Clone)]
pub struct KeySecret(SipHasher24);

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret(…)")
    }
}

/// The longest input of a key: a tag, the user, a separator after an opaque id, the business.
const KEY_INPUT_BYTES: usize = 2 * MAX_ID_BYTES + 2;
/// The input size that fits most users and businesses.
const SHORT_KEY_INPUT_BYTES: usize = 64;

impl KeySecret {
    /// The hasher with this secret.
    #[must_use]
    pub fn new(secret: &[u8; 16]) -> Self {
        Self(SipHasher24::new_with_key(secret))
    }

    /// The key of a pair, the same for every notation of one phone line.
    #[must_use]
    pub fn key(&self, user: &UserId<'_>, business: BusinessId<'_>) -> Key {
        let business = business.0.as_bytes();
        match user {
            UserId::Phone(digits) => {
                let Digits { value, count } = digits.folded();
                let count = u8::try_from(count).unwrap_or(u8::MAX);
                self.key_of(&[&[b'p', count], &value.to_be_bytes(), business])
            }
            // Ids have no control characters, so that NUL separates them unambiguously.
            UserId::Opaque(id) => self.key_of(&[b"o", id.as_bytes(), b"\0", business]),
        }
    }

    fn key_of(&self, parts: &[&[u8]]) -> Key {
        let len = parts.iter().fold(0_usize, |len, part| len.saturating_add(part.len()));
        // Nearly all inputs are short, and zeroing the longest buffer takes as long as hashing one.
        let (mut short, mut long);
        let input: &mut [u8] = if len <= SHORT_KEY_INPUT_BYTES {
            short = [0_u8; SHORT_KEY_INPUT_BYTES];
            &mut short
        } else {
            long = [0_u8; KEY_INPUT_BYTES];
            &mut long
        };
        let len = join(input, parts);
        let hash = self.0.hash(input.get(..len).unwrap_or_default());
        Key { high: hash.h1, low: hash.h2 }
    }

    /// Parses a user and a business of a request, and returns the key of their pair.
    ///
    /// # Errors
    ///
    /// The [`Violation`]s of both ids.
    pub fn parse(&self, user_id: &str, business_id: &str) -> Result<Key, Vec<Violation>> {
        self.key_of_both(UserId::parse(user_id), BusinessId::parse(business_id))
    }

    /// Parses a user and a business that are in a ledger, and returns the key of their pair: see
    /// [`UserId::recorded`].
    ///
    /// # Errors
    ///
    /// The [`Violation`]s of both ids.
    pub fn read(&self, user_id: &str, business_id: &str) -> Result<Key, Vec<Violation>> {
        self.key_of_both(UserId::recorded(user_id), BusinessId::recorded(business_id))
    }

    fn key_of_both(
        &self,
        user: Result<UserId<'_>, Violation>,
        business: Result<BusinessId<'_>, Violation>,
    ) -> Result<Key, Vec<Violation>> {
        match (user, business) {
            (Ok(user), Ok(business)) => Ok(self.key(&user, business)),
            (user, business) => Err([user.err(), business.err()].into_iter().flatten().collect()),
        }
    }

    /// Whether the other secret produces the same keys.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.digest(b"") == other.digest(b"")
    }

    /// A keyed 128-bit digest of other data, which must be compared but not stored.
    #[must_use]
    pub fn digest(&self, bytes: &[u8]) -> [u8; 16] {
        self.0.hash(bytes).as_bytes()
    }
}

/// Concatenates `parts` into `out`, and returns their length.
fn join(out: &mut [u8], parts: &[&[u8]]) -> usize {
    let mut len = 0_usize;
    for part in parts {
        let end = len.saturating_add(part.len());
        if let Some(slot) = out.get_mut(len..end) {
            slot.copy_from_slice(part);
            len = end;
        }
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(user: &str) -> Key {
        let secret = KeySecret::new(&[7; 16]);
        secret.key(&UserId::parse(user).unwrap(), BusinessId::parse("shop").unwrap())
    }

    #[test]
    fn notations_of_one_phone_line_have_one_key() {
        for (a, b) in [
            ("+1 (555) 012-3456", "15550123456"),
            ("1.555.012.3456", "15550123456"),
            ("+52 1 55 1234 5678", "+52 55 1234 5678"),
            ("+54 9 11 1234 5678", "+54 11 1234 5678"),
            ("+55 11 9 8765-4321", "+55 11 8765-4321"),
            ("+55\u{a0}11\u{a0}98765-4321", "551187654321"),
        ] {
            assert_eq!(key(a), key(b), "{a} and {b}");
        }
    }

    #[test]
    fn different_phone_lines_have_different_keys() {
        for (a, b) in [
            ("+55 11 9 5765-4321", "+55 11 5765-4321"), // 5…: a landline has no mobile digit
            ("+52 1 55 1234 567", "+52 55 1234 567"),   // too short to be that notation
            ("US.1349", "us.1349"),
            ("US.1349", "1349"),
            ("01", "1"),
            ("+54 9 11 1234 567", "+54 11 1234 567"),
            ("15550123456", "15550123457"),
        ] {
            assert_ne!(key(a), key(b), "{a} and {b}");
        }
    }

    #[test]
    fn invalid_id_is_refused_with_its_fault() {
        let long = "x".repeat(129);
        for (id, part) in [
            ("", "required"),
            (long.as_str(), "128 bytes"),
            ("a\tb", "control"),
            ("\u{202a}+15550123456\u{202c}", "invisible"),
            ("+()", "at least one digit"),
            ("   ", "at least one digit"),
            ("1234567890123456", "at most 15 digits"),
            ("15550123456.0", "spreadsheet"),
            ("US.1349 ", "U+0020 SPACE at byte 7"),
            ("\u{ff11}5550123456", "a compatibility form of \"1\": U+FF11 at byte 0"),
        ] {
            let violation = UserId::parse(id).unwrap_err();
            assert!(violation.description.contains(part), "{part}: {violation}");
            assert_eq!(violation.field, "user_id");
        }
        assert!(UserId::parse(&"x".repeat(128)).is_ok());
        assert!(UserId::parse("123456789012345").is_ok());
        assert!(UserId::parse("+1.555.555.0000").is_ok());
        assert!(BusinessId::parse("").unwrap_err().field == "business_id");
    }

    #[test]
    fn recorded_id_of_an_older_version_keeps_its_own_key() {
        let secret = KeySecret::new(&[7; 16]);
        for id in [" US.1349", "US.1349\u{200d}", "\u{ff35}S.1349", "cafe\u{301}"] {
            assert!(secret.parse(id, "shop").is_err(), "{id:?}");
            assert!(secret.parse("US.1349", id).is_err(), "{id:?}");
            let key = secret.read(id, "shop").unwrap();
            assert_eq!(key, secret.key(&UserId::Opaque(id), BusinessId("shop")));
            assert_ne!(key, secret.read("US.1349", "shop").unwrap());
            assert!(secret.read("US.1349", id).is_ok());
        }
        // A NUL parts the user from the business.
        assert!(secret.read("a\0b", "shop").is_err());
        assert!(secret.read("a\u{200b}b", "shop").is_err(), "no version took it");
        for id in [" +1 555 012 3456 ", "US.1349", "+55\u{a0}11\u{a0}98765-4321"] {
            assert_eq!(secret.parse(id, "shop").unwrap(), secret.read(id, "shop").unwrap());
        }
    }

    #[test]
    fn key_round_trips_through_its_bytes() {
        assert_eq!(Key::from_bytes(key("1").to_bytes()), key("1"));
    }
}
