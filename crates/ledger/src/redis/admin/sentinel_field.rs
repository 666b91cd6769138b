//! Putting back the sentinel field of a hash that was deleted or evicted: from then on it counts as
//! whole again, so this comes once it is.

use super::super::keyspace::{INCOMPLETE, SENTINEL_FIELD};
use super::super::scripts;
use super::super::{Redis, Shared};
use super::repair::RepairMode;
use crate::verify::{Damage, Finding, Report};
use crate::{Identity, LedgerError, bucket_of};

impl Redis {
    /// Whether nothing of a bucket is left to be rebuilt, by a report that is whole.
    pub(super) fn is_rebuilt(&self, mending: RepairMode, found: &Finding, report: &Report) -> bool {
        let Damage::NoSentinel(hash) = &found.damage else { return true };
        let number = self.shared.keyspace.bucket_number(hash);
        let identity = self.shared.known_identity();
        let buckets = identity.map_or(1, |identity| identity.buckets);
        let is_in_it =
            |found: &&Finding| found.key.is_some_and(|key| Some(bucket_of(key, buckets)) == number);
        let listed = u64::try_from(report.findings.len()).unwrap_or(u64::MAX);
        let is_told = report.found == listed;
        mending == RepairMode::AcceptingLoss
            || is_told && report.findings.iter().find(is_in_it).is_none()
    }
}

impl Shared {
    /// Puts a hash's sentinel back, where what the hash lost is known to be back, or to be gone for
    /// good.
    pub(super) async fn put_back(
        &self,
        identity: &Identity,
        mending: RepairMode,
        hash: &String,
    ) -> Result<bool, LedgerError> {
        // A Redis that evicts keys may have emptied the bucket again since it was rebuilt.
        self.ensure_no_eviction()?;
        let keyspace = &self.keyspace;
        let number = keyspace.bucket_number(hash);
        let mut value: &[u8] = b"";
        if let Some(number) = number {
            let (bucket, history) = (keyspace.bucket(number), keyspace.history(number));
            if *hash == bucket {
                let field = [SENTINEL_FIELD.to_vec()];
                let known = self.many(&history, &field).await?.pop().flatten();
                // Pairs of which nothing tells may have been denied.
                if known.is_none_or(|value| !value.is_empty())
                    && mending != RepairMode::AcceptingLoss
                {
                    return Ok(false);
                }
            } else if !self.is_complete(identity, number).await? {
                value = INCOMPLETE;
            }
        }
        let keys = [&keyspace.meta, &keyspace.fence, &keyspace.log, hash];
        let args = [&identity.epoch[..], b"", SENTINEL_FIELD, value];
        self.changes(&scripts::RECREATE_KEYS, &keys, &args).await
    }
}
