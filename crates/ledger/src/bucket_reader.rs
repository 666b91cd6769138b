//! Reads all buckets of a partition, for whoever loads a table.

use crate::partition::PartitionOf;
use crate::redis::BucketStream;
use crate::{Bucket, Embedded, LedgerError};

/// Reads many buckets of one partition, faster than [`Partition::bucket`](crate::Partition::bucket) reads
/// each. In Redis it has a connection of its own, which is closed when the reader is dropped.
pub struct BucketReader(Kind);

enum Kind {
    Embedded(Embedded),
    Redis(BucketStream),
}

impl BucketReader {
    pub(super) fn of(partition: &PartitionOf) -> Self {
        Self(match partition {
            PartitionOf::Embedded(ledger) => Kind::Embedded(ledger.clone()),
            PartitionOf::Redis(ledger) => Kind::Redis(ledger.bucket_stream()),
        })
    }

    /// Waits for this reader's turn: a ledger of many partitions is loaded a few partitions at a time, so that
    /// there are only so many connections. It has it until it is dropped, or [leaves it](Self::leave_turn).
    pub async fn turn(&self) {
        match &self.0 {
            Kind::Embedded(_) => {}
            Kind::Redis(stream) => stream.turn().await,
        }
    }

    /// Leaves the turn to another reader, because this one's partition cannot be read at present: partitions that
    /// can be must not wait for it.
    pub fn leave_turn(&self) {
        match &self.0 {
            Kind::Embedded(_) => {}
            Kind::Redis(stream) => stream.leave_turn(),
        }
    }

    /// Reads the pairs of one bucket, as [`Partition::bucket`](crate::Partition::bucket) does, but the records
    /// may lack their requests: they are for a table, and not to be written back.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn bucket(&self, number: u32) -> Result<Bucket, LedgerError> {
        match &self.0 {
            Kind::Embedded(ledger) => ledger.bucket(number).await,
            Kind::Redis(stream) => stream.bucket(number).await,
        }
    }
}
