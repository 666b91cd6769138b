//! A subscription that is renewed for ever: it delivers what is published, and reports where messages may
//! have been missed.
//!
//! There is no queue. Messages wait in the kernel's buffers, then in Redis', which closes the connection
//! of a slow subscriber (client-output-buffer-limit). That is a gap like any other.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::handshake::ConnectionError;
use super::primary::{PrimaryLocator, Timeouts};
use super::resp::{Reply, RespConnection};
use super::{RECONNECT, reconnect_delay};

/// After how long without a message the server gets a PING.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// An event of a subscription.
#[derive(Clone, Debug)]
pub(crate) enum SubscriptionEvent {
    /// A published message.
    Message(Bytes),
    /// The subscription was established. Messages that were published before may have been missed.
    Gap,
    /// The server does not permit the subscription. It is tried again.
    Refused(Arc<ConnectionError>),
    /// The subscription failed or ended. It is tried again.
    Lost(Arc<ConnectionError>),
}

/// Why a subscription ended.
enum End {
    Refused(ConnectionError),
    Lost(ConnectionError),
    /// Another server is the primary now.
    Moved,
}

impl From<ConnectionError> for End {
    fn from(error: ConnectionError) -> Self {
        Self::Lost(error)
    }
}

/// Subscribes to a channel for ever. `sink` gets the events in order, and must not take long, because
/// nothing is read meanwhile. An idle subscription costs one PING every [`PING_INTERVAL`].
pub(crate) async fn subscribe<F: Future<Output = ()>>(
    primary: Arc<PrimaryLocator>,
    channel: String,
    timeouts: Timeouts,
    sink: impl Fn(SubscriptionEvent) -> F,
) -> Infallible {
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        let Err(end) = subscription(&primary, &channel, timeouts, &sink).await;
        // A subscription that lasted a while resets the backoff.
        failures = if begun.elapsed() > RECONNECT.longest * 2 { 1 } else { failures + 1 };
        match end {
            End::Refused(error) => sink(SubscriptionEvent::Refused(Arc::new(error))).await,
            End::Lost(error) => sink(SubscriptionEvent::Lost(Arc::new(error))).await,
            End::Moved => {}
        }
        sleep(reconnect_delay(failures)).await;
    }
}

/// Runs one subscription until it ends.
async fn subscription<F: Future<Output = ()>>(
    primary: &PrimaryLocator,
    channel: &str,
    timeouts: Timeouts,
    sink: &impl Fn(SubscriptionEvent) -> F,
) -> Result<Infallible, End> {
    let (mut resp, named) = primary.connect(timeouts.connect).await?;
    let address = &named.address;
    let handshake = primary.handshake(address);
    let late = || ConnectionError::TimedOut { address: address.clone(), after: timeouts.response };
    let subscribe = async {
        resp.send(&[vec![b"SUBSCRIBE", channel.as_bytes()]]).await?;
        resp.reply().await
    };
    let answer = timeout(timeouts.response, subscribe).await.map_err(|_| late())?;
    match answer.map_err(|error| handshake.map_io_error(error))? {
        Reply::Error(said) => {
            return Err(End::Refused(handshake.rejection("the subscription (SUBSCRIBE)", &said)));
        }
        Reply::Array(parts) if kind(&parts) == "subscribe" => {}
        _ => return Err(ConnectionError::NotRedis { address: address.clone(), hint: "" }.into()),
    }
    sink(SubscriptionEvent::Gap).await;
    let moved = primary.wait_until_moved(named.clone());
    tokio::pin!(moved);
    let (mut last_message, mut is_pinged) = (Instant::now(), false);
    loop {
        let patience = if is_pinged { timeouts.response } else { Duration::ZERO };
        let until = last_message + PING_INTERVAL + patience;
        let reply = tokio::select! {
            reply = timeout_at(until, resp.reply()) => reply,
            () = &mut moved => return Err(End::Moved),
        };
        match reply {
            Ok(reply) => {
                (last_message, is_pinged) = (Instant::now(), false);
                // An error is a reply to the PING, too: a server that cannot save sends one.
                if let Reply::Array(parts) = reply.map_err(|error| handshake.map_io_error(error))? {
                    match (kind(&parts), parts.last()) {
                        ("message", Some(Reply::Bulk(Some(body)))) => {
                            sink(SubscriptionEvent::Message(body.clone())).await;
                        }
                        ("pong", _) => {}
                        // The server has ended the subscription, or sends what was not requested.
                        _ => {
                            return Err(ConnectionError::Closed { address: address.clone() }.into());
                        }
                    }
                }
            }
            Err(_) if is_pinged => return Err(late().into()),
            Err(_) => {
                is_pinged = true;
                ping(&mut resp, timeouts).await.map_err(|()| late())?;
            }
        }
    }
}

async fn ping(resp: &mut RespConnection, timeouts: Timeouts) -> Result<(), ()> {
    let sent = timeout(timeouts.response, resp.send(&[vec![b"PING"]])).await;
    sent.map_err(|_| ())?.map_err(|_| ())
}

/// The kind of a push message: its first element.
fn kind(parts: &[Reply]) -> &str {
    parts.first().and_then(Reply::text).unwrap_or_default()
}
