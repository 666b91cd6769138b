//! The backoff of a compare-and-set: the delay before a recorder retries an append that conflicted with
//! another recorder's.

use std::time::Duration;

use consentd_os::backoff::{Backoff, Jitter};

/// Full jitter, so that recorders that conflicted once do not conflict again.
const CONFLICT: Backoff = Backoff {
    first: Duration::from_micros(100),
    longest: Duration::from_millis(20),
    jitter: Jitter::Full,
};

/// Waits before retry number `attempt`, counted from 0.
pub(super) async fn pause(attempt: usize) {
    let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
    tokio::time::sleep(CONFLICT.random_delay(attempt)).await;
}
