//! Reads pairs, buckets, and the log with the proof of where it ends.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::conn::Connection;
use super::error::{RedisFailure, RedisRejection, ResponseTimeout};
use super::keyspace::{Keyspace, SENTINEL_FIELD, log_entry, next_head, split_value, stored};
use super::origin::{Origin, Standing};
use super::scripts::{self, Answer, ask, ask_on};
use super::server_info::Topology;
use super::{RedisPartition, Shared};
use crate::stored_secret::StoredSecret;
use crate::{
    Bucket, Identity, LedgerError, LogHead, MAX_PAGE, Page, Position, Read, Tail, UnreadableRecord,
    bucket_of, codec,
};
use consentd_core::businesses::Businesses;
use consentd_core::id::Key;
use consentd_core::partition::Layout;
use consentd_core::record::{Record, Revision};
use consentd_core::time::Timestamp;
use consentd_os::clock::boot;

/// The approximate maximum size of a page of the log, in bytes, so that a reply does not delay other
/// clients.
const MAX_PAGE_BYTES: usize = 1 << 20;

/// How many pairs one script reads.
const MAX_READ: usize = 256;

/// A pair's value in its bucket, if it has one; an error if the bucket was lost.
pub(super) type Value = Result<Option<Vec<u8>>, UnreadableRecord>;

impl RedisPartition {
    pub(crate) async fn identity(&self) -> Result<Arc<Identity>, LedgerError> {
        self.shared.identity().await
    }

    pub(crate) async fn read(&self, keys: Vec<Key>) -> Result<Read, LedgerError> {
        let shared = &*self.shared;
        let identity = shared.identity().await?;
        let mut read = Read { clock: Timestamp::saturating_from_millis(0), pairs: Vec::new() };
        // Without pairs, only the clock is read.
        let none: &[Key] = &[];
        let parts = keys.chunks(MAX_READ);
        for some in parts.chain(keys.is_empty().then_some(none)) {
            let values = shared.values(&identity, some).await;
            let (clock, values) =
                values.map_err(|f| shared.convert_failure_for(identity.epoch, f))?;
            read.clock = clock;
            for value in values {
                if let Err(UnreadableRecord::Lost { bucket }) = value {
                    shared.note_missing_key(&shared.keyspace.bucket(bucket));
                }
                read.pairs.push(value.and_then(|value| stored(value.as_deref())));
            }
        }
        Ok(read)
    }

    pub(crate) async fn bucket(&self, number: u32) -> Result<Bucket, LedgerError> {
        self.bucket_of(&self.shared.held(), number).await
    }

    async fn bucket_of(&self, businesses: &Businesses, number: u32) -> Result<Bucket, LedgerError> {
        let shared = &*self.shared;
        shared.check_open()?;
        let bucket = shared.bucket(businesses, number).await;
        let bucket = bucket.map_err(|failure| shared.convert_failure(failure))?;
        shared.forget_if(|known| known.epoch != bucket.label.epoch);
        Ok(bucket)
    }

    pub(crate) async fn bucket_in_turn(&self, number: u32) -> Result<Bucket, LedgerError> {
        let _turn = self.shared.history_turn().await?;
        self.bucket_of(&Businesses::All, number).await
    }

    pub(crate) async fn read_after(&self, revision: Revision) -> Result<Page, LedgerError> {
        self.shared.check_open()?;
        let shared = &*self.shared;
        let page = shared.poll(&Businesses::All, revision, None).await;
        page.map_err(|failure| shared.convert_failure(failure))
    }

    pub(crate) async fn read_after_head(
        &self,
        revision: Revision,
        head: LogHead,
    ) -> Result<Page, LedgerError> {
        self.shared.check_open()?;
        let shared = &*self.shared;
        let page = shared.poll(&shared.held(), revision, Some(head)).await;
        page.map_err(|failure| shared.convert_failure(failure))
    }
}

impl RedisPartition {
    /// Accepts the ledger as it is, so that followers drop their retained denials. Returns how often it has
    /// been accepted.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the ledger cannot be reached or rejects the command.
    pub(crate) async fn accept(&self) -> Result<u64, LedgerError> {
        let shared = &*self.shared;
        let identity = shared.identity().await?;
        let failed = |failure| shared.convert_failure_for(identity.epoch, failure);
        let (keys, args) = ([&shared.keyspace.meta], [&identity.epoch[..]]);
        let answer = scripts::ACCEPT.run(&shared.writes, &keys, &args).await.map_err(failed)?;
        Ok(Answer::one(answer).number()?)
    }
}

impl Shared {
    pub(super) async fn identity(&self) -> Result<Arc<Identity>, LedgerError> {
        self.check_open()?;
        match self.known_identity() {
            Some(known) => Ok(known),
            // Not `poll`, because a repair needs the identity even if the log or the fence was lost.
            None => match self.fenced_poll(&Businesses::All, Revision::MAX, None).await {
                Ok((page, _)) => Ok(page.identity),
                Err(failure) => Err(self.convert_failure(failure)),
            },
        }
    }

    /// Reads the ledger's clock and pairs' values.
    pub(super) async fn values(
        &self,
        identity: &Identity,
        pairs: &[Key],
    ) -> Result<(Timestamp, Vec<Value>), RedisFailure> {
        let mut keys = vec![self.keyspace.meta.clone()];
        let mut slots = HashMap::new();
        let mut args = vec![identity.epoch.to_vec()];
        for pair in pairs {
            let number = bucket_of(*pair, identity.buckets);
            let slot = *slots.entry(number).or_insert_with(|| {
                keys.push(self.keyspace.bucket(number));
                keys.len()
            });
            args.push(slot.to_string().into_bytes());
            args.push(pair.to_bytes().to_vec());
        }
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        let answer = scripts::READ_PAIRS.run(&self.reads, &keys, &args).await?;
        let answered = boot();
        let mut answer = Answer::of(answer)?;
        let clock = self.known_clock.note(server_time(&mut answer)?, answered);
        let mut values = Vec::with_capacity(pairs.len());
        for pair in pairs {
            values.push(match answer.next()? {
                redis::Value::BulkString(bytes) => Ok(Some(bytes)),
                redis::Value::Nil | redis::Value::Boolean(false) => Ok(None),
                redis::Value::Int(-1) => {
                    Err(UnreadableRecord::Lost { bucket: bucket_of(*pair, identity.buckets) })
                }
                _ => return Err(RedisFailure::Rejected(RedisRejection::MalformedReply)),
            });
        }
        Ok((clock, values))
    }

    /// Reads the pairs of these businesses in a bucket.
    pub(super) async fn bucket(
        &self,
        businesses: &Businesses,
        number: u32,
    ) -> Result<Bucket, RedisFailure> {
        let keys = [self.keyspace.meta.clone(), self.keyspace.bucket(number)];
        let mut answer = Answer::of(scripts::READ_BUCKET.run(&self.reads, &keys, &[]).await?)?;
        let epoch = answer.exactly()?;
        let label = Position { epoch, revision: answer.number()?, head: answer.exactly()? };
        let mut fields = Answer::of(answer.next()?)?;
        let mut pairs = BucketPairs::new(label, businesses.clone());
        while !fields.is_over() {
            let (field, value) = (fields.bytes()?, fields.bytes()?);
            pairs.add(&field, &value, codec::decode_record);
        }
        pairs.into_bucket(number, &self.keyspace)
    }

    /// The ledger's position, without a proof of the primary.
    pub(super) async fn position(&self) -> Result<Position, RedisFailure> {
        let mut command = redis::cmd("HMGET");
        command.arg(&self.keyspace.meta).arg("epoch").arg("rev").arg("head");
        let mut answer = Answer::of(ask(&self.reads, &command).await?)?;
        let epoch = answer.optional()?.ok_or(RedisFailure::Rejected(RedisRejection::Missing))?;
        let epoch =
            epoch.try_into().map_err(|_| RedisFailure::Rejected(RedisRejection::MalformedReply))?;
        Ok(Position { epoch, revision: answer.number()?, head: answer.exactly()? })
    }

    /// The revision and the record time of the first log entry at or after a revision.
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

    /// The fenced poll; entries of other businesses are not decoded. `head` is the log's head at revision
    /// `after`, if the caller knows it.
    pub(super) async fn poll(
        &self,
        businesses: &Businesses,
        after: Revision,
        head: Option<LogHead>,
    ) -> Result<Page, RedisFailure> {
        match self.fenced_poll(businesses, after, head).await? {
            (page, lost) if lost.is_empty() => {
                self.note_log_and_fence_present();
                Ok(page)
            }
            (_, lost) => Err(RedisFailure::lost_key(&String::from_utf8_lossy(&lost))),
        }
    }

    /// In a Cluster, fails if keys of the ledger are on their way to another node.
    ///
    /// A poll declares the fence alone, so that a sidecar needs no permission to write anything else. While
    /// the keys of a slot are moved one by one, the log may have left already. A poll that needs no
    /// entry would then pass, and another one might report the log as lost. This command declares
    /// all keys that the poll reads, and Redis refuses it (ASK, TRYAGAIN) if any of them has left.
    async fn ensure_slot_is_here(&self, connection: &Connection) -> Result<(), RedisFailure> {
        if self.primary.target().topology() != Topology::Cluster {
            return Ok(());
        }
        let mut command = redis::cmd("EXISTS");
        command.arg(&self.keyspace.meta).arg(&self.keyspace.log).arg(&self.keyspace.fence);
        ask_on(&self.reads, connection, &command).await.map(|_| ())
    }

    /// The layout that the ledger states, with the number of this partition. It is the same for as long as this
    /// process runs: a ledger that is divided otherwise has its pairs in other partitions.
    fn layout(&self, partitions: u64, spread: u64, partition: u64) -> Result<Layout, RedisFailure> {
        let malformed = RedisFailure::Rejected(RedisRejection::MalformedReply);
        let numbers = (u32::try_from(partitions), u32::try_from(spread));
        let (Ok(partitions), Ok(spread)) = numbers else { return Err(malformed) };
        let layout = Layout::new(partitions, spread).map_err(|_| malformed)?;
        let known = *self.common.layout.get_or_init(|| layout);
        let own = self.keyspace.partition;
        let rejection = if known.partitions() != partitions {
            RedisRejection::OtherLayout { known: known.partitions(), found: partitions }
        } else if known != layout {
            RedisRejection::OtherSpread { known: known.spread(), found: layout.spread() }
        } else if u64::from(own) != partition {
            RedisRejection::OtherPartition { partition: own, found: partition }
        } else {
            return Ok(layout);
        };
        Err(RedisFailure::Rejected(rejection))
    }

    /// Refuses a partition of another ledger than the first one.
    async fn ensure_of_this_ledger(&self, origin: &Origin) -> Result<(), RedisFailure> {
        let (origins, partition) = (&self.common.origins, self.keyspace.partition);
        let mut standing = origins.note(partition, origin);
        if let Standing::UnlikeFirst { reads } = standing
            && partition > 0
        {
            // The ledger may have been replaced since the first partition was read.
            self.read_first_after(reads).await;
            standing = origins.note(partition, origin);
        }
        match standing {
            Standing::Member => Ok(()),
            Standing::UnlikeFirst { .. } | Standing::Doubtful => {
                Err(RedisFailure::Rejected(RedisRejection::ForeignPartition { partition }))
            }
        }
    }

    /// Reads the first partition, unless that was done since it had been read so often.
    fn read_first_after(&self, reads: u64) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let origins = &self.common.origins;
            let _turn = origins.reading.lock().await;
            if origins.reads() != reads {
                return;
            }
            let layout = self.common.layout.get().copied().unwrap_or_default();
            let (first, _) = RedisPartition::new(Arc::clone(&self.common), 0, layout);
            if first.ends().await.is_err() && origins.reads() == reads {
                origins.note_unread();
            }
        })
    }

    /// The fenced poll, with the missing key of the log or the fence; empty if neither is missing.
    pub(super) async fn fenced_poll(
        &self,
        businesses: &Businesses,
        after: Revision,
        head: Option<LogHead>,
    ) -> Result<(Page, Vec<u8>), RedisFailure> {
        let numbers = [after, count(MAX_PAGE), count(MAX_PAGE_BYTES)].map(|n| n.to_string());
        let names = [&self.keyspace.meta, &self.keyspace.log];
        let args: Vec<&[u8]> = names.into_iter().chain(&numbers).map(String::as_bytes).collect();
        let (connections, fence) = (&self.reads, [&self.keyspace.fence]);
        let connection = connections.connection().await.map_err(RedisFailure::NotSent)?;
        let within = self.common.options.poll_within;
        let proof = async {
            self.ensure_supported(&connection).await?;
            self.check_for_missing_keys(&connection).await?;
            let answer = scripts::POLL.run_on(connections, &connection, &fence, &args).await?;
            let answered = boot();
            self.ensure_slot_is_here(&connection).await?;
            // An isolated former primary answers, too, and its answer proves nothing.
            // In less than the time of a poll, so that the error says which of those that name the primary is missing.
            let confirmed = connections.confirm_primary_within(&connection, within.mul_f64(0.6));
            confirmed.await.map_err(RedisFailure::NotSent)?;
            Ok((answer, answered))
        };
        let Ok(proven) = tokio::time::timeout(within, proof).await else {
            connections.discard(&connection);
            return Err(RedisFailure::NoReply(Arc::new(ResponseTimeout(within))));
        };
        let (answer, answered) = proven?;
        let mut answer = Answer::of(answer)?;
        let epoch = answer.exactly()?;
        let end = Position { epoch, revision: answer.number()?, head: answer.exactly()? };
        let (encoded, buckets) = (answer.bytes()?, answer.number()?);
        let secret = StoredSecret::decode(&encoded)
            .ok_or(RedisFailure::Rejected(RedisRejection::MalformedReply))?;
        self.check_keys(&secret)?;
        let buckets = u32::try_from(buckets)
            .map_err(|_| RedisFailure::Rejected(RedisRejection::MalformedReply))?;
        let accepted = answer.number()?;
        let clock = self.known_clock.note(server_time(&mut answer)?, answered);
        let lost = answer.bytes()?;
        let layout = self.layout(answer.number()?, answer.number()?, answer.number()?)?;
        let ledger = answer.bytes()?;
        if layout.partitions() > 1 {
            self.ensure_of_this_ledger(&Origin { ledger, secret: encoded }).await?;
        }
        let tail = if after >= end.revision {
            Tail::Entries(Vec::new())
        } else {
            entries_after(businesses, after, head, &mut answer)?
        };
        let identity = self.remember(epoch, &secret, layout, buckets);
        Ok((Page { identity, end, accepted, clock, tail }, lost))
    }
}

/// The pairs of a bucket, field by field as Redis returns them.
pub(super) struct BucketPairs {
    label: Position,
    /// Pairs of other businesses are left out.
    businesses: Businesses,
    has_sentinel: bool,
    pairs: Vec<(Key, Result<Record, UnreadableRecord>)>,
    /// Why the whole bucket cannot be used.
    rejection: Option<RedisRejection>,
}

impl BucketPairs {
    /// The pairs of these businesses in a bucket that is read at this position.
    pub(super) fn new(label: Position, businesses: Businesses) -> Self {
        Self { label, businesses, has_sentinel: false, pairs: Vec::new(), rejection: None }
    }

    /// Adds a field and its value, whose record is decoded by `decode`.
    pub(super) fn add(
        &mut self,
        field: &[u8],
        value: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<Record, UnreadableRecord>,
    ) {
        if field == SENTINEL_FIELD {
            self.has_sentinel = true;
            return;
        }
        let Ok(key) = field.try_into().map(Key::from_bytes) else {
            self.rejection = Some(RedisRejection::MalformedReply);
            return;
        };
        if !self.businesses.holds_key(key) {
            return;
        }
        let record = match split_value(value) {
            // The pair was written by an append that failed half-way. Its value counts once that append is
            // completed: until then a fork may discard it, and no follower could detect that.
            Some((version, _)) if version.revision > self.label.revision => {
                self.rejection = Some(RedisRejection::CutShort);
                return;
            }
            Some((_, record)) => decode(record),
            None => Err(UnreadableRecord::Damaged),
        };
        self.pairs.push((key, record));
    }

    /// The whole bucket, once all of its fields were added.
    pub(super) fn into_bucket(
        self,
        number: u32,
        keyspace: &Keyspace,
    ) -> Result<Bucket, RedisFailure> {
        if !self.has_sentinel {
            return Err(RedisFailure::lost_key(&keyspace.bucket(number)));
        }
        match self.rejection {
            Some(rejection) => Err(RedisFailure::Rejected(rejection)),
            None => Ok(Bucket { number, label: self.label, pairs: self.pairs }),
        }
    }
}

fn count(number: usize) -> u64 {
    number.try_into().unwrap_or(u64::MAX)
}

/// Decodes the ledger's clock: seconds and microseconds.
fn server_time(answer: &mut Answer) -> Result<Duration, RedisFailure> {
    Ok(Duration::from_secs(answer.number()?)
        .saturating_add(Duration::from_micros(answer.number()?)))
}

/// Decodes the log entries after revision `after`. The first entry in the reply is the one at `after`: its
/// head is the one that the next entry must continue.
///
/// If that entry was trimmed, the reader's own head is used instead, provided that the entry of the very
/// next revision continues it. An entry's head covers the head before it, so the reader's log and the
/// ledger's are then equal up to that revision, without a gap. Otherwise further entries may be missing.
fn entries_after(
    businesses: &Businesses,
    after: Revision,
    head: Option<LogHead>,
    answer: &mut Answer,
) -> Result<Tail, RedisFailure> {
    let mut previous = (after == 0).then(LogHead::default);
    let mut entries = Vec::new();
    let mut expected = after;
    while !answer.is_over() && entries.len() < MAX_PAGE {
        let (revision, body) = (answer.revision()?, answer.bytes()?);
        let head_after: LogHead = answer.exactly()?;
        match previous {
            None if revision == after => {}
            None => match head.filter(|known| {
                after.checked_add(1) == Some(revision)
                    && next_head(known, revision, &body) == head_after
            }) {
                Some(known) => {
                    entries.push(log_entry(businesses, known, revision, &body, head_after));
                }
                None => return Ok(Tail::Trimmed),
            },
            Some(previous) if expected.checked_add(1) == Some(revision) => {
                entries.push(log_entry(businesses, previous, revision, &body, head_after));
            }
            _ => return Ok(Tail::Trimmed),
        }
        (previous, expected) = (Some(head_after), revision);
    }
    // The ledger's revision is after `after`, and the log has no entries there: it was emptied.
    Ok(if entries.is_empty() { Tail::Trimmed } else { Tail::Entries(entries) })
}

/// The record time of a log entry.
fn time_of(body: &[u8]) -> Option<Timestamp> {
    codec::decode_log(body).ok().map(|body| body.record_time)
}
