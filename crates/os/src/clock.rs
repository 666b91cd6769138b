//! The one place that reads clocks. Everything else takes time as a parameter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::ClockId;

use consentd_core::time::Timestamp;

/// The wall clock. Before 1970 and after 9999 it stands still.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is where the wall clock is read")]
pub fn wall() -> Timestamp {
    as_timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// How long the machine has been up, the time that it was suspended included.
#[must_use]
pub fn boot() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::Boottime;
    // Elsewhere the monotonic clock is the nearest there is; on macOS it counts suspension.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;
    read(CLOCK)
}

/// How much of a CPU's time the calling thread has used.
#[must_use]
pub fn thread_cpu() -> Duration {
    read(ClockId::ThreadCPUTime)
}

fn read(clock: ClockId) -> Duration {
    let now = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn as_timestamp(since: Duration) -> Timestamp {
    Timestamp::saturating_from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
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

    /// Now, with the wall clock as of the last tick of the system's timer: up to 10 ms ago, for a
    /// sixth of the price. Whoever needs the millisecond has it from the other clock.
    #[must_use]
    pub fn about_now() -> Self {
        #[cfg(target_os = "linux")]
        let wall = as_timestamp(read(ClockId::RealtimeCoarse));
        #[cfg(not(target_os = "linux"))]
        let wall = wall();
        Self { boot: boot(), wall }
    }

    /// How long ago `earlier` was: the larger of what the two clocks say, so that neither a
    /// suspended machine nor a stepped clock makes anything look younger than it is.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.boot.saturating_sub(earlier.boot).max(self.wall.since(earlier.wall))
    }
}
