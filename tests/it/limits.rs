//! What clients can make a sidecar hold, and that greedy or silent ones keep nobody out.

use std::time::Duration;

use consentd::grpc::pb;
use consentd::grpc::pb::batch_can_send_result::Result as Answered;
use prost::Message as _;
use prost::bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::greedy::{
    BATCH, CAN_SEND, HEALTH, RECORD, RECORD_MANY, STREAM, push, silent, unfinished, waiting,
};
use crate::sidecar::{PATIENCE, Sidecar, Wire, event, eventually, framed, opt_out, question};

const MIB: usize = 1024 * 1024;

/// The most that a sidecar held in memory so far.
pub fn peak(sidecar: &Sidecar) -> usize {
    let path = format!("/proc/{}/status", sidecar.pid());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

pub async fn metric(sidecar: &Sidecar, sample: &str) -> f64 {
    let (_, text) = sidecar.get("/metrics").await;
    let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {sample}: {text}")).parse().unwrap()
}

/// Asks, and records a STOP, over connections of its own, as the business' other processes would.
pub async fn assert_serves_others(sidecar: &Sidecar) {
    let soon = Duration::from_secs(5);
    let mut wire = Wire::to(&sidecar.grpc).await;
    let asked = question("other", "acme", "utility").encode_to_vec();
    let answer = timeout(soon, wire.call(CAN_SEND, &asked)).await.expect("an answer in time");
    pb::CanSendResponse::decode(&*answer.unwrap()).unwrap();
    let stop = event("other", "acme", opt_out("*")).encode_to_vec();
    let mut wire = Wire::to(&sidecar.record).await;
    let recorded = timeout(soon, wire.call(RECORD, &stop)).await.expect("recorded in time");
    recorded.unwrap();
    let asked = timeout(soon, wire.call(HEALTH, &[])).await.expect("health in time");
    asked.unwrap();
}

#[track_caller]
pub fn assert_exhausted(status: &Status) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    assert!(retry.is_some_and(|delay| delay > Duration::ZERO), "{status:?}");
}

/// Takes the whole answers of a stream out of its bytes; what is cut off stays.
pub fn answers(bytes: &mut Vec<u8>) -> Vec<pb::StreamCanSendResponse> {
    let mut found = Vec::new();
    while let Some(prefix) = bytes.get(1..5) {
        let length = usize::try_from(u32::from_be_bytes(prefix.try_into().unwrap())).unwrap();
        let Some(message) = bytes.get(5..5 + length) else { break };
        found.push(pb::StreamCanSendResponse::decode(message).unwrap());
        bytes.drain(..5 + length);
    }
    found
}

#[tokio::test]
async fn stream_questions_that_are_invalid_are_answered_at_once_and_not_held() {
    const QUESTIONS: u64 = 400;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let before = peak(&sidecar);
    let mut wire = Wire::to(&sidecar.grpc).await;
    let (mut call, mut sending) = wire.begin_headers(STREAM, &[]).await.unwrap();
    let long = "x".repeat(1_000_000);
    let writer = tokio::spawn(async move {
        for sequence in 0..QUESTIONS {
            let body = waiting(sequence, &long);
            let length = body.len();
            assert_eq!(push(&mut sending, body.into()).await, length);
        }
        sending
    });
    let mut bytes = Vec::new();
    let mut answered = 0;
    while answered < QUESTIONS {
        let next = timeout(Duration::from_secs(4), call.next()).await;
        bytes.extend(next.expect("nothing waits").unwrap().expect("an answer"));
        for answer in answers(&mut bytes) {
            let Some(Answered::Error(error)) = answer.result.unwrap().result else { panic!() };
            assert_eq!(error.code, i32::from(Code::InvalidArgument), "{error:?}");
            answered += 1;
        }
    }
    let grown = peak(&sidecar) - before;
    assert!(grown < 16 * MIB, "{} MiB for one stream", grown / MIB);
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn stream_questions_that_wait_are_charged_and_the_others_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    // So many places that the bytes come to their end first.
    let flags = ["--max-connection-bytes", "5MiB", "--max-in-flight", "100000"];
    let sidecar = Sidecar::live(folder.path(), &flags).await;
    eventually("the connections of before are gone", || async {
        metric(&sidecar, "consent_connections").await < 0.5
    })
    .await;
    let before = metric(&sidecar, "consent_request_bytes{pool=\"checks\"}").await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let mut streams = Vec::new();
    for stream in 0..4_u64 {
        let (call, mut sending) = wire.begin_headers(STREAM, &[]).await.unwrap();
        let body: Vec<u8> = (0..1_000).flat_map(|n| waiting(stream * 1_000 + n, "1")).collect();
        let length = body.len();
        assert_eq!(push(&mut sending, body.into()).await, length);
        streams.push((call, sending));
    }
    eventually("a share is met", || async {
        metric(&sidecar, "consent_refused_total{limit=\"connection_bytes\"}").await > 0.0
    })
    .await;
    let held = metric(&sidecar, "consent_request_bytes{pool=\"checks\"}").await - before;
    assert!(held > 2e6 && held <= 5.0 * 1024.0 * 1024.0, "{held}");
    // Which of the streams meets it is the scheduler's choice; its answer comes before all others.
    let firsts = streams.iter_mut().map(|(call, _)| Box::pin(call.next()));
    let (answer, ..) = futures_util::future::select_all(firsts).await;
    let mut bytes = answer.unwrap().unwrap().to_vec();
    let first = answers(&mut bytes).swap_remove(0).result.unwrap().result;
    let Some(Answered::Error(error)) = first else { panic!("{first:?}") };
    assert_eq!(error.code, i32::from(Code::ResourceExhausted), "{error:?}");
    assert_serves_others(&sidecar).await;
    drop((streams, wire));
    eventually("all is given back", || async {
        metric(&sidecar, "consent_request_bytes{pool=\"checks\"}").await <= before
    })
    .await;
}

#[tokio::test]
async fn bodies_that_never_arrive_whole_are_held_up_to_the_budget_and_no_more() {
    const BODIES: usize = 400;
    const BUDGET: usize = 32 * MIB;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-request-bytes", "32MiB"]).await;
    let before = peak(&sidecar);
    // A batch of nearly two MiB, without its end.
    let body = unfinished(2 * MIB - 64);
    let mut wires = Vec::new();
    for _ in 0..8 {
        wires.push(Wire::to(&sidecar.grpc).await);
    }
    let mut begun = Vec::new();
    for n in 0..BODIES {
        let (call, mut sending) = wires[n % 8].begin_headers(BATCH, &[]).await.unwrap();
        let body = body.clone();
        begun.push((
            call,
            tokio::spawn(async move {
                let sent = push(&mut sending, body).await;
                (sent, sending)
            }),
        ));
    }
    let (mut refused, mut held) = (0, Vec::new());
    for (call, sending) in begun {
        let (_, sending) = sending.await.unwrap();
        match timeout(Duration::from_millis(10), call.end()).await {
            Ok(answered) => {
                let status = answered.unwrap_err();
                assert_exhausted(&status);
                refused += 1;
            }
            Err(_) => held.push(sending),
        }
    }
    assert!(refused > BODIES / 2, "{refused} were refused");
    let bytes = metric(&sidecar, "consent_request_bytes{pool=\"checks\"}").await;
    assert!(bytes <= 12.0 * 1024.0 * 1024.0, "{bytes}: six sixteenths are for checks");
    let grown = peak(&sidecar) - before;
    // Each of the connections has a window of a MiB beside.
    assert!(grown < BUDGET + 8 * 2 * MIB, "{} MiB", grown / MIB);
    assert_serves_others(&sidecar).await;
    drop(held);
}

#[tokio::test]
async fn silent_calls_keep_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let before = peak(&sidecar);
    for methods in [
        &[STREAM][..],
        &[CAN_SEND],
        &[RECORD],
        &[RECORD_MANY],
        &[HEALTH],
        &[STREAM, CAN_SEND, BATCH, RECORD, RECORD_MANY, HEALTH],
    ] {
        let open = silent(&sidecar.grpc, 6, 1_000, methods).await;
        assert_serves_others(&sidecar).await;
        drop(open);
    }
    let grown = peak(&sidecar) - before;
    assert!(grown < 64 * MIB, "{} MiB", grown / MIB);
}

#[tokio::test]
async fn checks_that_wait_for_a_revision_keep_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-in-flight", "64"]).await;
    let mut waits = Vec::new();
    for _ in 0..4 {
        let mut wire = Wire::to(&sidecar.grpc).await;
        for _ in 0..200 {
            let asked = question("1", "acme", "utility");
            let asked = pb::CanSendRequest { min_revision: u64::MAX, ..asked };
            let body = framed(&asked.encode_to_vec());
            waits.push(wire.begin(CAN_SEND, &[("grpc-timeout", "1H")], body).await.unwrap());
        }
    }
    eventually("the places are used up", || async {
        metric(&sidecar, "consent_refused_total{limit=\"in_flight\"}").await > 100.0
    })
    .await;
    assert_serves_others(&sidecar).await;
    // One more connection still finds a place to wait in.
    let mut wire = Wire::to(&sidecar.grpc).await;
    let asked = pb::CanSendRequest { min_revision: u64::MAX, ..question("1", "acme", "utility") };
    let body = framed(&asked.encode_to_vec());
    let call = wire.begin(CAN_SEND, &[("grpc-timeout", "300m")], body).await.unwrap();
    assert_eq!(call.end().await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn stream_questions_that_wait_take_places_and_those_without_one_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-in-flight", "30"]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let (mut call, mut sending) = wire.begin_headers(STREAM, &[]).await.unwrap();
    let body: Vec<u8> = (0..100).flat_map(|n| waiting(n, "1")).collect();
    let length = body.len();
    assert_eq!(push(&mut sending, body.into()).await, length);
    // One connection gets a third of the places.
    let (mut bytes, mut refused) = (Vec::new(), Vec::new());
    while refused.len() < 90 {
        let next = timeout(PATIENCE, call.next()).await.expect("they are answered at once");
        bytes.extend(next.unwrap().expect("the stream goes on"));
        refused.extend(answers(&mut bytes));
    }
    for (answer, sequence) in refused.into_iter().zip(10..) {
        assert_eq!(answer.sequence, sequence);
        let Some(Answered::Error(error)) = answer.result.unwrap().result else { panic!() };
        assert_eq!(error.code, i32::from(Code::ResourceExhausted), "{error:?}");
    }
    let waiting = metric(&sidecar, "consent_in_flight{pool=\"checks\"}").await;
    assert!((waiting - 10.0).abs() < 0.5, "{waiting}");
    assert_serves_others(&sidecar).await;
    drop((call, sending, wire));
    eventually("all places are given back", || async {
        metric(&sidecar, "consent_in_flight{pool=\"checks\"}").await < 0.5
    })
    .await;
}

#[tokio::test]
async fn answers_that_are_not_read_are_held_up_to_a_share_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-request-bytes", "32MiB"]).await;
    let before = peak(&sidecar);
    // It takes the heads of answers, and none of their bytes.
    let mut settings = h2::client::Builder::new();
    settings.initial_window_size(0);
    let stream = TcpStream::connect(&sidecar.grpc).await.unwrap();
    let (wire, connection) = settings.handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    let requests = vec![question("1", "acme", "utility"); 1_000];
    let body = Bytes::from(framed(&pb::BatchCanSendRequest { requests }.encode_to_vec()));
    let mut calls = Vec::new();
    for _ in 0..900 {
        let request = http::Request::post(format!("http://sidecar/{BATCH}"))
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let Ok(mut wire) = wire.clone().ready().await else { break };
        let (call, mut sending) = wire.send_request(request, false).unwrap();
        sending.send_data(body.clone(), true).unwrap();
        calls.push(call);
    }
    let (mut held, mut refused) = (Vec::new(), 0);
    for call in calls {
        let answer = timeout(PATIENCE, call).await.expect("each is answered or refused").unwrap();
        match Status::from_header_map(answer.headers()) {
            Some(status) => {
                assert_exhausted(&status);
                refused += 1;
            }
            None => held.push(answer),
        }
    }
    assert!(refused > 0 && !held.is_empty(), "{refused} are refused, {} are held", held.len());
    let grown = peak(&sidecar) - before;
    assert!(grown < 32 * MIB, "{} MiB", grown / MIB);
    assert_serves_others(&sidecar).await;
}

#[tokio::test]
async fn probes_are_answered_at_the_connection_cap() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-connections", "16"]).await;
    eventually("the connections of before are gone", || async {
        metric(&sidecar, "consent_connections").await < 0.5
    })
    .await;
    // Busy ones: each waits for a revision.
    let mut held = Vec::new();
    for _ in 0..16 {
        let mut wire = Wire::to(&sidecar.grpc).await;
        let (call, mut sending) = wire.begin_headers(STREAM, &[]).await.unwrap();
        push(&mut sending, waiting(1, "1").into()).await;
        held.push((wire, call, sending));
    }
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(&sidecar.grpc).await.unwrap());
    }
    let mut probe = Wire::to(&sidecar.grpc).await;
    probe.call(HEALTH, &[]).await.unwrap();
    let asked = question("1", "acme", "utility").encode_to_vec();
    let refused = probe.call(CAN_SEND, &asked).await.unwrap_err();
    assert_exhausted(&refused);
    assert!(refused.message().contains("--max-connections"), "{refused:?}");
    let status = crate::sidecar::run(&["healthcheck", "readiness", "--addr", &sidecar.grpc]);
    assert_eq!(status.0, 0, "{status:?}");
    assert_eq!(sidecar.get("/readyz").await.0, 200);
    assert!(metric(&sidecar, "consent_refused_total{limit=\"connections\"}").await >= 1.0);
    drop((held, silent));
    // Whoever came at the cap is told to come again, and is served then.
    eventually("there is room", || async {
        let mut wire = Wire::to(&sidecar.grpc).await;
        wire.call(CAN_SEND, &asked).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn short_questions_of_a_quick_stream_do_not_end_its_connection() {
    const QUESTIONS: u64 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--workers", "1"]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let (mut call, mut sending) = wire.begin_headers(STREAM, &[]).await.unwrap();
    let writer = tokio::spawn(async move {
        for sequence in 0..QUESTIONS {
            // Each in a frame of its own, as clients in Go send them.
            let request = Some(question("15550123456", "acme", "utility"));
            let asked = pb::StreamCanSendRequest { sequence, request };
            let body = framed(&asked.encode_to_vec());
            let length = body.len();
            assert_eq!(push(&mut sending, body.into()).await, length);
        }
        sending
    });
    let mut bytes = Vec::new();
    let mut seen = 0;
    while seen < QUESTIONS {
        let next = timeout(PATIENCE, call.next()).await.expect("answers go on");
        bytes.extend(next.unwrap().expect("an answer"));
        seen += u64::try_from(answers(&mut bytes).len()).unwrap();
    }
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn a_content_type_other_than_grpcs_is_refused_as_http_says() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let stream = TcpStream::connect(&sidecar.grpc).await.unwrap();
    let (wire, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let asked = Bytes::from(framed(&question("1", "acme", "utility").encode_to_vec()));
    for (content_type, expected) in [
        (None, 415),
        (Some(""), 415),
        (Some("application/json"), 415),
        (Some("text/plain"), 415),
        (Some("application/grpcx"), 415),
        (Some("application/grpc-web"), 415),
        (Some("application/grpc-web+proto"), 415),
        (Some("application/grpc+json"), 415),
        (Some("application/grpc"), 200),
        (Some("application/grpc+proto"), 200),
        (Some("application/grpc;charset=utf-8"), 200),
        (Some("Application/GRPC"), 200),
        (Some("application/GRPC+Proto ; charset=utf-8"), 200),
        (Some("APPLICATION/JSON"), 415),
        (Some("Application/GRPC-Web"), 415),
    ] {
        for method in [CAN_SEND, HEALTH, RECORD] {
            let mut request = http::Request::post(format!("http://sidecar/{method}"));
            if let Some(content_type) = content_type {
                request = request.header("content-type", content_type);
            }
            let mut wire = wire.clone().ready().await.unwrap();
            let (answer, mut sending) =
                wire.send_request(request.body(()).unwrap(), false).unwrap();
            let _ = sending.send_data(asked.clone(), true);
            let answer = answer.await.unwrap();
            assert_eq!(answer.status(), expected, "{content_type:?} {method}: {answer:?}");
        }
    }
}
