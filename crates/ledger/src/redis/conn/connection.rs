//! One connection to the primary, opened anew whenever the last one was given up.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::backoff;
use super::handshake::ConnectionError;
use super::primary::{PrimaryLocator, Timeouts};
use super::resp::RespConnection;
use super::url::Address;
use super::url::Target;
use crate::LedgerError;

/// Keeps one connection.
pub(crate) struct ConnectionManager {
    route: Arc<PrimaryLocator>,
    timeouts: Timeouts,
    state: Mutex<State>,
    number: Arc<AtomicU64>,
}

/// A connection to the primary. It ends once it was given up and the last clone of it is dropped:
/// keep one for as long as an answer is awaited.
#[derive(Clone)]
pub(crate) struct Connection {
    /// Send commands through a clone of it.
    pub(crate) redis: MultiplexedConnection,
    /// Where it goes.
    address: Address,
    /// Which of the link's connections this is.
    number: u64,
    /// What reads and writes it.
    _driver: Arc<AbortOnDropHandle<()>>,
}

impl Connection {
    /// Which of the link's connections this is.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

/// What an attempt came to; and when, since nobody may have been there to hear it.
type Attempted = Result<Connection, (Arc<ConnectionError>, Instant)>;

/// An attempt to connect, which everybody waits for who wants a connection meanwhile. Where all of
/// them go away it rests, and goes on with the next.
type Attempt = Shared<Pin<Box<dyn Future<Output = Attempted> + Send>>>;

struct State {
    now: Now,
    /// How many attempts on end have failed.
    failures: u32,
    /// Not before this is another connection opened: one that fails as soon as it is used must not
    /// be opened as fast as the processor can.
    not_before: Instant,
}

enum Now {
    Unconnected,
    Connecting(Attempt),
    Connected(Connection),
    /// Callers are told so at once until then.
    Failed(Arc<ConnectionError>, Instant),
}

impl ConnectionManager {
    /// A link that connects once it is used.
    pub(crate) fn new(target: Arc<Target>) -> Self {
        Self::on(Arc::new(PrimaryLocator::new(target)), Timeouts::default())
    }

    /// A link on a way that others go too.
    pub(crate) fn on(route: Arc<PrimaryLocator>, timeouts: Timeouts) -> Self {
        let state = State { now: Now::Unconnected, failures: 0, not_before: Instant::now() };
        Self { route, timeouts, state: Mutex::new(state), number: Arc::default() }
    }

    /// The connection; a new one where there is none. Never waits longer than for one attempt, and
    /// fails at once for a while after one has failed.
    pub(crate) async fn connection(&self) -> Result<Connection, LedgerError> {
        loop {
            let attempt = {
                let mut state = self.state();
                if matches!(&state.now, Now::Connected(now) if self.is_elsewhere(now)) {
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
            let attempted = attempt.clone().await;
            self.settle(&attempt, &attempted);
            match attempted {
                Ok(connection) => return Ok(connection),
                // It may have failed long ago, while nobody was there: then another is due.
                Err((error, when)) if when.elapsed() < backoff::LONGEST => {
                    return Err(LedgerError::Unreachable(error));
                }
                Err(_) => {}
            }
        }
    }

    /// Gives a connection up that has failed, or that did not answer in time.
    #[allow(clippy::unused_async, reason = "its callers need not know that it takes no time")]
    pub(crate) async fn give_up(&self, connection: &Connection) {
        let mut state = self.state();
        if matches!(&state.now, Now::Connected(now) if now.number == connection.number) {
            state.now = Now::Unconnected;
        }
    }

    /// Whether the Sentinels have named another primary than this connection goes to.
    fn is_elsewhere(&self, connection: &Connection) -> bool {
        self.route.moved_from(&connection.address).is_some()
    }

    /// Why a connection failed, where that is because the primary is elsewhere by now.
    pub(crate) fn why_dropped(&self, connection: &Connection) -> Option<Arc<ConnectionError>> {
        let address = connection.address.clone();
        let now = self.route.moved_from(&address)?;
        Some(Arc::new(ConnectionError::Moved { address, now }))
    }

    /// Gives up the present connection, wherever it goes: the next one follows the name anew.
    pub(crate) fn renew(&self) {
        let mut state = self.state();
        if matches!(&state.now, Now::Connected(_)) {
            state.now = Now::Unconnected;
        }
    }

    /// Makes sure that this connection still goes to the primary: with Sentinels, a majority of
    /// them says so now. Else it is given up. Only with this a poll proves anything, and only with
    /// this an append is acknowledged.
    pub(crate) async fn primary_confirmed(
        &self,
        connection: &Connection,
    ) -> Result<(), LedgerError> {
        match self.route.confirm(&connection.address, self.timeouts.response).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.give_up(connection).await;
                Err(LedgerError::Unreachable(Arc::new(error)))
            }
        }
    }

    fn attempt(&self, not_before: Instant) -> Attempt {
        let (route, timeouts) = (Arc::clone(&self.route), self.timeouts);
        let number = Arc::clone(&self.number);
        let connect = async move {
            sleep_until(not_before).await;
            let (wire, address) = route.open(timeouts.connect).await?;
            // What is asked on it fails at once when the Sentinels name another primary.
            let moved = route.wait_until_moved(address.clone());
            let (redis, driver) = multiplexed(wire, &address, timeouts, moved).await?;
            let number = number.fetch_add(1, Ordering::Relaxed);
            Ok(Connection { redis, address, number, _driver: Arc::new(driver) })
        };
        let told = |error: ConnectionError| (Arc::new(error), Instant::now());
        let attempt: Pin<Box<dyn Future<Output = Attempted> + Send>> =
            Box::pin(connect.map(move |connected| connected.map_err(told)));
        attempt.shared()
    }

    /// Takes over what an attempt came to, unless another caller was first.
    fn settle(&self, attempt: &Attempt, attempted: &Attempted) {
        let mut state = self.state();
        if !matches!(&state.now, Now::Connecting(current) if current.ptr_eq(attempt)) {
            return;
        }
        match attempted {
            Ok(connection) => {
                state.failures = 0;
                state.not_before = Instant::now() + backoff::SHORTEST;
                state.now = Now::Connected(connection.clone());
            }
            Err((error, when)) => {
                state.failures = state.failures.saturating_add(1);
                let until = *when + backoff::wait(state.failures);
                state.now = Now::Failed(Arc::clone(error), until);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands a greeted connection to redis-rs, with what drives it until `end`.
pub(crate) async fn multiplexed(
    wire: RespConnection,
    address: &Address,
    timeouts: Timeouts,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(MultiplexedConnection, AbortOnDropHandle<()>), ConnectionError> {
    let not_redis = || ConnectionError::NotRedis { address: address.clone(), hint: "" };
    let stream = wire.into_stream().ok_or_else(not_redis)?;
    // All has been said that begins a connection; a name would take a permission of its own.
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
