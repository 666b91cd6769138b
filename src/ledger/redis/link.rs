//! One connection to the primary, opened anew whenever the last one was given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::aio::MultiplexedConnection;
use tokio::sync::Mutex;

use super::Target;
use crate::ledger::LedgerError;

/// Keeps one connection.
pub(super) struct Link {
    target: Arc<Target>,
    number: AtomicU64,
    current: Mutex<Option<Connection>>,
}

/// A connection to the primary.
#[derive(Clone)]
pub(super) struct Connection {
    /// Send commands through a clone of it.
    pub(super) redis: MultiplexedConnection,
    /// Which of the link's connections this is.
    number: u64,
}

impl Link {
    /// A link that connects once it is used.
    pub(super) fn new(target: Arc<Target>) -> Self {
        Self { target, number: AtomicU64::new(0), current: Mutex::new(None) }
    }

    /// The connection; a new one where there is none.
    pub(super) async fn connection(&self) -> Result<Connection, LedgerError> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &*current {
            return Ok(connection.clone());
        }
        let failed = |error: redis::RedisError| LedgerError::Unreachable(Arc::new(error));
        let client = redis::Client::open(self.target.url.as_str()).map_err(failed)?;
        let redis = client.get_multiplexed_async_connection().await.map_err(failed)?;
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let connection = Connection { redis, number };
        *current = Some(connection.clone());
        Ok(connection)
    }

    /// Gives a connection up that has failed, or that did not answer in time.
    pub(super) async fn give_up(&self, connection: &Connection) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|now| now.number == connection.number) {
            *current = None;
        }
    }
}
