//! Reads all buckets of a ledger, for whoever loads a table.

use crate::redis::BucketStream;
use crate::{Bucket, Embedded, Ledger, LedgerError};

/// Reads many buckets of one ledger, faster than [`Ledger::bucket`] does one. In Redis it has a connection
/// of its own, which is closed when the reader is dropped.
pub struct BucketReader(Kind);

enum Kind {
    Embedded(Embedded),
    Redis(BucketStream),
}

impl Ledger {
    /// A reader of many buckets. It connects with its first read.
    #[must_use]
    pub fn bucket_reader(&self) -> BucketReader {
        BucketReader(match self {
            Self::Embedded(ledger) => Kind::Embedded(ledger.clone()),
            Self::Redis(ledger) => Kind::Redis(ledger.bucket_stream()),
        })
    }
}

impl BucketReader {
    /// Reads the pairs of one bucket, as [`Ledger::bucket`] does, but the records may lack their requests: they
    /// are for a table, and not to be written back.
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
