//! Ledgers that lose what they had: flushed, restarted, forked, trimmed, failed over.

use std::time::Duration;

use consentd::grpc::pb::Reason;
use consentd::grpc::pb::get_status_response::Phase;

use super::history::{Did, wall};
use super::proxy::{Faults, Flow, Pushes};
use super::redis::Redis;
use super::stage::{
    Setup, Stage, ask, init, ledger_at, live_within, metric, serve, status, wait_for_metric,
};
use crate::sidecar::{PATIENCE, Sidecar, ago, event, eventually, opt_in, opt_out, question, run};

const FORKS: &str = "consent_resyncs_total{cause=\"fork\"}";

/// Whatever empties a Redis: nothing is allowed, nothing is made anew, and once an operator makes
/// a ledger the denials of the old one stand in it until the users say something newer.
async fn loses_everything(mut stage: Stage, lose: impl FnOnce(&mut Redis)) {
    stage.hammer().await;
    stage.say("US.gone", Did::OptIn, "marketing").await;
    stage.say("US.gone", Did::OptOut, "*").await;
    stage.say("US.stays", Did::OptIn, "utility").await;
    stage.is_out(&stage.reader, "US.gone", "marketing").await;
    stage.rest().await;
    lose(&mut stage.redis);
    for sidecar in stage.sidecars() {
        let cause = stage.denies_all(sidecar).await;
        assert!(cause.contains("init") || cause.contains("no ledger"), "{cause}");
        assert_eq!(status(sidecar).await.phase(), Phase::Invalid, "known to be wrong");
    }
    assert_eq!(stage.redis.command(&["DBSIZE"]).text(), "0", "nobody but init makes one");

    init(&ledger_at(&stage.redis.address()), &["--buckets", "32"]);
    stage.live_again().await;
    for sidecar in stage.sidecars() {
        // Remembered here, or already given back by the one that recorded it.
        assert!(!ask(sidecar, "US.gone", "marketing").await.allowed);
        assert_eq!(ask(sidecar, "US.stays", "utility").await.reason(), Reason::NoConsent);
    }
    // An opt-in of before the loss is no news, however late it comes.
    let early = wall() - 60_000;
    stage.say_at("US.gone", Did::OptIn, "marketing", Some(early)).await;
    let late = status(&stage.recorder).await.revision;
    for sidecar in stage.sidecars() {
        eventually("it is applied", || async { status(sidecar).await.revision >= late }).await;
        assert!(!ask(sidecar, "US.gone", "marketing").await.allowed, "what was denied stays so");
    }
    stage.say("US.gone", Did::OptIn, "marketing").await;
    for sidecar in stage.sidecars() {
        stage.is_in(sidecar, "US.gone", "marketing").await;
    }
    stage.hammer().await;
    stage.end_with_losses().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flushed_redis_denies_and_nobody_makes_a_ledger() {
    let stage = Stage::set(Setup::default()).await;
    loses_everything(stage, |redis| drop(redis.command(&["FLUSHALL"]))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_restarts_empty_denies_and_nobody_makes_a_ledger() {
    let stage = Stage::set(Setup::default()).await;
    loses_everything(stage, Redis::restart_empty).await;
}

/// The ledger is older than before: a fork, whose lost denials stand and are given back.
async fn is_taken_back(stage: &mut Stage, forks: &[f64]) {
    for (sidecar, before) in stage.sidecars().into_iter().zip(forks) {
        wait_for_metric(sidecar, FORKS, before + 1.0).await;
    }
    stage.live_again().await;
    for sidecar in stage.sidecars() {
        let answer = ask(sidecar, "US.lost", "marketing").await;
        assert!(!answer.allowed, "{answer:?}");
    }
    wait_for_metric(&stage.recorder, "consent_denials_given_back_total", 1.0).await;
    // Given back, it is in the ledger for those who never saw it.
    let newcomer =
        serve(&ledger_at(&stage.recorder_net.address()), &["--max-staleness", "5s"], &[]);
    live_within(&newcomer, PATIENCE).await;
    eventually("the ledger has it again", || async {
        let answer = ask(&newcomer, "US.lost", "marketing").await;
        matches!(answer.reason(), Reason::OptedOut | Reason::OptedOutAll)
    })
    .await;
}

async fn forks(stage: &Stage) -> Vec<f64> {
    let mut forks = Vec::new();
    for sidecar in stage.sidecars() {
        forks.push(metric(sidecar, FORKS).await);
    }
    forks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_from_an_old_rdb_is_a_fork_and_denials_stay() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.hammer().await;
    stage.say("US.lost", Did::OptIn, "marketing").await;
    let old = stage.redis.dump();
    stage.goes_on().await;
    stage.say("US.lost", Did::OptOut, "*").await;
    for sidecar in stage.sidecars() {
        stage.is_out(sidecar, "US.lost", "marketing").await;
    }
    let before = forks(&stage).await;
    stage.redis.restart_from(Some(&old));
    is_taken_back(&mut stage, &before).await;
    stage.end_with_losses().await;
}

/// A replica that has what a user opted in to, and not the opt-out that both sidecars enforce.
async fn a_replica_without_the_stop(stage: &mut Stage) -> Redis {
    let replica = Redis::start_replica_of(&stage.redis, &[]);
    stage.say("US.lost", Did::OptIn, "marketing").await;
    replica.catch_up_with(&stage.redis);
    replica.lag();
    stage.say("US.lost", Did::OptOut, "*").await;
    for sidecar in stage.sidecars() {
        stage.is_out(sidecar, "US.lost", "marketing").await;
    }
    replica
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_replica_that_is_promoted_is_found_by_head() {
    let mut stage = Stage::set(Setup::default()).await;
    let replica = a_replica_without_the_stop(&mut stage).await;
    let before = forks(&stage).await;
    // The reader is cut off while the new branch gets as long as the old one and longer: what it
    // sees then are revisions that it knows, and others behind them.
    stage.reader_net.refuse(true);
    stage.reader_net.reset();
    replica.promote();
    stage.recorder_net.lead_to(&replica.address());
    stage.reader_net.lead_to(&replica.address());
    live_within(&stage.recorder, PATIENCE).await;
    for user in 0..5 {
        stage.say(&format!("US.branch-{user}"), Did::OptIn, "utility").await;
    }
    stage.reader_net.heal();
    is_taken_back(&mut stage, &before).await;
    stage.hammer().await;
    stage.end_with_losses().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_behind_us_is_a_fork_though_nothing_was_written_since() {
    let mut stage = Stage::set(Setup::default()).await;
    let replica = a_replica_without_the_stop(&mut stage).await;
    let before = forks(&stage).await;
    replica.promote();
    stage.nets().into_iter().for_each(|net| net.lead_to(&replica.address()));
    is_taken_back(&mut stage, &before).await;
    let trimmed = "consent_resyncs_total{cause=\"trimmed\"}";
    for sidecar in stage.sidecars() {
        assert!(metric(sidecar, trimmed).await < 1.0, "it lacks nothing of the log");
    }
    stage.hammer().await;
    stage.end_with_losses().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_trimmed_past_us_is_read_whole_and_denies_meanwhile() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.hammer().await;
    stage.say("US.trimmed", Did::OptIn, "marketing").await;
    stage.is_in(&stage.reader, "US.trimmed", "marketing").await;
    stage.reader_net.all(Faults::both(Flow::Swallow));
    stage.say("US.trimmed", Did::OptOut, "*").await;
    stage.goes_on().await;
    stage.redis.command(&["XTRIM", "{consent:0}:log", "MAXLEN", "0"]);
    stage.denies_all(&stage.reader).await;
    stage.reader_net.heal();
    wait_for_metric(&stage.reader, "consent_resyncs_total{cause=\"trimmed\"}", 1.0).await;
    stage.live_again().await;
    stage.is_out(&stage.reader, "US.trimmed", "marketing").await;
    // Trimmed when it has all, nothing is lacking.
    stage.rest().await;
    stage.redis.command(&["XTRIM", "{consent:0}:log", "MAXLEN", "0"]);
    stage.hammer().await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missed_announcement_of_an_emptied_log_is_read_from_the_log() {
    let mut stage = Stage::set(Setup::default()).await;
    stage.say("US.quiet", Did::OptIn, "marketing").await;
    stage.is_in(&stage.reader, "US.quiet", "marketing").await;
    let trimmed = "consent_resyncs_total{cause=\"trimmed\"}";
    for user in ["US.quiet", "US.next"] {
        stage.redis.command(&["XTRIM", "{consent:0}:log", "MAXLEN", "0"]);
        stage.reader_net.pushes(Pushes::DropNext(1));
        stage.say(user, Did::OptOut, "*").await;
        stage.is_out(&stage.reader, user, "marketing").await;
    }
    assert_eq!(stage.reader_net.counted().dropped, 2, "it was told of neither");
    assert_eq!(metric(&stage.reader, trimmed).await.to_bits(), 0.0_f64.to_bits());
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_in_the_middle_of_a_snapshot_mixes_no_branches() {
    let mut stage = Stage::set(Setup::default()).await;
    let replica = Redis::start_replica_of(&stage.redis, &[]);
    for user in 0..40 {
        stage.say(&format!("US.{user}"), Did::OptIn, "utility").await;
    }
    replica.catch_up_with(&stage.redis);
    replica.lag();
    // The old branch goes on a while: some buckets are read with what the new one lacks.
    for user in 0..40 {
        stage.say(&format!("US.{user}"), Did::OptIn, "marketing").await;
    }
    let slow = Flow::Delay(std::time::Duration::from_millis(15));
    let net = super::proxy::Proxy::before(&stage.redis.address()).await;
    net.commands(Faults { down: slow, ..Faults::default() });
    let newcomer = serve(&ledger_at(&net.address()), &["--max-staleness", "900ms"], &[]);
    // Some of the 32 buckets, not all of them.
    eventually("it has begun to read", || async { net.counted().commands >= 14 }).await;
    assert_eq!(status(&newcomer).await.phase(), Phase::Loading, "it is not in the middle");
    replica.promote();
    net.lead_to(&replica.address());
    stage.nets().into_iter().for_each(|net| net.lead_to(&replica.address()));
    stage.live_again().await;
    for user in 0..5 {
        stage.say(&format!("US.{user}"), Did::OptOut, "*").await;
    }
    net.heal();
    live_within(&newcomer, PATIENCE).await;
    let last = status(&stage.recorder).await.revision;
    eventually("it is as far", || async { status(&newcomer).await.revision >= last }).await;
    for user in 0..40 {
        let user = format!("US.{user}");
        for category in ["utility", "marketing"] {
            let (here, there) = (
                ask(&newcomer, &user, category).await,
                ask(&stage.recorder, &user, category).await,
            );
            // The recorder may remember denials of the old branch; the newcomer has seen none.
            assert!(here.allowed == there.allowed || !there.allowed, "{user}: {here:?} {there:?}");
            if category == "marketing" {
                assert!(!here.allowed, "{user} agreed to it on the other branch alone");
            }
        }
    }
    stage.end_with_losses().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_a_replica_that_was_waited_for_loses_nothing() {
    let redis = Redis::start(&[]);
    init(&ledger_at(&redis.address()), &["--buckets", "32"]);
    let replica = Redis::start_replica_of(&redis, &[]);
    let flags = ["--durability", "replicas:1"];
    let mut stage = Stage::set_on(redis, Setup { flags: &flags, ..Setup::default() }).await;
    stage.hammer().await;
    stage.redis.kill();
    replica.promote();
    // The new primary has a replica of its own, or nothing could be acknowledged.
    let next = Redis::start_replica_of(&replica, &[]);
    stage.nets().into_iter().for_each(|net| net.lead_to(&replica.address()));
    for sidecar in stage.sidecars() {
        live_within(sidecar, PATIENCE).await;
    }
    stage.goes_on().await;
    let verdict = stage.end().await;
    assert!(verdict.opt_outs > 0 && verdict.allowed > 0, "{verdict:#?}");
    drop(next);
}

/// Users enough that every bucket has some.
const USERS: usize = 12;

fn name(user: usize) -> String {
    format!("US.{user}")
}

/// Every third user opted out.
fn is_out(user: usize) -> bool {
    user.is_multiple_of(3)
}

async fn all_as_said(sidecar: &Sidecar) -> bool {
    for user in 0..USERS {
        if ask(sidecar, &name(user), "marketing").await.allowed == is_out(user) {
            return false;
        }
    }
    true
}

/// Keys that are deleted while all runs: nobody takes the ledger for one in which nothing was said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_that_are_deleted_are_denied_and_not_written_until_they_are_repaired() {
    let redis = Redis::start(&[]);
    let ledger = ledger_at(&redis.address());
    init(&ledger, &["--buckets", "4"]);
    let recorder = serve(&ledger, &["--record", "127.0.0.1:0", "--scrub-every", "never"], &[]);
    let reader = serve(&ledger, &["--scrub-every", "20ms"], &[]);
    live_within(&recorder, PATIENCE).await;
    live_within(&reader, PATIENCE).await;
    let mut records = recorder.records().await;
    for user in 0..USERS {
        let mut said = event(&name(user), "acme", opt_in("marketing"));
        said.event.as_mut().unwrap().event_time = Some(ago(Duration::from_hours(2)));
        records.record_event(said).await.unwrap();
        if is_out(user) {
            records.record_event(event(&name(user), "acme", opt_out("*"))).await.unwrap();
        }
    }
    eventually("it is applied", || all_as_said(&reader)).await;
    for number in 0..4 {
        redis.command(&["DEL", &format!("{{consent:0}}:b:{number}")]);
    }

    // What an opt-in of before the opt-out would find is an empty bucket.
    let older = |user: usize| {
        let mut said = event(&name(user), "acme", opt_in("marketing"));
        said.event.as_mut().unwrap().event_time = Some(ago(Duration::from_hours(1)));
        said
    };
    let refused = records.record_event(older(0)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    assert!(refused.message().contains("consentd ledger repair"), "{refused}");
    assert_eq!(redis.command(&["EXISTS", "{consent:0}:b:0", "{consent:0}:b:1"]).text(), "0");
    // One that starts denies; one that comes upon it denies those pairs.
    let newcomer = serve(&ledger, &[], &[]);
    eventually("it says why", || async {
        status(&newcomer).await.cause.contains("consentd ledger repair")
    })
    .await;
    // It has never held the ledger: it answers no check yet, which is no permission.
    assert_eq!(status(&newcomer).await.phase(), Phase::Loading);
    let asked = question(&name(0), "acme", "marketing");
    let refused = newcomer.checks().await.can_send(asked).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
    wait_for_metric(&reader, "consent_ledger_lost_keys", 4.0).await;
    for user in 0..USERS {
        assert!(!ask(&reader, &name(user), "marketing").await.allowed, "{user}");
    }
    assert_eq!(status(&reader).await.phase(), Phase::Live);

    let (code, printed, error) = run(&["ledger", "repair", "--ledger", &ledger]);
    assert_eq!(code, 0, "{printed}{error}");
    live_within(&newcomer, PATIENCE).await;
    for sidecar in [&newcomer, &reader, &recorder] {
        eventually("it is as before", || all_as_said(sidecar)).await;
    }
    eventually("nothing is missing", || async {
        metric(&reader, "consent_ledger_lost_keys").await == 0.0
    })
    .await;
    records.record_event(older(0)).await.unwrap();
    let revision = status(&recorder).await.revision;
    eventually("it is applied", || async { status(&newcomer).await.revision >= revision }).await;
    for sidecar in [&newcomer, &reader, &recorder] {
        assert!(!ask(sidecar, &name(0), "marketing").await.allowed, "the opt-out stands");
    }
}
