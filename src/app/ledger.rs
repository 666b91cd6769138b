//! Opening the ledger, and running the part of it that writes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{LedgerAddress, Settings};
use crate::follower::scheduler::period;
use crate::metrics::Metrics;
use consentd_ledger::{
    Appender, Compacted, Driver, Embedded, Ledger, Opened, Options, Redis, RefusedBy,
};
use consentd_os::files;

use crate::follower;

/// How often a ledger's file is measured. That reads all of it once.
const MEASURE_EVERY: Duration = Duration::from_hours(1);

/// How many files of a folder are looked at for saved tables.
const MAX_LOOKED_AT: usize = 1_000;

/// How long a Redis may take, at the start, to show what is wrong with it. One that does not answer
/// may come later.
const PROBE: Duration = Duration::from_secs(6);

/// The part of a ledger that runs for as long as the sidecar does.
pub(super) enum Engine {
    /// Waits for a disk; the ledger is measured beside it.
    File(Box<Appender>, Embedded),
    /// Waits for a Redis.
    Redis(Driver),
}

/// Opens the ledger.
pub(super) async fn open(settings: &Settings) -> anyhow::Result<(Ledger, Engine)> {
    match &settings.ledger {
        LedgerAddress::File(path) => {
            let (ledger, appender) = open_file(path, settings)?;
            Ok((Ledger::Embedded(ledger.clone()), Engine::File(Box::new(appender), ledger)))
        }
        LedgerAddress::Redis(target) => {
            let options = Options {
                durability: settings.storage.durability,
                confirm_within: settings.storage.durability.confirm_within(),
                poll_within: period(settings.max_staleness),
                // Who records nothing removes nothing: it need not be permitted to.
                retention: (settings.listeners.record.is_some() || settings.webhook.is_some())
                    .then_some(settings.storage.retention),
                sweep_every: settings.storage.retention.sweep_every(),
            };
            let (ledger, driver) = Redis::new((**target).clone(), options);
            probe(&ledger).await?;
            Ok((Ledger::Redis(ledger), Engine::Redis(driver)))
        }
    }
}

/// Refuses to make a new ledger where one seems to have been: everybody who opted out would be
/// forgotten. To be asked before anything else makes files.
pub(super) fn look_for_a_lost_one(settings: &Settings) -> anyhow::Result<()> {
    let LedgerAddress::File(path) = &settings.ledger else { return Ok(()) };
    if settings.storage.new {
        return Ok(());
    }
    let mut left =
        consentd_ledger::traces(path).with_context(|| format!("--ledger: {}", path.display()))?;
    if !path.exists() {
        left.extend(follower::snapshot_files_in(files::folder(path), MAX_LOOKED_AT));
    }
    let Some(first) = left.first() else { return Ok(()) };
    let (shown, first) = (path.display(), first.display());
    bail!(
        "--ledger: there is no ledger in {shown}, but {first} beside it is of one: is this the right \
         path, and was the file moved or deleted? Put it back, or give --new to make a new ledger, \
         in which nobody has opted out"
    );
}

fn open_file(path: &Path, settings: &Settings) -> anyhow::Result<(Embedded, Appender)> {
    let opened =
        Embedded::open_to_serve(path, settings.storage.retention, settings.storage.ledger_cache)?;
    let Opened { ledger, appender, is_new, compacted, mode_before } = opened;
    let full = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let full = full.display();
    if is_new {
        warn!(
            ledger = %full,
            "made a new ledger, in which nobody has opted out: if there should be one already, stop \
             this sidecar, and give the right file with --ledger"
        );
    }
    if let Some(mode) = mode_before {
        let mode = format!("{mode:04o}");
        warn!(
            ledger = %full,
            mode,
            "the ledger's file was writable by its group or by everybody, who could have changed it: \
             write permission was removed from them (chmod go-w); see that nobody but the sidecar's \
             user may write in its folder"
        );
    }
    match compacted {
        None => {}
        Some(Ok(Compacted { before, now, .. })) => {
            info!(
                bytes_before = before,
                bytes_now = now,
                "compacted the ledger's file: bytes of erased people are no longer in it"
            );
        }
        Some(Err(error)) => {
            warn!(
                cause = %error,
                "could not compact the ledger's file, so its free pages may still hold what was \
                 erased: stop this sidecar and run `consentd ledger compact`, or restart to retry"
            );
        }
    }
    Ok((ledger, appender))
}

/// Measures a ledger's file now and then, for as long as it can be read, and says when it should be
/// compacted.
async fn measure(ledger: Embedded, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut told = false;
    while let Ok(Some(space)) = ledger.space().await {
        metrics.ledger_file(space.file, space.free());
        if space.is_worth_compacting() && !told {
            warn!(
                file_bytes = space.file,
                free_bytes = space.free(),
                "at least half of the ledger's file is free: to make it smaller, stop this sidecar, \
                 run `consentd ledger compact --ledger {}`, and start it again",
                ledger.describe(),
            );
        }
        told = space.is_worth_compacting();
        tokio::select! {
            () = sleep(MEASURE_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
    stop.cancelled().await;
}

/// Refuses what never will be right as it is set up; what may come by itself is waited for.
async fn probe(ledger: &Redis) -> anyhow::Result<()> {
    let Err(error) = timeout(PROBE, ledger.probe()).await.unwrap_or(Ok(())) else { return Ok(()) };
    if error.needs_an_operator() {
        bail!("--ledger: {error}");
    }
    if matches!(RefusedBy::of(&error), Some(RefusedBy::Missing)) {
        warn!(
            "the ledger does not exist: every check is denied until `consentd init --ledger ...` has \
             made it"
        );
    } else {
        warn!(
            cause = %error,
            "cannot reach the ledger: every check is denied, and reconnecting goes on until it can"
        );
    }
    Ok(())
}

impl Engine {
    /// Runs it as one of `parts`, which end unasked only where something failed.
    pub(super) fn run(
        self,
        parts: &mut JoinSet<String>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        match self {
            Self::File(appender, ledger) => {
                parts.spawn(async move {
                    measure(ledger, metrics, stop).await;
                    "the measuring of the ledger's file ended unasked".to_owned()
                });
                let (ended, end) = tokio::sync::oneshot::channel();
                // A thread of its own: it waits for the disk all its life.
                std::thread::Builder::new().name("ledger".to_owned()).spawn(move || {
                    let _ = ended.send(appender.run());
                })?;
                parts.spawn(async move {
                    match end.await {
                        Ok(Err(error)) => error.to_string(),
                        Ok(Ok(())) => "the ledger was closed unasked".to_owned(),
                        Err(_) => "the ledger's thread panicked".to_owned(),
                    }
                });
            }
            Self::Redis(driver) => {
                parts.spawn(async move {
                    driver.run(CancellationToken::new()).await;
                    "the ledger's driver ended unasked".to_owned()
                });
            }
        }
        Ok(())
    }
}
