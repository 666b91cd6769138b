//! Sidecars that hold only some businesses: `--business` and `--business-file`.

mod upgraded;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use consentd::grpc::pb;
use consentd::grpc::pb::Reason;
use consentd::grpc::pb::batch_can_send_result::Result as Answered;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::faults::redis::Redis;
use crate::faults::stage::{init, ledger_at, live_within, metric, serve, status};
use crate::sidecar::{
    PATIENCE, Sidecar, event, eventually, inbound, opt_in, opt_out, question, run,
};
use crate::webhook::client::{answers, reason};

const REFUSED: &str = "consent_business_not_held_total";
const OTHER_SNAPSHOT: &str = "consent_snapshots_refused_total{cause=\"businesses\"}";

/// A server with an empty ledger, and the ledger's address.
fn ledger() -> (Redis, String) {
    ledger_of(&["--buckets", "32"])
}

/// The same with these flags of `init`.
fn ledger_of(flags: &[&str]) -> (Redis, String) {
    let redis = Redis::start(&[]);
    let ledger = ledger_at(&redis.address());
    init(&ledger, flags);
    (redis, ledger)
}

/// A live sidecar that records, with more flags.
async fn live(ledger: &str, flags: &[&str]) -> Sidecar {
    let flags = [&["--record", "127.0.0.1:0"], flags].concat();
    let sidecar = serve(ledger, &flags, &[]);
    live_within(&sidecar, PATIENCE).await;
    sidecar
}

/// How many events were recorded: each has an id of its own.
static RECORDED: AtomicU64 = AtomicU64::new(0);

async fn record(sidecar: &Sidecar, user: &str, business: &str, what: pb::consent_event::What) {
    let mut event = event(user, business, what);
    event.request_id = format!("event {}", RECORDED.fetch_add(1, Ordering::Relaxed));
    sidecar.records().await.record_event(event).await.expect("recorded");
}

/// Whether a call failed because the business is not held, and says what sets that.
fn is_refused(status: &Status) -> bool {
    let info = status.get_details_error_info();
    status.code() == Code::FailedPrecondition
        && info.is_some_and(|info| info.reason == "BUSINESS_NOT_HELD" && info.domain == "consentd")
        && status.message().contains("--business")
}

fn is_item_refused(item: &Answered) -> bool {
    matches!(item, Answered::Error(error)
        if error.code == Code::FailedPrecondition as i32
            && error.field == "business_id"
            && error.message.contains("--business"))
}

async fn refuses(client: &mut ConsentServiceClient<Channel>, business: &str) -> bool {
    let asked = client.can_send(question("15550100001", business, "marketing")).await;
    asked.is_err_and(|status| is_refused(&status))
}

#[tokio::test]
async fn every_kind_of_question_about_another_business_is_an_error_that_names_the_setting() {
    let (_redis, ledger) = ledger();
    let full = live(&ledger, &[]).await;
    for business in ["acme", "globex", "initech"] {
        record(&full, "15550100001", business, opt_in("marketing")).await;
    }
    let sidecar = live(&ledger, &["--business", "acme,initech"]).await;
    let mut client = sidecar.checks().await;
    for business in ["acme", "initech"] {
        answers(&sidecar, "15550100001", business, "marketing", Reason::OptedIn).await;
    }
    // One question at a time; with a template; one that would wait for a revision.
    assert!(refuses(&mut client, "globex").await);
    let template = Some(pb::Template { name: "offer".into(), language: "en".into() });
    let asked = question("15550100001", "globex", "marketing");
    let with_template = pb::CanSendRequest { template, ..asked.clone() };
    let waiting = pb::CanSendRequest { min_revision: 1_000, ..asked.clone() };
    for asked in [with_template.clone(), waiting] {
        let said = timeout(Duration::from_secs(4), client.can_send(asked)).await.unwrap();
        assert!(is_refused(&said.unwrap_err()));
    }
    // In a batch and in a stream each by itself, beside others that are answered.
    let held = question("15550100001", "acme", "marketing");
    let requests = vec![held.clone(), asked.clone(), with_template, held.clone()];
    let batch = pb::BatchCanSendRequest { requests: requests.clone() };
    let results = client.batch_can_send(batch).await.unwrap().into_inner().results;
    let mut of_batch: Vec<_> = results.into_iter().map(|item| item.result.unwrap()).collect();
    let sequenced =
        |(number, asked)| pb::StreamCanSendRequest { sequence: number, request: Some(asked) };
    let stream: Vec<_> = (0..).zip(requests).map(sequenced).collect();
    let mut stream = client.stream_can_send(tokio_stream::iter(stream)).await.unwrap().into_inner();
    let mut of_stream = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        of_stream.push(answer.result.unwrap().result.unwrap());
    }
    for items in [&mut of_batch, &mut of_stream] {
        let refused: Vec<_> = items.iter().map(is_item_refused).collect();
        assert_eq!(refused, [false, true, true, false]);
        let Answered::Response(answer) = &items[3] else { panic!("{items:?}") };
        assert_eq!(answer.reason(), Reason::OptedIn);
    }
    // A campaign, what is known of a pair, and watching.
    let campaign = pb::FilterRecipientsRequest {
        business_id: "globex".into(),
        category: "marketing".into(),
        user_ids: vec!["15550100001".into()],
        ..Default::default()
    };
    let filtered = client.filter_recipients(tokio_stream::iter([campaign])).await.unwrap();
    assert!(is_refused(&filtered.into_inner().message().await.unwrap_err()));
    let pair = |business: &str| pb::GetConsentRequest {
        user_id: "15550100001".into(),
        business_id: business.into(),
    };
    assert!(is_refused(&client.get_consent(pair("globex")).await.unwrap_err()));
    assert_eq!(client.get_consent(pair("acme")).await.unwrap().into_inner().opted_in.len(), 1);
    let watch = |business: &str| pb::WatchConsentsRequest { business_id: business.into() };
    assert!(is_refused(&client.watch_consents(watch("globex")).await.unwrap_err()));
    for business in ["acme", ""] {
        client.watch_consents(watch(business)).await.unwrap();
    }
    let addr = ["--addr", &sidecar.grpc];
    let (code, printed, said) =
        run(&[&["check", "15550100001", "globex", "marketing"], &addr[..]].concat());
    assert!(code == 2 && said.contains("--business"), "{code} {printed}{said}");
    // Each was counted; what the ledger knows can be read and recorded all the same.
    assert!((metric(&sidecar, REFUSED).await - 11.0).abs() < 0.5);
    record(&sidecar, "15550100001", "globex", inbound("Hi")).await;
    let record = ["--addr", sidecar.record.as_str()];
    let (code, printed, said) = run(&[&["history", "15550100001", "globex"], &record[..]].concat());
    assert!(code == 0 && printed.contains("opt-in"), "{printed}{said}");
    // It says what it holds.
    let told = status(&sidecar).await;
    assert_eq!((told.businesses, told.business_count), (vec!["acme".into(), "initech".into()], 2));
    assert_eq!((told.pairs, status(&full).await.business_count), (2, 0));
    assert!((metric(&sidecar, "consent_businesses").await - 2.0).abs() < 0.5);
    let (_, printed, _) = run(&[&["status"], &addr[..]].concat());
    assert!(printed.contains("businesses acme, initech"), "{printed}");
    let (_, page) = sidecar.get("/").await;
    assert!(page.contains("Holds 2 businesses alone: acme, initech"), "{page}");
}

#[tokio::test]
async fn stop_of_a_held_business_is_enforced_whoever_records_it() {
    let (_redis, ledger) = ledger();
    let one = live(&ledger, &["--business", "acme"]).await;
    let other = live(&ledger, &["--business", "globex"]).await;
    for business in ["acme", "globex"] {
        record(&one, "15550100001", business, opt_in("marketing")).await;
    }
    answers(&other, "15550100001", "globex", "marketing", Reason::OptedIn).await;
    // Recorded by a sidecar that does not hold the business.
    record(&one, "15550100001", "globex", opt_out("*")).await;
    answers(&other, "15550100001", "globex", "marketing", Reason::OptedOutAll).await;
    // By one that does, its answer comes once it is enforced there.
    record(&other, "15550100001", "globex", opt_in("utility")).await;
    assert_eq!(reason(&other, "15550100001", "globex", "utility").await, Reason::OptedIn);
    answers(&one, "15550100001", "acme", "marketing", Reason::OptedIn).await;
    assert_eq!((status(&one).await.pairs, status(&other).await.pairs), (1, 1));
}

/// Names these businesses in a file, as an editor does that replaces it.
fn name(path: &Path, businesses: &[&str]) {
    let new = path.with_extension("new");
    std::fs::write(&new, format!("# held\n{}\n", businesses.join("\n"))).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn businesses_come_and_go_while_stops_are_recorded_and_others_are_answered() {
    let (_redis, ledger) = ledger();
    businesses_come_and_go(ledger).await;
}

/// A business' pairs are in partitions that are followed for it alone, and in ones that both share.
#[tokio::test]
async fn so_they_do_where_the_ledger_has_several_partitions() {
    let (_redis, ledger) = ledger_of(&["--partitions", "8", "--spread", "4", "--buckets", "4"]);
    businesses_come_and_go(ledger).await;
}

async fn businesses_come_and_go(ledger: String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("businesses");
    name(&path, &["acme"]);
    let file = path.to_str().unwrap();
    let full = live(&ledger, &[]).await;
    let user = |number: usize| format!("US.{number}");
    for number in 0..40 {
        record(&full, &user(number), "globex", opt_in("marketing")).await;
        record(&full, &user(number), "acme", opt_in("marketing")).await;
    }
    let flags = ["--business-file", file, "--max-staleness", "3s"];
    let sidecar = Arc::new(live(&ledger, &flags).await);
    // One asks about what is held all the time, and one says STOP to the other business.
    let over = Arc::new(AtomicBool::new(false));
    let asking = {
        let (over, sidecar) = (Arc::clone(&over), Arc::clone(&sidecar));
        tokio::spawn(async move {
            let mut client = sidecar.checks().await;
            let (mut count, mut revision) = (0_u64, 0);
            while !over.load(Ordering::Relaxed) {
                let answer = client.can_send(question("US.0", "acme", "marketing")).await;
                let answer = answer.expect("it is held all the while").into_inner();
                assert_eq!(answer.reason(), Reason::OptedIn);
                assert!(answer.revision >= revision, "{} after {revision}", answer.revision);
                (count, revision) = (count + 1, answer.revision);
            }
            count
        })
    };
    let mut client = sidecar.checks().await;
    let mut watch = client
        .watch_consents(pb::WatchConsentsRequest { business_id: String::new() })
        .await
        .unwrap()
        .into_inner();
    let mut stopped = 0;
    for round in 0..3 {
        name(&path, &["acme", "globex"]);
        sidecar.signal("HUP");
        // What was said before, while it is added, and after.
        loop {
            record(&full, &user(stopped), "globex", opt_out("*")).await;
            stopped += 1;
            if !refuses(&mut client, "globex").await {
                break;
            }
        }
        record(&full, &user(stopped), "globex", opt_out("*")).await;
        // The last two were recorded at about the time from which it answers: they may arrive after that.
        for number in [stopped - 1, stopped] {
            answers(&sidecar, &user(number), "globex", "marketing", Reason::OptedOutAll).await;
        }
        for number in 0..stopped {
            let so = reason(&sidecar, &user(number), "globex", "marketing").await;
            assert_eq!(so, Reason::OptedOutAll, "user {number} in round {round}");
        }
        stopped += 1;
        let pairs = status(&sidecar).await.pairs;
        name(&path, &["acme"]);
        sidecar.signal("HUP");
        eventually("it is refused", || async {
            refuses(&mut sidecar.checks().await, "globex").await
        })
        .await;
        eventually("its pairs are gone", || async { status(&sidecar).await.pairs == 40 }).await;
        assert!(pairs > 40, "{pairs}");
    }
    over.store(true, Ordering::Relaxed);
    assert!(asking.await.expect("it was answered all the while") > 0);
    let is_reset = |what| matches!(what, Some(pb::watch_consents_response::What::Reset(_)));
    let reset = async { while !is_reset(watch.message().await.unwrap().unwrap().what) {} };
    timeout(PATIENCE, reset).await.expect("a watcher is told that others are held");
    // A file that cannot be used changes nothing, and is told once.
    std::fs::write(&path, "# none\n").unwrap();
    sidecar.signal("HUP");
    eventually("it is told", || async { sidecar.said().contains("names no business") }).await;
    answers(&sidecar, "US.0", "acme", "marketing", Reason::OptedIn).await;
    std::fs::remove_file(&path).unwrap();
    sidecar.signal("HUP");
    eventually("it is told", || async { sidecar.said().contains("cannot read") }).await;
    answers(&sidecar, "US.0", "acme", "marketing", Reason::OptedIn).await;
}

#[tokio::test]
async fn watcher_of_a_business_that_is_not_held_any_more_is_told() {
    let (_redis, ledger) = ledger();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("businesses");
    name(&path, &["acme", "globex"]);
    let sidecar = live(&ledger, &["--business-file", path.to_str().unwrap()]).await;
    let request = pb::WatchConsentsRequest { business_id: "globex".into() };
    let mut watch = sidecar.checks().await.watch_consents(request).await.unwrap().into_inner();
    name(&path, &["acme"]);
    sidecar.signal("HUP");
    let ended = async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a word"),
                Err(status) => return status,
            }
        }
    };
    let status = timeout(PATIENCE, ended).await.expect("it ends");
    assert!(is_refused(&status), "{status:?}");
}

#[tokio::test]
async fn saved_table_of_other_businesses_is_not_used() {
    let (_redis, ledger) = ledger();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table");
    let saving = ["--snapshot", path.to_str().unwrap(), "--snapshot-every", "never"];
    let serve = async |business: &[&str]| live(&ledger, &[&saving, business].concat()).await;
    let mut sidecar = serve(&["--business", "acme"]).await;
    for business in ["acme", "globex"] {
        record(&sidecar, "15550100001", business, opt_out("*")).await;
    }
    let end = async |sidecar: &mut Sidecar| {
        sidecar.signal("TERM");
        assert!(sidecar.ended().await.success());
    };
    end(&mut sidecar).await;
    let mut sidecar = serve(&["--business", "acme"]).await;
    assert!(sidecar.said().contains("a saved table was read"), "{}", sidecar.said());
    end(&mut sidecar).await;
    // Of more businesses, and of all: the ledger is read.
    for business in [&["--business", "acme,globex"][..], &[], &["--business", "globex"]] {
        let mut sidecar = serve(business).await;
        assert!((metric(&sidecar, OTHER_SNAPSHOT).await - 1.0).abs() < 0.5, "{business:?}");
        answers(&sidecar, "15550100001", "globex", "marketing", Reason::OptedOutAll).await;
        end(&mut sidecar).await;
    }
}

#[tokio::test]
async fn ledger_in_a_file_is_refused_with_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.redb");
    let said = Sidecar::try_start(&path, &["--business", "acme"]).err().expect("refused");
    assert!(said.contains("--business: is for a ledger in Redis"), "{said}");
    assert!(!path.exists());
}
