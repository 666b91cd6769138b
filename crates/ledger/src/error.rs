//! The errors of ledgers, and the reasons why a pair's record is unknown.

use std::sync::Arc;
use std::time::Duration;

use super::redis::{self, RedisRejection};

/// A pair's record that this version cannot read, or must not rewrite.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnreadableRecord {
    /// Written by a newer version.
    #[error(
        "the pair's record has format {format}; this version writes format {} and would lose \
             what it does not know: upgrade it",
        consentd_core::record::FORMAT
    )]
    Newer {
        /// The record's format.
        format: u32,
    },
    /// It cannot be decoded.
    #[error("the pair's record in the ledger is damaged")]
    Damaged,
    /// The Redis key of the pair's bucket was deleted or evicted. Whether the pair had a record, and
    /// which, is unknown.
    #[error(
        "the pair's bucket in Redis, whose key ends in :b:{bucket}, is missing or incomplete: it was \
         deleted or evicted. Its pairs are denied, and nothing is recorded of them, until \
         `consentd ledger repair` has rebuilt it or a backup was restored; maxmemory-policy must \
         be noeviction"
    )]
    Lost {
        /// The bucket's number.
        bucket: u32,
    },
}

/// Why a ledger's operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// The append queue is full (back-pressure).
    #[error("the ledger has too much to write already; try again")]
    Busy,
    /// The ledger is closed, or being closed.
    #[error("the ledger is closed")]
    Closed,
    /// The storage failed. What was being written may or may not be durable.
    #[error("the ledger's storage failed: {0}")]
    Storage(Arc<dyn std::error::Error + Send + Sync>),
    /// A part of the ledger is damaged.
    #[error("the ledger is damaged: {0}")]
    Damaged(&'static str),
    /// The ledger cannot be reached, or did not answer in time. What was being written may or may
    /// not be durable.
    #[error("the ledger cannot be reached: {0}")]
    Unreachable(Arc<dyn std::error::Error + Send + Sync>),
    /// The ledger rejected the request. Nothing was written.
    #[error("the ledger rejected the request: {0}")]
    Refused(Arc<dyn std::error::Error + Send + Sync>),
    /// The change was written, but too few replicas confirmed it in time: a failover may lose it.
    #[error("written, but confirmed by {confirmed} of {asked} replicas in time: try again")]
    Unconfirmed {
        /// The number of confirmations that was required.
        asked: u32,
        /// The number of replicas that confirmed.
        confirmed: u32,
    },
    /// The change was written, but Redis did not sync its append-only file in time: a crash of that
    /// machine may lose it. The field is the timeout.
    #[error(
        "written, but Redis' append-only file was not synced within {0:?} (appendfsync): try again"
    )]
    Unsynced(Duration),
}

/// An error of one partition, of several.
#[derive(Debug, thiserror::Error)]
#[error("partition {number}: {why}")]
struct PartitionError {
    number: u32,
    why: Arc<dyn std::error::Error + Send + Sync>,
}

impl LedgerError {
    /// Whether there is no ledger at the configured place.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        let rejection = RedisRejection::of(self);
        matches!(rejection, Some(RedisRejection::Missing | RedisRejection::MissingPartition { .. }))
    }

    /// The same error for a request that may have been executed: a rejection becomes
    /// [`Unreachable`](Self::Unreachable).
    pub(super) fn unsure(self) -> Self {
        match self {
            Self::Refused(why) => Self::Unreachable(why),
            error => error,
        }
    }

    /// The same error with the number of the partition that it is of.
    pub(super) fn of_partition(self, number: u32) -> Self {
        match self {
            Self::Unreachable(why) => Self::Unreachable(Arc::new(PartitionError { number, why })),
            Self::Refused(why) => Self::Refused(Arc::new(PartitionError { number, why })),
            error => error,
        }
    }

    /// The cause as the partition reported it, if this is an error of Redis.
    pub(super) fn redis_cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        let (Self::Refused(why) | Self::Unreachable(why)) = self else { return None };
        let of_partition = why.downcast_ref::<PartitionError>().map(|error| &*error.why);
        Some(of_partition.unwrap_or(&**why))
    }

    /// Whether a change that failed with this error may have been written all the same.
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

    /// Whether a key that the ledger needs was deleted or evicted.
    #[must_use]
    pub fn is_lost_key(&self) -> bool {
        matches!(RedisRejection::of(self), Some(RedisRejection::LostKey { .. }))
    }

    /// Whether the key with the statements was deleted or evicted. Events without a statement can
    /// still be recorded.
    #[must_use]
    pub fn lacks_statements(&self) -> bool {
        matches!(RedisRejection::of(self), Some(RedisRejection::LostKey { key }) if redis::holds_statements(key))
    }

    /// Whether only an operator can fix this, such as a wrong password, so that retrying is
    /// pointless.
    #[must_use]
    pub fn needs_an_operator(&self) -> bool {
        self.redis_cause().is_some_and(redis::needs_an_operator)
    }
}
