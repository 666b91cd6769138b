//! Whether a Redis is fit to hold a ledger, and what an operator should know of it.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};

/// The oldest version that knows the flags of scripts, on which the fence rests.
const OLDEST: (u32, u32) = (7, 0);

/// What a Redis says of itself.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerInfo {
    /// Whether it is a primary.
    pub is_primary: bool,
    /// Its version as Redis counts it: Valkey says which Redis it stands in for.
    pub version: (u32, u32, u32),
    /// Its version as people call it, such as "redis 7.0.15" or "valkey 8.0.1".
    pub called: String,
    /// Whether it is a node of a cluster.
    pub is_cluster: bool,
    /// What survives when its process ends.
    pub durability: Persistence,
    /// Whether it could write what it must at its last attempt.
    pub can_save: bool,
    /// What it does when it is full, where it tells.
    pub eviction: Option<String>,
    /// How many replicas follow it now.
    pub replicas: u32,
    /// Whether it refuses writes, and with them polls, once too few replicas answer.
    pub is_fenced: bool,
}

/// What survives when a Redis' process ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Persistence {
    /// Nothing.
    Memory,
    /// What was there at the last snapshot.
    Snapshots,
    /// What was in its append-only file.
    AppendOnly(Fsync),
    /// It has no append-only file, and does not let us see whether it takes snapshots.
    Unstated,
}

/// How often an append-only file is forced to the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fsync {
    /// Before each answer.
    Always,
    /// Every second.
    EverySecond,
    /// When the system likes.
    Never,
    /// It does not let us see.
    Unstated,
}

/// Why a Redis cannot hold a ledger.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnsupportedServer {
    /// It would delete pairs.
    #[error(
        "it deletes keys when it is full (maxmemory-policy {0}), and with them opt-outs: set \
         maxmemory-policy noeviction"
    )]
    Evicting(String),
    /// It does not know what the fence rests on.
    #[error("it is {0}; Redis 7.0 or Valkey 7.2 is needed, or later")]
    TooOld(String),
    /// It is a replica.
    #[error("it is a replica: give the primary's address, or those of its Sentinels")]
    Replica,
    /// It is a node of a cluster.
    #[error("it is a node of a cluster (cluster-enabled yes), which cannot hold a ledger yet")]
    Cluster,
    /// It cannot say that its append-only file is synced.
    #[error("it is {0}; --durability aof needs Redis 7.2 or later: give ledger or replicas:N")]
    NoWaitAof(String),
    /// It has none.
    #[error("it has no append-only file, and --durability aof waits for that: set appendonly yes")]
    NoAppendOnlyFile,
    /// It never forces that file to the disk.
    #[error(
        "its append-only file is never synced (appendfsync no), and --durability aof waits for \
         that: set appendfsync always, or everysec where it waits for the sync"
    )]
    NeverSyncs,
    /// It says that the file is synced when it is not.
    #[error(
        "it confirms that its append-only file is synced before it is (WAITAOF with appendfsync \
         everysec; measured): set appendfsync always, and permit CONFIG GET (+config|get), so that \
         it can be seen; or give --durability ledger or replicas:N"
    )]
    ConfirmsUnsynced,
    /// Cut off, it would not notice.
    #[error(
        "it would go on proving itself when a failover has passed it by: set \
         min-replicas-to-write 1 and min-replicas-max-lag below the failover timeout, on every \
         server of it; or give --accept-unfenced"
    )]
    Unfenced,
}

impl UnsupportedServer {
    /// What an eviction policy makes of a Redis. The keys of a ledger never expire, so that the
    /// policies `volatile-*`, which delete only keys that do, leave them alone.
    pub(super) fn by_policy(policy: &str) -> Option<Self> {
        policy.starts_with("allkeys").then(|| Self::Evicting(policy.to_owned()))
    }
}

/// What an operator should know of a Redis that holds a ledger.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Warning {
    /// A restart loses it.
    #[error(
        "the ledger is in memory alone: a restart of Redis loses every opt-out; set appendonly yes"
    )]
    MemoryAlone,
    /// A crash loses the last minutes.
    #[error(
        "the ledger is as durable as the last snapshot: a crash of Redis loses what came after it; \
         set appendonly yes"
    )]
    SnapshotsAlone,
    /// It is not known.
    #[error(
        "what Redis keeps is not known: it has no append-only file, and CONFIG GET is refused; \
         see that it takes snapshots, or set appendonly yes"
    )]
    UnstatedDurability,
    /// The last attempt to save failed.
    #[error("Redis could not save when it last tried, and may refuse writes: see its log")]
    CannotSave,
    /// It has replicas, and would not notice being cut off from them.
    #[error(
        "unfenced: this Redis has replicas and min-replicas-to-write 0; after a failover the old \
         primary would go on proving itself to those who still reach it; set \
         min-replicas-to-write 1"
    )]
    Unfenced,
}

/// Why a Redis could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ServerInfoError {
    /// It could not be asked.
    #[error("cannot ask Redis what it is (INFO): {0}")]
    Asking(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// It says something else.
    #[error("INFO does not say {0}")]
    Silent(&'static str),
}

/// Asks a Redis what it is.
pub(super) async fn inspect(
    redis: &mut MultiplexedConnection,
) -> Result<ServerInfo, ServerInfoError> {
    // The whole of it: those that are too old take one section at most.
    let asking = |error: RedisError| ServerInfoError::Asking(Arc::new(error));
    let info: String = redis::cmd("INFO").query_async(redis).await.map_err(asking)?;
    let mut config = redis::cmd("CONFIG");
    config.arg("GET").arg("appendfsync").arg("save").arg("maxmemory-policy");
    // A sidecar's user need not be allowed this; INFO tells the most of it.
    let config: Vec<(String, String)> = match config.query_async(redis).await {
        Ok(Value::Array(flat)) => pairs(flat),
        Err(error) if error.is_io_error() || error.is_timeout() => return Err(asking(error)),
        Ok(_) | Err(_) => Vec::new(),
    };
    ServerInfo::read(&info, &config)
}

fn pairs(flat: Vec<Value>) -> Vec<(String, String)> {
    let texts: Vec<String> =
        flat.into_iter().filter_map(|value| redis::from_redis_value(value).ok()).collect();
    texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

impl ServerInfo {
    /// What INFO and, where it was permitted, CONFIG GET say.
    fn read(info: &str, config: &[(String, String)]) -> Result<Self, ServerInfoError> {
        let of = |name: &str| {
            info.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key == name).then(|| value.trim())
            })
        };
        let set = |name: &str| {
            config.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
        };
        let needed = |name: &'static str| of(name).ok_or(ServerInfoError::Silent(name));
        let said = needed("redis_version")?;
        let version = version(said).ok_or(ServerInfoError::Silent("redis_version"))?;
        let called = match (of("server_name"), of("valkey_version")) {
            (Some(name), Some(own)) => format!("{name} {own}"),
            _ => format!("redis {said}"),
        };
        let is_good = |name| of(name).is_none_or(|status| status == "ok");
        // Shown only where both min-replicas-to-write and min-replicas-max-lag are set.
        let is_fenced = of("min_slaves_good_slaves").is_some();
        Ok(Self {
            is_primary: needed("role")? == "master",
            version,
            called,
            is_cluster: of("redis_mode") == Some("cluster") || of("cluster_enabled") == Some("1"),
            durability: durability(needed("aof_enabled")? == "1", set("save"), set("appendfsync")),
            can_save: is_good("rdb_last_bgsave_status")
                && is_good("aof_last_write_status")
                && is_good("aof_last_bgrewrite_status"),
            eviction: of("maxmemory_policy").or(set("maxmemory-policy")).map(str::to_owned),
            replicas: of("connected_slaves").and_then(|count| count.parse().ok()).unwrap_or(0),
            is_fenced,
        })
    }

    /// What an operator should know; or why this cannot hold a ledger. Behind Sentinels it must
    /// notice being cut off, even where no replica follows it now: that is how it looks when it is.
    ///
    /// # Errors
    ///
    /// [`UnsupportedServer`] says why.
    pub fn verdict(
        &self,
        behind_sentinels: bool,
        accept_unfenced: bool,
    ) -> Result<Vec<Warning>, UnsupportedServer> {
        let (major, minor, _) = self.version;
        if (major, minor) < OLDEST {
            return Err(UnsupportedServer::TooOld(self.called.clone()));
        }
        if self.is_cluster {
            return Err(UnsupportedServer::Cluster);
        }
        if !self.is_primary {
            return Err(UnsupportedServer::Replica);
        }
        if let Some(unfit) = self.eviction.as_deref().and_then(UnsupportedServer::by_policy) {
            return Err(unfit);
        }
        let is_unfenced = !self.is_fenced && (behind_sentinels || self.replicas > 0);
        if is_unfenced && behind_sentinels && !accept_unfenced {
            return Err(UnsupportedServer::Unfenced);
        }
        let durable = match self.durability {
            Persistence::Memory => Some(Warning::MemoryAlone),
            Persistence::Snapshots => Some(Warning::SnapshotsAlone),
            Persistence::Unstated => Some(Warning::UnstatedDurability),
            Persistence::AppendOnly(_) => None,
        };
        let saving = (!self.can_save).then_some(Warning::CannotSave);
        let fence = is_unfenced.then_some(Warning::Unfenced);
        Ok([durable, saving, fence].into_iter().flatten().collect())
    }
}

fn version(said: &str) -> Option<(u32, u32, u32)> {
    let mut parts = said.split('.');
    let mut part = || {
        let digits = parts.next()?;
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits.get(..end)?.parse().ok()
    };
    Some((part()?, part()?, part().unwrap_or(0)))
}

fn durability(has_file: bool, save: Option<&str>, fsync: Option<&str>) -> Persistence {
    match (has_file, save) {
        (true, _) => Persistence::AppendOnly(self::fsync(fsync)),
        (false, Some("")) => Persistence::Memory,
        (false, Some(_)) => Persistence::Snapshots,
        (false, None) => Persistence::Unstated,
    }
}

/// What a value of `appendfsync` means.
pub(super) fn fsync(value: Option<&str>) -> Fsync {
    match value {
        Some("always") => Fsync::Always,
        Some("everysec") => Fsync::EverySecond,
        Some("no") => Fsync::Never,
        _ => Fsync::Unstated,
    }
}

#[cfg(test)]
mod tests;
