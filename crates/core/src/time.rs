//! Points in time, in whole milliseconds of Unix time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time, in milliseconds since 1970-01-01T00:00:00Z.
///
/// Bounds: the year 1970 to the end of the year 9999, which is the range of a
/// [`google.protobuf.Timestamp`](https://protobuf.dev/reference/protobuf/google.protobuf/#timestamp)
/// without the years before 1970. Arithmetic saturates at the bounds.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 1970-01-01T00:00:00.000Z.
    pub const MIN: Self = Self(0);
    /// 9999-12-31T23:59:59.999Z.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// The time `millis` milliseconds after the Unix epoch, or `None` if it is out of bounds.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Option<Self> {
        if millis >= Self::MIN.0 && millis <= Self::MAX.0 { Some(Self(millis)) } else { None }
    }

    /// The time `millis` milliseconds after the Unix epoch, or the nearest bound.
    #[must_use]
    pub const fn saturating_from_millis(millis: i64) -> Self {
        match Self::from_millis(millis) {
            Some(time) => time,
            None if millis < Self::MIN.0 => Self::MIN,
            None => Self::MAX,
        }
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This time plus `span`.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self::saturating_from_millis(self.0.saturating_add(millis(span)))
    }

    /// This time minus `span`.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self::saturating_from_millis(self.0.saturating_sub(millis(span)))
    }

    /// The time that has passed since `earlier`; zero if `earlier` is later than this time.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// This time in RFC 3339 and UTC with milliseconds, such as `2025-06-15T15:06:40.003Z`.
    #[must_use]
    pub fn rfc3339_millis(self) -> String {
        humantime::format_rfc3339_millis(self.system_time()).to_string()
    }

    /// This time in RFC 3339 and UTC, truncated to seconds, such as `2025-06-15T15:06:40Z`.
    #[must_use]
    pub fn rfc3339_seconds(self) -> String {
        humantime::format_rfc3339_seconds(self.system_time()).to_string()
    }

    #[allow(clippy::arithmetic_side_effects, reason = "a system time can hold the year 9999")]
    fn system_time(self) -> SystemTime {
        UNIX_EPOCH + self.since(Self::MIN)
    }
}

/// The clock skew between this machine and the ledger from which on operators are warned.
pub const MAX_CLOCK_OFFSET: Duration = Duration::from_secs(1);

/// The warning for operators if the skew between this machine's clock and the ledger's is more than
/// [`MAX_CLOCK_OFFSET`].
#[must_use]
pub fn clock_offset_warning(ours: Timestamp, ledgers: Timestamp) -> Option<String> {
    let (skew, direction) = if ledgers > ours {
        (ledgers.since(ours), "ahead of")
    } else {
        (ours.since(ledgers), "behind")
    };
    (skew > MAX_CLOCK_OFFSET).then(|| {
        let skew = humantime::format_duration(Duration::from_secs(skew.as_secs()));
        format!(
            "the ledger's clock is {skew} {direction} this machine's, which makes windows and consents \
             end early, and clamps opt-ins and messages: synchronise both clocks by NTP \
             (`chronyc tracking` and `timedatectl` show which one is wrong)"
        )
    })
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// The readings of the clocks that a check uses, this machine's and the ledger's. Each rule uses the
/// reading that denies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Clock {
    /// The earliest reading. A rule that needs time to have passed uses it.
    pub earliest: Timestamp,
    /// The latest reading. A rule about something that expires uses it.
    pub latest: Timestamp,
}

impl Clock {
    /// The reading of one clock, or of several that agree.
    #[must_use]
    pub const fn at(now: Timestamp) -> Self {
        Self { earliest: now, latest: now }
    }

    /// The readings of two clocks, in any order.
    #[must_use]
    pub fn of(a: Timestamp, b: Timestamp) -> Self {
        Self { earliest: a.min(b), latest: a.max(b) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted_as_rfc3339_to_the_last_year() {
        let time = Timestamp::from_millis(1_750_000_000_003).unwrap();
        assert_eq!(time.rfc3339_millis(), "2025-06-15T15:06:40.003Z");
        assert_eq!(time.rfc3339_seconds(), "2025-06-15T15:06:40Z");
        assert_eq!(Timestamp::MIN.rfc3339_millis(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp::MAX.rfc3339_millis(), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn clock_offset_beyond_a_second_is_warned_of_with_its_direction() {
        let at = |millis: i64| Timestamp::from_millis(1_000_000 + millis).unwrap();
        for millis in [-1_000, 0, 1_000] {
            assert_eq!(clock_offset_warning(at(0), at(millis)), None, "{millis}");
        }
        let behind = clock_offset_warning(at(30_050), at(0)).unwrap();
        assert!(behind.starts_with("the ledger's clock is 30s behind this machine's"), "{behind}");
        let ahead = clock_offset_warning(at(0), at(1_001)).unwrap();
        assert!(ahead.contains("is 1s ahead of this machine's"), "{ahead}");
    }
}
