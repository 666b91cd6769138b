//! Copying a ledger into another: all pairs with their histories and statements, in the same
//! encoding, under a new epoch. A ledger whose keys are of an older version is re-keyed.
//!
//! The source may be written to meanwhile. Its buckets are copied one after the other. Changes in
//! buckets that are already copied are found in the log, which is followed from before the first
//! bucket, and are copied again. At the end, two consecutive looks at the log must find nothing new;
//! what is written after that is only in the source. The log itself is not copied: its readers notice
//! the new epoch and read the whole ledger.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::sleep;

use super::embedded::{NewFile, OpenError};
use super::partition::{Partition, PartitionOf};
use super::portable_pair::{PortableBucket, PortablePair, statement_digests};
use super::redis::{CreateError, NewRedis};
use super::rekeying::{RekeyReport, Rekeying};
use super::stored_secret::StoredSecret;
use super::verify::Progress;
use super::{Epoch, Ledger, LedgerError, LogEntry, Position, Tail, bucket_of};
use consentd_core::id::{KEY_VERSION, Key, KeySecret};
use consentd_core::partition::Layout;
use consentd_core::record::{Record, Revision};
use consentd_os::clock;

/// How many buckets are read concurrently and written together.
const BUCKETS_PER_BATCH: usize = 16;
/// How many changed pairs are copied again together.
const PAIRS_PER_BATCH: usize = 256;
/// How often the log is followed, so that its entries are read before they are trimmed.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);
/// How many looks at the log may find something new before the copy is given up.
const MAX_FINAL_LOOKS: u32 = 10;

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The source cannot be read.
    #[error("cannot read the ledger to copy from: {0}")]
    Source(#[source] LedgerError),
    /// The source was replaced by another ledger, or has lost changes.
    #[error(
        "the ledger to copy from was replaced or set back meanwhile (a failover, or a restart from \
         a backup): see that it is well, and begin anew with --anew"
    )]
    Forked,
    /// The source's log was trimmed before it was followed.
    #[error(
        "the log of the ledger to copy from lost entries that were still needed: keep it longer \
         (--log-entries, --log-retention), and begin anew with --anew"
    )]
    Trimmed,
    /// The source's keys were made by a newer reading of user ids.
    #[error(
        "the ledger to copy from was made by a newer consentd, which reads user ids otherwise (key \
         version {0}; this one has {KEY_VERSION}): copy it with that one"
    )]
    NewerKeys(u32),
    /// A pair was erased from the source after it had been copied.
    #[error(
        "somebody was erased from the ledger to copy from, after the copy had taken what is gone \
         there: begin anew with --anew"
    )]
    Erased,
    /// A notation was recorded meanwhile that is another person today than the pair it belongs to.
    #[error(
        "an event was recorded meanwhile under a notation of an id that is another person today than \
         what was recorded before under the same key: stop those who record, and begin anew with --anew"
    )]
    Respelled,
    /// A pair whose names are gone is to be copied into several partitions.
    #[error(
        "the ledger to copy from has pairs that name nobody any more (those of erased people) and have keys that do \
         not say which partition they are in: delete the keys of this copy, and copy it with --partitions 1"
    )]
    Nameless,
    /// The source is still being written to.
    #[error(
        "the ledger to copy from is still being written to, so that a copy would lack what comes \
         next: stop those who record, and begin anew with --anew"
    )]
    NotStill,
    /// There is an unfinished copy at the target.
    #[error(
        "an unfinished copy is there: it is no ledger, and was left as it is; give --anew to remove \
         it and begin anew"
    )]
    Unfinished,
    /// The target in Redis cannot be created.
    #[error("cannot make the copy: {0}")]
    Target(#[source] CreateError),
    /// The target file cannot be created.
    #[error("cannot make the copy: {0}")]
    File(#[source] OpenError),
    /// The target file cannot be written.
    #[error("cannot write the copy: {0}")]
    Writing(#[source] LedgerError),
}

/// The result of a copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CopyReport {
    /// The copy's epoch.
    pub epoch: Epoch,
    /// How it is divided into partitions.
    pub layout: Layout,
    /// The number of buckets of each of its partitions.
    pub buckets: u32,
    /// The number of its pairs.
    pub pairs: u64,
    /// The revision of its last change.
    pub revision: Revision,
    /// The number of statements that histories refer to and the source lacks.
    pub missing_statements: u64,
    /// The number of changes that were made to the source at the end and are not in the copy.
    pub late: u64,
    /// What became of the keys, if those of the source were of an older version.
    pub rekeyed: Option<RekeyReport>,
}

/// The target of a copy.
pub enum NewLedger {
    /// A new file.
    File(Box<NewFile>),
    /// A new ledger in Redis.
    Redis(Box<NewRedis>),
}

impl NewLedger {
    async fn put(
        &mut self,
        pairs: Vec<PortablePair>,
        texts: Vec<([u8; 32], Vec<u8>)>,
    ) -> Result<(), CopyError> {
        match self {
            Self::File(file) => file.put(&pairs, &texts).map_err(CopyError::Writing),
            Self::Redis(redis) => redis.put(pairs, texts).await,
        }
    }

    async fn finish(
        self,
        end: &Position,
        secret: &StoredSecret,
    ) -> Result<(Epoch, Layout, u32), CopyError> {
        match self {
            Self::File(file) => {
                let (epoch, buckets) = file.finish(end, secret)?;
                Ok((epoch, Layout::SINGLE, buckets))
            }
            Self::Redis(redis) => {
                let made = redis.finish(end, secret).await?;
                Ok((made.epoch, made.layout, made.buckets))
            }
        }
    }
}

impl Partition {
    async fn portable_bucket(&self, number: u32) -> Result<PortableBucket, LedgerError> {
        match &self.of {
            PartitionOf::Embedded(ledger) => ledger.portable_bucket(number).await,
            PartitionOf::Redis(ledger) => ledger.portable_bucket(number).await,
        }
    }

    async fn portable_pairs(&self, keys: &[Key]) -> Result<Vec<PortablePair>, LedgerError> {
        match &self.of {
            PartitionOf::Embedded(ledger) => ledger.portable_pairs(keys).await,
            PartitionOf::Redis(ledger) => ledger.portable_pairs(keys).await,
        }
    }

    async fn statements(&self, digests: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, LedgerError> {
        match &self.of {
            PartitionOf::Embedded(ledger) => ledger.statements(digests).await,
            PartitionOf::Redis(ledger) => ledger.statements(digests).await,
        }
    }

    async fn secret(&self) -> Result<StoredSecret, LedgerError> {
        match &self.of {
            PartitionOf::Embedded(ledger) => ledger.secret().await,
            PartitionOf::Redis(ledger) => ledger.secret().await,
        }
    }
}

/// Copies a ledger. Before it finishes, it waits for `quiet_period` and checks that nothing was
/// written to the source.
///
/// # Errors
///
/// [`CopyError`]; the target is then not a usable ledger.
pub async fn copy(
    from: &Ledger,
    to: NewLedger,
    quiet_period: Duration,
    report_progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<CopyReport, CopyError> {
    let partitions = from.partitions().await.map_err(CopyError::Source)?;
    let mut sources = Vec::with_capacity(partitions.len());
    for partition in partitions {
        sources.push(Source::begin(partition).await.map_err(CopyError::Source)?);
    }
    let first = sources.first().ok_or(CopyError::Source(LedgerError::Closed))?;
    let secret = first.partition.secret().await.map_err(CopyError::Source)?;
    let rekeying = match secret.key_version {
        // The pairs keep their keys.
        KEY_VERSION => None,
        newer if newer > KEY_VERSION => return Err(CopyError::NewerKeys(newer)),
        _ => {
            let clock = from.read(Vec::new()).await.map_err(CopyError::Source)?.clock;
            let identity = from.identity().await.map_err(CopyError::Source)?;
            Some(Rekeying::new(identity.secret.clone(), KeySecret::new(&secret.secret), clock))
        }
    };
    let of = sources.iter().map(|source| source.buckets).sum();
    let missing = BTreeSet::new();
    let mut copying =
        Copying { to, sources, of, followed: clock::boot(), pairs: 0, missing, rekeying };
    copying.survey(report_progress).await?;
    copying.copy_buckets(report_progress).await?;
    let mut looks = 0;
    while copying.follow().await? || looks == 0 {
        // Waits after the first look too, so that two looks in a row must find nothing new.
        if looks >= MAX_FINAL_LOOKS {
            return Err(CopyError::NotStill);
        }
        looks += 1;
        if matches!(from, Ledger::Redis(_)) {
            sleep(quiet_period).await;
        }
    }
    let Copying { to, sources, pairs, missing, rekeying, .. } = copying;
    let has_nameless = rekeying.as_ref().map_or(secret.has_nameless, Rekeying::has_nameless);
    let secret = StoredSecret { has_nameless, ..StoredSecret::new(secret.secret) };
    // The log is not copied, so that any revision continues the partitions that is no earlier than theirs.
    let ends = sources.iter().map(|source| source.cursor);
    let end = ends.max_by_key(|end| end.revision).ok_or(CopyError::NotStill)?;
    let (epoch, layout, buckets) = to.finish(&end, &secret).await?;
    let rekeyed = rekeying.map(|rekeying| rekeying.report());
    let mut late = 0_u64;
    for Source { partition, cursor, .. } in &sources {
        let now = partition.read_after(Revision::MAX).await.map_err(CopyError::Source)?.end;
        late = late.saturating_add(now.revision.saturating_sub(cursor.revision));
    }
    Ok(CopyReport {
        epoch,
        layout,
        buckets,
        pairs: pairs.saturating_sub(rekeyed.map_or(0, |report| report.unified)),
        revision: end.revision,
        missing_statements: missing.len().try_into().unwrap_or(u64::MAX),
        late,
        rekeyed,
    })
}

/// A partition of the source.
struct Source {
    partition: Partition,
    /// For finished buckets, the changes up to here are in the copy.
    cursor: Position,
    buckets: u32,
    /// The number of finished buckets.
    done: u32,
}

impl Source {
    async fn begin(partition: Partition) -> Result<Self, LedgerError> {
        let page = partition.read_after(Revision::MAX).await?;
        Ok(Self { partition, cursor: page.end, buckets: page.identity.buckets, done: 0 })
    }

    /// Reads a batch of buckets from this one on. Returns the number of the next bucket, and the pairs.
    async fn read_buckets(&self, first: u32) -> Result<(u32, Vec<PortablePair>), CopyError> {
        let most = u32::try_from(BUCKETS_PER_BATCH).unwrap_or(1);
        let next = first.saturating_add(most).min(self.buckets);
        let from = &self.partition;
        let reads = (first..next).map(|number| from.portable_bucket(number));
        let read: Vec<_> =
            futures_util::stream::iter(reads).buffered(BUCKETS_PER_BATCH).collect().await;
        let mut pairs = Vec::new();
        for bucket in read {
            let bucket = bucket.map_err(CopyError::Source)?;
            let label = bucket.label;
            if label.epoch != self.cursor.epoch || label.revision < self.cursor.revision {
                return Err(CopyError::Forked);
            }
            pairs.extend(bucket.pairs);
        }
        Ok((next, pairs))
    }

    /// Reads the next page of the log; empty at its end.
    async fn next_entries(&self) -> Result<(Revision, Vec<LogEntry>), CopyError> {
        let page = self.partition.read_after(self.cursor.revision).await;
        let page = page.map_err(CopyError::Source)?;
        if page.end.epoch != self.cursor.epoch || page.end.revision < self.cursor.revision {
            return Err(CopyError::Forked);
        }
        let Tail::Entries(entries) = page.tail else { return Err(CopyError::Trimmed) };
        match entries.first() {
            None if page.end != self.cursor => Err(CopyError::Forked),
            Some(first) if first.previous != self.cursor.head => Err(CopyError::Forked),
            _ => Ok((page.end.revision, entries)),
        }
    }
}

struct Copying {
    to: NewLedger,
    sources: Vec<Source>,
    /// The number of all buckets of the source.
    of: u32,
    /// When the log was last followed.
    followed: Duration,
    pairs: u64,
    missing: BTreeSet<[u8; 32]>,
    rekeying: Option<Rekeying>,
}

impl Copying {
    /// Collects the keys that change. Pairs that become one may be in any two buckets, so that all of them are
    /// known before the first is written.
    async fn survey(
        &mut self,
        report_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), CopyError> {
        if self.rekeying.is_none() {
            return Ok(());
        }
        let (mut done, mut pairs) = (0_u32, 0_u64);
        for place in 0..self.sources.len() {
            let mut next = 0;
            while let Some(source) = self.sources.get(place).filter(|source| next < source.buckets)
            {
                let (until, read) = source.read_buckets(next).await?;
                pairs = pairs.saturating_add(read.len().try_into().unwrap_or(u64::MAX));
                for pair in &read {
                    if let Some(rekeying) = &mut self.rekeying {
                        rekeying.survey(pair);
                    }
                }
                done = done.saturating_add(until.saturating_sub(next));
                next = until;
                report_progress(Progress { done, of: self.of, pairs });
                self.follow_if_due().await?;
            }
        }
        Ok(())
    }

    /// Copies all buckets.
    async fn copy_buckets(
        &mut self,
        report_progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), CopyError> {
        let mut done = 0_u32;
        for place in 0..self.sources.len() {
            while let Some(source) =
                self.sources.get(place).filter(|source| source.done < source.buckets)
            {
                let (next, pairs) = source.read_buckets(source.done).await?;
                done = done.saturating_add(next.saturating_sub(source.done));
                self.pairs = self.pairs.saturating_add(pairs.len().try_into().unwrap_or(u64::MAX));
                self.put(place, pairs).await?;
                if let Some(source) = self.sources.get_mut(place) {
                    source.done = next;
                }
                report_progress(Progress { done, of: self.of, pairs: self.pairs });
                self.follow_if_due().await?;
            }
        }
        Ok(())
    }

    async fn follow_if_due(&mut self) -> Result<(), CopyError> {
        if clock::boot().saturating_sub(self.followed) >= FOLLOW_INTERVAL {
            self.follow().await?;
            self.followed = clock::boot();
        }
        Ok(())
    }

    /// Follows the logs to their current ends, and copies changed pairs again. Returns whether there were
    /// any. Changes that arrive meanwhile are left to the next call, so that it terminates.
    async fn follow(&mut self) -> Result<bool, CopyError> {
        let mut any = false;
        for place in 0..self.sources.len() {
            any |= self.follow_one(place).await?;
        }
        Ok(any)
    }

    async fn follow_one(&mut self, place: usize) -> Result<bool, CopyError> {
        let mut any = false;
        let mut until = None;
        while let Some(source) = self.sources.get(place) {
            let (end, entries) = source.next_entries().await?;
            let Some(last) = entries.last() else { break };
            let next = Position { revision: last.revision, head: last.head, ..source.cursor };
            let mut changed = BTreeSet::new();
            for entry in &entries {
                let body = entry
                    .body
                    .as_ref()
                    .map_err(|_| CopyError::Source(LedgerError::Damaged("an entry of the log")))?;
                if let Some(rekeying) = &mut self.rekeying {
                    let is_new = body
                        .record
                        .as_ref()
                        .is_ok_and(|record| record.history_len == 1 && record.erased.is_none());
                    if !rekeying.note(body.key, &body.user_id, &body.business_id, is_new) {
                        return Err(CopyError::Respelled);
                    }
                }
                if bucket_of(body.key, source.buckets) < source.done {
                    let record = body.record.as_ref();
                    if body.user_id.is_empty() && record.is_ok_and(Record::is_without_history) {
                        return Err(CopyError::Erased);
                    }
                    changed.insert(body.key.to_bytes());
                }
            }
            let changed: Vec<_> = changed.into_iter().map(Key::from_bytes).collect();
            let partition = source.partition.clone();
            for batch in changed.chunks(PAIRS_PER_BATCH) {
                let pairs = partition.portable_pairs(batch).await.map_err(CopyError::Source)?;
                self.put(place, pairs).await?;
            }
            if let Some(source) = self.sources.get_mut(place) {
                source.cursor = next;
            }
            any = true;
            if next.revision >= *until.get_or_insert(end) {
                break;
            }
        }
        Ok(any)
    }

    /// Writes pairs of a partition of the source, and the statements that their histories refer to.
    async fn put(&mut self, place: usize, pairs: Vec<PortablePair>) -> Result<(), CopyError> {
        let Some(partition) = self.sources.get(place).map(|source| source.partition.clone()) else {
            return Ok(());
        };
        let pairs = self.rekey(&partition, pairs).await?;
        let digests: Vec<_> = statement_digests(&pairs).into_iter().collect();
        let texts = partition.statements(&digests).await.map_err(CopyError::Source)?;
        let mut found = Vec::with_capacity(texts.len());
        for (digest, text) in digests.into_iter().zip(texts) {
            match text {
                Some(text) => found.push((digest, text)),
                None => {
                    self.missing.insert(digest);
                }
            }
        }
        self.to.put(pairs, found).await
    }

    /// The source's pairs as the copy has them. A pair that several become is written with the first of them,
    /// and again with each other one.
    async fn rekey(
        &mut self,
        partition: &Partition,
        pairs: Vec<PortablePair>,
    ) -> Result<Vec<PortablePair>, CopyError> {
        let Some(rekeying) = &mut self.rekeying else { return Ok(pairs) };
        let mut rekeyed = Vec::with_capacity(pairs.len());
        let mut shared = HashMap::new();
        for mut pair in pairs {
            let key = rekeying.key_today(pair.key());
            if let Some(sources) = rekeying.sources(key) {
                shared.insert(key, sources);
            } else {
                pair.key = rekeying.placed(key, &pair).to_bytes();
                rekeyed.push(pair);
            }
        }
        for (key, sources) in shared {
            let parts = partition.portable_pairs(&sources).await.map_err(CopyError::Source)?;
            let unified = rekeying.unify(key, parts).map_err(|_| {
                CopyError::Source(LedgerError::Damaged(
                    "a pair's record, or it is of a newer version",
                ))
            })?;
            rekeyed.extend(unified);
        }
        Ok(rekeyed)
    }
}
