//! `serve` and `webhook`: run a sidecar, or a webhook receiver, until a signal.

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{field, info, warn};

use super::{Verdict, args, ledger_target};
use crate::app::{Bound, Sidecar};
use crate::config::{ServeArgs, Settings, WebhookArgs};
use crate::net::socket::Address;
use crate::telemetry;

/// The most threads for blocking work, such as reading the ledger's file. Further work queues.
const MAX_BLOCKING_THREADS: usize = 16;

/// How long blocking work may take that is still under way at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn run(args: ServeArgs) -> anyhow::Result<Verdict> {
    run_with(args.settings().map_err(ledger_target::name_variable)?)
}

/// Runs a process that receives webhooks and answers no checks.
pub(super) fn receive(args: WebhookArgs) -> anyhow::Result<Verdict> {
    run_with(args.settings().map_err(ledger_target::name_variable)?)
}

fn run_with(settings: Settings) -> anyhow::Result<Verdict> {
    telemetry::start_log(&settings.log).context("--log")?;
    for unknown in args::unknown_variables() {
        warn!("{unknown}");
    }
    if let Some(warning) = args::password_warning() {
        warn!("{warning}");
    }
    // The single-threaded runtime has no queues between threads.
    let mut runtime = match settings.limits.workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime
        .worker_threads(settings.limits.workers)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .enable_all()
        .build();
    let runtime = runtime.context("cannot start the runtime")?;
    let served = runtime.block_on(serve(settings));
    // A thread that waits for a disk that is gone must not keep the process.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    served.map(|()| Verdict::Yes)
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stop);
    let (ledger, workers) = (settings.ledger.to_string(), settings.limits.workers);
    let sidecar = tokio::select! {
        biased;
        // What is done to the ledger's file meanwhile ends with the process, as in a crash.
        () = &mut stop => {
            info!("ending: the ledger was not open yet");
            return Ok(());
        }
        sidecar = Sidecar::new(settings) => sidecar?,
    };
    log_addresses(&sidecar.bound()?, &ledger, workers);
    sidecar.run(stop).await
}

fn log_addresses(bound: &Bound, ledger: &str, workers: usize) {
    let list = |addresses: &[Address]| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        if addresses.is_empty() { "none".to_owned() } else { addresses.join(",") }
    };
    let record = list(&bound.record);
    let admin = bound.admin.map_or_else(|| "none".to_owned(), |address| address.to_string());
    let grpc = list(&bound.grpc);
    let webhook = bound.webhook.map(field::display);
    let probes = bound.probes.map(field::display);
    info!(grpc, record, webhook, admin, probes, ledger, workers, "listening");
}
