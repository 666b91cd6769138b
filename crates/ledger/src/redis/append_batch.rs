//! One script of changes, sent until what came of it is known, or its time is over.
//!
//! With Sentinels an answer counts only once a majority of them, asked after it, names the server
//! that gave it. Otherwise the changes may be on a branch of the log that a failover has left: the
//! outcome is unknown, and they are sent again, to whoever is the primary by then. A compare-and-set
//! makes that safe. At a fixed address the script itself is the proof, as a poll is: it is a write,
//! which replicas and a primary without its replicas refuse.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Value;

use super::append::{Outcome, PendingAppend, command, outcomes};
use super::background::MAX_FLIGHTS;
use super::conn::Connection;
use super::conn::backoff;
use super::error::{NoAnswer, RedisFailure, RedisRejection};
use super::fsync_check::synced;
use super::keyspace::{BodyOffsets, stored};
use super::scripts::{self, ANSWER_WITHIN, Answer, ask, is_to_be_given_up};
use super::{Durability, Options, Redis, Shared};
use crate::{AppendReceipt, Appended, Epoch, LedgerError, Version};
use consentd_os::clock;

/// How long changes are sent again while it is not known what came of them.
const MAX_TRYING: Duration = Duration::from_secs(10);

/// And for how long once the ledger is being closed: others may wait behind them.
const MAX_TRYING_CLOSING: Duration = Duration::from_secs(1);

/// The shortest and the longest pause before they are.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The most entries of the log that an append that was cut short can have left behind: its own.
const MAX_BEHIND: usize = super::append::MAX_SCRIPT;

/// What was answered to one script.
struct Answered {
    outcomes: Vec<Outcome>,
    /// Whether what was written is as durable as asked for.
    confirmed: Result<(), LedgerError>,
}

/// How to send, the next time.
#[derive(Clone, Copy, Default)]
struct How {
    even_full: bool,
    /// Not by the script's name.
    whole: bool,
}

/// Appends changes of one ledger, and answers whoever waits for them.
pub(super) async fn send_batch(shared: Arc<Shared>, mut items: Vec<PendingAppend>) {
    let begun = clock::boot();
    let mut how = How::default();
    let mut attempt = 0;
    while !items.is_empty() {
        let failure = match shared.send(&items, how).await {
            Ok(answered) => {
                // What is left has to be confirmed anew, at once.
                items = settle(&shared, items, answered);
                continue;
            }
            Err(failure) => failure,
        };
        if matches!(&failure, RedisFailure::Lost(_)) || is_cut_short(&failure) {
            for item in &mut items {
                item.is_unsure = true;
            }
        }
        match &failure {
            RedisFailure::NoScript if !how.whole => {
                how.whole = true;
                continue;
            }
            RedisFailure::Refused(RedisRejection::Full) if !how.even_full => {
                how.even_full = true;
                let (denials, others): (Vec<_>, Vec<_>) =
                    items.into_iter().partition(|item| item.change.even_where_full());
                refuse(&shared, others, &failure);
                items = denials;
                continue;
            }
            // Without the key of the statements, what brings none is recorded all the same.
            RedisFailure::Refused(RedisRejection::Lost { key })
                if **key == shared.keyspace.text =>
            {
                let (texts, others): (Vec<_>, Vec<_>) =
                    items.into_iter().partition(|item| item.change.has_texts());
                refuse(&shared, texts, &failure);
                items = others;
                continue;
            }
            _ => {}
        }
        let most = if shared.closing.is_cancelled() { MAX_TRYING_CLOSING } else { MAX_TRYING };
        let left = most.saturating_sub(clock::boot().saturating_sub(begun));
        if !is_worth_trying(&failure) || left.is_zero() {
            return refuse(&shared, items, &failure);
        }
        if let (RedisFailure::Refused(RedisRejection::CutShort), Some(item)) =
            (&failure, items.first())
            && let Err(failure) = shared.roll_forward(item.epoch, item.repairs).await
            && !is_worth_trying(&failure)
        {
            return refuse(&shared, items, &failure);
        }
        pause(attempt, left).await;
        attempt += 1;
    }
}

/// How long the answer to one script may take, with what confirms it.
pub(super) fn answer_within(options: &Options) -> Duration {
    // Others' scripts, and what confirms them, are before these.
    let waits = u32::try_from(MAX_FLIGHTS).unwrap_or(u32::MAX);
    match options.durability {
        Durability::Ledger => ANSWER_WITHIN,
        _ => ANSWER_WITHIN.saturating_add(options.confirm_within.saturating_mul(waits)),
    }
}

/// Whether a script failed half-way: part of it may stay.
fn is_cut_short(failure: &RedisFailure) -> bool {
    matches!(failure, RedisFailure::Refused(why) if !why.is_before_all())
}

fn is_worth_trying(failure: &RedisFailure) -> bool {
    match failure {
        RedisFailure::NotSent(_)
        | RedisFailure::Lost(_)
        | RedisFailure::Refused(RedisRejection::CutShort) => true,
        RedisFailure::NoScript | RedisFailure::UnsupportedServer(_) => false,
        RedisFailure::Refused(why) => why.is_passing(),
    }
}

/// Answers those whose outcome is known; gives those that are still to be confirmed.
fn settle(shared: &Shared, items: Vec<PendingAppend>, answered: Answered) -> Vec<PendingAppend> {
    let lost = |key: String, item: &PendingAppend| {
        let error = shared.failed(item.epoch, RedisFailure::lost(&key));
        // Where it was sent before, it may have been written before the key was lost.
        Err(if item.is_unsure { error.unsure() } else { error })
    };
    let mut again = Vec::new();
    for (mut item, outcome) in items.into_iter().zip(answered.outcomes) {
        let maybe_written = item.is_unsure;
        let confirmed = |version: Version| {
            let (outcome, head_prefix) =
                (Appended::Committed(version.revision), version.head_prefix);
            answered.confirmed.clone().map(|()| AppendReceipt {
                outcome,
                head_prefix,
                maybe_written,
            })
        };
        let answer = match outcome {
            Outcome::At(version) => confirmed(version),
            Outcome::Same => confirmed(item.change.base),
            Outcome::NoBucket => lost(shared.keyspace.bucket(item.change.bucket()), &item),
            Outcome::NoHistories => lost(shared.keyspace.history(item.change.bucket()), &item),
            Outcome::Conflict(value) => {
                let ours = value.as_deref().filter(|_| item.is_unsure);
                // It was written the first time. That it is still there, and as durable as it
                // should be, is asked for like any other change: by one that writes.
                if let Some(version) = ours.and_then(|value| item.change.is_written(value)) {
                    item.change.base = version;
                    item.change.update = None;
                    again.push(item);
                    continue;
                }
                let outcome = Appended::Conflict(stored(value.as_deref()));
                Ok(AppendReceipt { outcome, head_prefix: 0, maybe_written })
            }
        };
        // Whoever does not wait any more does not need to know.
        let _ = item.answer.send(answer);
    }
    again
}

/// Answers changes that are not sent again.
fn refuse(shared: &Shared, items: Vec<PendingAppend>, failure: &RedisFailure) {
    for item in items {
        let error = shared.failed(item.epoch, failure.clone());
        // What was asked first may have been done, whatever came of asking again.
        let error = if item.is_unsure { error.unsure() } else { error };
        let _ = item.answer.send(Err(error));
    }
}

/// Waits a random while, longer with every attempt.
async fn pause(attempt: u32, left: Duration) {
    let most = FIRST_PAUSE.saturating_mul(1 << attempt.min(10)).min(MAX_PAUSE).min(left);
    tokio::time::sleep(backoff::jittered(most)).await;
}

impl Redis {
    /// Completes an append that was cut short, where one was, as the next append would.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be asked, or what cut it short still does.
    pub async fn complete(&self) -> Result<(), LedgerError> {
        let shared = &*self.shared;
        let identity = shared.identity().await?;
        let completed = shared.roll_forward(identity.epoch, false).await;
        completed.map_err(|failure| shared.failed(identity.epoch, failure))
    }
}

impl Shared {
    /// Sends changes once, with what makes sure that they are as durable as they should be.
    async fn send(&self, items: &[PendingAppend], how: How) -> Result<Answered, RedisFailure> {
        self.check_keeps_keys()?;
        let keep = self.options.retention.map_or(u64::MAX, |retention| retention.log_entries);
        let append = command(&self.keyspace, items, how.even_full, how.whole, keep);
        let within = self.options.confirm_within;
        let millis = u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut wait = match self.options.durability {
            Durability::Ledger => None,
            Durability::Replicas(count) => Some(redis::cmd("WAIT").arg(count).take()),
            Durability::Aof => Some(redis::cmd("WAITAOF").arg(1).arg(0).take()),
        };
        if let Some(wait) = &mut wait {
            wait.arg(millis);
        }
        let mut pipeline = redis::pipe();
        pipeline.add_command(append);
        let count = if let Some(wait) = wait {
            pipeline.add_command(wait);
            2
        } else {
            1
        };
        let connection = self.writes.connection().await.map_err(RedisFailure::NotSent)?;
        self.ensure_syncs(&connection).await?;
        let mut answers = self.pipelined(&connection, &pipeline, count).await?.into_iter();
        let appended = answers.next().ok_or(RedisFailure::Refused(RedisRejection::Strange))?;
        if let Value::ServerError(error) = &appended {
            return Err(RedisFailure::of_server(error));
        }
        let (told, outcomes) = outcomes(appended, items.len())?;
        // It was found to delete keys while this was on its way: then it may have deleted this.
        self.check_keeps_keys().map_err(RedisFailure::unsure)?;
        if !told {
            self.unannounced.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Answered { outcomes, confirmed: self.confirmed(answers.next()) })
    }

    /// Sends commands together on a connection for writes.
    pub(super) async fn pipelined(
        &self,
        connection: &Connection,
        pipeline: &redis::Pipeline,
        count: usize,
    ) -> Result<Vec<Value>, RedisFailure> {
        let mut redis = connection.redis.clone();
        let within = answer_within(&self.options);
        let sent = redis.send_packed_commands(pipeline, 0, count);
        let answered = match tokio::time::timeout(within, sent).await {
            Err(_) => Err(RedisFailure::Lost(Arc::new(NoAnswer(within)))),
            Ok(answered) => answered.map_err(RedisFailure::of_client),
        };
        let is_read_only = |value: &Value| {
            let Value::ServerError(error) = value else { return false };
            matches!(
                RedisFailure::of_server(error),
                RedisFailure::Refused(RedisRejection::ReadOnly)
            )
        };
        let demoted = answered.iter().flatten().any(is_read_only);
        if demoted || is_to_be_given_up(&answered) {
            self.writes.give_up(connection).await;
        }
        match answered {
            Ok(answers) => self.proven(connection, answers).await,
            Err(RedisFailure::Lost(why)) => {
                let moved = self.writes.why_dropped(connection);
                Err(RedisFailure::Lost(moved.map_or(why, |moved| moved as _)))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Gives answers out only where they are the primary's: a majority of the Sentinels, asked now,
    /// names the server that gave them. Else nobody knows what became of the changes.
    async fn proven(
        &self,
        connection: &Connection,
        answers: Vec<Value>,
    ) -> Result<Vec<Value>, RedisFailure> {
        match self.writes.primary_confirmed(connection).await {
            Ok(()) => Ok(answers),
            Err(LedgerError::Unreachable(why)) => Err(RedisFailure::Lost(why)),
            Err(error) => Err(RedisFailure::Lost(Arc::new(error))),
        }
    }

    /// Whether what was written is as durable as asked for, by the answer of WAIT or WAITAOF.
    fn confirmed(&self, answer: Option<Value>) -> Result<(), LedgerError> {
        let asked = match self.options.durability {
            Durability::Ledger => return Ok(()),
            Durability::Replicas(count) => count,
            Durability::Aof => 1,
        };
        let confirmed = match answer {
            Some(Value::Int(confirmed)) => confirmed,
            Some(answer @ Value::Array(_)) => synced(&answer),
            // It was written, and cannot be confirmed.
            Some(Value::ServerError(error)) => {
                return Err(match RedisFailure::of_server(&error) {
                    RedisFailure::Refused(why) => LedgerError::Unreachable(Arc::new(why)),
                    failure => failure.into(),
                });
            }
            _ => 0,
        };
        let confirmed = u32::try_from(confirmed).unwrap_or(0);
        if confirmed >= asked {
            return Ok(());
        }
        Err(match self.options.durability {
            Durability::Aof => LedgerError::Unsynced(self.options.confirm_within),
            _ => LedgerError::Unconfirmed { asked, confirmed },
        })
    }

    /// Completes an append that was cut short, where one was; a repair also where a bucket was
    /// lost.
    pub(super) async fn roll_forward(
        &self,
        epoch: Epoch,
        repairs: bool,
    ) -> Result<(), RedisFailure> {
        let keyspace = &self.keyspace;
        let mut command = redis::cmd("HGET");
        command.arg(&keyspace.meta).arg("rev");
        let revision =
            Answer::of(Value::Array(vec![ask(&self.writes, &command).await?]))?.number()?;
        let next = revision.saturating_add(1).to_string();
        let mut command = redis::cmd("XRANGE");
        command.arg(&keyspace.log).arg(&next).arg("+").arg("COUNT").arg(MAX_BEHIND);
        let mut entries = Answer::of(ask(&self.writes, &command).await?)?;
        let mut buckets = std::collections::BTreeSet::new();
        while !entries.is_over() {
            let mut entry = Answer::of(entries.next()?)?;
            let _id = entry.next()?;
            let mut fields = Answer::of(entry.next()?)?;
            let (_name, place) = (fields.next()?, fields.bytes()?);
            let strange = RedisFailure::Refused(RedisRejection::Strange);
            buckets.insert(BodyOffsets::bucket_of(&place).ok_or(strange)?);
        }
        if buckets.is_empty() {
            return Ok(());
        }
        let mut keys = vec![keyspace.meta.clone(), keyspace.log.clone()];
        keys.extend(buckets.iter().map(|number| keyspace.bucket(*number)));
        let most = MAX_BEHIND.to_string();
        let numbers: Vec<_> = buckets.iter().map(u32::to_string).collect();
        let repairs: &[u8] = if repairs { b"1" } else { b"0" };
        let mut args = vec![&epoch[..], keyspace.channel.as_bytes(), most.as_bytes(), repairs];
        args.extend(numbers.iter().map(String::as_bytes));
        scripts::ROLL_FORWARD.run(&self.writes, &keys, &args).await.map(|_| ())
    }
}
