//! Exports and other reads of histories: they have all that the ledger has, they outlive the age of
//! their connection, and many of them take little memory and hold up nobody.

use std::time::Duration;

use consentd::grpc::pb;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use prost::Message as _;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::limits::{assert_exhausted, assert_serves_others, metric, peak};
use crate::sidecar::{
    Call, PATIENCE, Sidecar, Wire, ago, event, eventually, framed, ledger_in, opt_in, opt_out,
    question, run,
};

const EXPORT: &str = "consent.v1.RecordService/ExportEvents";
const LIST: &str = "consent.v1.RecordService/ListEvents";

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn export_while_the_table_is_loaded_has_what_the_ledger_has() {
    let folder = tempfile::tempdir().unwrap();
    // So many pairs that they are still being loaded when the export is asked for.
    let sidecar = Sidecar::start(&ledger_in(folder.path()), &["--synthetic", "5000000"]);
    let mut records = sidecar.records().await;
    // The event is in the ledger at once, and is acknowledged only when the table has it.
    let mut stop = Request::new(event("1", "acme", opt_out("*")));
    stop.set_timeout(Duration::from_millis(500));
    let unacknowledged = records.record_event(stop).await.map(|_| ());
    assert_eq!(unacknowledged.map_err(|status| status.code()), Err(Code::DeadlineExceeded));
    let mut export =
        records.export_events(pb::ExportEventsRequest::default()).await.unwrap().into_inner();
    let first = export.message().await.unwrap().expect("the event");
    assert_eq!(first.event.unwrap().user_id, "1");
    assert_eq!(export.message().await.unwrap(), None);
    let (code, printed, error) = run(&["export", "--addr", &sidecar.record]);
    assert_eq!((code, printed.lines().count()), (0, 1), "{printed}{error}");
}

/// Records opt-ins with long evidence: one of each of so many users, then as many of one user.
async fn record_long(records: &mut RecordServiceClient<Channel>, events: usize) {
    let long = |n: usize| {
        let pb::consent_event::What::OptIn(mut opt_in) = opt_in("marketing") else {
            unreachable!("an opt-in is one");
        };
        let words = "Yes to messages from Acme on WhatsApp";
        opt_in.evidence.as_mut().unwrap().statement = format!("{words} {n} {}", "x".repeat(4_000));
        pb::consent_event::What::OptIn(opt_in)
    };
    let users = (0..events).map(|n| format!("US.{n}"));
    let users = users.chain((0..events).map(|_| "one".to_owned()));
    // Each is later than the one before, so that all of them change something.
    let requests = users.enumerate().map(move |(n, user)| {
        let mut event = event(&user, "acme", long(n)).event;
        let before = Duration::from_secs(u64::try_from(3 * events - n).unwrap());
        event.as_mut().unwrap().event_time = Some(ago(before));
        pb::RecordEventsRequest { event, ..Default::default() }
    });
    let requests: Vec<_> = requests.collect();
    let mut answers =
        records.record_events(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut recorded = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        let result = answer.result.unwrap();
        assert!(matches!(result, pb::record_events_response::Result::Response(_)), "{result:?}");
        recorded += 1;
    }
    assert_eq!(recorded, 2 * events);
}

/// Takes the first bytes of a call's answer, and no more.
async fn begin_to_read(mut call: Call) -> Option<Call> {
    match timeout(PATIENCE, call.next()).await.expect("it is answered or refused") {
        Ok(_) => Some(call),
        Err(status) => {
            assert_exhausted(&status);
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_that_nobody_reads_take_no_more_than_the_budget_and_hold_up_nobody() {
    const EVENTS: usize = 600;
    const CALLS: usize = 120;
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--max-request-bytes", "32MiB", "--max-connection-bytes", "5MiB"];
    let sidecar = Sidecar::live(folder.path(), &flags).await;
    record_long(&mut sidecar.records().await, EVENTS).await;
    let before = peak(&sidecar);
    let mut wire = Wire::to(&sidecar.record).await;
    let mut calls = Vec::new();
    let pair = pb::ListEventsRequest { user_id: "one".into(), business_id: "acme".into() };
    for n in 0..CALLS {
        let (method, request) = match n % 2 {
            0 => (EXPORT, Vec::new()),
            _ => (LIST, pair.encode_to_vec()),
        };
        let call = wire.begin(method, &[], framed(&request)).await.unwrap();
        calls.push(tokio::spawn(begin_to_read(call)));
    }
    // A check and a STOP find their way at once, and so does an export of somebody else.
    assert_serves_others(&sidecar).await;
    let mut others = sidecar.records().await;
    let export = others.export_events(pb::ExportEventsRequest::default()).await.unwrap();
    let mut export = export.into_inner();
    let mut exported = 0;
    while export.message().await.unwrap().is_some() {
        exported += 1;
    }
    assert_eq!(exported, 2 * EVENTS + 1, "and the STOP");
    let mut held = Vec::new();
    for call in calls {
        held.extend(call.await.unwrap());
    }
    assert!(!held.is_empty(), "none was answered");
    let grown = peak(&sidecar) - before;
    // What docs/operations.md says of one connection, and what is read and not charged yet.
    assert!(grown < 48 * MIB, "grown by {} MiB", grown / MIB);
    drop(held);
    eventually("what they held is given back", || async {
        metric(&sidecar, "consent_request_bytes{pool=\"records\"}").await < 100e3
    })
    .await;
}

#[tokio::test]
async fn streams_of_recordings_and_health_end_with_their_old_connection() {
    let folder = tempfile::tempdir().unwrap();
    // Longer than the test may take, so that what ends the streams is not that the grace is over.
    let flags = ["--max-connection-age", "300ms", "--drain-timeout", "1h"];
    let sidecar = Sidecar::live(folder.path(), &flags).await;
    let channel = sidecar.channel().await;
    let mut records = RecordServiceClient::new(channel.clone());
    let (events, sent) = tokio::sync::mpsc::channel(1);
    let mut recording =
        records.record_events(ReceiverStream::new(sent)).await.unwrap().into_inner();
    let (_asked, sent) = tokio::sync::mpsc::channel(1);
    let mut checking = records.check_events(ReceiverStream::new(sent)).await.unwrap().into_inner();
    let mut health = HealthClient::new(channel);
    let watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    let mut watching = watch.into_inner();
    let stop = event("1", "acme", opt_out("*")).event;
    let stop = pb::RecordEventsRequest { event: stop, ..Default::default() };
    events.send(stop).await.unwrap();
    recording.message().await.unwrap().expect("it is recorded");
    let ended = timeout(PATIENCE, recording.message()).await.expect("it ends").unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert!(ended.message().contains("what was answered is recorded"), "{ended:?}");
    let ended = timeout(PATIENCE, checking.message()).await.expect("it ends").unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert!(ended.message().contains("the connection ends"), "{ended:?}");
    let ended = timeout(PATIENCE, async {
        loop {
            if let Err(ended) = watching.message().await.map(|change| change.expect("a change")) {
                break ended;
            }
        }
    });
    let ended = ended.await.expect("it ends");
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    let mut checks = sidecar.checks().await;
    let answer = checks.can_send(question("1", "acme", "utility")).await.unwrap().into_inner();
    assert_eq!(answer.reason(), pb::Reason::OptedOutAll);
}

#[tokio::test]
async fn export_outlives_the_age_of_its_connection_and_not_the_sidecar() {
    const EVENTS: usize = 300;
    let folder = tempfile::tempdir().unwrap();
    record_long(&mut Sidecar::live(folder.path(), &[]).await.records().await, EVENTS).await;
    let flags = ["--max-connection-age", "300ms", "--drain-timeout", "500ms"];
    let mut sidecar = Sidecar::live(folder.path(), &flags).await;
    let channel = sidecar.channel().await;
    let records = RecordServiceClient::new(channel.clone());
    let mut health = HealthClient::new(channel);
    let watch = health.watch(HealthCheckRequest::default()).await.unwrap();
    let mut watching = watch.into_inner();
    let mut open = Vec::new();
    for mut records in [records.clone(), records] {
        let export = records.export_events(pb::ExportEventsRequest::default()).await.unwrap();
        let mut export = export.into_inner();
        export.message().await.unwrap().expect("an event");
        open.push(export);
    }
    // The watch ends when the connection is old, and other calls' time is over soon after.
    while watching.message().await.is_ok() {}
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut exported = 1;
    while open[0].message().await.unwrap().is_some() {
        exported += 1;
    }
    assert_eq!(exported, 2 * EVENTS);
    // One that is not done when the process drains ends with a status.
    sidecar.signal("TERM");
    let ended = timeout(PATIENCE, async {
        loop {
            if let Err(ended) = open[1].message().await.map(|event| event.expect("more events")) {
                break ended;
            }
        }
    });
    assert_eq!(ended.await.expect("it ends").code(), Code::Unavailable);
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
}
