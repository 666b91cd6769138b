//! Receipts of appends: which branch of the log a change is on, for ledgers whose log can fork.

use super::{Appended, Ledger, Version};

/// The outcome of one change, and its branch of the log.
#[derive(Clone, Debug)]
pub struct AppendReceipt {
    /// The outcome.
    pub outcome: Appended,
    /// The number of the partition that the change's pair is in.
    pub partition: u32,
    /// The head prefix of the pair's [`Version`] if the outcome is [`Appended::Committed`]; 0 in a
    /// ledger whose log cannot fork.
    pub head_prefix: u64,
    /// Whether an earlier attempt to send this change got no response and may have been written, on
    /// a branch that a failover has abandoned. The outcome describes the last attempt only.
    pub maybe_written: bool,
}

impl AppendReceipt {
    /// The receipt for a log that cannot fork, or for a change that was not written.
    pub(super) fn unforked(outcome: Appended) -> Self {
        Self { outcome, partition: 0, head_prefix: 0, maybe_written: false }
    }

    /// The pair's version after a committed change.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        match self.outcome {
            Appended::Committed(revision) => {
                Some(Version { revision, head_prefix: self.head_prefix })
            }
            Appended::Conflict(_) | Appended::Failed(_) => None,
        }
    }
}

impl Ledger {
    /// Drops the connection that appends use, if there is one. The next append resolves the
    /// ledger's address again and reconnects.
    pub fn reconnect_appends(&self) {
        match self {
            Self::Embedded(_) => {}
            Self::Redis(ledger) => ledger.reconnect_appends(),
        }
    }
}
