//! Looks for partitions of a ledger with another layout than that of one that is to be made.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use redis::Value;

use super::super::Target;
use super::super::conn::{ConnectionManager, PrimaryLocator, Purpose, Servers, Timeouts};
use super::super::error::{RedisFailure, RedisRejection};
use super::super::keyspace::Keyspace;
use super::super::scripts::{ask, ask_all};
use super::create::{CreateError, MAX_KEYS, NODES_AT_ONCE};
use consentd_core::partition::Layout;

/// Refuses to make a ledger where a partition of one with another layout is left: a second ledger would hide what was
/// recorded there, while sidecars go on with the first.
///
/// # Errors
///
/// [`CreateError::OtherLayout`], with one of the partitions.
pub(super) async fn ensure_no_other(target: Target, layout: Layout) -> Result<(), CreateError> {
    let servers = Servers::new(target);
    let at = |primary| ConnectionManager::to(primary, Purpose::Reading, Timeouts::default());
    let mut others = Vec::new();
    for (partitions, keyspace) in Keyspace::of_other_layouts(layout) {
        let primary = PrimaryLocator::new(Arc::clone(&servers), keyspace.slot());
        others.push(Other { partitions, keyspace, primary });
    }
    let Some(first) = others.first() else { return Ok(()) };
    // It is asked who has all of these slots.
    at(first.primary.clone()).connection().await.map_err(CreateError::Redis)?;
    let mut by_node: HashMap<String, (ConnectionManager, Vec<&Other>)> = HashMap::new();
    for other in &others {
        let address = if let Some(primary) = other.primary.known() {
            primary.address.to_string()
        } else {
            // Most likely nobody has it, which is the error.
            let connection = at(other.primary.clone()).connection().await;
            connection.map_err(CreateError::Redis)?.address()
        };
        let node = by_node.entry(address);
        node.or_insert_with(|| (at(other.primary.clone()), Vec::new())).1.push(other);
    }
    let mut looks = Vec::new();
    for (connections, node) in by_node.values() {
        for some in node.chunks(MAX_KEYS) {
            looks.push(find_other(connections, some));
        }
    }
    let mut looks = futures_util::stream::iter(looks).buffer_unordered(NODES_AT_ONCE);
    while let Some(found) = looks.next().await {
        if let Some((partition, partitions)) = found? {
            return Err(CreateError::OtherLayout { partition, partitions });
        }
    }
    Ok(())
}

/// A partition that a ledger of another layout may have.
struct Other {
    /// The number of partitions of that ledger.
    partitions: u32,
    keyspace: Keyspace,
    primary: PrimaryLocator,
}

/// The first of these partitions, all at one server, that exists: its number, and its ledger's number of partitions.
async fn find_other(
    connections: &ConnectionManager,
    others: &[&Other],
) -> Result<Option<(u32, u32)>, CreateError> {
    let mut asked = Vec::with_capacity(others.len());
    for other in others {
        let mut command = redis::cmd("EXISTS");
        command.arg(&other.keyspace.meta);
        asked.push(command);
    }
    let answers = ask_all(connections, asked).await?;
    for (other, answer) in others.iter().zip(answers) {
        match answer {
            Value::Int(0) => {}
            Value::Int(_) => {
                // Ledgers of several layouts may have the same tag.
                let mut command = redis::cmd("HGET");
                command.arg(&other.keyspace.meta).arg("partitions");
                let stated = match ask(connections, &command).await {
                    Ok(Value::BulkString(bytes)) => String::from_utf8(bytes).ok(),
                    _ => None,
                };
                let stated = stated.and_then(|text| text.parse().ok());
                return Ok(Some((other.keyspace.partition, stated.unwrap_or(other.partitions))));
            }
            Value::ServerError(error) => return Err(RedisFailure::of_server(&error).into()),
            _ => return Err(RedisFailure::Rejected(RedisRejection::MalformedReply).into()),
        }
    }
    Ok(None)
}
