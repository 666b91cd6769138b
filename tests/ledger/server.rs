//! A Redis of a test's own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::{PARTITIONS, shape};
use consentd_core::partition::Layout;
use consentd_ledger::{Shape, Target, TargetOptions, create};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::PATIENCE;
use super::servers::{NOT_INSTALLED, ServerKind, free_port};

/// Few, so that pairs share them.
pub(super) const BUCKETS: u32 = 16;

/// A redis-server on a socket in a folder; killed with this value.
pub(super) struct Server {
    child: Child,
    pub(super) socket: PathBuf,
    /// The port of a node of a Cluster.
    port: Option<u16>,
}

impl Server {
    /// Starts it there, with settings beyond the usual.
    pub(super) fn start(folder: &Path, settings: &[&str]) -> Self {
        Self::start_kind(ServerKind::chosen(), folder, settings)
    }

    /// Starts one of this kind, for a test of what that kind does.
    pub(super) fn start_kind(kind: ServerKind, folder: &Path, settings: &[&str]) -> Self {
        Self::start_at(None, kind, folder, settings)
    }

    /// Starts a Cluster of one node, which serves all slots.
    pub(super) fn start_cluster(folder: &Path) -> Self {
        let (port, bus) = (free_port(), free_port().to_string());
        let config = folder.join("nodes.conf").display().to_string();
        let settings = [
            ["--cluster-enabled", "yes"],
            ["--cluster-config-file", &config],
            ["--cluster-port", &bus],
            ["--cluster-node-timeout", "1000"],
        ];
        let server = Self::start_at(Some(port), ServerKind::chosen(), folder, &settings.concat());
        in_a_runtime({
            let socket = server.socket.clone();
            async move {
                let mut client = client(&socket).await;
                let mut slots = redis::cmd("CLUSTER");
                slots.arg("ADDSLOTSRANGE").arg(0).arg(16_383);
                let () = slots.query_async(&mut client).await.unwrap();
                let begun = Instant::now();
                loop {
                    let mut asked = redis::cmd("CLUSTER");
                    let info = asked.arg("INFO").query_async::<String>(&mut client).await.unwrap();
                    if info.contains("cluster_state:ok") {
                        return;
                    }
                    assert!(begun.elapsed() < PATIENCE, "the Cluster does not serve: {info}");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        server
    }

    fn start_at(port: Option<u16>, kind: ServerKind, folder: &Path, settings: &[&str]) -> Self {
        let socket = folder.join("redis.sock");
        let mut command = Command::new(kind.program());
        command.arg("--port").arg(port.unwrap_or(0).to_string()).args(["--bind", "127.0.0.1"]);
        command.arg("--unixsocket").arg(&socket).arg("--dir").arg(folder);
        command.args(["--save", ""]).args(settings);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.expect(NOT_INSTALLED);
        let server = Self { child, socket, port };
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(&server.socket).is_err() {
            assert!(begun.elapsed() < PATIENCE, "redis-server does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.port.is_some()
    }

    pub(super) fn target(&self) -> Target {
        self.target_as(TargetOptions::default())
    }

    pub(super) fn target_as(&self, options: TargetOptions) -> Target {
        let url = match self.port {
            None => format!("redis+unix://{}", self.socket.display()),
            Some(port) => format!("redis+cluster://127.0.0.1:{port}"),
        };
        Target::new(&url, options).unwrap()
    }

    /// Makes a ledger in it.
    pub(super) fn create(&self) {
        let target = self.target();
        let shape = match self.port {
            None => shape(BUCKETS),
            Some(_) => Shape { layout: Layout::new(PARTITIONS, 1).unwrap(), buckets: BUCKETS },
        };
        in_a_runtime(async move { create(target, shape).await.unwrap() });
    }

    /// What redis-rs' own client says to it, beside any ledger.
    pub(super) async fn client(&self) -> redis::aio::MultiplexedConnection {
        client(&self.socket).await
    }

    /// Sends it a signal, by its number.
    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

/// Runs a future on a thread of its own: the caller may be in a runtime.
fn in_a_runtime<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let ran = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(future)
    });
    ran.join().unwrap()
}

async fn client(socket: &Path) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(format!("redis+unix://{}", socket.display())).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Passes connections on to a socket; closes the first on which a script that writes is answered,
/// before the answer, and once whoever is told of it says so.
pub(super) async fn lossy(
    listener: UnixListener,
    to: PathBuf,
    losing: mpsc::Sender<oneshot::Sender<()>>,
) {
    let lost = Arc::new(AtomicBool::new(false));
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = UnixStream::connect(&to).await.unwrap();
        let (lost, losing) = (Arc::clone(&lost), losing.clone());
        tokio::spawn(async move {
            let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            let mut writes = false;
            loop {
                tokio::select! {
                    length = client.read(&mut asked) => {
                        let Ok(length @ 1..) = length else { return };
                        writes |= asked[..length].windows(9).any(|part| part == b"EVALSHA\r\n");
                        if server.write_all(&asked[..length]).await.is_err() { return }
                    }
                    length = server.read(&mut answered) => {
                        let Ok(length @ 1..) = length else { return };
                        let ours = &answered[..length];
                        // The append script's reply to one change: how many received the announcement, the outcome, and the heads.
                        let is_outcome = writes && ours.starts_with(b"*3\r\n:");
                        if is_outcome && !lost.swap(true, Ordering::SeqCst) {
                            let (go_on, told) = oneshot::channel();
                            losing.send(go_on).await.unwrap();
                            return told.await.unwrap();
                        }
                        if client.write_all(ours).await.is_err() { return }
                    }
                }
            }
        });
    }
}

/// Passes connections on to a socket; holds the first append back until whoever is told of it says
/// so.
pub(super) async fn holding(
    listener: UnixListener,
    to: PathBuf,
    held: mpsc::Sender<oneshot::Sender<()>>,
) {
    /// No script but the one that appends has this key.
    const TEXT: &[u8] = b"{consent:0}:text";
    let start = |asked: &[u8]| asked.windows(TEXT.len()).any(|part| part == TEXT).then_some(0);
    holding_from(listener, to, start, held).await;
}

/// Passes connections on to a socket; where a connection first says `words`, what it says from there on
/// waits until the server has answered what came before, and whoever is told of it says so.
pub(super) async fn parting(
    listener: UnixListener,
    to: PathBuf,
    words: &'static [u8],
    parted: mpsc::Sender<oneshot::Sender<()>>,
) {
    let place = move |asked: &[u8]| asked.windows(words.len()).rposition(|part| part == words);
    holding_from(listener, to, place, parted).await;
}

/// Passes connections on to a socket; holds the first bytes for which there is a place back, from that place
/// on, until the server has answered what came before it, and whoever is told of it says so.
async fn holding_from(
    listener: UnixListener,
    to: PathBuf,
    place: impl Fn(&[u8]) -> Option<usize> + Clone + Send + 'static,
    held: mpsc::Sender<oneshot::Sender<()>>,
) {
    let any = Arc::new(AtomicBool::new(false));
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = UnixStream::connect(&to).await.unwrap();
        let (any, held, place) = (Arc::clone(&any), held.clone(), place.clone());
        tokio::spawn(async move {
            let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            loop {
                tokio::select! {
                    length = client.read(&mut asked) => {
                        let Ok(length @ 1..) = length else { return };
                        let mut rest = &asked[..length];
                        if let Some(place) = place(rest) && !any.swap(true, Ordering::SeqCst) {
                            let first;
                            (first, rest) = rest.split_at(place);
                            if !first.is_empty() {
                                server.write_all(first).await.unwrap();
                                let length = server.read(&mut answered).await.unwrap();
                                client.write_all(&answered[..length]).await.unwrap();
                            }
                            let (go_on, told) = oneshot::channel();
                            held.send(go_on).await.unwrap();
                            told.await.unwrap();
                        }
                        if server.write_all(rest).await.is_err() { return }
                    }
                    length = server.read(&mut answered) => {
                        let Ok(length @ 1..) = length else { return };
                        if client.write_all(&answered[..length]).await.is_err() { return }
                    }
                }
            }
        });
    }
}
