//! The one place that reads clocks. Everything else takes time as a parameter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::consent::time::Timestamp;

/// The wall clock. Before 1970 and after 9999 it stands still.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is where the wall clock is read")]
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::saturating_from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// How long the machine has been up, the time that it was suspended included.
#[must_use]
pub fn boot() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    // Elsewhere the monotonic clock is the nearest there is; on macOS it counts suspension.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(CLOCK);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    /// By the time since boot.
    pub boot: Duration,
    /// By the wall clock.
    pub wall: Timestamp,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self { boot: boot(), wall: wall() }
    }

    /// How long ago `earlier` was: the larger of what the two clocks say, so that neither a
    /// suspended machine nor a stepped clock makes anything look younger than it is.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.boot.saturating_sub(earlier.boot).max(self.wall.since(earlier.wall))
    }
}
