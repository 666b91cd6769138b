//! Erasing: what a ledger does beyond writing a tombstone.
//!
//! An erase is an append of a record without history: see [`Update::erases`]. The ledger takes the
//! history's entries away, and then the statements that no other history refers to. Its entry in
//! the log names nobody, and entries before it leave with the log's retention.

use std::time::Duration;

use super::{Ledger, LedgerError, Retention, Update};
use consentd_core::id::Key;

/// How often what has outlived its retention is removed, where that is not short.
const SWEEP_EVERY: Duration = Duration::from_mins(1);

/// How often at the most.
const MIN_SWEEP: Duration = Duration::from_millis(100);

/// How many sweeps may pass before the last of what is due has gone: a file's pairs first have to
/// move to where they stay.
const LATE_SWEEPS: u32 = 3;

impl Update {
    /// Whether nothing of the pair's history is to be left: what there is of it is taken away.
    pub(super) fn erases(&self) -> bool {
        self.history.is_empty() && self.record.is_without_history()
    }
}

impl Retention {
    /// How often what has outlived it is removed.
    #[must_use]
    pub fn sweep_interval(&self) -> Duration {
        SWEEP_EVERY.min(self.log / 4).max(MIN_SWEEP)
    }

    /// How long after it was written the last of the log's entries has gone.
    #[must_use]
    pub fn max_log_age(&self) -> Duration {
        self.log.saturating_add(self.sweep_interval().saturating_mul(LATE_SWEEPS))
    }
}

impl Ledger {
    /// Takes away what is left of the histories of pairs that were erased. A file has done so with
    /// the erase itself; in Redis they may be long, and go part by part behind it. Where this is
    /// not done, for its process ended, those who remove what has outlived its time do it.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be written to.
    pub async fn purge(&self, keys: &[Key]) -> Result<(), LedgerError> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Redis(ledger) => ledger.purge(keys).await,
        }
    }

    /// How long after it was written the last of the log's entries has gone, as far as this
    /// process sees to it; none where it does not.
    #[must_use]
    pub fn max_log_age(&self) -> Option<Duration> {
        let retention = match self {
            Self::Embedded(ledger) => Some(ledger.retention()),
            Self::Redis(ledger) => ledger.retention(),
        };
        retention.map(|retention| retention.max_log_age())
    }
}
