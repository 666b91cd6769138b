//! Times on the command line and on the wire.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use consentd_core::time::Timestamp;
use consentd_os::clock;

/// Parses a time, or how long ago it was.
pub(super) fn parse_past(text: &str) -> Result<Timestamp, String> {
    parse(text, Timestamp::minus)
}

/// Parses a time, or how long from now it will be.
pub(super) fn parse_future(text: &str) -> Result<Timestamp, String> {
    parse(text, Timestamp::plus)
}

fn parse(text: &str, offset: fn(Timestamp, Duration) -> Timestamp) -> Result<Timestamp, String> {
    if let Ok(duration) = humantime::parse_duration(text) {
        return Ok(offset(clock::wall(), duration));
    }
    let time: SystemTime = humantime::parse_rfc3339_weak(text).map_err(|_| {
        "must be a time such as 2026-01-31T09:30:00Z, or a span such as 90m, 2h or 30d".to_owned()
    })?;
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| "must be 1970 or later".to_owned())?;
    Ok(Timestamp::MIN.plus(since))
}

/// A time as a message of the contract has it.
pub(super) fn to_wire(time: Timestamp) -> prost_types::Timestamp {
    (UNIX_EPOCH + time.since(Timestamp::MIN)).into()
}

/// The time in a message of the contract, truncated to milliseconds and to the bounds of
/// [`Timestamp`].
pub(super) fn from_wire(time: &prost_types::Timestamp) -> Timestamp {
    let millis =
        time.seconds.saturating_mul(1_000).saturating_add(i64::from(time.nanos) / 1_000_000);
    Timestamp::saturating_from_millis(millis)
}
