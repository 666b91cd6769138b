//! Subscriptions to the announcements of partitions: one connection to each server, renewed for ever. They deliver
//! what is published, and report where messages may have been missed.
//!
//! There is no queue. Messages wait in the kernel's buffers, then in Redis', which closes the connection
//! of a slow subscriber (client-output-buffer-limit). That is a gap like any other.
//!
//! In a Cluster the channels are sharded (SSUBSCRIBE), so that an announcement costs the shard of its slot alone.
//! A server ends such a subscription unasked (`sunsubscribe`) when the slot leaves it, and some do so on a replica
//! that has just become the primary. Either way it is made anew where the slot is.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::error::ConnectionError;
use super::handshake::Handshake;
use super::primary::{Primary, PrimaryLocator, Servers, Timeouts};
use super::resp::{Reply, RespConnection};
use super::{RECONNECT, reconnect_delay};
use crate::redis::error::RedisFailure;
use crate::redis::server_info::Topology;

/// After how long without a message the server gets a PING.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// After how long a channel that was refused, or that the server has ended, is subscribed to again.
const RENEWAL_DELAY: Duration = Duration::from_millis(200);

/// How often the primaries of channels are looked up if none has been named yet.
const LOCATION_INTERVAL: Duration = Duration::from_millis(500);

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

/// The receiver of a channel's events. It must not take long, because nothing is read from the server meanwhile.
pub(crate) trait Sink: Send + Sync {
    /// Takes the next event. Returns whether further ones are wanted.
    fn take(&self, event: SubscriptionEvent) -> BoxFuture<'_, bool>;
}

/// The channels that are subscribed to, of all partitions.
pub(crate) struct Subscriptions {
    servers: Arc<Servers>,
    timeouts: Timeouts,
    channels: Mutex<BTreeMap<String, Channel>>,
    changed: Notify,
}

/// A channel, whose messages come from the primary of a slot.
#[derive(Clone)]
struct Channel {
    primary: PrimaryLocator,
    sink: Arc<dyn Sink>,
}

/// The channels that one server is to send.
type Wanted = BTreeMap<String, Arc<dyn Sink>>;

/// The task of one server's connection, and what it is to subscribe to.
struct ServerTask {
    primary: Arc<Primary>,
    wanted: watch::Sender<Wanted>,
    _task: AbortOnDropHandle<()>,
}

impl Subscriptions {
    pub(crate) fn new(servers: Arc<Servers>, timeouts: Timeouts) -> Self {
        Self { servers, timeouts, channels: Mutex::default(), changed: Notify::new() }
    }

    /// Adds a channel that the primary of a slot publishes to.
    pub(crate) fn add(&self, channel: &str, primary: PrimaryLocator, sink: Arc<dyn Sink>) {
        self.channels().insert(channel.to_owned(), Channel { primary, sink });
        self.changed.notify_one();
    }

    /// Removes a channel whose sink wants no further events, unless it was added with another one meanwhile.
    fn remove(&self, channel: &str, sink: &Arc<dyn Sink>) {
        let mut channels = self.channels();
        if channels.get(channel).is_some_and(|known| Arc::ptr_eq(&known.sink, sink)) {
            channels.remove(channel);
            self.changed.notify_one();
        }
    }

    /// Keeps all channels subscribed to, at the servers that are their primaries.
    pub(crate) async fn run(self: Arc<Self>) -> Infallible {
        let mut named = self.servers.named();
        let mut tasks = HashMap::<String, ServerTask>::new();
        loop {
            named.mark_unchanged();
            let unknown = self.assign(&mut tasks);
            let look_again = async {
                if unknown.is_empty() {
                    std::future::pending::<()>().await;
                }
                // They share the rounds of questions. Whoever polls reports why there is no answer.
                let located = unknown.iter().map(|primary| primary.locate(self.timeouts.connect));
                let located = futures_util::future::join_all(located).await;
                if located.iter().any(Result::is_err) {
                    sleep(LOCATION_INTERVAL).await;
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                Ok(()) = named.changed() => {}
                () = look_again => {}
            }
        }
    }

    /// Tells each server's task what to subscribe to. Returns the channels' locators whose primary is not known.
    fn assign(self: &Arc<Self>, tasks: &mut HashMap<String, ServerTask>) -> Vec<PrimaryLocator> {
        let channels = self.channels().clone();
        let mut wanted = HashMap::<String, (Arc<Primary>, Wanted)>::new();
        let mut unknown = Vec::new();
        for (name, Channel { primary, sink }) in channels {
            let Some(known) = primary.known() else {
                unknown.push(primary);
                continue;
            };
            let server = known.address.to_string();
            wanted.entry(server).or_insert_with(|| (known, Wanted::new())).1.insert(name, sink);
        }
        tasks.retain(|server, task| {
            wanted.get(server).is_some_and(|(primary, _)| primary.is_same_server(&task.primary))
        });
        for (server, (primary, wanted)) in wanted {
            match tasks.get(&server) {
                Some(task) => drop(task.wanted.send_replace(wanted)),
                None => drop(tasks.insert(server, self.start(primary, wanted))),
            }
        }
        unknown
    }

    fn start(self: &Arc<Self>, primary: Arc<Primary>, wanted: Wanted) -> ServerTask {
        let (sender, receiver) = watch::channel(wanted);
        let (subscriptions, server) = (Arc::clone(self), Arc::clone(&primary));
        #[allow(
            clippy::disallowed_methods,
            reason = "ended when the server has no channels any more"
        )]
        let task =
            tokio::spawn(async move { match subscriptions.serve(&server, receiver).await {} });
        ServerTask { primary, wanted: sender, _task: AbortOnDropHandle::new(task) }
    }

    /// Keeps a connection to one server for ever.
    async fn serve(&self, server: &Primary, mut wanted: watch::Receiver<Wanted>) -> Infallible {
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let error = match self.servers.open(server, self.timeouts.connect).await {
                Err(error) => Arc::new(error),
                Ok(resp) => {
                    let handshake = self.servers.handshake(&server.address);
                    let is_sharded = self.servers.target().topology() == Topology::Cluster;
                    let mut session = Session::new(self, resp, &handshake, is_sharded);
                    let Err(error) = session.run(&mut wanted).await;
                    Arc::new(error)
                }
            };
            let lost: Vec<_> = wanted.borrow().values().cloned().collect();
            for sink in lost {
                sink.take(SubscriptionEvent::Lost(Arc::clone(&error))).await;
            }
            // A connection that lasted a while resets the backoff.
            failures = if begun.elapsed() > RECONNECT.longest * 2 { 1 } else { failures + 1 };
            sleep(reconnect_delay(failures)).await;
        }
    }

    fn channels(&self) -> MutexGuard<'_, BTreeMap<String, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request whose reply is awaited. Replies come in the order of the requests.
enum Request {
    Subscribe(String),
    Unsubscribe(String),
    Ping,
}

/// The subscriptions of one connection.
struct Session<'a> {
    subscriptions: &'a Subscriptions,
    resp: RespConnection,
    handshake: &'a Handshake<'a>,
    timeouts: Timeouts,
    is_sharded: bool,
    /// The channels that are subscribed to, or about to be.
    channels: BTreeMap<String, Arc<dyn Sink>>,
    requests: VecDeque<Request>,
    /// When the oldest request that has no reply was sent, or the last reply came.
    waiting_since: Instant,
    /// When channels that were refused or ended are tried again.
    renewal: Option<Instant>,
}

impl<'a> Session<'a> {
    fn new(
        subscriptions: &'a Subscriptions,
        resp: RespConnection,
        handshake: &'a Handshake<'a>,
        is_sharded: bool,
    ) -> Self {
        Self {
            subscriptions,
            resp,
            handshake,
            timeouts: subscriptions.timeouts,
            is_sharded,
            channels: BTreeMap::new(),
            requests: VecDeque::new(),
            waiting_since: Instant::now(),
            renewal: None,
        }
    }

    /// Subscribes to what is wanted, and delivers what comes, until the connection fails. An idle connection
    /// costs one PING every [`PING_INTERVAL`].
    async fn run(
        &mut self,
        wanted: &mut watch::Receiver<Wanted>,
    ) -> Result<Infallible, ConnectionError> {
        wanted.mark_changed();
        let mut last_message = Instant::now();
        loop {
            let (until, is_late) = match self.requests.front() {
                Some(_) => (self.waiting_since + self.timeouts.response, true),
                None => (last_message + PING_INTERVAL, false),
            };
            let renewal = self.renewal;
            let renew = async {
                match renewal {
                    Some(when) => sleep_until(when).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                reply = self.resp.reply() => {
                    last_message = Instant::now();
                    let reply = reply.map_err(|error| self.handshake.map_io_error(error))?;
                    self.on_reply(reply).await?;
                }
                Ok(()) = wanted.changed() => {
                    let wanted = wanted.borrow_and_update().clone();
                    self.subscribe_to(&wanted).await?;
                }
                () = renew => {
                    self.renewal = None;
                    let wanted = wanted.borrow().clone();
                    self.subscribe_to(&wanted).await?;
                }
                () = sleep_until(until) => {
                    if is_late {
                        return Err(self.late());
                    }
                    self.send(vec![(Request::Ping, vec![b"PING".to_vec()])]).await?;
                }
            }
        }
    }

    /// Subscribes to channels that are new, and unsubscribes from those that are not wanted any more.
    async fn subscribe_to(&mut self, wanted: &Wanted) -> Result<(), ConnectionError> {
        let (subscribe, unsubscribe): (&[u8], &[u8]) = if self.is_sharded {
            (b"SSUBSCRIBE", b"SUNSUBSCRIBE")
        } else {
            (b"SUBSCRIBE", b"UNSUBSCRIBE")
        };
        // A command for each channel: those of a Cluster may be in several slots, and each gets its own reply.
        let command = |name: &[u8], channel: &str| vec![name.to_vec(), channel.as_bytes().to_vec()];
        let mut commands = Vec::new();
        for (channel, sink) in wanted {
            if self.channels.insert(channel.clone(), Arc::clone(sink)).is_none() {
                commands.push((Request::Subscribe(channel.clone()), command(subscribe, channel)));
            }
        }
        let unwanted = self.channels.keys().filter(|channel| !wanted.contains_key(*channel));
        let unwanted: Vec<_> = unwanted.cloned().collect();
        for channel in unwanted {
            self.channels.remove(&channel);
            let command = command(unsubscribe, &channel);
            commands.push((Request::Unsubscribe(channel), command));
        }
        self.send(commands).await
    }

    async fn send(
        &mut self,
        commands: Vec<(Request, Vec<Vec<u8>>)>,
    ) -> Result<(), ConnectionError> {
        if commands.is_empty() {
            return Ok(());
        }
        if self.requests.is_empty() {
            self.waiting_since = Instant::now();
        }
        let mut bytes = Vec::with_capacity(commands.len());
        for (request, command) in commands {
            self.requests.push_back(request);
            bytes.push(command);
        }
        let bytes: Vec<Vec<&[u8]>> =
            bytes.iter().map(|command| command.iter().map(Vec::as_slice).collect()).collect();
        let sent = timeout(self.timeouts.response, self.resp.send(&bytes)).await;
        sent.map_err(|_| self.late())?.map_err(|error| self.handshake.map_io_error(error))
    }

    async fn on_reply(&mut self, reply: Reply) -> Result<(), ConnectionError> {
        let parts = match reply {
            Reply::Array(parts) => parts,
            Reply::Error(said) => return self.on_error(&said).await,
            // Without a subscription, the reply to a PING is a status.
            Reply::Simple(_) if self.answered().is_some() => return Ok(()),
            _ => return Err(self.closed()),
        };
        let channel = parts.get(1).and_then(Reply::text).unwrap_or_default();
        match (kind(&parts), parts.last()) {
            ("message" | "smessage", Some(Reply::Bulk(Some(body)))) => {
                let sink = self.channels.get(channel).map(Arc::clone);
                if let Some(sink) = sink
                    && !sink.take(SubscriptionEvent::Message(body.clone())).await
                {
                    self.subscriptions.remove(channel, &sink);
                }
            }
            ("subscribe" | "ssubscribe", _) => {
                self.answered();
                let sink = self.channels.get(channel).map(Arc::clone);
                if let Some(sink) = sink {
                    sink.take(SubscriptionEvent::Gap).await;
                }
            }
            ("unsubscribe" | "sunsubscribe", _) => {
                let is_asked = matches!(self.requests.front(), Some(Request::Unsubscribe(asked)) if *asked == *channel);
                if is_asked {
                    self.answered();
                } else if let Some(sink) = self.channels.remove(channel) {
                    let address = self.handshake.address.clone();
                    let ended = Arc::new(ConnectionError::Unsubscribed { address });
                    sink.take(SubscriptionEvent::Lost(ended)).await;
                    self.renewal = Some(Instant::now() + RENEWAL_DELAY);
                }
            }
            ("pong", _) => {
                self.answered();
            }
            // The server sends what was not requested.
            _ => return Err(self.closed()),
        }
        Ok(())
    }

    /// Handles an error, which is the reply to the oldest request. A server that cannot save replies to a PING
    /// with one, too.
    async fn on_error(&mut self, said: &[u8]) -> Result<(), ConnectionError> {
        match self.answered() {
            Some(Request::Subscribe(channel)) => {
                let Some(sink) = self.channels.remove(&channel) else { return Ok(()) };
                let rejection = self.handshake.rejection("the subscription (SUBSCRIBE)", said);
                let rejection = Arc::new(rejection);
                // Such as while the slot is on its way to another node, or the server is busy.
                sink.take(if RedisFailure::of_error_reply(said).is_transient() {
                    SubscriptionEvent::Lost(rejection)
                } else {
                    SubscriptionEvent::Refused(rejection)
                })
                .await;
                self.renewal = Some(Instant::now() + RENEWAL_DELAY);
                Ok(())
            }
            Some(Request::Unsubscribe(_) | Request::Ping) => Ok(()),
            None => Err(self.closed()),
        }
    }

    /// Takes the oldest request, which was answered.
    fn answered(&mut self) -> Option<Request> {
        self.waiting_since = Instant::now();
        self.requests.pop_front()
    }

    fn late(&self) -> ConnectionError {
        let (address, after) = (self.handshake.address.clone(), self.timeouts.response);
        ConnectionError::TimedOut { address, after }
    }

    fn closed(&self) -> ConnectionError {
        ConnectionError::Closed { address: self.handshake.address.clone() }
    }
}

/// The kind of a push message: its first element.
fn kind(parts: &[Reply]) -> &str {
    parts.first().and_then(Reply::text).unwrap_or_default()
}
