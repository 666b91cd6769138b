//! While the ledger is being opened, which may take long: probes are answered, and a signal ends it.

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::sidecar::{BINARY, PATIENCE, eventually};

/// Asks an HTTP server for a path; the whole answer, if there is one.
async fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    let read = timeout(Duration::from_secs(1), stream.read_to_string(&mut answer)).await;
    read.ok()?.ok()?;
    Some(answer)
}

#[tokio::test]
async fn probes_are_answered_and_a_signal_ends_it_while_the_ledger_is_opened() {
    // A Redis that takes connections and never answers.
    let redis = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ledger = format!("redis://{}", redis.local_addr().unwrap());
    let free = TcpListener::bind("127.0.0.94:0").await.unwrap();
    let admin = free.local_addr().unwrap().to_string();
    drop(free);
    let mut child = Command::new(BINARY)
        .args(["serve", "--ledger", &ledger, "--listen", "127.0.0.1:0", "--admin", &admin])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it says that it opens the ledger", || async {
        let answer = get(&admin, "/readyz").await;
        answer.is_some_and(|answer| {
            answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("opening the ledger\n")
        })
    })
    .await;
    let alive = get(&admin, "/livez").await.expect("it is alive");
    assert!(alive.starts_with("HTTP/1.1 200 ") && alive.ends_with("ok\n"), "{alive}");
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let ended = tokio::task::spawn_blocking(move || child.wait());
    let status = timeout(PATIENCE, ended).await.expect("it ends").unwrap().unwrap();
    assert!(status.success(), "{status}");
}
