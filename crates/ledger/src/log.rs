//! The log: the ledger's ordered list of changes, its pages, its announcements, and positions in it.

use std::sync::Arc;

use super::{Identity, UnreadableRecord};
use consentd_core::id::Key;
use consentd_core::record::{Record, Revision};
use consentd_core::time::Timestamp;

/// The most entries of one page of the log.
pub const MAX_PAGE: usize = 4_096;

/// How many announcements a receiver may lag behind before it loses the oldest.
pub(super) const MAX_ANNOUNCEMENTS: usize = 8_192;

/// A ledger's id: random, drawn when the ledger is created.
pub type Epoch = [u8; 16];

/// The hash over the log up to a revision.
pub type LogHead = [u8; 20];

/// A position in a ledger's log: its end, or how far a reader has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Position {
    /// The ledger's id.
    pub epoch: Epoch,
    /// The revision of the last change.
    pub revision: Revision,
    /// The log's hash after that change.
    pub head: LogHead,
}

/// The first 8 bytes of a head, big-endian: see [`Version::head_prefix`](super::Version).
pub(super) fn head_prefix_of(head: &LogHead) -> u64 {
    head.first_chunk().map_or(0, |prefix| u64::from_be_bytes(*prefix))
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// Its revision.
    pub revision: Revision,
    /// The log's hash before it.
    pub previous: LogHead,
    /// The log's hash after it.
    pub head: LogHead,
    /// The change.
    pub body: Result<LogBody, UndecodedEntry>,
}

/// The change that a log entry describes.
#[derive(Clone, Debug, PartialEq)]
pub struct LogBody {
    /// The pair.
    pub key: Key,
    /// The user id; empty after an erasure.
    pub user_id: String,
    /// The business id; empty after an erasure.
    pub business_id: String,
    /// The pair's complete new record.
    pub record: Result<Record, UnreadableRecord>,
    /// When it was recorded, by the ledger's clock.
    pub record_time: Timestamp,
}

/// Why a log entry was not decoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UndecodedEntry {
    /// It cannot be decoded. Nothing after it can be trusted.
    #[error("an entry of the ledger's log cannot be read")]
    Unreadable,
    /// It is about the pair with this key, whose business is not [held](super::Partition::hold).
    #[error("an entry of the ledger's log is of a business that is not held")]
    Skipped(Key),
}

/// Entries that were just appended, broadcast to receivers. Delivery is not guaranteed.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// The ledger's id.
    pub epoch: Epoch,
    /// Consecutive entries, in order.
    pub entries: Arc<[LogEntry]>,
}

/// What a receiver of announcements gets.
#[derive(Clone, Debug)]
pub enum Notification {
    /// Something was appended.
    Announcement(Announcement),
    /// Announcements may have been lost.
    Missed,
    /// The subscription was established. Earlier announcements may have been lost.
    Subscribed,
    /// The subscription ended: no announcements arrive until the next `Subscribed`.
    Unsubscribed {
        /// Whether the ledger denies the subscription, as opposed to a failure.
        refused: bool,
        /// The cause.
        why: Arc<dyn std::error::Error + Send + Sync>,
    },
}

/// A page of the log, with the proof of where the log ended when the page was requested.
#[derive(Debug)]
pub struct Page {
    /// The ledger that it was read from.
    pub identity: Arc<Identity>,
    /// The end of the log.
    pub end: Position,
    /// How often an operator has accepted the ledger as it is, in spite of the denials that
    /// followers retain: see `consentd ledger accept`.
    pub accepted: u64,
    /// The ledger's clock.
    pub clock: Timestamp,
    /// The entries after the requested revision, in order, at most [`MAX_PAGE`].
    pub tail: Tail,
}

/// The requested part of the log.
#[derive(Debug, PartialEq)]
pub enum Tail {
    /// Consecutive entries, starting right after the requested revision.
    Entries(Vec<LogEntry>),
    /// The next entry was trimmed, or the revision is beyond the log's end.
    Trimmed,
}
