//! Histories: each entry is a field of a hash of its bucket's histories.

use std::collections::HashMap;

use tokio::sync::SemaphorePermit;

use super::error::{RedisFailure, RedisRejection};
use super::keyspace::{SENTINEL_FIELD, decode_item, history_field, split_value};
use super::scripts::{Answer, ask};
use super::{RedisPartition, Shared};
use crate::history::{HistoryBuilder, MAX_PAGE_BYTES, bytes_of};
use crate::{Cursor, Events, History, Identity, LedgerError, MAX_PAGE, codec};
use consentd_core::businesses::Businesses;
use consentd_core::id::Key;
use consentd_core::record::{Record, sha256};

/// How many fields one command reads.
const MAX_FIELDS: usize = 512;

/// How often a history is read again because the pair was erased meanwhile.
const MAX_TRIES: usize = 4;

impl RedisPartition {
    pub(crate) async fn history(&self, key: Key) -> Result<History, LedgerError> {
        let shared = &*self.shared;
        let _turn = shared.history_turn().await?;
        let identity = shared.identity().await?;
        let record = shared.record(&identity, key).await?;
        shared.history_of(&identity, key, record, &mut Texts::default()).await
    }

    /// Reads a page of all recorded events: the histories of whole pairs, bucket by bucket and by key,
    /// until there are [`MAX_PAGE`] entries or [`MAX_PAGE_BYTES`]. Each pair's events are in the order in
    /// which they were recorded. The cursor has the number of the next bucket, and the last pair of it that
    /// was read.
    pub(crate) async fn events_after(&self, cursor: Cursor) -> Result<Events, LedgerError> {
        let shared = &*self.shared;
        let _turn = shared.history_turn().await?;
        let identity = shared.identity().await?;
        let mut events = Events { entries: Vec::new(), next: None, by_revision: false };
        let mut texts = Texts::default();
        let mut bytes = 0;
        let is_full =
            |events: &Events, bytes| events.entries.len() >= MAX_PAGE || bytes >= MAX_PAGE_BYTES;
        let Cursor { after, pair: mut last, partition: _, chains: _ } = cursor;
        for number in u32::try_from(after).unwrap_or(u32::MAX)..identity.buckets {
            let next = Cursor { after: number.into(), ..Cursor::default() };
            if is_full(&events, bytes) {
                events.next = Some(next);
                break;
            }
            let bucket = shared
                .bucket(&Businesses::All, number)
                .await
                .map_err(|failure| shared.convert_failure(failure))?;
            if bucket.label.epoch != identity.epoch {
                shared.forget(identity.epoch);
                return Err(RedisRejection::Replaced.into());
            }
            let mut pairs = bucket.pairs;
            pairs.sort_unstable_by_key(|(key, _)| *key);
            let last = last.take();
            let pairs = pairs.into_iter().filter(|(key, _)| last.is_none_or(|last| *key > last));
            let mut pairs = pairs.peekable();
            while let Some((key, record)) = pairs.next() {
                let record = record.map_err(|_| {
                    LedgerError::Damaged("a pair's record, or this version cannot read it")
                })?;
                let history = shared.history_of(&identity, key, record, &mut texts).await?;
                if history.unreadable > 0 {
                    return Err(LedgerError::Damaged("a history entry"));
                }
                bytes += history.entries.iter().map(|(_, entry)| bytes_of(entry)).sum::<usize>();
                events.entries.extend(history.entries);
                if is_full(&events, bytes) && pairs.peek().is_some() {
                    events.next = Some(Cursor { pair: Some(key), ..next });
                    return Ok(events);
                }
            }
        }
        Ok(events)
    }
}

/// A cache of statements by their digests; `None` for a missing or modified statement.
#[derive(Default)]
struct Texts(HashMap<Vec<u8>, Option<String>>);

impl Shared {
    /// Waits until fewer than [`MAX_READS`](crate::history::MAX_READS) reads of histories are under way.
    pub(super) async fn history_turn(&self) -> Result<SemaphorePermit<'_>, LedgerError> {
        self.history_reads.acquire().await.map_err(|_| LedgerError::Closed)
    }

    /// A pair's record; the empty record if it has none.
    async fn record(&self, identity: &Identity, key: Key) -> Result<Record, LedgerError> {
        let values = self.values(identity, &[key]).await;
        let (_, mut values) =
            values.map_err(|failure| self.convert_failure_for(identity.epoch, failure))?;
        let value = match values.pop() {
            Some(Ok(Some(value))) => value,
            Some(Err(_)) => {
                let number = crate::bucket_of(key, identity.buckets);
                return Err(
                    self.convert_failure(RedisFailure::lost_key(&self.keyspace.bucket(number)))
                );
            }
            Some(Ok(None)) | None => return Ok(Record::default()),
        };
        split_value(&value)
            .and_then(|(_, record)| codec::decode_record(record).ok())
            .ok_or(LedgerError::Damaged("the pair's record, or this version cannot read it"))
    }

    /// The history of a pair that had this record. If the pair is erased meanwhile, its entries disappear
    /// while they are read: then the history is read again by the pair's current record.
    async fn history_of(
        &self,
        identity: &Identity,
        key: Key,
        mut record: Record,
        texts: &mut Texts,
    ) -> Result<History, LedgerError> {
        let bucket = crate::bucket_of(key, identity.buckets);
        for _ in 1..MAX_TRIES {
            let read = self.history(bucket, key, record, texts).await?;
            if read.intact {
                return Ok(read);
            }
            record = self.record(identity, key).await?;
            if record.history_start() == read.record.history_start() {
                return Ok(read);
            }
        }
        self.history(bucket, key, record, texts).await
    }

    /// The history of a pair, with the length and the chain that this record states.
    async fn history(
        &self,
        bucket: u32,
        key: Key,
        record: Record,
        texts: &mut Texts,
    ) -> Result<History, LedgerError> {
        let len = record.history_len;
        let (mut from, _) = record.history_start();
        let mut reading = HistoryBuilder::new(record);
        while from < len {
            let some = u64::try_from(MAX_FIELDS).unwrap_or(u64::MAX);
            let to = from.saturating_add(some).min(len);
            let fields: Vec<_> = (from..to).map(|place| history_field(key, place)).collect();
            let values = self.fields(&self.keyspace.history(bucket), &fields).await;
            let values = values.map_err(|failure| self.convert_failure(failure))?;
            let items = values.iter().map(|value| value.as_deref().map(decode_item));
            let items: Vec<_> = items.collect();
            let entries =
                items.iter().flatten().flatten().filter_map(|(_, item)| item.encoded_entry());
            self.read_texts(entries, texts)
                .await
                .map_err(|failure| self.convert_failure(failure))?;
            for item in &items {
                // A missing or malformed item breaks the chain; the other entries are still returned.
                let (revision, item) = match item {
                    Some(Some(item)) => item,
                    Some(None) => {
                        reading.push_garbled();
                        continue;
                    }
                    None => {
                        reading.push_missing();
                        continue;
                    }
                };
                reading.push(*revision, item, |digest| texts.0.get(digest)?.clone());
            }
            from = to;
        }
        Ok(reading.finish())
    }

    /// Reads the statements that these entries refer to into the cache.
    async fn read_texts(
        &self,
        entries: impl Iterator<Item = &[u8]>,
        texts: &mut Texts,
    ) -> Result<(), RedisFailure> {
        let mut missing = Vec::new();
        for entry in entries {
            let note = |digest: &[u8]| {
                if !texts.0.contains_key(digest) {
                    texts.0.insert(digest.to_vec(), None);
                    missing.push(digest.to_vec());
                }
                Some(String::new())
            };
            let _ = codec::decode_history(entry, note);
        }
        for some in missing.chunks(MAX_FIELDS) {
            let values = self.fields(&self.keyspace.text, some).await?;
            for (digest, value) in some.iter().zip(values) {
                // A statement that does not match its digest was modified, and is not what was agreed to.
                let value = value.filter(|value| sha256(value)[..] == digest[..]);
                texts
                    .0
                    .insert(digest.clone(), value.and_then(|value| String::from_utf8(value).ok()));
            }
        }
        Ok(())
    }

    /// Reads fields of a hash. Fails if the hash lacks its sentinel field.
    async fn fields(
        &self,
        hash: &str,
        fields: &[Vec<u8>],
    ) -> Result<Vec<Option<Vec<u8>>>, RedisFailure> {
        let mut command = redis::cmd("HMGET");
        command.arg(hash).arg(SENTINEL_FIELD);
        for field in fields {
            command.arg(field.as_slice());
        }
        let mut answer = Answer::of(ask(&self.reads, &command).await?)?;
        if answer.optional()?.is_none() {
            return Err(RedisFailure::lost_key(hash));
        }
        fields.iter().map(|_| answer.optional()).collect()
    }

    /// Fails if a hash lacks its sentinel field, because it was deleted or evicted.
    pub(super) async fn check_hash(&self, hash: &str) -> Result<(), RedisFailure> {
        self.fields(hash, &[]).await.map(|_| ())
    }

    /// Scans a part of a hash: the next cursor, 0 at the end, and fields with their values.
    pub(super) async fn scan(
        &self,
        hash: &str,
        cursor: u64,
    ) -> Result<(u64, Vec<(Vec<u8>, Vec<u8>)>), RedisFailure> {
        let mut command = redis::cmd("HSCAN");
        command.arg(hash).arg(cursor).arg("COUNT").arg(MAX_FIELDS);
        let mut answer = Answer::of(ask(&self.writes, &command).await?)?;
        let next = answer.number()?;
        let mut fields = Answer::of(answer.next()?)?;
        let mut found = Vec::new();
        while !fields.is_over() {
            let (field, value) = (fields.bytes()?, fields.bytes()?);
            if field != SENTINEL_FIELD {
                found.push((field, value));
            }
        }
        Ok((next, found))
    }
}
