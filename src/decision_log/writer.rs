//! The thread that writes the decision log.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::sleep;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::output::Output;
use super::{QUEUE_ENTRIES, QueuedDecision};
use crate::metrics::Metrics;
use crate::net::log_throttle::LogThrottle;

/// How often the thread polls the queue, and so the latency of a line. To wake the thread would cost
/// a check more than all its other work.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The most bytes of one write.
const WRITE_BATCH_BYTES: usize = 32 * 1024;

/// An upper bound of a line, in bytes. A line with the longest topic has about 270.
pub(super) const MAX_LINE_BYTES: usize = 512;

/// How long a warning keeps others of its kind out of the process' log.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The receiving half of the queue. It blocks its thread, so it needs one of its own.
pub struct DecisionLogWriter {
    entries: Receiver<QueuedDecision>,
    output: Output,
    metrics: Arc<Metrics>,
    lines: Vec<u8>,
    waiting: usize,
    /// Whether the last write failed.
    is_failure_logged: bool,
    failures: LogThrottle,
}

impl DecisionLogWriter {
    pub(super) fn new(
        entries: Receiver<QueuedDecision>,
        output: Output,
        metrics: Arc<Metrics>,
    ) -> Self {
        let lines = Vec::with_capacity(WRITE_BATCH_BYTES);
        let failures = LogThrottle::new(LOG_INTERVAL);
        Self { entries, output, metrics, lines, waiting: 0, is_failure_logged: false, failures }
    }

    /// Writes until `stop` is cancelled, and then drains the queue.
    pub fn run(mut self, stop: &CancellationToken) {
        loop {
            let last = stop.is_cancelled();
            let taken = self.take();
            self.write();
            if taken < QUEUE_ENTRIES {
                if last {
                    return;
                }
                sleep(POLL_INTERVAL);
            }
        }
    }

    /// Takes at most one queue full of decisions and writes all but the last few lines. Returns how
    /// many it took.
    fn take(&mut self) -> usize {
        for taken in 0..QUEUE_ENTRIES {
            let Ok(entry) = self.entries.try_recv() else { return taken };
            entry.write(&mut self.lines);
            self.waiting += 1;
            if self.lines.len() > WRITE_BATCH_BYTES - MAX_LINE_BYTES {
                self.write();
            }
        }
        QUEUE_ENTRIES
    }

    /// Writes the buffered lines, and counts those that were dropped.
    fn write(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        let (written, failed) = self.output.write(&self.lines);
        let dropped = std::mem::take(&mut self.waiting).saturating_sub(written);
        self.lines.clear();
        self.metrics.decisions_written(written);
        self.metrics.decisions_dropped("file", dropped);
        match failed {
            None => {
                if std::mem::take(&mut self.is_failure_logged) {
                    info!("decisions are logged again");
                }
            }
            Some(error) => {
                // Both lines are written once a minute at most, however often writes fail and succeed.
                if self.failures.record(1).is_none() {
                    return;
                }
                self.is_failure_logged = true;
                let cause = error.to_string();
                let why = "decisions cannot be logged; consent_decision_log_dropped_total counts \
                           them";
                warn!(cause, dropped, "{why}");
            }
        }
    }
}

/// Says that decisions are dropped because more are made than are written. For another task than the
/// thread, which may be held up.
pub struct DropReporter {
    metrics: Arc<Metrics>,
    /// The number of drops at the last report.
    seen: u64,
    drops: LogThrottle,
}

impl DropReporter {
    /// Nothing was said yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, seen: 0, drops: LogThrottle::new(LOG_INTERVAL) }
    }

    /// Looks whether more were dropped, and says so once a minute at the most.
    pub fn report(&mut self) {
        let total = self.metrics.decisions_dropped_by_queue();
        let new = total.saturating_sub(self.seen);
        self.seen = total;
        let Some(dropped) = self.drops.record(new) else { return };
        warn!(
            dropped,
            "more is decided than is written to the decision log: is what reads it slow, or gone? \
             Else log a sample, or denials alone"
        );
    }
}
