//! Whether a Redis that confirms that its append-only file is synced (WAITAOF) has synced it.
//!
//! With `appendfsync always` it has, since the sync comes before the answer to the write itself.
//! With `everysec` some versions confirm before the sync: Valkey from 8.0 to at least 9.1, and
//! Redis 7.4 before its fix (redis/redis#13793). Their names do not tell, so it is measured: a
//! server that syncs once a second cannot confirm three writes, one after the other, within one.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::conn::Connection;
use super::error::{RedisFailure, RedisRejection};
use super::scripts;
use super::server_info::{Fsync, UnsupportedServer, fsync};
use super::{Durability, Shared};
use crate::LedgerError;
use consentd_os::clock;

/// For how long it is believed that the server and its `appendfsync` are what they were.
const BELIEVED: Duration = Duration::from_secs(30);

/// How many writes are confirmed one after the other.
const CONFIRMATIONS: u32 = 3;

/// The first confirmation begins the measurement; the others are a second apart where the server
/// syncs before it confirms, or a little less where the first sync was a slow one.
const SHORTEST_HONEST: Duration = Duration::from_secs(1);

/// What was found, of which server, and when it was last looked whether it still is that one.
#[derive(Debug)]
pub(super) struct FsyncProof {
    connection: u64,
    run_id: String,
    fsync: Fsync,
    at: Duration,
}

/// The measurement ended without a result: the server did not confirm a sync in time.
#[derive(Debug, thiserror::Error)]
#[error(
    "Redis did not confirm within {0:?} that its append-only file is synced (WAITAOF answered 0), so \
     that nothing was written: see whether its disk is slow or full (INFO persistence, \
     aof_delayed_fsync, aof_last_write_status), or give --durability ledger or replicas:N"
)]
struct NotSynced(Duration);

impl Shared {
    /// Makes sure that what this connection's server confirms as synced is, where that is asked
    /// for. What was once measured is believed for as long as it is the same process, set up alike.
    pub(super) async fn ensure_syncs(&self, connection: &Connection) -> Result<(), RedisFailure> {
        if self.options.durability != Durability::Aof {
            return Ok(());
        }
        // One measures; whoever else wants to append meanwhile waits for what it finds.
        let mut proven = self.syncs.lock().await;
        let now = clock::boot();
        if proven.as_ref().is_some_and(|proven| {
            proven.connection == connection.number() && now.saturating_sub(proven.at) < BELIEVED
        }) {
            return Ok(());
        }
        let (run_id, fsync) = self.ask_who_syncs(connection).await?;
        let is_known =
            proven.as_ref().is_some_and(|known| known.run_id == run_id && known.fsync == fsync);
        if !is_known {
            *proven = None;
            match fsync {
                Fsync::Always => {}
                Fsync::Never => {
                    return Err(RedisFailure::UnsupportedServer(Arc::new(
                        UnsupportedServer::NeverSyncs,
                    )));
                }
                Fsync::EverySecond | Fsync::Unstated => self.measure_syncs(connection).await?,
            }
        }
        *proven = Some(FsyncProof { connection: connection.number(), run_id, fsync, at: now });
        Ok(())
    }

    async fn ask_who_syncs(
        &self,
        connection: &Connection,
    ) -> Result<(String, Fsync), RedisFailure> {
        let mut questions = redis::pipe();
        questions.cmd("INFO").arg("server");
        questions.cmd("CONFIG").arg("GET").arg("appendfsync");
        let mut answers = self.pipelined(connection, &questions, 2).await?.into_iter();
        let info: String = answers.next().and_then(text).unwrap_or_default();
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        let run_id = run_id.map(|id| id.trim().to_owned());
        // A user that may not ask for it is answered with an error: then it is not stated.
        let value = match answers.next() {
            Some(Value::Array(pair)) => pair.into_iter().nth(1).and_then(text),
            _ => None,
        };
        Ok((run_id.ok_or(RedisFailure::Refused(RedisRejection::Strange))?, fsync(value.as_deref())))
    }

    /// Confirms writes one after the other, and tells by their times whether a sync came between.
    async fn measure_syncs(&self, connection: &Connection) -> Result<(), RedisFailure> {
        let millis = self.options.confirm_within.as_millis().to_string();
        let mut first = None;
        for _ in 0..CONFIRMATIONS {
            let mut pipeline = redis::pipe();
            let none: [&[u8]; 0] = [];
            pipeline.add_command(scripts::WRITE_NOOP.command(true, &[&self.keyspace.meta], none));
            pipeline.cmd("WAITAOF").arg(1).arg(0).arg(&millis);
            let answers = self.pipelined(connection, &pipeline, 2).await?;
            let refused = answers.iter().find_map(|answer| match answer {
                Value::ServerError(error) => Some(RedisFailure::of_server(error)),
                _ => None,
            });
            if let Some(failure) = refused {
                return Err(failure);
            }
            // A confirmation that timed out says nothing of how honest the others are.
            if answers.get(1).is_none_or(|answer| synced(answer) == 0) {
                let not_synced = Arc::new(NotSynced(self.options.confirm_within));
                return Err(RedisFailure::NotSent(LedgerError::Refused(not_synced)));
            }
            first.get_or_insert_with(clock::boot);
        }
        let took = first.map_or(Duration::ZERO, |first| clock::boot().saturating_sub(first));
        if took < SHORTEST_HONEST {
            return Err(RedisFailure::UnsupportedServer(Arc::new(
                UnsupportedServer::ConfirmsUnsynced,
            )));
        }
        Ok(())
    }
}

/// How many append-only files WAITAOF says are synced at the server itself: 1 or 0. Its answer tells
/// of the server first, then of its replicas.
pub(super) fn synced(answer: &Value) -> i64 {
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
