//! The log entries after the ledger's revision, and the repair of a log with entries that do not belong there.

use redis::Value;

use super::super::Shared;
use super::super::error::{RedisFailure, RedisRejection};
use super::super::keyspace::next_head;
use super::super::scripts::{self, Answer, ask};
use crate::{Identity, LedgerError, Position};
use consentd_core::record::Revision;

/// How many entries after the ledger's revision are read: more than an append can leave there.
const MAX_READ: usize = 512;

/// How many entries one script copies: Redis executes nothing else meanwhile.
const COPIED_PER_SCRIPT: usize = 1_024;

/// The log entries after the ledger's revision.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct LogTail {
    /// The number of entries that continue the ledger: those of an append that failed half-way.
    pub(super) continuing: u64,
    /// Whether there are stray entries, which do not continue the ledger.
    pub(super) has_strays: bool,
    /// Whether Redis rejects the ids of the ledger's next entries, because the stream has had a larger id.
    pub(super) refuses_appends: bool,
}

impl Shared {
    /// Reads the log after the ledger's position `end`; `None` if the ledger has moved on meanwhile.
    pub(super) async fn log_tail(&self, end: &Position) -> Result<Option<LogTail>, RedisFailure> {
        let mut command = redis::cmd("XRANGE");
        // The entry of the ledger's revision has the id suffix -0; one with another suffix is a stray.
        command.arg(&self.keyspace.log).arg(format!("({}-0", end.revision)).arg("+");
        let page = ask(&self.reads, command.arg("COUNT").arg(MAX_READ)).await?;
        let last_id = self.last_generated_id().await?;
        // Another recorder may have appended between the two commands.
        if self.position().await? != *end {
            return Ok(None);
        }
        let mut tail = LogTail::default();
        let (mut revision, mut head) = (end.revision, end.head);
        let mut entries = Answer::of(page)?;
        while !entries.is_over() {
            let mut entry = Answer::of(entries.next()?)?;
            let next = entry.revision().ok();
            let mut fields = Answer::of(entry.next()?)?;
            let (_p, _place, _b) = (fields.next(), fields.next(), fields.next());
            let (body, _h) = (fields.bytes().unwrap_or_default(), fields.next());
            let after = fields.exactly().ok();
            let continued = next_head(&head, revision.saturating_add(1), &body);
            if next != revision.checked_add(1) || after != Some(continued) {
                tail.has_strays = true;
                break;
            }
            (revision, head) = (revision.saturating_add(1), continued);
            tail.continuing = tail.continuing.saturating_add(1);
        }
        // Redis accepts an id that is larger than the stream's last one, such as 0-1 in a new log.
        let next_id = (revision.saturating_add(1), 0);
        tail.refuses_appends = last_id.is_some_and(|last| last >= next_id);
        Ok(Some(tail))
    }

    /// The largest id that the log has ever had; new entries must have larger ones. `None` without a log.
    async fn last_generated_id(&self) -> Result<Option<(u64, u64)>, RedisFailure> {
        let mut command = redis::cmd("XINFO");
        let information =
            match ask(&self.reads, command.arg("STREAM").arg(&self.keyspace.log)).await {
                Err(RedisFailure::Rejected(RedisRejection::Other { detail, .. }))
                    if detail.contains("no such key") =>
                {
                    return Ok(None);
                }
                information => information?,
            };
        let mut fields = Answer::of(information)?;
        while !fields.is_over() {
            let (name, value) = (fields.bytes()?, fields.next()?);
            if name == b"last-generated-id" {
                let malformed = || RedisFailure::Rejected(RedisRejection::MalformedReply);
                let Value::BulkString(id) = value else { return Err(malformed()) };
                let id = std::str::from_utf8(&id).ok().and_then(|id| id.split_once('-'));
                let id = id
                    .and_then(|(first, second)| Some((first.parse().ok()?, second.parse().ok()?)));
                return id.map(Some).ok_or_else(malformed);
            }
        }
        Err(RedisFailure::Rejected(RedisRejection::MalformedReply))
    }

    /// Rebuilds the log without stray entries, so that Redis accepts the ledger's next entries again. Returns
    /// whether it did.
    pub(super) async fn rebuild_log(&self, identity: &Identity) -> Result<bool, LedgerError> {
        let end = self.position().await?;
        let Some(tail) = self.log_tail(&end).await? else { return Ok(false) };
        let copy = self.keyspace.log_copy();
        // An interrupted run may have left a copy of an older state of the log.
        ask(&self.writes, redis::cmd("UNLINK").arg(&copy)).await?;
        let revision: Revision = end.revision;
        let keep_to = format!("{}-0", revision.saturating_add(tail.continuing));
        let (revision, most) = (revision.to_string(), COPIED_PER_SCRIPT.to_string());
        let keys = [&self.keyspace.meta, &self.keyspace.log, &copy];
        let args = [&identity.epoch[..], revision.as_bytes(), keep_to.as_bytes(), most.as_bytes()];
        loop {
            match scripts::REBUILD_LOG.run_counted(&self.writes, &keys, &args).await {
                Ok(false) => {}
                Ok(true) => return Ok(true),
                // The ledger has moved on: the next pass verifies it again.
                Err(RedisFailure::Rejected(RedisRejection::CutShort)) => {
                    ask(&self.writes, redis::cmd("UNLINK").arg(&copy)).await?;
                    return Ok(false);
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }
}
