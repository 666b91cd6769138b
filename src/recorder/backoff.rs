//! The backoff of a compare-and-set: how long to wait before an append that lost against another
//! recorder is tried again.

use std::time::Duration;

/// The longest pause before another try.
const MAX_PAUSE: Duration = Duration::from_millis(20);

/// Waits for a random time whose bound doubles with every attempt, so that recorders that met once
/// do not meet again.
pub(super) async fn pause(attempt: usize) {
    let mut random = [0; 1];
    // Without randomness recorders meet again sooner, and nothing worse happens.
    let _ = getrandom::fill(&mut random);
    let most = Duration::from_micros(100 << attempt.min(8)).min(MAX_PAUSE);
    tokio::time::sleep(most.mul_f64(f64::from(random[0]) / 255.0)).await;
}
