//! Moments, in whole milliseconds of Unix time.

use std::time::Duration;

/// A moment, in milliseconds since 1970-01-01T00:00:00Z.
///
/// Bounds: the year 1970 to the end of the year 9999, the range of a
/// [`google.protobuf.Timestamp`](https://protobuf.dev/reference/protobuf/google.protobuf/#timestamp)
/// less what lies before 1970. Arithmetic stops at the bounds.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 1970-01-01T00:00:00.000Z.
    pub const MIN: Self = Self(0);
    /// 9999-12-31T23:59:59.999Z.
    pub const MAX: Self = Self(253_402_300_799_999);

    /// The moment `millis` after the epoch, where that is within the bounds.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Option<Self> {
        if millis >= Self::MIN.0 && millis <= Self::MAX.0 { Some(Self(millis)) } else { None }
    }

    /// The moment `millis` after the epoch, or the nearest bound.
    #[must_use]
    pub const fn saturating_from_millis(millis: i64) -> Self {
        match Self::from_millis(millis) {
            Some(time) => time,
            None if millis < Self::MIN.0 => Self::MIN,
            None => Self::MAX,
        }
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This moment and `span`.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self::saturating_from_millis(self.0.saturating_add(millis(span)))
    }

    /// This moment less `span`.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self::saturating_from_millis(self.0.saturating_sub(millis(span)))
    }

    /// How long after `earlier` this moment is; zero where it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// How far this machine's clock may be from the ledger's before operators are warned.
pub const MAX_CLOCK_OFFSET: Duration = Duration::from_secs(1);

/// What operators are told where this machine's clock and the ledger's differ by more than
/// [`MAX_CLOCK_OFFSET`].
#[must_use]
pub fn clock_offset_warning(ours: Timestamp, ledgers: Timestamp) -> Option<String> {
    let (apart, which) = if ledgers > ours {
        (ledgers.since(ours), "ahead of")
    } else {
        (ours.since(ledgers), "behind")
    };
    (apart > MAX_CLOCK_OFFSET).then(|| {
        let apart = humantime::format_duration(Duration::from_secs(apart.as_secs()));
        format!(
            "the ledger's clock is {apart} {which} this machine's, which makes windows and consents \
             end early, and clamps opt-ins and messages: synchronise both clocks by NTP \
             (`chronyc tracking` and `timedatectl` show which one is wrong)"
        )
    })
}

fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// What the clocks say, where more than one is asked: a rule takes the one that denies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Clock {
    /// The clock that is furthest behind: what must have passed by now has passed on this one.
    pub earliest: Timestamp,
    /// The clock that is furthest ahead: what ends has ended where it ended on this one.
    pub latest: Timestamp,
}

impl Clock {
    /// A single clock, or several that agree.
    #[must_use]
    pub const fn at(now: Timestamp) -> Self {
        Self { earliest: now, latest: now }
    }

    /// Two clocks that may differ.
    #[must_use]
    pub fn of(a: Timestamp, b: Timestamp) -> Self {
        Self { earliest: a.min(b), latest: a.max(b) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
