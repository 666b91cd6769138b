//! Clients that take more than their share, over connections that speak gRPC by hand.

use std::time::Duration;

use consentd::grpc::pb;
use h2::SendStream;
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::time::timeout;

use crate::sidecar::{Call, PATIENCE, Wire, framed, question};

pub const CAN_SEND: &str = "consent.v1.ConsentService/CanSend";
pub const BATCH: &str = "consent.v1.ConsentService/BatchCanSend";
pub const STREAM: &str = "consent.v1.ConsentService/StreamCanSend";
pub const RECORD: &str = "consent.v1.RecordService/RecordEvent";
pub const RECORD_MANY: &str = "consent.v1.RecordService/RecordEvents";
pub const HEALTH: &str = "grpc.health.v1.Health/Check";

/// How long a client waits for room to send before it gives up.
const ROOM: Duration = Duration::from_secs(3);

/// Sends the whole of a body, as far as it is taken; says how much was.
pub async fn push(sending: &mut SendStream<Bytes>, mut body: Bytes) -> usize {
    let mut sent = 0;
    while !body.is_empty() {
        sending.reserve_capacity(body.len());
        let capacity = std::future::poll_fn(|context| sending.poll_capacity(context));
        let Ok(Some(Ok(capacity))) = timeout(ROOM, capacity).await else { break };
        let part = body.split_to(capacity.min(body.len()));
        sent += part.len();
        if sending.send_data(part, false).is_err() {
            break;
        }
    }
    sent
}

/// A question of a stream that waits for a revision that never comes.
pub fn waiting(sequence: u64, user: &str) -> Vec<u8> {
    let request =
        pb::CanSendRequest { min_revision: u64::MAX, ..question(user, "acme", "utility") };
    framed(&pb::StreamCanSendRequest { sequence, request: Some(request) }.encode_to_vec())
}

/// A message of so many bytes whose last few never come.
pub fn unfinished(length: usize) -> Bytes {
    let mut body = framed(&vec![0; length]);
    body.truncate(body.len() - 64);
    body.into()
}

/// A connection and calls on it that were begun.
pub type Begun = (Wire, Vec<(Call, SendStream<Bytes>)>);

/// Opens calls, over some connections, and leaves them silent.
pub async fn silent(
    address: &str,
    connections: usize,
    each: usize,
    methods: &[&str],
) -> Vec<Begun> {
    let mut all = Vec::new();
    for _ in 0..connections {
        let mut wire = Wire::to(address).await;
        let mut calls = Vec::new();
        for n in 0..each {
            let begun = wire.begin_headers(methods[n % methods.len()], &[]);
            let Ok(Ok(call)) = timeout(PATIENCE, begun).await else { break };
            calls.push(call);
        }
        all.push((wire, calls));
    }
    all
}
