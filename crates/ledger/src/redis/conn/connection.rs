//! A partition's connection to its primary, which it shares with the other partitions there, and reconnects after
//! it was discarded.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use redis::aio::MultiplexedConnection;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::error::ConnectionError;
use super::pool::{PooledConnection, Purpose, ServerSeen};
use super::primary::{Primary, PrimaryLocator, Timeouts};
use super::resp::RespConnection;
use super::{RECONNECT, reconnect_delay};
use crate::LedgerError;
use crate::redis::server_info::Topology;

/// Keeps one partition's connection to its primary. All callers share it, and the attempts to open it.
pub(crate) struct ConnectionManager {
    primary: PrimaryLocator,
    purpose: Purpose,
    timeouts: Timeouts,
    state: Mutex<State>,
}

/// A connection to the primary. It is closed once it was discarded and its last clone is dropped: keep a
/// clone while a reply is awaited.
#[derive(Clone)]
pub(crate) struct Connection {
    /// Commands are sent through a clone of it.
    pub(crate) redis: MultiplexedConnection,
    /// The server, as it was named when this partition began to use the connection.
    primary: Arc<Primary>,
    pooled: PooledConnection,
}

impl Connection {
    /// The address of the server.
    pub(crate) fn address(&self) -> String {
        self.primary.address.to_string()
    }

    /// Waits until fewer than [`MAX_WRITES`](super::MAX_WRITES) writes are in flight over it. The place is free again
    /// when the permit is dropped.
    pub(crate) async fn write_permit(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        Arc::clone(&self.pooled.writes).acquire_owned().await.ok()
    }

    /// What the server was last seen to be like.
    pub(crate) fn seen(&self) -> &ServerSeen {
        &self.pooled.seen
    }

    /// Identifies this connection among all to the same target.
    pub(crate) fn number(&self) -> u64 {
        self.pooled.number
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
    /// A manager that shares its connection with all others of this purpose to the same server.
    pub(crate) fn to(primary: PrimaryLocator, purpose: Purpose, timeouts: Timeouts) -> Self {
        let state = State { now: Now::Unconnected, failures: 0, not_before: Instant::now() };
        Self { primary, purpose, timeouts, state: Mutex::new(state) }
    }

    /// How the primary is located.
    pub(crate) fn topology(&self) -> Topology {
        self.primary.target().topology()
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
        let address = &connection.primary.address;
        self.primary.servers().pool.discard(address, self.purpose, connection.number());
        self.leave(connection);
    }

    /// Leaves a connection whose server is not the primary any more, or is not proven to be it. Other partitions may
    /// go on using it.
    pub(crate) fn leave(&self, connection: &Connection) {
        let mut state = self.state();
        if matches!(&state.now, Now::Connected(now) if now.number() == connection.number()) {
            state.now = Now::Unconnected;
        }
    }

    /// Leaves a connection whose server said that it is not the primary. At a fixed address it is discarded,
    /// because the address may lead to another server by now.
    pub(crate) fn elsewhere(&self, connection: &Connection) {
        match self.topology() {
            Topology::Single => self.discard(connection),
            Topology::Sentinels | Topology::Cluster => self.leave(connection),
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
        let connection = match &self.state().now {
            Now::Connected(connection) => connection.clone(),
            _ => return,
        };
        self.discard(&connection);
    }

    /// Confirms that this connection's server is the primary: where others name the primary, a majority of
    /// them, asked now, names it. Otherwise the connection is left. A poll proves freshness, and an append is
    /// acknowledged, only after this confirmation.
    pub(crate) async fn confirm_primary(&self, connection: &Connection) -> Result<(), LedgerError> {
        self.confirm_primary_within(connection, self.timeouts.response).await
    }

    /// The same within a shorter time, after which the error says who has not answered.
    pub(crate) async fn confirm_primary_within(
        &self,
        connection: &Connection,
        within: Duration,
    ) -> Result<(), LedgerError> {
        let within = within.min(self.timeouts.response);
        let confirmed = self.primary.confirm(&connection.primary, within).await;
        confirmed.map_err(|error| {
            self.leave(connection);
            LedgerError::Unreachable(Arc::new(error))
        })
    }

    fn attempt(&self, not_before: Instant) -> Attempt {
        let (locator, purpose, timeouts) = (self.primary.clone(), self.purpose, self.timeouts);
        let connect = async move {
            sleep_until(not_before).await;
            // At most half of the time is for those that name the primary.
            let primary = locator.locate(timeouts.connect / 2).await?;
            let pooled = locator.servers().pooled(&primary, purpose, timeouts).await?;
            Ok(Connection { redis: pooled.redis.clone(), primary, pooled })
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

#[cfg(test)]
mod tests;
