//! Pipelined writes whose replies are proven to be the primary's.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::conn::{Connection, ConnectionManager, MAX_WRITES};
use super::error::{RedisFailure, ResponseTimeout};
use super::scripts::{RESPONSE_TIMEOUT, leave_if_unusable};
use super::{Durability, Options};
use crate::LedgerError;

/// The timeout of a reply to a pipelined write, including its confirmation.
pub(super) fn response_timeout(options: &Options) -> Duration {
    // The batches in flight before it are executed and confirmed first.
    let confirmations = u32::try_from(MAX_WRITES).unwrap_or(u32::MAX);
    match options.durability {
        Durability::Ledger => RESPONSE_TIMEOUT,
        _ => RESPONSE_TIMEOUT.saturating_add(options.confirm_within.saturating_mul(confirmations)),
    }
}

/// Sends `count` commands together on a connection, and returns their replies once a majority of those that
/// name the primary, asked afterwards, names the server that sent them. Otherwise the outcome is unknown. An
/// unusable connection is discarded. The permit is given back once the replies have come.
pub(super) async fn send_pipeline(
    connections: &ConnectionManager,
    connection: &Connection,
    (pipeline, count): (&redis::Pipeline, usize),
    timeout: Duration,
    permit: Option<OwnedSemaphorePermit>,
) -> Result<Vec<Value>, RedisFailure> {
    let mut redis = connection.redis.clone();
    let sent = redis.send_packed_commands(pipeline, 0, count);
    let result = match tokio::time::timeout(timeout, sent).await {
        Err(_) => Err(RedisFailure::NoReply(Arc::new(ResponseTimeout(timeout)))),
        Ok(result) => result.map_err(RedisFailure::of_client),
    };
    drop(permit);
    if result.iter().flatten().any(is_elsewhere) {
        connections.elsewhere(connection);
    }
    leave_if_unusable(connections, connection, &result);
    match result {
        Ok(replies) => confirm_primary(connections, connection, replies).await,
        Err(RedisFailure::NoReply(error)) => {
            let moved = connections.moved_error(connection);
            Err(RedisFailure::NoReply(moved.map_or(error, |moved| moved as _)))
        }
        Err(failure) => Err(failure),
    }
}

fn is_elsewhere(reply: &Value) -> bool {
    let Value::ServerError(error) = reply else { return false };
    RedisFailure::of_server(error).is_elsewhere()
}

/// Returns the replies if the server that sent them is the primary.
async fn confirm_primary(
    connections: &ConnectionManager,
    connection: &Connection,
    replies: Vec<Value>,
) -> Result<Vec<Value>, RedisFailure> {
    match connections.confirm_primary(connection).await {
        Ok(()) => Ok(replies),
        Err(LedgerError::Unreachable(error)) => Err(RedisFailure::NoReply(error)),
        Err(error) => Err(RedisFailure::NoReply(Arc::new(error))),
    }
}
