//! What real clients do on the wire, and what no client of ours can be made to do: frames that are written by hand.

use std::path::Path;
use std::process::Command;

use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use consentd::grpc::pb;

use crate::sidecar::{BINARY, PATIENCE, Sidecar, eventually, framed, ledger_in, question, run};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A call of `CanSend`, as gRPC core sends it: a `WINDOW_UPDATE` follows the HEADERS at once.
fn call(stream: u32, authority: &[u8], timeout: &str, min_revision: u64) -> Vec<u8> {
    call_encoded(stream, authority, false, timeout, min_revision)
}

/// The same, whose authority may be encoded by Huffman's code, as Node does.
fn call_encoded(
    stream: u32,
    authority: &[u8],
    is_huffman: bool,
    timeout: &str,
    min_revision: u64,
) -> Vec<u8> {
    let text = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
    let literal = |name: &str, value: &[u8]| [vec![0], text(name.as_bytes()), text(value)].concat();
    // Indexed: POST, and http.
    let mut block = vec![0x83, 0x86];
    block.extend(literal(":path", b"/consent.v1.ConsentService/CanSend"));
    // With incremental indexing, as real clients do.
    block.push(0x41);
    let mut authority = text(authority);
    if is_huffman {
        authority[0] |= 0x80;
    }
    block.extend(authority);
    block.extend(literal("content-type", b"application/grpc"));
    block.extend(literal("te", b"trailers"));
    block.extend(literal("grpc-timeout", timeout.as_bytes()));
    let question = pb::CanSendRequest { min_revision, ..question("1", "acme", "utility") };
    [
        frame(HEADERS, END_HEADERS, stream, &block),
        frame(WINDOW_UPDATE, 0, stream, &[0, 0, 1, 0]),
        frame(DATA, END_STREAM, stream, &framed(&question.encode_to_vec())),
    ]
    .concat()
}

struct Frames<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    async fn begin(stream: S) -> Self {
        let mut frames = Self(stream);
        frames.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        frames
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("the sidecar reads");
    }

    /// The next frame; `None` at the end of the connection.
    async fn next(&mut self) -> Option<Frame> {
        timeout(PATIENCE, async {
            let mut header = [0; 9];
            self.0.read_exact(&mut header).await.ok()?;
            let [a, b, c, kind, flags, stream @ ..] = header;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            Some(Frame { kind, flags, stream: u32::from_be_bytes(stream), payload })
        })
        .await
        .expect("frames, or the connection's end")
    }

    async fn next_of(&mut self, what: &str, is_it: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let Some(frame) = self.next().await else {
                panic!("the connection ended before {what}")
            };
            assert!(is_it(&frame) || frame.kind != GOAWAY, "{what}: {:?}", frame.payload);
            if is_it(&frame) {
                return frame;
            }
        }
    }

    /// Reads until the last frame of a call that is answered.
    async fn answer(&mut self, stream: u32) -> Frame {
        self.next_of("the answer", |frame| {
            let is_last = frame.kind == RST_STREAM || frame.flags & END_STREAM != 0;
            frame.stream == stream && is_last
        })
        .await
    }
}

fn goaway(frame: &Frame) -> (u32, u32) {
    let (last, code) = frame.payload.split_at(4);
    let number = |bytes: &[u8]| u32::from_be_bytes(*bytes.first_chunk().unwrap());
    (number(last), number(code))
}

/// Has a call under way when the connection is ended gracefully, and lets another one, and its `WINDOW_UPDATE`, cross the
/// last GOAWAY.
async fn a_call_crosses_the_last_goaway(address: &str, end: impl FnOnce()) {
    let mut frames = Frames::begin(TcpStream::connect(address).await.unwrap()).await;
    // It waits for a revision that never comes, and is answered at its deadline.
    frames.send(&call(1, b"sidecar", "3S", u64::MAX)).await;
    end();
    let first = frames.next_of("the first GOAWAY", |frame| frame.kind == GOAWAY).await;
    assert_eq!(goaway(&first), (u32::MAX >> 1, 0));
    let is_ping = |frame: &Frame| frame.kind == PING && frame.flags & ACK == 0;
    let ping = frames.next_of("the PING after it", is_ping).await;
    // A call before the acknowledgement is one that is answered.
    let mut crossing = call(3, b"sidecar", "5S", 0);
    crossing.extend(frame(PING, ACK, 0, &ping.payload));
    crossing.extend(call(5, b"sidecar", "5S", 0));
    crossing.extend(call(7, b"sidecar", "5S", 0));
    frames.send(&crossing).await;
    let mut last = None;
    let mut answered = Vec::new();
    while let Some(frame) = frames.next().await {
        if frame.kind == GOAWAY {
            last = Some(goaway(&frame));
        } else if frame.flags & END_STREAM != 0 && matches!(frame.kind, HEADERS | DATA) {
            answered.push(frame.stream);
        }
        assert_ne!(frame.kind, RST_STREAM);
    }
    assert_eq!(last, Some((3, 0)), "the last stream that was taken, and NO_ERROR");
    assert_eq!(answered, [3, 1]);
}

#[tokio::test]
async fn a_drain_loses_no_call_whose_window_update_crosses_the_last_goaway() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    let address = sidecar.grpc.clone();
    a_call_crosses_the_last_goaway(&address, || sidecar.signal("TERM")).await;
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
}

#[tokio::test]
async fn an_old_connection_loses_no_call_whose_window_update_crosses_the_last_goaway() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-connection-age", "1s"]).await;
    a_call_crosses_the_last_goaway(&sidecar.grpc, || ()).await;
}

#[tokio::test]
async fn a_path_as_the_authority_is_served_over_a_unix_socket_and_told_of_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("consentd.sock");
    let sidecar = Sidecar::live(folder.path(), &["--unix", path.to_str().unwrap()]).await;
    let count = |metrics: &str, name: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap().parse().unwrap()
    };
    let (replaced, refused) =
        ("consent_authorities_replaced_total", "consent_refused_total{limit=\"authority\"}");
    for (authority, is_huffman) in [
        (&b"%2Frun%2Fconsentd.sock"[..], false),
        (b"/run/consentd.sock", false),
        (b"\0consentd", false),
        // "/run/consentd.sock" by Huffman's code.
        (b"\x62\xcb\x6a\x60\x87\xa9\x05\xa9\x32\x2e\x83\x93\xaf", true),
    ] {
        let mut frames = Frames::begin(UnixStream::connect(&path).await.unwrap()).await;
        for stream in [1, 3] {
            frames.send(&call_encoded(stream, authority, is_huffman, "9S", 0)).await;
            let answer = frames.answer(stream).await;
            assert_eq!(answer.kind, HEADERS, "{authority:?}");
        }
        let mut frames = Frames::begin(TcpStream::connect(&sidecar.grpc).await.unwrap()).await;
        frames.send(&call_encoded(1, authority, is_huffman, "9S", 0)).await;
        assert_eq!(frames.answer(1).await.kind, RST_STREAM, "{authority:?}");
    }
    let (_, metrics) = sidecar.get("/metrics").await;
    assert_eq!((count(&metrics, replaced), count(&metrics, refused)), (8, 4));
    let said = sidecar.said();
    assert_eq!(said.matches("invalid :authority").count(), 1, "once a minute: {said}");
}

/// What the gRPC port says to HTTP/1.1.
async fn http1(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    timeout(PATIENCE, read).await.expect("an answer").expect("text");
    answer
}

#[tokio::test]
async fn json_is_refused_in_words_that_its_sender_reads() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let path = "/consent.v1.ConsentService/CanSend";
    for request in [
        format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
        ),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        "PUT / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
    ] {
        let answer = http1(&sidecar.grpc, &request).await;
        assert!(answer.starts_with("HTTP/1.1 415 "), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(body.starts_with("this port speaks gRPC") && body.lines().count() == 1, "{body}");
    }

    let stream = TcpStream::connect(&sidecar.grpc).await.unwrap();
    let (wire, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for (content_type, status) in [("application/json", 415), ("application/grpc", 200)] {
        for method in ["CanSend", "BatchCanSend", "StreamCanSend", "FilterRecipients"] {
            let request =
                http::Request::post(format!("http://a/consent.v1.ConsentService/{method}"))
                    .header("content-type", content_type);
            let mut wire = wire.clone().ready().await.unwrap();
            let (answer, mut body) = wire.send_request(request.body(()).unwrap(), false).unwrap();
            body.send_data("{\"user_id\": \"1\"}".into(), true).unwrap();
            let (head, mut body) = answer.await.unwrap().into_parts();
            assert_eq!(head.status, status, "{method}");
            let mut text = Vec::new();
            while let Some(part) = body.data().await {
                text.extend_from_slice(&part.unwrap());
            }
            if status == 415 {
                assert_eq!(head.headers["content-type"], "text/plain");
                let text = String::from_utf8(text).unwrap();
                assert!(text.ends_with("application/grpc+proto\n"), "{text}");
            } else {
                let trailers = body.trailers().await.unwrap().unwrap_or(head.headers);
                assert_eq!(trailers["grpc-status"], "3", "{method}: {trailers:?}");
                let message = trailers["grpc-message"].to_str().unwrap();
                assert!(message.contains("JSON is not supported"), "{method}: {message}");
            }
        }
    }
}

#[tokio::test]
async fn messages_of_statuses_are_escaped_no_more_than_the_specification_says() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let stream = TcpStream::connect(&sidecar.grpc).await.unwrap();
    let (wire, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for (method, expected) in [
        ("CanSend", "category: unknown class \"marketin\", did you mean marketing? It is one of"),
        ("CanSand", "did you mean consent.v1.ConsentService/CanSend? (served: "),
    ] {
        let request = http::Request::post(format!("http://a/consent.v1.ConsentService/{method}"))
            .header("content-type", "application/grpc");
        let mut wire = wire.clone().ready().await.unwrap();
        let (answer, mut body) = wire.send_request(request.body(()).unwrap(), false).unwrap();
        let question = question("1", "acme", "marketin");
        let _ = body.send_data(framed(&question.encode_to_vec()).into(), true);
        let (head, mut body) = answer.await.unwrap().into_parts();
        let trailers = body.trailers().await.unwrap().unwrap_or(head.headers);
        let message = trailers["grpc-message"].to_str().unwrap();
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn status_fails_until_the_table_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing listens there, so that the table is loaded never.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ledger = format!("redis://{nowhere}");
    let loading =
        Sidecar::try_start_by(Command::new(BINARY), &ledger, &[], &[]).expect("it waits for Redis");
    for flags in [&["status"][..], &["status", "--json"]] {
        let (code, said, error) = run(&[flags, &["--addr", &loading.grpc]].concat());
        assert_eq!(code, 1, "{said}{error}");
        assert!(said.to_lowercase().contains("loading"), "{said}");
    }
    let live = Sidecar::live(folder.path(), &[]).await;
    assert_eq!(run(&["status", "--addr", &live.grpc]).0, 0);
}

#[tokio::test]
async fn a_unix_socket_is_listed_under_its_own_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("consentd.sock");
    let flags = ["--unix", path.to_str().unwrap()];
    let _sidecar = Sidecar::start(&ledger_in(folder.path()), &flags);
    let listed = |path: &Path| {
        let sockets = std::fs::read_to_string("/proc/net/unix").expect("Linux lists its sockets");
        sockets.lines().any(|line| line.ends_with(path.to_str().unwrap()))
    };
    eventually("it is listed", || async { listed(&path) }).await;
    assert!(!listed(&folder.path().join("consentd.sock.new")));
}
