//! What is known of a server's clock without asking it again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Redis;
use consentd_core::time::Timestamp;
use consentd_os::clock;

/// For how long a server's answer says what its clock shows.
const MAX_AGE: Duration = Duration::from_mins(10);

/// For how long the best answer is better than later ones: the one that took the shortest way.
const BEST_WITHIN: Duration = Duration::from_mins(1);

/// The clock of one server, as its answers told it.
#[derive(Default)]
pub(super) struct KnownClock(Mutex<Option<Sample>>);

#[derive(Clone, Copy)]
struct Sample {
    /// What the clock showed at the latest when this machine had been up for no time at all: it is known only that
    /// it was read before the answer arrived, so that the clock is ahead of this by the time that the answer took.
    at_boot: i128,
    /// When the answer arrived, by the clock since boot.
    answered: Duration,
}

impl KnownClock {
    /// Notes what the clock showed in an answer that arrived at this moment by the clock since boot. Returns it.
    pub(super) fn note(&self, shown: Duration, answered: Duration) -> Timestamp {
        let new = Sample { at_boot: micros(shown).saturating_sub(micros(answered)), answered };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_better = known.is_none_or(|known| {
            new.at_boot >= known.at_boot || answered.saturating_sub(known.answered) > BEST_WITHIN
        });
        if is_better {
            *known = Some(new);
        }
        as_timestamp(micros(shown))
    }

    /// What the clock shows now, or a little less, if the server has answered lately.
    pub(super) fn now(&self, boot: Duration) -> Option<Timestamp> {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.filter(|known| boot.saturating_sub(known.answered) <= MAX_AGE)?;
        Some(as_timestamp(known.at_boot.saturating_add(micros(boot))))
    }
}

impl Redis {
    /// The latest of the clocks of several partitions now, as far as they have answered lately.
    pub(crate) fn latest_clock(&self) -> Option<Timestamp> {
        let layout = self.known_layout().filter(|layout| layout.partitions() > 1);
        let now = clock::boot();
        layout.and_then(|_| self.made().filter_map(|one| one.shared.known_clock.now(now)).max())
    }
}

fn micros(duration: Duration) -> i128 {
    i128::try_from(duration.as_micros()).unwrap_or(i128::MAX)
}

fn as_timestamp(micros: i128) -> Timestamp {
    let millis = micros.div_euclid(1_000);
    Timestamp::saturating_from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: Duration = Duration::from_secs(1_700_000_000);

    fn boot(millis: u64) -> Duration {
        Duration::from_secs(100) + Duration::from_millis(millis)
    }

    fn shown(millis: u64) -> Timestamp {
        as_timestamp(micros(SHOWN + Duration::from_millis(millis)))
    }

    #[test]
    fn known_clock_goes_on_and_is_never_ahead_of_the_server() {
        let clock = KnownClock::default();
        assert_eq!(clock.now(boot(0)), None);
        // The answer took 40 ms.
        assert_eq!(clock.note(SHOWN, boot(40)), shown(0));
        assert_eq!(clock.now(boot(40)), Some(shown(0)));
        assert_eq!(clock.now(boot(1_040)), Some(shown(1_000)));
        // One that took 1 ms says more, and one that took 300 ms does not say less.
        clock.note(SHOWN + Duration::from_secs(2), boot(2_001));
        clock.note(SHOWN + Duration::from_secs(3), boot(3_300));
        assert_eq!(clock.now(boot(4_001)), Some(shown(4_000)));
    }

    #[test]
    fn known_clock_that_was_set_back_is_believed_within_a_minute_and_an_old_one_is_forgotten() {
        let clock = KnownClock::default();
        clock.note(SHOWN + Duration::from_secs(90), boot(0));
        clock.note(SHOWN + Duration::from_secs(61), boot(61_000));
        assert_eq!(clock.now(boot(61_000)), Some(shown(61_000)));
        let last = boot(61_000) + MAX_AGE;
        assert!(clock.now(last).is_some());
        assert_eq!(clock.now(last + Duration::from_millis(1)), None);
    }
}
