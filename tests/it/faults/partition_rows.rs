//! What befalls the shards of a Cluster whose ledger has several partitions: it concerns the pairs of those
//! shards' partitions, and no others.

use std::time::Duration;

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;
use consentd::grpc::pb::get_status_response::Phase;
use consentd::grpc::pb::record_events_response::Result as RecordedAs;
use tonic::Code;

use super::cluster::{Cluster, wait_until};
use super::history::now;
use super::load::BUSINESS;
use super::partition_stage::{Crowd, KEEPING, PARTITIONS, Scene, is_in, is_out, reason, users_in};
use super::stage::{live_within, metric, status};
use crate::sidecar::{PATIENCE, event, eventually, opt_out, question, run};

/// How long nine of ten acknowledgements may take at shards that nothing befalls: much less than a question to a
/// node that is lost, and than a period.
const QUICK: Duration = Duration::from_millis(500);

/// What was sent between two moments was acknowledged at once, and no answer was a denial for want of a proof.
fn was_undisturbed(crowd: &Crowd, from: u64, until: u64) {
    let took = crowd.acknowledged_within(from, until);
    assert!(took.len() >= 30, "{} were acknowledged", took.len());
    let most = took[took.len() * 9 / 10];
    assert!(most < QUICK, "the slowest tenth took {most:?} and more, up to {:?}", took.last());
    assert_eq!(crowd.denied_as_stale(from, until), 0);
}

/// Waits until the nodes that are left take a shard for lost.
fn wait_until_lost(cluster: &Cluster, asked: usize) {
    wait_until("the shard is taken for lost", || {
        let info = cluster.nodes[asked].command(&["CLUSTER", "INFO"]).text();
        !info.contains("cluster_slots_fail:0")
    });
}

/// How a shard is lost.
#[derive(Clone, Copy, PartialEq)]
enum Lost {
    /// Its nodes are killed.
    Killed,
    /// They are stopped: connections stay, and nobody answers.
    Stopped,
}

async fn shard_is_lost_for_a_while(how: Lost) {
    let mut scene = Scene::set(Cluster::start(&KEEPING), &[]).await;
    let primary = scene.cluster.other_primary();
    let (lost, kept) = scene.split(primary);
    let (theirs, others) = (scene.crowd(&lost).await, scene.crowd(&kept).await);
    let replica = scene.cluster.replica_of(primary).expect("it has a replica");
    let from = now();
    for place in [replica, primary] {
        match how {
            Lost::Killed => scene.cluster.nodes[place].kill(),
            Lost::Stopped => scene.cluster.nodes[place].stop(),
        }
    }
    for sidecar in scene.sidecars() {
        let status = scene.denies_only(sidecar, &lost).await;
        assert_eq!(status.phase(), Phase::Stale, "{status:?}");
        assert!(status.cause.starts_with(&format!("partition {}: ", lost[0])), "{}", status.cause);
        for one in &status.partitions {
            assert_eq!(one.cause.is_empty(), !lost.contains(&one.number), "{one:?}");
            let label = format!("consent_partition_live{{partition=\"{}\"}}", one.number);
            let live = metric(sidecar, &label).await;
            assert_eq!(live < 0.5, lost.contains(&one.number), "{label} is {live}");
        }
        let (_, page) = sidecar.get("/").await;
        let live = kept.len();
        assert!(
            page.contains(&format!("{PARTITIONS} partitions of the ledger, of which {live} are"))
        );
        assert!(page.contains(&format!("partition {}: ", lost[0])), "{page}");
        for user in &theirs.users {
            assert_eq!(reason(sidecar, user).await, Reason::Stale);
        }
    }
    wait_until_lost(&scene.cluster, (primary + 1) % 3);
    let acknowledged = theirs.history.counts().acknowledged;
    others.goes_on().await;
    others.goes_on().await;
    assert_eq!(theirs.history.counts().acknowledged, acknowledged, "nothing is recorded there");
    was_undisturbed(&others, from, now());
    match how {
        Lost::Killed => scene.start_again([primary, replica]),
        Lost::Stopped => [primary, replica].iter().for_each(|at| scene.cluster.nodes[*at].go_on()),
    }
    scene.cluster.wait_until_ok();
    scene.live().await;
    was_undisturbed(&others, from, now());
    scene.end([theirs, others]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shard_that_is_killed_denies_its_own_partitions_alone_until_it_is_back() {
    shard_is_lost_for_a_while(Lost::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shard_that_does_not_answer_denies_its_own_partitions_alone_until_it_goes_on() {
    shard_is_lost_for_a_while(Lost::Stopped).await;
}

/// The first partition says how the ledger is divided. So do the others while its shard cannot be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_that_start_without_the_first_partitions_shard_answer_and_record_in_the_others() {
    let mut scene = Scene::set(Cluster::start(&KEEPING), &[]).await;
    let primary = scene.owner(0);
    let (lost, kept) = scene.split(primary);
    let (theirs, others) = (scene.crowd(&lost).await, scene.crowd(&kept).await);
    let [replica, primary] = scene.kill_shard(primary);
    wait_until_lost(&scene.cluster, (primary + 1) % 3);
    let started = scene.start_recorder();
    eventually("the partitions of the other shards are loaded", || async {
        let partitions = status(&started).await.partitions;
        let live = partitions.iter().filter(|one| one.phase() == Phase::Live);
        live.map(|one| one.number).collect::<Vec<_>>() == kept
    })
    .await;
    for user in &others.users {
        is_in(&started, user).await;
    }
    let mut checks = started.checks().await;
    let of_lost = checks.can_send(question(&theirs.users[0], BUSINESS, "marketing")).await;
    assert_eq!(of_lost.unwrap_err().code(), Code::Unavailable);
    assert_eq!(started.get("/readyz").await.0, 503);
    // It records, too, one by one and in a stream: about users of whom nobody else writes.
    let stop = |user: &str| event(user, BUSINESS, opt_out("*"));
    let outsiders = [kept[0], kept[kept.len() - 1]]
        .map(|partition| users_in(scene.layout, partition, "outside", 1).remove(0));
    let [one, other] = [&outsiders[0], &outsiders[1]];
    started.records().await.record_event(stop(one)).await.unwrap();
    let in_stream = pb::RecordEventsRequest {
        event: stop(other).event,
        request_id: "in a stream".to_owned(),
        ..Default::default()
    };
    let mut records = started.records().await;
    let recorded = records.record_events(tokio_stream::iter([in_stream])).await;
    let answer = recorded.unwrap().into_inner().message().await.unwrap().unwrap();
    assert!(matches!(answer.result, Some(RecordedAs::Response(_))), "{answer:?}");
    for user in [one, other] {
        assert_eq!(reason(&started, user).await, Reason::OptedOutAll);
        is_out(&scene.reader, user).await;
    }
    let (code, printed, error) = run(&["ledger", "status", "--ledger", &scene.cluster.url(6)]);
    assert_eq!(code, 1, "{printed}{error}");
    assert!(printed.contains("its first partition cannot be read"), "{printed}");
    for partition in scene.layout.all() {
        let is_named = printed.contains(&format!("partition {partition}: "));
        assert_eq!(is_named, lost.contains(&partition), "partition {partition}: {printed}");
    }
    scene.start_again([primary, replica]);
    live_within(&started, PATIENCE).await;
    for mut crowd in [theirs, others] {
        crowd.rest().await;
        crowd.judge();
    }
}

/// Whether these words name a partition as missing, and advise against making a ledger there.
fn is_missing(partition: u32, said: &str) -> bool {
    said.contains(&format!("partition {partition} of the ledger is missing"))
        && !said.contains("init")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shard_that_comes_back_empty_denies_its_own_partitions_alone_and_is_named() {
    let cluster = Cluster::start(&["--cluster-require-full-coverage", "no"]);
    let primary = cluster.other_primary();
    shard_comes_back_empty(cluster, primary).await;
}

/// The first partition says what the others are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_the_shard_of_the_first_partition() {
    let cluster = Cluster::start(&["--cluster-require-full-coverage", "no"]);
    let primary = cluster.owner();
    shard_comes_back_empty(cluster, primary).await;
}

async fn shard_comes_back_empty(cluster: Cluster, primary: usize) {
    let mut scene = Scene::set(cluster, &[]).await;
    let (lost, kept) = scene.split(primary);
    let (mut theirs, mut others) = (scene.crowd(&lost).await, scene.crowd(&kept).await);
    let from = now();
    let [replica, primary] = scene.kill_shard(primary);
    scene.start_again([primary, replica]);
    for sidecar in scene.sidecars() {
        eventually("the loss is seen as one", || async {
            let status = scene.denies_only(sidecar, &lost).await;
            let of_lost = status.partitions.iter().filter(|one| lost.contains(&one.number));
            let mut of_lost = of_lost.map(|one| (one.phase(), is_missing(one.number, &one.cause)));
            of_lost.all(|what| what == (Phase::Invalid, true))
        })
        .await;
        for user in &theirs.users {
            assert_eq!(reason(sidecar, user).await, Reason::Stale);
        }
    }
    others.goes_on().await;
    was_undisturbed(&others, from, now());
    for command in ["status", "verify", "repair"] {
        let (code, printed, error) = run(&["ledger", command, "--ledger", &scene.cluster.url(6)]);
        assert_eq!(code, 1, "{command}: {printed}{error}");
        for partition in scene.layout.all() {
            let is_named = printed.lines().any(|line| is_missing(partition, line));
            assert_eq!(is_named, lost.contains(&partition), "{command} of {partition}: {printed}");
        }
    }
    // Writers retry all the while, and make nothing.
    for place in [primary, replica] {
        assert_eq!(scene.cluster.nodes[place].command(&["DBSIZE"]).text(), "0");
    }
    for crowd in [&mut theirs, &mut others] {
        crowd.rest().await;
        crowd.judge();
    }
}
