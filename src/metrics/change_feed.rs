//! Instruments of `WatchConsents`.

use prometheus::{IntCounterVec, IntGauge, Registry};

use super::{Metrics, int_gauge, labelled_counters};

/// The causes of a reset, after which a watcher must check everything again.
pub const WATCH_RESET_CAUSES: [&str; 4] = ["slow", "rebuilt", "mended", "businesses"];

/// Instruments of `WatchConsents`.
#[derive(Debug)]
pub(super) struct ChangeFeedMetrics {
    watchers: IntGauge,
    resets: IntCounterVec,
}

impl ChangeFeedMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            watchers: int_gauge(r, "consent_watchers", "Streams of WatchConsents that are open.")?,
            resets: labelled_counters(
                r,
                "consent_watch_resets_total",
                "Resets sent to watchers, by cause: slow (it did not read what changed in time), \
                 rebuilt (the whole table was loaded again), mended (pairs were corrected whose \
                 ids are not known) or businesses (the table holds others than before).",
                "cause",
                &WATCH_RESET_CAUSES,
            )?,
        })
    }
}

impl Metrics {
    /// Counts a stream that was opened.
    pub fn watcher_opened(&self) {
        self.change_feed.watchers.inc();
    }

    /// Counts a stream that was closed.
    pub fn watcher_closed(&self) {
        self.change_feed.watchers.dec();
    }

    /// Counts a reset, by one of [`WATCH_RESET_CAUSES`].
    pub fn watch_reset(&self, cause: &'static str) {
        self.change_feed.resets.with_label_values(&[cause]).inc();
    }
}
