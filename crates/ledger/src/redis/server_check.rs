//! What is looked at before a Redis is believed: whether it is fit to hold a ledger.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::conn::Connection;
use super::error::RedisFailure;
use super::server_info::{Persistence, UnsupportedServer, Warning, inspect};
use super::{Durability, Redis, ServerInfo, Shared};
use crate::{DurabilityStatus, LedgerError};
use consentd_os::clock;

/// For how long what a Redis said of itself is believed: it may be set up otherwise meanwhile.
const BELIEVED: Duration = Duration::from_secs(30);

/// The oldest Redis that can say that its append-only file is synced.
const KNOWS_WAITAOF: (u32, u32) = (7, 2);

/// Which connection's Redis was found fit, and when.
#[derive(Debug)]
pub(super) struct CheckedServer {
    connection: u64,
    at: Duration,
}

impl Redis {
    /// Looks once whether there is a Redis that is fit, and a ledger in it.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Refused`] with [`UnsupportedServer`] where it never will be as it is set up, with
    /// [`RedisRejection::Missing`](super::RedisRejection::Missing) where there is no ledger;
    /// [`LedgerError::Unreachable`] where it could not be asked.
    pub async fn probe(&self) -> Result<(), LedgerError> {
        let connection = self.shared.reads.connection().await?;
        self.shared.ensure_supported(&connection).await?;
        self.shared.poll(u64::MAX, None).await?;
        if self.shared.options.retention.is_some() {
            // Whoever records relies on it; what cannot be measured now is before the first append.
            let connection = self.shared.writes.connection().await?;
            self.shared.ensure_fsync(&connection).await?;
        }
        Ok(())
    }
}

impl Shared {
    /// Makes sure that the Redis of a connection is fit, by what it said not long ago. That it is
    /// unfit is never believed for long: a replica that is promoted keeps its connections.
    pub(super) async fn ensure_supported(
        &self,
        connection: &Connection,
    ) -> Result<(), RedisFailure> {
        let now = clock::boot();
        let is_known = {
            let looked = self.checked_server.lock().unwrap_or_else(PoisonError::into_inner);
            looked.as_ref().is_some_and(|looked| {
                let is_young = now.saturating_sub(looked.at) < BELIEVED;
                looked.connection == connection.number() && is_young
            })
        };
        if is_known {
            return Ok(());
        }
        let verdict = self.check_server(connection, now).await?;
        if matches!(verdict, Err(UnsupportedServer::Replica)) {
            // Its address may lead to another server by now.
            self.reads.discard(connection);
        }
        verdict.map_err(|unfit| RedisFailure::UnsupportedServer(Arc::new(unfit)))
    }

    async fn check_server(
        &self,
        connection: &Connection,
        now: Duration,
    ) -> Result<Result<(), UnsupportedServer>, RedisFailure> {
        let looked = inspect(&mut connection.redis.clone()).await;
        let fitness = looked.map_err(|error| RedisFailure::NoReply(Arc::new(error)))?;
        let target = self.primary.target();
        let judged = fitness.verdict(target.has_sentinels(), target.accepts_unfenced());
        let judged = judged.and_then(|warnings| {
            self.check_durability(&fitness)?;
            Ok(warnings)
        });
        let verdict = judged.map(|warnings| self.update_status(&fitness, warnings));
        self.note_eviction_policy(&verdict);
        let connection = connection.number();
        let looked = verdict.is_ok().then_some(CheckedServer { connection, at: now });
        *self.checked_server.lock().unwrap_or_else(PoisonError::into_inner) = looked;
        Ok(verdict)
    }

    /// Whether this Redis can confirm what is to be confirmed.
    fn check_durability(&self, fitness: &ServerInfo) -> Result<(), UnsupportedServer> {
        let (major, minor, _) = fitness.version;
        match self.options.durability {
            Durability::Aof if (major, minor) < KNOWS_WAITAOF => {
                Err(UnsupportedServer::NoWaitAof(fitness.called.clone()))
            }
            Durability::Aof if !matches!(fitness.durability, Persistence::AppendOnly(_)) => {
                Err(UnsupportedServer::NoAppendOnlyFile)
            }
            _ => Ok(()),
        }
    }

    fn update_status(&self, fitness: &ServerInfo, mut warnings: Vec<Warning>) {
        if matches!(self.options.durability, Durability::Replicas(_)) {
            // What is acknowledged lies elsewhere too.
            warnings.retain(|warning| *warning != Warning::MemoryAlone);
        }
        let standing = DurabilityStatus {
            durable: fitness.durability != Persistence::Memory
                || matches!(self.options.durability, Durability::Replicas(_)),
            unfenced: warnings.contains(&Warning::Unfenced),
            lost_keys: 0,
            warnings: warnings.iter().map(ToString::to_string).collect(),
        };
        *self.durability_status.write().unwrap_or_else(PoisonError::into_inner) = standing;
    }
}
