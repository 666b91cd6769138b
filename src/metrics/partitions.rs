//! Gauges of the partitions of a ledger. Those of a partition that is not followed any more are dropped.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{GaugeVec, IntGaugeVec, Registry};

use super::TableGauges;
use super::registration::{float_gauges, gauges};

/// The gauges of one partition's table.
#[derive(Clone, Copy, Debug)]
pub struct PartitionGauges {
    /// The partition's number.
    pub number: u32,
    /// How long ago it was last proven to be current; before that, the time since the start.
    pub staleness: Duration,
    /// The last applied revision.
    pub revision: u64,
    /// Pairs in its table.
    pub pairs: usize,
    /// Whether it is valid, and proven within the longest staleness.
    pub is_live: bool,
}

/// Gauges with the number of a partition as their label. All but the revision are of ledgers in several alone.
#[derive(Debug)]
pub(super) struct PartitionMetrics {
    revision: IntGaugeVec,
    staleness: GaugeVec,
    pairs: IntGaugeVec,
    live: IntGaugeVec,
    /// The partitions that have gauges.
    shown: Mutex<BTreeSet<u32>>,
}

impl PartitionMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        const LABELS: &[&str] = &["partition"];
        Ok(Self {
            revision: gauges(
                r,
                "consent_applied_revision",
                "The last revision of the ledger that the table holds.",
                LABELS,
            )?,
            staleness: float_gauges(
                r,
                "consent_partition_staleness_seconds",
                "How long ago a partition was last proven to be held whole, in seconds, where the ledger \
                 has several; before the first proof, the time since the start.",
                LABELS,
            )?,
            pairs: gauges(
                r,
                "consent_partition_pairs",
                "Pairs of a partition in the table, where the ledger has several.",
                LABELS,
            )?,
            live: gauges(
                r,
                "consent_partition_live",
                "1 where a partition is held, and proven within --max-staleness; 0 where checks of its pairs \
                 are denied or have no answer. Where the ledger has several.",
                LABELS,
            )?,
            shown: Mutex::default(),
        })
    }

    /// Sets the gauges of the partitions that are followed now.
    pub(super) fn set(&self, table: &TableGauges) {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let now: BTreeSet<u32> = table.partitions.iter().map(|one| one.number).collect();
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in shown.difference(&now) {
            let number = gone.to_string();
            let label: &[&str] = &[&number];
            // A ledger that is not divided has the first of them alone.
            let _ = self.revision.remove_label_values(label);
            let _ = self.staleness.remove_label_values(label);
            let _ = self.pairs.remove_label_values(label);
            let _ = self.live.remove_label_values(label);
        }
        *shown = now;
        for one in &table.partitions {
            let number = one.number.to_string();
            let label: &[&str] = &[&number];
            let revision = i64::try_from(one.revision).unwrap_or(i64::MAX);
            self.revision.with_label_values(label).set(revision);
            if table.is_divided {
                self.staleness.with_label_values(label).set(one.staleness.as_secs_f64());
                self.pairs.with_label_values(label).set(whole(one.pairs));
                self.live.with_label_values(label).set(one.is_live.into());
            }
        }
    }
}
