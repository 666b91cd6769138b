//! What a server says of its version, role and configuration (INFO, CONFIG GET), and whether that allows it
//! to hold a ledger.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};

/// The oldest version with script flags, on which the fence depends.
const OLDEST: (u32, u32) = (7, 0);

/// A server's version, role and configuration.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerInfo {
    /// Whether the server is a primary.
    pub is_primary: bool,
    /// The version of Redis; for Valkey the version of Redis that it is compatible with.
    pub version: (u32, u32, u32),
    /// The name and version of the product, such as "redis 7.0.15" or "valkey 8.0.1".
    pub called: String,
    /// Whether the server is a node of a cluster.
    pub is_cluster: bool,
    /// What survives the end of its process.
    pub durability: Persistence,
    /// Whether its last attempts to write to the disk succeeded.
    pub can_save: bool,
    /// The eviction policy (`maxmemory-policy`), if known.
    pub eviction: Option<String>,
    /// The number of connected replicas.
    pub replicas: u32,
    /// Whether it refuses writes, and therefore polls, once it has too few replicas
    /// (`min-replicas-to-write` and `min-replicas-max-lag` are set).
    pub is_fenced: bool,
    /// After how long a node of a Cluster is taken for lost (`cluster-node-timeout`), if known.
    pub node_timeout: Option<Duration>,
    /// Whether a Cluster that has lost one shard refuses everything (`cluster-require-full-coverage`), if
    /// known.
    pub needs_full_coverage: Option<bool>,
}

/// How the server of a ledger is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Topology {
    /// At a fixed address.
    Single,
    /// By its Sentinels.
    Sentinels,
    /// By the nodes of its Cluster.
    Cluster,
}

impl Topology {
    /// The command that publishes announcements: in a Cluster each then costs the shard of its slot alone.
    pub(super) fn publish_command(self) -> &'static str {
        match self {
            Self::Single | Self::Sentinels => "PUBLISH",
            Self::Cluster => "SPUBLISH",
        }
    }
}

/// The longest `cluster-node-timeout` without a warning. The default is 15 seconds.
const MAX_NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// What survives the end of a server's process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Persistence {
    /// Nothing.
    Memory,
    /// The last snapshot (RDB).
    Snapshots,
    /// The append-only file.
    AppendOnly(Fsync),
    /// There is no append-only file, and the ACL does not permit to read whether there are snapshots.
    Unstated,
}

/// When the append-only file is synced to the disk (`appendfsync`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fsync {
    /// Before each reply.
    Always,
    /// Every second.
    EverySecond,
    /// When the operating system decides.
    Never,
    /// The ACL does not permit to read the setting.
    Unstated,
}

/// Why a server cannot hold a ledger.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnsupportedServer {
    /// The eviction policy, which it has, would delete pairs.
    #[error(
        "it deletes keys when it is full (maxmemory-policy {0}), and with them opt-outs: set \
         maxmemory-policy noeviction"
    )]
    Evicting(String),
    /// The version, which it has, lacks script flags.
    #[error("it is {0}; Redis 7.0 or Valkey 7.2 is needed, or later")]
    TooOld(String),
    /// The server is a replica.
    #[error("it is a replica: give the primary's address, or those of its Sentinels")]
    Replica,
    /// The server is a node of a Cluster, and was given as a single Redis.
    #[error(
        "it is a node of a Cluster (cluster-enabled yes): give redis+cluster://HOST:PORT,HOST:PORT \
         (rediss+cluster:// with TLS)"
    )]
    Cluster,
    /// The server is no node of a Cluster, and was given as one.
    #[error("it is no node of a Cluster (cluster-enabled no): give redis://HOST:PORT")]
    NoCluster,
    /// The version, which it has, lacks WAITAOF.
    #[error("it is {0}; --durability aof needs Redis 7.2 or later: give ledger or replicas:N")]
    NoWaitAof(String),
    /// There is no append-only file.
    #[error("it has no append-only file, and --durability aof waits for that: set appendonly yes")]
    NoAppendOnlyFile,
    /// The append-only file is never synced.
    #[error(
        "its append-only file is never synced (appendfsync no), and --durability aof waits for \
         that: set appendfsync always, or everysec where it waits for the sync"
    )]
    NeverSyncs,
    /// The server confirms a sync before it has synced.
    #[error(
        "it confirms that its append-only file is synced before it is (WAITAOF with appendfsync \
         everysec; measured): set appendfsync always, and permit CONFIG GET (+config|get), so that \
         it can be seen; or give --durability ledger or replicas:N"
    )]
    ConfirmsUnsynced,
    /// The server would not notice that it is cut off from its replicas.
    #[error(
        "it would go on proving itself when a failover has passed it by: set \
         min-replicas-to-write 1 and min-replicas-max-lag below the failover timeout, on every \
         server of it; or give --accept-unfenced"
    )]
    Unfenced,
}

impl UnsupportedServer {
    /// Checks an eviction policy. The keys of a ledger never expire, so the policies `volatile-*`, which
    /// delete only keys that do, are harmless.
    pub(super) fn by_policy(policy: &str) -> Option<Self> {
        policy.starts_with("allkeys").then(|| Self::Evicting(policy.to_owned()))
    }
}

/// A risk of a server that holds a ledger, which an operator should know.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Warning {
    /// A restart loses the ledger.
    #[error(
        "the ledger is in memory alone: a restart of Redis loses every opt-out; set appendonly yes"
    )]
    MemoryAlone,
    /// A crash loses what was recorded after the last snapshot.
    #[error(
        "the ledger is as durable as the last snapshot: a crash of Redis loses what came after it; \
         set appendonly yes"
    )]
    SnapshotsAlone,
    /// It is unknown whether there are snapshots.
    #[error(
        "what Redis keeps is not known: it has no append-only file, and CONFIG GET is refused; \
         see that it takes snapshots, or set appendonly yes"
    )]
    UnstatedDurability,
    /// The last attempt to save failed.
    #[error("Redis could not save when it last tried, and may refuse writes: see its log")]
    CannotSave,
    /// The server has replicas, and would not notice being cut off from them.
    #[error(
        "unfenced: this Redis has replicas and min-replicas-to-write 0; after a failover the old \
         primary would go on proving itself to those who still reach it; set \
         min-replicas-to-write 1"
    )]
    Unfenced,
    /// The node of a Cluster has no replica.
    #[error(
        "a node with partitions of the ledger has no replica: while it is down, nothing is recorded \
         there, and the pairs of these partitions are denied as STALE"
    )]
    NoReplica,
    /// The node of a Cluster confirms writes that no replica has.
    #[error(
        "min-replicas-to-write 0: what was acknowledged may be lost with a node that has just taken \
         a slot of the ledger over, before a replica has it; set min-replicas-to-write 1 on every node"
    )]
    UnreplicatedMigration,
    /// The Cluster takes long to notice that a node is lost.
    #[error(
        "cluster-node-timeout {0:?}: a lost node is replaced after that time at the earliest, and \
         the pairs of its partitions are denied as STALE until then; set 1000 to 5000"
    )]
    SlowFailover(Duration),
    /// A lost shard stops all others.
    #[error(
        "cluster-require-full-coverage yes: where any other shard is lost, this one refuses \
         everything too; set it to no"
    )]
    FullCoverage,
}

/// Why a server's information could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ServerInfoError {
    /// INFO failed.
    #[error("cannot ask Redis what it is (INFO): {0}")]
    Asking(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// INFO lacks a field.
    #[error("INFO does not say {0}")]
    Silent(&'static str),
    /// The server loads its data. Meanwhile INFO has `aof_enabled:0` even if there is an append-only file
    /// (Redis 7.0), so that nothing can be said of its durability.
    #[error("Redis is loading its data, and answers once that is done")]
    Loading,
}

/// Reads a server's version, role and configuration.
pub(super) async fn inspect(
    redis: &mut MultiplexedConnection,
) -> Result<ServerInfo, ServerInfoError> {
    // All sections, because old versions accept one section at most.
    let asking = |error: RedisError| ServerInfoError::Asking(Arc::new(error));
    let info: String = redis::cmd("INFO").query_async(redis).await.map_err(asking)?;
    let mut config = redis::cmd("CONFIG");
    config.arg("GET").arg("appendfsync").arg("save").arg("maxmemory-policy");
    config.arg("cluster-node-timeout").arg("cluster-require-full-coverage");
    // A sidecar's user does not need this permission, because INFO has most of it.
    let config: Vec<(String, String)> = match config.query_async(redis).await {
        Ok(Value::Array(flat)) => pairs(flat),
        Err(error) if error.is_io_error() || error.is_timeout() => return Err(asking(error)),
        Ok(_) | Err(_) => Vec::new(),
    };
    ServerInfo::parse(&info, &config)
}

fn pairs(flat: Vec<Value>) -> Vec<(String, String)> {
    let texts: Vec<String> =
        flat.into_iter().filter_map(|value| redis::from_redis_value(value).ok()).collect();
    texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

impl ServerInfo {
    /// Parses the replies to INFO and, if it was permitted, to CONFIG GET.
    fn parse(info: &str, config: &[(String, String)]) -> Result<Self, ServerInfoError> {
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
        if of("loading") == Some("1") {
            return Err(ServerInfoError::Loading);
        }
        let said = needed("redis_version")?;
        let version = version(said).ok_or(ServerInfoError::Silent("redis_version"))?;
        let called = match (of("server_name"), of("valkey_version")) {
            (Some(name), Some(own)) => format!("{name} {own}"),
            _ => format!("redis {said}"),
        };
        let is_good = |name| of(name).is_none_or(|status| status == "ok");
        // INFO has this field only if min-replicas-to-write and min-replicas-max-lag are both set.
        let is_fenced = of("min_slaves_good_slaves").is_some();
        let node_timeout = set("cluster-node-timeout").and_then(|text| text.parse().ok());
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
            node_timeout: node_timeout.map(Duration::from_millis),
            needs_full_coverage: set("cluster-require-full-coverage").map(|text| text == "yes"),
        })
    }

    /// Checks that the server can hold a ledger, and returns its risks. Behind Sentinels it must be fenced
    /// even if it has no replica at present, because a primary that is cut off has none. In a Cluster the
    /// majority of its primaries is the fence.
    ///
    /// # Errors
    ///
    /// [`UnsupportedServer`] if it cannot.
    pub fn verdict(
        &self,
        topology: Topology,
        accept_unfenced: bool,
    ) -> Result<Vec<Warning>, UnsupportedServer> {
        let (major, minor, _) = self.version;
        if (major, minor) < OLDEST {
            return Err(UnsupportedServer::TooOld(self.called.clone()));
        }
        let is_cluster = topology == Topology::Cluster;
        match (self.is_cluster, is_cluster) {
            (true, false) => return Err(UnsupportedServer::Cluster),
            (false, true) => return Err(UnsupportedServer::NoCluster),
            _ => {}
        }
        if !self.is_primary {
            return Err(UnsupportedServer::Replica);
        }
        if let Some(unfit) = self.eviction.as_deref().and_then(UnsupportedServer::by_policy) {
            return Err(unfit);
        }
        let behind_sentinels = topology == Topology::Sentinels;
        let is_unfenced = !is_cluster && !self.is_fenced && (behind_sentinels || self.replicas > 0);
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
        let warnings = [durable, saving, fence].into_iter().flatten();
        Ok(warnings.chain(self.cluster_warnings().filter(|_| is_cluster)).collect())
    }

    fn cluster_warnings(&self) -> impl Iterator<Item = Warning> {
        let is_slow = |timeout: &Duration| *timeout > MAX_NODE_TIMEOUT;
        [
            (self.replicas == 0).then_some(Warning::NoReplica),
            (self.replicas > 0 && !self.is_fenced).then_some(Warning::UnreplicatedMigration),
            self.node_timeout.filter(is_slow).map(Warning::SlowFailover),
            (self.needs_full_coverage == Some(true)).then_some(Warning::FullCoverage),
        ]
        .into_iter()
        .flatten()
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

/// Parses the value of `appendfsync`.
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
