//! The durable ledger: the ordered log of changes, every pair's record, and every pair's history.
//!
//! A ledger does not know the consent rules. A recorder reads a record, applies an event, and
//! appends the new record together with the version that it is based on (optimistic concurrency).
//! If another change came first, the append returns a conflict with the current record, and the
//! recorder retries. The follower reads a snapshot, then the log; announcements only make it faster,
//! and any of them may be lost.

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
mod bucket_reader;
mod codec;
mod copy;
mod embedded;
mod encoded_update;
mod error;
mod follower_position;
mod history;
mod log;
mod nameless;
mod pair;
mod partition;
mod portable_pair;
mod redis;
mod rekeying;
mod retention_schedule;
mod stored_secret;
mod verify;

use std::sync::Arc;

use self::log::MAX_ANNOUNCEMENTS;
use consentd_core::id::{Key, KeySecret};
use consentd_core::partition::Layout;

pub use append_receipt::AppendReceipt;
pub use bucket_reader::BucketReader;
pub use copy::{CopyError, CopyReport, NewLedger, copy};
pub use embedded::{
    Appender, CompactionReport, DiskUsage, Embedded, NewFile, OpenError, OpenedLedger,
    has_ledger_signature, leftover_files,
};
pub use error::{LedgerError, UnreadableRecord};
pub use follower_position::{FollowTimeout, FollowerCheckpoint, FollowerPosition};
pub use history::{Cursor, EntryPosition, Events, History};
pub use log::{
    Announcement, Epoch, LogBody, LogEntry, LogHead, MAX_PAGE, Notification, Page, Position, Tail,
    UndecodedEntry,
};
pub use pair::{
    Appended, Bucket, Change, MAX_APPEND, Read, StoredRecord, Update, Version, bucket_of,
};
pub use partition::Partition;
pub use redis::{
    BackgroundTask, CreateError, Created, Durability, Fsync, InvalidTarget, MAX_BUCKETS, NewRedis,
    NotADurability, Options, PartitionStatus, Persistence, Plan, Redis, RedisRejection, RepairMode,
    Repaired, ServerInfo, ServerInfoError, Shape, Shard, Status, Target, TargetError,
    TargetOptions, Topology, UnsupportedServer, Warning, create, inspect_servers, plan,
};
pub use rekeying::RekeyReport;
pub use retention_schedule::Retention;
pub use verify::{Damage, Depth, Finding, MAX_FINDINGS, Progress, Report};

/// The constants of a ledger.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The ledger's id.
    pub epoch: Epoch,
    /// The secret that pairs' keys are derived with.
    pub secret: KeySecret,
    /// The version of these keys: see [`KEY_VERSION`](consentd_core::id::KEY_VERSION).
    pub key_version: u32,
    /// Whether some pairs have keys that name no business, though the keys of this version do: a copy did
    /// not find their names. [`Ledger::read`] finds them under the pair's own key, too.
    pub has_nameless: bool,
    /// How the ledger is divided into partitions.
    pub layout: Layout,
    /// The number of buckets that the pairs of each partition are divided into: see [`bucket_of`].
    pub buckets: u32,
}

/// How safe acknowledged changes are in this ledger, as of the last check.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DurabilityStatus {
    /// Whether they survive the loss of a process: on a disk, or on confirming replicas.
    pub durable: bool,
    /// Whether a primary that is partitioned from its replicas would go on accepting writes.
    pub unfenced: bool,
    /// How many of the ledger's keys are missing and not rebuilt yet.
    pub lost_keys: u64,
    /// Configuration faults for an operator to fix, in plain text.
    pub warnings: Arc<[String]>,
}

impl Default for DurabilityStatus {
    fn default() -> Self {
        Self { durable: true, unfenced: false, lost_keys: 0, warnings: Arc::from([]) }
    }
}

/// A ledger; clones share it.
#[derive(Clone, Debug)]
pub enum Ledger {
    /// A file that only this process writes.
    Embedded(Embedded),
    /// Redis or Valkey, which any number of processes read and write.
    Redis(Redis),
}

impl Ledger {
    /// The identity of the ledger's first partition, as of the last contact: all partitions have its secret and its
    /// layout.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if there was no contact yet, and the ledger does not answer.
    pub async fn identity(&self) -> Result<Arc<Identity>, LedgerError> {
        match self {
            Self::Embedded(ledger) => Ok(ledger.identity()),
            Self::Redis(ledger) => ledger.identity().await,
        }
    }

    /// The secret that pairs' keys are derived with, as of the last contact. Unlike [`identity`](Self::identity), it is
    /// known for as long as any partition is, so that one that is lost keeps nobody from recording in the others.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if there was no contact yet, and the ledger does not answer.
    pub async fn secret(&self) -> Result<KeySecret, LedgerError> {
        Ok(self.identity_of_any().await?.secret.clone())
    }

    /// Whether some pairs have keys that name no business: see [`Identity::has_nameless`]. It is known for as long as
    /// any partition is.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if there was no contact yet, and the ledger does not answer.
    pub async fn has_nameless(&self) -> Result<bool, LedgerError> {
        Ok(self.identity_of_any().await?.has_nameless)
    }

    /// The identity of any partition, the first one if that is known. All but its epoch is the same for all of them.
    async fn identity_of_any(&self) -> Result<Arc<Identity>, LedgerError> {
        match self {
            Self::Embedded(ledger) => Ok(ledger.identity()),
            Self::Redis(ledger) => ledger.identity_of_any().await,
        }
    }

    /// Whether another server without an acknowledged change may take over from the one that
    /// acknowledged it. A file has no other server.
    #[must_use]
    pub fn can_fail_over(&self) -> bool {
        matches!(self, Self::Redis(_))
    }

    /// A description for logs and status pages, without credentials.
    #[must_use]
    pub fn describe(&self) -> &str {
        match self {
            Self::Embedded(ledger) => ledger.describe(),
            Self::Redis(ledger) => ledger.describe(),
        }
    }

    /// Appends changes of distinct pairs, at most [`MAX_APPEND`]. Returns the outcomes in the same
    /// order once every change without a conflict is durable.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the whole append failed. The changes may still have been written if
    /// [`LedgerError::may_be_written`].
    pub async fn append(&self, changes: Vec<Change>) -> Result<Vec<Appended>, LedgerError> {
        let receipts = self.append_with_receipts(changes).await?;
        Ok(receipts.into_iter().map(|receipt| receipt.outcome).collect())
    }

    /// Deletes the rest of the histories of erased pairs. A file deletes a history in the
    /// transaction of the erasure. In Redis a history may be long, so it is deleted in batches
    /// afterwards; if this process ends before, the next garbage collection does it.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be written.
    pub async fn purge(&self, keys: &[Key]) -> Result<(), LedgerError> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Redis(ledger) => ledger.purge(keys).await,
        }
    }

    /// Reads a pair's history and verifies its chain.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn history(&self, key: Key) -> Result<History, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.history(key).await,
            Self::Redis(ledger) => ledger.history(key).await,
        }
    }

    /// Reads the histories of all pairs, about [`MAX_PAGE`] entries or 256 KiB at a time. The entries of
    /// one pair are in the order of recording. Start with the default cursor, and continue with each
    /// page's `next`. At most four reads of histories are under way at once; others wait.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn events_after(&self, cursor: Cursor) -> Result<Events, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.events_after(cursor).await,
            Self::Redis(ledger) => ledger.events_after(cursor).await,
        }
    }

    /// Writes out what is queued and closes the ledger.
    pub async fn close(&self) {
        match self {
            Self::Embedded(ledger) => ledger.close().await,
            Self::Redis(ledger) => ledger.close().await,
        }
    }
}
