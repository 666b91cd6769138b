//! What the machine wants done.

use std::sync::Arc;

use super::{ResyncCause, WarmStartRefusal};
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;
use consentd_ledger::{Bucket, Identity, LogBody};
use consentd_os::clock::Moment;

/// What is to be done, in order.
#[derive(Debug)]
pub enum Action {
    /// Empty the table, for this ledger, and remember what it denied as of this time by the
    /// ledger's clock; or, where an operator accepted the ledger as it is, forget that.
    ResetTable {
        /// The ledger.
        identity: Arc<Identity>,
        /// Its clock.
        clock: Timestamp,
        /// Whether what the ledger lost is to be forgotten.
        forget: bool,
    },
    /// Put the pairs of the saved table, which are this ledger's, into the table.
    RestoreSnapshot {
        /// The ledger.
        identity: Arc<Identity>,
        /// Its clock.
        clock: Timestamp,
    },
    /// The saved table is not used.
    RejectWarmStart(WarmStartRefusal),
    /// Put this pair's record into the table, which may hold it, or a later one, already.
    Replay(Box<LogBody>),
    /// Put this bucket's pairs into the table.
    LoadBucket(Bucket),
    /// Take this bucket's pairs out again: they are read anew.
    UnloadBucket(u32),
    /// Put this pair's record into the table.
    Apply(Box<LogBody>),
    /// This pair's record comes with its bucket, which is not read yet; here are its ids.
    NoteIds(Box<LogBody>),
    /// Compare the table with this bucket, and mend it.
    CompareBucket(Bucket),
    /// Deny the pairs of this bucket: the ledger has lost it.
    DenyBucket(u32),
    /// Everything up to this revision, recorded at that time, is in the table.
    AdvanceRevision(Revision, Timestamp),
    /// The table had everything at this moment; the ledger's clock said this.
    SetProof(Moment, Timestamp),
    /// The table holds a state that the ledger had.
    Validate,
    /// The table is wrong.
    Invalidate(ResyncCause),
    /// Read the log behind what is applied, now.
    Poll,
    /// Read this bucket.
    ReadBucket(u32),
    /// A gap between announcements was filled from the log.
    GapRepaired,
}
