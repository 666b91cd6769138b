//! Whose pairs are in which partitions of a Cluster: sidecars for some businesses, and people whose linked ids are
//! on different shards.

use std::path::Path;

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;
use consentd::grpc::pb::consent_event::What;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::cluster::Cluster;
use super::history::{Did, History};
use super::load::BUSINESS;
use super::partition_stage::{
    KEEPING, PATIENT, Scene, business_partitions, is_denied_as_out, is_in, is_out, reason, users_in,
};
use super::redis::PASSWORD;
use super::stage::{live_within, serve, status};
use crate::sidecar::{PATIENCE, Sidecar, event, eventually, opt_in, opt_out, question};

/// The partitions that a sidecar follows, as it says.
async fn followed(sidecar: &Sidecar) -> Vec<u32> {
    status(sidecar).await.partitions.iter().map(|one| one.number).collect()
}

/// Names these businesses in a file, and tells the sidecar.
fn name(path: &Path, businesses: &[&str], sidecar: Option<&Sidecar>) {
    std::fs::write(path.with_extension("new"), businesses.join("\n")).unwrap();
    std::fs::rename(path.with_extension("new"), path).unwrap();
    if let Some(sidecar) = sidecar {
        sidecar.signal("HUP");
    }
}

async fn refuses(sidecar: &Sidecar, business: &str) -> bool {
    let asked = sidecar.checks().await.can_send(question("US.1", business, "marketing")).await;
    asked.is_err_and(|status| {
        let info = status.get_details_error_info();
        status.code() == Code::FailedPrecondition
            && info.is_some_and(|info| info.reason == "BUSINESS_NOT_HELD")
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_sidecar_answers_for_its_business_through_a_failover_beside_a_full_one() {
    let mut scene = Scene::set_of(Cluster::start(&KEEPING), 8, 4, &[]).await;
    let own = business_partitions(scene.layout, BUSINESS);
    let names = (0..).map(|number| format!("globex{number}"));
    let mut apart = names.filter(|name| business_partitions(scene.layout, name)[0] != own[0]);
    let other = apart.next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("businesses");
    name(&path, &[BUSINESS], None);
    let flags = ["--business-file", path.to_str().unwrap(), "--ledger-user", "sidecar"];
    let flags = [&flags[..], &PATIENT].concat();
    let password = [("CONSENTD_LEDGER_PASSWORD", PASSWORD)];
    let partial = serve(&scene.cluster.url(3), &flags, &password);
    live_within(&partial, PATIENCE).await;
    let sidecars = [(scene.recorder.grpc.clone(), "recorder"), (partial.grpc.clone(), "partial")];
    let crowd = scene.crowd_at(&own, &sidecars).await;
    assert_eq!(followed(&partial).await, own);
    assert_eq!(followed(&scene.reader).await, scene.layout.all().collect::<Vec<_>>());
    // A failover of one of its shards.
    let slot = scene.slots[&own[0]];
    let owner = scene.owner(own[0]);
    scene.cluster.nodes[owner].kill();
    assert!(refuses(&partial, &other).await);
    let rest: Vec<_> = (0..scene.cluster.nodes.len()).filter(|place| *place != owner).collect();
    scene.cluster.wait_for_successor_in(slot, owner, &rest);
    live_within(&partial, PATIENCE).await;
    scene.live().await;
    crowd.goes_on().await;
    assert!(refuses(&partial, &other).await && followed(&partial).await == own);
    // A business is added, whose partitions are loaded beside; and removed.
    let user = "US.of-another-business";
    let mut records = scene.recorder.records().await;
    let mut signup = event(user, &other, opt_in("marketing"));
    signup.request_id = "signup".into();
    records.record_event(signup).await.unwrap();
    name(&path, &[BUSINESS, &other], Some(&partial));
    let of_other = async |sidecar: &Sidecar| {
        let asked = sidecar.checks().await.can_send(question(user, &other, "marketing")).await;
        asked.ok().map(|answer| answer.get_ref().reason())
    };
    eventually("it is held", || async { of_other(&partial).await == Some(Reason::OptedIn) }).await;
    assert_eq!(followed(&partial).await.len(), 8);
    records.record_event(event(user, &other, opt_out("*"))).await.unwrap();
    eventually("its opt-out is enforced", || async {
        of_other(&partial).await == Some(Reason::OptedOutAll)
    })
    .await;
    crowd.goes_on().await;
    name(&path, &[BUSINESS], Some(&partial));
    eventually("it is refused", || async { refuses(&partial, &other).await }).await;
    eventually("its partitions are left", || async { followed(&partial).await == own }).await;
    scene.start_again([owner]);
    live_within(&partial, PATIENCE).await;
    scene.end([crowd]).await;
}

/// Two users in the partitions of different shards, who are one person, for each number.
async fn linked(scene: &mut Scene, partitions: [u32; 2], count: usize) -> Vec<[String; 2]> {
    let [near, far] = partitions.map(|one| users_in(scene.layout, one, "linked-", count));
    let people: Vec<[String; 2]> = near.into_iter().zip(far).map(Into::into).collect();
    let history = History::default();
    let mut records = scene.recorder.records().await;
    for [one, other] in &people {
        for user in [one, other] {
            scene.say(&history, user, Did::OptIn, "marketing").await;
        }
        let link = What::Link(pb::Link { other_user_id: other.clone(), moved: false });
        records.record_event(event(one, BUSINESS, link)).await.unwrap();
        for user in [one, other] {
            is_in(&scene.reader, user).await;
        }
    }
    people
}

/// Both ids of a person whose opt-out was acknowledged are denied: at once where it was recorded, and soon at the
/// other sidecar.
async fn both_are_out(scene: &Scene, person: &[String; 2]) {
    for user in person {
        let reason = reason(&scene.recorder, user).await;
        // A shard that is lost has its pairs denied for that.
        assert!(is_denied_as_out(reason) || reason == Reason::Stale, "{user}: {reason:?}");
    }
    for user in person {
        is_out(&scene.reader, user).await;
        is_out(&scene.recorder, user).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_under_one_id_is_enforced_under_the_linked_one_of_another_shard() {
    let mut scene = Scene::set(Cluster::start(&KEEPING), &[]).await;
    let (far_place, near_place) = (scene.cluster.other_primary(), scene.cluster.owner());
    let [near, far] = [near_place, far_place].map(|place| scene.split(place).0[0]);
    let people = linked(&mut scene, [near, far], 12).await;
    let mut people = people.iter().enumerate();
    // Nothing happens.
    for (number, person) in people.by_ref().take(4) {
        let stopped = &person[number % 2];
        scene.try_stop(stopped, &format!("calm-{number}")).await.unwrap();
        both_are_out(&scene, person).await;
    }
    // The shard of the second id fails over meanwhile.
    let slot = scene.slots[&far];
    scene.cluster.nodes[far_place].kill();
    for (number, person) in people.by_ref().take(6) {
        let name = format!("failover-{number}");
        while scene.try_stop(&person[number % 2], &name).await.is_err() {}
        both_are_out(&scene, person).await;
    }
    let rest: Vec<_> = (0..scene.cluster.nodes.len()).filter(|at| *at != far_place).collect();
    let successor = scene.cluster.wait_for_successor_in(slot, far_place, &rest);
    scene.start_again([far_place]);
    scene.live().await;
    // It is lost: under neither id is an opt-out acknowledged that the other one's shard does not have.
    let lost = scene.kill_shard(successor);
    let left: Vec<_> = people.collect();
    for (number, person) in &left {
        let said = scene.try_stop(&person[number % 2], &format!("lost-{number}")).await;
        assert_eq!(said.unwrap_err().code(), Code::Unavailable);
    }
    scene.start_again(lost.into_iter().rev());
    scene.live().await;
    for (number, person) in &left {
        scene.try_stop(&person[number % 2], &format!("lost-{number}")).await.unwrap();
        both_are_out(&scene, person).await;
    }
}

/// Erases a user, at every business if none is named; gives how many pairs were erased.
async fn erase(scene: &Scene, user: &str, business: &str) -> Result<u32, tonic::Status> {
    let (user_id, business_id) = (user.to_owned(), business.to_owned());
    let mut records = scene.recorder.records().await;
    let erased = records.erase_user(pb::EraseUserRequest { user_id, business_id }).await;
    erased.map(|erased| erased.into_inner().erased_count)
}

/// While a shard is lost, whoever has nothing there is erased all the same; of the others nothing is claimed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn erase_waits_for_no_shard_that_has_nothing_of_the_person() {
    let mut scene = Scene::set(Cluster::start(&KEEPING), &[]).await;
    let lost_place = scene.cluster.owner();
    let (lost, left) = scene.split(lost_place);
    let [there, here] =
        [lost[0], left[0]].map(|one| users_in(scene.layout, one, "erased-", 1).remove(0));
    let [near, far] =
        [left[1], lost[1]].map(|one| users_in(scene.layout, one, "both-", 1).remove(0));
    let (history, mut records) = (History::default(), scene.recorder.records().await);
    for user in [&there, &here, &near, &far] {
        scene.say(&history, user, Did::OptIn, "marketing").await;
    }
    let link = What::Link(pb::Link { other_user_id: far.clone(), moved: false });
    records.record_event(event(&near, BUSINESS, link)).await.unwrap();
    let places = scene.kill_shard(lost_place);
    scene.denies_only(&scene.recorder, &lost).await;
    assert_eq!(erase(&scene, &here, BUSINESS).await.unwrap(), 1);
    assert_eq!(reason(&scene.recorder, &here).await, Reason::Suppressed);
    // Her other pairs, or her linked ids, cannot be looked for, and it is said where.
    for (user, business) in [(&there, BUSINESS), (&near, BUSINESS), (&here, "")] {
        let refused = erase(&scene, user, business).await.unwrap_err();
        let said = refused.message();
        assert_eq!(refused.code(), Code::Unavailable, "{said}");
        let names_it = |one: &u32| said.contains(&format!("partition {one}"));
        assert!(lost.iter().any(names_it), "{said}, but {lost:?} are lost");
    }
    assert_eq!(reason(&scene.recorder, &near).await, Reason::OptedIn, "nothing of her is erased");
    scene.start_again(places.into_iter().rev());
    scene.live().await;
    assert_eq!(erase(&scene, &near, "").await.unwrap(), 2);
    assert_eq!(erase(&scene, &there, BUSINESS).await.unwrap(), 1);
    assert_eq!(erase(&scene, &here, "").await.unwrap(), 0);
}
