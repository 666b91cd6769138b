//! How many pairs of each bucket the table holds.

use consentd_core::id::Key;
use consentd_ledger::bucket_of;

/// The number of pairs in the table for each bucket, without those that the ledger has no record of.
/// A scrub compares it with the bucket, so that the table is searched for strangers only if there
/// may be some.
pub(super) struct BucketCounts {
    counts: Vec<u32>,
    buckets: u32,
}

impl BucketCounts {
    /// No pairs in any of these buckets.
    pub(super) fn new(buckets: u32) -> Self {
        let buckets = buckets.max(1);
        Self { counts: vec![0; usize::try_from(buckets).unwrap_or(usize::MAX)], buckets }
    }

    /// Whether a pair belongs to a bucket.
    pub(super) fn matcher(&self, bucket: u32) -> impl Fn(Key) -> bool + Copy + use<> {
        let buckets = self.buckets;
        move |key| bucket_of(key, buckets) == bucket
    }

    /// Counts one more pair.
    pub(super) fn add(&mut self, key: Key) {
        let bucket = bucket_of(key, self.buckets);
        self.set(bucket, self.get(bucket).saturating_add(1));
    }

    /// Counts one pair less.
    pub(super) fn remove(&mut self, key: Key) {
        let bucket = bucket_of(key, self.buckets);
        self.set(bucket, self.get(bucket).saturating_sub(1));
    }

    /// The number of pairs of a bucket.
    pub(super) fn get(&self, bucket: u32) -> u32 {
        self.counts.get(place(bucket)).copied().unwrap_or(0)
    }

    /// Sets the number of pairs of a bucket.
    pub(super) fn set(&mut self, bucket: u32, pairs: u32) {
        if let Some(count) = self.counts.get_mut(place(bucket)) {
            *count = pairs;
        }
    }
}

fn place(bucket: u32) -> usize {
    usize::try_from(bucket).unwrap_or(usize::MAX)
}
