//! One partition of a ledger: what a follower reads, and what proves how current it is.

use std::sync::Arc;

use tokio::sync::broadcast;

use super::redis::RedisPartition;
use super::{
    Bucket, BucketReader, DurabilityStatus, Embedded, Identity, Ledger, LedgerError, LogHead,
    Notification, Page,
};
use consentd_core::businesses::Businesses;
use consentd_core::partition::Layout;
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;

/// One partition of a ledger; clones share it. Each has a log, revisions, an epoch and a proof of its own. A file
/// has one.
#[derive(Clone, Debug)]
pub struct Partition {
    number: u32,
    pub(super) of: PartitionOf,
}

/// The kind of ledger that a partition is of.
#[derive(Clone, Debug)]
pub(super) enum PartitionOf {
    Embedded(Embedded),
    Redis(RedisPartition),
}

impl Ledger {
    /// How the ledger is divided, if that is known: a ledger in Redis says so with the first contact.
    #[must_use]
    pub fn known_layout(&self) -> Option<Layout> {
        match self {
            Self::Embedded(_) => Some(Layout::SINGLE),
            Self::Redis(ledger) => ledger.known_layout(),
        }
    }

    /// How the ledger is divided. While the shard of the first partition cannot be reached, any other says so.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if that is not known yet, and the ledger does not answer, or its first partition is missing.
    pub async fn layout(&self) -> Result<Layout, LedgerError> {
        match self {
            Self::Embedded(_) => Ok(Layout::SINGLE),
            Self::Redis(ledger) => ledger.layout().await,
        }
    }

    /// The latest of the clocks of several partitions now, as far as this process knows them from what they answered
    /// lately; no partition is asked. It may be a little less than that clock shows. `None` for a ledger with one
    /// partition, whose clock each read returns.
    #[must_use]
    pub fn latest_clock(&self) -> Option<Timestamp> {
        match self {
            Self::Embedded(_) => None,
            Self::Redis(ledger) => ledger.latest_clock(),
        }
    }

    /// The partition with this number. `None` for a number that the ledger does not have, and for any but the
    /// first one, 0, while the layout is not known.
    #[must_use]
    pub fn partition(&self, number: u32) -> Option<Partition> {
        let of = match self {
            Self::Embedded(ledger) => {
                (number == 0).then(|| PartitionOf::Embedded(ledger.clone()))?
            }
            Self::Redis(ledger) => PartitionOf::Redis(ledger.partition(number)?),
        };
        Some(Partition { number, of })
    }

    /// All partitions, in their order.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if their number is not known yet, and the ledger does not answer.
    pub async fn partitions(&self) -> Result<Vec<Partition>, LedgerError> {
        let layout = self.layout().await?;
        Ok(layout.all().filter_map(|number| self.partition(number)).collect())
    }
}

impl Partition {
    /// Its number, from 0.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its identity, as of the last contact. All partitions of a ledger have the same layout and the same
    /// secret, but while the ledger is being replaced by another one.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if there was no contact yet, and the ledger does not answer.
    pub async fn identity(&self) -> Result<Arc<Identity>, LedgerError> {
        match &self.of {
            PartitionOf::Embedded(ledger) => Ok(ledger.identity()),
            PartitionOf::Redis(ledger) => ledger.identity().await,
        }
    }

    /// The number of appends of this process that could not be announced, because the Redis user
    /// lacks the permission to publish. Followers find them by polling.
    #[must_use]
    pub fn unannounced(&self) -> u64 {
        match &self.of {
            PartitionOf::Embedded(_) => 0,
            PartitionOf::Redis(ledger) => ledger.unannounced(),
        }
    }

    /// How safe acknowledged changes are, as of the last check.
    #[must_use]
    pub fn durability(&self) -> DurabilityStatus {
        match &self.of {
            PartitionOf::Embedded(_) => DurabilityStatus::default(),
            PartitionOf::Redis(ledger) => ledger.durability(),
        }
    }

    /// Reads the pairs of one bucket; [`Identity::buckets`] is the number of buckets.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn bucket(&self, number: u32) -> Result<Bucket, LedgerError> {
        match &self.of {
            PartitionOf::Embedded(ledger) => ledger.bucket(number).await,
            PartitionOf::Redis(ledger) => ledger.bucket(number).await,
        }
    }

    /// Like [`bucket`](Self::bucket), for a reader that has time: it waits its turn behind other reads of
    /// histories, and holds up no poll and no recording.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn bucket_in_turn(&self, number: u32) -> Result<Bucket, LedgerError> {
        match &self.of {
            PartitionOf::Embedded(ledger) => ledger.bucket_in_turn(number).await,
            PartitionOf::Redis(ledger) => ledger.bucket_in_turn(number).await,
        }
    }

    /// A reader of many buckets. It connects with its first read.
    #[must_use]
    pub fn bucket_reader(&self) -> BucketReader {
        BucketReader::of(&self.of)
    }

    /// Reads the log after `revision`, with the proof of where it ends.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn read_after(&self, revision: Revision) -> Result<Page, LedgerError> {
        match &self.of {
            PartitionOf::Embedded(ledger) => ledger.read_after(revision).await,
            PartitionOf::Redis(ledger) => ledger.read_after(revision).await,
        }
    }

    /// Like [`read_after`](Self::read_after), for a reader whose log has this hash at `revision`.
    /// The entry at `revision` itself may have been trimmed, because the hash shows that the next
    /// entry continues it. So a log that was emptied and then extended by one entry has no gap.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn read_after_head(
        &self,
        revision: Revision,
        head: LogHead,
    ) -> Result<Page, LedgerError> {
        match &self.of {
            // Each entry of a file contains the hash before it.
            PartitionOf::Embedded(ledger) => ledger.read_after(revision).await,
            PartitionOf::Redis(ledger) => ledger.read_after_head(revision, head).await,
        }
    }

    /// Decodes only what is of these businesses from now on: a bucket then has their pairs alone, and log
    /// entries of others are [skipped](super::UndecodedEntry::Skipped). It is for the process' one
    /// follower of the partition; a file is decoded whole.
    pub fn hold(&self, businesses: Businesses) {
        match &self.of {
            PartitionOf::Embedded(_) => {}
            PartitionOf::Redis(ledger) => ledger.hold(businesses),
        }
    }

    /// Subscribes to what is appended from now on. Any announcement may be lost. In Redis, nothing is
    /// subscribed to before the first call.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Notification> {
        match &self.of {
            PartitionOf::Embedded(ledger) => ledger.listen(),
            PartitionOf::Redis(ledger) => ledger.listen(),
        }
    }
}
