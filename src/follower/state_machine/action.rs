//! What the state machine decides: actions on the table, and reads of the ledger.

use std::sync::Arc;

use super::{ResyncCause, WarmStartRefusal};
use consentd_core::businesses::Businesses;
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;
use consentd_ledger::{Bucket, Identity, LogBody};
use consentd_os::clock::Moment;

/// An action. The actions of one event are performed in order.
#[derive(Debug)]
pub enum Action {
    /// Empty the table, and load this ledger into it. What the table denied is retained, as lost at
    /// this time of the ledger's clock, unless an operator has accepted the losses.
    ResetTable {
        /// The ledger.
        identity: Arc<Identity>,
        /// Its clock.
        clock: Timestamp,
        /// Whether an operator has accepted the losses of the ledger.
        forget: bool,
    },
    /// Restore the snapshot of the table, which is this ledger's.
    RestoreSnapshot {
        /// The ledger.
        identity: Arc<Identity>,
        /// Its clock.
        clock: Timestamp,
    },
    /// Drop the snapshot of the table: it cannot be used.
    RejectWarmStart(WarmStartRefusal),
    /// Write this pair's record. The restored table may hold it, or a later one, already.
    Replay(Box<LogBody>),
    /// Write this bucket's pairs.
    LoadBucket(Bucket),
    /// Publish that the table holds these businesses, and answers for them alone.
    Hold(Businesses),
    /// Remove the pairs of businesses that are not held any more.
    DropOthers,
    /// Write this pair's record. Its business is being added, and not held yet.
    ApplyAdded(Box<LogBody>),
    /// Remove this bucket's pairs: it is read again.
    UnloadBucket(u32),
    /// Write this pair's record.
    Apply(Box<LogBody>),
    /// Match this pair's ids with the denials of a previous ledger. Its record comes with its
    /// bucket.
    NoteIds(Box<LogBody>),
    /// Compare the table with this bucket, and correct the table.
    CompareBucket(Bucket),
    /// Deny the pairs of this bucket, which the ledger has lost.
    DenyBucket(u32),
    /// Publish that everything up to this revision, which was recorded at this time, is in the
    /// table.
    AdvanceRevision(Revision, Timestamp),
    /// Publish that the table has everything that the ledger had at this moment, and that the
    /// ledger's clock then read this.
    SetProof(Moment, Timestamp),
    /// Make the table valid: it holds a state that the ledger had.
    Validate,
    /// Make the table invalid.
    Invalidate(ResyncCause),
    /// Read the log behind the revision that is applied, now.
    Poll,
    /// Read this bucket.
    ReadBucket(u32),
    /// Read this bucket, for the businesses that are being added.
    ReadAdded(u32),
    /// Count a gap between announcements that the log has closed.
    GapRepaired,
}
