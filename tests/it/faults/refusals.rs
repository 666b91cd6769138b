//! Redis servers that refuse: without their replicas, full, unable to save, with other credentials.

use std::process::Command;

use consentd::grpc::pb::Reason;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use tokio::time::timeout;

use super::history::Did;
use super::load::channel;
use super::redis::{MASTER, Redis, Sentinels};
use super::stage::{LIVE_AGAIN, Setup, Stage, ask, init, ledger_at, live_within, serve, status};
use crate::sidecar::{BINARY, PATIENCE, Sidecar, event, eventually, opt_in};

/// A primary that notices within a second or two that it was left alone.
const FENCED: [&str; 4] = ["--min-replicas-to-write", "1", "--min-replicas-max-lag", "1"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_old_primary_is_refused_the_poll() {
    let redis = Redis::start(&[]);
    let replica = Redis::start_replica_of(&redis, &FENCED);
    for option in FENCED.chunks(2) {
        redis.set(option[0].trim_start_matches("--"), option[1]);
    }
    redis.wait_for_info("min_slaves_good_slaves", |count| count == "1");
    init(&ledger_at(&redis.address()), &["--buckets", "32"]);
    let flags = ["--durability", "replicas:1"];
    let mut stage = Stage::set_on(redis, Setup { flags: &flags, ..Setup::default() }).await;
    stage.say("US.split", Did::OptIn, "marketing").await;
    stage.hammer().await;
    // The replica is on the other side of a partition, where it becomes the primary.
    replica.promote();
    let other = Redis::start_replica_of(&replica, &[]);
    stage.redis.wait_for_info("min_slaves_good_slaves", |count| count == "0");
    let cause = stage.denies_all(&stage.reader).await;
    assert!(cause.contains("NOREPLICAS"), "{cause}");
    // The recorder is moved to the other side, and the reader is left with the old primary.
    stage.recorder_net.lead_to(&replica.address());
    live_within(&stage.recorder, PATIENCE).await;
    stage.say("US.split", Did::OptOut, "*").await;
    assert!(!ask(&stage.reader, "US.split", "marketing").await.allowed);
    stage.reader_net.lead_to(&replica.address());
    stage.is_out(&stage.reader, "US.split", "marketing").await;
    stage.end().await;
    drop(other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_replica_has_is_not_acknowledged() {
    let redis = Redis::start(&[]);
    init(&ledger_at(&redis.address()), &["--buckets", "32"]);
    let replica = Redis::start_replica_of(&redis, &[]);
    let flags = ["--durability", "replicas:1"];
    let mut stage = Stage::set_on(redis, Setup { flags: &flags, ..Setup::default() }).await;
    stage.say("US.1", Did::OptIn, "utility").await;
    replica.stop();
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    let mut request = event("US.2", "acme", opt_in("utility"));
    request.request_id = "in".into();
    let answer = timeout(PATIENCE, records.record_event(request.clone())).await;
    let refused = answer.expect("it gives up").expect_err("no replica has it");
    assert!(refused.message().contains("replica"), "{refused}");
    replica.go_on();
    eventually("the retry is acknowledged", || {
        let (mut records, request) = (records.clone(), request.clone());
        async move { records.record_event(request).await.is_ok() }
    })
    .await;
    stage.is_in(&stage.reader, "US.2", "utility").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_takes_a_stop_and_refuses_the_rest_with_the_cause() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.say("US.full", Did::OptIn, "marketing").await;
    stage.is_in(&stage.reader, "US.full", "marketing").await;
    stage.hammer().await;
    stage.redis.set("maxmemory", "1mb");
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    let mut request = event("US.full-2", "acme", opt_in("utility"));
    request.request_id = "in".into();
    let refused = records.record_event(request).await.expect_err("Redis is full");
    assert!(refused.message().contains("maxmemory"), "{refused}");
    stage.say("US.full", Did::OptOut, "*").await;
    for sidecar in stage.sidecars() {
        stage.is_out(sidecar, "US.full", "marketing").await;
        live_within(sidecar, LIVE_AGAIN).await;
    }
    stage.redis.set("maxmemory", "0");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_would_evict_is_refused_at_start() {
    let redis = Redis::start(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let ledger = ledger_at(&redis.address());
    let (code, printed, error) = crate::sidecar::run(&["init", "--ledger", &ledger]);
    if code == 0 {
        let started = Sidecar::try_start_by(Command::new(BINARY), &ledger, &[], &[]);
        let said = started.err().expect("it does not start");
        assert!(said.contains("noeviction"), "{said}");
    } else {
        assert!(error.contains("noeviction"), "{printed}{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ledger_status_of_a_redis_that_evicts_is_not_well() {
    let redis = Redis::start(&[]);
    let ledger = ledger_at(&redis.address());
    init(&ledger, &["--buckets", "16"]);
    let status = ["ledger", "status", "--ledger", &ledger];
    assert_eq!(crate::sidecar::run(&status).0, 0);
    for policy in ["allkeys-lru", "allkeys-random"] {
        redis.set("maxmemory-policy", policy);
        let (code, printed, error) = crate::sidecar::run(&status);
        assert_eq!(code, 1, "{printed}{error}");
        let parts = [policy, "cannot hold a ledger", "set maxmemory-policy noeviction"];
        assert!(parts.iter().all(|part| printed.contains(part)), "{printed}");
        let (code, printed, error) = crate::sidecar::run(&[&status[..], &["--json"]].concat());
        assert_eq!(code, 1, "{printed}{error}");
        let told: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!((&told["well"], &told["server"]["eviction"]), (&false.into(), &policy.into()));
    }
    redis.set("maxmemory-policy", "noeviction");
    assert_eq!(crate::sidecar::run(&status).0, 0);
    // What cannot be asked is something else.
    drop(redis);
    assert_eq!(crate::sidecar::run(&status).0, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_cannot_save_denies_after_the_bound_and_the_cause_is_named_everywhere() {
    let options = ["--save", "3600 1", "--enable-protected-configs", "yes"];
    let mut stage = Stage::set(Setup { redis: &options, ..Setup::default() }).await;
    stage.hammer().await;
    let dir = stage.redis.command(&["CONFIG", "GET", "dir"]).parts()[1].text();
    let gone = tempfile::tempdir().unwrap();
    stage.redis.set("dir", &gone.path().display().to_string());
    gone.close().unwrap();
    stage.redis.command(&["BGSAVE"]);
    stage.redis.wait_for_info("rdb_last_bgsave_status", |status| status == "err");
    for sidecar in stage.sidecars() {
        let cause = stage.denies_all(sidecar).await;
        assert!(cause.contains("MISCONF"), "{cause}");
        let (_, page) = sidecar.get("/").await;
        assert!(page.contains("MISCONF"), "{page}");
        eventually("the log names it", || async { sidecar.said().contains("MISCONF") }).await;
    }
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    let mut request = event("US.unsaved", "acme", opt_in("utility"));
    request.request_id = "in".into();
    let refused = records.record_event(request).await.expect_err("Redis cannot save");
    assert!(refused.message().contains("MISCONF"), "{refused}");
    stage.redis.set("dir", &dir);
    stage.redis.command(&["BGSAVE"]);
    stage.redis.wait_for_info("rdb_last_bgsave_status", |status| status == "ok");
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotated_credentials_are_read_again_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "old\n").unwrap();
    let redis = Redis::start(&[]);
    init(&ledger_at(&redis.address()), &["--buckets", "32"]);
    redis.allow("consentd", &[">old", "allcommands", "~*", "&*"]);
    let path = file.display().to_string();
    let flags = ["--ledger-user", "consentd", "--ledger-password-file", &path];
    let mut stage = Stage::set_on(redis, Setup { flags: &flags, ..Setup::default() }).await;
    stage.hammer().await;
    // Changed in Redis first: whoever connects with the old one is refused.
    stage.redis.allow("consentd", &[">new", "allcommands", "~*", "&*"]);
    stage.nets().into_iter().for_each(super::proxy::Proxy::reset);
    for sidecar in stage.sidecars() {
        let cause = stage.denies_all(sidecar).await;
        assert!(cause.contains("WRONGPASS") || cause.contains("credentials"), "{cause}");
    }
    std::fs::write(&file, "new\n").unwrap();
    stage.live_again().await;
    for sidecar in stage.sidecars() {
        let said = sidecar.said();
        assert!(!said.contains("old\n") && !said.contains("\"new\""), "{said}");
    }
    stage.end().await;
}

fn at_sentinels(sentinels: &Sentinels) -> String {
    format!("redis+sentinel://{}/{MASTER}", sentinels.addresses())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfenced_primary_behind_sentinels_is_refused_at_start() {
    let redis = Redis::start(&[]);
    let _replica = Redis::start_replica_of(&redis, &[]);
    init(&ledger_at(&redis.address()), &["--buckets", "32"]);
    let sentinels = Sentinels::watch(&redis, 1);
    let ledger = at_sentinels(&sentinels);
    let started = Sidecar::try_start_by(Command::new(BINARY), &ledger, &[], &[]);
    let said = started.err().expect("it is refused");
    assert!(said.contains("--accept-unfenced") && said.contains("min-replicas-to-write"), "{said}");
    let accepted = serve(&ledger, &["--accept-unfenced"], &[]);
    live_within(&accepted, PATIENCE).await;
    let warned = status(&accepted).await.warnings.join("\n");
    assert!(warned.contains("min-replicas-to-write"), "{warned}");
    // At one address nobody fails over by itself: a warning is enough.
    let plain = serve(&ledger_at(&redis.address()), &[], &[]);
    live_within(&plain, PATIENCE).await;
    let warned = status(&plain).await.warnings.join("\n");
    assert!(warned.contains("min-replicas-to-write"), "{warned}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_fail_over_and_a_minority_of_them_proves_nothing() {
    let redis = Redis::start(&FENCED);
    let replicas = [(); 2].map(|()| Redis::start_replica_of(&redis, &FENCED));
    redis.wait_for_info("min_slaves_good_slaves", |count| count == "2");
    init(&ledger_at(&redis.address()), &["--buckets", "32"]);
    let mut sentinels = Sentinels::watch(&redis, replicas.len());
    let mut stage =
        Stage::set_on(redis, Setup { flags: &["--durability", "replicas:1"], ..Setup::default() })
            .await;
    let ledger = at_sentinels(&sentinels);
    let flags = ["--max-staleness", "900ms", "--durability", "replicas:1"];
    stage.reader = serve(&ledger, &flags, &[]);
    stage.recorder = serve(&ledger, &[&flags[..], &["--record", "127.0.0.1:0"]].concat(), &[]);
    for sidecar in stage.sidecars() {
        live_within(sidecar, PATIENCE).await;
    }
    stage.hammer().await;
    stage.redis.kill();
    for sidecar in stage.sidecars() {
        stage.denies_all(sidecar).await;
    }
    let first = stage.redis.port();
    eventually("there is another primary", || async { sentinels.have_left(first) }).await;
    assert!(sentinels.primary().is_some_and(|port| port != first));
    for sidecar in stage.sidecars() {
        live_within(sidecar, PATIENCE).await;
    }
    stage.goes_on().await;
    // One Sentinel alone may be on the wrong side of a partition.
    sentinels.servers[0].kill();
    sentinels.servers[1].kill();
    for sidecar in stage.sidecars() {
        stage.denies_all(sidecar).await;
    }
    sentinels.servers[0].start_again();
    let verdict = stage.end().await;
    assert!(verdict.denied_for(Reason::Stale as i32) > 0, "{verdict:#?}");
}
