//! Opening the ledger, and running the part of it that writes.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{LedgerAddress, Settings};
use crate::follower::driver::period;
use crate::ledger::{Appender, Compacted, Driver, Embedded, Ledger, Options, Redis, RefusedBy};

/// How long a Redis may take, at the start, to show what is wrong with it. One that does not answer
/// may come later.
const PROBE: Duration = Duration::from_secs(6);

/// The part of a ledger that runs for as long as the sidecar does.
pub(super) enum Engine {
    /// Waits for a disk.
    File(Appender),
    /// Waits for a Redis.
    Redis(Driver),
}

/// Opens the ledger.
pub(super) async fn open(settings: &Settings) -> anyhow::Result<(Ledger, Engine)> {
    match &settings.ledger {
        LedgerAddress::File(path) => {
            let (ledger, appender) = open_file(path, settings)?;
            Ok((Ledger::Embedded(ledger), Engine::File(appender)))
        }
        LedgerAddress::Redis(target) => {
            let options = Options {
                durability: settings.durability,
                confirm_within: settings.durability.confirm_within(),
                poll_within: period(settings.max_staleness),
                // Who records nothing removes nothing: it need not be permitted to.
                retention: (settings.record.is_some() || settings.webhook.is_some())
                    .then_some(settings.retention),
                sweep_every: settings.retention.sweep_every(),
                ..Options::default()
            };
            let (ledger, driver) = Redis::new((**target).clone(), options);
            probe(&ledger).await?;
            Ok((Ledger::Redis(ledger), Engine::Redis(driver)))
        }
    }
}

fn open_file(path: &Path, settings: &Settings) -> anyhow::Result<(Embedded, Appender)> {
    let (ledger, appender, compacted) =
        Embedded::open_to_serve(path, settings.retention, settings.ledger_cache)?;
    match compacted {
        None => {}
        Some(Ok(Compacted { before, now, .. })) => {
            info!(before, now, "the ledger's file is written anew, without what was erased");
        }
        Some(Err(error)) => {
            warn!(
                cause = %error,
                "the ledger's file could not be written anew, and its free pages may still hold \
                 what was erased: the next start tries again, and so does consentd ledger compact"
            );
        }
    }
    Ok((ledger, appender))
}

/// Refuses what never will be right as it is set up; what may come by itself is waited for.
async fn probe(ledger: &Redis) -> anyhow::Result<()> {
    let Err(error) = timeout(PROBE, ledger.probe()).await.unwrap_or(Ok(())) else { return Ok(()) };
    if error.needs_an_operator() {
        bail!("--ledger: {error}");
    }
    if matches!(RefusedBy::of(&error), Some(RefusedBy::Missing)) {
        warn!(
            "there is no ledger yet: make one with `consentd init --ledger ...`; denying until then"
        );
    } else {
        warn!(cause = %error, "the ledger is not there yet: denying until it is");
    }
    Ok(())
}

impl Engine {
    /// Runs it as one of `parts`, which end unasked only where something failed.
    pub(super) fn run(self, parts: &mut JoinSet<String>) -> std::io::Result<()> {
        match self {
            Self::File(appender) => {
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
