//! Exponential backoff with jitter: how long to wait before a retry.
//!
//! The arithmetic is pure, for a given random number; only [`random_byte`] asks the operating system.

use std::time::Duration;

/// How much of a delay is random. Jitter keeps clients that failed together from retrying together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Jitter {
    /// The delay is the bound itself.
    None,
    /// The delay is between half of the bound and the bound.
    Half,
    /// The delay is between zero and the bound.
    Full,
}

/// An exponential backoff. The bound of the delay is `first` for the first retry, doubles with every
/// further one, and never exceeds `longest`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Backoff {
    /// The bound of the first delay.
    pub first: Duration,
    /// The upper limit of the bound.
    pub longest: Duration,
    /// Which part of the delay is random.
    pub jitter: Jitter,
}

impl Backoff {
    /// The bound is not doubled more often, so that the shift cannot overflow.
    const MAX_DOUBLINGS: u32 = 16;

    /// The delay before retry number `attempt`, counted from 0. `random` is uniformly distributed.
    #[must_use]
    pub fn delay(&self, attempt: u32, random: u8) -> Duration {
        let doubled = self.first.saturating_mul(1 << attempt.min(Self::MAX_DOUBLINGS));
        let bound = doubled.min(self.longest);
        let fraction = f64::from(random) / f64::from(u8::MAX);
        match self.jitter {
            Jitter::None => bound,
            Jitter::Half => bound.mul_f64(0.5 + 0.5 * fraction),
            Jitter::Full => bound.mul_f64(fraction),
        }
    }

    /// The delay before retry number `attempt`, counted from 0, with random jitter.
    #[must_use]
    pub fn random_delay(&self, attempt: u32) -> Duration {
        self.delay(attempt, random_byte())
    }
}

/// A duration that differs from `duration` by up to `percent` percent either way. `random` is uniformly
/// distributed. A percentage above 100 counts as 100.
#[must_use]
pub fn vary(duration: Duration, percent: u8, random: u8) -> Duration {
    let fraction = f64::from(percent.min(100)) / 100.0;
    let position = f64::from(random) / f64::from(u8::MAX);
    duration.mul_f64(1.0 - fraction + 2.0 * fraction * position)
}

/// A random byte of the operating system; 255 if it has none, because jitter is not worth a failure.
#[must_use]
pub fn random_byte() -> u8 {
    let mut byte = [u8::MAX; 1];
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(1);

    fn backoff(jitter: Jitter) -> Backoff {
        Backoff { first: FIRST, longest: LONGEST, jitter }
    }

    #[test]
    fn delay_without_jitter_doubles_up_to_the_limit() {
        let delays: Vec<_> =
            (0..9).map(|attempt| backoff(Jitter::None).delay(attempt, 7)).collect();
        let expected = [10, 20, 40, 80, 160, 320, 640, 1_000, 1_000].map(Duration::from_millis);
        assert_eq!(delays, expected);
        assert_eq!(backoff(Jitter::None).delay(u32::MAX, 7), LONGEST);
    }

    #[test]
    fn delay_with_jitter_is_within_its_bounds_for_every_random_byte() {
        for attempt in 0..100 {
            let bound = backoff(Jitter::None).delay(attempt, 0);
            for random in 0..=u8::MAX {
                let (half, full) = (backoff(Jitter::Half), backoff(Jitter::Full));
                let delay = half.delay(attempt, random);
                assert!(delay >= bound / 2 && delay <= bound, "{attempt}, {random}: {delay:?}");
                assert!(full.delay(attempt, random) <= bound);
            }
            assert_eq!(backoff(Jitter::Half).delay(attempt, 0), bound / 2);
            assert_eq!(backoff(Jitter::Half).delay(attempt, u8::MAX), bound);
            assert_eq!(backoff(Jitter::Full).delay(attempt, 0), Duration::ZERO);
            assert_eq!(backoff(Jitter::Full).delay(attempt, u8::MAX), bound);
        }
    }

    #[test]
    fn vary_spans_the_percentage_either_way() {
        let hour = Duration::from_hours(1);
        assert_eq!(vary(hour, 10, 0), Duration::from_mins(54));
        assert_eq!(vary(hour, 10, u8::MAX), Duration::from_mins(66));
        assert_eq!(vary(hour, 0, 99), hour);
        assert_eq!(vary(hour, 200, 0), Duration::ZERO);
    }
}
