//! What a Sentinel is asked, and its answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use redis::Value;

use super::error::ConnectionError;
use super::handshake::Handshake;
use super::primary::Primary;
use super::quorum::{Answer, text};
use super::url::Address;

/// The questions to one Sentinel.
pub(super) fn question(master: &str) -> redis::Pipeline {
    let mut questions = redis::pipe();
    questions.cmd("SENTINEL").arg("MYID");
    questions.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    questions.cmd("SENTINEL").arg("SENTINELS").arg(master);
    questions
}

/// Reads the replies, which are about all slots alike. SENTINEL needs permissions, so a rejection is reported
/// as such.
pub(super) fn answer(
    replies: &[Value],
    slots: &BTreeSet<u16>,
    handshake: &Handshake<'_>,
) -> Result<Answer, ConnectionError> {
    let refused =
        |error: &redis::ServerError| handshake.refused_question("a question (SENTINEL)", error);
    let not_sentinel =
        || ConnectionError::NotRedis { address: handshake.address.clone(), hint: "" };
    let [id, primary, others] = replies else { return Err(not_sentinel()) };
    let id = match id {
        Value::ServerError(error) => return Err(refused(error)),
        id => text(id).ok_or_else(not_sentinel)?.to_owned(),
    };
    let primary = match primary {
        Value::ServerError(error) => return Err(refused(error)),
        Value::Nil => None,
        Value::Array(parts) => Some(Primary::from(address_of(parts).ok_or_else(not_sentinel)?)),
        _ => return Err(not_sentinel()),
    };
    let others = match others {
        // The error is "No such master", as for the primary: it names no others.
        Value::ServerError(_) if primary.is_none() => Vec::new(),
        Value::ServerError(error) => return Err(refused(error)),
        Value::Array(others) => others.iter().filter_map(other).collect(),
        _ => return Err(not_sentinel()),
    };
    let primary = primary.map(Arc::new);
    let named = slots.iter().filter_map(|slot| Some((*slot, Arc::clone(primary.as_ref()?))));
    Ok(Answer { id, primaries: named.collect(), others })
}

fn address_of(parts: &[Value]) -> Option<Address> {
    let [host, port] = parts else { return None };
    let host = text(host).filter(|host| !host.is_empty())?;
    Some(Address::Tcp(host.into(), text(port)?.parse().ok()?))
}

/// Reads one entry of the reply to SENTINEL SENTINELS: a flat list of names and values.
fn other(entry: &Value) -> Option<(String, Address)> {
    let Value::Array(flat) = entry else { return None };
    let of = |name: &str| {
        flat.chunks(2).find_map(|pair| match pair {
            [key, value] if text(key) == Some(name) => text(value),
            _ => None,
        })
    };
    let address = Address::Tcp(of("ip")?.into(), of("port")?.parse().ok()?);
    // A Sentinel that has not been contacted yet has no id; its address stands in for it.
    let id = of("runid").filter(|id| !id.is_empty()).map(str::to_owned);
    Some((id.unwrap_or_else(|| address.to_string()), address))
}
