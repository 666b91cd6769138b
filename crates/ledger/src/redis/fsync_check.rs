//! Checks whether a server that confirms that its append-only file is synced (WAITAOF) has synced it.
//!
//! With `appendfsync always` it has, because the sync precedes the reply to the write itself. With
//! `everysec` some versions confirm before the sync: Valkey from 8.0 to at least 9.1, and Redis 7.4
//! before its fix (redis/redis#13793). The version does not show it, so it is measured: a server that
//! syncs once a second cannot confirm three writes, one after the other, within one second.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::conn::Connection;
use super::error::{RedisFailure, RedisRejection};
use super::pipeline::{response_timeout, send_pipeline};
use super::scripts;
use super::server_info::{Fsync, UnsupportedServer, fsync};
use super::{Durability, Shared};
use crate::LedgerError;
use consentd_os::clock;

/// How long the result of a check is valid. Then the server's run id and `appendfsync` are read again.
const VALIDITY: Duration = Duration::from_secs(30);

/// How many writes are confirmed, one after the other, by a measurement.
const CONFIRMATIONS: u32 = 3;

/// The minimum time between the first and the last confirmation if the server syncs before it confirms:
/// its confirmations are then a second apart, or a little less if the first sync was slow.
const MIN_HONEST: Duration = Duration::from_secs(1);

/// A server that confirms honestly, and when that was last checked.
#[derive(Debug)]
pub(super) struct FsyncProof {
    connection: u64,
    run_id: String,
    fsync: Fsync,
    at: Duration,
}

/// The measurement has no result, because the server did not confirm a sync in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "Redis did not confirm within {0:?} that its append-only file is synced (WAITAOF answered 0), so \
     that nothing was written: see whether its disk is slow or full (INFO persistence, \
     aof_delayed_fsync, aof_last_write_status), or give --durability ledger or replicas:N"
)]
struct NotSynced(Duration);

impl Shared {
    /// Ensures that this connection's server syncs before it confirms, if the durability is
    /// [`Durability::Aof`]. A measurement is valid as long as the server is the same process (its run id)
    /// with the same `appendfsync`.
    pub(super) async fn ensure_fsync(&self, connection: &Connection) -> Result<(), RedisFailure> {
        if self.common.options.durability != Durability::Aof {
            return Ok(());
        }
        // One caller measures; concurrent appends wait for its result.
        let mut proof = self.fsync_proof.lock().await;
        let now = clock::boot();
        if proof.as_ref().is_some_and(|proof| {
            proof.connection == connection.number() && now.saturating_sub(proof.at) < VALIDITY
        }) {
            return Ok(());
        }
        let (run_id, fsync) = self.query_fsync(connection).await?;
        let is_known =
            proof.as_ref().is_some_and(|known| known.run_id == run_id && known.fsync == fsync);
        if !is_known {
            *proof = None;
            match fsync {
                Fsync::Always => {}
                Fsync::Never => {
                    return Err(RedisFailure::UnsupportedServer(Arc::new(
                        UnsupportedServer::NeverSyncs,
                    )));
                }
                Fsync::EverySecond | Fsync::Unstated => self.measure_fsync(connection).await?,
            }
        }
        *proof = Some(FsyncProof { connection: connection.number(), run_id, fsync, at: now });
        Ok(())
    }

    /// Sends two commands as a pipelined write.
    async fn send_checked(
        &self,
        connection: &Connection,
        pipeline: &redis::Pipeline,
    ) -> Result<Vec<Value>, RedisFailure> {
        let timeout = response_timeout(&self.common.options);
        send_pipeline(&self.writes, connection, (pipeline, 2), timeout, None).await
    }

    /// Reads the server's run id and its `appendfsync`.
    async fn query_fsync(&self, connection: &Connection) -> Result<(String, Fsync), RedisFailure> {
        let mut questions = redis::pipe();
        questions.cmd("INFO").arg("server");
        questions.cmd("CONFIG").arg("GET").arg("appendfsync");
        let mut answers = self.send_checked(connection, &questions).await?.into_iter();
        let info: String = answers.next().and_then(text).unwrap_or_default();
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        let run_id = run_id.map(|id| id.trim().to_owned());
        // The ACL may not permit CONFIG GET: then the setting is unknown.
        let value = match answers.next() {
            Some(Value::Array(pair)) => pair.into_iter().nth(1).and_then(text),
            _ => None,
        };
        Ok((
            run_id.ok_or(RedisFailure::Rejected(RedisRejection::MalformedReply))?,
            fsync(value.as_deref()),
        ))
    }

    /// Confirms writes one after the other, and checks by their times whether a sync came in between.
    async fn measure_fsync(&self, connection: &Connection) -> Result<(), RedisFailure> {
        let millis = self.common.options.confirm_within.as_millis().to_string();
        let mut first = None;
        for _ in 0..CONFIRMATIONS {
            let mut pipeline = redis::pipe();
            let none: [&[u8]; 0] = [];
            pipeline.add_command(scripts::WRITE_NOOP.command(true, &[&self.keyspace.meta], none));
            pipeline.cmd("WAITAOF").arg(1).arg(0).arg(&millis);
            let answers = self.send_checked(connection, &pipeline).await?;
            let refused = answers.iter().find_map(|answer| match answer {
                Value::ServerError(error) => Some(RedisFailure::of_server(error)),
                _ => None,
            });
            if let Some(failure) = refused {
                return Err(failure);
            }
            // A confirmation that timed out shows nothing about the others.
            if answers.get(1).is_none_or(|answer| synced_count(answer) == 0) {
                let not_synced = Arc::new(NotSynced(self.common.options.confirm_within));
                return Err(RedisFailure::NotSent(LedgerError::Refused(not_synced)));
            }
            first.get_or_insert_with(clock::boot);
        }
        let took = first.map_or(Duration::ZERO, |first| clock::boot().saturating_sub(first));
        if took < MIN_HONEST {
            return Err(RedisFailure::UnsupportedServer(Arc::new(
                UnsupportedServer::ConfirmsUnsynced,
            )));
        }
        Ok(())
    }
}

/// The number of synced append-only files at the server itself, 1 or 0, by the reply of WAITAOF, which is
/// the server's own number, then its replicas'.
pub(super) fn synced_count(answer: &Value) -> i64 {
    match answer {
        Value::Array(counts) => match counts.first() {
            Some(Value::Int(count)) => *count,
            _ => 0,
        },
        _ => 0,
    }
}

fn text(value: Value) -> Option<String> {
    redis::from_redis_value(value).ok()
}
