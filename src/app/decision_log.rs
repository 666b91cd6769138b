//! Opens the decision log, and runs the thread that writes it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::Settings;
use crate::decision_log::{DecisionLog, DecisionLogWriter, DropReporter, LogTarget};
use crate::metrics::Metrics;
use consentd_os::io_hint;

/// How long writing the last decisions may take, at shutdown: into a pipe without a reader it would
/// take for ever.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the number of dropped decisions is checked.
const DROP_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Opens the decision log, if it is enabled: the side that takes decisions, and the writer.
pub(super) fn open(
    settings: &Settings,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<(Option<DecisionLog>, Option<DecisionLogWriter>)> {
    let Some(log) = &settings.decision_log else { return Ok((None, None)) };
    let opened = crate::decision_log::open(log.clone(), Arc::clone(metrics));
    let (log, writer) = opened.map_err(|error| match &log.target {
        LogTarget::File(path) => {
            let (shown, hint) = (path.display(), io_hint::hint(path, &error));
            anyhow!("--decision-log: cannot open {shown}: {error}{hint}")
        }
        LogTarget::Stdout => anyhow!("--decision-log: cannot write to standard output: {error}"),
    })?;
    Ok((Some(log), Some(writer)))
}

/// Runs the writer on a thread, as one of `parts`, until `stop` is cancelled.
pub(super) fn run(
    writer: DecisionLogWriter,
    parts: &mut JoinSet<String>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
) -> std::io::Result<()> {
    let (ended, end) = oneshot::channel::<()>();
    let stop_writer = stop.clone();
    // On a thread of its own: it may wait for a disk, or for the reader of a pipe, all its life.
    std::thread::Builder::new().name("decisions".to_owned()).spawn(move || {
        writer.run(&stop_writer);
        drop(ended);
    })?;
    parts.spawn(async move {
        tokio::pin!(end);
        let mut drops = DropReporter::new(metrics);
        let stopped = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break true,
                _ = &mut end => break false,
                () = sleep(DROP_CHECK_INTERVAL) => drops.report(),
            }
        };
        if stopped && timeout(FLUSH_TIMEOUT, end).await.is_err() {
            warn!(
                "the last decisions could not be written to the decision log in time: they are lost"
            );
        }
        "the thread that logs decisions ended unasked".to_owned()
    });
    Ok(())
}
