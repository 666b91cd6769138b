//! How a ledger in Redis is.

use std::sync::Arc;

use redis::Value;

use super::super::fitness::{self, Fitness};
use super::super::link::Link;
use super::super::refusal::{Failure, RefusedBy};
use super::super::scripts::{Answer, ask, ask_all};
use super::super::{Redis, Shared, Target};
use crate::consent::time::Timestamp;
use crate::ledger::LedgerError;

/// How many buckets are asked for at once.
const BUCKETS_AT_ONCE: usize = 512;

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
pub async fn look_at(target: Target) -> Result<Fitness, LedgerError> {
    let link = Link::new(Arc::new(target));
    let connection = link.connection().await?;
    let looked = fitness::inspect(&mut connection.redis.clone()).await;
    looked.map_err(|error| LedgerError::Unreachable(Arc::new(error)))
}

impl Redis {
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
        let length = ask(&shared.reads, command.arg(&shared.names.log)).await?;
        let mut command = redis::cmd("EXISTS");
        let fence = ask(&shared.reads, command.arg(&shared.names.fence)).await?;
        // Another recorder may have appended in between: then all is as it should be.
        let tail = shared.log_tail(&end).await?.unwrap_or_default();
        Ok(Status {
            log_entries: Answer::of(Value::Array(vec![length]))?.number()?,
            oldest: shared.entry_from(0).await?.map(|(_, time)| time),
            pairs: shared.count_pairs(identity.buckets).await?,
            cut_short: tail.continuing > 0,
            takes_appends: !tail.has_strays && !tail.refuses_appends,
            has_fence: fence == Value::Int(1),
            memory: shared.memory().await,
        })
    }
}

impl Shared {
    async fn count_pairs(&self, buckets: u32) -> Result<u64, Failure> {
        let mut pairs = 0_u64;
        let numbers: Vec<u32> = (0..buckets).collect();
        for some in numbers.chunks(BUCKETS_AT_ONCE) {
            let length = |number: &u32| {
                let mut command = redis::cmd("HLEN");
                command.arg(self.names.bucket(*number));
                command
            };
            for length in ask_all(&self.reads, some.iter().map(length).collect()).await? {
                let Value::Int(length) = length else {
                    return Err(Failure::Refused(RefusedBy::Strange));
                };
                // One field is the sentinel.
                pairs = pairs.saturating_add(u64::try_from(length - 1).unwrap_or(0));
            }
        }
        Ok(pairs)
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
