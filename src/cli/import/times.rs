//! Times as other tools write them. Each is rewritten as RFC 3339, which the contract's own reader
//! reads.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use consentd_core::time::Timestamp;

use crate::cli::time::{from_wire, to_wire};

/// What is said of a time that cannot be read.
pub(super) const INVALID_TIME: &str = "must be a moment with its zone, such as \
                                       2026-01-31T09:30:00Z or 2026-01-31T09:30:00+01:00";

/// What is said of a null date.
pub(super) const NULL_DATE: &str = "is 1970-01-01 or before, which tools write where there is no \
                                    date: leave it empty if it is not known, which only opt-outs, \
                                    stops and suppressions may; --undated-opt-outs now dates those";

const NO_ZONE: &str = "has no zone, and a few hours decide which event stands: write Z or +01:00 \
                       behind it, or say with --time-zone which one all of them have";

const ORDER_UNKNOWN: &str = "may be a day and a month, or a month and a day: say with --time-format \
                             day-first or month-first how the file writes them";

/// Moments up to the end of 1970-01-01 in every zone are null dates, in milliseconds.
const LAST_NULL_MILLIS: i64 = 38 * 3_600 * 1_000;

/// A number of milliseconds below this one is a number of seconds: it would be in 1970 to 1973.
const LEAST_MILLIS: f64 = 1e11;

/// How a file writes times.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum TimeFormat {
    /// 2026-01-31T09:30:00Z, 2026-01-31 09:30 UTC, Sat, 31 Jan 2026 09:30:00 +0000
    #[default]
    Rfc3339,
    /// Seconds since 1970: 1769851800
    Seconds,
    /// Milliseconds since 1970: 1769851800000
    Milliseconds,
    /// 31/01/2026 09:30, 31-01-2026
    DayFirst,
    /// 1/31/2026 9:30:00 AM
    MonthFirst,
}

/// The zone of times that have none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct TimeZone(String);

impl FromStr for TimeZone {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        offset(text).map(Self).ok_or_else(|| {
            "must be UTC or an offset from it, such as -06:00: names such as Europe/Paris are not \
             known, because their offset changes in the year"
                .to_owned()
        })
    }
}

/// When an event happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Moment {
    /// The earliest moment that the text may mean.
    pub(super) first: Timestamp,
    /// How long after it the latest one is.
    span: Duration,
}

impl Moment {
    /// The moment of a denial, which is the latest that the text may mean, so that it holds over what
    /// happened on the same day. `None` if that is still to come: the event then counts from now on.
    pub(super) fn of_denial(self, now: impl FnOnce() -> Timestamp) -> Option<Timestamp> {
        let last = self.first.plus(self.span);
        (self.span.is_zero() || last <= now()).then_some(last)
    }
}

/// Why a text is no time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct NotATime(pub(super) &'static str);

/// Whether a time stands for none.
pub(super) fn is_null_date(time: &prost_types::Timestamp) -> bool {
    time.seconds <= LAST_NULL_MILLIS / 1_000
}

/// Reads a time.
pub(super) fn read(
    text: &str,
    format: TimeFormat,
    zone: Option<&TimeZone>,
) -> Result<Moment, NotATime> {
    let (first, span) = match format {
        TimeFormat::Seconds => (epoch(text, false)?, Duration::ZERO),
        TimeFormat::Milliseconds => (epoch(text, true)?, Duration::ZERO),
        _ => read_date(text, format, zone)?,
    };
    if first.as_millis() <= LAST_NULL_MILLIS {
        return Err(NotATime(NULL_DATE));
    }
    Ok(Moment { first, span })
}

/// Reads a number of seconds or milliseconds since 1970.
#[allow(clippy::cast_possible_truncation, reason = "it is in the range of a timestamp")]
fn epoch(text: &str, is_millis: bool) -> Result<Timestamp, NotATime> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-'));
    let number = text.parse::<f64>().ok().filter(|_| is_number);
    let number =
        number.ok_or(NotATime("must be a number of the units that --time-format names"))?;
    let is_null = number <= 86_400.0;
    if is_millis && number < LEAST_MILLIS && !is_null {
        return Err(NotATime("is too small for milliseconds: give --time-format seconds"));
    }
    if !is_millis && number >= LEAST_MILLIS {
        return Err(NotATime("is too large for seconds: give --time-format milliseconds"));
    }
    let millis = if is_millis { number } else { number * 1_000.0 };
    Ok(Timestamp::saturating_from_millis(millis.floor() as i64))
}

fn read_date(
    text: &str,
    format: TimeFormat,
    zone: Option<&TimeZone>,
) -> Result<(Timestamp, Duration), NotATime> {
    // What most files have needs no rewriting.
    let is_plain =
        text.len() >= 20 && text.as_bytes().get(10) == Some(&b'T') && text.ends_with('Z');
    let (written, span) = if is_plain {
        if let Some(year) = text.get(..4)
            && year < "1970"
        {
            return Err(NotATime(NULL_DATE));
        }
        (Cow::Borrowed(text), Duration::ZERO)
    } else {
        let (written, span) = as_rfc3339(text, format, zone)?;
        (Cow::Owned(written), span)
    };
    let time: prost_types::Timestamp = written.parse().map_err(|_| NotATime(INVALID_TIME))?;
    if time.seconds < 0 {
        return Err(NotATime(NULL_DATE));
    }
    let first = from_wire(&time);
    // A time that the contract cannot hold would be another one.
    let is_kept = to_wire(first).seconds == time.seconds;
    if is_kept { Ok((first, span)) } else { Err(NotATime(INVALID_TIME)) }
}

/// A date and a clock as RFC 3339 has them, and how long the shortest unit lasts that is written.
fn as_rfc3339(
    text: &str,
    format: TimeFormat,
    zone: Option<&TimeZone>,
) -> Result<(String, Duration), NotATime> {
    let invalid = NotATime(INVALID_TIME);
    let (date, rest) = split_date(text).ok_or(invalid)?;
    let [year, month, day] = match date {
        Date::Named(date) => date,
        Date::Numbers(first, second, third) => match format {
            _ if first.len() == 4 => [number(first)?, number(second)?, number(third)?],
            TimeFormat::DayFirst if third.len() == 4 => {
                [number(third)?, number(second)?, number(first)?]
            }
            TimeFormat::MonthFirst if third.len() == 4 => {
                [number(third)?, number(first)?, number(second)?]
            }
            _ if third.len() == 4 => return Err(NotATime(ORDER_UNKNOWN)),
            _ => return Err(invalid),
        },
    };
    if (year, month, day) <= (1970, 1, 1) {
        return Err(NotATime(NULL_DATE));
    }
    let (clock, offset) = split_zone(rest.trim()).ok_or(invalid)?;
    let Some(offset) = offset.or_else(|| zone.map(|zone| zone.0.clone())) else {
        return Err(NotATime(NO_ZONE));
    };
    let (clock, span) = full_clock(clock).ok_or(invalid)?;
    Ok((format!("{year:04}-{month:02}-{day:02}T{clock}{offset}"), span))
}

enum Date<'t> {
    /// A year, a month and a day that was written with the month's name.
    Named([u32; 3]),
    /// Three numbers in the order of the file.
    Numbers(&'t str, &'t str, &'t str),
}

/// The date at the beginning of a text, and what follows.
fn split_date(text: &str) -> Option<(Date<'_>, &str)> {
    const MONTHS: [&str; 12] =
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    // RFC 5322, as mail has it: a weekday may be before the day.
    let mail = text.split_once(", ").map_or(text, |(_, rest)| rest);
    let mut words = mail.splitn(4, ' ');
    if let (Some(day), Some(name), Some(year)) = (words.next(), words.next(), words.next())
        && let Some(month) = MONTHS.iter().position(|month| name.eq_ignore_ascii_case(month))
        && year.len() == 4
    {
        let month = u32::try_from(month).ok()? + 1;
        let date = [number(year).ok()?, month, number(day).ok()?];
        return Some((Date::Named(date), words.next().unwrap_or_default()));
    }
    let end = text.find([' ', 'T', 't']).unwrap_or(text.len());
    let (date, rest) = text.split_at_checked(end)?;
    let mut parts = date.split(['-', '/', '.']);
    let numbers = Date::Numbers(parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some((numbers, rest.get(1..).unwrap_or_default()))
}

fn number(text: &str) -> Result<u32, NotATime> {
    let is_number = (1..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| is_number).ok_or(NotATime(INVALID_TIME))
}

/// The clock of a text, and its offset from UTC if it has one.
fn split_zone(text: &str) -> Option<(&str, Option<String>)> {
    let Some(at) = text.find(['+', '-', 'Z', 'z', 'U', 'G']) else { return Some((text, None)) };
    let (clock, zone) = text.split_at_checked(at)?;
    Some((clock.trim_end(), Some(offset(zone)?)))
}

/// An offset from UTC as RFC 3339 has it: `+01:00` or `Z`.
fn offset(text: &str) -> Option<String> {
    if ["Z", "UTC", "GMT"].iter().any(|utc| text.eq_ignore_ascii_case(utc)) {
        return Some("Z".to_owned());
    }
    let text = text.strip_prefix("UTC").or(text.strip_prefix("GMT")).unwrap_or(text);
    let (sign, digits) = text.split_at_checked(1).filter(|(sign, _)| matches!(*sign, "+" | "-"))?;
    let digits = digits.replace(':', "");
    let (hours, minutes) = match digits.len() {
        2 => (digits.as_str(), "00"),
        4 => digits.split_at_checked(2)?,
        _ => return None,
    };
    let is_valid =
        digits.bytes().all(|byte| byte.is_ascii_digit()) && hours < "24" && minutes < "60";
    is_valid.then(|| format!("{sign}{hours}:{minutes}"))
}

/// A clock with its seconds and of 24 hours, and how long the shortest unit lasts that is written.
fn full_clock(text: &str) -> Option<(String, Duration)> {
    if text.is_empty() {
        return Some(("00:00:00".to_owned(), Duration::from_hours(24) - Duration::from_millis(1)));
    }
    let upper = text.to_ascii_uppercase();
    let half = upper.strip_suffix("AM").map(|clock| (clock, 0));
    let half = half.or_else(|| upper.strip_suffix("PM").map(|clock| (clock, 12)));
    let clock = half.map_or(upper.as_str(), |(clock, _)| clock).trim_end();
    let mut parts = clock.splitn(3, ':');
    let (hour, minute, second) = (number(parts.next()?).ok()?, parts.next()?, parts.next());
    let hour = match half {
        Some((_, noon)) if (1..=12).contains(&hour) => hour % 12 + noon,
        Some(_) => return None,
        None => hour,
    };
    let is_two = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
    if !is_two(minute) || second.is_some_and(|second| !second.get(..2).is_some_and(is_two)) {
        return None;
    }
    let minute_long = Duration::from_mins(1) - Duration::from_millis(1);
    let span = if second.is_none() { minute_long } else { Duration::ZERO };
    Some((format!("{hour:02}:{minute}:{}", second.unwrap_or("00")), span))
}

#[cfg(test)]
mod tests {
    use super::*;
    use TimeFormat::{DayFirst, Milliseconds, MonthFirst, Rfc3339, Seconds};

    fn read_at(
        text: &str,
        format: TimeFormat,
        zone: Option<&str>,
    ) -> Result<(String, Duration), &'static str> {
        let zone = zone.map(|zone| zone.parse::<TimeZone>().unwrap());
        let moment = read(text, format, zone.as_ref()).map_err(|NotATime(why)| why)?;
        Ok((moment.first.rfc3339_millis(), moment.span))
    }

    #[test]
    fn times_of_other_tools_are_read() {
        let half_past = "2026-01-31T09:30:00.000Z";
        for (text, format, zone, expected) in [
            ("2026-01-31T09:30:00Z", Rfc3339, None, half_past),
            ("2026-01-31t09:30:00z", Rfc3339, None, half_past),
            ("2026-01-31T10:30:00+01:00", Rfc3339, Some("-06:00"), half_past),
            ("2026-01-31 09:30:00+00:00", Rfc3339, None, half_past),
            ("2026-01-31 09:30:00 UTC", Rfc3339, None, half_past),
            ("2026-01-31 09:30:00 +0000", Rfc3339, None, half_past),
            ("2026-01-31 06:00:00 -0330", Rfc3339, None, half_past),
            ("2026-01-31 09:30:00.25 UTC", Rfc3339, None, "2026-01-31T09:30:00.250Z"),
            ("2026-01-31T09:30:00.123456789Z", Rfc3339, None, "2026-01-31T09:30:00.123Z"),
            ("2026-01-31 09:30:00", Rfc3339, Some("UTC"), half_past),
            ("2026/01/31 03:30:00", Rfc3339, Some("-06:00"), half_past),
            ("Sat, 31 Jan 2026 09:30:00 +0000", Rfc3339, None, half_past),
            ("31 Jan 2026 09:30:00 GMT", Rfc3339, None, half_past),
            ("1769851800", Seconds, None, half_past),
            ("1769851800.25", Seconds, None, "2026-01-31T09:30:00.250Z"),
            ("1769851800000", Milliseconds, None, half_past),
            ("1/31/2026 9:30:00 AM", MonthFirst, Some("UTC"), half_past),
            ("1/31/2026 12:00:00 AM", MonthFirst, Some("UTC"), "2026-01-31T00:00:00.000Z"),
            ("1/31/2026 12:00:00 pm", MonthFirst, Some("UTC"), "2026-01-31T12:00:00.000Z"),
            ("31-01-2026 09:30:00", DayFirst, Some("+00"), half_past),
            ("2026-01-31T09:30:00Z", DayFirst, None, half_past),
        ] {
            assert_eq!(read_at(text, format, zone), Ok((expected.to_owned(), Duration::ZERO)));
        }
    }

    #[test]
    fn denial_counts_from_the_end_of_the_day_or_minute_that_is_written() {
        let now = Timestamp::from_millis(1_769_900_000_000).unwrap(); // 2026-01-31T22:53:20Z
        let denial = |text: &str| {
            let zone = "UTC".parse().unwrap();
            let moment = read(text, DayFirst, Some(&zone)).unwrap();
            moment.of_denial(|| now).map(Timestamp::rfc3339_millis)
        };
        assert_eq!(denial("30-01-2026").as_deref(), Some("2026-01-30T23:59:59.999Z"));
        assert_eq!(denial("30-01-2026 09:30").as_deref(), Some("2026-01-30T09:30:59.999Z"));
        assert_eq!(denial("31-01-2026"), None, "that day has not ended");
        assert_eq!(denial("2027-01-31T09:30:00Z").as_deref(), Some("2027-01-31T09:30:00.000Z"));
    }

    #[test]
    fn null_dates_and_what_is_no_time_are_refused_with_the_reason() {
        for (text, format, why) in [
            ("1970-01-01T00:00:00Z", Rfc3339, NULL_DATE),
            ("1970-01-01T00:00:00-06:00", Rfc3339, NULL_DATE),
            ("1970-01-01 00:00:00", Rfc3339, NULL_DATE),
            ("0001-01-01T00:00:00Z", Rfc3339, NULL_DATE),
            ("0001-01-01T00:00:00", Rfc3339, NULL_DATE),
            ("1899-12-30T00:00:00Z", Rfc3339, NULL_DATE),
            ("12/30/1899 12:00:00 AM", MonthFirst, NULL_DATE),
            ("0000-00-00 00:00:00", Rfc3339, NULL_DATE),
            ("0", Seconds, NULL_DATE),
            ("0", Milliseconds, NULL_DATE),
            ("-62135596800", Seconds, NULL_DATE),
            ("2026-01-31 09:30", Rfc3339, NO_ZONE),
            ("2026-01-31", Rfc3339, NO_ZONE),
            ("31/01/2026 09:30:00Z", Rfc3339, ORDER_UNKNOWN),
            ("31/01/26 09:30:00Z", DayFirst, INVALID_TIME),
            ("2026-02-30T09:30:00Z", Rfc3339, INVALID_TIME),
            ("2026-01-31T09:30:00Zulu", Rfc3339, INVALID_TIME),
            ("1/31/2026 13:30 PM Z", MonthFirst, INVALID_TIME),
            ("yesterday", Rfc3339, INVALID_TIME),
            ("", Rfc3339, INVALID_TIME),
            ("é", Rfc3339, INVALID_TIME),
        ] {
            assert_eq!(read_at(text, format, None), Err(why), "{text}");
        }
        let said = |text, format| read_at(text, format, None).unwrap_err();
        assert!(said("1769851800", Milliseconds).contains("seconds"));
        assert!(said("1769851800000", Seconds).contains("milliseconds"));
        assert!(said("2026-01-31T09:30:00Z", Seconds).contains("number"));
        for zone in ["Europe/Paris", "1", "+25:00", "+01:60", ""] {
            assert!(zone.parse::<TimeZone>().is_err(), "{zone}");
        }
    }
}
