//! Wiring: what is built from the settings, which tasks run, and in which order they end.

mod decision_log;
mod ledger;
mod reload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::ledger::Engine;
use self::reload::Reload;
use crate::admin::{self, Shown};
use crate::budget::{Budget, Sizes};
use crate::checker::Checker;
use crate::config::{LedgerAddress, Settings, WebhookSources};
use crate::decision_log::{DecisionLog, DecisionLogWriter, LogTarget};
use crate::follower::{Follower, SnapshotTarget};
use crate::grpc::connection::{self, Drain, Limits};
use crate::grpc::{
    CheckLimits, CheckService, HealthService, RecordService, ReflectionError, Routes, Tokens,
    Watcher, Watches,
};
use crate::metrics::Metrics;
use crate::net::socket::{Address, Listener};
use crate::recorder::Recorder;
use crate::synthetic::Synthetic;
use crate::table;
use crate::telemetry::{self, Exporter};
use crate::webhook::{self, Webhook};
use consentd_core::keyword::KeywordBook;
use consentd_ledger::Ledger;
use consentd_os::access;
use consentd_os::clock;
use consentd_os::files;

/// How long the ledger may take to write out what is waiting, at the end.
const CLOSE: Duration = Duration::from_secs(10);

/// How long the last traces may take, at the end: what is left of the drain timeout, and no more.
const LAST_TRACES: Duration = Duration::from_secs(2);

/// A sidecar whose sockets are bound and whose ledger is open, and that has not begun to serve.
pub struct Sidecar {
    ledger: Ledger,
    engine: Engine,
    follower: Follower,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    listeners: Vec<(Listener, Routes)>,
    admin: Option<(TcpListener, Shown)>,
    webhook: Option<(TcpListener, Webhook, WebhookSources)>,
    limits: Limits,
    budget: Arc<Budget>,
    drain: Drain,
    drain_timeout: Duration,
    exporter: Option<Exporter>,
    decisions: Option<DecisionLogWriter>,
    reload: Reload,
}

/// Where a sidecar listens.
#[derive(Clone, Debug)]
pub struct Bound {
    /// For checks, and for recordings where they have no address of their own.
    pub grpc: Vec<Address>,
    /// For recordings: the same, others, or none.
    pub record: Vec<Address>,
    /// For metrics and probes.
    pub admin: Option<SocketAddr>,
    /// For webhooks.
    pub webhook: Option<SocketAddr>,
}

impl Sidecar {
    /// Binds the sockets and opens the ledger, in this order: what is refused leaves nothing
    /// behind that was not there, and a ledger's file would stay.
    ///
    /// # Errors
    ///
    /// Says what could not be opened or bound.
    pub async fn new(settings: Settings) -> anyhow::Result<Self> {
        // Before anything that may take its time: a SIGHUP that comes meanwhile must end nothing.
        let hangup = signal(SignalKind::hangup())?;
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new())?);
        ledger::look_for_a_lost_one(&settings)?;
        let tokens = record_tokens(&settings)?;
        let listeners = bind(&settings, tokens.as_ref().map(|(_, tokens)| tokens)).await?;
        let admin = match &settings.listeners.admin {
            None => None,
            Some(address) => Some(bind_admin(address, settings.listeners.admin_checks).await?),
        };
        let (log, decisions) = open_decision_log(&settings, &metrics)?;
        let webhook = match settings.webhook.clone() {
            None => None,
            Some(told) => Some((bind_http(&told.address, "--webhook").await?, told.sources)),
        };
        let saving =
            settings.storage.snapshot.clone().map(|(path, every)| SnapshotTarget::new(path, every));
        let saving = saving.transpose().context("--snapshot")?;
        let (ledger, engine) = ledger::open(&settings).await?;
        warn_of_open_secrets(&settings);
        let (table, writer) = table::new();
        let bound = settings.max_staleness;
        let synthetic = synthetic(&ledger, settings.storage.synthetic).await?;
        let scrub = settings.storage.scrub_every.filter(|_| matches!(ledger, Ledger::Redis(_)));
        let follower = Follower::new(ledger.clone(), writer, Arc::clone(&metrics), bound)
            .beside(synthetic)
            .scrubbing(scrub)
            .saving(saving);
        let watches = Watches::new(follower.changes(), settings.limits.max_watchers);
        let checker =
            Checker::new(table, settings.policy, bound, Arc::clone(&metrics)).logging(log);
        let drain = Drain::default();
        let budget = Budget::new(sizes(&settings), Arc::clone(&metrics));
        let limits = limits(&settings);
        let health = HealthService::new(checker.clone(), drain.begun.clone());
        let (tracer, exporter) = settings
            .traces
            .map(|settings| telemetry::traces(settings, Arc::clone(&metrics)))
            .unzip();
        let base = Routes::new(health)?.watched_by(Watcher::new(tracer));
        let names = settings.names.clone();
        let keywords = KeywordBook::new(settings.keywords.clone());
        let recorder = Recorder::new(ledger.clone(), names, keywords, Arc::clone(&metrics))
            .beside(follower.position());
        let listeners = listeners.into_iter().map(|Heard { listener, checks, records, tokens }| {
            let mut routes = base.clone();
            if checks {
                let describe = ledger.describe().to_owned();
                let (checker, metrics) = (checker.clone(), Arc::clone(&metrics));
                let limits = CheckLimits {
                    batch: settings.limits.max_batch,
                    recipients: settings.limits.max_recipients,
                };
                let checks = CheckService::new(checker, describe, limits, metrics);
                routes = routes.with_checks(checks.watched(watches.clone()))?;
            }
            if records {
                let draining = drain.begun.clone();
                let service = RecordService::new(
                    recorder.clone(),
                    checker.clone(),
                    draining,
                    Arc::clone(&metrics),
                );
                routes = routes.with_records(service, tokens)?;
            }
            Ok((listener, routes))
        });
        let listeners = listeners.collect::<Result<_, ReflectionError>>()?;
        let webhook = webhook.map(|(listener, sources)| {
            let setup = sources.read().context("--webhook")?;
            let webhook = Webhook::new(recorder.clone(), setup, Arc::clone(&metrics));
            anyhow::Ok((listener, webhook, sources))
        });
        let webhook = webhook.transpose()?;
        let admin = admin.map(|listener| {
            let ledger = ledger.describe().to_owned();
            let (metrics, checks) = (Arc::clone(&metrics), settings.listeners.admin_checks);
            (listener, Shown { checker, metrics, ledger, checks })
        });
        let drain_timeout = settings.limits.drain_timeout;
        let reload = Reload { hangup, tokens, receives: webhook.is_some() };
        Ok(Self {
            ledger,
            engine,
            follower,
            recorder,
            metrics,
            listeners,
            admin,
            webhook,
            limits,
            budget,
            drain,
            drain_timeout,
            exporter,
            decisions,
            reload,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// Where the system does not tell.
    pub fn bound(&self) -> anyhow::Result<Bound> {
        let mut bound = Bound { grpc: Vec::new(), record: Vec::new(), admin: None, webhook: None };
        for (listener, routes) in &self.listeners {
            let address = listener.address()?;
            if routes.serves_records() {
                bound.record.push(address.clone());
            }
            if routes.serves_checks() {
                bound.grpc.push(address);
            }
        }
        let webhook = self.webhook.as_ref();
        bound.webhook = webhook.map(|(listener, ..)| listener.local_addr()).transpose()?;
        bound.admin = self.admin.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?;
        Ok(bound)
    }

    /// Serves until `stop`, then drains.
    ///
    /// # Errors
    ///
    /// Where a part ended that should not have: the process should end and be started again.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let stop_follower = CancellationToken::new();
        let mut parts = JoinSet::new();
        self.engine.run(&mut parts, Arc::clone(&self.metrics), stop_follower.clone())?;
        let (follower, recorder) = (self.follower, self.recorder);
        let losses = follower.losses();
        let follow = follower.run(stop_follower.clone());
        parts.spawn(async move {
            tokio::select! {
                () = follow => {}
                () = recorder.give_back(losses) => {}
            }
            "the follower ended unasked".to_owned()
        });
        if let Some((listener, shown)) = self.admin {
            let (begun, over) = (self.drain.begun.clone(), self.drain.over.clone());
            let budget = Arc::clone(&self.budget);
            parts.spawn(async move {
                admin::serve(listener, shown, budget, begun, over).await;
                "the admin listener ended unasked".to_owned()
            });
        }
        let (finish_traces, finish) = oneshot::channel();
        if let Some(exporter) = self.exporter {
            // A thread of its own: what it encodes must hold up no check.
            parts.spawn_blocking(move || {
                exporter.run(finish);
                "the export of traces ended unasked".to_owned()
            });
        }
        let stop_log = CancellationToken::new();
        if let Some(writer) = self.decisions {
            let metrics = Arc::clone(&self.metrics);
            decision_log::run(writer, &mut parts, stop_log.clone(), metrics)?;
        }
        let mut servers = JoinSet::new();
        for (listener, routes) in self.listeners {
            let (metrics, drain) = (Arc::clone(&self.metrics), self.drain.clone());
            let budget = Arc::clone(&self.budget);
            servers.spawn(connection::serve(listener, routes, self.limits, budget, metrics, drain));
        }
        let (reload, over) = (self.reload, self.drain.over.clone());
        parts.spawn(async move {
            tokio::select! {
                () = reload.run() => {}
                () = over.cancelled() => {}
            }
            "SIGHUP is not listened for any more".to_owned()
        });
        if let Some((listener, webhook, sources)) = self.webhook {
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
            let (begun, over) = (self.drain.begun.clone(), self.drain.over.clone());
            let budget = Arc::clone(&self.budget);
            servers.spawn(webhook::serve(listener, webhook, budget, begun, over));
        }
        let failed = tokio::select! {
            () = stop => None,
            Some(part) = parts.join_next() => {
                Some(part.unwrap_or_else(|_| "a part of it panicked".to_owned()))
            }
            Some(_) = servers.join_next() => Some("a listener ended unasked".to_owned()),
        };
        match &failed {
            None => info!("draining: finishing open calls, accepting no new connections"),
            Some(failed) => error!(
                cause = failed,
                "a part of this sidecar failed: draining, then exiting with an error"
            ),
        }
        self.drain.begun.cancel();
        let limit = Instant::now().checked_add(self.drain_timeout);
        let drained =
            timeout(self.drain_timeout, async { while servers.join_next().await.is_some() {} });
        if drained.await.is_err() {
            warn!("the drain timeout has passed: closing the connections that are still open");
        }
        self.drain.over.cancel();
        while servers.join_next().await.is_some() {}
        let last_traces = Instant::now() + LAST_TRACES;
        let _ = finish_traces.send(limit.map_or(last_traces, |limit| limit.min(last_traces)));
        stop_log.cancel();
        stop_follower.cancel();
        if timeout(CLOSE, self.ledger.close()).await.is_err() {
            warn!("the ledger did not close in time: exiting all the same");
        }
        while parts.join_next().await.is_some() {}
        match failed {
            None => Ok(()),
            Some(failed) => bail!(failed),
        }
    }
}

/// The bearer tokens that may record, and the file that they are in.
fn record_tokens(settings: &Settings) -> anyhow::Result<Option<(PathBuf, Tokens)>> {
    let tokens = settings.listeners.record_token_file.clone();
    let tokens = tokens.map(|path| Tokens::read(&path).map(|tokens| (path, tokens)));
    Ok(tokens.transpose()?)
}

/// How much may be under way at once, in bytes and in calls.
fn sizes(settings: &Settings) -> Sizes {
    Sizes {
        bytes: settings.limits.max_request_bytes,
        connection_bytes: settings.limits.max_connection_bytes,
        calls: settings.limits.max_in_flight,
    }
}

/// How many connections a gRPC listener takes, and how long one lives.
fn limits(settings: &Settings) -> Limits {
    Limits {
        connections: settings.limits.max_connections,
        connection_age: settings.limits.max_connection_age,
        connection_age_grace: settings.limits.drain_timeout,
    }
}

/// Says which secrets everybody on this machine may read.
fn warn_of_open_secrets(settings: &Settings) {
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

/// What takes decisions to be logged, and what writes them, where that is asked for.
fn open_decision_log(
    settings: &Settings,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Option<DecisionLog>, Option<DecisionLogWriter>)> {
    let Some(log) = &settings.decision_log else { return Ok((None, None)) };
    let opened = crate::decision_log::open(log.clone(), Arc::clone(metrics));
    let (log, writer) = opened.map_err(|error| match &log.target {
        LogTarget::File(path) => {
            let (shown, hint) = (path.display(), access::hint(path, &error));
            anyhow!("--decision-log: cannot open {shown}: {error}{hint}")
        }
        LogTarget::Stdout => anyhow!("--decision-log: cannot write to standard output: {error}"),
    })?;
    Ok((Some(log), Some(writer)))
}

/// The pairs of a load test. Beside real ones they could be taken for them.
async fn synthetic(ledger: &Ledger, count: u64) -> anyhow::Result<Option<Synthetic>> {
    if count == 0 {
        return Ok(None);
    }
    if ledger.read_after(0).await?.end.revision > 0 {
        bail!(
            "--synthetic: {} holds what was recorded, and what is not real is served beside an \
             empty ledger alone; give it one with --ledger file:PATH",
            ledger.describe()
        );
    }
    warn!(pairs = count, "serving pairs that nobody recorded: for load tests alone");
    Ok(Some(Synthetic::new(count, ledger.identity().await?.secret.clone(), clock::wall())))
}

/// Each address to listen on, the flag that names it, and whether it takes checks and recordings.
fn plan(settings: &Settings) -> Vec<(&'static str, Address, bool, bool)> {
    // Into a Redis that others write to as well, only where that is asked for.
    let is_file = matches!(settings.ledger, LedgerAddress::File(_));
    let here = is_file && settings.listeners.record.is_none();
    let main = settings.listeners.listen.iter().map(|address| {
        let flag = if matches!(address, Address::Tcp(_)) { "--listen" } else { "--unix" };
        (flag, address.clone(), true, here)
    });
    let record =
        settings.listeners.record.iter().map(|address| ("--record", address.clone(), false, true));
    main.chain(record).collect()
}

/// A socket that is bound, and what is to be served there.
struct Heard {
    listener: Listener,
    checks: bool,
    records: bool,
    tokens: Option<Tokens>,
}

async fn bind(settings: &Settings, tokens: Option<&Tokens>) -> anyhow::Result<Vec<Heard>> {
    let mut bound = Vec::new();
    for (flag, address, checks, records) in plan(settings) {
        let listener = Listener::bind(&address).await.context(flag)?;
        let tokens = tokens.cloned();
        if records && tokens.is_none() && !listener.is_local() {
            bail!(
                "RecordService on {address} could be reached from other machines: give \
                 --record-token-file with the bearer tokens that may record, or move it with \
                 --record to a loopback address or a Unix socket"
            );
        }
        bound.push(Heard { listener, checks, records, tokens });
    }
    Ok(bound)
}

/// Binds the admin listener; one that is to answer checks must be out of other machines' reach.
async fn bind_admin(address: &str, checks: bool) -> anyhow::Result<TcpListener> {
    let listener = bind_http(address, "--admin, for metrics and probes (or none)").await?;
    if checks && !listener.local_addr()?.ip().is_loopback() {
        bail!(
            "--admin-checks on {address} would tell other machines what anybody has consented \
             to: give --admin a loopback address such as 127.0.0.1:9464, or leave --admin-checks \
             out"
        );
    }
    Ok(listener)
}

/// Binds a listener for HTTP, which a flag asks for.
async fn bind_http(address: &str, flag: &'static str) -> anyhow::Result<TcpListener> {
    // As for gRPC, so that what is wrong is said in the same words.
    match Listener::bind(&Address::Tcp(address.to_owned())).await.context(flag)? {
        Listener::Tcp(listener) => Ok(listener),
        Listener::Unix(..) => bail!("{flag}: must be HOST:PORT"),
    }
}
