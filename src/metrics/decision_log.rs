//! Instruments of the decision log.

use prometheus::{IntCounter, IntCounterVec, Registry};

use super::{counter, labelled_counters};

/// The causes for which a decision is dropped.
pub const DECISION_DROP_CAUSES: [&str; 2] = ["queue", "file"];

/// Instruments of the decision log.
#[derive(Debug)]
pub(super) struct DecisionLogMetrics {
    written: IntCounter,
    dropped: IntCounterVec,
    /// The counter of the cause `queue`, so that a check does not look it up by its label.
    by_queue: IntCounter,
}

impl DecisionLogMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        let dropped = labelled_counters(
            r,
            "consent_decision_log_dropped_total",
            "Decisions that were to be logged and were not, by why: the queue was full, or the \
             file did not take them.",
            "cause",
            &DECISION_DROP_CAUSES,
        )?;
        Ok(Self {
            written: counter(
                r,
                "consent_decision_log_written_total",
                "Decisions that were written to the log of decisions.",
            )?,
            by_queue: dropped.with_label_values(&["queue"]),
            dropped,
        })
    }
}

impl super::Metrics {
    /// Counts decisions that were written to the log.
    pub fn decisions_written(&self, decisions: usize) {
        self.decision_log.written.inc_by(u64::try_from(decisions).unwrap_or(u64::MAX));
    }

    /// Counts decisions that were dropped, by one of [`DECISION_DROP_CAUSES`].
    pub fn decisions_dropped(&self, cause: &str, decisions: usize) {
        let decisions = u64::try_from(decisions).unwrap_or(u64::MAX);
        if cause == "queue" {
            self.decision_log.by_queue.inc_by(decisions);
        } else {
            self.decision_log.dropped.with_label_values(&[cause]).inc_by(decisions);
        }
    }

    /// The number of decisions that were dropped because the queue was full.
    #[must_use]
    pub fn decisions_dropped_by_queue(&self) -> u64 {
        self.decision_log.by_queue.get()
    }
}
