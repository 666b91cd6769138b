//! Keeps one multiplexed connection to the primary, and reconnects after it was discarded.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::handshake::ConnectionError;
use super::primary::{Primary, PrimaryLocator, Timeouts};
use super::resp::RespConnection;
use super::url::{Address, Target};
use super::{RECONNECT, reconnect_delay};
use crate::LedgerError;

/// Keeps one connection to the primary. All callers share it, and the attempts to open it.
pub(crate) struct ConnectionManager {
    primary: Arc<PrimaryLocator>,
    timeouts: Timeouts,
    state: Mutex<State>,
    /// The number of the next connection.
    number: Arc<AtomicU64>,
}

/// A connection to the primary. It is closed once it was discarded and its last clone is dropped: keep a
/// clone while a reply is awaited.
#[derive(Clone)]
pub(crate) struct Connection {
    /// Commands are sent through a clone of it.
    pub(crate) redis: MultiplexedConnection,
    /// The server, as it was named when the connection was opened.
    primary: Primary,
    /// Identifies this connection among those of its manager.
    number: u64,
    /// The task that reads from and writes to the socket.
    _driver: Arc<AbortOnDropHandle<()>>,
}

impl Connection {
    /// Identifies this connection among those of its manager.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

/// The result of an attempt to connect. A failure has its time, because its caller may have been cancelled
/// long before the result is used.
type AttemptResult = Result<Connection, (Arc<ConnectionError>, Instant)>;

/// An attempt to connect, which all callers share. If all of them are cancelled, it is suspended until the
/// next caller polls it.
type Attempt = Shared<Pin<Box<dyn Future<Output = AttemptResult> + Send>>>;

struct State {
    now: Now,
    /// The number of consecutive failed attempts.
    failures: u32,
    /// The earliest time of the next attempt: a connection that fails as soon as it is used must not be
    /// reopened in a busy loop.
    not_before: Instant,
}

enum Now {
    Unconnected,
    Connecting(Attempt),
    Connected(Connection),
    /// Until then callers get this error at once.
    Failed(Arc<ConnectionError>, Instant),
}

impl ConnectionManager {
    /// A manager for one target, which connects when it is first used.
    pub(crate) fn new(target: Arc<Target>) -> Self {
        Self::to(Arc::new(PrimaryLocator::new(target)), Timeouts::default())
    }

    /// A manager that shares the primary's locator with others.
    pub(crate) fn to(primary: Arc<PrimaryLocator>, timeouts: Timeouts) -> Self {
        let state = State { now: Now::Unconnected, failures: 0, not_before: Instant::now() };
        Self { primary, timeouts, state: Mutex::new(state), number: Arc::default() }
    }

    /// Returns the connection, and opens one if there is none. Waits for one attempt at most, and fails at
    /// once during the backoff after a failed attempt.
    pub(crate) async fn connection(&self) -> Result<Connection, LedgerError> {
        loop {
            let attempt = {
                let mut state = self.state();
                if matches!(&state.now, Now::Connected(now) if self.is_former_primary(now)) {
                    state.now = Now::Unconnected;
                }
                match &state.now {
                    Now::Connected(connection) => return Ok(connection.clone()),
                    Now::Connecting(attempt) => attempt.clone(),
                    Now::Failed(error, until) if Instant::now() < *until => {
                        return Err(LedgerError::Unreachable(Arc::<ConnectionError>::clone(error)));
                    }
                    Now::Unconnected | Now::Failed(..) => {
                        let attempt = self.attempt(state.not_before);
                        state.now = Now::Connecting(attempt.clone());
                        attempt
                    }
                }
            };
            let result = attempt.clone().await;
            self.complete(&attempt, &result);
            match result {
                Ok(connection) => return Ok(connection),
                // An attempt that failed long ago, after its callers were cancelled, is repeated.
                Err((error, when)) if when.elapsed() < RECONNECT.longest => {
                    return Err(LedgerError::Unreachable(error));
                }
                Err(_) => {}
            }
        }
    }

    /// Opens a connection to the same primary for one caller alone. The future beside it is ready once a
    /// majority names another primary.
    pub(crate) async fn open_another(
        &self,
    ) -> Result<(RespConnection, impl Future<Output = ()> + Send + use<>), LedgerError> {
        let opened = self.primary.connect(self.timeouts.connect).await;
        let (resp, named) = opened.map_err(|error| LedgerError::Unreachable(Arc::new(error)))?;
        Ok((resp, self.primary.wait_until_moved(named)))
    }

    /// Discards a connection that failed or timed out, so that the next caller opens another one.
    pub(crate) fn discard(&self, connection: &Connection) {
        let mut state = self.state();
        if matches!(&state.now, Now::Connected(now) if now.number == connection.number) {
            state.now = Now::Unconnected;
        }
    }

    /// Whether a majority has named another primary than this connection's server.
    fn is_former_primary(&self, connection: &Connection) -> bool {
        self.primary.successor_of(&connection.primary).is_some()
    }

    /// The cause of a connection's failure, if it is that another server is the primary by now.
    pub(crate) fn moved_error(&self, connection: &Connection) -> Option<Arc<ConnectionError>> {
        self.primary.moved_error(&connection.primary).map(Arc::new)
    }

    /// Discards the present connection, so that the next caller resolves and connects again.
    pub(crate) fn reconnect(&self) {
        let mut state = self.state();
        if matches!(&state.now, Now::Connected(_)) {
            state.now = Now::Unconnected;
        }
    }

    /// Confirms that this connection's server is the primary: where others name the primary, a majority of
    /// them, asked now, names it. Otherwise the connection is discarded. A poll proves freshness, and an append is
    /// acknowledged, only after this confirmation.
    pub(crate) async fn confirm_primary(&self, connection: &Connection) -> Result<(), LedgerError> {
        let confirmed = self.primary.confirm(&connection.primary, self.timeouts.response).await;
        confirmed.map_err(|error| {
            self.discard(connection);
            LedgerError::Unreachable(Arc::new(error))
        })
    }

    fn attempt(&self, not_before: Instant) -> Attempt {
        let (primary, timeouts) = (Arc::clone(&self.primary), self.timeouts);
        let number = Arc::clone(&self.number);
        let connect = async move {
            sleep_until(not_before).await;
            let (resp, named) = primary.connect(timeouts.connect).await?;
            // Pending commands fail at once when a majority names another primary.
            let moved = primary.wait_until_moved(named.clone());
            let (redis, driver) = multiplexed(resp, &named.address, timeouts, moved).await?;
            let number = number.fetch_add(1, Ordering::Relaxed);
            Ok(Connection { redis, primary: named, number, _driver: Arc::new(driver) })
        };
        let failed = |error: ConnectionError| (Arc::new(error), Instant::now());
        let attempt: Pin<Box<dyn Future<Output = AttemptResult> + Send>> =
            Box::pin(connect.map(move |connected| connected.map_err(failed)));
        attempt.shared()
    }

    /// Stores the result of an attempt, unless another caller has done so.
    fn complete(&self, attempt: &Attempt, result: &AttemptResult) {
        let mut state = self.state();
        if !matches!(&state.now, Now::Connecting(current) if current.ptr_eq(attempt)) {
            return;
        }
        match result {
            Ok(connection) => {
                state.failures = 0;
                state.not_before = Instant::now() + RECONNECT.first;
                state.now = Now::Connected(connection.clone());
            }
            Err((error, when)) => {
                state.failures = state.failures.saturating_add(1);
                let until = *when + reconnect_delay(state.failures);
                state.now = Now::Failed(Arc::clone(error), until);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands a connection to redis-rs after its handshake, with the task that drives it until `end`.
pub(crate) async fn multiplexed(
    resp: RespConnection,
    address: &Address,
    timeouts: Timeouts,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(MultiplexedConnection, AbortOnDropHandle<()>), ConnectionError> {
    let not_redis = || ConnectionError::NotRedis { address: address.clone(), hint: "" };
    let stream = resp.into_stream().ok_or_else(not_redis)?;
    // The handshake is complete. CLIENT SETINFO would need a permission of its own.
    let info = RedisConnectionInfo::default().set_skip_set_lib_name();
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(timeouts.response));
    let made = MultiplexedConnection::new_with_config(&info, stream, config).await;
    let (redis, driver) = made.map_err(|_| not_redis())?;
    #[allow(clippy::disallowed_methods, reason = "ended with the connection's last handle")]
    let driver = tokio::spawn(async move {
        tokio::select! {
            () = driver => {}
            () = end => {}
        }
    });
    Ok((redis, AbortOnDropHandle::new(driver)))
}

#[cfg(test)]
mod tests;
