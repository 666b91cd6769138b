//! The webhook receiver: what WhatsApp sends over HTTP is recorded before it is answered.
//!
//! In reading order: here (limits, connections, routes), `credentials` (secrets and whose numbers; how
//! they are read anew), `receive` (one request), `warnings` (what is logged, and how often).
//!
//! A request is judged by its signature before anything of it is parsed, and answered with 200
//! only once all of it is durable, or can never be. Anything else makes the platform send it
//! again, for up to seven days, and a repeat changes nothing.

mod credentials;
mod receive;
#[cfg(test)]
mod tests;
mod warnings;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

pub use self::credentials::{Secret, SecretError, Secrets, Setup, reload};
use self::warnings::WebhookWarnings;
use crate::budget::{self, Budget};
use crate::metrics::Metrics;
use crate::net::accept::{Capacity, Door, Ends, Place};
use crate::recorder::Recorder;
use consentd_os::clock;

/// Where the platform is told to send its webhooks.
pub const PATH: &str = "/webhook";

/// The most bytes of a request's body: the platform's own limit.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
/// So much of a body that is too large is still read, and thrown away, so that whoever sends it
/// gets to read why.
const MAX_DRAINED_BYTES: usize = 16 * 1024 * 1024;
/// A larger body is checked and read on a thread that may take its time.
const INLINE_BYTES: usize = 64 * 1024;
/// Connections at once: an ingress keeps a few open.
const MAX_CONNECTIONS: usize = 256;
/// From so many on, the one that has had nothing to record for the longest is told to end for each
/// new one; where there are as many as may be, at once. So bodies that do not arrive keep out
/// nobody whose body does.
const CROWDED: usize = 192;
/// Bodies being judged at once, each of [`MAX_BODY_BYTES`] at the most.
const MAX_JUDGED: usize = 64;
/// Requests being recorded at once.
const MAX_RECORDING: usize = 16;
/// How long a request waits for one of these places.
const ROOM: Duration = Duration::from_secs(2);
/// How long a request's head may take.
const HEADERS: Duration = Duration::from_secs(5);
/// How long its body may take.
const BODY: Duration = Duration::from_secs(10);
/// How long recording may take; the platform waits hardly longer.
const RECORDING: Duration = Duration::from_secs(10);
/// After so long a connection is told to end.
const CONNECTION_AGE: Duration = Duration::from_mins(10);
/// How long what was begun on it may take then: as long as any request may.
const GRACE: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Receives webhooks; clones share it.
#[derive(Clone)]
pub struct Webhook {
    recorder: Recorder,
    metrics: Arc<Metrics>,
    setup: Arc<ArcSwap<Setup>>,
    judging: Arc<Semaphore>,
    recording: Arc<Semaphore>,
    warnings: Arc<WebhookWarnings>,
}

impl Webhook {
    /// A receiver that records there.
    #[must_use]
    pub fn new(recorder: Recorder, setup: Setup, metrics: Arc<Metrics>) -> Self {
        Self {
            recorder,
            metrics,
            setup: Arc::new(ArcSwap::from_pointee(setup)),
            judging: Arc::new(Semaphore::new(MAX_JUDGED)),
            recording: Arc::new(Semaphore::new(MAX_RECORDING)),
            warnings: Arc::default(),
        }
    }
}

/// Serves the listener until `draining` is cancelled, then ends what was begun, at the latest when
/// `over` is.
pub async fn serve(
    listener: TcpListener,
    webhook: Webhook,
    budget: Arc<Budget>,
    draining: CancellationToken,
    over: CancellationToken,
) {
    let capacity = Capacity { most: MAX_CONNECTIONS, crowded: CROWDED, silence: Duration::ZERO };
    let mut door = Door::new(capacity, Some("webhook"), Arc::clone(&webhook.metrics));
    let router = router(webhook);
    let connections = TaskTracker::new();
    loop {
        tokio::select! {
            biased;
            () = draining.cancelled() => break,
            (stream, _) = door.next(|| listener.accept()) => {
                let sender = Sender::new(&budget);
                let records = Arc::clone(&sender.records);
                let Some(place) = door.admit(move || !records.load(Ordering::Relaxed)) else {
                    continue;
                };
                let ends = (draining.clone(), over.clone());
                let router = router.clone();
                connections.spawn(serve_connection(stream, router, sender, ends, place));
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Who sends on one connection.
#[derive(Clone)]
struct Sender {
    /// What its bodies are charged to.
    share: Arc<budget::Connection>,
    /// Whether a body of its has arrived, and is being judged or recorded.
    records: Arc<AtomicBool>,
}

impl Sender {
    fn new(budget: &Arc<Budget>) -> Self {
        Self { share: budget.connection(), records: Arc::default() }
    }
}

fn router(webhook: Webhook) -> Router {
    Router::new()
        .route(PATH, get(receive::handshake).post(receive::receive))
        .fallback(|| async { (StatusCode::NOT_FOUND, "webhooks are received at /webhook\n") })
        .method_not_allowed_fallback(|| async {
            (StatusCode::METHOD_NOT_ALLOWED, "GET for the handshake, POST for webhooks\n")
        })
        .layer(from_fn_with_state(webhook.clone(), measured))
        .with_state(webhook)
}

/// Counts and measures every request.
async fn measured(State(webhook): State<Webhook>, request: Request, next: Next) -> Response {
    let begun = clock::boot();
    let response = next.run(request).await;
    let took = clock::boot().saturating_sub(begun);
    webhook.metrics.webhook_answered(response.status().as_u16(), took);
    response
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    sender: Sender,
    (draining, over): (CancellationToken, CancellationToken),
    place: Place,
) {
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(sender.clone());
        service.call(request)
    });
    let Ends { gently, now } = &place.ends;
    let told = async {
        tokio::select! {
            () = gently.cancelled() => {}
            () = draining.cancelled() => {}
        }
    };
    // Answers are short, and nobody must wait for a second one before the first is sent.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = now.cancelled() => Ok(()),
        _ = timeout(CONNECTION_AGE, told) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = timeout(GRACE, connection) => ended.unwrap_or(Ok(())),
                () = over.cancelled() => Ok(()),
                () = now.cancelled() => Ok(()),
            }
        }
    };
    if let Err(error) = served {
        debug!(%error, "a webhook connection ended");
    }
}
