//! The admin listener: metrics and probes over plain HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::gate::Gate;
use crate::metrics::Metrics;

#[derive(Clone)]
struct Admin {
    gate: Gate,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
}

/// Serves `/metrics`, `/livez` and `/readyz` until `over` is cancelled.
///
/// # Errors
///
/// Where the listener fails.
pub async fn serve(
    listener: TcpListener,
    gate: Gate,
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    over: CancellationToken,
) -> std::io::Result<()> {
    let admin = Admin { gate, metrics, draining };
    let router = Router::new()
        .route("/metrics", get(exposition))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(admin);
    let server = axum::serve(listener, router).into_future();
    // Probes and scrapes are short: none is worth waiting for.
    tokio::select! {
        outcome = server => outcome,
        () = over.cancelled() => Ok(()),
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
