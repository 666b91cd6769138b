//! How long to wait before trying again.

use std::time::Duration;

/// The shortest wait.
pub(crate) const SHORTEST: Duration = Duration::from_millis(50);
/// The longest wait.
pub(crate) const LONGEST: Duration = Duration::from_secs(1);

/// The wait after so many failures on end: doubled with each, and between half and the whole of
/// that, so that a fleet does not come back at one moment.
pub(crate) fn wait(failures: u32) -> Duration {
    let doubled = SHORTEST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST);
    jittered(doubled).max(SHORTEST)
}

/// Between half and the whole of `most`.
pub(crate) fn jittered(most: Duration) -> Duration {
    let mut random = [255; 1];
    // Without randomness those who wait come at one moment, no more.
    let _ = getrandom::fill(&mut random);
    most.mul_f64(0.5 + f64::from(random[0]) / 510.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_are_bounded() {
        for failures in 0..100 {
            let wait = wait(failures);
            assert!(wait >= SHORTEST && wait <= LONGEST, "{failures}: {wait:?}");
            assert!(failures < 6 || wait >= LONGEST / 2, "{failures}: {wait:?}");
        }
    }
}
