//! The admin listener under clients that mean no good, or are broken.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::sidecar::{PATIENCE, Sidecar, eventually};

/// As many as the listener takes at once.
const PLACES: usize = 64;
/// As long as it waits for a request's head.
const HEADERS: Duration = Duration::from_secs(5);

/// Asks for `/livez`; whether there was an answer.
async fn lives(sidecar: &Sidecar) -> bool {
    let Ok(mut stream) = TcpStream::connect(&sidecar.admin).await else { return false };
    let asked = b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    let answered = match stream.write_all(asked).await {
        Ok(()) => stream.read_to_string(&mut answer).await,
        Err(error) => Err(error),
    };
    answered.is_ok() && answer.starts_with("HTTP/1.1 200")
}

/// Connections that were opened, have sent this much, and say no more.
async fn silent(sidecar: &Sidecar, count: usize, sent: &[u8]) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(&sidecar.admin).await.unwrap();
        // One for which there is no room may be gone already.
        let _ = stream.write_all(sent).await;
        streams.push(stream);
    }
    streams
}

/// Reads until the other side has ended the connection.
async fn ended(mut stream: TcpStream) {
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    // An end is as good as a reset.
    let _ = read.expect("the connection was ended");
}

fn open_files(sidecar: &Sidecar) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", sidecar.pid())).unwrap().count()
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let before = open_files(&sidecar);
    for sent in
        [&b""[..], b"GET /livez HTTP/1.1\r\nhost:", b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n"]
    {
        // They never speak, stop in the middle, or are silent after their answer.
        let streams = silent(&sidecar, 5 * PLACES, sent).await;
        assert!(open_files(&sidecar) <= before + PLACES + 8, "every connection has a file");
        let started = Instant::now();
        eventually("a probe is answered", || lives(&sidecar)).await;
        assert!(started.elapsed() < HEADERS, "{:?}", started.elapsed());
        drop(streams);
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_ends() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let started = Instant::now();
    let mut streams = silent(&sidecar, 8, b"").await;
    streams.extend(silent(&sidecar, 8, b"GET /livez HTTP/1.1\r\nhost:").await);
    streams.extend(silent(&sidecar, 8, b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await);
    let mut ends: JoinSet<()> = streams.into_iter().map(ended).collect();
    while let Some(end) = ends.join_next().await {
        end.unwrap();
    }
    let took = started.elapsed();
    assert!(took >= HEADERS && took < 3 * HEADERS, "{took:?}");
}

#[tokio::test]
async fn more_connections_than_there_is_room_for_are_turned_away_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    // Answers that nobody reads are worth a moment's grace each, however many there are.
    let hungry = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n".repeat(1_000);
    let streams = silent(&sidecar, 2 * PLACES, &hungry).await;
    eventually("probes are answered again", || lives(&sidecar)).await;
    let (_, metrics) = sidecar.get("/metrics").await;
    assert!(metrics.contains("consent_refused_total{limit=\"admin\"}"), "{metrics}");
    drop(streams);
}

#[tokio::test]
async fn a_process_out_of_files_says_so_once_and_goes_on_when_it_has_some_again() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let pid = Pid::from_raw(i32::try_from(sidecar.pid()).unwrap());
    let few = u64::try_from(open_files(&sidecar) + 8).unwrap();
    let limit = Rlimit { current: Some(few), ..getrlimit(Resource::Nofile) };
    let before = prlimit(pid, Resource::Nofile, limit).unwrap();
    let streams = silent(&sidecar, 16, b"").await;
    let complaint = "cannot accept connections";
    eventually("it says so", || async { sidecar.said().contains(complaint) }).await;
    // Those that it has end in time, and the others are accepted in their place, and end.
    eventually("a probe is answered", || lives(&sidecar)).await;
    prlimit(pid, Resource::Nofile, before).unwrap();
    drop(streams);
    let (_, metrics) = sidecar.get("/metrics").await;
    assert!(metrics.contains("consent_refused_total{limit=\"accept\"}"), "{metrics}");
    assert_eq!(sidecar.said().matches(complaint).count(), 1, "{}", sidecar.said());
}

#[tokio::test]
async fn answers_that_nobody_reads_hold_up_no_shutdown() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    let hungry = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n".repeat(1_000);
    let _streams = (silent(&sidecar, 4, &hungry).await, silent(&sidecar, 4, b"GET").await);
    let started = Instant::now();
    sidecar.signal("TERM");
    assert!(sidecar.ended().await.success(), "{}", sidecar.said());
    assert!(started.elapsed() < HEADERS, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_head_may_be_only_so_long() {
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &[]).await;
    let mut stream = TcpStream::connect(&sidecar.admin).await.unwrap();
    let head = format!("GET /livez HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(64 * 1024));
    // It may end the connection before it has read all.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert!(lives(&sidecar).await);
}
