//! Instruments of the ledger's file.

use prometheus::{IntGauge, Registry};

use super::int_gauge;

/// The size and the free space of the ledger's file; 0 if the ledger is in Redis.
#[derive(Debug)]
pub(super) struct LedgerFileMetrics {
    bytes: IntGauge,
    free: IntGauge,
}

impl LedgerFileMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            bytes: int_gauge(
                r,
                "consent_ledger_file_bytes",
                "The size of the ledger's file, as last measured; 0 where there is none.",
            )?,
            free: int_gauge(
                r,
                "consent_ledger_file_free_bytes",
                "The part of the ledger's file that holds nothing, and that compacting would free.",
            )?,
        })
    }
}

impl super::Metrics {
    /// Sets the size of the ledger's file and its free space, both in bytes.
    pub fn ledger_file(&self, bytes: u64, free: u64) {
        let gauge = |value| i64::try_from(value).unwrap_or(i64::MAX);
        self.ledger_file.bytes.set(gauge(bytes));
        self.ledger_file.free.set(gauge(free));
    }
}
