//! The accept-and-serve loop of the two HTTP/1 listeners: the admin listener and the webhook receiver.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use consentd_tls::Protocol;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::either::Either;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Drain;
use super::accept::{Acceptor, Capacity, CloseSignals, ConnectionPermit};
use super::tls::ServerTls;
use crate::metrics::Metrics;

/// The most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// The limits of an HTTP/1 listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Http1Limits {
    /// How many connections it takes at once.
    pub(crate) capacity: Capacity,
    /// The label under which `consent_refused_total` counts connections beyond the capacity.
    pub(crate) label: &'static str,
    /// How long a connection may take to send a request's head, for the first request and after each
    /// response.
    pub(crate) header_timeout: Duration,
    /// The age at which a connection is shut down gracefully.
    pub(crate) connection_age: Duration,
    /// How long a request that was begun may take after a graceful shutdown was asked for.
    pub(crate) shutdown_grace: Duration,
}

/// Serves a listener, with TLS if there is a certificate, until `drain.begun`, then finishes the
/// requests that were begun, within the grace and at the latest until `drain.over`.
///
/// `connect` is called for each connection. It returns the service of that connection, and a test
/// of whether the connection has nothing in progress and may be closed for another.
pub(crate) async fn serve<S, Silent>(
    listener: impl Borrow<TcpListener>,
    tls: Option<&ServerTls>,
    limits: Http1Limits,
    metrics: Arc<Metrics>,
    drain: Drain,
    connect: impl Fn() -> (S, Silent),
) where
    S: Service<
            http::Request<Incoming>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future: Send,
        > + Send
        + 'static,
    Silent: Fn() -> bool + Send + 'static,
{
    let mut acceptor = Acceptor::new(limits.capacity, Some(limits.label), metrics);
    let connections = TaskTracker::new();
    loop {
        tokio::select! {
            biased;
            () = drain.begun.cancelled() => break,
            (stream, _) = acceptor.accept_next(|| listener.borrow().accept()) => {
                let (service, is_silent) = connect();
                if let Some(permit) = acceptor.admit(is_silent) {
                    // Responses are short: the second must not wait for the acknowledgement of the
                    // first.
                    let _ = stream.set_nodelay(true);
                    let stream = match tls {
                        None => Either::Left(stream),
                        Some(tls) => Either::Right(tls.accept(stream, Protocol::Http1, limits.label, |_| ())),
                    };
                    connections.spawn(serve_connection(stream, service, limits, drain.clone(), permit));
                }
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn serve_connection<S>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: S,
    limits: Http1Limits,
    drain: Drain,
    permit: ConnectionPermit,
) where
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>,
{
    let CloseSignals { graceful, immediate } = &permit.close;
    let shutdown = async {
        tokio::select! {
            () = graceful.cancelled() => {}
            () = drain.begun.cancelled() => {}
        }
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = immediate.cancelled() => Ok(()),
        _ = timeout(limits.connection_age, shutdown) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = timeout(limits.shutdown_grace, connection) => ended.unwrap_or(Ok(())),
                () = drain.over.cancelled() => Ok(()),
                () = immediate.cancelled() => Ok(()),
            }
        }
    };
    if let Err(error) = served {
        debug!(listener = limits.label, %error, "an HTTP/1 connection ended with an error");
    }
}
