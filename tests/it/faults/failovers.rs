//! Failovers by Sentinels in which the old primary goes on answering: nothing is acknowledged there,
//! and what it alone has is given back.

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use tonic::Code;

use super::history::Did;
use super::load::{BUSINESS, channel};
use super::redis::{MASTER, Redis, Sentinels};
use super::stage::{
    Setup, Stage, ask, init, ledger_at, live_within, metric, serve, wait_for_metric,
};
use crate::sidecar::{PATIENCE, Sidecar, event, eventually, opt_out};

/// A bound whose polls, a third of it apart, leave time to record something between two of them.
const BOUND: &str = "6s";

/// What only one replica of the old primary has: it may become the primary.
const NEVER_PROMOTED: [&str; 2] = ["--replica-priority", "0"];

/// An old primary that no Sentinel can demote, and what takes its place.
struct Fleet {
    sentinels: Sentinels,
    /// Becomes the primary.
    next: Redis,
    /// Stays with the old primary, and follows the next one.
    others: [Redis; 2],
}

/// Refuses to follow anybody from now on: what Sentinels tell it is in vain, as behind a partition
/// that leaves its clients with it.
fn never_follow(redis: &Redis) {
    redis.command(&["ACL", "SETUSER", "default", "-replicaof", "-slaveof"]);
}

impl Fleet {
    /// A stage whose two sidecars find their primary by Sentinels.
    async fn set(flags: &[&str]) -> (Self, Stage) {
        let redis = Redis::start(&[]);
        init(&ledger_at(&redis.address()), &["--buckets", "32"]);
        let next = Redis::start_replica_of(&redis, &[]);
        let others = [(); 2].map(|()| Redis::start_replica_of(&redis, &NEVER_PROMOTED));
        let sentinels = Sentinels::watch(&redis, 3);
        let mut stage = Stage::set_on(redis, Setup::default()).await;
        let ledger = format!("redis+sentinel://{}/{MASTER}", sentinels.addresses());
        let flags = [&["--max-staleness", BOUND, "--accept-unfenced"][..], flags].concat();
        stage.bound = humantime::parse_duration(BOUND).unwrap();
        stage.reader = serve(&ledger, &flags, &[]);
        stage.recorder = serve(&ledger, &[&flags[..], &["--record", "127.0.0.1:0"]].concat(), &[]);
        for sidecar in stage.sidecars() {
            live_within(sidecar, PATIENCE).await;
        }
        never_follow(&stage.redis);
        never_follow(&others[0]);
        (Self { sentinels, next, others }, stage)
    }

    /// Has a Sentinel fail over, and waits until all of them name the next primary.
    async fn fail_over(&self, stage: &Stage) {
        let old = stage.redis.port();
        // A Sentinel that has not heard lately how the replica is refuses: NOGOODSLAVE.
        eventually("a Sentinel begins the failover", || async {
            let answer = self.sentinels.servers[0].try_command(&["SENTINEL", "FAILOVER", MASTER]);
            answer.is_ok_and(|answer| answer.text() == "OK")
        })
        .await;
        eventually("another primary is named", || async { self.sentinels.have_left(old) }).await;
        assert_eq!(self.sentinels.primary(), Some(self.next.port()));
        assert_eq!(stage.redis.info("role"), "master", "the old one knows nothing of it");
    }
}

fn revision(redis: &Redis) -> u64 {
    redis.command(&["HGET", "{consent:0}:meta", "rev"]).text().parse().unwrap()
}

/// Whether what is recorded, and denied, is so everywhere, though the old primary still answers.
async fn the_next_primary_alone_acknowledges(flags: &[&str]) {
    let (fleet, mut stage) = Fleet::set(flags).await;
    let users: Vec<String> = (0..8).map(|user| format!("US.{user}")).collect();
    for user in &users {
        stage.say(user, Did::OptIn, "marketing").await;
        stage.is_in(&stage.reader, user, "marketing").await;
    }
    stage.hammer().await;
    fleet.fail_over(&stage).await;
    let promoted = revision(&fleet.next);
    // The sidecars have not asked since, and their connections are as good as before.
    for user in &users {
        stage.say(user, Did::OptOut, "*").await;
        for sidecar in stage.sidecars() {
            stage.is_out(sidecar, user, "marketing").await;
        }
    }
    stage.goes_on().await;
    stage.rest().await;
    let next = revision(&fleet.next);
    assert!(next > promoted, "{promoted} when it was promoted, {next} now");
    // Nobody is left who listens to the old one, or writes to it.
    let subscribers = || async {
        let answer = stage.redis.command(&["PUBSUB", "NUMSUB", "{consent:0}:ch"]);
        answer.parts().get(1).is_some_and(|count| count.text() == "0")
    };
    eventually("nobody listens to the old primary", subscribers).await;
    let old = revision(&stage.redis);
    for user in &users {
        stage.say(user, Did::OptOut, "utility").await;
    }
    assert_eq!(revision(&stage.redis), old, "what is acknowledged is on the next primary alone");
    assert!(revision(&fleet.next) > next);
    let verdict = stage.end_with_losses().await;
    assert!(verdict.opt_outs > 0 && verdict.allowed > 0, "{verdict:#?}");
    drop(fleet.others);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_primary_that_answers_unfenced_acknowledges_nothing() {
    the_next_primary_alone_acknowledges(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_primary_that_keeps_a_replica_acknowledges_nothing() {
    the_next_primary_alone_acknowledges(&["--durability", "replicas:1"]).await;
}

async fn record_once(sidecar: &Sidecar, user: &str) -> Result<(), tonic::Status> {
    let mut records = RecordServiceClient::new(channel(&sidecar.record));
    records.record_event(event(user, BUSINESS, opt_out("*"))).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_branch_gives_back_what_was_acknowledged_unknown_or_erased() {
    let (mut fleet, mut stage) = Fleet::set(&[]).await;
    for user in ["US.acknowledged", "US.unknown", "US.erased"] {
        stage.say(user, Did::OptIn, "marketing").await;
        stage.is_in(&stage.reader, user, "marketing").await;
    }
    fleet.next.catch_up_with(&stage.redis);
    // From here on the next primary gets nothing; stopped, it does not know for how long.
    fleet.next.stop();
    stage.redis.command(&["ACL", "SETUSER", "default", "-psync", "-sync"]);
    stage.redis.command(&["CLIENT", "KILL", "TYPE", "replica"]);
    record_once(&stage.recorder, "US.acknowledged").await.expect("it is the primary still");
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    let erase = pb::EraseUserRequest { user_id: "US.erased".into(), business_id: BUSINESS.into() };
    records.erase_user(erase).await.expect("it is the primary still");
    // Without a majority of the Sentinels nobody knows which branch an append is on.
    for sentinel in &mut fleet.sentinels.servers[1..] {
        sentinel.kill();
    }
    let before = revision(&stage.redis);
    let status_of = record_once(&stage.recorder, "US.unknown").await.expect_err("not proven");
    assert_eq!(status_of.code(), Code::Unavailable, "{status_of}");
    assert!(status_of.message().contains("no majority of the 3 Sentinels"), "{status_of}");
    assert!(revision(&stage.redis) > before, "it was written all the same");

    fleet.next.go_on();
    for sentinel in &mut fleet.sentinels.servers[1..] {
        sentinel.start_again();
    }
    let knows = |port: u16| fleet.sentinels.primary() == Some(port);
    eventually("a majority answers", || async { knows(stage.redis.port()) }).await;
    fleet.fail_over(&stage).await;
    stage.live_again().await;
    wait_for_metric(&stage.recorder, "consent_denials_given_back_total", 2.0).await;
    wait_for_metric(&stage.recorder, "consent_erases_given_back_total", 1.0).await;
    // Nobody repeated anything. One who never saw the old branch knows it all by the ledger alone.
    let newcomer = serve(&ledger_at(&fleet.next.address()), &["--max-staleness", "5s"], &[]);
    live_within(&newcomer, PATIENCE).await;
    for sidecar in [&stage.recorder, &stage.reader, &newcomer] {
        for user in ["US.acknowledged", "US.unknown"] {
            stage.is_out(sidecar, user, "marketing").await;
        }
        eventually("it is erased", || async {
            ask(sidecar, "US.erased", "marketing").await.reason() == Reason::Suppressed
        })
        .await;
    }
    assert!(metric(&stage.recorder, "consent_forks_total").await >= 1.0);
    // What is not lost is not given back again, however often the ledger is asked since.
    let (last, asked) = (revision(&fleet.next), scripts_run(&fleet.next));
    eventually("each sidecar has polled more than once", || async {
        scripts_run(&fleet.next) >= asked + 12
    })
    .await;
    assert_eq!(revision(&fleet.next), last, "nothing more is recorded");
}

/// How many scripts a server has run: every poll is one.
fn scripts_run(redis: &Redis) -> u64 {
    let told = redis.info("cmdstat_evalsha");
    let calls = told.strip_prefix("calls=").and_then(|rest| rest.split(',').next());
    calls.and_then(|calls| calls.parse().ok()).unwrap_or(0)
}
