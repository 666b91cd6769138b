//! A subscription that is kept: what is published is delivered, and where something may have been
//! missed that is said.
//!
//! There is no queue. What is published lies in the kernel's buffers, then in Redis', which closes
//! the connection of whoever is too slow (client-output-buffer-limit); that is a gap like another.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::backoff;
use super::handshake::ConnectionError;
use super::primary::{PrimaryLocator, Timeouts};
use super::resp::{Reply, RespConnection};

/// After how long without a word the server is asked whether it is still there.
const QUIET: Duration = Duration::from_secs(5);

/// What a subscriber is told.
#[derive(Clone, Debug)]
pub(crate) enum SubscriptionEvent {
    /// Something was published.
    Message(Bytes),
    /// The subscription stands from now on; what was published before it may have been missed.
    Gap,
    /// There is no subscription, and another attempt follows: the server does not permit it.
    Refused(Arc<ConnectionError>),
    /// There is no subscription, and another attempt follows.
    Lost(Arc<ConnectionError>),
}

/// Why a subscription ended.
enum End {
    Refused(ConnectionError),
    Lost(ConnectionError),
    /// The primary is elsewhere now.
    Moved,
}

impl From<ConnectionError> for End {
    fn from(error: ConnectionError) -> Self {
        Self::Lost(error)
    }
}

/// Subscribes to a channel for ever. `sink` is called in order and must not take long: meanwhile
/// nothing is read. Costs nothing while nothing is published but a PING every few seconds.
pub(crate) async fn listen<F: Future<Output = ()>>(
    route: Arc<PrimaryLocator>,
    channel: String,
    timeouts: Timeouts,
    sink: impl Fn(SubscriptionEvent) -> F,
) -> Infallible {
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        let Err(end) = subscription(&route, &channel, timeouts, &sink).await;
        // One that stood for a while owes nothing to those before it.
        failures = if begun.elapsed() > backoff::LONGEST * 2 { 1 } else { failures + 1 };
        match end {
            End::Refused(error) => sink(SubscriptionEvent::Refused(Arc::new(error))).await,
            End::Lost(error) => sink(SubscriptionEvent::Lost(Arc::new(error))).await,
            End::Moved => {}
        }
        sleep(backoff::wait(failures)).await;
    }
}

/// One subscription, to its end.
async fn subscription<F: Future<Output = ()>>(
    route: &PrimaryLocator,
    channel: &str,
    timeouts: Timeouts,
    sink: &impl Fn(SubscriptionEvent) -> F,
) -> Result<Infallible, End> {
    let (mut wire, address) = route.open(timeouts.connect).await?;
    let dial = route.dial(&address);
    let late = || ConnectionError::TimedOut { address: address.clone(), after: timeouts.response };
    let subscribe = async {
        wire.send(&[vec![b"SUBSCRIBE", channel.as_bytes()]]).await?;
        wire.reply().await
    };
    let answer = timeout(timeouts.response, subscribe).await.map_err(|_| late())?;
    match answer.map_err(|error| dial.lost(error))? {
        Reply::Error(said) => {
            return Err(End::Refused(dial.refuses("the subscription (SUBSCRIBE)", &said)));
        }
        Reply::Array(parts) if kind(&parts) == "subscribe" => {}
        _ => return Err(ConnectionError::NotRedis { address: address.clone(), hint: "" }.into()),
    }
    sink(SubscriptionEvent::Gap).await;
    let moved = route.wait_until_moved(address.clone());
    tokio::pin!(moved);
    let (mut heard, mut asked) = (Instant::now(), false);
    loop {
        let until = heard + if asked { QUIET + timeouts.response } else { QUIET };
        let reply = tokio::select! {
            reply = timeout_at(until, wire.reply()) => reply,
            () = &mut moved => return Err(End::Moved),
        };
        match reply {
            Ok(reply) => {
                (heard, asked) = (Instant::now(), false);
                // An error is an answer to the PING too: one that cannot save gives one.
                if let Reply::Array(parts) = reply.map_err(|error| dial.lost(error))? {
                    match (kind(&parts), parts.last()) {
                        ("message", Some(Reply::Bulk(Some(body)))) => {
                            sink(SubscriptionEvent::Message(body.clone())).await;
                        }
                        ("pong", _) => {}
                        // The server has ended it, or speaks of what was not asked for.
                        _ => {
                            return Err(ConnectionError::Closed { address: address.clone() }.into());
                        }
                    }
                }
            }
            Err(_) if asked => return Err(late().into()),
            Err(_) => {
                asked = true;
                ping(&mut wire, timeouts).await.map_err(|()| late())?;
            }
        }
    }
}

async fn ping(wire: &mut RespConnection, timeouts: Timeouts) -> Result<(), ()> {
    let sent = timeout(timeouts.response, wire.send(&[vec![b"PING"]])).await;
    sent.map_err(|_| ())?.map_err(|_| ())
}

/// What kind of push this is.
fn kind(parts: &[Reply]) -> &str {
    parts.first().and_then(Reply::text).unwrap_or_default()
}
