//! Gauges of the memory budget: bytes and calls that are in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::{IntGaugeVec, Registry};

use super::{Metrics, gauges};

/// The number of pools of a budget: those that count bytes come first, then two that count calls.
pub const POOL_COUNT: usize = 7;

/// The names of the pools that count bytes.
pub const BYTE_POOLS: [&str; 5] = ["checks", "records", "webhooks", "answers", "probes"];

/// The names of the pools that count calls.
pub const CALL_POOLS: [&str; 2] = ["checks", "records"];

/// Gauges of the memory budget.
#[derive(Debug)]
pub(super) struct BudgetMetrics {
    held: Arc<[AtomicUsize; POOL_COUNT]>,
    bytes: IntGaugeVec,
    calls: IntGaugeVec,
}

impl BudgetMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        let bytes = gauges(
            r,
            "consent_request_bytes",
            "Bytes charged for what is not answered yet: open calls, bodies as they arrive, \
             questions that wait, answers that were not read.",
            &["pool"],
        )?;
        let calls = gauges(
            r,
            "consent_in_flight",
            "Checks and recordings that arrived whole and are being answered, or wait for a \
             revision; those that are answered at once are not counted.",
            &["pool"],
        )?;
        Ok(Self { held: Arc::default(), bytes, calls })
    }

    /// Sets the gauges to the current counts.
    pub(super) fn refresh(&self) {
        let gauges = BYTE_POOLS.iter().map(|pool| (&self.bytes, pool));
        let gauges = gauges.chain(CALL_POOLS.iter().map(|pool| (&self.calls, pool)));
        for ((gauge, pool), held) in gauges.zip(self.held.iter()) {
            let held = i64::try_from(held.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
            gauge.with_label_values(&[pool]).set(held);
        }
    }
}

impl Metrics {
    /// The counts of the budget's pools, which the budget itself updates.
    #[must_use]
    pub fn held(&self) -> Arc<[AtomicUsize; POOL_COUNT]> {
        Arc::clone(&self.budget.held)
    }
}
