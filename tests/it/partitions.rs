//! Sidecars over a ledger of several partitions.

use std::time::Duration;

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;
use consentd::grpc::pb::batch_can_send_result::Result as Answered;
use consentd::grpc::pb::get_status_response::Phase;
use consentd::grpc::pb::record_events_response::Result as RecordedAs;
use consentd::grpc::pb::watch_consents_response::What;
use consentd_core::id::{BusinessId, KeySecret, UserId};
use consentd_core::partition::Layout;
use tokio::time::timeout;
use tonic::Code;

use crate::faults::redis::Redis;
use crate::faults::resp::Value;
use crate::faults::stage::{init, ledger_at, live_within, metric, serve, status};
use crate::import::{begin, end};
use crate::sidecar::{PATIENCE, Sidecar, event, eventually, opt_in, opt_out, question, run};
use crate::webhook::client::{answers, reason};
use crate::world::records;

const BUSINESS: &str = "acme";

fn layout() -> Layout {
    Layout::new(8, 4).unwrap()
}

/// A server with a ledger of eight partitions, each business in four of them.
fn ledger() -> (Redis, String) {
    let redis = Redis::start(&[]);
    let ledger = ledger_at(&redis.address());
    init(&ledger, &["--partitions", "8", "--spread", "4", "--buckets", "4"]);
    (redis, ledger)
}

async fn live(ledger: &str, flags: &[&str]) -> Sidecar {
    let flags = [&["--record", "127.0.0.1:0", "--max-staleness", "2s"], flags].concat();
    let sidecar = serve(ledger, &flags, &[]);
    live_within(&sidecar, PATIENCE).await;
    sidecar
}

fn user(number: u32) -> String {
    format!("155501{number:05}")
}

/// The partition of a user's pair.
fn partition(user: &str) -> u32 {
    let (user, business) = (UserId::parse(user).unwrap(), BusinessId::parse(BUSINESS).unwrap());
    layout().partition_of(KeySecret::new(&[0; 16]).key(&user, business))
}

/// The key of a partition with this ending.
fn key_of(redis: &Redis, partition: u32, ending: &str) -> String {
    match redis.command(&["KEYS", &format!("*consent:{partition}[.}}]*{ending}")]) {
        Value::Array(found) => match &found[..] {
            [Value::Bulk(name)] => String::from_utf8(name.clone()).unwrap(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Records an event; gives the revision that the answer names.
async fn record(sidecar: &Sidecar, user: &str, what: pb::consent_event::What, id: &str) -> u64 {
    let mut event = event(user, BUSINESS, what);
    event.request_id = format!("{user} {id}");
    sidecar.records().await.record_event(event).await.expect("recorded").into_inner().revision
}

#[tokio::test]
async fn what_is_recorded_in_any_partition_is_enforced_everywhere_and_told_to_watchers() {
    let (_redis, ledger) = ledger();
    let (recorder, reader) = (live(&ledger, &[]).await, live(&ledger, &[]).await);
    let mut client = reader.checks().await;
    let request = pb::WatchConsentsRequest { business_id: String::new() };
    let mut watch = client.watch_consents(request).await.unwrap().into_inner();
    let mut revisions = Vec::new();
    for number in 0..20 {
        revisions.push(record(&recorder, &user(number), opt_in("marketing"), "in").await);
        let own = reason(&recorder, &user(number), BUSINESS, "marketing").await;
        assert_eq!(own, Reason::OptedIn, "its own table has it before it is acknowledged");
    }
    // A check that names the revision waits for the pair's partition, one by one and in a batch.
    let asked = |number: u32| pb::CanSendRequest {
        min_revision: revisions[number as usize],
        ..question(&user(number), BUSINESS, "marketing")
    };
    for number in 0..20 {
        let answer = client.can_send(asked(number)).await.unwrap().into_inner();
        assert_eq!(answer.reason(), Reason::OptedIn);
    }
    let batch = pb::BatchCanSendRequest { requests: (0..20).map(asked).collect() };
    let results = client.batch_can_send(batch).await.unwrap().into_inner().results;
    for result in results {
        let Some(Answered::Response(answer)) = result.result else { panic!("{result:?}") };
        assert_eq!(answer.reason(), Reason::OptedIn);
    }
    let mut told = std::collections::BTreeSet::new();
    let watching = async {
        while told.len() < 20 {
            match watch.message().await.unwrap().unwrap().what.unwrap() {
                What::Changed(changed) => drop(told.insert(changed.user_id)),
                What::Checkpoint(point) => assert_eq!(point.partition_revisions.len(), 8),
                what => panic!("{what:?}"),
            }
        }
    };
    timeout(PATIENCE, watching).await.expect("each is told of");
    // Exports and what falls due go through all partitions.
    let mut records = recorder.records().await;
    let export = records.export_events(pb::ExportEventsRequest::default()).await;
    let mut export = export.unwrap().into_inner();
    let mut exported = 0;
    while export.message().await.unwrap().is_some() {
        exported += 1;
    }
    assert_eq!(exported, 20);
    // It says how its partitions are.
    let told = status(&reader).await;
    assert_eq!((told.partitions.len(), told.partition_revisions.len(), told.pairs), (8, 8, 20));
    assert_eq!(told.revision, told.partition_revisions.iter().sum::<u64>());
    assert!(told.partitions.iter().all(|one| one.phase() == Phase::Live && one.cause.is_empty()));
    let own = partition(&user(0));
    let pairs = (0..20).filter(|number| partition(&user(*number)) == own).count();
    let label = format!("consent_partition_pairs{{partition=\"{own}\"}}");
    assert_eq!(metric(&reader, &label).await.to_string(), pairs.to_string());
    let (_, printed, _) = run(&["status", "--addr", &reader.grpc]);
    assert!(printed.contains("partitions 8 followed"), "{printed}");
    let (_, page) = reader.get("/").await;
    assert!(page.contains("8 partitions"), "{page}");
}

/// Takes a partition away as an operator's mistake would: its meta is renamed to `elsewhere`. Gives its name.
fn lose(redis: &Redis, partition: u32) -> String {
    let name = key_of(redis, partition, "meta");
    redis.command(&["RENAME", &name, "elsewhere"]);
    name
}

#[tokio::test]
async fn questions_about_a_partition_that_was_never_loaded_fail_alone_but_not_those_of_a_campaign()
{
    let (redis, ledger) = ledger();
    let recorder = live(&ledger, &[]).await;
    let users: Vec<_> = (0..12).map(user).collect();
    for user in &users {
        record(&recorder, user, opt_in("marketing"), "in").await;
    }
    let lost = partition(&users[0]);
    let name = lose(&redis, lost);
    let sidecar = serve(&ledger, &[], &[]);
    let of_others = users.iter().find(|user| partition(user) != lost).unwrap();
    eventually("the other partitions are loaded", || async {
        let told = status(&sidecar).await;
        told.partitions.iter().filter(|one| one.phase() == Phase::Live).count() == 7
    })
    .await;
    assert_eq!(reason(&sidecar, of_others, BUSINESS, "marketing").await, Reason::OptedIn);
    let mut client = sidecar.checks().await;
    let about = |users: &[String]| pb::BatchCanSendRequest {
        requests: users.iter().map(|user| question(user, BUSINESS, "marketing")).collect(),
    };
    let results = client.batch_can_send(about(&users)).await.unwrap().into_inner().results;
    for (user, result) in users.iter().zip(results) {
        match result.result.unwrap() {
            Answered::Response(answer) => {
                assert_eq!((partition(user) == lost, answer.reason()), (false, Reason::OptedIn));
            }
            Answered::Error(error) => {
                let code = Code::Unavailable as i32;
                assert_eq!((partition(user) == lost, error.code), (true, code), "{error:?}");
            }
        }
    }
    // Where nothing can be answered the call fails, and so does a campaign that has one such user.
    let refused = client.batch_can_send(about(&users[..1])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let campaign = pb::FilterRecipientsRequest {
        business_id: BUSINESS.to_owned(),
        category: "marketing".to_owned(),
        user_ids: users.clone(),
        ..Default::default()
    };
    let mut filtered =
        client.filter_recipients(tokio_stream::iter([campaign])).await.unwrap().into_inner();
    let refused = filtered.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let (code, _) = sidecar.get("/readyz").await;
    assert_eq!(code, 503);
    redis.command(&["RENAME", "elsewhere", &name]);
    live_within(&sidecar, PATIENCE).await;
}

/// After a silence of this length a watcher trusts nothing.
const SILENCE: Duration = Duration::from_secs(10);

/// Whether a watcher of a business, or of all if it has no name, gets two checkpoints unasked.
async fn has_heartbeats(sidecar: &Sidecar, business: &str) -> bool {
    let request = pb::WatchConsentsRequest { business_id: business.to_owned() };
    let mut client = sidecar.checks().await;
    let mut watch = client.watch_consents(request).await.unwrap().into_inner();
    // The first message is a checkpoint, whatever the tables are like.
    watch.message().await.unwrap();
    for _ in 0..2 {
        match timeout(SILENCE, watch.message()).await {
            Ok(told) => assert!(matches!(told.unwrap().unwrap().what, Some(What::Checkpoint(_)))),
            Err(_) => return false,
        }
    }
    true
}

#[tokio::test]
async fn partition_that_is_lost_silences_the_watchers_of_its_own_businesses_alone() {
    let (redis, ledger) = ledger();
    let sidecar = live(&ledger, &[]).await;
    let of = |business: &str| -> Vec<u32> {
        layout().partitions_of(BusinessId::parse(business).unwrap().tag()).collect()
    };
    let lost = partition(&user(0));
    let other = ["globex", "initech", "umbrella", "wayne", "stark", "hooli"];
    let other = other.into_iter().find(|business| !of(business).contains(&lost)).unwrap();
    lose(&redis, lost);
    eventually("the loss is seen", || async {
        let told = status(&sidecar).await;
        told.partitions.iter().any(|one| one.phase() == Phase::Invalid)
    })
    .await;
    let heard = tokio::join!(
        has_heartbeats(&sidecar, BUSINESS),
        has_heartbeats(&sidecar, other),
        has_heartbeats(&sidecar, "")
    );
    assert_eq!(heard, (false, true, false));
}

#[tokio::test]
async fn partition_that_is_lost_denies_its_own_pairs_alone_and_comes_back() {
    let (redis, ledger) = ledger();
    let sidecar = live(&ledger, &[]).await;
    let users: Vec<_> = (0..12).map(user).collect();
    for user in &users {
        record(&sidecar, user, opt_in("marketing"), "in").await;
    }
    let lost = partition(&users[0]);
    assert!(users.iter().any(|user| partition(user) != lost));
    let name = lose(&redis, lost);
    for user in &users {
        let wanted = if partition(user) == lost { Reason::Stale } else { Reason::OptedIn };
        answers(&sidecar, user, BUSINESS, "marketing", wanted).await;
    }
    let told = status(&sidecar).await;
    assert_eq!(told.phase(), Phase::Invalid);
    assert!(told.cause.starts_with(&format!("partition {lost}: ")), "{}", told.cause);
    let live_ones = told.partitions.iter().filter(|one| one.phase() == Phase::Live).count();
    assert_eq!(live_ones, 7);
    let label = format!("consent_partition_live{{partition=\"{lost}\"}}");
    assert!(metric(&sidecar, &label).await < 0.5);
    let (code, _) = sidecar.get("/readyz").await;
    assert_eq!(code, 200, "a fault of the ledger takes nothing out of service");
    // What is recorded elsewhere is acknowledged all the same, in one call with what cannot be.
    let other = users.iter().find(|user| partition(user) != lost).unwrap();
    let requests = [&users[0], other].map(|user| pb::RecordEventsRequest {
        event: event(user, BUSINESS, opt_out("*")).event,
        request_id: format!("{user} out"),
        ..Default::default()
    });
    let mut records = sidecar.records().await;
    let recorded = records.record_events(tokio_stream::iter(requests)).await;
    let mut recorded = recorded.unwrap().into_inner();
    let mut outcomes = Vec::new();
    while let Some(answer) = recorded.message().await.unwrap() {
        outcomes.push(matches!(answer.result, Some(RecordedAs::Response(_))));
    }
    assert_eq!(outcomes, [false, true]);
    assert_eq!(reason(&sidecar, other, BUSINESS, "marketing").await, Reason::OptedOutAll);
    redis.command(&["RENAME", "elsewhere", &name]);
    live_within(&sidecar, PATIENCE).await;
    answers(&sidecar, &users[0], BUSINESS, "marketing", Reason::OptedIn).await;
}

/// A few partitions are loaded at a time: those that cannot be must not keep the places of others.
#[tokio::test]
async fn partitions_with_lost_buckets_keep_no_others_from_being_loaded() {
    let (redis, ledger) = ledger();
    let lost: Vec<_> = (0..6).map(|partition| key_of(&redis, partition, ":b:0")).collect();
    for bucket in &lost {
        redis.command(&["DEL", bucket]);
    }
    let sidecar = serve(&ledger, &["--max-staleness", "2s"], &[]);
    let phases = async || {
        let told = status(&sidecar).await;
        told.partitions.iter().map(pb::PartitionStatus::phase).collect::<Vec<_>>()
    };
    let expected = [&[Phase::Loading; 6][..], &[Phase::Live; 2]].concat();
    eventually("the others are loaded", async || phases().await == expected).await;
    for bucket in &lost {
        redis.command(&["HSET", bucket, ".", ""]);
    }
    live_within(&sidecar, PATIENCE).await;
}

#[tokio::test]
async fn partial_sidecar_follows_the_partitions_of_its_businesses_and_saves_each_table() {
    let (_redis, ledger) = ledger();
    let full = live(&ledger, &[]).await;
    for number in 0..40 {
        record(&full, &user(number), opt_in("marketing"), "in").await;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table");
    let flags = ["--business", BUSINESS, "--snapshot", path.to_str().unwrap()];
    let flags = [&flags[..], &["--snapshot-every", "never"]].concat();
    let mut sidecar = live(&ledger, &flags).await;
    let mut own: Vec<u32> =
        layout().partitions_of(BusinessId::parse(BUSINESS).unwrap().tag()).collect();
    own.sort_unstable();
    for is_warm in [false, true] {
        let told = status(&sidecar).await;
        let followed: Vec<u32> = told.partitions.iter().map(|one| one.number).collect();
        assert_eq!((followed, told.pairs), (own.clone(), 40));
        assert_eq!(
            sidecar.said().contains("a saved table was read"),
            is_warm,
            "{}",
            sidecar.said()
        );
        record(&sidecar, &user(0), opt_out("*"), if is_warm { "warm" } else { "cold" }).await;
        answers(&sidecar, &user(0), BUSINESS, "marketing", Reason::OptedOutAll).await;
        // Nobody follows the partitions of another business here, and its events are acknowledged all the same.
        let mut elsewhere = event(&user(1), "globex", opt_out("*"));
        elsewhere.request_id = format!("elsewhere {is_warm}");
        let mut records = sidecar.records().await;
        let recorded = records.record_event(elsewhere);
        timeout(Duration::from_secs(4), recorded).await.unwrap().unwrap();
        if !is_warm {
            sidecar.signal("TERM");
            eventually("it saved its tables", || async {
                own.iter().all(|number| folder.path().join(format!("table.{number}")).exists())
            })
            .await;
            drop(sidecar);
            sidecar = live(&ledger, &flags).await;
        }
    }
    assert!(!path.exists(), "no file of a ledger in one partition");
}

/// One person whose ids are in two partitions, of which the other one has seen far more changes.
#[tokio::test]
async fn stop_is_enforced_under_a_linked_id_in_another_partition_with_a_revision_of_its_own() {
    let (_redis, ledger) = ledger();
    let sidecar = live(&ledger, &[]).await;
    let own = user(0);
    let other = (1..100).map(user).find(|other| partition(other) != partition(&own)).unwrap();
    for number in 1..60 {
        if partition(&user(number)) == partition(&other) {
            record(&sidecar, &user(number), opt_in("marketing"), "in").await;
        }
    }
    record(&sidecar, &own, opt_in("marketing"), "in").await;
    let link = pb::Link { other_user_id: other.clone(), moved: false };
    record(&sidecar, &own, pb::consent_event::What::Link(link), "link").await;
    let stopped = record(&sidecar, &own, opt_out("*"), "out").await;
    let told = status(&sidecar).await;
    let at = |user: &str| told.partition_revisions[partition(user) as usize];
    assert_eq!(stopped, at(&own), "it is one of the event's own partition");
    assert!(at(&other) > at(&own), "{told:?}");
    for user in [&own, &other] {
        assert_eq!(reason(&sidecar, user, BUSINESS, "marketing").await, Reason::OptedOutAll);
    }
    let asked =
        pb::CanSendRequest { min_revision: stopped, ..question(&own, BUSINESS, "marketing") };
    let answer = sidecar.checks().await.can_send(asked).await.unwrap().into_inner();
    assert_eq!((answer.reason(), answer.revision), (Reason::OptedOutAll, stopped));
}

/// Whether the last thing that its log says of the proofs is that they have failed.
fn is_unproven_by_log(sidecar: &Sidecar) -> bool {
    let said = sidecar.said();
    let [failed, proven] = ["cannot prove that this sidecar", "all of the ledger's changes again"]
        .map(|text| said.rfind(text));
    failed > proven
}

/// Less than the interval at which a failure that lasts is logged again.
const LOGGED_WITHIN: Duration = Duration::from_secs(6);

#[tokio::test]
async fn log_tells_of_each_outage_that_it_began_and_that_it_is_over_for_all_partitions() {
    let (redis, ledger) = ledger();
    let sidecar = live(&ledger, &[]).await;
    assert!(!is_unproven_by_log(&sidecar));
    // They have the same cause, and follow each other sooner than a message that lasts is logged again.
    for _ in 0..3 {
        redis.stop();
        let failed = eventually("the log tells of it", async || is_unproven_by_log(&sidecar));
        timeout(LOGGED_WITHIN, failed).await.expect("the log tells that it began");
        redis.go_on();
        live_within(&sidecar, PATIENCE).await;
        let proven = eventually("the log tells of it", async || !is_unproven_by_log(&sidecar));
        timeout(LOGGED_WITHIN, proven).await.expect("the log tells that it is over");
    }
}

#[tokio::test]
async fn log_tells_that_the_tables_hold_a_ledger_that_was_set_back() {
    let (mut redis, ledger) = ledger();
    let sidecar = live(&ledger, &[]).await;
    let dump = redis.dump();
    for number in 0..20 {
        record(&sidecar, &user(number), opt_in("marketing"), "in").await;
    }
    redis.restart_from(Some(&dump));
    eventually("the log tells that it is over", async || {
        let said = sidecar.said();
        let invalid = said.rfind("the table is not valid");
        invalid.is_some() && invalid < said.rfind("the tables hold the ledger again")
    })
    .await;
    live_within(&sidecar, PATIENCE).await;
}

/// The keys of a partition, each as Redis dumps it.
fn dumped(redis: &Redis, number: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
    let keys = redis.command(&["KEYS", &format!("*consent:{number}[.}}]*")]).parts();
    let keys = keys.into_iter().map(Value::bytes);
    keys.map(|key| (key.clone(), redis.command(&[b"DUMP".to_vec(), key]).bytes())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn import_that_was_broken_off_begins_again_if_one_partition_alone_was_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stops.csv");
    let row = |number| format!("{},2026-01-31T09:30:00Z\n", user(number));
    let rows: String = (0..10_000).map(row).collect();
    std::fs::write(&file, format!("user_id,event_time\n{rows}")).unwrap();
    let flags = ["--business", BUSINESS, "--event", "opt_out", "--scope", "*", "--retry-for", "0s"];
    let lost = partition(&user(0));
    for is_set_back in [false, true] {
        let (redis, ledger) = ledger();
        let mut sidecar = live(&ledger, &[]).await;
        let before = dumped(&redis, lost);
        let import = begin(&file, &sidecar.record, &flags);
        eventually("some is recorded", async || records(&sidecar).await > 1_000).await;
        sidecar.kill();
        let (code, _, said) = end(import);
        assert_eq!(code, 2, "it was to be broken off before its end: {said}");
        if is_set_back {
            for (key, _) in dumped(&redis, lost) {
                redis.command(&[b"DEL".to_vec(), key]);
            }
            for (key, dump) in before {
                redis.command(&[b"RESTORE".to_vec(), key, b"0".to_vec(), dump]);
            }
        }
        let sidecar = live(&ledger, &[]).await;
        let (code, _, said) = end(begin(&file, &sidecar.record, &flags));
        assert_eq!(code, 0, "{said}");
        let told = if is_set_back {
            format!("rows of this file that were recorded, in its partition {lost}: beginning with")
        } else {
            "going on with line ".to_owned()
        };
        assert!(said.contains(&told), "{said}");
        for number in 0..40 {
            let reason = reason(&sidecar, &user(number), BUSINESS, "marketing").await;
            assert_eq!(reason, Reason::OptedOutAll, "row {number}");
        }
    }
}

/// The partitions of a business's pairs.
fn partitions_of(business: &str) -> Vec<u32> {
    layout().partitions_of(BusinessId::parse(business).unwrap().tag()).collect()
}

/// It follows the partitions of another business, which lose nothing.
#[tokio::test]
async fn stop_that_a_partial_sidecar_recorded_where_it_follows_nothing_is_written_back_after_a_loss()
 {
    let (mut redis, ledger) = ledger();
    let own = partitions_of(BUSINESS);
    let mut others = (0..).map(|number| format!("globex{number}"));
    let other = others.find(|other| partitions_of(other).iter().all(|one| !own.contains(one)));
    let recorder = live(&ledger, &["--business", &other.unwrap()]).await;
    record(&recorder, &user(0), opt_in("marketing"), "in").await;
    record(&recorder, &user(1), opt_out("*"), "out").await;
    for round in 0..2 {
        let dump = redis.dump();
        let lost = [user(2 * round), user(2 * round + 3)];
        for user in &lost {
            // The server was restarted, and the first command on a connection finds that out.
            eventually("it records", async || {
                let stop = event(user, BUSINESS, opt_out("*"));
                recorder.records().await.record_event(stop).await.is_ok()
            })
            .await;
        }
        redis.restart_from(Some(&dump));
        let reader = live(&ledger, &[]).await;
        for user in &lost {
            answers(&reader, user, BUSINESS, "marketing", Reason::OptedOutAll).await;
        }
    }
}
