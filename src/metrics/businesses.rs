//! Instruments of a table that holds only some businesses.

use prometheus::{IntCounter, IntGauge, Registry};

use super::{Metrics, counter, int_gauge};

/// Instruments of a table that holds only some businesses.
#[derive(Debug)]
pub(super) struct BusinessMetrics {
    held: IntGauge,
    not_held: IntCounter,
}

impl BusinessMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            held: int_gauge(
                r,
                "consent_businesses",
                "Businesses that the table holds, of those of --business and --business-file; 0 if \
                 it holds every business of the ledger.",
            )?,
            not_held: counter(
                r,
                "consent_business_not_held_total",
                "Questions that were refused because the table does not hold their business.",
            )?,
        })
    }
}

impl Metrics {
    /// Counts questions about businesses that the table does not hold.
    pub fn not_held(&self, questions: u64) {
        self.businesses.not_held.inc_by(questions);
    }

    pub(super) fn set_businesses(&self, held: usize) {
        self.businesses.held.set(i64::try_from(held).unwrap_or(i64::MAX));
    }
}
