//! Completes an append that failed half-way, from the entries that it left in the log.

use std::collections::BTreeSet;

use super::append::MAX_BATCH;
use super::conn::ConnectionManager;
use super::error::{RedisFailure, RedisRejection};
use super::keyspace::{BodyOffsets, Keyspace};
use super::scripts::{self, Answer, ask};
use crate::Epoch;

/// The maximum number of log entries after the ledger's revision: those of the batch that failed.
const MAX_BEHIND: usize = MAX_BATCH;

/// Rolls the ledger forward to the end of its log, if it is behind. A repair also writes to buckets that
/// were lost. Idempotent.
pub(super) async fn roll_forward(
    writes: &ConnectionManager,
    keyspace: &Keyspace,
    epoch: Epoch,
    is_repair: bool,
) -> Result<(), RedisFailure> {
    let mut command = redis::cmd("HGET");
    command.arg(&keyspace.meta).arg("rev");
    let revision = Answer::one(ask(writes, &command).await?).number()?;
    let next = revision.saturating_add(1).to_string();
    let mut command = redis::cmd("XRANGE");
    command.arg(&keyspace.log).arg(&next).arg("+").arg("COUNT").arg(MAX_BEHIND);
    let mut entries = Answer::of(ask(writes, &command).await?)?;
    let mut buckets = BTreeSet::new();
    while !entries.is_over() {
        let mut entry = Answer::of(entries.next()?)?;
        let _id = entry.next()?;
        let mut fields = Answer::of(entry.next()?)?;
        let (_name, offsets) = (fields.next()?, fields.bytes()?);
        let malformed = RedisFailure::Rejected(RedisRejection::MalformedReply);
        buckets.insert(BodyOffsets::bucket_of(&offsets).ok_or(malformed)?);
    }
    if buckets.is_empty() {
        return Ok(());
    }
    let mut keys = vec![keyspace.meta.clone(), keyspace.log.clone()];
    keys.extend(buckets.iter().map(|number| keyspace.bucket(*number)));
    let max_entries = MAX_BEHIND.to_string();
    let numbers: Vec<_> = buckets.iter().map(u32::to_string).collect();
    let is_repair: &[u8] = if is_repair { b"1" } else { b"0" };
    let publish = writes.topology().publish_command().as_bytes();
    let channel = keyspace.channel.as_bytes();
    let mut args = vec![&epoch[..], channel, max_entries.as_bytes(), is_repair, publish];
    args.extend(numbers.iter().map(String::as_bytes));
    scripts::ROLL_FORWARD.run(writes, &keys, &args).await.map(|_| ())
}
