//! Sends one append batch (one EVALSHA), and retries until its outcome is known or the retry budget is
//! spent.
//!
//! With Sentinels, and in a Cluster, a reply counts only once a majority, asked after the reply, names the
//! server that sent it. Otherwise the changes may be on a fork of the log that a failover has left behind: their
//! outcome is unknown, and they are sent again to the current primary. The compare-and-set makes that
//! idempotent. At a fixed address the script itself is the proof, as a poll is: it is a write, which
//! replicas and a primary without its replicas refuse.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::append::{Outcome, PendingAppend, SendMode, append_command, decode_outcomes};
use super::error::{RedisFailure, RedisRejection};
use super::fsync_check::synced_count;
use super::keyspace::stored;
use super::pipeline::{response_timeout, send_pipeline};
use super::roll_forward::roll_forward;
use super::{Durability, Options, Shared};
use crate::{AppendReceipt, Appended, LedgerError, Version};
use consentd_os::backoff::{Backoff, Jitter};
use consentd_os::clock;

/// The retry budget of a batch whose outcome is unknown.
const RETRY_BUDGET: Duration = Duration::from_secs(10);

/// The retry budget while the ledger is being closed: other batches may wait for this one.
const RETRY_BUDGET_CLOSING: Duration = Duration::from_secs(1);

/// The backoff between two attempts.
const RETRY: Backoff = Backoff {
    first: Duration::from_millis(10),
    longest: Duration::from_secs(1),
    jitter: Jitter::Half,
};

/// The reply to one batch.
struct BatchReply {
    outcomes: Vec<Outcome>,
    /// Whether the written changes are as durable as configured.
    confirmed: Result<(), LedgerError>,
}

/// The transition of a batch after a failed attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum NextStep {
    /// The server's script cache lacks the script: send its source, at once.
    SendSource,
    /// Redis is full: reject all but denials, and send those at once, with the flag that allows it.
    SendDenialsOnly,
    /// The key of the statements was lost: reject the changes with statements, and send the others.
    SendWithoutStatements,
    /// An earlier append failed half-way: complete it, then retry after a delay.
    RollForward,
    /// Retry after a delay.
    Backoff,
    /// Reject all changes.
    GiveUp,
}

/// Appends changes of one ledger, and responds to the caller of each. The permit is for the first attempt, if
/// there is one.
pub(super) async fn send_batch(
    shared: Arc<Shared>,
    mut pending: Vec<PendingAppend>,
    mut permit: Option<OwnedSemaphorePermit>,
) {
    let started = clock::boot();
    let mut mode = SendMode::default();
    let mut attempt = 0;
    while !pending.is_empty() {
        let failure = match shared.send(&pending, mode, permit.take()).await {
            Ok(reply) => {
                // What remains was written before and is confirmed by another write, at once.
                pending = resolve(&shared, pending, reply);
                continue;
            }
            Err(failure) => failure,
        };
        if may_be_executed(&failure) {
            for item in &mut pending {
                item.maybe_written = true;
            }
        }
        let budget =
            if shared.common.closing.is_cancelled() { RETRY_BUDGET_CLOSING } else { RETRY_BUDGET };
        let remaining = budget.saturating_sub(clock::boot().saturating_sub(started));
        match next_step(&failure, mode, &shared.keyspace.text, remaining) {
            NextStep::SendSource => {
                mode.source = true;
                continue;
            }
            NextStep::SendDenialsOnly => {
                mode.even_full = true;
                pending =
                    keep(&shared, pending, &failure, |item| item.change.is_recorded_when_full());
                continue;
            }
            NextStep::SendWithoutStatements => {
                pending = keep(&shared, pending, &failure, |item| !item.change.has_statements());
                continue;
            }
            NextStep::RollForward => {
                let Some(first) = pending.first() else { return };
                let (epoch, repairs) = (first.epoch, first.repairs);
                let rolled = roll_forward(&shared.writes, &shared.keyspace, epoch, repairs).await;
                if let Err(failure) = rolled
                    && !is_retryable(&failure)
                {
                    return reject(&shared, pending, &failure);
                }
            }
            NextStep::Backoff => {}
            NextStep::GiveUp => return reject(&shared, pending, &failure),
        }
        tokio::time::sleep(RETRY.random_delay(attempt).min(remaining)).await;
        attempt = attempt.saturating_add(1);
    }
}

/// Decides how a batch continues after a failed attempt.
fn next_step(
    failure: &RedisFailure,
    mode: SendMode,
    statements_key: &str,
    remaining: Duration,
) -> NextStep {
    match failure {
        RedisFailure::NoScript if !mode.source => NextStep::SendSource,
        RedisFailure::Rejected(RedisRejection::Full) if !mode.even_full => {
            NextStep::SendDenialsOnly
        }
        RedisFailure::Rejected(RedisRejection::LostKey { key }) if **key == *statements_key => {
            NextStep::SendWithoutStatements
        }
        failure if !is_retryable(failure) || remaining.is_zero() => NextStep::GiveUp,
        RedisFailure::Rejected(RedisRejection::CutShort) => NextStep::RollForward,
        _ => NextStep::Backoff,
    }
}

/// Whether the script, or a part of it, may have been executed despite the failure.
fn may_be_executed(failure: &RedisFailure) -> bool {
    match failure {
        RedisFailure::NoReply(_) => true,
        RedisFailure::Rejected(rejection) => !rejection.is_before_execution(),
        _ => false,
    }
}

fn is_retryable(failure: &RedisFailure) -> bool {
    match failure {
        RedisFailure::NotSent(_)
        | RedisFailure::NoReply(_)
        | RedisFailure::Rejected(RedisRejection::CutShort) => true,
        RedisFailure::NoScript | RedisFailure::UnsupportedServer(_) => false,
        RedisFailure::Rejected(rejection) => rejection.is_transient(),
    }
}

/// Keeps the changes that meet a condition, and rejects the others.
fn keep(
    shared: &Shared,
    pending: Vec<PendingAppend>,
    failure: &RedisFailure,
    condition: impl Fn(&PendingAppend) -> bool,
) -> Vec<PendingAppend> {
    let (kept, rejected) = pending.into_iter().partition(condition);
    reject(shared, rejected, failure);
    kept
}

/// Responds to the callers whose outcome is known. Returns the changes that still need confirmation.
fn resolve(shared: &Shared, pending: Vec<PendingAppend>, reply: BatchReply) -> Vec<PendingAppend> {
    let lost = |key: String, item: &PendingAppend| {
        let error = shared.convert_failure_for(item.epoch, RedisFailure::lost_key(&key));
        // An earlier attempt may have written it before the key was lost.
        Err(if item.maybe_written { error.unsure() } else { error })
    };
    let partition = shared.keyspace.partition;
    let mut unconfirmed = Vec::new();
    for (mut item, outcome) in pending.into_iter().zip(reply.outcomes) {
        let maybe_written = item.maybe_written;
        let receipt = |version: Version| {
            let (outcome, head_prefix) =
                (Appended::Committed(version.revision), version.head_prefix);
            let receipt = AppendReceipt { outcome, partition, head_prefix, maybe_written };
            reply.confirmed.clone().map(|()| receipt)
        };
        let response = match outcome {
            Outcome::Committed(version) => receipt(version),
            Outcome::Unchanged => receipt(item.change.base),
            Outcome::BucketLost => lost(shared.keyspace.bucket(item.change.bucket()), &item),
            Outcome::HistoriesLost => lost(shared.keyspace.history(item.change.bucket()), &item),
            Outcome::Conflict(value) => {
                let ours = value.as_deref().filter(|_| maybe_written);
                // An earlier attempt has written it. A change that only compares confirms, by a write,
                // that it is still there and as durable as configured.
                if let Some(version) = ours.and_then(|value| item.change.written_version(value)) {
                    item.change.base = version;
                    item.change.update = None;
                    unconfirmed.push(item);
                    continue;
                }
                let outcome = Appended::Conflict(stored(value.as_deref()));
                Ok(AppendReceipt { outcome, partition, head_prefix: 0, maybe_written })
            }
        };
        // A caller that was cancelled has dropped its receiver.
        let _ = item.response.send(response);
    }
    unconfirmed
}

/// Responds with an error to the callers of changes that are not sent again.
fn reject(shared: &Shared, pending: Vec<PendingAppend>, failure: &RedisFailure) {
    for item in pending {
        let error = shared.convert_failure_for(item.epoch, failure.clone());
        // An earlier attempt may have written the change, whatever the last attempt returned.
        let error = if item.maybe_written { error.unsure() } else { error };
        let _ = item.response.send(Err(error));
    }
}

impl Shared {
    /// Sends a batch once, together with the command that waits for its durability.
    async fn send(
        &self,
        pending: &[PendingAppend],
        mode: SendMode,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<BatchReply, RedisFailure> {
        self.ensure_no_eviction()?;
        // The log's length is the ledger's: each partition has its part of it.
        let (retention, partitions) = (self.common.options.retention, self.common.partitions());
        let log_entries = retention
            .map_or(u64::MAX, |retention| retention.log_entries.div_ceil(u64::from(partitions)));
        let mut pipeline = redis::pipe();
        let publish = self.writes.topology().publish_command();
        pipeline.add_command(append_command(&self.keyspace, pending, mode, publish, log_entries));
        let mut commands = 1;
        if let Some(confirmation) = confirmation_command(&self.common.options) {
            pipeline.add_command(confirmation);
            commands = 2;
        }
        let connection = self.writes.connection().await.map_err(RedisFailure::NotSent)?;
        self.ensure_fsync(&connection).await?;
        let timeout = response_timeout(&self.common.options);
        let permit = match permit {
            Some(permit) => Some(permit),
            None => connection.write_permit().await,
        };
        let sent = (&pipeline, commands);
        let replies = send_pipeline(&self.writes, &connection, sent, timeout, permit).await?;
        let mut replies = replies.into_iter();
        let malformed = RedisFailure::Rejected(RedisRejection::MalformedReply);
        let appended = replies.next().ok_or(malformed)?;
        if let Value::ServerError(error) = &appended {
            return Err(RedisFailure::of_server(error));
        }
        let (is_announced, outcomes) = decode_outcomes(appended, pending.len())?;
        // If the server was found to evict keys meanwhile, it may have evicted these changes.
        self.ensure_no_eviction().map_err(RedisFailure::into_unknown_outcome)?;
        if !is_announced {
            self.unannounced.fetch_add(1, Ordering::Relaxed);
        }
        Ok(BatchReply {
            outcomes,
            confirmed: check_confirmation(&self.common.options, replies.next()),
        })
    }
}

/// The command that waits for the configured durability; none if Redis' own configuration suffices.
fn confirmation_command(options: &Options) -> Option<redis::Cmd> {
    let mut command = match options.durability {
        Durability::Ledger => return None,
        Durability::Replicas(count) => redis::cmd("WAIT").arg(count).take(),
        Durability::Aof => redis::cmd("WAITAOF").arg(1).arg(0).take(),
    };
    // A timeout of 0 would wait for ever.
    let millis = u64::try_from(options.confirm_within.as_millis()).unwrap_or(u64::MAX).max(1);
    command.arg(millis);
    Some(command)
}

/// Checks the reply of WAIT or WAITAOF: whether the changes are as durable as configured.
fn check_confirmation(options: &Options, reply: Option<Value>) -> Result<(), LedgerError> {
    let asked = match options.durability {
        Durability::Ledger => return Ok(()),
        Durability::Replicas(count) => count,
        Durability::Aof => 1,
    };
    let confirmed = match reply {
        Some(Value::Int(confirmed)) => confirmed,
        Some(reply @ Value::Array(_)) => synced_count(&reply),
        // The changes are written and cannot be confirmed: the outcome is unknown.
        Some(Value::ServerError(error)) => {
            return Err(match RedisFailure::of_server(&error) {
                RedisFailure::Rejected(why) => LedgerError::Unreachable(Arc::new(why)),
                failure => failure.into(),
            });
        }
        _ => 0,
    };
    let confirmed = u32::try_from(confirmed).unwrap_or(0);
    if confirmed >= asked {
        return Ok(());
    }
    Err(match options.durability {
        Durability::Aof => LedgerError::Unsynced(options.confirm_within),
        _ => LedgerError::Unconfirmed { asked, confirmed },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{consent:0}:text";

    fn step(failure: &RedisFailure, mode: SendMode, remaining: Duration) -> NextStep {
        next_step(failure, mode, TEXT, remaining)
    }

    #[test]
    fn next_step_changes_the_mode_once_and_then_gives_up() {
        let (plain, time) = (SendMode::default(), Duration::from_secs(1));
        let full = RedisFailure::Rejected(RedisRejection::Full);
        assert_eq!(step(&RedisFailure::NoScript, plain, time), NextStep::SendSource);
        let source = SendMode { source: true, ..plain };
        assert_eq!(step(&RedisFailure::NoScript, source, time), NextStep::GiveUp);
        assert_eq!(step(&full, plain, Duration::ZERO), NextStep::SendDenialsOnly);
        let even_full = SendMode { even_full: true, ..plain };
        assert_eq!(step(&full, even_full, time), NextStep::GiveUp);
        let statements = RedisFailure::lost_key(TEXT);
        assert_eq!(step(&statements, plain, time), NextStep::SendWithoutStatements);
        assert_eq!(step(&RedisFailure::lost_key("other"), plain, time), NextStep::GiveUp);
    }

    #[test]
    fn next_step_retries_until_the_budget_is_spent() {
        let (plain, time) = (SendMode::default(), Duration::from_millis(1));
        let cut_short = RedisFailure::Rejected(RedisRejection::CutShort);
        let read_only = RedisFailure::Rejected(RedisRejection::ReadOnly);
        let no_reply = RedisFailure::NoReply(Arc::new(RedisRejection::ReadOnly));
        assert_eq!(step(&cut_short, plain, time), NextStep::RollForward);
        assert_eq!(step(&read_only, plain, time), NextStep::Backoff);
        assert_eq!(step(&no_reply, plain, time), NextStep::Backoff);
        for failure in [&cut_short, &read_only, &no_reply] {
            assert_eq!(step(failure, plain, Duration::ZERO), NextStep::GiveUp);
        }
        assert!(may_be_executed(&no_reply) && !may_be_executed(&read_only));
    }
}
