//! Accepts gRPC connections, serves HTTP/2 on each, and ends them in order.
//!
//! hyper is driven directly, because tonic's server bounds neither the connections nor a shutdown:
//! one silent connection or one open health watch would keep it alive for ever (hyper#4170).

use std::convert::Infallible;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Map;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::body::ResponseBody;
use super::client_frames::{
    AuthorityReport, ClientFrames, Greeting, MAX_FRAME_BYTES, PREFACE_BYTES,
};
use super::connection_context::ConnectionContext;
use super::roles::{Peer, Roles};
use super::router::{ResponseFuture, Router};
use super::status;
use crate::budget::{self, Budget};
use crate::metrics::Metrics;
use crate::net::Drain;
use crate::net::accept::{Acceptor, Capacity, ConnectionPermit};
use crate::net::socket::{Accepted, Listener};
use crate::net::tls::ServerTls;
use consentd_os::backoff;
use consentd_tls::Protocol;

/// How much the age at which a connection is closed varies, in percent either way.
const AGE_JITTER_PERCENT: u8 = 10;
/// Streams of one connection at once.
const MAX_STREAMS: u32 = 1_024;
/// Streams that we may have to reset before the connection is closed (RUSTSEC-2024-0003).
const MAX_LOCAL_RESETS: usize = 1_024;
/// Streams that the client may reset before they are accepted (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
/// Bytes of a call's headers.
const MAX_HEADER_BYTES: u32 = 8 * 1024;
/// The flow-control window of a connection, in bytes. Up to half of it may be frames too small to be
/// read before HTTP/2 counts them and closes the connection.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// The flow-control window of a stream, in bytes. Even full of 50-byte messages it stays below that
/// half of the connection's.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Bytes of a stream's responses that wait to be written to the socket.
const MAX_SEND_BYTES: usize = 64 * 1024;
/// How long a connection must have been silent before it may be closed for another: nothing arrived
/// from its client, no response was taken, and no call was being worked on.
const MIN_SILENCE: Duration = Duration::from_secs(10);
/// How often a crowded listener checks which connections are silent.
const SILENCE_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long an evicted connection has to send GOAWAY and a status for each open stream, so that its
/// client knows what to repeat.
const GOAWAY_GRACE: Duration = Duration::from_millis(50);
/// Connections beyond the capacity, for probes alone: a busy process must not be restarted for being
/// busy. The oldest of them makes room for a new one.
const PROBE_CAPACITY: Capacity = Capacity { max: 8, crowded: 8, min_silence: Duration::ZERO };
/// The age at which such a connection is shut down: the next one may find room for all calls.
const PROBE_CONNECTION_AGE: Duration = Duration::from_secs(5);
/// How long a connection may be quiet before HTTP/2 sends a ping.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long the client may take to answer that ping.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new connection may take to send the HTTP/2 preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection without calls may take to close after GOAWAY, where the process ends or room is needed.
const IDLE_GRACE: Duration = Duration::from_millis(500);
/// The same for a connection that ends for its age alone: nothing hurries it, and the client may be waiting for a CPU,
/// about to send a call that would be lost.
const OLD_IDLE_GRACE: Duration = Duration::from_secs(5);
/// How long we keep reading after closing our write side. A connection without calls is ended earlier, as above.
const LINGER_TIMEOUT: Duration = OLD_IDLE_GRACE;
/// The answer to a request of HTTP/1, whose client would otherwise be shown bytes of HTTP/2.
const HTTP1_ANSWER: &str = "HTTP/1.1 415 Unsupported Media Type\r\ncontent-type: text/plain\r\n\
    connection: close\r\n\r\nthis port speaks gRPC, by HTTP/2: call it with a client of gRPC, such as \
    grpcurl or `consentd check`\n";

/// The limits of a gRPC listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most connections at once.
    pub connections: usize,
    /// The age at which a connection is shut down gracefully; its client connects again.
    pub connection_age: Duration,
    /// How long calls may take to finish after that.
    pub connection_age_grace: Duration,
}

/// How a listener's clients are recognised.
#[derive(Clone, Default)]
pub struct Security {
    /// The certificate and key, if connections are made by TLS. A Unix socket never is.
    pub(crate) tls: Option<ServerTls>,
    /// The roles of clients, if they count on this listener.
    pub roles: Option<Roles>,
}

/// Serves a listener until it is drained.
pub async fn serve(
    listener: Listener,
    security: Security,
    router: Router,
    limits: Limits,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    drain: Drain,
) {
    let (connections, calls) = (TaskTracker::new(), TaskTracker::new());
    let max = limits.connections;
    let capacity = Capacity { max, crowded: max - max / 8, min_silence: MIN_SILENCE };
    let mut acceptor = Acceptor::new(capacity, Some("connections"), Arc::clone(&metrics));
    let mut probes = Acceptor::new(PROBE_CAPACITY, None, Arc::clone(&metrics));
    // Connections drain only after the listener is closed: their clients connect again at once, and
    // must be refused then, not accepted by the system and reset by us.
    let connection_drain = Drain { begun: CancellationToken::new(), over: drain.over.clone() };
    let authorities = Arc::new(AuthorityReport::new(Arc::clone(&metrics)));
    let mut silence_checks = interval(SILENCE_CHECK_INTERVAL);
    silence_checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_crowded = acceptor.is_crowded();
        let accepted = tokio::select! {
            biased;
            () = drain.begun.cancelled() => break,
            now = silence_checks.tick(), if is_crowded => {
                acceptor.update_silence(now);
                continue;
            }
            accepted = acceptor.accept_next(|| listener.accept()) => accepted,
        };
        let share = budget.connection();
        let silence = Arc::clone(&share);
        let (permit, share, limits) =
            if let Some(permit) = acceptor.admit(move || silence.is_silent()) {
                (permit, share, limits)
            } else {
                // Each connection for probes makes room for the next, so there is room soon.
                probes.wait_for_closing().await;
                let Some(permit) = probes.admit(|| true) else { continue };
                let limits = Limits { connection_age: PROBE_CONNECTION_AGE, ..limits };
                (permit, budget.probe_connection(), limits)
            };
        let peer = security.roles.clone().map(Peer::with_roles).unwrap_or_default();
        let connection = Connection {
            peer: peer.clone(),
            router: router.clone(),
            share,
            limits,
            drain: connection_drain.clone(),
            calls: CallExecutor(calls.clone()),
            is_unix: matches!(accepted, Accepted::Unix(_)),
            authorities: Arc::clone(&authorities),
            guard: ConnectionGuard { permit, metrics: Arc::clone(&metrics) },
        };
        metrics.connection_opened();
        match accepted {
            Accepted::Tcp(stream) => match &security.tls {
                None => connections.spawn(connection.run(stream)),
                Some(tls) => {
                    let identified = move |certificate: &CertificateDer<'_>| {
                        peer.identified(certificate);
                    };
                    let stream = tls.accept(stream, Protocol::Http2, "grpc", identified);
                    connections.spawn(connection.run(stream))
                }
            },
            Accepted::Unix(stream) => connections.spawn(connection.run(stream)),
        };
    }
    drop(listener);
    connection_drain.begun.cancel();
    connections.close();
    connections.wait().await;
    // The calls of a connection that was ended are dropped when they are next polled, which its end
    // brings about.
    calls.close();
    calls.wait().await;
}

/// Spawns the tasks of calls, so that the listener can wait for their end.
#[derive(Clone)]
struct CallExecutor(TaskTracker);

impl<F> hyper::rt::Executor<F> for CallExecutor
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, call: F) {
        self.0.spawn(call);
    }
}

struct Connection {
    peer: Peer,
    router: Router,
    share: Arc<budget::ConnectionBudget>,
    limits: Limits,
    drain: Drain,
    calls: CallExecutor,
    is_unix: bool,
    authorities: Arc<AuthorityReport>,
    guard: ConnectionGuard,
}

/// Counts an open connection and holds its permit.
struct ConnectionGuard {
    permit: ConnectionPermit,
    metrics: Arc<Metrics>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.metrics.connection_closed();
    }
}

impl Connection {
    /// Supervises the connection, which a task of its own serves, so that timers never wake that
    /// task: its only work is its calls.
    async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let handshaken = Arc::new(AtomicBool::new(false));
        let share = self.share;
        let context = ConnectionContext::new(Arc::clone(&share), self.peer);
        let service = ConnectionService { router: self.router, context: context.clone() };
        let stream =
            PrefaceStream { stream, bytes: 0, handshaken: Arc::clone(&handshaken), linger: None };
        let stream = ClientFrames::new(stream, self.is_unix, self.authorities);
        let (finish, finishing) = oneshot::channel();
        #[allow(clippy::disallowed_methods, reason = "awaited or ended before this returns")]
        let mut task = tokio::spawn(serve_connection(stream, service, self.calls, finishing));

        // Jitter keeps connections of one age from ending together.
        let jittered =
            backoff::vary(self.limits.connection_age, AGE_JITTER_PERCENT, backoff::random_byte());
        let age = sleep(jittered);
        tokio::pin!(age);
        let close = &self.guard.permit.close;
        // `None`, if the clock cannot represent the end of the grace, means no limit.
        let graceful = || Instant::now().checked_add(self.limits.connection_age_grace);
        let (grace, is_old) = tokio::select! {
            _ = &mut task => return,
            () = close.immediate.cancelled() => (None, false),
            () = handshake_missed(&handshaken) => {
                self.guard.metrics.refused("handshake");
                return end(task).await;
            }
            () = self.drain.begun.cancelled() => (None, false),
            () = close.graceful.cancelled() => (graceful(), false),
            () = &mut age => (graceful(), true),
        };
        let _ = finish.send(());
        if !is_old {
            context.closing.cancel();
        }
        context.ending.cancel();
        // An old connection is kept for the calls that read the whole ledger, unless it is to end for
        // another reason as well.
        let close_for_good = async {
            tokio::select! {
                () = self.drain.begun.cancelled() => {}
                () = close.graceful.cancelled() => {}
                () = close.immediate.cancelled() => {}
            }
            context.closing.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = &mut task => return,
            () = self.drain.over.cancelled() => {}
            () = async {
                close.immediate.cancelled().await;
                sleep(GOAWAY_GRACE).await;
            } => {}
            () = idle(&share, &context.closing) => {}
            () = close_for_good => {}
            () = async {
                sleep_until_some(grace).await;
                if is_old && context.has_long_calls() {
                    tokio::select! {
                        () = context.without_long_calls() => {}
                        () = context.closing.cancelled() => {}
                    }
                    // They have ended, or end by themselves now: their last answers are sent.
                    sleep_until_some(graceful()).await;
                }
            } => {}
        }
        end(task).await;
    }
}

/// Returns at a moment; never if there is none.
async fn sleep_until_some(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn end(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}

async fn handshake_missed(handshaken: &AtomicBool) {
    sleep(HANDSHAKE_TIMEOUT).await;
    if handshaken.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Returns once a connection had no calls for a while: its client may never answer the GOAWAY. `hurried` says that it is
/// not kept for its client's sake any more.
async fn idle(share: &budget::ConnectionBudget, hurried: &CancellationToken) {
    const CHECK_INTERVAL: Duration = Duration::from_millis(50);
    let mut idle = Duration::ZERO;
    loop {
        let grace = if hurried.is_cancelled() { IDLE_GRACE } else { OLD_IDLE_GRACE };
        if idle >= grace {
            return;
        }
        sleep(CHECK_INTERVAL).await;
        idle = if share.is_idle() { idle + CHECK_INTERVAL } else { Duration::ZERO };
    }
}

async fn serve_connection(
    mut stream: ClientFrames<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    service: ConnectionService,
    calls: CallExecutor,
    mut finish: oneshot::Receiver<()>,
) {
    let mut finishing = false;
    let greeting = tokio::select! {
        biased;
        greeting = stream.greeting() => greeting,
        // Its first calls may be on their way, so that it is ended like any other.
        _ = &mut finish => {
            finishing = true;
            Ok(Greeting::Http2)
        }
    };
    match greeting {
        Ok(Greeting::Http2) => {}
        Ok(Greeting::Http1) => {
            // An error means that the client has gone, and then nothing is left to do.
            let _ = stream.write_all(HTTP1_ANSWER.as_bytes()).await;
            let _ = stream.shutdown().await;
            return;
        }
        Err(error) => return debug!(%error, "a gRPC connection ended before it began"),
    }
    let mut builder = http2::Builder::new(calls);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .max_send_buf_size(MAX_SEND_BYTES)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        // gRPC has no use for the header.
        .auto_date_header(false);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    if finishing {
        connection.as_mut().graceful_shutdown();
    }
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        _ = &mut finish, if !finishing => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "a gRPC connection ended with an error");
    }
}

/// The service of one connection: routes its calls, and has them charged to the connection.
struct ConnectionService {
    router: Router,
    context: ConnectionContext,
}

type InfallibleResponse = Result<Response<ResponseBody>, Infallible>;

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Map<ResponseFuture, fn(Response<ResponseBody>) -> InfallibleResponse>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.router.call(request, &self.context).map(|mut response| {
            status::encode_message(response.headers_mut());
            Ok(response)
        })
    }
}

/// A connection's socket, which notices when as many bytes as the client's preface have arrived.
struct PrefaceStream<S> {
    stream: S,
    bytes: usize,
    handshaken: Arc<AtomicBool>,
    /// How long to go on reading, once our side is closed.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for PrefaceStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.bytes < PREFACE_BYTES {
            self.bytes += buffer.filled().len() - before;
            self.handshaken.store(self.bytes >= PREFACE_BYTES, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for PrefaceStream<S> {
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

    /// Closes our side, and waits a while for the client to close its own: closing a socket with
    /// unread bytes resets it, and the client would lose our last responses.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let linger = match &mut this.linger {
            Some(linger) => linger,
            unset => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
                unset.insert(Box::pin(sleep(LINGER_TIMEOUT)))
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

#[cfg(test)]
mod tests {
    use hyper::rt::Executor as _;

    use super::*;

    #[tokio::test]
    async fn execute_is_waited_for() {
        let calls = TaskTracker::new();
        let (finish, finishing) = oneshot::channel::<()>();
        CallExecutor(calls.clone()).execute(finishing);
        calls.close();
        assert!(calls.wait().now_or_never().is_none(), "the call goes on");
        finish.send(()).unwrap();
        calls.wait().await;
    }
}
