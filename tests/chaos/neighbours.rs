//! Greedy clients of a sidecar, and whether it goes on answering everybody else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::Status;

use crate::fleet::MAX_CONNECTIONS;
use crate::greedy::{
    BATCH, Begun, CAN_SEND, HEALTH, RECORD, RECORD_MANY, STREAM, push, silent, unfinished, waiting,
};
use crate::load::BUSINESS;
use crate::plan::Greed;
use crate::sidecar::{Sidecar, Wire, event, framed, opt_out, question};

/// How long somebody else may wait for an answer. Where connections are as many as there may be,
/// one makes room for another once it has been silent for ten seconds.
const SERVED: Duration = Duration::from_secs(20);

/// How long the same may take over a connection that is there.
const ANSWERED: Duration = Duration::from_secs(8);

/// How long somebody who was refused waits before the next attempt.
const REST: Duration = Duration::from_millis(200);

/// How many connections a greedy client uses where it does not take them all.
const CONNECTIONS: usize = 4;

/// How many calls it begins on each.
const CALLS: usize = 200;

/// How long the ids are that are too long.
const LONG_ID: usize = 1_000_000;

/// Bytes of a message that never arrives whole, below what a message may have.
const UNFINISHED: usize = 2 * 1024 * 1024 - 64;

/// What greedy clients hold; let go when dropped.
pub struct Neighbours {
    greed: Greed,
    _begun: Vec<Begun>,
    _idle: Vec<(TcpStream, Option<Wire>)>,
    /// Those that still send.
    _sending: JoinSet<()>,
}

impl Neighbours {
    /// Takes as much of a sidecar as it gives.
    pub async fn begin(greed: Greed, sidecar: &Sidecar) -> Self {
        let (mut begun, mut idle, mut sending) = (Vec::new(), Vec::new(), JoinSet::new());
        let listeners = [&sidecar.grpc, &sidecar.record];
        match greed {
            Greed::SilentCalls => {
                let methods = [STREAM, CAN_SEND, BATCH, RECORD, RECORD_MANY, HEALTH];
                for address in listeners {
                    begun.extend(silent(address, CONNECTIONS, CALLS, &methods).await);
                }
            }
            Greed::LongIds => {
                let id = "x".repeat(LONG_ID);
                let recorded = event(&id, BUSINESS, opt_out("*")).encode_to_vec();
                let record = (RECORD, framed(&recorded));
                let bodies = [(STREAM, waiting(1, &id)), record];
                for (method, body) in bodies {
                    let address = if method == RECORD { listeners[1] } else { listeners[0] };
                    send(&mut sending, address, method, 8, &body.into()).await;
                }
            }
            Greed::Waits => {
                let questions: Vec<u8> = (0..2_000).flat_map(|n| waiting(n, "US.1")).collect();
                send(&mut sending, listeners[0], STREAM, 8, &questions.into()).await;
            }
            Greed::UnfinishedBodies => {
                let body = unfinished(UNFINISHED);
                send(&mut sending, listeners[0], BATCH, 12, &body).await;
                send(&mut sending, listeners[1], RECORD, 12, &unfinished(UNFINISHED / 4)).await;
            }
            Greed::IdleConnections => {
                for address in listeners {
                    for number in 0..MAX_CONNECTIONS {
                        // One that is at its limit may refuse this.
                        let Ok(stream) = TcpStream::connect(address).await else { continue };
                        let speaks = number % 2 == 0;
                        let wire = if speaks { connect(address).await.ok() } else { None };
                        idle.push((stream, wire));
                    }
                }
            }
        }
        Self { greed, _begun: begun, _idle: idle, _sending: sending }
    }

    /// Whether others are still served; then the neighbours leave.
    pub async fn leave_others_served(self, sidecar: &Sidecar) -> Result<(), String> {
        let served = serves_others(sidecar).await;
        served.map_err(|said| format!("beside {:?} others are not served: {said}", self.greed))
    }
}

/// Begins calls on some connections, whose bodies are sent as far as they are taken and never end.
async fn send(
    sending: &mut JoinSet<()>,
    address: &str,
    method: &'static str,
    each: usize,
    body: &Bytes,
) {
    for _ in 0..CONNECTIONS {
        let mut wire = Wire::to(address).await;
        let body = body.clone();
        sending.spawn(async move {
            let mut calls = Vec::new();
            for _ in 0..each {
                let Ok((call, mut stream)) = wire.begin_headers(method, &[]).await else { break };
                push(&mut stream, body.clone()).await;
                calls.push((call, stream));
            }
            // Nobody reads what is answered.
            std::future::pending::<()>().await;
        });
    }
}

async fn connect(address: &str) -> Result<Wire, Status> {
    Wire::try_with(&h2::client::Builder::new(), address).await
}

/// Asks, and records a STOP, over new connections, as the business' other processes would.
async fn serves_others(sidecar: &Sidecar) -> Result<(), String> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let user = format!("US.beside-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let stop = event(&user, BUSINESS, opt_out("*")).encode_to_vec();
    let asked = question(&user, BUSINESS, "utility").encode_to_vec();
    answered(&sidecar.grpc, HEALTH, &[]).await?;
    answered(&sidecar.record, RECORD, &stop).await?;
    let answer = answered(&sidecar.grpc, CAN_SEND, &asked).await?;
    let answer = pb::CanSendResponse::decode(&*answer).map_err(|error| error.to_string())?;
    if answer.allowed { Err(format!("allowed after STOP: {answer:?}")) } else { Ok(()) }
}

async fn answered(address: &str, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
    let started = Instant::now();
    loop {
        let call = async { connect(address).await?.call(method, message).await };
        let said = match timeout(ANSWERED, call).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => status.to_string(),
            Err(late) => late.to_string(),
        };
        if started.elapsed() > SERVED {
            return Err(format!("{method} after {:?}: {said}", started.elapsed()));
        }
        sleep(REST).await;
    }
}
