//! What a receiver refuses, and with which status.

use std::io::ErrorKind;
use std::time::Duration;

use consentd::grpc::pb::Reason::{NoConsent, OptedOutAll};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{
    Answer, Files, SECRET, TOKEN, USER, acme, deliver, file, fixture, post, reason, send, sign,
};
use crate::sidecar::Sidecar;

async fn receiver(files: &Files) -> Sidecar {
    files.serve(&file(files.folder.path()), &[]).await
}

#[tokio::test]
async fn only_what_the_app_signed_is_recorded() {
    let files = Files::new(&acme());
    let sidecar = receiver(&files).await;
    let address = &sidecar.webhook;
    let stop = fixture("inbound_stop", super::client::NUMBER);
    let right = sign(SECRET, &stop);
    let upper = format!("sha256={}", right["sha256=".len()..].to_uppercase());
    let other = fixture("inbound_text", super::client::NUMBER);
    let long = format!("{right}00");
    for signature in [
        "",
        "sha256=",
        "sha1=0000",
        &right["sha256=".len()..],
        &right[..right.len() - 2],
        &long,
        &sign("a stale secret, of last year", &stop),
        &sign("", &stop),
        &sign(SECRET, &other),
        &format!("sha256={}", "0".repeat(64)),
        &format!("sha256={}", "g".repeat(64)),
        &format!("sha512={}", &right["sha256=".len()..]),
    ] {
        let answer = post(address, signature, &stop).await;
        assert_eq!(answer.status, 403, "{signature}: {answer:?}");
    }
    // One space more: the bytes are signed, and not what they mean.
    let spaced = [&stop[..], b" "].concat();
    assert_eq!(post(address, &right, &spaced).await.status, 403);
    let head = format!("POST /webhook HTTP/1.1\r\ncontent-length: {}\r\n", stop.len());
    assert_eq!(send(address, &head, &stop).await.unwrap().status, 403, "unsigned");
    let twice = format!("{head}x-hub-signature-256: {right}\r\nx-hub-signature-256: {right}\r\n");
    assert_eq!(send(address, &twice, &stop).await.unwrap().status, 403, "signed twice");
    assert_eq!(reason(&sidecar, USER, "acme", "marketing").await, NoConsent);
    let said = sidecar.said();
    assert_eq!(
        said.matches("refused webhook requests with 403").count(),
        1,
        "once a while: {said}"
    );
    assert!(!said.contains(SECRET) && !said.contains(&right));
    assert_eq!(post(address, &upper, &stop).await.status, 200, "hexadecimal has no case");
    super::client::answers(&sidecar, USER, "acme", "marketing", OptedOutAll).await;
}

#[tokio::test]
async fn what_is_no_payload_has_its_status() {
    let files = Files::new(&acme());
    let sidecar = receiver(&files).await;
    let address = &sidecar.webhook;
    let deep = [vec![b'['; 200_000], vec![b']'; 200_000]].concat();
    let padded = |length: usize| {
        let mut body = fixture("inbound_stop", super::client::NUMBER);
        body.resize(length, b' ');
        body
    };
    for (body, status) in [
        (b"".to_vec(), 400),
        (b"garbage".to_vec(), 400),
        (b"[]".to_vec(), 400),
        (b"{\"entry\":\xff}".to_vec(), 400),
        (deep, 400),
        (b"{}".to_vec(), 200),
        (padded(3 * 1024 * 1024), 200),
        (padded(3 * 1024 * 1024 + 1), 413),
        (padded(4_000_000), 413),
        (padded(12_000_000), 413),
    ] {
        assert_eq!(deliver(address, &body).await, status, "{} bytes", body.len());
    }
    // The same without its length being told before.
    let chunked = |body: &[u8]| {
        let mut chunks = Vec::new();
        for chunk in body.chunks(50_000) {
            chunks.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            chunks.extend_from_slice(chunk);
            chunks.extend_from_slice(b"\r\n");
        }
        chunks.extend_from_slice(b"0\r\n\r\n");
        chunks
    };
    for (length, status) in [(3 * 1024 * 1024, 200), (4_000_000, 413)] {
        let body = padded(length);
        let head = format!(
            "POST /webhook HTTP/1.1\r\ntransfer-encoding: chunked\r\n\
             x-hub-signature-256: {}\r\n",
            sign(SECRET, &body)
        );
        let answer = send(address, &head, &chunked(&body)).await.unwrap();
        assert_eq!(answer.status, status, "{length} bytes in chunks");
    }
    let (_, metrics) = sidecar.get("/metrics").await;
    assert!(metrics.contains("consent_webhook_requests_total{code=\"413\"} 4\n"), "{metrics}");
    assert!(metrics.contains("consent_webhook_requests_total{code=\"500\"} 0\n"), "{metrics}");
}

async fn get(sidecar: &Sidecar, path: &str) -> Answer {
    let head = format!("GET {path} HTTP/1.1\r\n");
    send(&sidecar.webhook, &head, b"").await.unwrap()
}

#[tokio::test]
async fn the_handshake_says_the_challenge_back_to_who_knows_the_token() {
    let files = Files::new(&acme());
    let sidecar = receiver(&files).await;
    let token = TOKEN.replace(' ', "%20");
    let asked = |token: &str, rest: &str| format!("/webhook?hub.verify_token={token}&{rest}");
    let right = "hub.mode=subscribe&hub.challenge=1158201444";
    let answer = get(&sidecar, &asked(&token, right)).await;
    assert_eq!((answer.status, &*answer.body), (200, "1158201444"));
    assert!(answer.head.contains("content-type: text/plain"), "{}", answer.head);
    for (path, status) in [
        (asked("wrong", right), 403),
        (asked("", right), 403),
        (asked(&token[..10], right), 403),
        ("/webhook".to_owned(), 403),
        (asked(&token, "hub.mode=unsubscribe&hub.challenge=1"), 400),
        (asked(&token, "hub.mode=subscribe"), 400),
        (asked(&token, &format!("hub.mode=subscribe&hub.challenge={}", "1".repeat(257))), 400),
        ("/".to_owned(), 404),
        ("/metrics".to_owned(), 404),
    ] {
        let answer = get(&sidecar, &path).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(!answer.body.contains(TOKEN));
    }
    let answer = send(&sidecar.webhook, "DELETE /webhook HTTP/1.1\r\n", b"").await.unwrap();
    assert_eq!(answer.status, 405);
    assert!(answer.head.contains("\r\nallow: "), "{}", answer.head);
}

/// Begins a request without a signature whose body is long and does not arrive whole.
async fn unfinished(address: &str, sent: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("POST /webhook HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", 3 * 1024 * 1024);
    stream.write_all(head.as_bytes()).await.unwrap();
    // It may be refused before all of this is sent.
    let _ = timeout(Duration::from_secs(2), stream.write_all(&vec![b' '; sent])).await;
    stream
}

/// Whether a connection is open, and nothing was answered on it yet.
fn is_held(stream: TcpStream) -> bool {
    // What tokio gives back does not wait.
    let peeked = stream.into_std().unwrap().peek(&mut [0; 1]);
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[tokio::test]
async fn unsigned_bodies_that_do_not_arrive_keep_no_signed_one_out() {
    let files = Files::new(&acme());
    let sidecar = receiver(&files).await;
    let status = format!("/proc/{}/status", sidecar.pid());
    let peak = || {
        let status = std::fs::read_to_string(&status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
        line.trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
    };
    let before = peak();
    let stop = fixture("inbound_stop", super::client::NUMBER);
    for (connections, sent) in [(64, 2_000_000), (100, 10), (300, 10)] {
        let address = &sidecar.webhook;
        let slow = (0..connections).map(|_| unfinished(address, sent));
        let slow = futures_util::future::join_all(slow).await;
        assert_eq!(deliver(address, &stop).await, 200, "{connections} send {sent}");
        let held = slow.into_iter().map(is_held).filter(|held| *held).count();
        assert!(held > 0, "{connections} send {sent}: it waited until they were given up");
    }
    super::client::answers(&sidecar, USER, "acme", "marketing", OptedOutAll).await;
    let grown = peak() - before;
    assert!(grown < 48, "{grown} MiB: a third of the default budget, and buffers");
}

#[tokio::test]
async fn more_updates_than_fit_into_one_append_are_recorded_too() {
    let files = Files::new(&acme());
    let sidecar = receiver(&files).await;
    let message = |user: u32| {
        format!(
            r#"{{"from":"1555{user:07}","id":"wamid.{user}","timestamp":"1749416400","type":"text",
            "text":{{"body":"stop"}}}}"#
        )
    };
    let messages: Vec<_> = (0..2_500).map(message).collect();
    let body = format!(
        r#"{{"object":"whatsapp_business_account","entry":[{{"changes":[{{"field":"messages",
        "value":{{"metadata":{{"phone_number_id":"{}"}},"messages":[{}]}}}}]}}]}}"#,
        super::client::NUMBER,
        messages.join(",")
    );
    assert_eq!(deliver(&sidecar.webhook, body.as_bytes()).await, 200);
    for user in [0, 1_023, 1_024, 2_499] {
        let user = format!("1555{user:07}");
        super::client::answers(&sidecar, &user, "acme", "utility", OptedOutAll).await;
    }
}

#[tokio::test]
async fn a_number_that_is_nobodys_is_told_of_once_and_costs_nothing_else() {
    let files = Files::new(&acme());
    let sidecar = receiver(&files).await;
    for _ in 0..20 {
        assert_eq!(deliver(&sidecar.webhook, &fixture("inbound_stop", "77")).await, 200);
        // What is no number's id is not said back.
        assert_eq!(deliver(&sidecar.webhook, &fixture("inbound_stop", "someone")).await, 200);
    }
    let (_, metrics) = sidecar.get("/metrics").await;
    let cause = "consent_webhook_passed_over_total{cause=\"unknown_number\"} 40\n";
    assert!(metrics.contains(cause), "{metrics}");
    let said = sidecar.said();
    assert_eq!(said.matches("a phone_number_id that is not configured").count(), 1, "{said}");
    assert!(said.contains("\"phone_number_id\":\"77\"") && !said.contains("someone"), "{said}");
}
