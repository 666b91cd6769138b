//! Limits how often a repeated warning is logged, and counts the events that were not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use consentd_os::clock;

/// The throttle of one kind of warning: the first event is logged, and then at most one line an
/// interval, which says how many events it stands for.
#[derive(Debug)]
pub(crate) struct LogThrottle {
    interval: Duration,
    /// The time since boot until which nothing is logged, in milliseconds.
    quiet_until_millis: AtomicU64,
    /// Events since the last logged line.
    pending: AtomicU64,
}

impl LogThrottle {
    pub(crate) const fn new(interval: Duration) -> Self {
        Self { interval, quiet_until_millis: AtomicU64::new(0), pending: AtomicU64::new(0) }
    }

    /// Whether an event that is recorded now would be logged.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due_at(clock::boot())
    }

    fn is_due_at(&self, now: Duration) -> bool {
        self.quiet_until_millis.load(Ordering::Relaxed) <= millis(now)
    }

    /// Counts events without logging them.
    pub(crate) fn suppress(&self, events: u64) {
        self.pending.fetch_add(events, Ordering::Relaxed);
    }

    /// Counts events. Returns how many there were since the last logged line, these included, if
    /// the caller is to log a line now.
    pub(crate) fn record(&self, events: u64) -> Option<u64> {
        self.record_at(events, clock::boot())
    }

    fn record_at(&self, events: u64, now: Duration) -> Option<u64> {
        self.suppress(events);
        let quiet_until = self.quiet_until_millis.load(Ordering::Relaxed);
        if quiet_until > millis(now) || self.pending.load(Ordering::Relaxed) == 0 {
            return None;
        }
        // Of several threads that come at once, one logs.
        let (next, relaxed) = (millis(now.saturating_add(self.interval)), Ordering::Relaxed);
        self.quiet_until_millis.compare_exchange(quiet_until, next, relaxed, relaxed).ok()?;
        Some(self.pending.swap(0, Ordering::Relaxed))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_logs_once_an_interval_and_counts_the_rest() {
        let throttle = LogThrottle::new(Duration::from_secs(1));
        let start = Duration::from_secs(9);
        assert_eq!(throttle.record_at(0, start), None, "there is nothing to log");
        assert_eq!(throttle.record_at(1, start), Some(1));
        for later in [0, 500, 999] {
            let now = start + Duration::from_millis(later);
            assert!(!throttle.is_due_at(now));
            assert_eq!(throttle.record_at(1, now), None);
        }
        throttle.suppress(2);
        let next = start + Duration::from_secs(1);
        assert!(throttle.is_due_at(next));
        assert_eq!(throttle.record_at(1, next), Some(6));
        assert_eq!(throttle.record_at(0, next + Duration::from_secs(1)), None);
    }
}
