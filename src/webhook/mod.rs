//! The webhook receiver: it records what WhatsApp posts, and only then acknowledges it.
//!
//! In reading order: here (limits, routes), `credentials` (secrets and the configured numbers, and
//! their reload), `signature` (who signs requests, and how), `receive` (one request), `warnings`
//! (throttled log lines).
//!
//! The receiver verifies a request's signature before it parses the body. It answers 200 only once
//! every event of the request is durable, or can never be recorded. On any other status WhatsApp
//! repeats the request for up to seven days; recording is idempotent, so a repeat changes nothing.

mod credentials;
mod receive;
mod signature;
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
use hyper::service::{Service as _, service_fn};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub(crate) use self::credentials::{ReceiverConfig, reload};
pub(crate) use self::signature::{APP_SIGNATURE, Signer};
use self::warnings::WebhookWarnings;
use crate::budget::{self, Budget};
use crate::metrics::Metrics;
use crate::net::Drain;
use crate::net::accept::Capacity;
use crate::net::http1::{self, Http1Limits};
use crate::net::tls::ServerTls;
use crate::recorder::Recorder;
use consentd_os::clock;

/// The path of the receiver, as it is entered in the App Dashboard.
pub(crate) const PATH: &str = "/webhook";

/// The most bytes of a request's body: WhatsApp's own limit.
pub(crate) const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
/// So many bytes of a body that is too large are read and discarded, so that its sender gets to read
/// the response.
const MAX_DRAINED_BYTES: usize = 16 * 1024 * 1024;
/// A larger body is verified and parsed on a blocking thread.
const MAX_INLINE_BYTES: usize = 64 * 1024;
/// The listener's limits. An ingress keeps a few connections open.
const LIMITS: Http1Limits = Http1Limits {
    // Connections whose body has not arrived count as silent at once, so that they never keep out
    // one whose body has.
    capacity: Capacity { max: 256, crowded: 192, min_silence: Duration::ZERO },
    label: "webhook",
    header_timeout: Duration::from_secs(5),
    connection_age: Duration::from_mins(10),
    // As long as any request may take.
    shutdown_grace: Duration::from_secs(30),
};
/// Bodies that are verified and parsed at once, each of [`MAX_BODY_BYTES`] at the most.
const MAX_PARSING: usize = 64;
/// Requests whose events are recorded at once.
const MAX_RECORDING: usize = 16;
/// How long a request waits for a permit of either kind.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a request's body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long recording may take; WhatsApp waits hardly longer.
const RECORDING_TIMEOUT: Duration = Duration::from_secs(10);

/// The receiver of webhooks. Clones share its state.
#[derive(Clone)]
pub(crate) struct Webhook {
    recorder: Recorder,
    metrics: Arc<Metrics>,
    config: Arc<ArcSwap<ReceiverConfig>>,
    parsing: Arc<Semaphore>,
    recording: Arc<Semaphore>,
    warnings: Arc<WebhookWarnings>,
}

impl Webhook {
    /// A receiver that records by `recorder`.
    #[must_use]
    pub(crate) fn new(recorder: Recorder, config: ReceiverConfig, metrics: Arc<Metrics>) -> Self {
        metrics.webhook_receives(config.rules.numbers.keys().map(String::as_str));
        Self {
            recorder,
            metrics,
            config: Arc::new(ArcSwap::from_pointee(config)),
            parsing: Arc::new(Semaphore::new(MAX_PARSING)),
            recording: Arc::new(Semaphore::new(MAX_RECORDING)),
            warnings: Arc::default(),
        }
    }
}

/// Serves the listener until `drain.begun`, then finishes what was begun, at the latest until
/// `drain.over`.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    webhook: Webhook,
    budget: Arc<Budget>,
    drain: Drain,
) {
    let metrics = Arc::clone(&webhook.metrics);
    let router = router(webhook);
    let connect = || {
        let sender = Sender::new(&budget);
        let records = Arc::clone(&sender.records);
        let service = TowerToHyperService::new(router.clone());
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(sender.clone());
            service.call(request)
        });
        (service, move || !records.load(Ordering::Relaxed))
    };
    http1::serve(listener, tls.as_ref(), LIMITS, metrics, drain, connect).await;
}

/// The sender on one connection.
#[derive(Clone)]
struct Sender {
    /// The budget that its bodies are charged to.
    share: Arc<budget::ConnectionBudget>,
    /// Whether a body of its has arrived, and is being verified or recorded.
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
