//! How a ledger in Redis is.

use std::sync::Arc;

use redis::Value;

use super::super::conn::ConnectionManager;
use super::super::error::RedisFailure;
use super::super::keyspace::SENTINEL_FIELD;
use super::super::scripts::{Answer, ask, ask_all};
use super::super::server_info::{self, ServerInfo};
use super::super::{Redis, Shared, Target};
use crate::{LedgerError, Page};
use consentd_core::time::Timestamp;

/// How many hashes are asked for at once.
const HASHES_AT_ONCE: usize = 512;

/// The most keys that are named of those that were lost.
const MAX_LOST: usize = 20;

/// How a ledger in Redis is, beside where it ends.
#[derive(Clone, Debug)]
pub struct Status {
    /// How many entries the log has.
    pub log_entries: u64,
    /// When the first of them was recorded, where it has any.
    pub oldest: Option<Timestamp>,
    /// How many pairs there are.
    pub pairs: u64,
    /// Whether an append was cut short, and waits for the next one.
    pub cut_short: bool,
    /// The keys that were deleted or evicted, 20 at most.
    pub lost: Vec<String>,
    /// How many they are in all.
    pub lost_keys: u64,
    /// Whether Redis takes the ledger's next entry: not where the log has had a larger id.
    pub takes_appends: bool,
    /// Whether the fence is there.
    pub has_fence: bool,
    /// How many bytes Redis takes, and how many it may take; 0 for as many as there are.
    pub memory: Option<(u64, u64)>,
}

/// Looks at a Redis, whatever is in it.
///
/// # Errors
///
/// [`LedgerError`] where it cannot be asked.
pub async fn inspect_server(target: Target) -> Result<ServerInfo, LedgerError> {
    let connections = ConnectionManager::new(Arc::new(target));
    let connection = connections.connection().await?;
    let looked = server_info::inspect(&mut connection.redis.clone()).await;
    looked.map_err(|error| LedgerError::Unreachable(Arc::new(error)))
}

impl Redis {
    /// Where it ends, as the fenced poll says; of a ledger that has lost its log or its fence, too.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be asked.
    pub async fn ends(&self) -> Result<Page, LedgerError> {
        Ok(self.shared.fenced_poll(u64::MAX, None).await?.0)
    }

    /// How it is.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be asked.
    pub async fn status(&self) -> Result<Status, LedgerError> {
        let shared = &*self.shared;
        let identity = shared.identity().await?;
        let end = shared.end().await?;
        let mut command = redis::cmd("XLEN");
        let length = ask(&shared.reads, command.arg(&shared.keyspace.log)).await?;
        let fence = shared.exists(&shared.keyspace.fence).await?;
        // Another recorder may have appended in between: then all is as it should be.
        let tail = shared.log_tail(&end).await?.unwrap_or_default();
        let hashes = shared.count(identity.buckets).await?;
        let mut missing = hashes.lost;
        if !shared.exists(&shared.keyspace.log).await? {
            missing.insert(0, shared.keyspace.log.clone());
        }
        let lost_keys = u64::try_from(missing.len()).unwrap_or(u64::MAX);
        missing.truncate(MAX_LOST);
        Ok(Status {
            log_entries: Answer::of(Value::Array(vec![length]))?.number()?,
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

/// What was counted in a ledger's hashes.
#[derive(Default)]
struct Hashes {
    pairs: u64,
    /// Those without their sentinel.
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
        for some in hashes.chunks(HASHES_AT_ONCE) {
            let asked = some.iter().flat_map(|hash| {
                let (mut length, mut sentinel) = (redis::cmd("HLEN"), redis::cmd("HEXISTS"));
                length.arg(hash);
                sentinel.arg(hash).arg(SENTINEL_FIELD);
                [length, sentinel]
            });
            let answers = ask_all(&self.reads, asked.collect()).await?;
            for (hash, answer) in some.iter().zip(answers.chunks(2)) {
                // Another kind of key than a hash holds nothing of a ledger's either.
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
