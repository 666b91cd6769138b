//! Instruments of TLS on the listeners.

use prometheus::{IntCounterVec, IntGauge, Registry};

use super::{int_gauge, labelled_counters};
use consentd_core::time::Timestamp;

/// The outcomes of reading certificate and key again.
const TLS_RELOAD_OUTCOMES: [&str; 2] = ["done", "failed"];

/// When the certificate expires, and how often it was read again.
#[derive(Debug)]
pub(crate) struct TlsMetrics {
    expiry: IntGauge,
    reloads: IntCounterVec,
    unusable: IntGauge,
}

impl TlsMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            expiry: int_gauge(
                r,
                "consent_tls_certificate_expiry_seconds",
                "When the listeners' certificate expires, in seconds since 1970; 0 without TLS.",
            )?,
            reloads: labelled_counters(
                r,
                "consent_tls_reloads_total",
                "How often the listeners' certificate and key were read again and differed, or could \
                 not be used; of a failure that lasts, the first.",
                "outcome",
                &TLS_RELOAD_OUTCOMES,
            )?,
            unusable: int_gauge(
                r,
                "consent_tls_files_unusable",
                "1 while the files of the certificate, its key or the clients' CAs cannot be used, so that \
                 the former ones stay in use; else 0.",
            )?,
        })
    }

    /// Sets when the certificate expires.
    pub(crate) fn expires(&self, at: Timestamp) {
        self.expiry.set(at.as_millis() / 1_000);
    }

    /// Sets whether the files cannot be used.
    pub(crate) fn unusable(&self, unusable: bool) {
        self.unusable.set(i64::from(unusable));
    }

    /// Counts a reload, by one of [`TLS_RELOAD_OUTCOMES`].
    pub(crate) fn reloaded(&self, outcome: &'static str) {
        self.reloads.with_label_values(&[outcome]).inc();
    }
}
