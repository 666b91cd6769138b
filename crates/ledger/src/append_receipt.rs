//! What becomes of an append in a log that can fork.

use super::{Appended, Change, Ledger, LedgerError, Version};

/// What came of one change, and on which branch of the log.
#[derive(Clone, Debug)]
pub struct AppendReceipt {
    /// What came of it.
    pub outcome: Appended,
    /// The head prefix of the pair's new [`Version`] if the outcome is [`Appended::Committed`]. 0
    /// where the ledger's log cannot fork.
    pub head_prefix: u64,
    /// Whether an earlier attempt to send this change was not answered and may have written it, on a
    /// branch of the log that a failover has left. The outcome is about the last attempt alone.
    pub maybe_written: bool,
}

impl AppendReceipt {
    /// What came of a change on a log that cannot fork, or where nothing was written.
    pub(super) fn unforked(outcome: Appended) -> Self {
        Self { outcome, head_prefix: 0, maybe_written: false }
    }

    /// The pair's version, where the change is written, or was only compared and found.
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
    /// Appends as [`append`](Self::append) does, and tells on which branch of the log each change is, so that a follower that has gone
    /// past it can tell whether it went past this one.
    ///
    /// # Errors
    ///
    /// As for [`append`](Self::append).
    pub async fn append_with_receipts(
        &self,
        changes: Vec<Change>,
    ) -> Result<Vec<AppendReceipt>, LedgerError> {
        match self {
            Self::Embedded(ledger) => {
                let appended = ledger.append(changes).await?;
                Ok(appended.into_iter().map(AppendReceipt::unforked).collect())
            }
            Self::Redis(ledger) => ledger.append(changes).await,
        }
    }

    /// Drops the connection that appends go over, where there is one: the next append connects
    /// anew, to wherever the ledger's name leads by then.
    pub fn reconnect_appends(&self) {
        match self {
            Self::Embedded(_) => {}
            Self::Redis(ledger) => ledger.reconnect_appends(),
        }
    }
}

impl LedgerError {
    /// Whether a change that failed so may have been written all the same.
    #[must_use]
    pub fn may_be_written(&self) -> bool {
        match self {
            Self::Closed
            | Self::Storage(_)
            | Self::Unreachable(_)
            | Self::Unconfirmed { .. }
            | Self::Unsynced(_) => true,
            Self::Busy | Self::Damaged(_) | Self::Refused(_) => false,
        }
    }
}
