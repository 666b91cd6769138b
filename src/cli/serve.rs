//! `serve` and `webhook`: run a sidecar, or a webhook receiver, until a signal.

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use super::{Verdict, args, ledger_target};
use crate::app::{Bound, Sidecar};
use crate::config::{ServeArgs, Settings, WebhookArgs};
use crate::net::socket::Address;
use crate::telemetry;

/// The most threads for blocking work, such as reading the ledger's file. Further work queues.
const MAX_BLOCKING_THREADS: usize = 16;

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
    runtime.context("cannot start the runtime")?.block_on(serve(settings))?;
    Ok(Verdict::Yes)
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (ledger, workers) = (settings.ledger.to_string(), settings.limits.workers);
    let sidecar = Sidecar::new(settings).await?;
    log_addresses(&sidecar.bound()?, &ledger, workers);
    sidecar
        .run(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
}

fn log_addresses(bound: &Bound, ledger: &str, workers: usize) {
    let list = |addresses: &[Address]| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        if addresses.is_empty() { "none".to_owned() } else { addresses.join(",") }
    };
    let record = list(&bound.record);
    let admin = bound.admin.map_or_else(|| "none".to_owned(), |address| address.to_string());
    let grpc = list(&bound.grpc);
    match bound.webhook {
        None => info!(grpc, record, admin, ledger, workers, "listening"),
        Some(webhook) => info!(grpc, record, %webhook, admin, ledger, workers, "listening"),
    }
}
