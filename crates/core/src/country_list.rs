//! Countries by how user ids begin: the operator's list of numbers that get no marketing templates.

use super::id::UserId;

/// The most entries of a list.
pub const MAX_COUNTRIES: usize = 1_024;

/// The most digits of an entry: a country code and an area code.
const MAX_PREFIX_DIGITS: usize = 10;

/// Beginnings of phone numbers, and countries of business-scoped ids.
///
/// A phone number does not say its country: +1 is the code of the United States, of Canada and of twenty more
/// countries, which differ by the three digits behind it. A business-scoped id begins with the two
/// letters of its country.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CountryList {
    /// The digits as a number, and how many they are.
    prefixes: Box<[(u64, usize)]>,
    scoped: Box<[[u8; 2]]>,
}

/// An entry that is no country.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is neither the beginning of phone numbers (a country code such as 1, with or without an area \
     code: 1212) nor a country of business-scoped ids (two letters such as US)"
)]
pub struct NotACountry(String);

impl CountryList {
    /// Parses entries. A `+` before digits is dropped.
    ///
    /// # Errors
    ///
    /// [`NotACountry`] has the first entry that is not a country.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Self, NotACountry> {
        let (mut prefixes, mut scoped) = (Vec::new(), Vec::new());
        for entry in entries {
            let digits = entry.strip_prefix('+').unwrap_or(entry);
            let is_prefix = (1..=MAX_PREFIX_DIGITS).contains(&digits.len())
                && !digits.starts_with('0')
                && digits.bytes().all(|byte| byte.is_ascii_digit());
            match (entry.as_bytes(), digits.parse::<u64>()) {
                (_, Ok(value)) if is_prefix => prefixes.push((value, digits.len())),
                ([a, b], _) if a.is_ascii_alphabetic() && b.is_ascii_alphabetic() => {
                    scoped.push([a.to_ascii_uppercase(), b.to_ascii_uppercase()]);
                }
                _ => return Err(NotACountry(entry.to_owned())),
            }
        }
        Ok(Self { prefixes: prefixes.into(), scoped: scoped.into() })
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.prefixes.len().saturating_add(self.scoped.len())
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a user's id begins as one of the entries says. Allocates nothing.
    #[must_use]
    #[inline]
    pub fn covers(&self, user: &UserId<'_>) -> bool {
        !self.is_empty()
            && (self.prefixes.iter().any(|(value, len)| user.has_prefix(*value, *len))
                || self.scoped.iter().any(|country| user.is_scoped_in(*country)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_covered_by_their_beginning_in_every_notation() {
        let list = CountryList::parse(["1", "+44", "us", "5511"]).unwrap();
        for (id, covered) in [
            ("15550123456", true),
            ("+1 (555) 012-3456", true),
            ("whatsapp:+15550123456", true),
            ("447700900123", true),
            ("+44 (0)7700 900123", true),
            ("5511912345678", true),
            ("5521912345678", false),
            ("4915112345678", false),
            ("US.13491208655302741918", true),
            ("US.ENT.11815937425839", true),
            ("CA.13491208655302741918", false),
            ("us-customer-7", false),
            ("customer-1", false),
        ] {
            assert_eq!(list.covers(&UserId::parse(id).unwrap()), covered, "{id}");
        }
        let area = CountryList::parse(["1212"]).unwrap();
        assert!(area.covers(&UserId::parse("12125550123").unwrap()));
        assert!(!area.covers(&UserId::parse("14165550123").unwrap()));
        assert!(!CountryList::default().covers(&UserId::parse("15550123456").unwrap()));
    }

    #[test]
    fn entry_that_is_no_country_is_refused() {
        for entry in ["", "+", "0", "01", "USA", "U", "1-212", "12345678901", "ü1", "1 "] {
            assert_eq!(CountryList::parse([entry]), Err(NotACountry(entry.to_owned())), "{entry}");
        }
    }
}
