//! `consentd serve`, and `consentd webhook`.

use anyhow::{Context as _, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use super::{Verdict, given};
use crate::app::{Bound, Sidecar};
use crate::config::{ConfigError, ServeArgs, Settings, WebhookArgs};
use crate::net::socket::Address;
use crate::telemetry;

/// Threads that read the ledger's file; more readers wait for one of them.
const MAX_BLOCKING_THREADS: usize = 16;

pub(super) fn run(args: ServeArgs) -> anyhow::Result<Verdict> {
    run_with(args.settings().map_err(naming_variable)?)
}

/// A sidecar that answers nobody and receives webhooks alone.
pub(super) fn receive(args: WebhookArgs) -> anyhow::Result<Verdict> {
    run_with(args.settings().map_err(naming_variable)?)
}

fn run_with(settings: Settings) -> anyhow::Result<Verdict> {
    telemetry::start_log(&settings.log).context("--log")?;
    for unknown in given::unknown_variables() {
        warn!("{unknown}");
    }
    if let Some(said) = given::password() {
        warn!("{said}");
    }
    // One thread needs no queues between threads.
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

/// Says from which variable a wrong value is, where it is from one.
fn naming_variable(error: ConfigError) -> anyhow::Error {
    let variable = match &error {
        ConfigError::Value { setting, .. } => given::variable_of(setting),
        _ => None,
    };
    match variable {
        Some(variable) => anyhow!("{error}\n  the value is that of {variable}"),
        None => error.into(),
    }
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ledger = settings.ledger.to_string();
    let sidecar = Sidecar::new(settings).await?;
    say_where(&sidecar.bound()?, &ledger);
    sidecar
        .run(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
}

fn say_where(bound: &Bound, ledger: &str) {
    let list = |addresses: &[Address]| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        if addresses.is_empty() { "none".to_owned() } else { addresses.join(",") }
    };
    let record = list(&bound.record);
    let admin = bound.admin.map_or_else(|| "none".to_owned(), |address| address.to_string());
    let grpc = list(&bound.grpc);
    match bound.webhook {
        None => info!(grpc, record, admin, ledger, "listening"),
        Some(webhook) => info!(grpc, record, %webhook, admin, ledger, "listening"),
    }
}
