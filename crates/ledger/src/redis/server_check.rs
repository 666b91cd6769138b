//! Checks that a server is configured to hold a ledger, before anything is read from or written to it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::conn::Connection;
use super::error::RedisFailure;
use super::server_info::{Persistence, UnsupportedServer, Warning, inspect};
use super::{Durability, RedisPartition, ServerInfo, Shared};
use crate::{DurabilityStatus, LedgerError};
use consentd_core::businesses::Businesses;
use consentd_os::clock;

/// How long a successful check is valid: the server's configuration may change meanwhile.
const VALIDITY: Duration = Duration::from_secs(30);

/// The oldest version that has WAITAOF.
const WAITAOF_SINCE: (u32, u32) = (7, 2);

/// The connection whose server was found to be supported, and when.
#[derive(Debug)]
pub(super) struct CheckedServer {
    connection: u64,
    at: Duration,
}

impl RedisPartition {
    /// Checks once that the server is supported, and has a ledger.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Refused`] with [`UnsupportedServer`] if its configuration rules it out, or with
    /// [`RedisRejection::Missing`](super::RedisRejection::Missing) if it has no ledger;
    /// [`LedgerError::Unreachable`] if it cannot be reached.
    pub(crate) async fn probe(&self) -> Result<(), LedgerError> {
        let connection = self.shared.reads.connection().await?;
        self.shared.ensure_supported(&connection).await?;
        self.shared.poll(&Businesses::All, u64::MAX, None).await?;
        if self.shared.common.options.retention.is_some() {
            // Recorders depend on the sync, so its check fails now rather than with the first append.
            let connection = self.shared.writes.connection().await?;
            self.shared.ensure_fsync(&connection).await?;
        }
        Ok(())
    }
}

impl Shared {
    /// Ensures that the server of a connection is supported, by a recent check. A failed check is not kept,
    /// because a replica keeps its connections when it is promoted.
    pub(super) async fn ensure_supported(
        &self,
        connection: &Connection,
    ) -> Result<(), RedisFailure> {
        let now = clock::boot();
        let is_known = {
            let checked = self.checked_server.lock().unwrap_or_else(PoisonError::into_inner);
            checked.as_ref().is_some_and(|checked| {
                let is_recent = now.saturating_sub(checked.at) < VALIDITY;
                checked.connection == connection.number() && is_recent
            })
        };
        if is_known {
            return Ok(());
        }
        let verdict = self.check_server(connection, now).await?;
        if matches!(verdict, Err(UnsupportedServer::Replica)) {
            // Its address may belong to another server by now.
            self.reads.discard(connection);
        }
        verdict.map_err(|unfit| RedisFailure::UnsupportedServer(Arc::new(unfit)))
    }

    /// Reads the server's configuration and checks it.
    async fn check_server(
        &self,
        connection: &Connection,
        now: Duration,
    ) -> Result<Result<(), UnsupportedServer>, RedisFailure> {
        let (info, now) = {
            let mut seen = connection.seen().info.lock().await;
            match &*seen {
                Some((at, known)) if now.saturating_sub(*at) < VALIDITY && known.is_primary => {
                    (known.clone(), *at)
                }
                _ => {
                    let info = inspect(&mut connection.redis.clone()).await;
                    let info = info.map_err(|error| RedisFailure::NoReply(Arc::new(error)))?;
                    *seen = Some((now, info.clone()));
                    (info, now)
                }
            }
        };
        let target = self.primary.target();
        let warnings = info.verdict(target.topology(), target.accepts_unfenced());
        let warnings = warnings.and_then(|warnings| {
            self.check_durability(&info)?;
            Ok(warnings)
        });
        let verdict = warnings.map(|warnings| self.update_status(&info, warnings));
        self.note_eviction_policy(&verdict);
        let connection = connection.number();
        let checked = verdict.is_ok().then_some(CheckedServer { connection, at: now });
        *self.checked_server.lock().unwrap_or_else(PoisonError::into_inner) = checked;
        Ok(verdict)
    }

    /// Checks that the server can confirm the configured durability.
    fn check_durability(&self, info: &ServerInfo) -> Result<(), UnsupportedServer> {
        let (major, minor, _) = info.version;
        match self.common.options.durability {
            Durability::Aof if (major, minor) < WAITAOF_SINCE => {
                Err(UnsupportedServer::NoWaitAof(info.called.clone()))
            }
            Durability::Aof if !matches!(info.durability, Persistence::AppendOnly(_)) => {
                Err(UnsupportedServer::NoAppendOnlyFile)
            }
            _ => Ok(()),
        }
    }

    /// Updates the durability status by the result of a check.
    fn update_status(&self, info: &ServerInfo, mut warnings: Vec<Warning>) {
        if matches!(self.common.options.durability, Durability::Replicas(_)) {
            // Acknowledged changes are on replicas, too.
            warnings.retain(|warning| *warning != Warning::MemoryAlone);
        }
        let status = DurabilityStatus {
            durable: info.durability != Persistence::Memory
                || matches!(self.common.options.durability, Durability::Replicas(_)),
            unfenced: warnings.contains(&Warning::Unfenced),
            lost_keys: 0,
            warnings: warnings.iter().map(ToString::to_string).collect(),
        };
        *self.durability_status.write().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
