//! Putting back the sentinel field of a hash that was deleted or evicted: from then on it counts as
//! whole again, so this comes once it is.

use super::super::layout::{INCOMPLETE, SENTINEL};
use super::super::scripts;
use super::super::{Redis, Shared};
use super::mend::Mending;
use crate::verify::{Damage, Finding, Report};
use crate::{Identity, LedgerError, bucket_of};

impl Redis {
    /// Whether nothing of a bucket is left to be rebuilt, by a report that is whole.
    pub(super) fn is_rebuilt(&self, mending: Mending, found: &Finding, report: &Report) -> bool {
        let Damage::NoSentinel(hash) = &found.damage else { return true };
        let number = self.shared.names.bucket_number(hash);
        let identity = self.shared.known_identity();
        let buckets = identity.map_or(1, |identity| identity.buckets);
        let is_in_it =
            |found: &&Finding| found.key.is_some_and(|key| Some(bucket_of(key, buckets)) == number);
        let listed = u64::try_from(report.findings.len()).unwrap_or(u64::MAX);
        let is_told = report.found == listed;
        mending == Mending::AcceptingLoss
            || is_told && report.findings.iter().find(is_in_it).is_none()
    }
}

impl Shared {
    /// Puts a hash's sentinel back, where what the hash lost is known to be back, or to be gone for
    /// good.
    pub(super) async fn put_back(
        &self,
        identity: &Identity,
        mending: Mending,
        hash: &String,
    ) -> Result<bool, LedgerError> {
        // A Redis that evicts keys may have emptied the bucket again since it was rebuilt.
        self.check_keeps_keys()?;
        let names = &self.names;
        let number = names.bucket_number(hash);
        let mut value: &[u8] = b"";
        if let Some(number) = number {
            let (bucket, history) = (names.bucket(number), names.history(number));
            if *hash == bucket {
                let field = [SENTINEL.to_vec()];
                let known = self.many(&history, &field).await?.pop().flatten();
                // Pairs of which nothing tells may have been denied.
                if known.is_none_or(|value| !value.is_empty()) && mending != Mending::AcceptingLoss
                {
                    return Ok(false);
                }
            } else if !self.is_complete(identity, number).await? {
                value = INCOMPLETE;
            }
        }
        let keys = [&names.meta, &names.fence, &names.log, hash];
        let args = [&identity.epoch[..], b"", SENTINEL, value];
        self.changes(&scripts::RESTORE, &keys, &args).await
    }
}
