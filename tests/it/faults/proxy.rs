//! A network between a sidecar and its Redis that can be made as bad as any.
//!
//! One proxy stands before one server. It tells connections that subscribe from those that send
//! commands, and either kind can be disturbed alone, in either direction.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::resp::{end_of_value, first_word};

/// How many bytes are taken at once.
const CHUNK: usize = 64 << 10;

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Flow {
    /// They pass.
    #[default]
    Pass,
    /// They wait until they may pass again, as in a network that is cut for a while.
    Hold,
    /// They are gone, and so is everything later on that connection, which stays open: what was
    /// behind it has forgotten it.
    Swallow,
    /// They are so much late.
    Delay(Duration),
    /// They pass a few at a time, each time after a pause.
    Drip(usize, Duration),
}

/// What happens to pushed messages.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Pushes {
    /// They pass.
    #[default]
    Pass,
    /// The next so many are dropped; then all pass.
    DropNext(u64),
    /// Every one of so many is dropped.
    DropEvery(u64),
    /// Each comes twice.
    Duplicate,
    /// Each second one comes before the first one.
    Swap,
}

/// What is done to one kind of connections.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Faults {
    /// From the client to the server.
    pub up: Flow,
    /// From the server to the client.
    pub down: Flow,
}

impl Faults {
    /// The same in both directions.
    pub fn both(flow: Flow) -> Self {
        Self { up: flow, down: flow }
    }
}

/// What is done to everything.
#[derive(Clone, Debug, Default)]
struct Weather {
    commands: Faults,
    subscriptions: Faults,
    /// New connections are reset at once. The port stays taken, so that nobody else gets it.
    refuse: bool,
    /// By how many seconds the server's clock is off, as clients see it that connect from now on.
    clock: i64,
    /// New connections are accepted, and what they subscribe to is never asked of the server.
    refuse_subscriptions: bool,
}

#[derive(Default)]
struct Counters {
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    commands: AtomicU64,
    pushes: AtomicU64,
    dropped: AtomicU64,
    connections: AtomicU64,
}

/// How much went through since the proxy was started.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Bytes to the server.
    pub bytes_up: u64,
    /// Bytes from it.
    pub bytes_down: u64,
    /// Commands to it.
    pub commands: u64,
    /// Messages that it pushed.
    pub pushes: u64,
    /// Those of them that were dropped.
    pub dropped: u64,
    /// Connections that were accepted.
    pub connections: u64,
}

struct Shared {
    upstream: Mutex<String>,
    weather: watch::Sender<Weather>,
    pushes: Mutex<Pushes>,
    /// Cancelled, and replaced, where all connections are reset.
    reset: Mutex<CancellationToken>,
    counters: Counters,
}

/// A running proxy; ends when dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts one before the server at `HOST:PORT`.
    pub async fn before(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream.to_owned()),
            weather: watch::Sender::default(),
            pushes: Mutex::default(),
            reset: Mutex::default(),
            counters: Counters::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, _tasks: tasks }
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Another server from now on; the connections to the last one are reset.
    pub fn lead_to(&self, upstream: &str) {
        upstream.clone_into(&mut self.shared.upstream.lock().unwrap());
        self.reset();
    }

    /// Another server for the connections that come; those that there are stay with the last one.
    pub fn new_connections_lead_to(&self, upstream: &str) {
        upstream.clone_into(&mut self.shared.upstream.lock().unwrap());
    }

    /// What happens to connections that send commands.
    pub fn commands(&self, faults: Faults) {
        self.shared.weather.send_modify(|weather| weather.commands = faults);
    }

    /// What happens to connections that subscribe.
    pub fn subscriptions(&self, faults: Faults) {
        self.shared.weather.send_modify(|weather| weather.subscriptions = faults);
    }

    /// What happens to all of them.
    pub fn all(&self, faults: Faults) {
        self.commands(faults);
        self.subscriptions(faults);
    }

    /// Whether new connections are reset.
    pub fn refuse(&self, refuse: bool) {
        self.shared.weather.send_modify(|weather| weather.refuse = refuse);
    }

    /// Whether connections are reset that begin to subscribe.
    pub fn refuse_subscriptions(&self, refuse: bool) {
        self.shared.weather.send_modify(|weather| weather.refuse_subscriptions = refuse);
    }

    /// Makes the server's clock be off by so many seconds: what it answers as its `TIME`.
    /// (libfaketime does not go together with jemalloc, which servers are linked to.)
    pub fn shift_clock(&self, seconds: i64) {
        self.shared.weather.send_modify(|weather| weather.clock = seconds);
        self.reset();
    }

    /// What happens to pushed messages.
    pub fn pushes(&self, pushes: Pushes) {
        *self.shared.pushes.lock().unwrap() = pushes;
    }

    /// Resets all connections.
    pub fn reset(&self) {
        std::mem::take(&mut *self.shared.reset.lock().unwrap()).cancel();
    }

    /// All is well again, but for what was swallowed.
    pub fn heal(&self) {
        self.pushes(Pushes::Pass);
        self.shared.weather.send_replace(Weather::default());
    }

    /// How much went through so far.
    pub fn counted(&self) -> Counted {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.shared.counters;
        Counted {
            bytes_up: of(&counters.bytes_up),
            bytes_down: of(&counters.bytes_down),
            commands: of(&counters.commands),
            pushes: of(&counters.pushes),
            dropped: of(&counters.dropped),
            connections: of(&counters.connections),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                // A client that is gone before it is accepted is none.
                let Ok((client, _)) = accepted else { continue };
                shared.counters.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(client, Arc::clone(&shared)));
            }
        }
    }
}

/// One connection, until either side ends it or it is reset.
async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let reset = shared.reset.lock().unwrap().clone();
    // Whatever ends it, the client sees a reset: nothing is said to it that the server did not.
    let _ = client.set_zero_linger();
    let _ = client.set_nodelay(true);
    if shared.weather.borrow().refuse {
        return;
    }
    let upstream = shared.upstream.lock().unwrap().clone();
    let Ok(server) = TcpStream::connect(&upstream).await else { return };
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let subscribes = AtomicBool::new(false);
    let clock = shared.weather.borrow().clock;
    let pipe = |up, from, to| {
        let (shared, subscribes) = (&*shared, &subscribes);
        Pipe {
            up,
            from,
            to,
            shared,
            subscribes,
            swallowed: false,
            clock,
            buffer: Vec::new(),
            kept: Vec::new(),
        }
    };
    tokio::select! {
        () = reset.cancelled() => {}
        _ = pipe(true, from_client, to_server).run() => {}
        _ = pipe(false, from_server, to_client).run() => {}
    }
}

/// One direction of a connection.
struct Pipe<'a> {
    up: bool,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    shared: &'a Shared,
    /// Whether the client subscribes on this connection.
    subscribes: &'a AtomicBool,
    swallowed: bool,
    clock: i64,
    /// What has come of a value that is not whole yet.
    buffer: Vec<u8>,
    /// A message that waits for the one that is to overtake it.
    kept: Vec<u8>,
}

impl Pipe<'_> {
    async fn run(mut self) -> std::io::Result<()> {
        let mut weather = self.shared.weather.subscribe();
        let mut chunk = vec![0; CHUNK];
        loop {
            // While bytes are held, none are read: the sender's own buffers fill.
            weather.wait_for(|weather| self.flow(weather) != Flow::Hold).await.ok();
            let count = self.from.read(&mut chunk).await?;
            if count == 0 {
                // A server that is gone behind a swallowed connection is not heard of.
                if !self.swallowed && self.flow(&weather.borrow()) != Flow::Swallow {
                    return Ok(());
                }
                std::future::pending::<()>().await;
            }
            let bytes = self.count(&chunk[..count]);
            if self.up
                && self.subscribes.load(Ordering::Relaxed)
                && weather.borrow().refuse_subscriptions
            {
                return Ok(());
            }
            // What is held by now was read before.
            weather.wait_for(|weather| self.flow(weather) != Flow::Hold).await.ok();
            let flow = self.flow(&weather.borrow());
            self.pass(flow, &bytes).await?;
        }
    }

    fn flow(&self, weather: &Weather) -> Flow {
        let subscribes = self.subscribes.load(Ordering::Relaxed);
        let faults = if subscribes { weather.subscriptions } else { weather.commands };
        if self.up { faults.up } else { faults.down }
    }

    async fn pass(&mut self, flow: Flow, bytes: &[u8]) -> std::io::Result<()> {
        match flow {
            _ if self.swallowed => return Ok(()),
            Flow::Swallow => {
                self.swallowed = true;
                return Ok(());
            }
            Flow::Delay(by) => tokio::time::sleep(by).await,
            Flow::Drip(size, pause) => {
                for part in bytes.chunks(size) {
                    tokio::time::sleep(pause).await;
                    self.to.write_all(part).await?;
                }
                return Ok(());
            }
            Flow::Pass | Flow::Hold => {}
        }
        self.to.write_all(bytes).await
    }

    /// Counts what came; gives what of it is to pass.
    fn count(&mut self, bytes: &[u8]) -> Vec<u8> {
        let counters = &self.shared.counters;
        let subscribes = self.subscribes.load(Ordering::Relaxed);
        if self.up {
            counters.bytes_up.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.buffer.extend_from_slice(bytes);
            while let Some(end) = end_of_value(&self.buffer) {
                counters.commands.fetch_add(1, Ordering::Relaxed);
                let command: Vec<u8> = self.buffer.drain(..end).collect();
                if first_word(&command) == "subscribe" {
                    self.subscribes.store(true, Ordering::Relaxed);
                }
            }
            return bytes.to_vec();
        }
        counters.bytes_down.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if !subscribes && self.clock == 0 {
            return bytes.to_vec();
        }
        // A client subscribes once it has the answers to all before, so a value begins here.
        self.buffer.extend_from_slice(bytes);
        let mut passing = Vec::new();
        while let Some(end) = end_of_value(&self.buffer) {
            let mut value: Vec<u8> = self.buffer.drain(..end).collect();
            shift(&mut value, self.clock);
            if first_word(&value) == "message" {
                self.push(value, &mut passing);
            } else {
                passing.extend_from_slice(&value);
            }
        }
        passing
    }

    fn push(&mut self, message: Vec<u8>, passing: &mut Vec<u8>) {
        let counters = &self.shared.counters;
        let number = counters.pushes.fetch_add(1, Ordering::Relaxed);
        let mut pushes = self.shared.pushes.lock().unwrap();
        let dropped = match &mut *pushes {
            Pushes::DropNext(0) => {
                *pushes = Pushes::Pass;
                false
            }
            Pushes::DropNext(left) => {
                *left -= 1;
                true
            }
            Pushes::DropEvery(every) => number.is_multiple_of(*every),
            Pushes::Pass | Pushes::Duplicate | Pushes::Swap => false,
        };
        if dropped {
            counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if *pushes == Pushes::Swap && self.kept.is_empty() {
            self.kept = message;
            return;
        }
        if *pushes == Pushes::Duplicate {
            passing.extend_from_slice(&message);
        }
        passing.extend_from_slice(&message);
        passing.append(&mut self.kept);
    }
}

/// Moves what is the present time in an answer, in seconds: ten digits in a string of their own.
fn shift(value: &mut [u8], by: i64) {
    const HEAD: &[u8] = b"$10\r\n";
    let now = super::history::wall() / 1_000;
    for at in 0..value.len().saturating_sub(HEAD.len() + 10) {
        if by == 0 || !value[at..].starts_with(HEAD) {
            continue;
        }
        let digits = &mut value[at + HEAD.len()..][..10];
        let told = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<i64>().ok());
        if let Some(told) = told.filter(|told| (told - now).abs() < 60) {
            digits.copy_from_slice((told + by).to_string().as_bytes());
        }
    }
}
