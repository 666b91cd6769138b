//! The clocks. Everything else takes time as a parameter, so that it can be tested and simulated.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::ClockId;

use consentd_core::time::Timestamp;

/// The wall clock, clamped to the years 1970 to 9999.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is where the wall clock is read")]
pub fn wall() -> Timestamp {
    as_timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// The time since boot, including the time that the machine was suspended.
#[must_use]
pub fn boot() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::Boottime;
    // Other systems have no boot clock; macOS' monotonic clock includes suspension.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::Monotonic;
    read(CLOCK)
}

/// The CPU time that the calling thread has used.
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

/// One moment, read from both clocks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    /// The time since boot.
    pub boot: Duration,
    /// The wall clock's time.
    pub wall: Timestamp,
}

impl Moment {
    /// Reads both clocks.
    #[must_use]
    pub fn now() -> Self {
        Self { boot: boot(), wall: wall() }
    }

    /// Reads both clocks, but the wall clock with the resolution of the kernel's timer tick. It may
    /// lag by up to 10 ms and costs a sixth of an exact reading; the boot clock stays exact.
    #[must_use]
    pub fn about_now() -> Self {
        #[cfg(target_os = "linux")]
        let wall = as_timestamp(read(ClockId::RealtimeCoarse));
        #[cfg(not(target_os = "linux"))]
        let wall = wall();
        Self { boot: boot(), wall }
    }

    /// The time since `earlier`: the larger of what the two clocks measured, so that neither a
    /// suspended machine nor a wall clock that was set back makes anything look fresher than it is.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.boot.saturating_sub(earlier.boot).max(self.wall.since(earlier.wall))
    }
}
