//! Why a ledger did not do what it was asked to, and why a pair's record is not known.

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
    /// Not a record at all.
    #[error("the pair's record in the ledger is damaged")]
    Damaged,
    /// The key in Redis that holds the pair was deleted or evicted: what the pair's record was, or
    /// whether there was one, is not known.
    #[error(
        "the pair's bucket in Redis, {{consent:0}}:b:{bucket}, is missing or incomplete: it was \
         deleted or evicted. Its pairs are denied, and nothing is recorded of them, until \
         `consentd ledger repair` has rebuilt it or a backup was restored; maxmemory-policy must \
         be noeviction"
    )]
    Lost {
        /// The bucket's number.
        bucket: u32,
    },
}

/// Why a ledger did not do what it was asked to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LedgerError {
    /// It takes no more for now: too much is waiting to be written.
    #[error("the ledger has too much to write already; try again")]
    Busy,
    /// It is closed, or being closed.
    #[error("the ledger is closed")]
    Closed,
    /// Its storage failed. What was being written may or may not be durable.
    #[error("the ledger's storage failed: {0}")]
    Storage(Arc<dyn std::error::Error + Send + Sync>),
    /// A part of it is damaged.
    #[error("the ledger is damaged: {0}")]
    Damaged(&'static str),
    /// It cannot be reached, or did not answer in time. What was being written may or may not be
    /// durable.
    #[error("the ledger cannot be reached: {0}")]
    Unreachable(Arc<dyn std::error::Error + Send + Sync>),
    /// It answers, and does not do it: nothing was written.
    #[error("the ledger rejected the request: {0}")]
    Refused(Arc<dyn std::error::Error + Send + Sync>),
    /// It was written, and fewer replicas than asked for have confirmed it in time: a failover may
    /// lose it.
    #[error("written, but confirmed by {confirmed} of {asked} replicas in time: try again")]
    Unconfirmed {
        /// How many were asked for.
        asked: u32,
        /// How many confirmed.
        confirmed: u32,
    },
    /// It was written, and the append-only file that has it was not synced in time: a crash of its
    /// machine may lose it.
    #[error(
        "written, but Redis' append-only file was not synced within {0:?} (appendfsync): try again"
    )]
    Unsynced(Duration),
}

impl LedgerError {
    /// Whether there is no ledger where one is looked for.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(RedisRejection::of(self), Some(RedisRejection::Missing))
    }

    /// The same, where what was being written may be durable.
    pub(super) fn unsure(self) -> Self {
        match self {
            Self::Refused(why) => Self::Unreachable(why),
            error => error,
        }
    }

    /// Whether a key that the ledger needs was deleted or evicted.
    #[must_use]
    pub fn is_lost_key(&self) -> bool {
        matches!(RedisRejection::of(self), Some(RedisRejection::LostKey { .. }))
    }

    /// Whether the key that statements are kept in was deleted or evicted, so that what brings no
    /// statement is recorded all the same.
    #[must_use]
    pub fn lacks_statements(&self) -> bool {
        matches!(RedisRejection::of(self), Some(RedisRejection::LostKey { key }) if redis::holds_statements(key))
    }

    /// Whether it takes an operator to mend this, as a wrong password does: it is no use to wait.
    #[must_use]
    pub fn needs_an_operator(&self) -> bool {
        match self {
            Self::Refused(why) | Self::Unreachable(why) => redis::needs_an_operator(&**why),
            _ => false,
        }
    }
}
