//! What is counted of those who watch changes.

use prometheus::{IntCounterVec, IntGauge, Registry};

use super::{Metrics, int_gauge, labelled_counters};

/// Why a watcher may have been told to ask again about everything.
pub const WATCH_RESET_CAUSES: [&str; 3] = ["slow", "rebuilt", "mended"];

/// The instruments.
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
                 rebuilt (the whole table was read anew) or mended (pairs were, of users whose \
                 ids are not known).",
                "cause",
                &WATCH_RESET_CAUSES,
            )?,
        })
    }
}

impl Metrics {
    /// Counts somebody who begins to watch.
    pub fn watcher_came(&self) {
        self.change_feed.watchers.inc();
    }

    /// Counts somebody who watches no more.
    pub fn watcher_left(&self) {
        self.change_feed.watchers.dec();
    }

    /// Counts a watcher that was told to ask again about everything.
    pub fn watch_reset(&self, cause: &'static str) {
        self.change_feed.resets.with_label_values(&[cause]).inc();
    }
}
