//! Taking away what was erased.
//!
//! An erase is an append like any other: its tombstone is compared with what is there, written, and
//! completed from the log where it was cut short. With it comes a mark of its pair, in a hash of
//! its own, so that what is left to do is known whatever becomes of its recorder: first the pair's
//! history, part by part, which dooms the statements that it referred to; then those statements,
//! once all histories were looked through and none refers to them. An append that refers to one
//! ends its doom. Every step may be done twice, and by anybody.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{RedisFailure, RedisRejection};
use super::keyspace::{HistoryItem, history_place, split_value};
use super::roll_forward::roll_forward;
use super::scripts::{self, Answer};
use super::{Redis, Shared};
use crate::{Identity, LedgerError, Retention, bucket_of, codec};
use consentd_core::id::Key;
use consentd_core::record::Record;

/// How often a pair's history is begun anew to be taken away, for others write to the pair.
const MAX_TRIES: usize = 32;

/// How many fields one script removes.
const MAX_FIELDS: usize = 256;

/// How many pairs, and how many statements, are done with at once: the rest comes next time.
const MAX_MARKS: usize = 16_384;

/// What is marked.
#[derive(Default)]
struct Marks {
    /// Pairs whose histories are to be taken away.
    pairs: BTreeSet<[u8; 16]>,
    /// Statements that are to go where nobody refers to them, and the tokens that doomed them.
    doomed: BTreeMap<[u8; 32], Vec<u8>>,
}

/// A field of a history, and the digest of the statement that it refers to.
type Field = (Vec<u8>, Option<[u8; 32]>);

impl Redis {
    pub(crate) fn retention(&self) -> Option<Retention> {
        self.shared.options.retention
    }

    pub(crate) async fn purge(&self, keys: &[Key]) -> Result<(), LedgerError> {
        let shared = &*self.shared;
        let identity = shared.identity().await?;
        for key in keys {
            let purged = shared.purge(&identity, *key).await;
            purged.map_err(|failure| shared.convert_failure_for(identity.epoch, failure))?;
        }
        Ok(())
    }
}

impl Shared {
    /// Goes on with what was erased.
    pub(super) async fn finish_erasing(&self, identity: &Identity) -> Result<(), RedisFailure> {
        let mut lost = Ok(());
        for key in self.marks().await?.pairs {
            match self.purge(identity, Key::from_bytes(key)).await {
                // Others' are taken away all the same; this one's once its keys are back.
                Err(failure @ RedisFailure::Rejected(RedisRejection::LostKey { .. })) => {
                    lost = Err(failure);
                }
                purged => purged?,
            }
        }
        lost?;
        let doomed = self.marks().await?.doomed;
        if doomed.is_empty() {
            return Ok(());
        }
        let found = self.referred_to(identity, &doomed).await?;
        let doomed: Vec<_> = doomed.into_iter().collect();
        for some in doomed.chunks(MAX_FIELDS) {
            let mut args = vec![&identity.epoch[..]];
            for (digest, token) in some {
                let remove: &[u8] = if found.contains(digest) { b"" } else { b"1" };
                args.extend([&digest[..], token.as_slice(), remove]);
            }
            let keys = [&self.keyspace.meta, &self.keyspace.text, &self.keyspace.erased];
            scripts::DELETE_STATEMENTS.run(&self.writes, &keys, &args).await?;
        }
        Ok(())
    }

    async fn marks(&self) -> Result<Marks, RedisFailure> {
        let mut marks = Marks::default();
        let mut cursor = 0;
        loop {
            let (next, found) = self.scan(&self.keyspace.erased, cursor).await?;
            for (field, token) in found {
                if let Ok(key) = <[u8; 16]>::try_from(field.as_slice()) {
                    marks.pairs.insert(key);
                } else if let Ok(digest) = <[u8; 32]>::try_from(field.as_slice()) {
                    marks.doomed.insert(digest, token);
                }
            }
            if next == 0 || marks.pairs.len().max(marks.doomed.len()) >= MAX_MARKS {
                return Ok(marks);
            }
            cursor = next;
        }
    }

    /// Those of these statements that any history refers to. One that comes to do so meanwhile ends
    /// the doom by itself.
    async fn referred_to(
        &self,
        identity: &Identity,
        doomed: &BTreeMap<[u8; 32], Vec<u8>>,
    ) -> Result<BTreeSet<[u8; 32]>, RedisFailure> {
        let mut found = BTreeSet::new();
        for number in 0..identity.buckets {
            let hash = self.keyspace.history(number);
            // What it has not may be rebuilt, and then refers to them.
            self.check_hash(&hash).await?;
            let mut cursor = 0;
            loop {
                let (next, fields) = self.scan(&hash, cursor).await?;
                let digests = fields.iter().filter_map(|(_, value)| statement(value));
                found.extend(digests.filter(|digest| doomed.contains_key(digest)));
                if next == 0 {
                    break;
                }
                cursor = next;
            }
            if found.len() == doomed.len() {
                break;
            }
        }
        Ok(found)
    }

    /// Takes away what is left of a pair's erased history, and what an append that was cut short
    /// has left behind it.
    async fn purge(&self, identity: &Identity, key: Key) -> Result<(), RedisFailure> {
        let number = bucket_of(key, identity.buckets);
        for _ in 0..MAX_TRIES {
            let (_, mut values) = self.values(identity, &[key]).await?;
            let value = values.pop().unwrap_or(Ok(None));
            let value = value.map_err(|_| RedisFailure::lost_key(&self.keyspace.bucket(number)))?;
            let value = value.unwrap_or_default();
            let record = match split_value(&value).map(|(_, record)| codec::decode_record(record)) {
                None => Ok(Record::default()),
                Some(record) => record,
            };
            // One that this version cannot read is for whoever can.
            let Ok(record) = record else { return Ok(()) };
            let fields = match record.erased {
                Some(_) => self.erased_fields(number, key, &record).await?,
                // Another came first, and the erase that left this mark was never written.
                None => Vec::new(),
            };
            match self.take_away(identity, number, (key, &value), &fields).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(RedisFailure::Rejected(RedisRejection::CutShort)) => {
                    roll_forward(&self.writes, &self.keyspace, identity.epoch, false).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(RedisFailure::Rejected(RedisRejection::CutShort))
    }

    /// The fields of a pair's history that its record does not tell of.
    async fn erased_fields(
        &self,
        number: u32,
        key: Key,
        record: &Record,
    ) -> Result<Vec<Field>, RedisFailure> {
        let (start, _) = record.history_start();
        let hash = self.keyspace.history(number);
        let (mut cursor, mut fields) = (0, BTreeMap::new());
        loop {
            let (next, found) = self.scan(&hash, cursor).await?;
            for (field, value) in found {
                let place = history_place(key, &field);
                if place.is_some_and(|place| place < start || place >= record.history_len) {
                    fields.insert(field, statement(&value));
                }
            }
            if next == 0 {
                return Ok(fields.into_iter().collect());
            }
            cursor = next;
        }
    }

    /// Removes these fields, and the pair's mark in the end; tells whether the pair is still what
    /// was read.
    async fn take_away(
        &self,
        identity: &Identity,
        number: u32,
        (key, value): (Key, &[u8]),
        fields: &[Field],
    ) -> Result<bool, RedisFailure> {
        let keyspace = &self.keyspace;
        let (bucket, history) = (keyspace.bucket(number), keyspace.history(number));
        let keys = [&keyspace.meta, &keyspace.log, &bucket, &history, &keyspace.erased];
        let mut token = [0; 16];
        // Tokens need to differ, and no more.
        getrandom::fill(&mut token)
            .map_err(|_| RedisFailure::Rejected(RedisRejection::MalformedReply))?;
        let mut parts: Vec<&[Field]> = fields.chunks(MAX_FIELDS).collect();
        parts.push(&[]);
        let last = parts.len();
        for (part, n) in parts.into_iter().zip(1..) {
            let digests: BTreeSet<_> = part.iter().filter_map(|(_, digest)| *digest).collect();
            let count = digests.len().to_string();
            let is_last: &[u8] = if n == last { b"1" } else { b"" };
            let pair = key.to_bytes();
            let mut args =
                vec![&identity.epoch[..], &pair, value, &token, is_last, count.as_bytes()];
            args.extend(digests.iter().map(|digest| &digest[..]));
            args.extend(part.iter().map(|(field, _)| field.as_slice()));
            let answer = scripts::ERASE_HISTORY.run(&self.writes, &keys, &args).await?;
            if Answer::of(redis::Value::Array(vec![answer]))?.number()? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The digest of the statement that a history field's value refers to.
fn statement(value: &[u8]) -> Option<[u8; 32]> {
    match HistoryItem::decode(value)?.1 {
        HistoryItem::Kept(entry) => codec::statement_digest_of(entry),
        HistoryItem::Perishable(_) | HistoryItem::Gone(_) => None,
    }
}
