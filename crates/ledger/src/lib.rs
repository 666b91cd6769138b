//! The durable truth: the ordered log of changes, every pair's record, and its history.
//!
//! A ledger knows nothing of the rules. A recorder reads a record, applies an event, and appends
//! the new record with the revision of the one that it started from; where another came first,
//! the ledger answers with that one, and the recorder tries again. The follower reads a snapshot,
//! then the log, and hears announcements in between, any of which may be lost.

#![warn(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]
#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests read the environment and start tasks")
)]

mod append_receipt;
mod codec;
mod copy;
mod embedded;
mod error;
mod follower_position;
mod history;
mod portable_pair;
mod redis;
mod retention_schedule;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use self::history::ChainCache;
use consentd_core::id::{Key, KeySecret};
use consentd_core::record::{HistoryEntry, Record, Revision};
use consentd_core::time::Timestamp;

pub use append_receipt::AppendReceipt;
pub use copy::{CopyError, CopyReport, NewLedger, copy};
pub use embedded::{
    Appender, CompactionReport, DiskUsage, Embedded, NewFile, OpenError, OpenedLedger,
    has_ledger_signature, leftover_files,
};
pub use error::{LedgerError, UnreadableRecord};
pub use follower_position::{FollowTimeout, FollowerCheckpoint, FollowerPosition};
pub use history::{EntryPosition, History};
pub use redis::{
    BackgroundTask, CreateError, Created, Durability, Fsync, InvalidTarget, MAX_BUCKETS, NewRedis,
    NotADurability, Options, Persistence, Plan, Redis, RedisRejection, RepairMode, Repaired,
    ServerInfo, ServerInfoError, Status, Target, TargetError, TargetOptions, UnsupportedServer,
    Warning, create, inspect_server, plan,
};
pub use verify::{Damage, Depth, Finding, MAX_FINDINGS, Progress, Report};

/// The most changes of one append.
pub const MAX_APPEND: usize = 1_024;

/// The most entries of one page of the log.
pub const MAX_PAGE: usize = 4_096;

/// How many announcements a slow listener may be behind before it loses the oldest.
pub const MAX_ANNOUNCEMENTS: usize = 8_192;

/// How long a ledger keeps what it need not keep for good.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The log's entries, which name users.
    pub log: Duration,
    /// At most so many of them, however young.
    pub log_entries: u64,
    /// Inbound and failure events in histories.
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

/// Which ledger a position belongs to: random, drawn when the ledger is created.
pub type Epoch = [u8; 16];

/// The hash over the log up to a revision.
pub type LogHead = [u8; 20];

/// Where a log ends, or a reader of it stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Position {
    /// Which ledger.
    pub epoch: Epoch,
    /// The last change.
    pub revision: Revision,
    /// The log's hash after it.
    pub head: LogHead,
}

/// What a ledger is, for as long as it is that one.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Which ledger.
    pub epoch: Epoch,
    /// The secret of the pairs' keys.
    pub secret: KeySecret,
    /// How many buckets its pairs lie in: see [`bucket_of`].
    pub buckets: u32,
}

/// The bucket that a pair lies in, of so many: keys are hashes, so equal parts of their range hold
/// about as many pairs each.
#[must_use]
pub fn bucket_of(key: Key, buckets: u32) -> u32 {
    let [a, b, c, d, ..] = key.to_bytes();
    let place = u64::from(u32::from_be_bytes([a, b, c, d]));
    u32::try_from((place * u64::from(buckets)) >> 32).unwrap_or(0)
}

/// Which record of a pair is meant.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Version {
    /// The revision that wrote it; 0 where there is none.
    pub revision: Revision,
    /// The first 8 bytes of the log's hash after it, where a ledger's log can fork: both branches
    /// give the same revisions to different changes. 0 elsewhere, and where there is no record.
    pub head_prefix: u64,
}

/// A pair's record and what wrote it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredRecord {
    /// What wrote the record.
    pub version: Version,
    /// The record; the empty one where there is none.
    pub record: Record,
}

/// What a recorder reads before it writes.
#[derive(Debug)]
pub struct Read {
    /// The ledger's clock.
    pub clock: Timestamp,
    /// The pairs, in the order asked for.
    pub pairs: Vec<Result<StoredRecord, UnreadableRecord>>,
}

/// One pair's change.
#[derive(Clone, Debug)]
pub struct Change {
    /// The pair.
    pub key: Key,
    /// The record that this change started from.
    pub base: Version,
    /// What becomes of it. Nothing, where the answer to be given rests on that record as it is:
    /// then only that it is still there is made sure, as durably as if it were written now.
    pub update: Option<Update>,
}

/// What is written of a pair.
#[derive(Clone, Debug)]
pub struct Update {
    /// The user as written, for the log.
    pub user_id: String,
    /// The business as written, for the log.
    pub business_id: String,
    /// The whole new record. Its history's length and chain are still those before `history`.
    pub record: Record,
    /// What to add to the history, oldest first.
    pub history: Vec<HistoryEntry>,
    /// When, by the ledger's clock.
    pub record_time: Timestamp,
}

/// What came of one change.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "each is looked at once, where it was asked for")]
pub enum Appended {
    /// It is durable, at this revision; where there was nothing to write, at that of the record.
    Committed(Revision),
    /// Another change came first: this is the pair now.
    Conflict(Result<StoredRecord, UnreadableRecord>),
    /// It failed, whatever came of the others: a ledger that is full still takes denials.
    Failed(LedgerError),
}

/// One change as the log tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// Its revision.
    pub revision: Revision,
    /// The log's hash before it.
    pub previous: LogHead,
    /// The log's hash after it.
    pub head: LogHead,
    /// What changed.
    pub body: Result<LogBody, UnreadableEntry>,
}

/// What a log entry says.
#[derive(Clone, Debug, PartialEq)]
pub struct LogBody {
    /// The pair.
    pub key: Key,
    /// The user as written.
    pub user_id: String,
    /// The business as written.
    pub business_id: String,
    /// The pair's whole new record.
    pub record: Result<Record, UnreadableRecord>,
    /// When it was recorded, by the ledger's clock.
    pub record_time: Timestamp,
}

/// A log entry that cannot be read: nothing after it can be trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an entry of the ledger's log cannot be read")]
pub struct UnreadableEntry;

/// Entries that were just appended, told to whoever listens. May be lost.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Which ledger.
    pub epoch: Epoch,
    /// The entries, in order, without gaps.
    pub entries: Arc<[LogEntry]>,
}

/// What a listener hears.
#[derive(Clone, Debug)]
pub enum Notification {
    /// Something was appended.
    Announcement(Announcement),
    /// Announcements may have been lost.
    Missed,
    /// From now on announcements are heard; any before may have been lost.
    Subscribed,
    /// None are heard for now.
    Unsubscribed {
        /// Whether the ledger does not let us, and not merely fails to.
        refused: bool,
        /// Why.
        why: Arc<dyn std::error::Error + Send + Sync>,
    },
}

/// A page of the log, and what it proves: this is where the log ended when it was asked for.
#[derive(Debug)]
pub struct Page {
    /// What ledger this is.
    pub identity: Arc<Identity>,
    /// Where its log ended.
    pub end: Position,
    /// How often an operator has accepted the ledger as it is, whatever a follower remembers of
    /// it: see `consentd ledger accept`.
    pub accepted: u64,
    /// The ledger's clock.
    pub clock: Timestamp,
    /// What came after the revision asked for, in order, [`MAX_PAGE`] entries at most.
    pub tail: Tail,
}

/// The part of the log that was asked for.
#[derive(Debug, PartialEq)]
pub enum Tail {
    /// These entries, without gaps.
    Entries(Vec<LogEntry>),
    /// The log no longer, or not yet, holds what comes next.
    Trimmed,
}

/// A part of all pairs, as they were at `label`.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Which part: see [`bucket_of`].
    pub number: u32,
    /// The position that the pairs were read at.
    pub label: Position,
    /// The pairs.
    pub pairs: Vec<(Key, Result<Record, UnreadableRecord>)>,
}

/// A page of all that was recorded.
#[derive(Debug)]
pub struct Events {
    /// The entries that are kept, with the place of each.
    pub entries: Vec<(EntryPosition, HistoryEntry)>,
    /// Where to go on; none where this was the last page.
    pub next: Option<Cursor>,
    /// Whether all pages are in the order of their revisions, and `after` is one: a page behind a
    /// revision then has nothing that was recorded before it. A ledger that keeps histories by
    /// pair has no such order.
    pub by_revision: bool,
}

/// Where a reading of all that was recorded goes on.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    /// What was read already. What it counts is the ledger's affair.
    pub after: u64,
    /// How far the chains had come there, where the ledger does not keep histories by pair.
    chains: ChainCache,
}

/// How well a ledger keeps what it acknowledges, as last seen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DurabilityStatus {
    /// Whether that is on a disk, or on replicas that are waited for, and not in memory alone.
    pub durable: bool,
    /// Whether an old primary that is cut off from the others could go on.
    pub unfenced: bool,
    /// How many of its keys were found to be missing, and are not back yet.
    pub lost_keys: u64,
    /// What an operator should mend, in words.
    pub warnings: Arc<[String]>,
}

impl Default for DurabilityStatus {
    fn default() -> Self {
        Self { durable: true, unfenced: false, lost_keys: 0, warnings: Arc::from([]) }
    }
}

/// A ledger.
#[derive(Clone, Debug)]
pub enum Ledger {
    /// A file that this process alone writes.
    Embedded(Embedded),
    /// Redis or Valkey, which any number of processes read and write.
    Redis(Redis),
}

impl Ledger {
    /// How many appends were written by this process that nobody was told of, for Redis does not
    /// permit it: followers find them by their polls.
    #[must_use]
    pub fn unannounced(&self) -> u64 {
        match self {
            Self::Embedded(_) => 0,
            Self::Redis(ledger) => ledger.unannounced(),
        }
    }

    /// What this ledger is, as last seen.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it was never seen, and cannot be asked.
    pub async fn identity(&self) -> Result<Arc<Identity>, LedgerError> {
        match self {
            Self::Embedded(ledger) => Ok(ledger.identity()),
            Self::Redis(ledger) => ledger.identity().await,
        }
    }

    /// Whether another server may take over from the one that acknowledged a change, without having
    /// that change. A file has no other server.
    #[must_use]
    pub fn can_fail_over(&self) -> bool {
        matches!(self, Self::Redis(_))
    }

    /// How well it keeps what it acknowledges, as last seen.
    #[must_use]
    pub fn durability(&self) -> DurabilityStatus {
        match self {
            Self::Embedded(_) => DurabilityStatus::default(),
            Self::Redis(ledger) => ledger.durability(),
        }
    }

    /// What it is, for people; without credentials.
    #[must_use]
    pub fn describe(&self) -> &str {
        match self {
            Self::Embedded(ledger) => ledger.describe(),
            Self::Redis(ledger) => ledger.describe(),
        }
    }

    /// Reads pairs' records, and the ledger's clock.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be asked.
    pub async fn read(&self, keys: Vec<Key>) -> Result<Read, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.read(keys).await,
            Self::Redis(ledger) => ledger.read(keys).await,
        }
    }

    /// Appends changes of different pairs, [`MAX_APPEND`] at most; answers, in their order, once
    /// those that did not conflict are durable.
    ///
    /// # Errors
    ///
    /// [`LedgerError`]; after [`LedgerError::Storage`] the outcome is unknown.
    pub async fn append(&self, changes: Vec<Change>) -> Result<Vec<Appended>, LedgerError> {
        let written = self.append_with_receipts(changes).await?;
        Ok(written.into_iter().map(|written| written.outcome).collect())
    }

    /// Reads a pair's history and checks its chain.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be read.
    pub async fn history(&self, key: Key) -> Result<History, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.history(key).await,
            Self::Redis(ledger) => ledger.history(key).await,
        }
    }

    /// Reads what was recorded of all pairs, each pair's in the order in which it was, a page of
    /// about [`MAX_PAGE`] entries at a time: from the default, then from each page's `next`.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be read.
    pub async fn events_after(&self, cursor: Cursor) -> Result<Events, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.events_after(cursor).await,
            Self::Redis(ledger) => ledger.events_after(cursor).await,
        }
    }

    /// Reads the pairs of one bucket, of as many as the ledger's identity says.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be read.
    pub async fn bucket(&self, number: u32) -> Result<Bucket, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.bucket(number).await,
            Self::Redis(ledger) => ledger.bucket(number).await,
        }
    }

    /// Reads the log behind `revision`, and proves where it ends.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be read.
    pub async fn read_after(&self, revision: Revision) -> Result<Page, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.read_after(revision).await,
            Self::Redis(ledger) => ledger.read_after(revision).await,
        }
    }

    /// The same for a reader whose log has this hash at `revision`. The entry at `revision` itself
    /// may be gone: that the next one continues what the reader has is seen by the hash, so an
    /// emptied log, to which a single entry was added, is read without a gap.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be read.
    pub async fn read_after_head(
        &self,
        revision: Revision,
        head: LogHead,
    ) -> Result<Page, LedgerError> {
        match self {
            // Its entries tell the hash before them.
            Self::Embedded(ledger) => ledger.read_after(revision).await,
            Self::Redis(ledger) => ledger.read_after_head(revision, head).await,
        }
    }

    /// Hears what is appended from now on. Any announcement may be lost.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Notification> {
        match self {
            Self::Embedded(ledger) => ledger.listen(),
            Self::Redis(ledger) => ledger.listen(),
        }
    }

    /// Writes out what is waiting and closes the ledger.
    pub async fn close(&self) {
        match self {
            Self::Embedded(ledger) => ledger.close().await,
            Self::Redis(ledger) => ledger.close().await,
        }
    }
}
