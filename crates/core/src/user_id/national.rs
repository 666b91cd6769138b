//! Phone numbers as they are dialled inside one region, for lists that were kept there.
//!
//! Checks, recordings and webhooks never read them: `07700 900123` is another line in each country.
//! An import may, because its operator knows where the list is from.

use std::borrow::Cow;
use std::fmt;

use super::notation::{self, Digits, Sign};
use super::number::MAX_PHONE_DIGITS;
use super::refusal::Refusal;
use super::{Reading, address, opaque, read};

/// The numbering plans of all regions, generated from libphonenumber's metadata: the region, its
/// country code, its trunk prefix, and the two digits that a number of each length may begin with.
const REGIONS: &str = include_str!("regions.tsv");

/// The most digits of a national number: a trunk prefix and whatever E.164 allows.
const MAX_NATIONAL_DIGITS: usize = MAX_PHONE_DIGITS + 3;

/// A region with a numbering plan, such as the United Kingdom.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Region {
    /// Its code in ISO 3166-1, such as `GB`.
    name: &'static str,
    /// The country code, such as `44`.
    code: &'static str,
    /// What is dialled before a number inside the region, such as `0`; empty where nothing is.
    trunk: &'static str,
    /// How long numbers are without country code and trunk prefix, and the two digits that those of
    /// this length may begin with, one bit each.
    plans: Vec<(usize, u128)>,
}

/// Why digits without a country code are no number of a region. The text holds nothing of the id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NationalRefusal<'a> {
    /// The region has no such number.
    NotOfRegion(&'a Region),
    /// The digits may be a number of the region, or one that has the country code before it.
    Ambiguous(&'a Region),
}

impl fmt::Display for NationalRefusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOfRegion(Region { name, code, .. }) => write!(
                f,
                "is no number as it is dialled in {name}: write + and the country code before a \
                 number of another country, and before one of {name} +{code}"
            ),
            Self::Ambiguous(Region { name, code, .. }) => write!(
                f,
                "may be a number of {name} with its country code or one without it, which are two \
                 lines: write +{code} before it"
            ),
        }
    }
}

impl Region {
    /// The region of a code of ISO 3166-1 with two letters, in any case, such as `GB`; `None` if
    /// there is none or it has no numbering plan.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        let mut rows = REGIONS.lines().filter(|row| !row.starts_with('#'));
        rows.find_map(|row| {
            let mut fields = row.split('\t');
            let name = fields.next().filter(|name| name.eq_ignore_ascii_case(code))?;
            let (code, trunk, plans) = (fields.next()?, fields.next()?, fields.next()?);
            let plan = |plan: &str| {
                let (len, beginnings) = plan.split_once(':')?;
                Some((len.parse().ok()?, u128::from_str_radix(beginnings, 16).ok()?))
            };
            Some(Self { name, code, trunk, plans: plans.split(' ').filter_map(plan).collect() })
        })
    }

    /// The region's code, such as `GB`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// An id with the country code before a number that lacks it. All other ids are returned as they
    /// are: what has a plus sign, an international prefix or a channel's prefix names its country, and
    /// what is no number is read or refused by [`read`].
    ///
    /// # Errors
    ///
    /// A [`NationalRefusal`] for digits that are no number of the region, or more than one line.
    pub fn international<'a>(&self, id: &'a str) -> Result<Cow<'a, str>, NationalRefusal<'_>> {
        let Some(digits) = self.national_digits(id) else { return Ok(Cow::Borrowed(id)) };
        let without_trunk = match self.trunk {
            "" => None,
            trunk => digits.strip_prefix(trunk),
        };
        let candidates = [
            without_trunk.map(|rest| format!("{}{rest}", self.code)),
            digits.starts_with(self.code).then(|| digits.clone()),
            Some(format!("{}{digits}", self.code)),
        ];
        let mut found: Option<(String, Reading<'static>)> = None;
        for candidate in candidates.into_iter().flatten() {
            let Some(line) = self.line(&candidate) else { continue };
            match &found {
                Some((_, other)) if *other != line => {
                    return Err(NationalRefusal::Ambiguous(self));
                }
                Some(_) => {}
                None => found = Some((candidate, line)),
            }
        }
        match found {
            Some((number, _)) => Ok(Cow::Owned(number)),
            None => Err(NationalRefusal::NotOfRegion(self)),
        }
    }

    /// The digits of an id that is a number without country code, if it is one.
    fn national_digits(&self, id: &str) -> Option<String> {
        let trimmed = notation::trim(id);
        let body = address::body(trimmed).ok()?;
        if body.len() != trimmed.len() || opaque::is_platform_id(body).unwrap_or(true) {
            return None;
        }
        let scanned = Digits::scan(body);
        let is_number = scanned.unexpected.is_none()
            && !matches!(
                scanned.number(),
                Err(Refusal::NoDigit
                    | Refusal::SeveralNumbers
                    | Refusal::PlusInside
                    | Refusal::SpreadsheetDecimal
                    | Refusal::Decimal)
            );
        if !is_number || scanned.len() > MAX_NATIONAL_DIGITS {
            return None;
        }
        let mut digits = String::with_capacity(scanned.len());
        for character in body.chars() {
            match notation::sign(character) {
                Sign::Digit(digit) => digits.push(char::from(b'0'.saturating_add(digit))),
                Sign::Plus => return None,
                _ => {}
            }
        }
        // 00 is an international prefix, unless numbers of the region begin so.
        (!digits.starts_with("00") || self.has(&digits)).then_some(digits)
    }

    /// The line of these digits, if it is one of the region.
    fn line(&self, digits: &str) -> Option<Reading<'static>> {
        let Ok(Reading::Phone(number)) = read(digits) else { return None };
        let line = number.value().to_string();
        let is_own = [digits, &line]
            .iter()
            .any(|digits| digits.strip_prefix(self.code).is_some_and(|own| self.has(own)));
        is_own.then_some(Reading::Phone(number))
    }

    /// Whether the region has a number of this length that begins so.
    fn has(&self, digits: &str) -> bool {
        let beginning = digits.get(..2).and_then(|two| two.parse::<u32>().ok());
        let plan = self.plans.iter().find(|(len, _)| *len == digits.len());
        match (beginning, plan) {
            (Some(two), Some((_, beginnings))) => (beginnings >> two) & 1 == 1,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_in(region: &str, id: &str) -> Result<String, String> {
        let region = Region::from_code(region).unwrap();
        region.international(id).map(Cow::into_owned).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn number_as_it_is_dialled_in_a_region_gets_its_country_code() {
        for (region, id, expected) in [
            ("GB", "07700 900123", "447700900123"),
            ("gb", "(07700) 900-123", "447700900123"),
            ("GB", "7700900123", "447700900123"), // a spreadsheet took the 0 off
            ("GB", "447700900123", "447700900123"), // a tool took the + off
            ("US", "(201) 555-0123", "12015550123"),
            ("US", "1 201 555 0123", "12015550123"),
            ("DE", "0151 12345678", "4915112345678"),
            ("IT", "06 1234 5678", "390612345678"),
            ("IT", "393331234567", "393331234567"),
            ("HU", "06 20 123 4567", "36201234567"),
            ("RU", "8 912 345-67-89", "79123456789"),
            ("AR", "011 15 2345-6789", "54111523456789"),
            ("BR", "(11) 98765-4321", "5511987654321"),
            ("IN", "919876543210", "919876543210"),
            ("GB", "\u{660}7700900123", "447700900123"),
        ] {
            assert_eq!(read_in(region, id).as_deref(), Ok(expected), "{region} {id}");
        }
    }

    #[test]
    fn id_that_names_its_country_or_is_no_number_is_left_as_it_is() {
        for id in [
            "+33 6 12 34 56 78",
            "0033612345678",
            "whatsapp:+15550123456",
            "15550123456@s.whatsapp.net",
            "https://wa.me/15550123456",
            "GB.1349",
            "customer-7",
            "7700900123.0",
            "+447700900123, +447700900124",
            "4.47700900123E+11",
            "",
        ] {
            assert_eq!(read_in("GB", id).as_deref(), Ok(id));
        }
    }

    #[test]
    fn digits_that_are_no_number_of_the_region_or_two_lines_are_refused() {
        for (region, id, part) in [
            ("GB", "33612345678", "is no number as it is dialled in GB"),
            ("GB", "77009001234", "before one of GB +44"),
            ("US", "07700900123", "is no number as it is dialled in US"),
            ("DE", "4915112345678", "write +49 before it"),
        ] {
            let said = read_in(region, id).unwrap_err();
            assert!(said.contains(part), "{region} {id}: {said}");
        }
    }

    #[test]
    fn region_is_found_by_its_two_letters_alone() {
        assert_eq!(Region::from_code("gb").unwrap().name(), "GB");
        for code in ["", "G", "UK", "GBR", "#", "44", "001"] {
            assert_eq!(Region::from_code(code), None, "{code}");
        }
    }
}
