//! The admin listener: metrics, probes and a page for people, over plain HTTP.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::accept::{Door, Place};
use crate::gate::Gate;
use crate::metrics::Metrics;

/// Connections at once: a few scrapers, probes and people. They must never cost the process the
/// file descriptors that senders need.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection may take to say what it wants, the first time and after each answer.
const HEADERS: Duration = Duration::from_secs(5);
/// After so long a connection is told to end: nobody keeps a place by not reading an answer.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// How long an answer that was begun may take once its connection was told to end.
const GRACE: Duration = Duration::from_millis(500);
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;

#[derive(Clone)]
struct Admin {
    gate: Gate,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
}

/// Serves the listener until `over` is cancelled.
pub async fn serve(
    listener: TcpListener,
    gate: Gate,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    over: CancellationToken,
) {
    let mut door = Door::new(MAX_CONNECTIONS, "admin", Arc::clone(&metrics));
    let admin = Admin { gate, metrics, draining };
    let router = Router::new()
        .route("/metrics", get(exposition))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(admin);
    let connections = TaskTracker::new();
    loop {
        let (stream, place) = tokio::select! {
            biased;
            () = over.cancelled() => break,
            accepted = door.next(|| listener.accept()) => (accepted.0.0, accepted.1),
        };
        connections.spawn(serve_connection(stream, router.clone(), over.clone(), place));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    over: CancellationToken,
    _place: Place,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => Some(served),
        () = over.cancelled() => None,
        () = sleep(CONNECTION_AGE) => None,
    };
    let served = match served {
        Some(served) => served,
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        debug!(%error, "an admin connection ended");
    }
}

async fn exposition(State(admin): State<Admin>) -> Response {
    match admin.metrics.render(admin.gate.gauges()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Ready once the table was loaded, and until the process is told to end.
async fn ready(State(admin): State<Admin>) -> Response {
    if admin.draining.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    if admin.gate.is_ready() {
        return "ready\n".into_response();
    }
    let cause = admin.gate.status().cause;
    (StatusCode::SERVICE_UNAVAILABLE, format!("loading: {cause}\n")).into_response()
}
