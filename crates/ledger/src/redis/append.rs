//! Changes on their way to the script that appends them.

use std::collections::HashMap;

use redis::Cmd;
use tokio::sync::oneshot;

use super::error::{RedisFailure, RedisRejection};
use super::keyspace::{self, BodyOffsets, Keyspace, history_field, version_bytes};
use super::scripts::{self, Answer};
use super::{MAX_WAITING, Redis};
use crate::{
    AppendReceipt, Appended, Change, Epoch, Identity, LedgerError, LogBody, Update, Version,
    bucket_of, codec,
};
use consentd_core::id::Key;
use consentd_core::record::{extend_chain, sha256};

/// The most changes of one script: Redis does nothing else meanwhile.
pub(super) const MAX_SCRIPT: usize = 128;

const _: () = assert!(crate::MAX_APPEND <= MAX_WAITING, "an append must find room");

/// A change, encoded before it waits for its turn. Its bytes stay the same however often it is sent.
pub(super) struct Prepared {
    key: Key,
    pub(super) base: Version,
    bucket: u32,
    pub(super) update: Option<PreparedUpdate>,
}

pub(super) struct PreparedUpdate {
    body: Vec<u8>,
    place: BodyOffsets,
    /// Fields and items, oldest first.
    history: Vec<(Vec<u8>, Vec<u8>)>,
    texts: Vec<([u8; 32], String)>,
    is_denial: bool,
    erases: bool,
}

impl PreparedUpdate {
    /// The record that it writes, encoded.
    fn record(&self) -> Option<&[u8]> {
        let from = usize::try_from(self.place.record_at).ok()?;
        let length = usize::try_from(self.place.record_len).ok()?;
        self.body.get(from..from.checked_add(length)?)
    }
}

/// A change that waits, and who waits for it.
pub(super) struct PendingAppend {
    /// The ledger that it is for.
    pub(super) epoch: Epoch,
    /// Whether it may write to a bucket that was lost, which it rebuilds.
    pub(super) repairs: bool,
    pub(super) change: Prepared,
    pub(super) answer: oneshot::Sender<Result<AppendReceipt, LedgerError>>,
    /// It was sent, and no answer came: it may have been written.
    pub(super) is_unsure: bool,
}

impl Redis {
    pub(crate) async fn append(
        &self,
        changes: Vec<Change>,
    ) -> Result<Vec<AppendReceipt>, LedgerError> {
        self.append_as(false, changes).await
    }

    /// Appends; a repair also where a bucket was lost.
    pub(super) async fn append_as(
        &self,
        repairs: bool,
        changes: Vec<Change>,
    ) -> Result<Vec<AppendReceipt>, LedgerError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let identity = self.shared.identity().await?;
        let room = self.appends.try_reserve_many(changes.len()).map_err(|error| match error {
            tokio::sync::mpsc::error::TrySendError::Full(()) => LedgerError::Busy,
            tokio::sync::mpsc::error::TrySendError::Closed(()) => LedgerError::Closed,
        })?;
        let mut answers = Vec::with_capacity(changes.len());
        // All together, so that they stand in the log in the order given.
        for (place, change) in room.zip(changes) {
            let change = Prepared::of(change, &identity);
            let (answer, answered) = oneshot::channel();
            let epoch = identity.epoch;
            place.send(PendingAppend { epoch, repairs, change, answer, is_unsure: false });
            answers.push(answered);
        }
        let mut appended = Vec::with_capacity(answers.len());
        for answered in answers {
            // A driver that was dropped took the change with it.
            let outcome = answered.await.unwrap_or(Err(LedgerError::Closed));
            let failed = |error| AppendReceipt::unforked(Appended::Failed(error));
            appended.push(outcome.unwrap_or_else(failed));
        }
        // Where nothing was done to any of them, there is one answer; but what may have been written
        // is never answered with the error of what was not.
        let failure = |written: &AppendReceipt| match &written.outcome {
            Appended::Failed(error) => Some(error.clone()),
            _ => None,
        };
        let Some(first) = appended.first().and_then(failure) else { return Ok(appended) };
        let is_alike = |written: &AppendReceipt| {
            failure(written).is_some_and(|error| error.may_be_written() == first.may_be_written())
        };
        if appended.iter().all(is_alike) { Err(first) } else { Ok(appended) }
    }
}

impl Prepared {
    fn of(change: Change, identity: &Identity) -> Self {
        let Change { key, base, update } = change;
        let bucket = bucket_of(key, identity.buckets);
        Self { key, base, bucket, update: update.map(|update| prepare(key, bucket, update)) }
    }

    /// Whether it is to be recorded even where Redis is full: what denies is, and what is only
    /// compared takes no room.
    pub(super) fn even_where_full(&self) -> bool {
        self.update.as_ref().is_none_or(|update| update.is_denial)
    }

    /// The bucket of its pair.
    pub(super) fn bucket(&self) -> u32 {
        self.bucket
    }

    /// Whether it brings statements.
    pub(super) fn has_texts(&self) -> bool {
        self.update.as_ref().is_some_and(|update| !update.texts.is_empty())
    }

    /// Whether a pair's value is what this change writes, after what it started from.
    pub(super) fn is_written(&self, value: &[u8]) -> Option<Version> {
        let (version, record) = keyspace::split_value(value)?;
        let ours = self.update.as_ref()?.record()?;
        (version.revision > self.base.revision && record == ours).then_some(version)
    }
}

/// How long an erase's log entry is at least, so that Redis puts it, and what comes after it, into
/// other nodes of the stream than what came before (`stream-node-max-bytes`, 4,096 by default). A
/// node that entries were trimmed from holds their bytes until it goes as a whole: this way it goes
/// with the last of those that may name who was erased, whatever is recorded later.
const NODE_BYTES: usize = 4_096;

fn prepare(key: Key, bucket: u32, update: Update) -> PreparedUpdate {
    let erases = update.erases();
    let mut record = update.record;
    let mut history = Vec::with_capacity(update.history.len());
    let mut texts = Vec::new();
    for entry in &update.history {
        let bytes = codec::encode_history(entry);
        let field = history_field(key, record.history_len);
        record.chain = extend_chain(&record.chain, &sha256(&bytes));
        record.history_len = record.history_len.saturating_add(1);
        let kept = entry.is_kept_for_good();
        let item = if kept {
            keyspace::HistoryItem::Kept(&bytes)
        } else {
            keyspace::HistoryItem::Perishable(&bytes)
        };
        history.push((field, item.encode()));
        texts.extend(codec::statement_of(entry).map(|(digest, text)| (digest, text.to_owned())));
    }
    let encoded = codec::encode_record(&record);
    let body = LogBody {
        key,
        user_id: update.user_id,
        business_id: update.business_id,
        record: Ok(record),
        record_time: update.record_time,
    };
    let mut bytes = codec::encode_log(&body, &encoded);
    // Bodies are bounded far below by the bounds of their fields.
    let (key_at, record_at) = codec::places_in_log(&body, &encoded, &bytes).unwrap_or_default();
    let place = BodyOffsets {
        bucket,
        key_at: key_at.try_into().unwrap_or(u8::MAX),
        record_at: record_at.try_into().unwrap_or(u32::MAX),
        record_len: encoded.len().try_into().unwrap_or(u32::MAX),
    };
    if erases {
        bytes.extend(codec::padding(NODE_BYTES));
    }
    let is_denial = erases || update.history.iter().any(|entry| entry.what.is_denial());
    PreparedUpdate { body: bytes, place, history, texts, is_denial, erases }
}

/// The command that appends these changes.
pub(super) fn command(
    keyspace: &Keyspace,
    items: &[PendingAppend],
    even_full: bool,
    whole: bool,
    log_entries: u64,
) -> Cmd {
    let fixed = [&keyspace.meta, &keyspace.log, &keyspace.text, &keyspace.fence, &keyspace.erased];
    let mut keys: Vec<String> = fixed.into_iter().cloned().collect();
    let mut slots = HashMap::new();
    let mut texts = HashMap::new();
    for item in items {
        slots.entry(item.change.bucket).or_insert_with(|| {
            keys.push(keyspace.bucket(item.change.bucket));
            keys.push(keyspace.history(item.change.bucket));
            // Lua counts from 1: this is the number of the key before the last.
            keys.len().saturating_sub(1)
        });
        let update = item.change.update.iter();
        texts.extend(update.flat_map(|update| &update.texts).map(|(d, text)| (d, text.as_str())));
    }
    let script = if even_full { &scripts::APPEND_EVEN_FULL } else { &scripts::APPEND };
    let mut command = script.command(whole, &keys, []);
    let epoch = items.first().map_or([0; 16], |item| item.epoch);
    command.arg(&epoch[..]).arg(&keyspace.channel).arg(log_entries.to_string());
    command.arg(texts.len()).arg(items.len());
    command.arg(u8::from(items.iter().any(|item| item.repairs)));
    for (digest, text) in texts {
        command.arg(&digest[..]).arg(text);
    }
    for PendingAppend { change, .. } in items {
        command.arg(slots.get(&change.bucket).copied().unwrap_or_default());
        command.arg(&change.key.to_bytes()[..]).arg(&version_bytes(change.base)[..]);
        let Some(update) = &change.update else {
            command.arg("").arg("").arg(0);
            continue;
        };
        command.arg(update.body.as_slice()).arg(&update.place.encode()[..]);
        if update.erases {
            command.arg(-1);
        } else {
            command.arg(update.history.len());
        }
        for (field, item) in &update.history {
            command.arg(field.as_slice()).arg(item.as_slice());
        }
    }
    command
}

/// What the script says of one change.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Written, as this version of the pair.
    At(Version),
    /// The pair is as it was, and was only compared.
    Same,
    /// This is the pair's value.
    Conflict(Option<Vec<u8>>),
    /// The pair's bucket was deleted or evicted.
    NoBucket,
    /// So were its bucket's histories.
    NoHistories,
}

/// What the script says of so many changes, and whether they could be announced.
pub(super) fn outcomes(
    answer: redis::Value,
    count: usize,
) -> Result<(bool, Vec<Outcome>), RedisFailure> {
    let mut answer = Answer::of(answer)?;
    let told = answer.next()? != redis::Value::Int(-1);
    let outcome = |_| {
        Ok(match answer.next()? {
            redis::Value::Int(0) => Outcome::Same,
            redis::Value::Int(-1) => Outcome::NoBucket,
            redis::Value::Int(-2) => Outcome::NoHistories,
            written @ redis::Value::Array(_) => {
                let mut written = Answer::of(written)?;
                let (revision, head_prefix) = (written.number()?, written.exactly()?);
                Outcome::At(Version { revision, head_prefix: u64::from_be_bytes(head_prefix) })
            }
            redis::Value::BulkString(value) => Outcome::Conflict(Some(value)),
            redis::Value::Nil | redis::Value::Boolean(false) => Outcome::Conflict(None),
            _ => return Err(RedisFailure::Refused(RedisRejection::Strange)),
        })
    };
    Ok((told, (0..count).map(outcome).collect::<Result<_, _>>()?))
}
