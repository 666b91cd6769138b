//! Formats numbers, durations and times for people.

use std::fmt::Write as _;
use std::time::Duration;

use consentd_core::time::Timestamp;

/// A number with thousands separators.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in seconds, in a fitting unit and with about three significant digits.
pub(super) fn short(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s if s < 600.0 => (s, "s"),
        s => return long(Duration::from_secs_f64(s.min(1e15))),
    };
    let digits = if value >= 99.95 { 0 } else { usize::from(value < 9.995) + 1 };
    let mut text = format!("{value:.digits$}");
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    let _ = write!(text, " {unit}");
    text
}

/// A long duration, in its two largest units.
pub(super) fn long(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{minutes} min {} s", seconds % 60),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} d {} h", grouped(days), hours % 24),
    }
}

/// A time for people, such as `2025-06-15 15:06:40 UTC`.
pub(super) fn moment(time: Timestamp) -> String {
    time.rfc3339_seconds().replace('T', " ").replace('Z', " UTC")
}

pub(super) fn per_second(rate: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is never negative, and is rounded"
    )]
    let whole = rate.round() as u64;
    if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { grouped(whole) }
}

/// A percentage, rounded to hundredths, which is as precise as a bar can be.
pub(super) fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole * 10_000.0).round() / 100.0 } else { 0.0 }
}

pub(super) fn in_percent(percent: f64) -> String {
    format!("{percent:.1}")
}

pub(super) fn whole(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[allow(clippy::cast_precision_loss, reason = "only to be drawn")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        for (seconds, text) in [
            (0.0, "0 µs"),
            (1e-6, "1 µs"),
            (1.234e-6, "1.23 µs"),
            (12.34e-6, "12.3 µs"),
            (5e-4, "500 µs"),
            (0.0123, "12.3 ms"),
            (1.0, "1 s"),
            (59.96, "60 s"),
            (150.0, "150 s"),
            (7_384.0, "2 h 3 min"),
            (1e9, "11,574 d 1 h"),
        ] {
            assert_eq!(short(seconds), text);
        }
        assert_eq!(per_second(0.0), "0");
        assert_eq!(per_second(0.25), "0.2");
        assert_eq!(per_second(12_345.6), "12,346");
    }
}
