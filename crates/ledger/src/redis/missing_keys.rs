//! Detects keys of the ledger that Redis has lost: by its eviction policy, which may change while it runs,
//! and by keys that were found to be missing.
//!
//! Redis deletes keys when it is full and its policy permits it (`allkeys-*`), or on a command (`DEL`). Either
//! way a part of the ledger looks as if nothing had ever been recorded in it. The scripts reject such a part,
//! because it lacks its sentinel field; here the loss is reported to operators, and nothing is acknowledged
//! while the eviction policy is one that deletes keys.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use redis::Value;

use super::Shared;
use super::conn::Connection;
use super::error::{RedisFailure, RedisRejection};
use super::keyspace::SENTINEL_FIELD;
use super::scripts::ask_on;
use super::server_info::UnsupportedServer;
use crate::{DurabilityStatus, LedgerError};
use consentd_os::clock;

/// The interval at which polls also read the eviction policy. Every sidecar does, so not with each poll.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The maximum number of missing keys that are remembered.
const MAX_KEYS: usize = 64;

/// How many of them are rechecked at a time.
const RECHECKED_KEYS: usize = 8;

/// What is known about evicted and deleted keys.
#[derive(Debug, Default)]
pub(super) struct MissingKeys {
    /// When the policy was last read, and over which connection.
    checked: Option<(Duration, u64)>,
    /// The policy, if it lets Redis delete keys of the ledger.
    evicting: Option<UnsupportedServer>,
    /// The server's counter of evicted keys at the first check, and at the last one.
    evicted: Option<(u64, u64)>,
    /// Whether the policy evicts only keys that expire, which the ledger has none of.
    only_expiring: bool,
    /// Keys of the ledger that were found to be missing.
    keys: BTreeSet<String>,
    /// The key that was last rechecked.
    rechecked: String,
}

impl Shared {
    /// Converts a failure, and remembers the missing key if that is its cause.
    pub(super) fn convert_failure(&self, failure: RedisFailure) -> LedgerError {
        match failure {
            RedisFailure::Rejected(RedisRejection::Missing) => {
                let partition = self.keyspace.partition;
                self.common.origins.forget(partition);
                // The first one is known to have others: a ledger is not to be made there.
                match self.common.partitions() {
                    1 => RedisRejection::Missing.into(),
                    _ => RedisRejection::MissingPartition { partition }.into(),
                }
            }
            RedisFailure::Rejected(RedisRejection::LostKey { key }) => {
                self.note_missing_key(&key);
                RedisRejection::LostKey { key }.into()
            }
            failure => failure.into(),
        }
    }

    pub(super) fn note_missing_key(&self, key: &str) {
        let mut missing = self.lock_missing_keys();
        if missing.keys.len() < MAX_KEYS {
            missing.keys.insert(key.to_owned());
        }
    }

    /// Notes that the log and the fence exist.
    pub(super) fn note_log_and_fence_present(&self) {
        let mut missing = self.lock_missing_keys();
        if !missing.keys.is_empty() {
            missing.keys.remove(&self.keyspace.log);
            missing.keys.remove(&self.keyspace.fence);
        }
    }

    /// Fails while the eviction policy lets Redis delete keys of the ledger.
    pub(super) fn ensure_no_eviction(&self) -> Result<(), RedisFailure> {
        match &self.lock_missing_keys().evicting {
            None => Ok(()),
            Some(unfit) => Err(RedisFailure::UnsupportedServer(Arc::new(unfit.clone()))),
        }
    }

    /// Notes the eviction policy by the result of a server check.
    pub(super) fn note_eviction_policy(&self, verdict: &Result<(), UnsupportedServer>) {
        match verdict {
            Ok(()) => self.lock_missing_keys().evicting = None,
            Err(unfit @ UnsupportedServer::Evicting(_)) => {
                self.lock_missing_keys().evicting = Some(unfit.clone());
            }
            Err(_) => {}
        }
    }

    /// Reads the eviction policy and rechecks missing keys, unless that was done recently. Fails if the
    /// policy lets Redis delete keys of the ledger.
    pub(super) async fn check_for_missing_keys(
        &self,
        connection: &Connection,
    ) -> Result<(), RedisFailure> {
        let now = clock::boot();
        if !self.lock_missing_keys().is_recent(now, connection) {
            let (at, info) = self.memory_info(connection, now).await?;
            self.lock_missing_keys().checked = Some((at, connection.number()));
            self.lock_missing_keys().update(&info);
            self.recheck_missing_keys(connection).await?;
        }
        self.ensure_no_eviction()
    }

    /// The server's reply to INFO about its memory and its keys, no older than [`CHECK_INTERVAL`], and when it was read.
    async fn memory_info(
        &self,
        connection: &Connection,
        now: Duration,
    ) -> Result<(Duration, Arc<str>), RedisFailure> {
        let mut seen = connection.seen().memory.lock().await;
        if let Some((at, info)) =
            seen.as_ref().filter(|(at, _)| now.saturating_sub(*at) < CHECK_INTERVAL)
        {
            return Ok((*at, Arc::clone(info)));
        }
        let mut command = redis::cmd("INFO");
        command.arg("memory").arg("stats");
        let info: Arc<str> = match ask_on(&self.reads, connection, &command).await? {
            Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into(),
            Value::VerbatimString { text, .. } => text.into(),
            _ => return Err(RedisFailure::Rejected(RedisRejection::MalformedReply)),
        };
        *seen = Some((now, Arc::clone(&info)));
        Ok((now, info))
    }

    /// Forgets missing keys that are complete again.
    async fn recheck_missing_keys(&self, connection: &Connection) -> Result<(), RedisFailure> {
        let keys = self.lock_missing_keys().next_keys();
        for hash in keys {
            if hash == self.keyspace.log || hash == self.keyspace.fence {
                continue;
            }
            let mut command = redis::cmd("HGET");
            command.arg(&hash).arg(SENTINEL_FIELD);
            match ask_on(&self.reads, connection, &command).await {
                Ok(Value::Nil) | Err(RedisFailure::Rejected(_)) => {}
                Ok(_) => drop(self.lock_missing_keys().keys.remove(&hash)),
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Adds the missing keys to a durability status.
    pub(super) fn status_with_missing_keys(
        &self,
        mut status: DurabilityStatus,
    ) -> DurabilityStatus {
        let missing = self.lock_missing_keys();
        let warnings = missing.warnings();
        status.lost_keys = u64::try_from(missing.keys.len()).unwrap_or(u64::MAX);
        if !warnings.is_empty() {
            status.warnings = status.warnings.iter().cloned().chain(warnings).collect();
        }
        status
    }

    fn lock_missing_keys(&self) -> MutexGuard<'_, MissingKeys> {
        self.missing_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MissingKeys {
    /// Whether the last check is recent, and was made over this connection.
    fn is_recent(&self, now: Duration, connection: &Connection) -> bool {
        self.checked.is_some_and(|(at, number)| {
            number == connection.number() && now.saturating_sub(at) < CHECK_INTERVAL
        })
    }

    /// Reads the policy and the counter in the reply to INFO.
    fn update(&mut self, info: &str) {
        let of = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        // If INFO lacks the policy, the server check reads it from the configuration.
        if let Some(policy) = of("maxmemory_policy") {
            self.evicting = UnsupportedServer::by_policy(policy);
            self.only_expiring = policy.starts_with("volatile");
        }
        if let Some(now) = of("evicted_keys").and_then(|count| count.parse().ok()) {
            let first = self.evicted.map_or(now, |(first, _)| first);
            // After a restart, and at another server, the counter begins at 0.
            self.evicted = Some((first.min(now), now));
        }
    }

    /// The next missing keys to recheck, in rotation.
    fn next_keys(&mut self) -> Vec<String> {
        let behind = self.keys.range::<String, _>((
            std::ops::Bound::Excluded(&self.rechecked),
            std::ops::Bound::Unbounded,
        ));
        let next: Vec<_> =
            behind.chain(&self.keys).take(RECHECKED_KEYS.min(self.keys.len())).collect();
        let next: Vec<String> = next.into_iter().cloned().collect();
        self.rechecked = next.last().cloned().unwrap_or_default();
        next
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut keys = self.keys.iter();
        if let Some(first) = keys.next() {
            let more = match keys.len() {
                0 => String::new(),
                more if self.keys.len() < MAX_KEYS => format!(" and {more} more"),
                more => format!(" and {more} more at least"),
            };
            warnings.push(format!(
                "keys of the ledger were deleted or evicted in Redis: {first}{more}; what they held is \
                 denied and takes no events: run `consentd ledger repair`, or restore a backup of \
                 Redis; see that maxmemory-policy is noeviction"
            ));
        }
        if let Some((first, now)) = self.evicted.filter(|(first, now)| now > first)
            && !self.only_expiring
        {
            let count = now.saturating_sub(first);
            warnings.push(format!(
                "Redis has evicted {count} keys since this process started, so its maxmemory-policy was \
                 not noeviction for a while: keep it at noeviction, and run `consentd ledger verify`, \
                 which says whether keys of the ledger are missing, and then `consentd ledger repair`"
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_follow_the_policy_and_the_evictions_in_info() {
        let mut missing = MissingKeys::default();
        missing.update("# Memory\r\nmaxmemory_policy:noeviction\r\nevicted_keys:7\r\n");
        assert_eq!((&missing.evicting, missing.warnings().len()), (&None, 0));
        missing.update("maxmemory_policy:allkeys-lru\r\nevicted_keys:7\r\n");
        assert_eq!(missing.evicting, Some(UnsupportedServer::Evicting("allkeys-lru".into())));
        missing.update("maxmemory_policy:noeviction\r\nevicted_keys:9\r\n");
        assert_eq!(missing.evicting, None);
        assert!(missing.warnings()[0].contains("evicted 2 keys"), "{:?}", missing.warnings());
        // This policy evicts only keys that expire, which the ledger has none of.
        missing.update("maxmemory_policy:volatile-lru\r\nevicted_keys:9\r\n");
        assert_eq!((&missing.evicting, missing.warnings().len()), (&None, 0));
        missing.update("maxmemory_policy:noeviction\r\nevicted_keys:0\r\n");
        assert_eq!(missing.warnings().len(), 0, "it was restarted");
    }

    #[test]
    fn missing_keys_are_rechecked_in_rotation() {
        let mut missing = MissingKeys::default();
        assert!(missing.next_keys().is_empty());
        missing.keys.extend((10..30).map(|number| number.to_string()));
        let asked: Vec<_> = (0..5).flat_map(|_| missing.next_keys()).collect();
        assert!((10..30).all(|number| asked.contains(&number.to_string())), "{asked:?}");
        assert_eq!(missing.warnings().len(), 1);
    }
}
