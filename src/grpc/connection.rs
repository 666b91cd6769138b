//! Connections: accepting, limits, and ending them.
//!
//! hyper is driven directly, because tonic's server bounds neither the connections nor a shutdown:
//! one silent connection or one open health watch would keep it alive for ever (hyper#4170).

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::body::Answer;
use super::router::{Answering, Routes};
use crate::budget::{self, Budget};
use crate::metrics::Metrics;
use crate::net::accept::{Capacity, Door, Place};
use crate::net::socket::{Accepted, Listener};

/// Streams of one connection at once.
const MAX_STREAMS: u32 = 1_024;
/// Streams that were reset for a fault of ours before the connection ends (RUSTSEC-2024-0003).
const MAX_LOCAL_RESETS: usize = 1_024;
/// Streams that the client reset before they were accepted (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
/// Bytes of a call's headers.
const MAX_HEADER_BYTES: u32 = 8 * 1024;
/// Bytes that a client may send on a connection, and on one stream of it, before they were read.
/// Of what a connection may send HTTP/2 takes up to half in small frames that nobody reads, as it
/// counts them, before it ends the connection: a stream's window of messages of 50 bytes is less.
const WINDOWS: (u32, u32) = (1024 * 1024, 64 * 1024);
/// Bytes of a frame, which is the least that the protocol allows.
const MAX_FRAME_BYTES: u32 = 16 * 1024;
/// Bytes of a stream's answers that wait to be written to the socket.
const MAX_SEND_BYTES: usize = 64 * 1024;
/// For how long a connection must have been silent before it may be ended for another: nothing came
/// from its client, no stream's answer was taken, and nothing was being worked on for it.
const SILENCE: Duration = Duration::from_secs(10);
/// How often a crowded listener looks which connections are silent.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a connection that is ended for another has to say goodbye (GOAWAY, and a status for each
/// open stream), so that its client knows what to send again.
const GOODBYE: Duration = Duration::from_millis(50);
/// Connections beyond the most that there may be, for probes alone: a process that is busy must
/// not be ended for it. The oldest of them makes room for a new one.
const PROBES: Capacity = Capacity { most: 8, crowded: 8, silence: Duration::ZERO };
/// After so long such a connection is told to end: on the next one there may be room for all.
const PROBE_AGE: Duration = Duration::from_secs(5);
/// How often a quiet connection is asked whether it lives, and how long it may take to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(5));
/// How long a new connection may take to say that it speaks HTTP/2.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a connection without calls may take to end once it was told to.
const IDLE_GRACE: Duration = Duration::from_millis(500);
/// How long to go on reading from a client that was told goodbye.
const LINGER: Duration = Duration::from_millis(500);
/// The client's first 24 bytes (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

/// What an operator may set of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; one more is closed.
    pub connections: usize,
    /// After so long a connection is told to end, and its client connects again.
    pub connection_age: Duration,
    /// And after so long again it is ended.
    pub connection_age_grace: Duration,
}

/// How a server is told to end.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// Accept nothing more, tell every connection, finish what was begun.
    pub begun: CancellationToken,
    /// End everything now.
    pub over: CancellationToken,
}

/// Serves a listener until it is drained.
pub async fn serve(
    listener: Listener,
    routes: Routes,
    limits: Limits,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    drain: Drain,
) {
    let connections = TaskTracker::new();
    let most = limits.connections;
    let capacity = Capacity { most, crowded: most - most / 8, silence: SILENCE };
    let mut door = Door::new(capacity, Some("connections"), Arc::clone(&metrics));
    let mut probes = Door::new(PROBES, None, Arc::clone(&metrics));
    // Connections are told after the listener has gone: whoever is told connects again at once,
    // and must be refused then, not accepted by the system and reset by us.
    let told = Drain { begun: CancellationToken::new(), over: drain.over.clone() };
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_crowded = door.is_crowded();
        let accepted = tokio::select! {
            biased;
            () = drain.begun.cancelled() => break,
            now = looks.tick(), if is_crowded => {
                door.look(now);
                continue;
            }
            accepted = door.next(|| listener.accept()) => accepted,
        };
        let share = budget.connection();
        let seen = Arc::clone(&share);
        let (place, share, limits) = if let Some(place) = door.admit(move || seen.is_silent()) {
            (place, share, limits)
        } else {
            // There is room for a probe soon: each makes room for the next.
            probes.let_close().await;
            let Some(place) = probes.admit(|| true) else { continue };
            (place, budget.probe(), Limits { connection_age: PROBE_AGE, ..limits })
        };
        let connection = Connection {
            routes: routes.clone(),
            share,
            limits,
            drain: told.clone(),
            open: Open { place, metrics: Arc::clone(&metrics) },
        };
        metrics.connection_opened();
        match accepted {
            Accepted::Tcp(stream) => connections.spawn(connection.run(stream)),
            Accepted::Unix(stream) => connections.spawn(connection.run(stream)),
        };
    }
    drop(listener);
    told.begun.cancel();
    connections.close();
    connections.wait().await;
}

struct Connection {
    routes: Routes,
    share: Arc<budget::Connection>,
    limits: Limits,
    drain: Drain,
    open: Open,
}

/// An open connection.
struct Open {
    place: Place,
    metrics: Arc<Metrics>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connection_closed();
    }
}

impl Connection {
    /// Watches over a connection that a task of its own serves: so nothing but that task's own
    /// work wakes it, which is what a check is made of.
    async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let spoken = Arc::new(AtomicBool::new(false));
        let ending = CancellationToken::new();
        let share = self.share;
        let service =
            Calls { routes: self.routes, share: Arc::clone(&share), ending: ending.clone() };
        let stream = Listening { stream, bytes: 0, spoken: Arc::clone(&spoken), linger: None };
        let (finish, finishing) = oneshot::channel();
        #[allow(clippy::disallowed_methods, reason = "awaited or ended before this returns")]
        let mut task = tokio::spawn(serve_connection(stream, service, finishing));

        let age = sleep(spread(self.limits.connection_age));
        tokio::pin!(age);
        let ends = &self.open.place.ends;
        // A grace that no clock can hold is none that ends.
        let graceful = || Instant::now().checked_add(self.limits.connection_age_grace);
        let grace = tokio::select! {
            _ = &mut task => return,
            () = ends.now.cancelled() => None,
            () = handshake_missed(&spoken) => {
                self.open.metrics.refused("handshake");
                return end(task).await;
            }
            () = self.drain.begun.cancelled() => None,
            () = ends.gently.cancelled() => graceful(),
            () = &mut age => graceful(),
        };
        let _ = finish.send(());
        ending.cancel();
        tokio::select! {
            _ = &mut task => return,
            () = self.drain.over.cancelled() => {}
            () = async {
                ends.now.cancelled().await;
                sleep(GOODBYE).await;
            } => {}
            () = idle(&share) => {}
            () = async {
                match grace {
                    Some(grace) => sleep_until(grace).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
        end(task).await;
    }
}

/// Between nine and eleven tenths of it, so that connections of one age do not end together.
fn spread(age: Duration) -> Duration {
    let mut random = [128];
    // Without randomness they do, no more.
    let _ = getrandom::fill(&mut random);
    age.mul_f64(0.9 + 0.2 * f64::from(random[0]) / 255.0)
}

async fn end(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}

async fn handshake_missed(spoken: &AtomicBool) {
    sleep(HANDSHAKE).await;
    if spoken.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Returns once a connection had no calls for a while: its client may never answer our goodbye.
async fn idle(share: &budget::Connection) {
    const LOOKS: u32 = 10;
    let mut quiet = 0;
    while quiet < LOOKS {
        sleep(IDLE_GRACE / LOOKS).await;
        quiet = if share.is_idle() { quiet + 1 } else { 0 };
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: Calls,
    mut finish: oneshot::Receiver<()>,
) {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_connection_window_size(WINDOWS.0)
        .initial_stream_window_size(WINDOWS.1)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_send_buf_size(MAX_SEND_BYTES)
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        // gRPC has no use for it.
        .auto_date_header(false);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        _ = &mut finish => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "a connection ended");
    }
}

/// Hands calls to the services, and has them charged to this connection.
struct Calls {
    routes: Routes,
    share: Arc<budget::Connection>,
    /// Cancelled once the connection is to end, for streams that could go on.
    ending: CancellationToken,
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Answer>;
    type Error = std::convert::Infallible;
    type Future = Infallible;

    fn call(&self, request: Request<Incoming>) -> Infallible {
        Infallible(self.routes.call(request, &self.ending, &self.share))
    }
}

/// An answer, as hyper wants it.
struct Infallible(Answering);

impl Future for Infallible {
    type Output = Result<Response<Answer>, std::convert::Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(context).map(Ok)
    }
}

/// A stream that notices when the client has sent as much as its preface.
struct Listening<S> {
    stream: S,
    bytes: usize,
    spoken: Arc<AtomicBool>,
    /// Until when what still comes is read, once we have said goodbye.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.bytes < PREFACE_BYTES {
            self.bytes += buffer.filled().len() - before;
            self.spoken.store(self.bytes >= PREFACE_BYTES, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Listening<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Says goodbye, and waits a while for the client's: a socket that is closed while something
    /// unread lies in it is reset, and the client then loses our last answers and their reason.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let linger = match &mut this.linger {
            Some(linger) => linger,
            unset => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
                unset.insert(Box::pin(sleep(LINGER)))
            }
        };
        while linger.as_mut().poll(context).is_pending() {
            let mut discarded = [MaybeUninit::uninit(); 4096];
            let mut discarded = ReadBuf::uninit(&mut discarded);
            match ready!(Pin::new(&mut this.stream).poll_read(context, &mut discarded)) {
                Ok(()) if !discarded.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
