//! Ending: on a signal, whatever is connected; and what else ends connections and calls.

use std::time::{Duration, Instant};

use consentd::grpc::pb;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::sidecar::{
    PATIENCE, Sidecar, Wire, event, eventually, framed, inbound, ledger_in, opt_out, question,
};

const CAN_SEND: &str = "consent.v1.ConsentService/CanSend";
const WATCH: &str = "grpc.health.v1.Health/Watch";

/// How long an end may take where nobody is being answered. It takes half a second, but other
/// tests load the machine; what counts is that it is not the drain timeout, of ten seconds.
const SOON: Duration = Duration::from_secs(5);

/// What a client sends first: its preface, and settings that change nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Ends a sidecar by a signal; it must end well. Gives how long that took.
async fn end(sidecar: &mut Sidecar, signal: &str) -> Duration {
    let started = Instant::now();
    sidecar.signal(signal);
    let status = sidecar.ended().await;
    assert!(status.success(), "{status}: {}", sidecar.said());
    started.elapsed()
}

/// Waits until what was begun on this connection has arrived.
async fn arrived(wire: &mut Wire) {
    // Calls arrive in the order in which they were begun, and this one fails without an answer's
    // body, for which there may be no room.
    let unknown = wire.call("nothing/Nothing", &[]).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
}

/// Waits until so many gRPC connections are open.
async fn connected(sidecar: &Sidecar, connections: usize) {
    eventually("so many connections are open", || async {
        let (_, metrics) = sidecar.get("/metrics").await;
        metrics.lines().any(|line| line == format!("consent_connections {connections}"))
    })
    .await;
}

/// A question that waits for a revision which never comes.
fn waiting() -> Vec<u8> {
    let question = pb::CanSendRequest { min_revision: 9, ..question("u", "b", "utility") };
    framed(&question.encode_to_vec())
}

#[tokio::test]
async fn it_ends_at_once_where_nobody_calls() {
    let folder = tempfile::tempdir().unwrap();
    for signal in ["TERM", "INT"] {
        let mut sidecar = Sidecar::live(folder.path(), &[]).await;
        assert!(end(&mut sidecar, signal).await < SOON, "{signal}");
    }
    // A signal that comes before the table is loaded counts too.
    let mut sidecar = Sidecar::start(&ledger_in(folder.path()), &[]);
    assert!(end(&mut sidecar, "TERM").await < SOON);
}

#[tokio::test]
async fn silent_connections_do_not_hold_it() {
    let folder = tempfile::tempdir().unwrap();
    for first in [&b""[..], &PREFACE[..7], PREFACE] {
        let mut sidecar = Sidecar::live(folder.path(), &[]).await;
        connected(&sidecar, 0).await; // What asked whether it is live has gone.
        let mut silent = TcpStream::connect(&sidecar.grpc).await.unwrap();
        silent.write_all(first).await.unwrap();
        connected(&sidecar, 1).await;
        assert!(end(&mut sidecar, "TERM").await < SOON, "{first:?}");
        drop(silent);
    }
}

#[tokio::test]
async fn watchers_of_health_are_told_and_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut health = HealthClient::new(sidecar.channel().await);
    let mut watchers = Vec::new();
    for (service, last) in [
        ("", ServingStatus::NotServing),
        ("readiness", ServingStatus::NotServing),
        ("liveness", ServingStatus::Serving),
        ("nonsense", ServingStatus::ServiceUnknown),
    ] {
        let request = HealthCheckRequest { service: service.into() };
        let mut watcher = health.watch(request).await.unwrap().into_inner();
        let first = watcher.message().await.unwrap().unwrap().status();
        assert!(first == ServingStatus::Serving || first == last, "{service}: {first:?}");
        watchers.push((service, watcher, last));
    }
    assert!(end(&mut sidecar, "TERM").await < SOON);
    for (service, mut watcher, last) in watchers {
        assert_eq!(watcher.message().await.unwrap().unwrap().status(), last, "{service}");
        assert_eq!(watcher.message().await.unwrap(), None, "{service}");
    }
}

#[tokio::test]
async fn whoever_does_not_read_is_cut_off_at_the_drain_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &["--drain-timeout", "700ms"]).await;
    let mut no_room = h2::client::Builder::new();
    let mut wire = Wire::with(no_room.initial_window_size(0), &sidecar.grpc).await;
    let watching = wire.begin(WATCH, &[], framed(&[])).await.unwrap();
    arrived(&mut wire).await;
    let took = end(&mut sidecar, "TERM").await;
    assert!(took >= Duration::from_millis(700) && took < SOON, "{took:?}");
    assert!(sidecar.said().contains("the drain timeout has passed"), "{}", sidecar.said());
    drop(watching);
}

#[tokio::test]
async fn what_a_bulk_recording_was_answered_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut records = sidecar.records().await;
    let (sender, sent) = tokio::sync::mpsc::channel(16);
    let sending = tokio::spawn(async move {
        for sequence in 0_u64.. {
            let event = event(&format!("user-{sequence}"), "b", opt_out("*")).event;
            let request = pb::RecordEventsRequest { sequence, event, request_id: String::new() };
            if sender.send(request).await.is_err() {
                return sequence;
            }
        }
        0
    });
    let mut answers = records.record_events(ReceiverStream::new(sent)).await.unwrap().into_inner();
    let mut acknowledged = 0;
    let ended = loop {
        match answers.message().await {
            Ok(answer) => {
                assert_eq!(answer.expect("it ends with an error").sequence, acknowledged);
                acknowledged += 1;
            }
            Err(status) => break status,
        }
        if acknowledged == 100 {
            sidecar.signal("TERM");
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    assert!(ended.message().contains("what was answered is recorded"), "{ended:?}");
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
    assert!(sending.await.unwrap() >= acknowledged && acknowledged >= 100);

    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut checks = sidecar.checks().await;
    for sequence in 0..acknowledged {
        let asked = question(&format!("user-{sequence}"), "b", "utility");
        let answer = checks.can_send(asked).await.unwrap().into_inner();
        assert_eq!(answer.reason(), pb::Reason::OptedOutAll, "{sequence} of {acknowledged}");
    }
}

/// Asks as fast as it can until no more can be asked; gives how often it was answered. Every call
/// that was begun is answered, or was told off by a farewell that says it was not looked at.
async fn ask_until_refused(mut wire: Wire, question: Vec<u8>) -> usize {
    let mut answered = 0;
    while let Ok(call) = wire.begin(CAN_SEND, &[], framed(&question)).await {
        match call.end().await {
            Ok(_) => answered += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.message().contains("not a result of an error"), "{status:?}");
                break;
            }
        }
    }
    answered
}

/// Whether a call never left tonic's client, which gives up what it took for a connection that was
/// then told to end: one such end in twenty meets a call. No server can help that.
fn was_never_sent(status: &Status) -> bool {
    status.code() == Code::Cancelled && status.message() == "operation was canceled"
}

#[tokio::test]
async fn calls_at_full_speed_are_answered_or_refused_as_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    let question = question("u", "b", "utility");
    let mut asking = Vec::new();
    for _ in 0..4 {
        let wire = Wire::to(&sidecar.grpc).await;
        for _ in 0..4 {
            asking.push(tokio::spawn(ask_until_refused(wire.clone(), question.encode_to_vec())));
        }
    }
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = sidecar.checks().await;
        let question = question.clone();
        clients.push(tokio::spawn(async move {
            loop {
                match client.can_send(question.clone()).await {
                    Err(status) if !was_never_sent(&status) => return status,
                    _ => {}
                }
            }
        }));
    }
    eventually("a thousand checks were answered", || async {
        let (_, metrics) = sidecar.get("/metrics").await;
        let count = metrics.lines().find_map(|line| {
            line.strip_prefix("consent_check_duration_seconds_count ")?.parse::<u64>().ok()
        });
        count.unwrap() > 1_000
    })
    .await;
    assert!(end(&mut sidecar, "TERM").await < SOON);
    for asked in asking {
        assert!(asked.await.unwrap() > 0);
    }
    for client in clients {
        let status = client.await.unwrap();
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    }
}

#[tokio::test]
async fn a_check_that_waits_for_a_revision_is_answered_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let call = wire.begin(CAN_SEND, &[("grpc-timeout", "600m")], waiting()).await.unwrap();
    let call = tokio::spawn(call.end());
    arrived(&mut wire).await;
    assert!(end(&mut sidecar, "TERM").await < SOON);
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_check_that_waits_longer_than_the_drain_timeout_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &["--drain-timeout", "500ms"]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let call = tokio::spawn(wire.begin(CAN_SEND, &[], waiting()).await.unwrap().end());
    arrived(&mut wire).await;
    let took = end(&mut sidecar, "TERM").await;
    assert!(took < SOON, "{took:?}");
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn while_it_drains_it_says_so_and_takes_nothing_new() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    assert_eq!(sidecar.get("/readyz").await, (200, "ready\n".to_owned()));
    let mut wire = Wire::to(&sidecar.grpc).await;
    let call = wire.begin(CAN_SEND, &[("grpc-timeout", "2S")], waiting()).await.unwrap();
    let call = tokio::spawn(call.end());
    arrived(&mut wire).await;
    sidecar.signal("TERM");
    eventually("it drains", || async {
        sidecar.get("/readyz").await == (503, "draining\n".to_owned())
    })
    .await;
    assert_eq!(sidecar.get("/livez").await, (200, "ok\n".to_owned()));
    eventually("it takes no connections", || async {
        TcpStream::connect(&sidecar.grpc).await.is_err()
    })
    .await;
    // Whoever asks for an end twice wants it no less gracefully.
    sidecar.signal("TERM");
    sidecar.signal("INT");
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
}

#[tokio::test]
async fn an_old_connection_ends_without_failing_a_call() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-connection-age", "200ms"]).await;
    let question = question("u", "b", "utility");
    let mut client = sidecar.checks().await;
    let asked = question.encode_to_vec();
    let address = sidecar.grpc.clone();
    let old = tokio::spawn(async move {
        for _ in 0..5 {
            let started = Instant::now();
            assert!(ask_until_refused(Wire::to(&address).await, asked.clone()).await > 0);
            // Ages are spread a little, so that not all clients come back at once.
            let lived = started.elapsed();
            assert!(lived >= Duration::from_millis(150), "{lived:?}");
        }
    });
    // Whoever uses a client that connects again by itself notices nothing.
    while !old.is_finished() {
        match client.can_send(question.clone()).await {
            Err(status) if !was_never_sent(&status) => panic!("{status:?}"),
            _ => {}
        }
    }
    old.await.unwrap();
}

#[tokio::test]
async fn who_never_speaks_http2_is_hung_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut lives = Wire::to(&sidecar.grpc).await;
    let started = Instant::now();
    let silent = [&b""[..], &PREFACE[..23]].map(|first| {
        let address = sidecar.grpc.clone();
        tokio::spawn(async move {
            let mut silent = TcpStream::connect(address).await.unwrap();
            silent.write_all(first).await.unwrap();
            let mut heard = Vec::new();
            // It may say its own settings first. A reset is as good an end as any.
            let read = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut heard)).await;
            assert!(read.is_ok(), "{first:?}");
        })
    });
    for silent in silent {
        silent.await.unwrap();
    }
    assert!(started.elapsed() >= Duration::from_secs(5), "{:?}", started.elapsed());
    let (_, metrics) = sidecar.get("/metrics").await;
    assert!(metrics.contains("consent_refused_total{limit=\"handshake\"} 2\n"), "{metrics}");
    arrived(&mut lives).await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-connections", "2"]).await;
    connected(&sidecar, 0).await;
    let mut first = Wire::to(&sidecar.grpc).await;
    let second = Wire::to(&sidecar.grpc).await;
    connected(&sidecar, 2).await;
    // One more is for probes alone.
    let mut third = Wire::to(&sidecar.grpc).await;
    third.call("grpc.health.v1.Health/Check", &[]).await.unwrap();
    let question = question("u", "b", "utility").encode_to_vec();
    let refused = third.call(CAN_SEND, &question).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    drop(third);
    arrived(&mut first).await;
    let (_, metrics) = sidecar.get("/metrics").await;
    assert!(metrics.contains("consent_refused_total{limit=\"connections\"} 1\n"), "{metrics}");
    drop(second);
    connected(&sidecar, 1).await;
    arrived(&mut Wire::to(&sidecar.grpc).await).await;
}

#[tokio::test]
async fn calls_are_bounded_and_the_one_too_many_is_told_when_to_try_again() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-in-flight", "1"]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let forever = [("grpc-timeout", "1H")];
    let waits = wire.begin(CAN_SEND, &forever, waiting()).await.unwrap();
    eventually("it waits", || async {
        sidecar.get("/metrics").await.1.contains("consent_in_flight{pool=\"checks\"} 1\n")
    })
    .await;
    // What can be answered at once needs no place.
    let question = question("u", "b", "utility").encode_to_vec();
    wire.call(CAN_SEND, &question).await.unwrap();
    let refused = wire.begin(CAN_SEND, &forever, waiting()).await.unwrap().end().await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let retry = refused.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    assert!(retry.is_some_and(|delay| delay > Duration::ZERO), "{refused:?}");
    let (_, metrics) = sidecar.get("/metrics").await;
    assert!(metrics.contains("consent_refused_total{limit=\"in_flight\"} 1\n"), "{metrics}");
    // A probe must not have a busy process ended for being busy.
    wire.call("grpc.health.v1.Health/Check", &[]).await.unwrap();
    // Whoever goes away makes room.
    drop(waits);
    eventually("there is room again", || {
        let mut wire = wire.clone();
        async move {
            let waits = wire.begin(CAN_SEND, &[("grpc-timeout", "100m")], waiting()).await.unwrap();
            waits.end().await.unwrap_err().code() == Code::DeadlineExceeded
        }
    })
    .await;
}

#[tokio::test]
async fn a_revision_is_waited_for_until_the_deadline_and_no_longer() {
    use pb::batch_can_send_result::Result as Item;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut records = sidecar.records().await;
    let recorded = records.record_event(event("u", "b", opt_out("*"))).await.unwrap();
    let revision = recorded.into_inner().revision;
    let mut wire = Wire::to(&sidecar.grpc).await;
    let ask = |min_revision| pb::CanSendRequest { min_revision, ..question("u", "b", "utility") };
    // One that was reached takes no wait: it is answered though the deadline has passed.
    let reached = framed(&ask(revision).encode_to_vec());
    let call = wire.begin(CAN_SEND, &[("grpc-timeout", "0m")], reached).await.unwrap();
    let answer = pb::CanSendResponse::decode(&*call.end().await.unwrap()).unwrap();
    assert_eq!((answer.revision, answer.reason()), (revision, pb::Reason::OptedOutAll));

    // One that never comes is waited for until about the client's deadline, or five seconds.
    let never = framed(&ask(u64::MAX).encode_to_vec());
    for (deadline, least) in [("300m", 200), ("300000u", 200), ("1H", 5_000)] {
        let started = Instant::now();
        let headers = [("grpc-timeout", deadline)];
        let call = wire.begin(CAN_SEND, &headers, never.clone()).await.unwrap();
        let missed = call.end().await.unwrap_err();
        assert_eq!(missed.code(), Code::DeadlineExceeded, "{missed:?}");
        assert!(missed.message().contains(&format!("the table holds {revision}")), "{missed:?}");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(least) && took < PATIENCE, "{took:?}");
    }

    // One that arrives during the wait is answered then.
    let next = framed(&ask(revision + 1).encode_to_vec());
    let waiting = tokio::spawn(wire.begin(CAN_SEND, &[], next).await.unwrap().end());
    arrived(&mut wire).await;
    let recorded = records.record_event(event("u", "b", inbound(""))).await.unwrap();
    assert_eq!(recorded.into_inner().revision, revision + 1);
    let answer = pb::CanSendResponse::decode(&*waiting.await.unwrap().unwrap()).unwrap();
    assert_eq!((answer.revision, answer.reason()), (revision + 1, pb::Reason::ReplyAfterOptOut));

    // A batch has one deadline, whatever its items ask for; the others are answered.
    let requests = [u64::MAX, 0, u64::MAX - 1, revision, u64::MAX - 2].map(ask).to_vec();
    let batch = framed(&pb::BatchCanSendRequest { requests }.encode_to_vec());
    let started = Instant::now();
    let method = "consent.v1.ConsentService/BatchCanSend";
    let call = wire.begin(method, &[("grpc-timeout", "300m")], batch).await.unwrap();
    let batch = pb::BatchCanSendResponse::decode(&*call.end().await.unwrap()).unwrap();
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    let codes = batch.results.into_iter().map(|result| match result.result {
        Some(Item::Error(error)) if error.field == "min_revision" => error.code,
        Some(Item::Response(_)) => 0,
        other => panic!("{other:?}"),
    });
    assert_eq!(codes.collect::<Vec<_>>(), [4, 0, 4, 0, 4]);
}
