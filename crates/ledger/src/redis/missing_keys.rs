//! Whether this Redis loses keys: by its eviction policy, which may change while it runs, and by
//! keys of the ledger that were found to be missing.
//!
//! Redis deletes keys when it is full and its policy lets it (`allkeys-*`), or when somebody tells
//! it to (`DEL`). Either way a part of the ledger looks as if nothing had ever been recorded in it.
//! The scripts refuse such a part by its sentinel field; here it is told to people, and nothing
//! is acknowledged while Redis says that it evicts keys.

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

/// How often a poll also asks for the eviction policy. Every sidecar asks, so not at every poll.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The most missing keys that are remembered by name.
const MAX_KEYS: usize = 64;

/// The most of them that are asked for at each look, whether they are back.
const MAX_ASKED: usize = 8;

/// What is known of losses.
#[derive(Debug, Default)]
pub(super) struct MissingKeys {
    /// When the policy was last asked for, and on which connection.
    looked: Option<(Duration, u64)>,
    /// The policy, where it lets Redis delete keys of the ledger.
    evicting: Option<UnsupportedServer>,
    /// How many keys Redis had evicted by the first look, and by the last.
    evicted: Option<(u64, u64)>,
    /// Whether only keys that expire are evicted, as other users of this Redis may wish.
    only_expiring: bool,
    /// Keys of the ledger that were found to be missing.
    keys: BTreeSet<String>,
    /// The one that was last asked for.
    asked: String,
}

impl Shared {
    /// Remembers that a key of the ledger is missing, where that is why something failed.
    pub(super) fn convert_failure(&self, failure: RedisFailure) -> LedgerError {
        if let RedisFailure::Rejected(RedisRejection::LostKey { key }) = &failure {
            self.note_missing_key(key);
        }
        failure.into()
    }

    pub(super) fn note_missing_key(&self, key: &str) {
        let mut losses = self.lock_missing_keys();
        if losses.keys.len() < MAX_KEYS {
            losses.keys.insert(key.to_owned());
        }
    }

    /// The log and the fence are there.
    pub(super) fn note_log_and_fence_present(&self) {
        let mut losses = self.lock_missing_keys();
        if !losses.keys.is_empty() {
            losses.keys.remove(&self.keyspace.log);
            losses.keys.remove(&self.keyspace.fence);
        }
    }

    /// Fails while Redis says that it evicts keys, whatever they hold.
    pub(super) fn ensure_no_eviction(&self) -> Result<(), RedisFailure> {
        match &self.lock_missing_keys().evicting {
            None => Ok(()),
            Some(unfit) => Err(RedisFailure::UnsupportedServer(Arc::new(unfit.clone()))),
        }
    }

    /// Takes what a whole look at this Redis has found.
    pub(super) fn note_eviction_policy(&self, verdict: &Result<(), UnsupportedServer>) {
        match verdict {
            Ok(()) => self.lock_missing_keys().evicting = None,
            Err(unfit @ UnsupportedServer::Evicting(_)) => {
                self.lock_missing_keys().evicting = Some(unfit.clone());
            }
            Err(_) => {}
        }
    }

    /// Asks for the eviction policy, if it was not asked for just now, and whether missing keys are
    /// back.
    pub(super) async fn check_for_missing_keys(
        &self,
        connection: &Connection,
    ) -> Result<(), RedisFailure> {
        let now = clock::boot();
        if !self.lock_missing_keys().is_recent(now, connection) {
            let mut command = redis::cmd("INFO");
            command.arg("memory").arg("stats");
            let info = ask_on(&self.reads, connection, &command).await?;
            let info = match info {
                Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Value::VerbatimString { text, .. } => text,
                _ => return Err(RedisFailure::Rejected(RedisRejection::MalformedReply)),
            };
            self.lock_missing_keys().looked = Some((now, connection.number()));
            self.lock_missing_keys().take(&info);
            self.recheck_missing_keys(connection).await?;
        }
        self.ensure_no_eviction()
    }

    /// Forgets missing keys that are whole again.
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

    /// How well the ledger is kept, with what was found to be lost of it.
    pub(super) fn status_with_missing_keys(
        &self,
        mut standing: DurabilityStatus,
    ) -> DurabilityStatus {
        let losses = self.lock_missing_keys();
        let warnings = losses.warnings();
        standing.lost_keys = u64::try_from(losses.keys.len()).unwrap_or(u64::MAX);
        if !warnings.is_empty() {
            standing.warnings = standing.warnings.iter().cloned().chain(warnings).collect();
        }
        standing
    }

    fn lock_missing_keys(&self) -> MutexGuard<'_, MissingKeys> {
        self.missing_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MissingKeys {
    /// Whether this connection was asked not long ago.
    fn is_recent(&self, now: Duration, connection: &Connection) -> bool {
        self.looked.is_some_and(|(at, number)| {
            number == connection.number() && now.saturating_sub(at) < LOOK_EVERY
        })
    }

    /// Takes what INFO says of memory and of what happened.
    fn take(&mut self, info: &str) {
        let of = |name: &str| {
            info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        // One that does not say was judged by a whole look, which asks for its configuration too.
        if let Some(policy) = of("maxmemory_policy") {
            self.evicting = UnsupportedServer::by_policy(policy);
            self.only_expiring = policy.starts_with("volatile");
        }
        if let Some(now) = of("evicted_keys").and_then(|count| count.parse().ok()) {
            let first = self.evicted.map_or(now, |(first, _)| first);
            // A server that was restarted, or another one, counts from 0.
            self.evicted = Some((first.min(now), now));
        }
    }

    /// Some of the missing keys, in turn.
    fn next_keys(&mut self) -> Vec<String> {
        let behind = self.keys.range::<String, _>((
            std::ops::Bound::Excluded(&self.asked),
            std::ops::Bound::Unbounded,
        ));
        let next: Vec<_> = behind.chain(&self.keys).take(MAX_ASKED.min(self.keys.len())).collect();
        let next: Vec<String> = next.into_iter().cloned().collect();
        self.asked = next.last().cloned().unwrap_or_default();
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
    fn losses_by_what_info_says_tell_policy_and_evictions() {
        let mut losses = MissingKeys::default();
        losses.take("# Memory\r\nmaxmemory_policy:noeviction\r\nevicted_keys:7\r\n");
        assert_eq!((&losses.evicting, losses.warnings().len()), (&None, 0));
        losses.take("maxmemory_policy:allkeys-lru\r\nevicted_keys:7\r\n");
        assert_eq!(losses.evicting, Some(UnsupportedServer::Evicting("allkeys-lru".into())));
        losses.take("maxmemory_policy:noeviction\r\nevicted_keys:9\r\n");
        assert_eq!(losses.evicting, None);
        assert!(losses.warnings()[0].contains("evicted 2 keys"), "{:?}", losses.warnings());
        // Only keys that expire, which the ledger has none of.
        losses.take("maxmemory_policy:volatile-lru\r\nevicted_keys:9\r\n");
        assert_eq!((&losses.evicting, losses.warnings().len()), (&None, 0));
        losses.take("maxmemory_policy:noeviction\r\nevicted_keys:0\r\n");
        assert_eq!(losses.warnings().len(), 0, "it was restarted");
    }

    #[test]
    fn missing_keys_are_asked_for_in_turn() {
        let mut losses = MissingKeys::default();
        assert!(losses.next_keys().is_empty());
        losses.keys.extend((10..30).map(|number| number.to_string()));
        let asked: Vec<_> = (0..5).flat_map(|_| losses.next_keys()).collect();
        assert!((10..30).all(|number| asked.contains(&number.to_string())), "{asked:?}");
        assert_eq!(losses.warnings().len(), 1);
    }
}
