//! What is counted of those who watch changes.

use prometheus::{IntCounterVec, IntGauge, Registry};

use super::{Metrics, closed, int_gauge};

/// Why a watcher may have been told to ask again about everything.
pub const RESETS: [&str; 3] = ["slow", "rebuilt", "mended"];

/// The instruments.
#[derive(Debug)]
pub(super) struct Watching {
    watchers: IntGauge,
    resets: IntCounterVec,
}

impl Watching {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            watchers: int_gauge(r, "consent_watchers", "Streams of WatchConsents that are open.")?,
            resets: closed(
                r,
                "consent_watch_resets_total",
                "Resets sent to watchers, by cause: slow (it did not read what changed in time), \
                 rebuilt (the whole table was read anew) or mended (pairs were, of users whose \
                 ids are not known).",
                "cause",
                &RESETS,
            )?,
        })
    }
}

impl Metrics {
    /// Counts somebody who begins to watch.
    pub fn watcher_came(&self) {
        self.watching.watchers.inc();
    }

    /// Counts somebody who watches no more.
    pub fn watcher_left(&self) {
        self.watching.watchers.dec();
    }

    /// Counts a watcher that was told to ask again about everything.
    pub fn watch_reset(&self, cause: &'static str) {
        self.watching.resets.with_label_values(&[cause]).inc();
    }
}
