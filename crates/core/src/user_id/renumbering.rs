//! Lines that are reached, or are written down, under more than one number.

use super::number::PhoneNumber;
use super::numbering_plan::{ARGENTINE_AREAS_OF_FOUR, ARGENTINE_AREAS_OF_THREE};

/// The digits that the numbers below begin with, and how many they are.
pub(super) const BEGINNINGS: [(u64, usize); 6] =
    [(54, 2), (225, 3), (229, 3), (230, 3), (241, 3), (84, 2)];

/// The digits that numbers with a mobile digit begin with, and how many they are.
pub(super) const MOBILE_DIGITS: [(u64, usize); 3] = [(521, 3), (54, 2), (55, 2)];

/// The notation that stands for all of a line's.
///
/// Every number of these countries comes by here: it divides by constants alone, which is cheap.
#[inline]
#[allow(clippy::arithmetic_side_effects, reason = "no divisor is 0")]
pub(super) fn current(number: PhoneNumber) -> PhoneNumber {
    let value = number.value();
    match number.len() {
        10 if value / 10_u64.pow(7) == 230 => mauritian(number),
        11 => match value / 10_u64.pow(8) {
            225 => ivorian(number),
            229 => beninese(number),
            241 => gabonese(number),
            _ => number,
        },
        12 if value / 10_u64.pow(10) == 84 => vietnamese(number),
        13 => without_mobile_digit(number),
        14 if value / 10_u64.pow(12) == 54 => argentine(number),
        15 if value / 10_u64.pow(13) == 54 => argentine(number),
        _ => number,
    }
}

/// The same line without the digit that only mobile numbers have, in three countries.
///
/// - Mexico: `52 1` and ten digits was the international form until 2020, and the platform's `wa_id`
///   still has it.
/// - Argentina: the 9 behind the country code.
/// - Brazil: mobile numbers got a 9 before their eight digits from 2012 to 2016, and old accounts keep
///   the `wa_id` without it. Landlines begin with 2 to 5, mobiles with 6 to 9.
#[allow(clippy::arithmetic_side_effects, reason = "all are below 10 to the 13th")]
pub(super) fn without_mobile_digit(number: PhoneNumber) -> PhoneNumber {
    const TEN: u64 = 10_u64.pow(10);
    const EIGHT: u64 = 10_u64.pow(8);
    const SEVEN: u64 = 10_u64.pow(7);
    if number.len() != 13 {
        return number;
    }
    let (country, rest) = (number.value() / TEN, number.value() % TEN);
    let (prefix, mobile) = (number.value() / EIGHT, number.value() % EIGHT);
    let value = match country {
        521 => 52 * TEN + rest,
        549 => 54 * TEN + rest,
        // 55, two digits of an area, and the 9.
        550..=559 if prefix % 10 == 9 && mobile / SEVEN >= 6 => (prefix / 10) * EIGHT + mobile,
        _ => return number,
    };
    PhoneNumber::new(value, 12)
}

/// A mobile number is written with a 9 behind the country code, or inside the country with a 15
/// behind the area code, or with neither. Area code and local number have ten digits together.
fn argentine(given: PhoneNumber) -> PhoneNumber {
    let number = match (given.len(), given.first(3)) {
        (14, _) => given,
        // The trunk prefix or the mobile digit, and the 15 as well.
        (15, 540 | 549) => given.with(2, 3, 0, 0),
        _ => return given,
    };
    // No two of these can be: the second digit of a 15 is not the first one of another.
    let area_of = |len: usize| number.part(2, len.saturating_add(2));
    let is_mobile_behind =
        |len: usize| number.part(len.saturating_add(2), len.saturating_add(4)) == 15;
    let has = |areas: &[u16], len: usize| {
        let area = u16::try_from(area_of(len)).unwrap_or_default();
        areas.binary_search(&area).is_ok() && is_mobile_behind(len)
    };
    let area_len = if area_of(2) == 11 && is_mobile_behind(2) {
        2
    } else if has(&ARGENTINE_AREAS_OF_THREE, 3) {
        3
    } else if has(&ARGENTINE_AREAS_OF_FOUR, 4) {
        4
    } else {
        return given;
    };
    let place = usize::saturating_add(2, area_len);
    number.with(place, place.saturating_add(2), 0, 0)
}

/// Since 30 November 2024 every number has `01` before its eight digits.
fn beninese(number: PhoneNumber) -> PhoneNumber {
    number.with(3, 3, 1, 2)
}

/// Since 31 January 2021 a mobile number has two digits of its operator before its eight. The
/// operator is known by the first two of the eight.
fn ivorian(number: PhoneNumber) -> PhoneNumber {
    let operator = match number.part(3, 5) {
        1..=3 | 40..=43 | 50..=53 | 70..=73 => 1,
        4..=6 | 44..=46 | 54..=56 | 64..=66 | 74..=76 | 84..=86 | 94..=96 => 5,
        7..=9 | 47..=49 | 57..=59 | 67..=69 | 77..=79 | 87..=89 | 97..=98 => 7,
        _ => return number,
    };
    number.with(3, 3, operator, 2)
}

/// Since 1 September 2013 a mobile number has a 5 before its seven digits. Landlines have kept seven
/// digits and begin with 2, 4, 6 and 8; only where no landline begins is the notation read.
fn mauritian(number: PhoneNumber) -> PhoneNumber {
    let is_mobile = matches!(number.part(3, 4), 7 | 9);
    if is_mobile { number.with(3, 3, 5, 1) } else { number }
}

/// Since 15 November 2019 the 0 that numbers had abroad, too, is replaced by the operator's digit: 6
/// (Gabon Télécom and Moov), 7 (Airtel), 1 (landlines).
fn gabonese(number: PhoneNumber) -> PhoneNumber {
    let operator = match number.part(3, 5) {
        1 => 1,
        2 | 5 | 6 => 6,
        4 | 7 => 7,
        _ => return number,
    };
    number.with(3, 4, operator, 1)
}

/// From 15 September 2018 mobile numbers lost a digit: `1xx` became `3x`, `5x`, `7x` or `8x`.
fn vietnamese(number: PhoneNumber) -> PhoneNumber {
    let prefix = match number.part(2, 5) {
        prefix @ 162..=169 => prefix.saturating_sub(130),
        120 => 70,
        121 => 79,
        122 => 77,
        126 => 76,
        128 => 78,
        123 => 83,
        124 => 84,
        125 => 85,
        127 => 81,
        129 => 82,
        186 => 56,
        188 => 58,
        199 => 59,
        _ => return number,
    };
    number.with(2, 5, prefix, 2)
}
