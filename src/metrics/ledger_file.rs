//! What is told of the ledger's file.

use prometheus::{IntGauge, Registry};

use super::int_gauge;

/// How the ledger's file is filled; 0 where the ledger is in Redis.
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
    /// Tells how large the ledger's file is, and how much of it is free.
    pub fn ledger_file(&self, bytes: u64, free: u64) {
        let gauge = |value| i64::try_from(value).unwrap_or(i64::MAX);
        self.ledger_file.bytes.set(gauge(bytes));
        self.ledger_file.free.set(gauge(free));
    }
}
