//! Removing what has outlived its retention, a bounded part at a time.

use redis::Value;

use super::Shared;
use super::error::{RedisFailure, RedisRejection};
use super::keyspace::{HistoryItem, is_history_field};
use super::read::time_of;
use super::roll_forward::roll_forward;
use super::scripts::{self, Answer, ask};
use crate::{Identity, LedgerError, Retention, codec};
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;

/// How many buckets' histories are looked through each time: 8,192 take most of a day.
const BUCKETS_A_SWEEP: u32 = 8;

/// The most log entries that one script removes.
const MAX_TRIM: u64 = 16 * 1_024;

/// How many such scripts there are each time.
const TRIMS_A_SWEEP: usize = 64;

/// Removes what is due, for ever, where anything is to be removed.
pub(super) async fn run(shared: &Shared) {
    let Some(retention) = shared.options.retention else { return std::future::pending().await };
    // Recorders begin anywhere, so that the first buckets are not looked at by all.
    let mut random = [0; 4];
    let _ = getrandom::fill(&mut random);
    let mut bucket = u32::from_ne_bytes(random);
    loop {
        tokio::time::sleep(shared.options.sweep_interval).await;
        // What cannot be removed now is removed later; that nothing can be is told by the polls.
        if let Err(error) = shared.sweep(retention, &mut bucket).await
            && let Some(RedisRejection::LostKey { key }) = RedisRejection::of(&error)
        {
            shared.note_missing_key(key);
        }
    }
}

impl Shared {
    async fn sweep(&self, retention: Retention, bucket: &mut u32) -> Result<(), LedgerError> {
        // Where the log or the fence was lost, this says so.
        let identity = self.poll(Revision::MAX, None).await?.identity;
        // Where nobody appends, nobody would complete what was cut short.
        roll_forward(&self.writes, &self.keyspace, identity.epoch, false).await?;
        let now = self.values(&identity, &[]).await?.0;
        self.trim_log(&identity, now.minus(retention.log)).await?;
        let erased = self.finish_erasing(&identity).await;
        let mut expired = Ok(());
        for _ in 0..BUCKETS_A_SWEEP.min(identity.buckets) {
            *bucket = bucket.wrapping_add(1) % identity.buckets.max(1);
            match self.expire(&identity, *bucket, now.minus(retention.history)).await {
                // Others' time is over all the same.
                Err(failure @ RedisFailure::Rejected(RedisRejection::LostKey { .. })) => {
                    expired = Err(failure);
                }
                done => done?,
            }
        }
        Ok(erased.and(expired)?)
    }

    /// Removes the log's entries that were recorded before `limit`.
    async fn trim_log(&self, identity: &Identity, limit: Timestamp) -> Result<(), RedisFailure> {
        for _ in 0..TRIMS_A_SWEEP {
            let Some((first, _)) = self.entry_from(0).await?.filter(|(_, time)| *time < limit)
            else {
                break;
            };
            // Revisions are in the order of their times, in about: halved until the first that is
            // young enough is found.
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
            let args = [&identity.epoch[..], young.to_string().as_bytes()].map(<[u8]>::to_vec);
            let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
            scripts::TRIM_LOG.run(&self.writes, &keys, &args).await?;
            if young < most {
                break;
            }
        }
        Ok(())
    }

    /// The log's first entry at a revision or behind it, and when it was recorded.
    pub(super) async fn entry_from(
        &self,
        from: Revision,
    ) -> Result<Option<(Revision, Timestamp)>, RedisFailure> {
        let mut command = redis::cmd("XRANGE");
        command.arg(&self.keyspace.log).arg(from.to_string()).arg("+").arg("COUNT").arg(1);
        let mut entries = Answer::of(ask(&self.writes, &command).await?)?;
        if entries.is_over() {
            return Ok(None);
        }
        let mut entry = Answer::of(entries.next()?)?;
        let revision = entry.revision()?;
        let mut fields = Answer::of(entry.next()?)?;
        let (_p, _place, _b) = (fields.next()?, fields.next()?, fields.next()?);
        let time = time_of(&fields.bytes()?)
            .ok_or(RedisFailure::Rejected(RedisRejection::MalformedReply))?;
        Ok(Some((revision, time)))
    }

    /// Replaces a bucket's history entries recorded before `limit` that are kept for a time by
    /// their digests, which keep the chains whole.
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

/// What stays of a history entry that is kept for a time, where it was recorded before `limit`.
fn replacement(value: &[u8], limit: Timestamp) -> Option<Vec<u8>> {
    let (revision, item) = HistoryItem::decode(value)?;
    let HistoryItem::Perishable(entry) = item else { return None };
    let recorded = codec::decode_history(entry, |_| Some(String::new()))?.record_time;
    let digest = item.digest();
    let gone = [&revision.to_be_bytes()[..], &HistoryItem::Gone(&digest).encode()].concat();
    (recorded < limit).then_some(gone)
}
