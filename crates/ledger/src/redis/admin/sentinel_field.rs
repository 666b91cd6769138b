//! Restores the sentinel field of a hash that was deleted or evicted. From then on the hash counts as
//! complete, so this comes after its content was rebuilt.

use super::super::keyspace::{INCOMPLETE, SENTINEL_FIELD};
use super::super::scripts;
use super::super::{RedisPartition, Shared};
use super::repair::RepairMode;
use crate::verify::{Damage, Finding, Report};
use crate::{Identity, LedgerError, bucket_of};

/// The two commands for each of these hashes that tell how many fields it has, and whether the sentinel field is
/// among them.
pub(super) fn length_and_sentinel(hashes: &[String]) -> Vec<redis::Cmd> {
    let both = hashes.iter().flat_map(|hash| {
        let (mut length, mut sentinel) = (redis::cmd("HLEN"), redis::cmd("HEXISTS"));
        length.arg(hash);
        sentinel.arg(hash).arg(SENTINEL_FIELD);
        [length, sentinel]
    });
    both.collect()
}

impl RedisPartition {
    /// Whether nothing of a bucket is left to be rebuilt, by a report that lists all findings.
    pub(super) fn is_rebuilt(&self, mode: RepairMode, finding: &Finding, report: &Report) -> bool {
        let Damage::NoSentinel(hash) = &finding.damage else { return true };
        let number = self.shared.keyspace.bucket_number(hash);
        let identity = self.shared.known_identity();
        let buckets = identity.map_or(1, |identity| identity.buckets);
        let is_in_it = |finding: &&Finding| {
            finding.key.is_some_and(|key| Some(bucket_of(key, buckets)) == number)
        };
        let listed = u64::try_from(report.findings.len()).unwrap_or(u64::MAX);
        let is_complete = report.found == listed;
        mode == RepairMode::AcceptingLoss
            || is_complete && report.findings.iter().find(is_in_it).is_none()
    }
}

impl Shared {
    /// Restores a hash's sentinel field, if its lost content is rebuilt, or accepted as lost. Returns whether
    /// it did.
    pub(super) async fn restore_sentinel_field(
        &self,
        identity: &Identity,
        mode: RepairMode,
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
                // Pairs without a trace in histories may have been denied.
                if known.is_none_or(|value| !value.is_empty()) && mode != RepairMode::AcceptingLoss
                {
                    return Ok(false);
                }
            } else if !self.is_complete(identity, number).await? {
                value = INCOMPLETE;
            }
        }
        let keys = [&keyspace.meta, &keyspace.fence, &keyspace.log, hash];
        let args = [&identity.epoch[..], b"", SENTINEL_FIELD, value];
        Ok(scripts::RECREATE_KEYS.run_counted(&self.writes, &keys, &args).await?)
    }
}
