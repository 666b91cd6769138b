//! The admin listener: metrics, probes and a page for people, over plain HTTP.
//!
//! In reading order: here (connections, metrics, probes), `page` (the page), `rate` (how many
//! checks a second), `check` (the form, where it is asked for), `format` (numbers for people).

mod check;
mod format;
mod page;
mod rate;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::budget::{Budget, Pool};
use crate::checker::Checker;
use crate::metrics::Metrics;
use crate::net::accept::{Capacity, Door, Ends, Place};
use consentd_os::clock;

/// Connections at once: a few scrapers, probes and people. They must never cost the process the
/// file descriptors that senders need.
const MAX_CONNECTIONS: usize = 64;
/// From so many on, the one that has been open the longest is told to end for each new one; where
/// there are as many as may be, at once. So neither silent ones nor those who do not read their
/// answers ever keep a probe out.
const CROWDED: usize = 48;
/// How long a connection may take to say what it wants, the first time and after each answer.
const HEADERS: Duration = Duration::from_secs(5);
/// After so long a connection is told to end: nobody keeps a place by not reading an answer.
const CONNECTION_AGE: Duration = Duration::from_mins(1);
/// How long an answer that was begun may take once its connection was told to end.
const GRACE: Duration = Duration::from_millis(500);
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// What the listener shows.
pub struct Shown {
    /// Where checks are answered.
    pub checker: Checker,
    /// What is counted and measured.
    pub metrics: Arc<Metrics>,
    /// Which ledger it is, without credentials.
    pub ledger: String,
    /// Whether the page has a form that answers checks.
    pub checks: bool,
}

#[derive(Clone)]
struct Admin {
    checker: Checker,
    metrics: Arc<Metrics>,
    ledger: Arc<str>,
    checks: bool,
    draining: CancellationToken,
    assets: Arc<page::Assets>,
    samples: Arc<Mutex<rate::Samples>>,
    started: Duration,
    budget: Arc<Budget>,
}

impl Admin {
    fn sample(&self) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push(clock::boot(), self.metrics.decisions());
    }

    fn rate(&self) -> rate::Rate {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).rate()
    }
}

/// Serves the listener until `over` is cancelled, and says that it drains once `draining` is.
pub async fn serve(
    listener: TcpListener,
    shown: Shown,
    budget: Arc<Budget>,
    draining: CancellationToken,
    over: CancellationToken,
) {
    let Shown { checker, metrics, ledger, checks } = shown;
    let capacity = Capacity { most: MAX_CONNECTIONS, crowded: CROWDED, silence: Duration::ZERO };
    let mut door = Door::new(capacity, Some("admin"), Arc::clone(&metrics));
    let admin = Admin {
        checker,
        metrics,
        ledger: ledger.into(),
        checks,
        draining,
        assets: Arc::new(page::Assets::new()),
        samples: Arc::default(),
        started: clock::boot(),
        budget,
    };
    let router = router(admin.clone());
    let mut ticks = interval(rate::EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let connections = TaskTracker::new();
    loop {
        tokio::select! {
            biased;
            () = over.cancelled() => break,
            _ = ticks.tick() => admin.sample(),
            (stream, _) = door.next(|| listener.accept()) => {
                // None of them is worth more than a new one.
                if let Some(place) = door.admit(|| true) {
                    let over = over.clone();
                    connections.spawn(serve_connection(stream, router.clone(), over, place));
                }
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn router(admin: Admin) -> Router {
    let mut router = Router::new()
        .route("/", get(front))
        .route("/metrics", get(exposition))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready));
    if admin.checks {
        router = router.route("/check", get(check::form).post(check::ask));
    }
    router
        .layer(DefaultBodyLimit::max(check::MAX_BYTES))
        .layer(from_fn_with_state(admin.clone(), charged))
        .with_state(admin)
}

/// Charges for a request with a body, as long as one may be; the others have none to speak of.
async fn charged(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let _charge = if request.method().is_safe() {
        None
    } else if let Ok(charge) = admin.budget.connection().charge(Pool::Probes, check::MAX_BYTES) {
        Some(charge)
    } else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too much at once\n").into_response();
    };
    next.run(request).await
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    over: CancellationToken,
    place: Place,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let Ends { gently, now } = &place.ends;
    let told = async {
        tokio::select! {
            () = gently.cancelled() => {}
            () = over.cancelled() => {}
        }
    };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = now.cancelled() => Ok(()),
        _ = timeout(CONNECTION_AGE, told) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                served = timeout(GRACE, connection) => served.unwrap_or(Ok(())),
                () = now.cancelled() => Ok(()),
            }
        }
    };
    if let Err(error) = served {
        debug!(%error, "an admin connection ended");
    }
}

async fn front(State(admin): State<Admin>) -> Response {
    let check = admin.checks.then(check::Check::default);
    page::answer(&admin, StatusCode::OK, true, check)
}

async fn exposition(State(admin): State<Admin>) -> Response {
    match admin.metrics.render(admin.checker.gauges()) {
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
    if admin.checker.is_ready() {
        return "ready\n".into_response();
    }
    let cause = admin.checker.status().cause;
    (StatusCode::SERVICE_UNAVAILABLE, format!("loading: {cause}\n")).into_response()
}
