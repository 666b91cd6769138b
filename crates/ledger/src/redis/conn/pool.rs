//! One multiplexed connection for each server and purpose, which all partitions share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::RECONNECT;
use super::error::ConnectionError;
use super::primary::{Primary, Servers, Timeouts};
use super::resp::RespConnection;
use super::url::Address;
use crate::redis::server_info::ServerInfo;

/// What a connection is for. Replies come in the order of the commands, so that a poll must not wait behind an
/// append that waits for replicas.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Purpose {
    /// Reads, and polls.
    Reading,
    /// Appends.
    Writing,
}

/// The connections.
#[derive(Default)]
pub(super) struct ConnectionPool {
    places: Mutex<HashMap<(Address, Purpose), Arc<Place>>>,
    /// The number of the next connection.
    number: AtomicU64,
}

/// The place of a connection, which is locked while one is opened.
type Place = tokio::sync::Mutex<State>;

struct State {
    open: Option<PooledConnection>,
    /// The last failure to open one.
    failed: Option<(ConnectionError, Instant)>,
    /// Bounds the writes whose replies are awaited.
    writes: Arc<Semaphore>,
}

impl Default for State {
    fn default() -> Self {
        Self { open: None, failed: None, writes: Arc::new(Semaphore::new(MAX_WRITES)) }
    }
}

/// How many writes are in flight at once over one connection. Each may wait for replicas, and the next one behind
/// it. Changes that wait meanwhile share the next batches of their partition.
pub(crate) const MAX_WRITES: usize = 4;

/// A shared connection. It is closed once it was discarded and its last clone is dropped.
#[derive(Clone)]
pub(super) struct PooledConnection {
    pub(super) redis: MultiplexedConnection,
    /// The server, as it was named when the connection was opened.
    primary: Arc<Primary>,
    /// Identifies it among all of the pool.
    pub(super) number: u64,
    /// The task that reads from and writes to the socket.
    driver: Arc<AbortOnDropHandle<()>>,
    /// Bounds the writes whose replies are awaited, over this connection and the next one to the same server.
    pub(super) writes: Arc<Semaphore>,
    /// What the server was last seen to be like.
    pub(super) seen: Arc<ServerSeen>,
}

/// What a server was last seen to be like, over one connection: the partitions there need not each look. It is
/// locked while one of them looks.
#[derive(Default)]
pub(crate) struct ServerSeen {
    /// Its version, role and configuration, and when they were read.
    pub(crate) info: tokio::sync::Mutex<Option<(Duration, ServerInfo)>>,
    /// Its reply to INFO about memory and keys, and when it was read.
    pub(crate) memory: tokio::sync::Mutex<Option<(Duration, Arc<str>)>>,
}

impl Servers {
    /// The connection to this server for this purpose; opens one if there is none.
    pub(super) async fn pooled(
        &self,
        primary: &Arc<Primary>,
        purpose: Purpose,
        timeouts: Timeouts,
    ) -> Result<PooledConnection, ConnectionError> {
        let place = self.pool.place(&primary.address, purpose);
        let mut state = place.lock().await;
        if let Some(open) = state.open.as_ref().filter(|open| open.is_to(primary)) {
            return Ok(open.clone());
        }
        // Other partitions wanted the same connection a moment ago.
        if let Some((error, _)) =
            state.failed.as_ref().filter(|(_, when)| when.elapsed() < RECONNECT.first)
        {
            return Err(error.clone());
        }
        state.open = None;
        let opened = async {
            let resp = self.open(primary, timeouts.connect).await?;
            // Pending commands fail at once when no slot's primary is this server any more.
            let end = self.wait_until_unnamed(Arc::clone(primary));
            multiplexed(resp, &primary.address, timeouts, end).await
        };
        match opened.await {
            Ok((redis, driver)) => {
                let number = self.pool.number.fetch_add(1, Ordering::Relaxed);
                let (primary, driver) = (Arc::clone(primary), Arc::new(driver));
                let writes = Arc::clone(&state.writes);
                let seen = Arc::default();
                let opened = PooledConnection { redis, primary, number, driver, writes, seen };
                state.open = Some(opened.clone());
                state.failed = None;
                Ok(opened)
            }
            Err(error) => {
                state.failed = Some((error.clone(), Instant::now()));
                Err(error)
            }
        }
    }
}

impl PooledConnection {
    /// Whether it is to this server, and not closed.
    fn is_to(&self, primary: &Primary) -> bool {
        !self.driver.is_finished() && self.primary.is_same_server(primary)
    }
}

impl ConnectionPool {
    fn place(&self, address: &Address, purpose: Purpose) -> Arc<Place> {
        let mut places = self.places();
        // Servers come and go: what nobody uses is forgotten.
        if places.len() > MAX_PLACES {
            places.retain(|_, place| Arc::strong_count(place) > 1 || is_open(place));
        }
        Arc::clone(places.entry((address.clone(), purpose)).or_default())
    }

    /// Discards a connection that failed or timed out, so that the next caller opens another one.
    pub(super) fn discard(&self, address: &Address, purpose: Purpose, number: u64) {
        let place = self.places().get(&(address.clone(), purpose)).map(Arc::clone);
        // While it is locked, another one is being opened already.
        if let Some(place) = place
            && let Ok(mut state) = place.try_lock()
            && state.open.as_ref().is_some_and(|open| open.number == number)
        {
            state.open = None;
        }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<(Address, Purpose), Arc<Place>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many places are kept before those without a connection are forgotten.
const MAX_PLACES: usize = 64;

fn is_open(place: &Place) -> bool {
    place
        .try_lock()
        .is_ok_and(|state| state.open.as_ref().is_some_and(|open| !open.driver.is_finished()))
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
