//! Connections to Redis, its Sentinels and the nodes of a Cluster: the URL, the handshake, TLS, reconnection,
//! the majority that names the primary, and the subscription to announcements.

mod cluster;
mod connection;
mod credentials;
mod error;
mod handshake;
mod pool;
mod primary;
mod quorum;
mod resp;
mod round;
mod sentinel;
mod subscription;
mod url;

use std::time::Duration;

use consentd_os::backoff::{Backoff, Jitter};

pub(super) use self::connection::{Connection, ConnectionManager};
pub(super) use self::error::ConnectionError;
pub(super) use self::pool::{MAX_WRITES, Purpose};
pub(super) use self::primary::{PrimaryLocator, Servers, Timeouts};
pub(super) use self::resp::{Reply, RespConnection, RespError};
pub(super) use self::subscription::{Sink, SubscriptionEvent, Subscriptions};
pub use self::url::{InvalidTarget, Target, TargetError, TargetOptions};

/// The backoff of reconnection. Jitter keeps a fleet from reconnecting at the same moment.
pub(super) const RECONNECT: Backoff = Backoff {
    first: Duration::from_millis(50),
    longest: Duration::from_secs(1),
    jitter: Jitter::Half,
};

/// The delay before the next attempt to connect, after this number of consecutive failures: at least the
/// first and at most the longest of [`RECONNECT`].
fn reconnect_delay(failures: u32) -> Duration {
    RECONNECT.random_delay(failures.saturating_sub(1)).max(RECONNECT.first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnect_delay_grows_within_its_bounds() {
        for failures in 0..100 {
            let delay = reconnect_delay(failures);
            assert!(
                delay >= RECONNECT.first && delay <= RECONNECT.longest,
                "{failures}: {delay:?}"
            );
            assert!(failures < 6 || delay >= RECONNECT.longest / 2, "{failures}: {delay:?}");
        }
    }
}
