//! Partitions of a ledger that move between the nodes of a Cluster, or go back to what they once were.

use std::time::Duration;

use super::cluster::{Cluster, id, wait_until};
use super::history::{Did, History};
use super::load::BUSINESS;
use super::partition_stage::{
    KEEPING, PARTITIONS, Scene, business_partitions, is_denied_as_out, is_in, is_out, reason,
    users_in,
};
use super::resp::{Client, Value};
use super::servers::ServerKind;
use super::stage::{live_within, metric, serve, wait_for_metric};
use crate::sidecar::{PATIENCE, run};

/// What `ledger status` exits with, and whether it warns that partitions are uneven over the shards.
fn is_uneven(scene: &Scene) -> (i32, bool) {
    let (code, printed, _) = run(&["ledger", "status", "--ledger", &scene.cluster.url(3)]);
    (code, printed.contains("the partitions are uneven over the shards"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_is_added_the_slots_are_rebalanced_and_it_leaves_again() {
    let mut scene = Scene::set_of(Cluster::start(&[]), 64, 8, &[]).await;
    let partitions = business_partitions(scene.layout, BUSINESS);
    let crowd = scene.crowd(&partitions).await;
    assert_eq!(is_uneven(&scene), (0, false));
    scene.cluster.add(&[]);
    let added = scene.cluster.nodes.len() - 1;
    let asked: Vec<_> = (0..=added).collect();
    let has = |scene: &Scene, place: usize| {
        let slots = scene.slots.values();
        slots.filter(|slot| scene.cluster.owner_of_by(**slot, &asked) == Some(place)).count()
    };
    // A part of the slots is enough: redis-cli takes some milliseconds for each.
    let [from, to] = [added, 0].map(|place| id(&scene.cluster.nodes[place]));
    let weight = format!("{from}=0.05");
    let words = ["--cluster-use-empty-masters", "--cluster-weight", &weight];
    scene.cluster.manage("rebalance", &words);
    wait_until("the new node has its part", || has(&scene, added) > 0);
    scene.live().await;
    crowd.goes_on().await;
    // All of them to one of the others, so that the new node can leave.
    let slots = scene.cluster.slots_of(added).to_string();
    let words = ["--cluster-from", &from, "--cluster-to", &to, "--cluster-slots", &slots];
    scene.cluster.manage("reshard", &[&words[..], &["--cluster-yes"]].concat());
    wait_until("the new node has nothing", || has(&scene, added) == 0);
    scene.cluster.manage("del-node", &[&from]);
    drop(scene.cluster.nodes.pop());
    scene.cluster.wait_until_ok();
    scene.live().await;
    crowd.goes_on().await;
    // Partitions at one node are moved to another one, key by key, and back.
    let is_there = |one: &u32| scene.owner(*one) == 1;
    let moved: Vec<u32> = scene.layout.all().filter(is_there).take(10).collect();
    for (from, to) in [(1, 2), (2, 1)] {
        for partition in &moved {
            let slot = scene.slots[partition];
            scene.cluster.begin_move(slot, from, to);
            while scene.cluster.move_keys(slot, from, to) {}
            scene.cluster.end_move(slot, to);
        }
        wait_until("all name the owner", || moved.iter().all(|one| scene.owner(*one) == to));
        scene.live().await;
        crowd.goes_on().await;
        assert_eq!(is_uneven(&scene), (0, to == 2));
    }
    for sidecar in scene.sidecars() {
        assert!(metric(sidecar, "consent_forks_total").await < 1.0);
    }
    scene.end([crowd]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_that_is_restored_from_an_old_backup_denies_what_was_denied_and_gets_it_back() {
    let mut scene = Scene::set(Cluster::start(&KEEPING), &[]).await;
    let history = History::default();
    let partitions: Vec<u32> = scene.layout.all().collect();
    let user = |scene: &Scene, partition| users_in(scene.layout, partition, "old-", 1).remove(0);
    let users: Vec<String> = partitions.iter().map(|one| user(&scene, *one)).collect();
    for user in &users {
        scene.say(&history, user, Did::OptIn, "marketing").await;
        is_in(&scene.reader, user).await;
    }
    // Of some partitions the backup lacks nothing: they do not fork.
    for node in &scene.cluster.nodes {
        node.back_up();
    }
    let (stopped, unchanged) = users.split_at(users.len() - 2);
    for user in stopped {
        scene.say(&history, user, Did::OptOut, "*").await;
        is_out(&scene.reader, user).await;
    }
    let nodes = &mut scene.cluster.nodes;
    for node in &mut *nodes {
        node.kill();
    }
    for node in &*nodes {
        node.restore();
    }
    let all = 0..nodes.len();
    scene.start_again(all);
    // Until all was given back, these are asked about all the while.
    let forks = f64::from(PARTITIONS) - 2.0;
    let watched = async {
        loop {
            for sidecar in scene.sidecars() {
                for user in stopped {
                    let reason = reason(sidecar, user).await;
                    assert_ne!(reason, consentd::grpc::pb::Reason::OptedIn, "{}", sidecar.said());
                }
            }
        }
    };
    let restored = async {
        scene.live().await;
        for sidecar in scene.sidecars() {
            wait_for_metric(sidecar, "consent_forks_total", forks).await;
        }
        let given_back = "consent_denials_given_back_total";
        wait_for_metric(&scene.recorder, given_back, forks).await;
        scene.live().await;
    };
    tokio::select! { () = watched => {}, () = restored => {} }
    let newcomer = serve(&scene.cluster.url(3), &["--max-staleness", "5s"], &[]);
    live_within(&newcomer, PATIENCE).await;
    for sidecar in [&scene.recorder, &scene.reader, &newcomer] {
        assert!(metric(sidecar, "consent_forks_total").await < forks + 1.0);
        for user in stopped {
            is_out(sidecar, user).await;
        }
        for user in unchanged {
            is_in(sidecar, user).await;
        }
    }
    let crowd = scene.crowd(&partitions).await;
    scene.end([crowd]).await;
}

/// How often it is tried to stop the target of a migration at the hand-over, which takes a millisecond.
const MAX_TRIES: usize = 10;

/// The state of the latest atomic migration, as a node has it.
fn migration(connection: &mut Client) -> String {
    let said = connection.command(&["CLUSTER", "GETSLOTMIGRATIONS"]).unwrap().parts();
    let last = said.into_iter().next().map(Value::parts).unwrap_or_default();
    let at = last.iter().position(|part| part.text() == "state");
    at.and_then(|at| last.get(at + 1)).map(Value::text).unwrap_or_default()
}

fn has_ended(state: &str) -> bool {
    ["success", "failed", "canceled"].contains(&state)
}

/// Begins to move the slots of these partitions at once, by Valkey's atomic migration.
fn migrate(scene: &Scene, partitions: &[u32], from: usize, to: usize) -> Client {
    let target = id(&scene.cluster.nodes[to]);
    let mut words = vec!["CLUSTER".to_owned(), "MIGRATESLOTS".to_owned(), "SLOTSRANGE".to_owned()];
    for partition in partitions {
        let slot = scene.slots[partition].to_string();
        words.extend([slot.clone(), slot]);
    }
    words.extend(["NODE".to_owned(), target]);
    scene.cluster.nodes[from].command(&words);
    Client::connect(scene.cluster.nodes[from].port(), Duration::from_secs(5)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_partitions_move_atomically_at_once_and_back() {
    // Others have no such command.
    let cluster = Cluster::start_kind(ServerKind::Valkey91, &[]);
    let mut scene = Scene::set(cluster, &["--durability", "replicas:1"]).await;
    let (from, to) = (scene.cluster.owner(), scene.cluster.other_primary());
    let (moved, others) = scene.split(from);
    assert!(moved.len() > 1, "{moved:?}");
    let crowds = [scene.crowd(&moved).await, scene.crowd(&others).await];
    for (from, to) in [(from, to), (to, from)] {
        let mut connection = migrate(&scene, &moved, from, to);
        let mut state = String::new();
        wait_until("the migration ends", || {
            state = migration(&mut connection);
            has_ended(&state)
        });
        assert_eq!(state, "success");
        for partition in &moved {
            assert_eq!(scene.owner(*partition), to);
        }
        scene.live().await;
        for crowd in &crowds {
            crowd.goes_on().await;
        }
    }
    for sidecar in scene.sidecars() {
        assert!(metric(sidecar, "consent_forks_total").await < 1.0);
    }
    scene.end(crowds).await;
}

/// Moves slots, and stops the target once the source has granted them to it; whether that was in time, so that the
/// target does not know of it yet.
fn stop_at_the_hand_over(scene: &Scene, partitions: &[u32], from: usize, to: usize) -> bool {
    let mut connection = migrate(scene, partitions, from, to);
    loop {
        let state = migration(&mut connection);
        if state == "failover-granted" {
            scene.cluster.nodes[to].stop();
            break;
        }
        if has_ended(&state) {
            return false;
        }
    }
    let mut state = String::new();
    wait_until("the source goes on", || {
        state = migration(&mut connection);
        has_ended(&state)
    });
    state == "failed"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn target_that_is_stopped_at_the_hand_over_takes_no_acknowledged_denial_along() {
    // The target is not taken for lost meanwhile, and the source does not wait for long.
    let options = ["--cluster-node-timeout", "30000", "--cluster-manual-failover-timeout", "300"];
    let cluster = Cluster::start_kind(ServerKind::Valkey91, &options);
    let mut scene = Scene::set(cluster, &["--durability", "replicas:1"]).await;
    let (mut from, mut to) = (scene.cluster.owner(), scene.cluster.other_primary());
    let moved = scene.split(from).0;
    let at_target = scene.split(to).0;
    let is_elsewhere = |one: &u32| !moved.contains(one) && !at_target.contains(one);
    let others: Vec<u32> = scene.layout.all().filter(is_elsewhere).collect();
    let history = History::default();
    let users: Vec<String> =
        moved.iter().flat_map(|one| users_in(scene.layout, *one, "lost-", 2)).collect();
    for user in &users {
        scene.say(&history, user, Did::OptIn, "marketing").await;
        is_in(&scene.reader, user).await;
    }
    let others = scene.crowd(&others).await;
    let (mut tries, mut lost) = (0, at_target);
    while !stop_at_the_hand_over(&scene, &moved, from, to) {
        scene.cluster.nodes[to].go_on();
        for partition in &moved {
            assert_eq!(scene.owner(*partition), to);
        }
        (from, to) = (to, from);
        lost = scene.layout.all().filter(|one| scene.owner(*one) == to).collect();
        tries += 1;
        assert!(tries < MAX_TRIES, "the hand-over was over each time");
    }
    // The source goes on, and its replica confirms what is lost.
    for sidecar in scene.sidecars() {
        scene.denies_only(sidecar, &lost).await;
    }
    for user in &users {
        scene.say(&history, user, Did::OptOut, "*").await;
        is_out(&scene.reader, user).await;
    }
    scene.cluster.nodes[to].go_on();
    wait_until("the target takes the slots", || moved.iter().all(|one| scene.owner(*one) == to));
    scene.live().await;
    let count = |count: usize| f64::from(u32::try_from(count).unwrap());
    let forks = count(moved.len());
    for sidecar in scene.sidecars() {
        wait_for_metric(sidecar, "consent_forks_total", forks).await;
    }
    let given_back = "consent_denials_given_back_total";
    wait_for_metric(&scene.recorder, given_back, count(users.len())).await;
    let newcomer = serve(&scene.cluster.url(3), &["--max-staleness", "5s"], &[]);
    live_within(&newcomer, PATIENCE).await;
    for sidecar in [&scene.recorder, &scene.reader, &newcomer] {
        for user in &users {
            assert!(is_denied_as_out(reason(sidecar, user).await), "{}", sidecar.said());
        }
    }
    let crowd = scene.crowd(&moved).await;
    scene.end([crowd, others]).await;
}
