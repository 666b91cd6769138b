//! Erasure, and the garbage collection of statements.
//!
//! An erase is an append like any other: its tombstone is compared, written, and rolled forward if it failed
//! half-way. It also adds the pair to the erasure queue, a hash of its own, so that the remaining work is
//! known even if its recorder ends. First the pair's history is deleted, part by part, which queue the
//! statements that it referred to for deletion. Then, once all histories have been scanned, the marked
//! statements that none of them refers to are deleted. An append that refers to a statement clears its mark.
//! Every step is idempotent and may run in any process.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{RedisFailure, RedisRejection};
use super::keyspace::{decode_item, history_place, split_value};
use super::roll_forward::roll_forward;
use super::scripts::{self, Answer};
use super::{RedisPartition, Shared};
use crate::{Identity, LedgerError, bucket_of, codec};
use consentd_core::id::Key;
use consentd_core::record::Record;

/// How often deleting a pair's history is restarted because the pair was written meanwhile.
const MAX_TRIES: usize = 32;

/// How many fields one script deletes.
const MAX_FIELDS: usize = 256;

/// The maximum number of pairs, and of statements, in one pass. The rest follows in the next pass.
const MAX_QUEUED: usize = 16_384;

/// The erasure queue.
#[derive(Default)]
struct ErasureQueue {
    /// The pairs whose histories are to be deleted.
    pairs: BTreeSet<[u8; 16]>,
    /// The statements that are marked for deletion, and the tokens of the erases that marked them.
    condemned: BTreeMap<[u8; 32], Vec<u8>>,
}

/// A field of a history, and the digest of the statement that its entry refers to.
type Field = (Vec<u8>, Option<[u8; 32]>);

impl RedisPartition {
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
    /// Runs one pass: deletes the histories in the queue, and then the marked statements without references.
    pub(super) async fn collect_garbage(&self, identity: &Identity) -> Result<(), RedisFailure> {
        let mut lost = Ok(());
        for key in self.erasure_queue().await?.pairs {
            match self.purge(identity, Key::from_bytes(key)).await {
                // The other histories are deleted all the same; this one once its keys are repaired.
                Err(failure @ RedisFailure::Rejected(RedisRejection::LostKey { .. })) => {
                    lost = Err(failure);
                }
                purged => purged?,
            }
        }
        lost?;
        let condemned = self.erasure_queue().await?.condemned;
        if condemned.is_empty() {
            return Ok(());
        }
        let found = self.referenced(identity, &condemned).await?;
        let condemned: Vec<_> = condemned.into_iter().collect();
        for some in condemned.chunks(MAX_FIELDS) {
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

    async fn erasure_queue(&self) -> Result<ErasureQueue, RedisFailure> {
        let mut queue = ErasureQueue::default();
        let mut cursor = 0;
        loop {
            let (next, found) = self.scan(&self.keyspace.erased, cursor).await?;
            for (field, token) in found {
                if let Ok(key) = <[u8; 16]>::try_from(field.as_slice()) {
                    queue.pairs.insert(key);
                } else if let Ok(digest) = <[u8; 32]>::try_from(field.as_slice()) {
                    queue.condemned.insert(digest, token);
                }
            }
            if next == 0 || queue.pairs.len().max(queue.condemned.len()) >= MAX_QUEUED {
                return Ok(queue);
            }
            cursor = next;
        }
    }

    /// Scans all histories for references to these statements. An append that adds a reference meanwhile
    /// clears the mark itself.
    async fn referenced(
        &self,
        identity: &Identity,
        condemned: &BTreeMap<[u8; 32], Vec<u8>>,
    ) -> Result<BTreeSet<[u8; 32]>, RedisFailure> {
        let mut found = BTreeSet::new();
        for number in 0..identity.buckets {
            let hash = self.keyspace.history(number);
            // A lost entry may be rebuilt, and then refers to its statement.
            self.check_hash(&hash).await?;
            let mut cursor = 0;
            loop {
                let (next, fields) = self.scan(&hash, cursor).await?;
                let digests = fields.iter().filter_map(|(_, value)| statement(value));
                found.extend(digests.filter(|digest| condemned.contains_key(digest)));
                if next == 0 {
                    break;
                }
                cursor = next;
            }
            if found.len() == condemned.len() {
                break;
            }
        }
        Ok(found)
    }

    /// Deletes a pair's erased history, including entries that an append which failed half-way has left.
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
            // A record of a newer format is left to a process that can read it.
            let Ok(record) = record else { return Ok(()) };
            let fields = match record.erased {
                Some(_) => self.erased_fields(number, key, &record).await?,
                // The erase lost its compare-and-set and was not written: there is only its entry in the
                // queue.
                None => Vec::new(),
            };
            match self.delete_fields(identity, number, (key, &value), &fields).await {
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

    /// The leftover fields of a pair's history: their index is outside the range that its record states.
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

    /// Deletes these fields, and in the end the pair's entry in the queue. Returns false if the pair has
    /// changed since it was read.
    async fn delete_fields(
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
        // Tokens only have to be unique.
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
            if Answer::one(answer).number()? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The digest of the statement that a history field's value refers to.
fn statement(value: &[u8]) -> Option<[u8; 32]> {
    decode_item(value)?.1.statement_digest()
}
