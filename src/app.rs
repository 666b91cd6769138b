//! Wiring: builds every part from the settings, runs the parts as tasks, and ends them in order.

mod decision_log;
mod ledger;
mod memory;
mod reload;
mod sockets;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::ledger::LedgerTask;
use self::reload::Reloading;
use self::sockets::{GrpcSocket, HttpSocket, Sockets};
use crate::admin::{self, AdminConfig, AdminSockets};
use crate::budget::{Budget, BudgetSizes};
use crate::checker::Checker;
use crate::config::{BusinessSource, Settings, WebhookSources};
use crate::decision_log::DecisionLogWriter;
use crate::follower::{Followers, SnapshotTarget};
use crate::grpc::connection::{self, Limits, Security};
use crate::grpc::{
    CallTelemetry, CheckLimits, CheckService, HealthService, RecordService, ReflectionError,
    Router, WatchService,
};
use crate::metrics::Metrics;
use crate::net::Drain;
use crate::net::socket::{Address, Listener};
use crate::recorder::Recorder;
use crate::telemetry::{self, Exporter};
use crate::webhook::{self, Webhook};
use consentd_core::businesses::Businesses;
use consentd_core::keyword::KeywordBook;
use consentd_ledger::Ledger;
use consentd_os::files;

/// How long the ledger may take to write out what is queued, at shutdown.
const LEDGER_CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the parts may take to end after they were asked to. The follower may have to save the whole
/// table.
const PARTS_END_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the export of the last traces may take, at shutdown; less, if the drain timeout ends
/// before.
const TRACE_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// A sidecar whose sockets are bound and whose ledger is open, and that does not serve yet.
pub(crate) struct Sidecar {
    ledger: Ledger,
    ledger_task: LedgerTask,
    followers: Followers,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    listeners: Vec<GrpcListener>,
    admin: (AdminSockets, AdminConfig),
    webhook: Option<(HttpSocket, Webhook, WebhookSources)>,
    limits: Limits,
    budget: Arc<Budget>,
    drain: Drain,
    drain_timeout: Duration,
    exporter: Option<Exporter>,
    decisions: Option<DecisionLogWriter>,
    reload: Reloading,
}

/// A gRPC listener, and the calls that it serves.
struct GrpcListener {
    listener: Listener,
    security: Security,
    router: Router,
}

/// The addresses that a sidecar listens on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bound {
    /// For checks.
    pub(crate) grpc: Vec<Address>,
    /// For recordings: the same, others, or none.
    pub(crate) record: Vec<Address>,
    /// For metrics and probes.
    pub(crate) admin: Option<SocketAddr>,
    /// For probes alone.
    pub(crate) probes: Option<SocketAddr>,
    /// For webhooks.
    pub(crate) webhook: Option<SocketAddr>,
}

impl Sidecar {
    /// Binds the sockets and then opens the ledger, so that a start that fails does not leave a new
    /// ledger file behind.
    ///
    /// # Errors
    ///
    /// Names what could not be bound or opened.
    pub(crate) async fn new(settings: Settings) -> anyhow::Result<Self> {
        // First of all: a SIGHUP during a slow start must not end the process.
        let hangup = signal(SignalKind::hangup())?;
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new())?);
        ledger::refuse_to_replace_lost_ledger(&settings)?;
        let sockets = Sockets::bind(&settings, &metrics).await?;
        let (log, decisions) = decision_log::open(&settings, &metrics)?;
        let snapshot = settings.storage.snapshot.clone();
        let snapshot = snapshot.map(|(path, every)| SnapshotTarget::new(path, every));
        let snapshot = snapshot.transpose().context("--snapshot")?;
        // That may take long, and the process is alive meanwhile.
        let opened = ledger::open(&settings);
        let opened = admin::serve_while_opening(&sockets.admin, &metrics, opened).await;
        let (ledger, ledger_task) = opened?;
        warn_of_readable_secrets(&settings);

        let source = settings.businesses.clone();
        let businesses = source.as_ref().map_or(Ok(Businesses::All), BusinessSource::read);
        let (to_hold, held) = watch::channel(businesses.map_err(anyhow::Error::msg)?);
        let bound = settings.max_staleness;
        let synthetic = ledger::open_synthetic(&ledger, settings.storage.synthetic).await?;
        let scrub = settings.storage.scrub_every.filter(|_| matches!(ledger, Ledger::Redis(_)));
        let followers = Followers::new(ledger.clone(), Arc::clone(&metrics), bound)
            .with_extra_pairs(synthetic)
            .with_scrub_interval(scrub)
            .with_snapshots(snapshot)
            .with_businesses(held);
        let checker =
            Checker::new(followers.tables(), settings.policy, bound, Arc::clone(&metrics))
                .logging(log);
        let checker = checker.blocking(settings.blocked_countries.clone());
        let keywords = KeywordBook::new(settings.keywords.clone());
        let names = settings.names.clone();
        let recorder = Recorder::new(ledger.clone(), names, keywords, Arc::clone(&metrics))
            .with_followers(followers.positions());

        let drain = Drain::default();
        let (tracer, exporter) = settings
            .traces
            .clone()
            .map(|settings| telemetry::traces(settings, Arc::clone(&metrics)))
            .unzip();
        let services = Services {
            health: HealthService::new(checker.clone(), drain.begun.clone()),
            telemetry: CallTelemetry::new(tracer),
            watch: WatchService::new(followers.changes(), settings.limits.max_watchers),
            checker: checker.clone(),
            ledger: ledger.clone(),
            recorder: recorder.clone(),
            check_limits: CheckLimits {
                batch: settings.limits.max_batch,
                recipients: settings.limits.max_recipients,
            },
            metrics: Arc::clone(&metrics),
        };
        let listeners = sockets.grpc.into_iter().map(|socket| services.route(socket));
        let listeners = listeners.collect::<Result<_, ReflectionError>>()?;
        let webhook = sockets.webhook.map(|(socket, sources)| {
            let config = sources.read().context("--webhook")?;
            let webhook = Webhook::new(recorder.clone(), config, Arc::clone(&metrics));
            anyhow::Ok((socket, webhook, sources))
        });
        let webhook = webhook.transpose()?;
        let config = AdminConfig {
            checker,
            metrics: Arc::clone(&metrics),
            ledger: ledger.describe().to_owned(),
            checks: settings.listeners.admin_checks,
        };
        let admin = (sockets.admin, config);
        let (tokens, tls) = (sockets.tokens, sockets.tls);
        let businesses = source.map(|source| (source, to_hold));
        let reload = Reloading { hangup, tokens, tls, businesses, receives: webhook.is_some() };
        Ok(Self {
            limits: limits(&settings),
            budget: Budget::new(budget_sizes(&settings), Arc::clone(&metrics)),
            drain_timeout: settings.limits.drain_timeout,
            ledger,
            ledger_task,
            followers,
            recorder,
            metrics,
            listeners,
            admin,
            webhook,
            drain,
            exporter,
            decisions,
            reload,
        })
    }

    /// The addresses that it listens on.
    ///
    /// # Errors
    ///
    /// If the system does not report one.
    pub(crate) fn bound(&self) -> anyhow::Result<Bound> {
        let mut bound = Bound::default();
        for GrpcListener { listener, router, .. } in &self.listeners {
            let address = listener.address()?;
            if router.serves_records() {
                bound.record.push(address.clone());
            }
            if router.serves_checks() {
                bound.grpc.push(address);
            }
        }
        let webhook = self.webhook.as_ref();
        bound.webhook = webhook.map(|(socket, ..)| socket.listener.local_addr()).transpose()?;
        let AdminSockets { admin, probes } = &self.admin.0;
        bound.admin = admin.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?;
        bound.probes = probes.as_ref().map(TcpListener::local_addr).transpose()?;
        Ok(bound)
    }

    /// Serves until `stop`, then drains.
    ///
    /// # Errors
    ///
    /// If a part ended unexpectedly: the process should exit and be restarted.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let (ledger, drain, drain_timeout) =
            (self.ledger.clone(), self.drain.clone(), self.drain_timeout);
        let mut running = self.start()?;
        let failed = tokio::select! {
            () = stop => None,
            Some(part) = running.parts.join_next() => {
                Some(part.unwrap_or_else(|_| "a part of it panicked".to_owned()))
            }
            Some(_) = running.servers.join_next() => Some("a listener ended unasked".to_owned()),
        };
        match &failed {
            None => info!("draining: finishing open calls, accepting no new connections"),
            Some(failed) => error!(
                cause = failed,
                "a part of this sidecar failed: draining, then exiting with an error"
            ),
        }
        running.drain(&ledger, &drain, drain_timeout).await;
        match failed {
            None => Ok(()),
            Some(failed) => bail!(failed),
        }
    }

    /// Starts every part as a task.
    fn start(self) -> anyhow::Result<Running> {
        let (mut parts, mut servers) = (JoinSet::new(), JoinSet::new());
        let (stop_follower, stop_log) = (CancellationToken::new(), CancellationToken::new());
        self.ledger_task.run(&mut parts, Arc::clone(&self.metrics), stop_follower.clone())?;
        let (followers, recorder) = (self.followers, self.recorder);
        let (losses, tables) = (followers.losses(), followers.tables());
        let follow = followers.run(stop_follower.clone());
        parts.spawn(async move {
            tokio::select! {
                () = follow => {}
                () = recorder.replay_after_loss(losses) => {}
            }
            "the follower ended unasked".to_owned()
        });
        let over = self.drain.over.clone();
        parts.spawn(async move {
            tokio::select! {
                too_small = memory::watch_while_loading(tables) => too_small,
                () = over.cancelled() => "memory is not watched any more".to_owned(),
            }
        });
        let (sockets, config) = self.admin;
        if sockets.admin.is_some() || sockets.probes.is_some() {
            let (budget, drain) = (Arc::clone(&self.budget), self.drain.clone());
            parts.spawn(async move {
                admin::serve(sockets, config, budget, drain).await;
                "the admin listener ended unasked".to_owned()
            });
        }
        let (finish_traces, finish) = oneshot::channel();
        if let Some(exporter) = self.exporter {
            // On a thread of its own, so that encoding spans holds up no check.
            parts.spawn_blocking(move || {
                exporter.run(finish);
                "the export of traces ended unasked".to_owned()
            });
        }
        if let Some(writer) = self.decisions {
            let metrics = Arc::clone(&self.metrics);
            decision_log::run(writer, &mut parts, stop_log.clone(), metrics)?;
        }
        for GrpcListener { listener, security, router } in self.listeners {
            let (metrics, drain) = (Arc::clone(&self.metrics), self.drain.clone());
            let budget = Arc::clone(&self.budget);
            let limits = self.limits;
            servers.spawn(connection::serve(
                listener, security, router, limits, budget, metrics, drain,
            ));
        }
        let (reload, over) = (self.reload, self.drain.over.clone());
        let (tls_hangup, business_hangup) =
            (signal(SignalKind::hangup())?, signal(SignalKind::hangup())?);
        parts.spawn(async move {
            tokio::select! {
                () = reload.run(tls_hangup, business_hangup) => {}
                () = over.cancelled() => {}
            }
            "SIGHUP is not listened for any more".to_owned()
        });
        if let Some((HttpSocket { listener, tls }, webhook, sources)) = self.webhook {
            let hangup = signal(SignalKind::hangup())?;
            let reload = webhook::reload(webhook.clone(), move || sources.read(), hangup);
            let over = self.drain.over.clone();
            parts.spawn(async move {
                tokio::select! {
                    () = reload => {}
                    () = over.cancelled() => {}
                }
                "the webhook's configuration is not read again".to_owned()
            });
            let (budget, drain) = (Arc::clone(&self.budget), self.drain.clone());
            servers.spawn(webhook::serve(listener, tls, webhook, budget, drain));
        }
        Ok(Running { parts, servers, finish_traces, stop_log, stop_follower })
    }
}

/// The tasks of a sidecar that serves.
struct Running {
    /// Tasks that live as long as the process. Each returns what it means if it ends before.
    parts: JoinSet<String>,
    /// The listeners of calls and webhooks, which end when drained.
    servers: JoinSet<()>,
    /// Sends the deadline for the last traces.
    finish_traces: oneshot::Sender<Instant>,
    stop_log: CancellationToken,
    stop_follower: CancellationToken,
}

impl Running {
    /// Ends everything in order: calls, traces, decisions, the follower and the ledger.
    async fn drain(mut self, ledger: &Ledger, drain: &Drain, drain_timeout: Duration) {
        drain.begun.cancel();
        let limit = Instant::now().checked_add(drain_timeout);
        let drained =
            timeout(drain_timeout, async { while self.servers.join_next().await.is_some() {} });
        if drained.await.is_err() {
            warn!("the drain timeout has passed: closing the connections that are still open");
        }
        drain.over.cancel();
        while self.servers.join_next().await.is_some() {}
        let last_traces = Instant::now() + TRACE_FLUSH_TIMEOUT;
        let _ = self.finish_traces.send(limit.map_or(last_traces, |limit| limit.min(last_traces)));
        self.stop_log.cancel();
        self.stop_follower.cancel();
        if timeout(LEDGER_CLOSE_TIMEOUT, ledger.close()).await.is_err() {
            warn!("the ledger did not close in time: exiting all the same");
        }
        end_parts(&mut self.parts, PARTS_END_TIMEOUT).await;
    }
}

/// Waits for the end of the parts, which were asked to end. Those that have not ended by `limit` are
/// aborted: one that waits for a file system that is gone would keep the process for ever.
async fn end_parts(parts: &mut JoinSet<String>, limit: Duration) {
    if timeout(limit, async { while parts.join_next().await.is_some() {} }).await.is_err() {
        warn!("{} parts of the sidecar did not end in time: exiting all the same", parts.len());
        parts.abort_all();
    }
}

/// What the gRPC services of all listeners share.
struct Services {
    health: HealthService,
    telemetry: CallTelemetry,
    watch: WatchService,
    checker: Checker,
    ledger: Ledger,
    recorder: Recorder,
    check_limits: CheckLimits,
    metrics: Arc<Metrics>,
}

impl Services {
    /// The router of a socket.
    fn route(&self, socket: GrpcSocket) -> Result<GrpcListener, ReflectionError> {
        let GrpcSocket { listener, security, checks, records, tokens } = socket;
        let mut router = Router::new(self.health.clone())?.with_telemetry(self.telemetry.clone());
        if checks {
            let (checker, metrics) = (self.checker.clone(), Arc::clone(&self.metrics));
            let ledger = self.ledger.describe().to_owned();
            let service = CheckService::new(checker, ledger, self.check_limits, metrics);
            router = router.with_checks(service.with_watch(self.watch.clone()))?;
        }
        if records {
            let service = RecordService::new(
                self.ledger.clone(),
                self.recorder.clone(),
                Arc::clone(&self.metrics),
            );
            router = router.with_records(service, tokens)?;
        }
        Ok(GrpcListener { listener, security, router })
    }
}

fn budget_sizes(settings: &Settings) -> BudgetSizes {
    BudgetSizes {
        bytes: settings.limits.max_request_bytes,
        connection_bytes: settings.limits.max_connection_bytes,
        calls: settings.limits.max_in_flight,
    }
}

fn limits(settings: &Settings) -> Limits {
    Limits {
        connections: settings.limits.max_connections,
        connection_age: settings.limits.max_connection_age,
        connection_age_grace: settings.limits.drain_timeout,
    }
}

/// Warns of secret files that every user of this machine may read.
fn warn_of_readable_secrets(settings: &Settings) {
    for (file, mode) in files::readable_by_all(&settings.files) {
        let (flag, path) = (file.flag, file.path.display());
        warn!(
            flag,
            %path,
            mode = format!("{mode:04o}"),
            "every user of this machine may read this secret file: run `chmod o-r` on it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn end_parts_waits_for_those_that_end_and_gives_up_the_others() {
        let (ended, end) = oneshot::channel();
        let mut parts = JoinSet::new();
        parts.spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _ = ended.send(());
            "it ended".to_owned()
        });
        parts.spawn(std::future::pending());
        end_parts(&mut parts, Duration::from_millis(200)).await;
        end.await.unwrap();
        assert!(parts.join_next().await.unwrap().unwrap_err().is_cancelled());
    }
}
