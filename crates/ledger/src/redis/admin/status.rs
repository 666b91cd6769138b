//! The status of a ledger in Redis.

use std::sync::Arc;

use redis::Value;

use super::super::error::RedisFailure;
use super::super::scripts::{Answer, ask, ask_all};
use super::super::server_info::{self, ServerInfo};
use super::super::{RedisPartition, Shared, Target};
use super::create::{Place, connected, places};
use super::sentinel_field::length_and_sentinel;
use crate::{LedgerError, Page};
use consentd_core::businesses::Businesses;
use consentd_core::partition::Layout;
use consentd_core::time::Timestamp;

/// How many hashes one pipeline inspects.
const HASHES_PER_PIPELINE: usize = 512;

/// The maximum number of lost keys in a status.
const MAX_LOST: usize = 20;

/// The status of a ledger in Redis, besides its position.
#[derive(Clone, Debug)]
pub struct Status {
    /// The number of log entries.
    pub log_entries: u64,
    /// The record time of the first log entry.
    pub oldest: Option<Timestamp>,
    /// The number of pairs.
    pub pairs: u64,
    /// Whether an append failed half-way, and will be completed by the next one.
    pub cut_short: bool,
    /// The keys that were deleted or evicted, at most 20 of them.
    pub lost: Vec<String>,
    /// The number of all keys that were deleted or evicted.
    pub lost_keys: u64,
    /// Whether Redis accepts the ledger's next log entry: not if the log has had a larger id.
    pub takes_appends: bool,
    /// Whether the fence exists.
    pub has_fence: bool,
    /// The memory that Redis uses, and `maxmemory`, in bytes; 0 means no limit.
    pub memory: Option<(u64, u64)>,
}

/// A server of a ledger.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Its address.
    pub address: String,
    /// The numbers of the partitions that it has.
    pub partitions: Vec<u32>,
    /// Its version, role and configuration.
    pub server: ServerInfo,
}

/// Reads the version, role and configuration of each server that has, or would have, partitions of a ledger with this
/// layout, whether or not there is a ledger. Without a Cluster there is one server.
///
/// # Errors
///
/// [`LedgerError`] if a server cannot be reached.
pub async fn inspect_servers(target: Target, layout: Layout) -> Result<Vec<Shard>, LedgerError> {
    let mut shards = Vec::<Shard>::new();
    let places = places(target, layout);
    let places: Vec<&Place> = places.iter().rev().collect();
    for (Place { keyspace, .. }, connection) in places.iter().zip(connected(&places).await?) {
        let address = connection.address();
        if let Some(known) = shards.iter_mut().find(|shard| shard.address == address) {
            known.partitions.push(keyspace.partition);
            continue;
        }
        let server = server_info::inspect(&mut connection.redis.clone()).await;
        let server = server.map_err(|error| LedgerError::Unreachable(Arc::new(error)))?;
        shards.push(Shard { address, partitions: vec![keyspace.partition], server });
    }
    Ok(shards)
}

impl RedisPartition {
    /// The ledger's position, by a fenced poll that succeeds even if the log or the fence was lost.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the server cannot be reached.
    pub(crate) async fn ends(&self) -> Result<Page, LedgerError> {
        let polled = self.shared.fenced_poll(&Businesses::All, u64::MAX, None).await;
        Ok(polled.map_err(|failure| self.shared.convert_failure(failure))?.0)
    }

    /// Reads the ledger's status.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if the server cannot be reached.
    pub(crate) async fn status(&self) -> Result<Status, LedgerError> {
        let shared = &*self.shared;
        let identity = shared.identity().await?;
        let end = shared.position().await?;
        let mut command = redis::cmd("XLEN");
        let length = ask(&shared.reads, command.arg(&shared.keyspace.log)).await?;
        let fence = shared.exists(&shared.keyspace.fence).await?;
        // `None` means that another recorder has just appended, so that the log's end is intact.
        let tail = shared.log_tail(&end).await?.unwrap_or_default();
        let hashes = shared.count(identity.buckets).await?;
        let mut missing = hashes.lost;
        if !shared.exists(&shared.keyspace.log).await? {
            missing.insert(0, shared.keyspace.log.clone());
        }
        let lost_keys = u64::try_from(missing.len()).unwrap_or(u64::MAX);
        missing.truncate(MAX_LOST);
        Ok(Status {
            log_entries: Answer::one(length).number()?,
            oldest: shared.entry_from(0).await?.map(|(_, time)| time),
            pairs: hashes.pairs,
            cut_short: tail.continuing > 0,
            takes_appends: !tail.has_strays && !tail.refuses_appends,
            lost: missing,
            lost_keys,
            has_fence: fence,
            memory: shared.memory().await,
        })
    }
}

/// The counts of a ledger's hashes.
#[derive(Default)]
struct Hashes {
    pairs: u64,
    /// The hashes without their sentinel field.
    lost: Vec<String>,
}

impl Shared {
    async fn exists(&self, key: &str) -> Result<bool, RedisFailure> {
        let mut command = redis::cmd("EXISTS");
        Ok(ask(&self.reads, command.arg(key)).await? == Value::Int(1))
    }

    async fn count(&self, buckets: u32) -> Result<Hashes, RedisFailure> {
        let mut counted = Hashes::default();
        let text = [self.keyspace.text.clone()];
        let both = |number| [self.keyspace.bucket(number), self.keyspace.history(number)];
        let hashes: Vec<String> = text.into_iter().chain((0..buckets).flat_map(both)).collect();
        for some in hashes.chunks(HASHES_PER_PIPELINE) {
            let answers = ask_all(&self.reads, length_and_sentinel(some)).await?;
            for (hash, answer) in some.iter().zip(answers.chunks(2)) {
                // A key of another type than a hash counts as lost, too.
                let (length, sentinel) = match answer {
                    [Value::Int(length), Value::Int(sentinel)] => (length, sentinel),
                    _ => (&0, &0),
                };
                if *sentinel == 0 {
                    counted.lost.push(hash.clone());
                }
                if hash.contains(":b:") {
                    let pairs = u64::try_from(length.saturating_sub(*sentinel)).unwrap_or(0);
                    counted.pairs = counted.pairs.saturating_add(pairs);
                }
            }
        }
        Ok(counted)
    }

    async fn memory(&self) -> Option<(u64, u64)> {
        let mut command = redis::cmd("INFO");
        let info = match ask(&self.reads, command.arg("memory")).await.ok()? {
            Value::BulkString(bytes) => String::from_utf8(bytes).ok()?,
            Value::VerbatimString { text, .. } => text,
            _ => return None,
        };
        let of = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            line.strip_prefix(':')?.trim().parse().ok()
        };
        Some((of("used_memory")?, of("maxmemory").unwrap_or(0)))
    }
}
