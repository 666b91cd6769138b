//! Reads pairs with their histories in their encoded form, for verification and for copies.

use std::collections::HashMap;
use std::ops::Range;

use super::super::error::{RedisFailure, RedisRejection};
use super::super::keyspace::{SENTINEL_FIELD, decode_item, history_field, split_value};
use super::super::scripts::{self, Answer, ask};
use super::super::{RedisPartition, Shared};
use crate::portable_pair::{PortableBucket, PortableEntry, PortablePair};
use crate::stored_secret::StoredSecret;
use crate::{LedgerError, Position, bucket_of, codec};
use consentd_core::id::Key;

/// How many fields one command reads.
const MAX_FIELDS: usize = 512;

/// The maximum length of a history. A record that states a longer one is damaged.
const MAX_HISTORY: u64 = 1 << 22;

/// A bucket with undecoded fields.
pub(super) struct RawBucket {
    pub(super) label: Position,
    pub(super) has_sentinel: bool,
    pub(super) fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Shared {
    pub(super) async fn raw_bucket(&self, number: u32) -> Result<RawBucket, RedisFailure> {
        let keys = [self.keyspace.meta.clone(), self.keyspace.bucket(number)];
        let mut answer = Answer::of(scripts::READ_BUCKET.run(&self.reads, &keys, &[]).await?)?;
        let epoch = answer.exactly()?;
        let label = Position { epoch, revision: answer.number()?, head: answer.exactly()? };
        let mut all = Answer::of(answer.next()?)?;
        let mut raw = RawBucket { label, has_sentinel: false, fields: Vec::new() };
        while !all.is_over() {
            let (field, value) = (all.bytes()?, all.bytes()?);
            if field == SENTINEL_FIELD {
                raw.has_sentinel = true;
            } else {
                raw.fields.push((field, value));
            }
        }
        Ok(raw)
    }

    /// Reads any number of fields of a hash.
    pub(super) async fn many(
        &self,
        hash: &str,
        fields: &[Vec<u8>],
    ) -> Result<Vec<Option<Vec<u8>>>, RedisFailure> {
        let mut values = Vec::with_capacity(fields.len());
        for some in fields.chunks(MAX_FIELDS) {
            let mut command = redis::cmd("HMGET");
            command.arg(hash);
            for field in some {
                command.arg(field.as_slice());
            }
            let mut answer = Answer::of(ask(&self.reads, &command).await?)?;
            for _ in some {
                values.push(answer.optional()?);
            }
        }
        Ok(values)
    }

    /// Reads the histories of pairs of one bucket, each in the range that the pair's record states.
    pub(super) async fn fill_histories(
        &self,
        bucket: u32,
        pairs: &mut [(&mut PortablePair, Range<u64>)],
    ) -> Result<(), RedisFailure> {
        for (_, places) in pairs.iter_mut() {
            places.end = places.end.min(places.start.saturating_add(MAX_HISTORY));
        }
        let fields: Vec<_> = pairs
            .iter()
            .flat_map(|(pair, places)| places.clone().map(|place| history_field(pair.key(), place)))
            .collect();
        let mut values = self.many(&self.keyspace.history(bucket), &fields).await?.into_iter();
        for (pair, places) in pairs {
            let entries = values.by_ref().take(places.clone().count());
            pair.history = entries.map(|value| value.as_deref().and_then(entry)).collect();
        }
        Ok(())
    }

    /// Reads these pairs with their histories, and skips those that do not exist.
    pub(super) async fn portable_pairs(
        &self,
        keys: &[Key],
    ) -> Result<Vec<PortablePair>, LedgerError> {
        let identity = self.identity().await?;
        let (_, values) = self
            .values(&identity, keys)
            .await
            .map_err(|failure| self.convert_failure_for(identity.epoch, failure))?;
        let mut by_bucket: HashMap<u32, Vec<PortablePair>> = HashMap::new();
        for (key, value) in keys.iter().zip(values) {
            let number = bucket_of(*key, identity.buckets);
            let value = value.map_err(|_| {
                self.convert_failure(RedisFailure::lost_key(&self.keyspace.bucket(number)))
            })?;
            let Some(value) = value else { continue };
            let pair = pair(key.to_bytes(), &value)?;
            by_bucket.entry(bucket_of(*key, identity.buckets)).or_default().push(pair);
        }
        let mut all = Vec::with_capacity(keys.len());
        for (bucket, mut pairs) in by_bucket {
            self.with_histories(bucket, &mut pairs).await?;
            all.extend(pairs);
        }
        Ok(all)
    }

    async fn with_histories(
        &self,
        bucket: u32,
        pairs: &mut [PortablePair],
    ) -> Result<(), LedgerError> {
        let mut sized = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let record = pair.decode().map_err(|_| unreadable())?;
            sized.push((pair, record.history_start().0..record.history_len));
        }
        self.check_hash(&self.keyspace.history(bucket)).await?;
        Ok(self.fill_histories(bucket, &mut sized).await?)
    }
}

fn unreadable() -> LedgerError {
    LedgerError::Damaged("a pair's record, or this version cannot read it")
}

/// Decodes a pair's value, without its history.
fn pair(key: [u8; 16], value: &[u8]) -> Result<PortablePair, LedgerError> {
    let (version, record) = split_value(value).ok_or_else(unreadable)?;
    codec::decode_record(record).map_err(|_| unreadable())?;
    let (revision, head_prefix) = (version.revision, version.head_prefix);
    Ok(PortablePair { key, revision, head_prefix, record: record.to_vec(), history: Vec::new() })
}

/// Decodes a history entry by the value of its field.
pub(super) fn entry(value: &[u8]) -> Option<PortableEntry> {
    let (revision, item) = decode_item(value)?;
    Some(PortableEntry { revision, item: item.into_owned() })
}

impl RedisPartition {
    /// Reads the pairs of one bucket with their histories. Histories only grow, and are read after the
    /// records, so they contain all entries that the records state.
    pub(crate) async fn portable_bucket(&self, number: u32) -> Result<PortableBucket, LedgerError> {
        let shared = &*self.shared;
        shared.check_open()?;
        let raw = shared.raw_bucket(number).await?;
        if !raw.has_sentinel {
            return Err(RedisFailure::lost_key(&shared.keyspace.bucket(number)).into());
        }
        let mut pairs = Vec::with_capacity(raw.fields.len());
        for (field, value) in raw.fields {
            let key = field.try_into().map_err(|_| LedgerError::Damaged("a bucket"))?;
            let pair = pair(key, &value)?;
            if pair.revision > raw.label.revision {
                return Err(RedisRejection::CutShort.into());
            }
            pairs.push(pair);
        }
        shared.with_histories(number, &mut pairs).await?;
        Ok(PortableBucket { label: raw.label, pairs })
    }

    /// Reads these pairs with their histories, and skips those that do not exist.
    pub(crate) async fn portable_pairs(
        &self,
        keys: &[Key],
    ) -> Result<Vec<PortablePair>, LedgerError> {
        self.shared.portable_pairs(keys).await
    }

    /// Reads statements by their digests; `None` for one that is missing or was modified.
    pub(crate) async fn statements(
        &self,
        digests: &[[u8; 32]],
    ) -> Result<Vec<Option<Vec<u8>>>, LedgerError> {
        let fields: Vec<_> = digests.iter().map(|digest| digest.to_vec()).collect();
        self.shared.check_hash(&self.shared.keyspace.text).await?;
        let texts = self.shared.many(&self.shared.keyspace.text, &fields).await?;
        let own = |digest: &[u8; 32], text: Option<Vec<u8>>| {
            text.filter(|text| consentd_core::record::sha256(text) == *digest)
        };
        Ok(digests.iter().zip(texts).map(|(digest, text)| own(digest, text)).collect())
    }

    /// Reads the secret of the pairs' keys.
    pub(crate) async fn secret(&self) -> Result<StoredSecret, LedgerError> {
        let mut command = redis::cmd("HGET");
        command.arg(&self.shared.keyspace.meta).arg("secret");
        let value = ask(&self.shared.reads, &command).await?;
        let secret = Answer::one(value).bytes()?;
        StoredSecret::decode(&secret).ok_or(LedgerError::Damaged("the secret of the keys"))
    }
}
