//! Opens the ledger, and runs its background task.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{LedgerAddress, Settings, StorageSettings};
use crate::follower::ExtraPairs;
use crate::follower::scheduler::period;
use crate::metrics::Metrics;
use consentd_bench::fixture::Fixture;
use consentd_ledger::{
    Appender, BackgroundTask, CompactionReport, Embedded, Ledger, OpenedLedger, Options, Redis,
    RedisRejection,
};
use consentd_os::clock;
use consentd_os::files;

use crate::follower;

/// How often the free space of a ledger's file is measured, which reads the whole file.
const MEASURE_INTERVAL: Duration = Duration::from_hours(1);

/// How many files of a folder are scanned for snapshots.
const MAX_SCANNED_FILES: usize = 1_000;

/// How long the start waits for Redis to report a configuration error. A Redis that does not answer
/// may come up later.
const PROBE_TIMEOUT: Duration = Duration::from_secs(6);

/// The background task of a ledger, which runs as long as the sidecar.
pub(super) enum LedgerTask {
    /// Appends to a file; the second field is measured.
    File(Box<Appender>, Embedded),
    /// Talks to Redis.
    Redis(BackgroundTask),
}

/// Opens the ledger.
pub(super) async fn open(settings: &Settings) -> anyhow::Result<(Ledger, LedgerTask)> {
    match &settings.ledger {
        LedgerAddress::File(path) => {
            let (path, storage) = (path.clone(), settings.storage.clone());
            // It may read or rewrite the whole file.
            let opened = tokio::task::spawn_blocking(move || open_file(&path, &storage)).await;
            let (ledger, appender) = opened.context("opening the ledger's file")??;
            Ok((Ledger::Embedded(ledger.clone()), LedgerTask::File(Box::new(appender), ledger)))
        }
        LedgerAddress::Redis(target) => {
            let options = Options {
                durability: settings.storage.durability,
                confirm_within: settings.storage.durability.confirm_within(),
                poll_within: period(settings.max_staleness),
                // A sidecar that does not record applies no retention, so it needs no permission to delete.
                retention: (settings.listeners.record.is_some() || settings.webhook.is_some())
                    .then_some(settings.storage.retention),
                sweep_interval: settings.storage.retention.sweep_interval(),
                any_keys: false,
                tagged_keys: settings.businesses.is_some(),
            };
            let (ledger, task) = Redis::new((**target).clone(), options);
            probe(&ledger).await?;
            Ok((Ledger::Redis(ledger), LedgerTask::Redis(task)))
        }
    }
}

/// Refuses to create a ledger in a place that shows traces of an earlier one: its opt-outs would be
/// forgotten. Must be called before anything else creates files.
pub(super) fn refuse_to_replace_lost_ledger(settings: &Settings) -> anyhow::Result<()> {
    let LedgerAddress::File(path) = &settings.ledger else { return Ok(()) };
    if settings.storage.new {
        return Ok(());
    }
    let mut left = consentd_ledger::leftover_files(path)
        .with_context(|| format!("--ledger: {}", path.display()))?;
    if !path.exists() {
        left.extend(follower::snapshot_files_in(files::folder(path), MAX_SCANNED_FILES));
    }
    let Some(first) = left.first() else { return Ok(()) };
    let (shown, first) = (path.display(), first.display());
    bail!(
        "--ledger: there is no ledger in {shown}, but {first} beside it is of one: is this the right \
         path, and was the file moved or deleted? Put it back, or give --new to make a new ledger, \
         in which nobody has opted out"
    );
}

fn open_file(path: &Path, storage: &StorageSettings) -> anyhow::Result<(Embedded, Appender)> {
    let opened = Embedded::open_to_serve(path, storage.retention, storage.ledger_cache)?;
    let OpenedLedger { ledger, appender, is_new, compacted, mode_before } = opened;
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
        Some(Ok(CompactionReport { bytes_before, bytes_after, .. })) => {
            info!(
                bytes_before,
                bytes_now = bytes_after,
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

/// Measures a ledger's file periodically, as long as it can be read, and warns when it should be
/// compacted.
async fn measure(ledger: Embedded, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut warned = false;
    while let Ok(Some(space)) = ledger.disk_usage().await {
        metrics.ledger_file(space.file_bytes, space.free_bytes());
        if space.is_worth_compacting() && !warned {
            warn!(
                file_bytes = space.file_bytes,
                free_bytes = space.free_bytes(),
                "at least half of the ledger's file is free: to make it smaller, stop this sidecar, \
                 run `consentd ledger compact --ledger {}`, and start it again",
                ledger.describe(),
            );
        }
        warned = space.is_worth_compacting();
        tokio::select! {
            () = sleep(MEASURE_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
    stop.cancelled().await;
}

/// Fails on errors that only an operator can mend; the sidecar waits for others to pass.
async fn probe(ledger: &Redis) -> anyhow::Result<()> {
    let Err(error) = timeout(PROBE_TIMEOUT, ledger.probe()).await.unwrap_or(Ok(())) else {
        return Ok(());
    };
    if error.needs_an_operator() {
        bail!("--ledger: {error}");
    }
    if matches!(RedisRejection::of(&error), Some(RedisRejection::Missing)) {
        warn!(
            "the ledger does not exist: every check is denied until `consentd init --ledger ...` has \
             made it"
        );
    } else {
        warn!(
            cause = %error,
            "cannot reach the ledger, or a part of it: nothing that is there is allowed before it was loaded; \
             retrying by itself"
        );
    }
    Ok(())
}

impl LedgerTask {
    /// Runs the task as one of `parts`, which end unasked only if something failed.
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
                    "measuring the ledger's file ended unasked".to_owned()
                });
                let (ended, end) = tokio::sync::oneshot::channel();
                // On a thread of its own: it waits for the disk all its life.
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
            Self::Redis(task) => {
                parts.spawn(async move {
                    task.run(CancellationToken::new()).await;
                    "the ledger's background task ended unasked".to_owned()
                });
            }
        }
        Ok(())
    }
}

/// The synthetic pairs of a load test. They are refused next to recorded pairs, which they could be
/// mistaken for.
pub(super) async fn open_synthetic(
    ledger: &Ledger,
    count: u64,
) -> anyhow::Result<Option<ExtraPairs>> {
    if count == 0 {
        return Ok(None);
    }
    let mut is_empty = true;
    for partition in ledger.partitions().await? {
        is_empty &= partition.read_after(0).await?.end.revision == 0;
    }
    if !is_empty {
        bail!(
            "--synthetic: {} holds what was recorded, and what is not real is served beside an \
             empty ledger alone; give it one with --ledger file:PATH",
            ledger.describe()
        );
    }
    warn!(pairs = count, "serving pairs that nobody recorded: for load tests alone");
    let pairs = Fixture::new(count, ledger.secret().await?, clock::wall());
    Ok(Some(Arc::new(move || {
        let pairs = pairs.clone();
        Box::new((0..pairs.count()).filter_map(move |number| pairs.pair(number)))
    })))
}
