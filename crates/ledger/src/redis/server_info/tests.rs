use super::*;

/// What redis-server 7.0.15 says of itself, shortened to a third.
const REDIS: &str = "# Server\r\nredis_version:7.0.15\r\nredis_git_sha1:00000000\r\n\
    redis_build_id:ae4d7c971a948f0\r\nredis_mode:standalone\r\narch_bits:64\r\n\
    process_supervised:no\r\ntcp_port:0\r\nuptime_in_seconds:1\r\nconfig_file:\r\n\r\n\
    # Memory\r\nused_memory:916776\r\nused_memory_human:895.29K\r\nmaxmemory:0\r\n\
    maxmemory_human:0B\r\nmaxmemory_policy:noeviction\r\nmem_allocator:jemalloc-5.3.0\r\n\r\n\
    # Persistence\r\nloading:0\r\nrdb_changes_since_last_save:0\r\nrdb_bgsave_in_progress:0\r\n\
    rdb_last_bgsave_status:ok\r\nrdb_last_bgsave_time_sec:-1\r\naof_enabled:0\r\n\
    aof_rewrite_in_progress:0\r\naof_last_bgrewrite_status:ok\r\naof_last_write_status:ok\r\n\r\n\
    # Replication\r\nrole:master\r\nconnected_slaves:0\r\nmaster_failover_state:no-failover\r\n\
    master_repl_offset:0\r\nrepl_backlog_active:0\r\n\r\n# Cluster\r\ncluster_enabled:0\r\n";

fn read(info: &str, config: &[(&str, &str)]) -> ServerInfo {
    let config: Vec<_> =
        config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    ServerInfo::parse(info, &config).unwrap()
}

fn with(from: &str, to: &str) -> ServerInfo {
    assert!(REDIS.contains(from), "{from}");
    read(&REDIS.replace(from, to), &[("save", "3600 1"), ("appendfsync", "everysec")])
}

#[test]
fn server_that_loads_its_data_is_not_judged() {
    let info = REDIS.replace("loading:0", "loading:1");
    assert!(matches!(ServerInfo::parse(&info, &[]), Err(ServerInfoError::Loading)));
}

#[test]
fn persistence_is_derived_from_info_and_config() {
    assert_eq!(read(REDIS, &[]).durability, Persistence::Unstated);
    assert_eq!(read(REDIS, &[("save", "")]).durability, Persistence::Memory);
    assert_eq!(read(REDIS, &[("save", "3600 1 300 100")]).durability, Persistence::Snapshots);
    let durable = with("aof_enabled:0", "aof_enabled:1");
    assert_eq!(durable.durability, Persistence::AppendOnly(Fsync::EverySecond));
    assert_eq!(durable.verdict(Topology::Single, false), Ok(vec![]));
    let hidden = read(&REDIS.replace("aof_enabled:0", "aof_enabled:1"), &[]);
    assert_eq!(hidden.durability, Persistence::AppendOnly(Fsync::Unstated));
    let memory = read(REDIS, &[("save", "")]).verdict(Topology::Single, false);
    assert_eq!(memory, Ok(vec![Warning::MemoryAlone]));
    let failing = with("bgsave_status:ok", "bgsave_status:err").verdict(Topology::Single, false);
    assert_eq!(failing, Ok(vec![Warning::SnapshotsAlone, Warning::CannotSave]));
}

#[test]
fn server_that_would_lose_opt_outs_is_unsupported() {
    for (from, to, unfit) in [
        (
            "policy:noeviction",
            "policy:allkeys-lru",
            UnsupportedServer::Evicting("allkeys-lru".into()),
        ),
        ("version:7.0.15", "version:6.2.14", UnsupportedServer::TooOld("redis 6.2.14".into())),
        ("role:master", "role:slave", UnsupportedServer::Replica),
        ("cluster_enabled:0", "cluster_enabled:1", UnsupportedServer::Cluster),
    ] {
        assert_eq!(with(from, to).verdict(Topology::Single, false), Err(unfit), "{to}");
    }
    assert!(
        with("policy:noeviction", "policy:volatile-lru").verdict(Topology::Single, false).is_ok()
    );
}

#[test]
fn unfenced_primary_is_a_warning_or_unsupported() {
    let alone = with("aof_enabled:0", "aof_enabled:1");
    assert_eq!(alone.verdict(Topology::Single, false), Ok(vec![]));
    // Behind Sentinels one without replicas may be one that was cut off.
    assert_eq!(alone.verdict(Topology::Sentinels, false), Err(UnsupportedServer::Unfenced));
    assert_eq!(alone.verdict(Topology::Sentinels, true), Ok(vec![Warning::Unfenced]));
    let followed = with("connected_slaves:0", "connected_slaves:2");
    assert!(followed.verdict(Topology::Single, false).unwrap().contains(&Warning::Unfenced));
    assert_eq!(followed.verdict(Topology::Sentinels, false), Err(UnsupportedServer::Unfenced));
    let fenced = with("connected_slaves:0", "connected_slaves:2\r\nmin_slaves_good_slaves:2");
    assert!(fenced.is_fenced && fenced.replicas == 2);
    assert_eq!(fenced.verdict(Topology::Sentinels, false), Ok(vec![Warning::SnapshotsAlone]));
}

#[test]
fn valkey_is_checked_by_its_compatible_redis_version() {
    let info = REDIS.replace(
        "redis_version:7.0.15",
        "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1",
    );
    let fitness = read(&info, &[]);
    assert_eq!((fitness.version, fitness.called.as_str()), ((7, 2, 4), "valkey 8.0.1"));
    assert!(fitness.verdict(Topology::Single, false).is_ok());
    assert!(matches!(ServerInfo::parse("", &[]), Err(ServerInfoError::Silent("redis_version"))));
    assert_eq!(version("7.4-rc1"), Some((7, 4, 0)));
}
