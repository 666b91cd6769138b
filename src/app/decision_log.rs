//! Running the thread that writes what was decided.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::decision_log::{DecisionLogWriter, DropReporter};
use crate::metrics::Metrics;

/// How long the last decisions may take to be written, at the end: a pipe that nobody reads would
/// take for ever.
const LAST: Duration = Duration::from_secs(2);

/// How often it is looked whether decisions are dropped.
const LOOK: Duration = Duration::from_secs(1);

/// Runs it as one of `parts`, until it is told to `stop`.
pub(super) fn run(
    writer: DecisionLogWriter,
    parts: &mut JoinSet<String>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
) -> std::io::Result<()> {
    let (ended, end) = oneshot::channel::<()>();
    let told = stop.clone();
    // A thread of its own: it may wait for a disk, or for whoever reads a pipe, all its life.
    std::thread::Builder::new().name("decisions".to_owned()).spawn(move || {
        writer.run(&told);
        drop(ended);
    })?;
    parts.spawn(async move {
        tokio::pin!(end);
        let mut drops = DropReporter::new(metrics);
        let asked = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break true,
                _ = &mut end => break false,
                () = sleep(LOOK) => drops.report(),
            }
        };
        if asked && timeout(LAST, end).await.is_err() {
            warn!(
                "the last decisions could not be written to the decision log in time: they are lost"
            );
        }
        "the thread that logs decisions ended unasked".to_owned()
    });
    Ok(())
}
