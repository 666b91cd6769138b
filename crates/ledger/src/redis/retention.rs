//! Removes log entries and history entries after their retention time, a bounded part with each sweep.

use redis::Value;

use super::Shared;
use super::error::{RedisFailure, RedisRejection};
use super::keyspace::{decode_item, encode_item, is_history_field};
use super::roll_forward::roll_forward;
use super::scripts;
use crate::history::HistoryItem;
use crate::{Identity, LedgerError, Retention, codec};
use consentd_core::businesses::Businesses;
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;

/// How many buckets' histories are scanned by a sweep. At a sweep a minute, 8,192 buckets take 17 hours.
const BUCKETS_PER_SWEEP: u32 = 8;

/// The maximum number of log entries that one script removes.
const MAX_TRIM: u64 = 16 * 1_024;

/// The maximum number of such scripts in a sweep.
const TRIMS_PER_SWEEP: usize = 64;

/// Sweeps for ever at the configured interval; does nothing without a retention.
pub(super) async fn run(shared: &Shared) {
    let Some(retention) = shared.common.options.retention else {
        return std::future::pending().await;
    };
    // Each recorder begins at a random bucket, so that they share the work.
    let mut random = [0; 4];
    let _ = getrandom::fill(&mut random);
    let mut bucket = u32::from_ne_bytes(random);
    loop {
        tokio::time::sleep(shared.common.options.sweep_interval).await;
        // A failed sweep is repeated later. Polls report why the ledger cannot be reached.
        if let Err(error) = shared.sweep(retention, &mut bucket).await
            && let Some(RedisRejection::LostKey { key }) = RedisRejection::of(&error)
        {
            shared.note_missing_key(key);
        }
    }
}

impl Shared {
    /// Rolls the ledger forward, trims the log, continues erasures, and expires the histories of the next
    /// buckets.
    async fn sweep(&self, retention: Retention, bucket: &mut u32) -> Result<(), LedgerError> {
        // The poll fails if the log or the fence was lost.
        let identity = self.poll(&Businesses::All, Revision::MAX, None).await?.identity;
        // If no process appends, no append completes one that failed half-way.
        roll_forward(&self.writes, &self.keyspace, identity.epoch, false).await?;
        let now = self.values(&identity, &[]).await?.0;
        self.trim_log(&identity, now.minus(retention.log)).await?;
        let erased = self.collect_garbage(&identity).await;
        let mut expired = Ok(());
        for _ in 0..BUCKETS_PER_SWEEP.min(identity.buckets) {
            *bucket = bucket.wrapping_add(1) % identity.buckets.max(1);
            match self.expire(&identity, *bucket, now.minus(retention.history)).await {
                // The other buckets' entries expire all the same.
                Err(failure @ RedisFailure::Rejected(RedisRejection::LostKey { .. })) => {
                    expired = Err(failure);
                }
                done => done?,
            }
        }
        Ok(erased.and(expired)?)
    }

    /// Removes the log entries that were recorded before `limit`.
    async fn trim_log(&self, identity: &Identity, limit: Timestamp) -> Result<(), RedisFailure> {
        for _ in 0..TRIMS_PER_SWEEP {
            let Some((first, _)) = self.entry_from(0).await?.filter(|(_, time)| *time < limit)
            else {
                break;
            };
            // Record times grow with the revisions, approximately: a binary search finds the first entry to
            // keep.
            let most = first.saturating_add(MAX_TRIM);
            let (mut old, mut young) = (first, most);
            while young.saturating_sub(old) > 1 {
                let middle = old.midpoint(young);
                match self.entry_from(middle).await? {
                    Some((_, time)) if time < limit => old = middle,
                    _ => young = middle,
                }
            }
            let keys = [&self.keyspace.meta, &self.keyspace.log];
            let revision = young.to_string();
            let args = [&identity.epoch[..], revision.as_bytes()];
            scripts::TRIM_LOG.run(&self.writes, &keys, &args).await?;
            if young < most {
                break;
            }
        }
        Ok(())
    }

    /// Replaces a bucket's perishable history entries that were recorded before `limit` by their digests,
    /// which keep the hash chains verifiable.
    async fn expire(
        &self,
        identity: &Identity,
        bucket: u32,
        limit: Timestamp,
    ) -> Result<(), RedisFailure> {
        let hash = self.keyspace.history(bucket);
        self.check_hash(&hash).await?;
        let mut cursor = 0;
        loop {
            let (next, found) = self.scan(&hash, cursor).await?;
            let mut args = vec![identity.epoch.to_vec()];
            for (field, value) in found.into_iter().filter(|(field, _)| is_history_field(field)) {
                if let Some(replaced) = replacement(&value, limit) {
                    args.extend([field, value, replaced]);
                }
            }
            if args.len() > 1 {
                let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
                let keys = [&self.keyspace.meta, &hash];
                let _replaced: Value =
                    scripts::EXPIRE_HISTORY.run(&self.writes, &keys, &args).await?;
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }
}

/// The replacement of a perishable history entry that was recorded before `limit`.
fn replacement(value: &[u8], limit: Timestamp) -> Option<Vec<u8>> {
    let (revision, item) = decode_item(value)?;
    let HistoryItem::Perishable(entry) = &item else { return None };
    let recorded = codec::decode_history(entry, |_| Some(String::new()))?.record_time;
    let digest = item.digest();
    let gone = [&revision.to_be_bytes()[..], &encode_item(&HistoryItem::Expired(digest))].concat();
    (recorded < limit).then_some(gone)
}
