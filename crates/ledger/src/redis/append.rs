//! Encodes changes for the append script, and decodes its outcomes.

use std::collections::HashMap;

use redis::Cmd;
use tokio::sync::oneshot;

use super::error::{RedisFailure, RedisRejection};
use super::keyspace::{self, BodyOffsets, Keyspace, encode_item, history_field, version_bytes};
use super::scripts::{self, Answer};
use super::{MAX_WAITING, RedisPartition};
use crate::encoded_update::EncodedUpdate;
use crate::{
    AppendReceipt, Appended, Change, Epoch, Identity, LedgerError, Update, Version, bucket_of,
    codec,
};
use consentd_core::id::Key;

/// The maximum number of changes in one batch: Redis executes nothing else meanwhile.
pub(super) const MAX_BATCH: usize = 128;

const _: () = assert!(crate::MAX_APPEND <= MAX_WAITING, "an append must find room");

/// A change, encoded before it is queued, so that every retry sends the same bytes.
pub(super) struct EncodedChange {
    key: Key,
    pub(super) base: Version,
    bucket: u32,
    pub(super) update: Option<UpdateArgs>,
}

pub(super) struct UpdateArgs {
    body: Vec<u8>,
    offsets: BodyOffsets,
    /// Fields and items, oldest first.
    history: Vec<(Vec<u8>, Vec<u8>)>,
    /// Digests and texts.
    statements: Vec<([u8; 32], String)>,
    is_denial: bool,
    erases: bool,
}

impl UpdateArgs {
    /// The new record, encoded.
    fn record(&self) -> Option<&[u8]> {
        let from = usize::try_from(self.offsets.record_at).ok()?;
        let length = usize::try_from(self.offsets.record_len).ok()?;
        self.body.get(from..from.checked_add(length)?)
    }
}

/// A queued change, with the channel to its caller.
pub(super) struct PendingAppend {
    /// The ledger that the change was made for.
    pub(super) epoch: Epoch,
    /// Whether it is a repair, which may write to a bucket that was lost.
    pub(super) repairs: bool,
    pub(super) change: EncodedChange,
    pub(super) response: oneshot::Sender<Result<AppendReceipt, LedgerError>>,
    /// Whether an attempt with an unknown outcome may have written it.
    pub(super) maybe_written: bool,
}

impl RedisPartition {
    pub(crate) async fn append(
        &self,
        changes: Vec<Change>,
    ) -> Result<Vec<AppendReceipt>, LedgerError> {
        self.append_as(false, changes).await
    }

    /// Appends changes; a repair also writes to buckets that were lost.
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
        let mut receivers = Vec::with_capacity(changes.len());
        // The slots were reserved together, so the changes are logged in the given order.
        for (slot, change) in room.zip(changes) {
            let change = EncodedChange::of(change, &identity);
            let (response, receiver) = oneshot::channel();
            let epoch = identity.epoch;
            slot.send(PendingAppend { epoch, repairs, change, response, maybe_written: false });
            receivers.push(receiver);
        }
        let mut appended = Vec::with_capacity(receivers.len());
        for receiver in receivers {
            // A background task that was dropped has dropped the change, too.
            let outcome = receiver.await.unwrap_or(Err(LedgerError::Closed));
            let failed = |error| AppendReceipt::unforked(Appended::Failed(error));
            appended.push(outcome.unwrap_or_else(failed));
        }
        Self::one_error(appended)
    }

    /// If all changes failed, one error is returned for all; but a change that may have been written
    /// must not get the error of one that certainly was not.
    pub(super) fn one_error(
        appended: Vec<AppendReceipt>,
    ) -> Result<Vec<AppendReceipt>, LedgerError> {
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

impl EncodedChange {
    fn of(change: Change, identity: &Identity) -> Self {
        let Change { key, base, update } = change;
        let bucket = bucket_of(key, identity.buckets);
        Self { key, base, bucket, update: update.map(|update| prepare(key, bucket, update)) }
    }

    /// Whether it is appended even if Redis is full: a denial must be recorded, and a comparison needs
    /// no memory.
    pub(super) fn is_recorded_when_full(&self) -> bool {
        self.update.as_ref().is_none_or(|update| update.is_denial)
    }

    /// The bucket of its pair.
    pub(super) fn bucket(&self) -> u32 {
        self.bucket
    }

    /// Whether it writes statements.
    pub(super) fn has_statements(&self) -> bool {
        self.update.as_ref().is_some_and(|update| !update.statements.is_empty())
    }

    /// The version of a pair's value if this change has written it, after the version that it is based
    /// on.
    pub(super) fn written_version(&self, value: &[u8]) -> Option<Version> {
        let (version, record) = keyspace::split_value(value)?;
        let ours = self.update.as_ref()?.record()?;
        (version.revision > self.base.revision && record == ours).then_some(version)
    }
}

/// The minimum length of an erase's log entry: Redis then stores it, and all later entries, in other nodes
/// of the stream than the earlier ones (`stream-node-max-bytes`, 4,096 by default). A node keeps the bytes
/// of trimmed entries until all its entries are trimmed. This way the nodes that may name the erased user
/// are freed with the last entry before the erase, whatever is recorded later.
const NODE_BYTES: usize = 4_096;

fn prepare(key: Key, bucket: u32, update: Update) -> UpdateArgs {
    let is_denial = update.erases() || update.history.iter().any(|entry| entry.what.is_denial());
    let encoded = EncodedUpdate::new(key, update);
    // The bounds of a body's fields keep these offsets far below the limits of their types.
    let offsets = codec::places_in_log(&encoded.body, &encoded.record, &encoded.log);
    let (key_at, record_at) = offsets.unwrap_or_default();
    let offsets = BodyOffsets {
        bucket,
        key_at: key_at.try_into().unwrap_or(u8::MAX),
        record_at: record_at.try_into().unwrap_or(u32::MAX),
        record_len: encoded.record.len().try_into().unwrap_or(u32::MAX),
    };
    let mut body = encoded.log;
    if encoded.erases {
        body.extend(codec::padding(NODE_BYTES));
    }
    let field = |(place, item)| (history_field(key, place), encode_item(item));
    let history = (encoded.history_len_before..).zip(&encoded.items).map(field).collect();
    let (statements, erases) = (encoded.statements, encoded.erases);
    UpdateArgs { body, offsets, history, statements, is_denial, erases }
}

/// How a batch is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SendMode {
    /// With the flag that lets Redis execute the script even if its memory is full.
    pub(super) even_full: bool,
    /// With the script's source instead of its digest.
    pub(super) source: bool,
}

/// The command that appends a batch, announces it by `publish`, and trims the log to `log_entries`.
pub(super) fn append_command(
    keyspace: &Keyspace,
    items: &[PendingAppend],
    mode: SendMode,
    publish: &str,
    log_entries: u64,
) -> Cmd {
    let fixed = [&keyspace.meta, &keyspace.log, &keyspace.text, &keyspace.fence, &keyspace.erased];
    let mut keys: Vec<String> = fixed.into_iter().cloned().collect();
    let mut slots = HashMap::new();
    let mut statements = HashMap::new();
    for item in items {
        slots.entry(item.change.bucket).or_insert_with(|| {
            keys.push(keyspace.bucket(item.change.bucket));
            keys.push(keyspace.history(item.change.bucket));
            // Lua counts from 1, so this is the index of the key before the last.
            keys.len().saturating_sub(1)
        });
        let update = item.change.update.iter();
        statements.extend(
            update.flat_map(|update| &update.statements).map(|(d, text)| (d, text.as_str())),
        );
    }
    let script = if mode.even_full { &scripts::APPEND_EVEN_FULL } else { &scripts::APPEND };
    let mut command = script.command(mode.source, &keys, []);
    let epoch = items.first().map_or([0; 16], |item| item.epoch);
    command.arg(&epoch[..]).arg(&keyspace.channel).arg(log_entries.to_string());
    command.arg(statements.len()).arg(items.len());
    command.arg(u8::from(items.iter().any(|item| item.repairs))).arg(publish);
    for (digest, text) in statements {
        command.arg(&digest[..]).arg(text);
    }
    for PendingAppend { change, .. } in items {
        command.arg(slots.get(&change.bucket).copied().unwrap_or_default());
        command.arg(&change.key.to_bytes()[..]).arg(&version_bytes(change.base)[..]);
        let Some(update) = &change.update else {
            command.arg("").arg("").arg(0);
            continue;
        };
        command.arg(update.body.as_slice()).arg(&update.offsets.encode()[..]);
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

/// The script's outcome of one change.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The change was written, as this version of the pair.
    Committed(Version),
    /// The pair was only compared, and is unchanged.
    Unchanged,
    /// The pair has another value, or none.
    Conflict(Option<Vec<u8>>),
    /// The pair's bucket was deleted or evicted.
    BucketLost,
    /// The histories of the pair's bucket were deleted or evicted.
    HistoriesLost,
}

/// Decodes the script's reply to `count` changes: whether they were announced, and their outcomes.
pub(super) fn decode_outcomes(
    answer: redis::Value,
    count: usize,
) -> Result<(bool, Vec<Outcome>), RedisFailure> {
    let mut answer = Answer::of(answer)?;
    let is_announced = answer.next()? != redis::Value::Int(-1);
    let outcomes: Vec<_> = (0..count).map(|_| answer.next()).collect::<Result<_, _>>()?;
    let redis::Value::BulkString(heads) = answer.next()? else {
        return Err(RedisFailure::Rejected(RedisRejection::MalformedReply));
    };
    let (heads, rest) = heads.as_chunks::<8>();
    let mut heads = heads.iter();
    let mut outcome = |outcome| {
        Some(match outcome {
            redis::Value::Int(0) => Outcome::Unchanged,
            redis::Value::Int(-1) => Outcome::BucketLost,
            redis::Value::Int(-2) => Outcome::HistoriesLost,
            redis::Value::Int(revision) => {
                let revision = revision.try_into().ok()?;
                let head_prefix = u64::from_be_bytes(*heads.next()?);
                Outcome::Committed(Version { revision, head_prefix })
            }
            redis::Value::BulkString(value) => Outcome::Conflict(Some(value)),
            redis::Value::Nil | redis::Value::Boolean(false) => Outcome::Conflict(None),
            _ => return None,
        })
    };
    let outcomes: Option<Vec<_>> = outcomes.into_iter().map(&mut outcome).collect();
    match outcomes {
        Some(outcomes) if heads.next().is_none() && rest.is_empty() => Ok((is_announced, outcomes)),
        _ => Err(RedisFailure::Rejected(RedisRejection::MalformedReply)),
    }
}
