//! What a recorder reads and writes: pairs' records, versions, changes and their outcomes.

use super::{LedgerError, Position, UnreadableRecord};
use consentd_core::id::Key;
use consentd_core::record::{HistoryEntry, Record, Revision};
use consentd_core::time::Timestamp;

/// The most changes of one append.
pub const MAX_APPEND: usize = 1_024;

/// Identifies one state of a pair's record, for compare-and-set.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Version {
    /// The revision that wrote the record; 0 if the pair has no record.
    pub revision: Revision,
    /// The first 8 bytes of the log's hash after that revision, big-endian. It tells the branches of
    /// a forked log apart, which use the same revisions for different changes. 0 for a pair without
    /// a record, and in a ledger whose log cannot fork.
    pub head_prefix: u64,
}

/// A pair's record and its version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredRecord {
    /// The version of the record.
    pub version: Version,
    /// The record; an empty one for a pair that has none.
    pub record: Record,
}

/// The result of reading pairs for a recorder.
#[derive(Debug)]
pub struct Read {
    /// The ledger's clock.
    pub clock: Timestamp,
    /// The pairs, in the order of the request.
    pub pairs: Vec<Result<StoredRecord, UnreadableRecord>>,
}

/// A change of one pair.
#[derive(Clone, Debug)]
pub struct Change {
    /// The pair.
    pub key: Key,
    /// The version that this change is based on.
    pub base: Version,
    /// The update. `None` only compares: the response will rest on the record as it is, so the
    /// append ensures that it is still that version, as durably as if it were written now.
    pub update: Option<Update>,
}

/// What is written of one pair.
#[derive(Clone, Debug)]
pub struct Update {
    /// The user id, for the log.
    pub user_id: String,
    /// The business id, for the log.
    pub business_id: String,
    /// The complete new record, with the length and chain of the history *before* `history` is
    /// added. The ledger extends both.
    pub record: Record,
    /// The entries to add to the history, oldest first.
    pub history: Vec<HistoryEntry>,
    /// When it is recorded, by the ledger's clock.
    pub record_time: Timestamp,
}

impl Update {
    /// Whether this is an erasure, which deletes the pair's entire history.
    pub(super) fn erases(&self) -> bool {
        self.history.is_empty() && self.record.is_without_history()
    }
}

/// The outcome of one change.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "each is consumed at once by the caller")]
pub enum Appended {
    /// The change is durable at this revision. Without an update, this is the base's revision.
    Committed(Revision),
    /// The compare-and-set lost against another change. This is the pair's current record.
    Conflict(Result<StoredRecord, UnreadableRecord>),
    /// This change failed, independently of the others: a full ledger still accepts denials.
    Failed(LedgerError),
}

/// The pairs of one bucket, as of `label`.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// The bucket's number: see [`bucket_of`].
    pub number: u32,
    /// The position at which the pairs were read.
    pub label: Position,
    /// The pairs.
    pub pairs: Vec<(Key, Result<Record, UnreadableRecord>)>,
}

/// The number of the bucket that a pair belongs to, out of `buckets`. Keys are hashes, so equal
/// ranges of keys hold about equally many pairs.
#[must_use]
pub fn bucket_of(key: Key, buckets: u32) -> u32 {
    let [a, b, c, d, ..] = key.to_bytes();
    let prefix = u64::from(u32::from_be_bytes([a, b, c, d]));
    u32::try_from((prefix * u64::from(buckets)) >> 32).unwrap_or(0)
}
