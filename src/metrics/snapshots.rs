//! Instruments of the table's snapshots.

use std::time::Duration;

use prometheus::{Gauge, IntCounterVec, IntGauge, Registry};

use super::{gauge, int_gauge, labelled_counters};

/// The outcomes of saving the table.
pub const SNAPSHOT_OUTCOMES: [&str; 5] = ["saved", "not_live", "remembering", "in_use", "failed"];
/// The causes for which a saved table is refused.
pub const SNAPSHOT_REFUSAL_CAUSES: [&str; 5] =
    ["unreadable", "damaged", "foreign", "trimmed", "businesses"];

/// Instruments of the table's snapshots.
#[derive(Debug)]
pub(super) struct SnapshotMetrics {
    savings: IntCounterVec,
    refused: IntCounterVec,
    timestamp: Gauge,
    bytes: IntGauge,
    seconds: Gauge,
}

impl SnapshotMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            savings: labelled_counters(
                r,
                "consent_snapshots_total",
                "Attempts to save the table, by what came of them.",
                "outcome",
                &SNAPSHOT_OUTCOMES,
            )?,
            refused: labelled_counters(
                r,
                "consent_snapshots_refused_total",
                "Saved tables that were not used at the start, by why.",
                "cause",
                &SNAPSHOT_REFUSAL_CAUSES,
            )?,
            timestamp: gauge(
                r,
                "consent_snapshot_saved_timestamp_seconds",
                "When the table was last saved, in seconds since 1970; 0 where it was not.",
            )?,
            bytes: int_gauge(r, "consent_snapshot_bytes", "The size of the last saved table.")?,
            seconds: gauge(
                r,
                "consent_snapshot_seconds",
                "How long it took to save the table, the last time.",
            )?,
        })
    }
}

impl super::Metrics {
    /// Records a saved snapshot: when, as Unix time, its size in bytes, and how long it took.
    pub fn snapshot_saved(&self, at: Duration, bytes: u64, took: Duration) {
        self.snapshots.timestamp.set(at.as_secs_f64());
        self.snapshots.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.snapshots.seconds.set(took.as_secs_f64());
        self.snapshot("saved");
    }

    /// Counts an attempt to save the table, by one of [`SNAPSHOT_OUTCOMES`].
    pub fn snapshot(&self, outcome: &str) {
        self.snapshots.savings.with_label_values(&[outcome]).inc();
    }

    /// Counts a refused snapshot, by one of [`SNAPSHOT_REFUSAL_CAUSES`].
    pub fn snapshot_refused(&self, cause: &str) {
        self.snapshots.refused.with_label_values(&[cause]).inc();
    }
}
