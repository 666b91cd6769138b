//! How long a ledger keeps log entries and perishable history entries, and how often expired ones
//! are removed.

use std::time::Duration;

use super::Ledger;

/// How often expired entries are removed, unless the retention is very short.
const MAX_SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// The lower bound of that interval.
const MIN_SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// After how many sweeps the last expired entry is gone: in a file, pairs first have to be flushed
/// from the log to their table.
const SWEEPS_UNTIL_REMOVED: u32 = 3;

/// For how long a ledger keeps what it need not keep forever.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The age limit of log entries, which contain user ids.
    pub log: Duration,
    /// The maximum number of log entries, whatever their age.
    pub log_entries: u64,
    /// The age limit of inbound and failure events in histories.
    pub history: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            log: Duration::from_hours(24),
            log_entries: 1_000_000,
            history: Duration::from_hours(90 * 24),
        }
    }
}

impl Retention {
    /// The interval between two sweeps of expired entries.
    #[must_use]
    pub fn sweep_interval(&self) -> Duration {
        MAX_SWEEP_INTERVAL.min(self.log / 4).max(MIN_SWEEP_INTERVAL)
    }

    /// The age at which a log entry is certainly gone: its retention plus the time for sweeping.
    #[must_use]
    pub fn max_log_age(&self) -> Duration {
        self.log.saturating_add(self.sweep_interval().saturating_mul(SWEEPS_UNTIL_REMOVED))
    }
}

impl Ledger {
    /// The age at which a log entry is certainly gone, if this process enforces the retention;
    /// otherwise `None`.
    #[must_use]
    pub fn max_log_age(&self) -> Option<Duration> {
        let retention = match self {
            Self::Embedded(ledger) => Some(ledger.retention()),
            Self::Redis(ledger) => ledger.retention(),
        };
        retention.map(|retention| retention.max_log_age())
    }
}
