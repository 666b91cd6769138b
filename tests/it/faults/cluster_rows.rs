//! What befalls a Cluster: failovers, isolated and suspended primaries, slots that move, and a shard that
//! is lost. Nothing that an acknowledged opt-out forbids is allowed, and all recovers without a restart.

use std::process::Command;
use std::time::Duration;

use consentd::grpc::pb::record_service_client::RecordServiceClient;
use tonic::Code;

use super::cluster::{Cluster, SLOT, id, wait_until};
use super::history::Did;
use super::load::{BUSINESS, channel};
use super::redis::Redis;
use super::resp::Value;
use super::servers::ServerKind;
use super::stage::{Setup, Stage, init, ledger_at, live_within, metric, serve, wait_for_metric};
use crate::sidecar::{BINARY, PATIENCE, Sidecar, event, eventually, opt_out, run};

/// The bound of the sidecars here: a failover takes longer, and so do elections on a busy machine.
const BOUND: &str = "2s";

/// A Cluster with a ledger, and a stage whose two sidecars find it by one node.
async fn set(options: &[&str], flags: &[&str]) -> (Cluster, Stage) {
    set_on(Cluster::start(options), flags, "8").await
}

async fn set_on(cluster: Cluster, flags: &[&str], partitions: &str) -> (Cluster, Stage) {
    // The business's pairs are in all of the partitions, and the first is in the slot that the faults are about.
    init(&cluster.url(2), &["--buckets", "32", "--partitions", partitions, "--spread", partitions]);
    // The stage's own server is not used.
    let redis = Redis::start(&[]);
    init(&ledger_at(&redis.address()), &["--buckets", "1"]);
    let mut stage = Stage::set_on(redis, Setup::default()).await;
    let user = |name| ["--ledger-user", name];
    let flags = [&["--max-staleness", BOUND][..], flags].concat();
    let password = [("CONSENTD_LEDGER_PASSWORD", super::redis::PASSWORD)];
    stage.bound = humantime::parse_duration(BOUND).unwrap();
    let reading = [&flags[..], &user("sidecar")].concat();
    let recording = [&flags[..], &user("recorder"), &["--record", "127.0.0.1:0"]].concat();
    stage.reader = serve(&cluster.url(1), &reading, &password);
    stage.recorder = serve(&cluster.url(1), &recording, &password);
    for sidecar in stage.sidecars() {
        live_within(sidecar, PATIENCE).await;
    }
    (cluster, stage)
}

/// Waits until both sidecars are live, after a change of the Cluster that may take a while.
async fn live(stage: &Stage) {
    for sidecar in stage.sidecars() {
        live_within(sidecar, Duration::from_secs(30)).await;
    }
}

/// All places but one.
fn all_but(cluster: &Cluster, place: usize) -> Vec<usize> {
    (0..cluster.nodes.len()).filter(|other| *other != place).collect()
}

/// Ends the connections of a node's replicas, and accepts no new ones.
fn cut_replicas_off(node: &Redis) {
    node.command(&["ACL", "SETUSER", "default", "-psync", "-sync"]);
    node.command(&["CLIENT", "KILL", "TYPE", "replica"]);
}

/// Ends the stage on a Cluster that has lost nothing.
async fn end(stage: Stage) {
    live(&stage).await;
    let verdict = stage.end().await;
    assert!(verdict.opt_outs > 0 && verdict.allowed > 0, "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_given_as_a_single_redis_or_the_reverse_is_told_the_right_address() {
    let cluster = Cluster::start(&[]);
    let single = cluster.nodes[0].address();
    let (code, _, error) = run(&["init", "--ledger", &ledger_at(&single)]);
    assert!(code != 0 && error.contains("give redis+cluster://HOST:PORT,HOST:PORT"), "{error}");
    let alone = Redis::start(&[]);
    let url = format!("redis+cluster://{}", alone.address());
    let (code, _, error) = run(&["init", "--ledger", &url]);
    assert!(code != 0 && error.contains("no node of a Cluster"), "{error}");
    assert!(error.contains("give redis://HOST:PORT"), "{error}");
    // A sidecar does not wait for what only an operator can mend.
    for (ledger, right) in
        [(ledger_at(&single), "give redis+cluster://"), (url, "give redis://HOST:PORT")]
    {
        let started = Sidecar::try_start_by(Command::new(BINARY), &ledger, &[], &[]);
        let error = started.err().expect("it ends");
        assert!(error.contains(right), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_primary_of_a_cluster_is_succeeded_by_its_replica() {
    let (mut cluster, mut stage) = set(&[], &["--durability", "replicas:1"]).await;
    stage.hammer().await;
    let owner = cluster.owner();
    cluster.nodes[owner].kill();
    let rest = all_but(&cluster, owner);
    cluster.wait_for_successor(owner, &rest);
    cluster.nodes[owner].start_again();
    cluster.wait_until_ok();
    end(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspended_primary_of_a_cluster_acknowledges_nothing_after_its_failover() {
    let (cluster, mut stage) = set(&[], &[]).await;
    stage.say("US.x", Did::OptIn, "marketing").await;
    stage.is_in(&stage.reader, "US.x", "marketing").await;
    stage.hammer().await;
    let owner = cluster.owner();
    cluster.nodes[owner].stop();
    let rest = all_but(&cluster, owner);
    cluster.wait_for_successor(owner, &rest);
    live(&stage).await;
    stage.say("US.x", Did::OptOut, "*").await;
    cluster.nodes[owner].go_on();
    for sidecar in stage.sidecars() {
        stage.is_out(sidecar, "US.x", "marketing").await;
    }
    cluster.wait_until_ok();
    end(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn isolated_primary_of_a_cluster_proves_nothing() {
    let (cluster, mut stage) = set(&[], &[]).await;
    stage.hammer().await;
    let owner = cluster.owner();
    // It alone still answers: no majority of the primaries does.
    for place in all_but(&cluster, owner) {
        cluster.nodes[place].stop();
    }
    for sidecar in stage.sidecars() {
        stage.denies_all(sidecar).await;
    }
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    let refused = records.record_event(event("US.x", BUSINESS, opt_out("*"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    for place in all_but(&cluster, owner) {
        cluster.nodes[place].go_on();
    }
    cluster.wait_until_ok();
    end(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_primaries_before_and_after_a_failover_are_no_majority_each() {
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let (mut cluster, mut stage) = set(&options, &[]).await;
    stage.say("US.x", Did::OptIn, "marketing").await;
    stage.is_in(&stage.reader, "US.x", "marketing").await;
    let shards = cluster.nodes.len() / 2;
    let former = cluster.owner();
    let present = shards + former;
    let [near, far] = [1, 2].map(|step| (former + step) % shards);
    // One side of a partition: the replica that has taken over, and a primary that knows it.
    for place in [shards + near, shards + far] {
        cluster.nodes[place].stop();
    }
    // Killed, because what is sent to a stopped node waits for it.
    cluster.nodes[far].kill();
    cluster.nodes[former].kill();
    cluster.nodes[present].command(&["CLUSTER", "FAILOVER", "TAKEOVER"]);
    wait_until("they name the present owner", || {
        cluster.owner_by(&[present, near]) == Some(present)
    });
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    let refused = records.record_event(event("US.x", BUSINESS, opt_out("*"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    // The other side: the former owner, and a primary that has heard nothing of it.
    for place in [present, near] {
        cluster.nodes[place].stop();
    }
    cluster.nodes[far].start_again();
    cluster.nodes[former].start_again();
    wait_until("they name the former owner", || cluster.owner_by(&[former, far]) == Some(former));
    for sidecar in stage.sidecars() {
        stage.denies_all(sidecar).await;
    }
    for place in [present, near, shards + near, shards + far] {
        cluster.nodes[place].go_on();
    }
    cluster.wait_until_ok();
    live(&stage).await;
    stage.say("US.x", Did::OptOut, "*").await;
    stage.is_out(&stage.reader, "US.x", "marketing").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_takes_itself_for_the_whole_cluster_proves_nothing() {
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let (mut cluster, mut stage) = set(&options, &[]).await;
    stage.say("US.x", Did::OptIn, "marketing").await;
    stage.is_in(&stage.reader, "US.x", "marketing").await;
    let owner = cluster.owner();
    assert_eq!(owner, 0, "it is the one node whose address the sidecars were given");
    cluster.nodes[owner].kill();
    let rest = all_but(&cluster, owner);
    cluster.wait_for_successor(owner, &rest);
    live(&stage).await;
    stage.say("US.x", Did::OptOut, "*").await;
    for place in rest.clone() {
        cluster.nodes[place].stop();
    }
    // Without its configuration it claims the slots of the keys that it has.
    cluster.nodes[owner].remove_file("nodes.conf");
    cluster.nodes[owner].start_again();
    wait_until("it claims the slot", || cluster.owner_by(&[owner]) == Some(owner));
    for sidecar in stage.sidecars() {
        stage.denies_all(sidecar).await;
    }
    let mut records = RecordServiceClient::new(channel(&stage.recorder.record));
    let refused = records.record_event(event("US.x", BUSINESS, opt_out("*"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    for place in rest {
        cluster.nodes[place].go_on();
    }
    live(&stage).await;
    for sidecar in stage.sidecars() {
        stage.is_out(sidecar, "US.x", "marketing").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_of_a_cluster_moves_key_by_key_and_back() {
    let (cluster, mut stage) = set(&[], &[]).await;
    stage.hammer().await;
    let (from, to) = (cluster.owner(), cluster.other_primary());
    for (from, to) in [(from, to), (to, from)] {
        cluster.begin_move(SLOT, from, to);
        while cluster.move_keys(SLOT, from, to) {
            stage.answers(20).await;
        }
        cluster.end_move(SLOT, to);
        wait_until("all name the new owner", || {
            cluster.owner_by(&(0..cluster.nodes.len()).collect::<Vec<_>>()) == Some(to)
        });
        live(&stage).await;
        stage.goes_on().await;
    }
    for sidecar in stage.sidecars() {
        assert!(metric(sidecar, "consent_forks_total").await < 1.0);
        assert!(!sidecar.said().contains("deleted or evicted"), "{}", sidecar.said());
    }
    end(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn address_of_another_node_of_a_cluster_is_not_taken_for_the_owners() {
    let cluster = Cluster::start(&[]);
    let (owner, other) = (cluster.owner(), cluster.other_primary());
    // As where addresses are assigned anew, and a node has one that was another's.
    let port = cluster.nodes[other].port().to_string();
    cluster.nodes[owner].command(&["CONFIG", "SET", "cluster-announce-port", &port]);
    let ledger = cluster.url(cluster.nodes.len());
    eventually("the address is seen to be another node's", || async {
        let (_, _, error) = run(&["ledger", "status", "--ledger", &ledger]);
        error.contains("another node answers at")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_of_a_cluster_moves_to_a_new_node_and_its_former_one_leaves() {
    let (mut cluster, mut stage) = set(&[], &[]).await;
    stage.hammer().await;
    let from = cluster.owner();
    cluster.add(&[]);
    let to = cluster.nodes.len() - 1;
    cluster.begin_move(SLOT, from, to);
    while cluster.move_keys(SLOT, from, to) {}
    cluster.end_move(SLOT, to);
    assert_eq!(cluster.owner(), to);
    live(&stage).await;
    stage.goes_on().await;
    end(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_shard_of_a_cluster_stops_the_others_only_where_full_coverage_is_asked_for() {
    for coverage in ["no", "yes"] {
        let options = ["--cluster-require-full-coverage", coverage];
        let (mut cluster, mut stage) = set_on(Cluster::start(&options), &[], "1").await;
        stage.hammer().await;
        let lost = cluster.other_primary();
        let replica = cluster.nodes.len() / 2 + lost;
        for place in [replica, lost] {
            cluster.nodes[place].kill();
        }
        let owner =
            cluster.owner_by(&[0, 1, 2].map(|p| if p == lost { (lost + 1) % 3 } else { p }));
        let owner = owner.unwrap();
        let fails = || {
            let nodes = cluster.nodes[owner].command(&["CLUSTER", "INFO"]).text();
            !nodes.contains("cluster_slots_fail:0")
        };
        wait_until("the shard is taken for lost", fails);
        if coverage == "no" {
            stage.goes_on().await;
        } else {
            for sidecar in stage.sidecars() {
                stage.denies_all(sidecar).await;
            }
        }
        for place in [lost, replica] {
            cluster.nodes[place].start_again();
        }
        cluster.wait_until_ok();
        end(stage).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_a_cluster_are_restarted_one_by_one() {
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let (mut cluster, mut stage) = set(&options, &["--durability", "replicas:1"]).await;
    stage.hammer().await;
    for place in 0..cluster.nodes.len() {
        cluster.nodes[place].kill();
        cluster.nodes[place].start_again();
        cluster.wait_until_ok();
        live(&stage).await;
        stage.goes_on().await;
    }
    end(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shard_of_a_cluster_that_comes_back_empty_denies_and_is_never_made_anew() {
    let (mut cluster, mut stage) = set_on(Cluster::start(&[]), &[], "1").await;
    stage.say("US.x", Did::OptOut, "*").await;
    let owner = cluster.owner();
    let replica = cluster.nodes.len() / 2 + owner;
    // Neither saves anything: the slot is served again, without its keys.
    for place in [replica, owner] {
        cluster.nodes[place].kill();
    }
    for place in [owner, replica] {
        cluster.nodes[place].start_again();
    }
    for sidecar in stage.sidecars() {
        let cause = stage.denies_all(sidecar).await;
        assert!(!cause.is_empty());
    }
    cluster.wait_until_ok();
    eventually("the loss is seen as one", || async {
        stage.denies_all(&stage.reader).await.contains("there is no ledger in this Redis")
    })
    .await;
    let nodes = (0..cluster.nodes.len()).collect::<Vec<_>>();
    let owner = cluster.owner_by(&nodes).unwrap();
    assert_eq!(cluster.nodes[owner].command(&["DBSIZE"]).text(), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_of_a_cluster_that_lagged_is_promoted_and_what_it_lacks_is_given_back() {
    let (cluster, mut stage) = set_on(Cluster::start(&[]), &[], "1").await;
    for user in ["US.x", "US.y"] {
        stage.say(user, Did::OptIn, "marketing").await;
        stage.is_in(&stage.reader, user, "marketing").await;
    }
    let owner = cluster.owner();
    let replica = cluster.nodes.len() / 2 + owner;
    // From here on the replica gets nothing; stopped, it does not know for how long.
    cluster.nodes[replica].stop();
    cut_replicas_off(&cluster.nodes[owner]);
    stage.say("US.x", Did::OptOut, "*").await;
    stage.is_out(&stage.reader, "US.x", "marketing").await;
    cluster.nodes[replica].go_on();
    // Nobody is asked, so that a replica which has no link to its primary may take over.
    cluster.nodes[replica].command(&["CLUSTER", "FAILOVER", "TAKEOVER"]);
    cluster.wait_for_successor(owner, &all_but(&cluster, owner));
    stage.hammer().await;
    live(&stage).await;
    for sidecar in stage.sidecars() {
        wait_for_metric(sidecar, "consent_forks_total", 1.0).await;
        stage.is_out(sidecar, "US.x", "marketing").await;
        stage.is_in(sidecar, "US.y", "marketing").await;
    }
    wait_for_metric(&stage.recorder, "consent_denials_given_back_total", 1.0).await;
    let newcomer = serve(&cluster.url(2), &["--max-staleness", "5s"], &[]);
    live_within(&newcomer, PATIENCE).await;
    stage.is_out(&newcomer, "US.x", "marketing").await;
    live(&stage).await;
    stage.end_with_losses().await;
}

/// Moves the slot by Valkey's atomic migration, and returns how it ended.
fn migrate_atomically(cluster: &Cluster, from: usize, to: usize) -> String {
    let slot = SLOT.to_string();
    let target = id(&cluster.nodes[to]);
    let words = ["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &slot, &slot, "NODE", &target];
    cluster.nodes[from].command(&words);
    let mut state = String::new();
    wait_until("the migration ends", || {
        let said = cluster.nodes[from].command(&["CLUSTER", "GETSLOTMIGRATIONS"]).parts();
        let last = said.into_iter().next().map(Value::parts).unwrap_or_default();
        let at = last.iter().position(|part| part.text() == "state");
        state = at.and_then(|at| last.get(at + 1)).map(Value::text).unwrap_or_default();
        ["success", "failed", "canceled"].contains(&state.as_str())
    });
    state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_of_a_cluster_moves_atomically() {
    // Others have no such command.
    let cluster = Cluster::start_kind(ServerKind::Valkey91, &[]);
    let (cluster, mut stage) = set_on(cluster, &[], "8").await;
    stage.hammer().await;
    let (from, to) = (cluster.owner(), cluster.other_primary());
    for (from, to) in [(from, to), (to, from)] {
        assert_eq!(migrate_atomically(&cluster, from, to), "success");
        wait_until("all name the new owner", || {
            cluster.owner_by(&(0..cluster.nodes.len()).collect::<Vec<_>>()) == Some(to)
        });
        live(&stage).await;
        stage.goes_on().await;
    }
    assert!(metric(&stage.reader, "consent_forks_total").await < 1.0);
    end(stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn target_of_an_atomic_migration_that_is_lost_takes_the_ledger_along_and_all_is_denied() {
    let cluster = Cluster::start_kind(ServerKind::Valkey91, &[]);
    let (mut cluster, mut stage) = set_on(cluster, &[], "1").await;
    stage.say("US.x", Did::OptOut, "*").await;
    let (from, to) = (cluster.owner(), cluster.other_primary());
    let replica = cluster.nodes.len() / 2 + to;
    // The hand-over does not wait for the target's replica, which here gets nothing of the slot.
    cluster.nodes[replica].stop();
    cut_replicas_off(&cluster.nodes[to]);
    assert_eq!(migrate_atomically(&cluster, from, to), "success");
    cluster.nodes[to].kill();
    cluster.nodes[replica].go_on();
    let rest = all_but(&cluster, to);
    cluster.wait_for_successor(to, &rest);
    for sidecar in stage.sidecars() {
        stage.denies_all(sidecar).await;
    }
    assert_eq!(cluster.nodes[replica].command(&["DBSIZE"]).text(), "0", "nothing made it anew");
    // The former owner is among the living, and has given the keys away.
    eventually("the loss is seen as one", || async {
        stage.denies_all(&stage.reader).await.contains("there is no ledger in this Redis")
    })
    .await;
}
