//! A Redis, a network or a sidecar that stands still, dies, or is not there yet.

use std::time::{Duration, Instant};

use consentd::grpc::pb::batch_can_send_result::Result as Answered;
use consentd::grpc::pb::get_status_response::Phase;
use consentd::grpc::pb::{self, Reason, consent_service_client::ConsentServiceClient};

use super::history::Did;
use super::load::{BUSINESS, channel};
use super::proxy::{Faults, Flow, Proxy};
use super::redis::Redis;
use super::stage::{
    BOUND, LIVE_AGAIN, Setup, Stage, ask, init, ledger_at, live_within, serve, status,
};
use crate::sidecar::{PATIENCE, eventually, question};

/// A server that keeps what it acknowledged when it is killed.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_socket_denies_after_the_bound_and_recovers_by_itself() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.hammer().await;
    // The server is gone without a word, and so is whoever else is asked.
    stage.reader_net.all(Faults::both(Flow::Swallow));
    stage.denies_all(&stage.reader).await;
    // New connections get through again; those that were swallowed never will.
    stage.reader_net.heal();
    live_within(&stage.reader, LIVE_AGAIN).await;
    // One direction alone is as bad.
    stage.reader_net.all(Faults { down: Flow::Swallow, ..Faults::default() });
    stage.denies_all(&stage.reader).await;
    stage.reader_net.heal();
    stage.end().await;
}

/// Whoever knows of an opt-out, and asks a sidecar that does not, must not be told that it allows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_that_needs_a_later_revision_is_denied_whatever_stale_allow_says() {
    let flags = ["--stale-allow", "utility"];
    let mut stage = Stage::set(Setup { flags: &flags, ..Setup::default() }).await;
    stage.say("US.knows", Did::OptIn, "utility").await;
    stage.is_in(&stage.reader, "US.knows", "utility").await;
    stage.reader_net.refuse(true);
    stage.reader_net.reset();
    stage.say("US.knows", Did::OptOut, "*").await;
    let min_revision = status(&stage.recorder).await.revision;
    eventually("it allows while it is stale", || async {
        ask(&stage.reader, "US.knows", "utility").await.reason() == Reason::AllowedWhileStale
    })
    .await;
    let mut checks = ConsentServiceClient::new(channel(&stage.reader.grpc));
    let asked = pb::CanSendRequest { min_revision, ..question("US.knows", BUSINESS, "utility") };
    let alone = checks.can_send(asked.clone()).await.unwrap().into_inner();
    let requests = vec![asked.clone(), question("US.knows", BUSINESS, "utility")];
    let batch = pb::BatchCanSendRequest { requests };
    let batch = checks.batch_can_send(batch).await.unwrap().into_inner().results;
    let streamed = pb::StreamCanSendRequest { sequence: 1, request: Some(asked) };
    let streamed = checks.stream_can_send(tokio_stream::iter([streamed])).await.unwrap();
    let streamed = streamed.into_inner().message().await.unwrap().unwrap().result.unwrap();
    let reason = |result: pb::BatchCanSendResult| match result.result {
        Some(Answered::Response(answer)) => Some(answer.reason()),
        _ => None,
    };
    let reasons: Vec<_> = batch.into_iter().chain([streamed]).map(reason).collect();
    assert_eq!(alone.reason(), Reason::Stale);
    assert_eq!(reasons, [Reason::Stale, Reason::AllowedWhileStale, Reason::Stale].map(Some));
    stage.reader_net.heal();
    stage.is_out(&stage.reader, "US.knows", "utility").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_cut_and_refuses_denies_after_the_bound_and_recovers() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.hammer().await;
    stage.nets().into_iter().for_each(|net| net.all(Faults::both(Flow::Hold)));
    for sidecar in stage.sidecars() {
        stage.denies_all(sidecar).await;
    }
    stage.nets().into_iter().for_each(Proxy::heal);
    stage.live_again().await;
    stage.goes_on().await;
    stage.nets().into_iter().for_each(|net| net.refuse(true));
    stage.nets().into_iter().for_each(Proxy::reset);
    for sidecar in stage.sidecars() {
        stage.denies_all(sidecar).await;
    }
    stage.nets().into_iter().for_each(Proxy::heal);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_redis_denies_after_the_bound_and_recovers() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.hammer().await;
    stage.redis.stop();
    for sidecar in stage.sidecars() {
        stage.denies_all(sidecar).await;
    }
    stage.redis.go_on();
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_denies_after_the_bound_and_recovers() {
    let mut stage = Stage::set(Setup { redis: &DURABLE, ..Setup::default() }).await;
    stage.hammer().await;
    for _ in 0..2 {
        stage.redis.kill();
        for sidecar in stage.sidecars() {
            stage.denies_all(sidecar).await;
        }
        stage.redis.start_again();
        stage.live_again().await;
        stage.goes_on().await;
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_was_a_replica_for_a_while_is_believed_again_at_once() {
    let stage = Stage::set(Setup::default()).await;
    for _ in 0..2 {
        stage.redis.lag();
        // Its sidecars have seen that it is a replica, on connections that it keeps.
        for sidecar in stage.sidecars() {
            stage.denies_all(sidecar).await;
            eventually("it says why", || async {
                status(sidecar).await.cause.contains("is a replica")
            })
            .await;
        }
        stage.redis.promote();
        let promoted = Instant::now();
        stage.live_again().await;
        assert!(promoted.elapsed() < LIVE_AGAIN, "{:?}", promoted.elapsed());
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_down_at_start_is_waited_for() {
    let mut redis = Redis::start(&DURABLE);
    let ledger = ledger_at(&redis.address());
    redis.kill();
    let reader = serve(&ledger, &["--max-staleness", "900ms"], &[]);
    eventually("it says what it waits for", || async {
        let status = status(&reader).await;
        status.phase() == Phase::Loading && !status.cause.is_empty()
    })
    .await;
    let mut checks = ConsentServiceClient::new(channel(&reader.grpc));
    let refused = checks.can_send(question("US.1", BUSINESS, "utility")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    redis.start_again();
    // A Redis without a ledger is no ledger.
    eventually("it says how to make one", || async {
        status(&reader).await.cause.contains("consentd init")
    })
    .await;
    assert_eq!(status(&reader).await.phase(), Phase::Loading);
    assert_eq!(redis.command(&["DBSIZE"]).text(), "0", "nobody but init makes one");
    init(&ledger, &[]);
    live_within(&reader, PATIENCE).await;
    assert_eq!(ask(&reader, "US.1", "utility").await.reason(), Reason::NoConsent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_was_stopped_for_longer_than_the_bound_denies_at_first() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.hammer().await;
    stage.say("US.asleep", Did::OptIn, "utility").await;
    stage.is_in(&stage.reader, "US.asleep", "utility").await;
    for _ in 0..3 {
        stage.reader.signal("STOP");
        let stopped = Instant::now();
        stage.say("US.asleep", Did::OptOut, "*").await;
        // The question is there before the sidecar is: nothing can be polled in between.
        let mut checks = ConsentServiceClient::new(channel(&stage.reader.grpc));
        let request = question("US.asleep", BUSINESS, "utility");
        let asked = tokio::spawn(async move { checks.can_send(request).await });
        eventually("the bound is past", || async { stopped.elapsed() > BOUND * 3 / 2 }).await;
        stage.reader.signal("CONT");
        let answer = asked.await.unwrap().expect("an answer").into_inner();
        assert!(!answer.allowed, "{answer:?}");
        stage.say("US.asleep", Did::OptIn, "utility").await;
        stage.is_in(&stage.reader, "US.asleep", "utility").await;
    }
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_wait_costs_no_cpu() {
    let mut stage = Stage::set(Setup { redis: &DURABLE, ..Setup::default() }).await;
    // While it follows a ledger in which nothing happens, and while there is no Redis.
    let idle = cpu_share(stage.reader.pid()).await;
    stage.redis.kill();
    stage.denies_all(&stage.reader).await;
    let waiting = cpu_share(stage.reader.pid()).await;
    println!("CPU: idle {:.1} %, waiting {:.1} %", idle * 100.0, waiting * 100.0);
    assert!(idle < 0.10 && waiting < 0.10, "idle {idle}, waiting {waiting}");
    stage.redis.start_again();
    stage.live_again().await;
}

/// How much of one CPU a process uses, over a while.
async fn cpu_share(process: u32) -> f64 {
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        // The name, which may hold anything, ends at the last bracket.
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap()
    };
    let (before, started) = (ticks(), Instant::now());
    eventually("a while has passed", || async { started.elapsed() > Duration::from_secs(2) }).await;
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap();
    f64::from(ticks() - before) / f64::from(per_second) / started.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_costs_redis_a_few_commands_a_second() {
    let bound = Duration::from_secs(3);
    let stage = Stage::set(Setup { bound, ..Setup::default() }).await;
    let (before, started) = (stage.reader_net.counted(), Instant::now());
    eventually("some polls are past", || async { started.elapsed() > bound }).await;
    let (after, took) = (stage.reader_net.counted(), started.elapsed().as_secs_f64());
    let a_second = |count: u64| f64::from(u32::try_from(count).unwrap()) / took;
    let commands = a_second(after.commands - before.commands);
    let up = a_second(after.bytes_up - before.bytes_up);
    let down = a_second(after.bytes_down - before.bytes_down);
    println!(
        "idle: {commands:.2} commands/s, {up:.0} bytes/s up, {down:.0} bytes/s down, a sidecar"
    );
    // A poll each third of the bound, the scrub, and what keeps connections alive.
    assert!((0.6..6.0).contains(&commands), "{commands}");
    assert!(up + down < 20_000.0, "{up} up, {down} down");
    assert_eq!(after.connections, before.connections, "connections are kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_behind_a_unix_socket_is_as_good() {
    let redis = Redis::start(&DURABLE);
    let ledger = format!("redis+unix://{}", redis.socket());
    init(&ledger, &["--buckets", "32"]);
    let mut stage = Stage::set_on(redis, Setup::default()).await;
    stage.reader = serve(&ledger, &["--max-staleness", "900ms"], &[]);
    live_within(&stage.reader, PATIENCE).await;
    stage.hammer().await;
    stage.redis.kill();
    stage.denies_all(&stage.reader).await;
    stage.redis.start_again();
    stage.end().await;
}
