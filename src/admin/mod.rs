//! The admin listener: metrics, probes and a status page, over HTTP, with TLS if there is a certificate.
//!
//! In reading order: here (routes, metrics, probes), `page` (the status page), `rate` (checks a
//! second), `check` (the check form, if it is enabled), `format` (numbers and times for people).

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
use futures_util::future::join;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::budget::{Budget, Pool};
use crate::checker::Checker;
use crate::metrics::Metrics;
use crate::net::Drain;
use crate::net::accept::Capacity;
use crate::net::http1::{self, Http1Limits};
use crate::net::tls::ServerTls;
use consentd_os::clock;

/// The listener's limits. It serves a few scrapers, probes and people, and must never take the file
/// descriptors that senders need.
const LIMITS: Http1Limits = Http1Limits {
    // With no minimal silence, neither idle clients nor those that do not read their responses keep
    // a probe out.
    capacity: Capacity { max: 64, crowded: 48, min_silence: Duration::ZERO },
    label: "admin",
    header_timeout: Duration::from_secs(5),
    // Bounds how long a client can hold a connection by not reading a response.
    connection_age: Duration::from_mins(1),
    shutdown_grace: Duration::from_millis(500),
};

/// What the admin listener serves.
pub(crate) struct AdminConfig {
    /// The source of the probes, the gauges and the check form's answers.
    pub(crate) checker: Checker,
    /// Every instrument of the process.
    pub(crate) metrics: Arc<Metrics>,
    /// The ledger's address, without credentials.
    pub(crate) ledger: String,
    /// Whether the page has a form that answers checks.
    pub(crate) checks: bool,
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

/// The sockets of probes, metrics and the page.
pub(crate) struct AdminSockets {
    /// That of all of them.
    pub(crate) admin: Option<(TcpListener, Option<ServerTls>)>,
    /// That of the probes alone, which have no certificate.
    pub(crate) probes: Option<TcpListener>,
}

impl AdminSockets {
    /// Serves both sockets until `drain.begun`.
    async fn serve(&self, admin: Router, probes: Router, metrics: &Arc<Metrics>, drain: &Drain) {
        // A new connection is always worth more than an open one.
        let connect = |router: &Router| (TowerToHyperService::new(router.clone()), || true);
        let serve = async |listener: &TcpListener, tls: Option<&ServerTls>, router: &Router| {
            let (metrics, drain) = (Arc::clone(metrics), drain.clone());
            http1::serve(listener, tls, LIMITS, metrics, drain, || connect(router)).await;
        };
        let admin = async {
            if let Some((listener, tls)) = &self.admin {
                serve(listener, tls.as_ref(), &admin).await;
            }
        };
        let probes = async {
            if let Some(listener) = &self.probes {
                serve(listener, None, &probes).await;
            }
        };
        join(admin, probes).await;
    }
}

/// Serves the sockets until `drain.over`. From `drain.begun` on, `/readyz` reports that the process
/// drains.
pub(crate) async fn serve(
    sockets: AdminSockets,
    config: AdminConfig,
    budget: Arc<Budget>,
    drain: Drain,
) {
    let AdminConfig { checker, metrics, ledger, checks } = config;
    let admin = Admin {
        checker,
        metrics: Arc::clone(&metrics),
        ledger: ledger.into(),
        checks,
        draining: drain.begun,
        assets: Arc::new(page::Assets::new()),
        samples: Arc::default(),
        started: clock::boot(),
        budget,
    };
    // Probes and metrics are served while the other listeners drain.
    let drain = Drain { begun: drain.over, over: CancellationToken::new() };
    let sampling = async {
        let mut ticks = interval(rate::SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            admin.sample();
        }
    };
    let probes = probes().with_state(admin.clone());
    tokio::select! {
        () = sockets.serve(router(admin.clone()), probes, &metrics, &drain) => {}
        () = sampling => {}
    }
}

/// Serves probes until the ledger is `opened`: the process is alive, and not ready. Nothing else is
/// known yet.
pub(crate) async fn serve_while_opening<T>(
    sockets: &AdminSockets,
    metrics: &Arc<Metrics>,
    opened: impl Future<Output = T>,
) -> T {
    let opening = || async { (StatusCode::SERVICE_UNAVAILABLE, "opening the ledger\n") };
    let router = Router::new().route("/livez", get(|| async { "ok\n" })).fallback(opening);
    let drain = Drain::default();
    let served = sockets.serve(router.clone(), router, metrics, &drain);
    let opened = async {
        let opened = opened.await;
        drain.begun.cancel();
        opened
    };
    join(opened, served).await.0
}

fn probes() -> Router<Admin> {
    Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(ready))
}

fn router(admin: Admin) -> Router {
    let mut router = probes().route("/", get(front)).route("/metrics", get(exposition));
    if admin.checks {
        router = router.route("/check", get(check::form).post(check::ask));
    }
    router
        .layer(DefaultBodyLimit::max(check::MAX_FORM_BYTES))
        .layer(from_fn_with_state(admin.clone(), charged))
        .with_state(admin)
}

/// Charges the budget for a request that may have a body, at the largest size that is accepted.
async fn charged(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let _charge = if request.method().is_safe() {
        None
    } else if let Ok(charge) = admin.budget.connection().charge(Pool::Probes, check::MAX_FORM_BYTES)
    {
        Some(charge)
    } else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded: the memory budget for requests is used up, try again\n",
        )
            .into_response();
    };
    next.run(request).await
}

async fn front(State(admin): State<Admin>) -> Response {
    let check = admin.checks.then(check::CheckSection::default);
    page::answer(&admin, StatusCode::OK, true, check)
}

async fn exposition(State(admin): State<Admin>) -> Response {
    match admin.metrics.render(&admin.checker.gauges()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Ready from the moment the table is loaded until the process drains.
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
