//! A real sidecar: the built binary, on port 0, with a ledger in a temporary folder.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use prost::bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// The binary that the tests were built with.
pub const BINARY: &str = env!("CARGO_BIN_EXE_consentd");

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running sidecar; killed when dropped.
pub struct Sidecar {
    child: Child,
    /// `HOST:PORT` of its gRPC listener.
    pub grpc: String,
    /// Where `RecordService` is.
    pub record: String,
    /// `HOST:PORT` of its admin listener.
    pub admin: String,
    /// `HOST:PORT` of its listener for probes alone.
    pub probes: String,
    /// `HOST:PORT` where it receives webhooks.
    pub webhook: String,
    /// What it wrote to standard error after saying where it listens.
    log: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Sidecar {
    /// Starts one on this ledger file, with more flags, and waits until it says where it listens.
    pub fn start(ledger: &Path, flags: &[&str]) -> Self {
        Self::try_start(ledger, flags).unwrap_or_else(|said| panic!("no sidecar: {said}"))
    }

    /// The same; where it ends instead, what it said.
    pub fn try_start(ledger: &Path, flags: &[&str]) -> Result<Self, String> {
        Self::try_start_in(ledger, flags, &[])
    }

    /// The same, with these variables in its environment.
    pub fn try_start_in(
        ledger: &Path,
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self, String> {
        let ledger = format!("file:{}", ledger.display());
        Self::try_start_by(Command::new(BINARY), &ledger, flags, variables)
    }

    /// The same on any ledger, where a command runs the binary.
    pub fn try_start_by(
        command: Command,
        ledger: &str,
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self, String> {
        Self::try_start_as("serve", command, ledger, flags, variables)
    }

    /// The same for another of the binary's commands that run until they are told to end.
    pub fn try_start_as(
        name: &str,
        mut command: Command,
        ledger: &str,
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self, String> {
        command.args([name, "--ledger", ledger]);
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--admin", "127.0.0.1:0")] {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CONSENTD_") {
                command.env_remove(name);
            }
        }
        command.envs(variables.iter().copied());
        let mut child = command.spawn().expect("the binary was built");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut said = Vec::new();
        for line in lines.by_ref() {
            let line = line.expect("standard error is text");
            let parsed: Option<serde_json::Value> = serde_json::from_str(&line).ok();
            let listening = parsed.filter(|line| line["message"] == "listening");
            said.push(line);
            if let Some(where_it_listens) = listening {
                let text = |name: &str| where_it_listens[name].as_str().unwrap_or("").to_owned();
                let log = std::sync::Arc::new(std::sync::Mutex::new(said));
                let kept = std::sync::Arc::clone(&log);
                let reader = std::thread::spawn(move || {
                    for line in lines.map_while(Result::ok) {
                        kept.lock().unwrap().push(line);
                    }
                });
                return Ok(Self {
                    child,
                    grpc: text("grpc").split(',').next().unwrap_or("").to_owned(),
                    record: text("record").split(',').next().unwrap_or("").to_owned(),
                    admin: text("admin"),
                    probes: text("probes"),
                    webhook: text("webhook"),
                    log,
                    reader: Some(reader),
                });
            }
        }
        let status = child.wait().expect("it was started");
        Err(format!("{status}: {}", said.join("\n")))
    }

    /// Starts one on a new ledger in `folder` and waits until it is live.
    pub async fn live(folder: &Path, flags: &[&str]) -> Self {
        let sidecar = Self::start(&ledger_in(folder), flags);
        sidecar.wait_until_live().await;
        sidecar
    }

    /// The same, where its gRPC listener is at an address that is no `HOST:PORT`.
    pub async fn live_at(folder: &Path, flags: &[&str], address: &str) -> Self {
        let sidecar = Self::start(&ledger_in(folder), flags);
        eventually("the sidecar is ready", || async {
            run(&["healthcheck", "readiness", "--addr", address]).0 == 0
        })
        .await;
        sidecar
    }

    /// Waits until checks are answered.
    pub async fn wait_until_live(&self) {
        let mut checks = self.checks().await;
        eventually("the sidecar is live", || {
            let mut checks = checks.clone();
            async move {
                let status = checks.get_status(pb::GetStatusRequest {}).await;
                status.is_ok_and(|status| {
                    status.get_ref().phase() == pb::get_status_response::Phase::Live
                })
            }
        })
        .await;
        drop(checks.get_status(pb::GetStatusRequest {}).await);
    }

    /// A channel to its gRPC listener.
    pub async fn channel(&self) -> Channel {
        channel(&self.grpc).await
    }

    /// A client that asks.
    pub async fn checks(&self) -> ConsentServiceClient<Channel> {
        ConsentServiceClient::new(self.channel().await)
    }

    /// A client that records.
    pub async fn records(&self) -> RecordServiceClient<Channel> {
        RecordServiceClient::new(channel(&self.record).await)
    }

    /// The process' id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends it a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status()
            .expect("kill is part of every system");
        assert!(status.success(), "kill -{name}");
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it was started") {
                if let Some(reader) = self.reader.take() {
                    reader.join().expect("reading standard error does not panic");
                }
                return status;
            }
            assert!(started.elapsed() < patience, "the sidecar did not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The same, while the test's own tasks go on.
    pub async fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        while self.child.try_wait().expect("it was started").is_none() {
            assert!(started.elapsed() < PATIENCE, "the sidecar did not end: {}", self.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.wait(PATIENCE)
    }

    /// Asks its admin listener; gives the status of the answer and its body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        self.get_at(&self.admin, path).await
    }

    /// The same of another of its listeners.
    pub async fn get_at(&self, address: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.expect("it has this listener");
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers in UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// What it wrote to standard error.
    pub fn said(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A ledger's file in a folder.
pub fn ledger_in(folder: &Path) -> PathBuf {
    folder.join("ledger.redb")
}

/// Connects to `HOST:PORT`.
pub async fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("the sidecar listens")
}

/// A connection that speaks gRPC by hand, for what no well-behaved client sends.
#[derive(Clone)]
pub struct Wire(h2::client::SendRequest<Bytes>);

impl Wire {
    /// Connects to `HOST:PORT`.
    pub async fn to(address: &str) -> Self {
        // Answers that nobody reads yet must not hold up the one that is being read.
        let mut settings = h2::client::Builder::new();
        Self::with(settings.initial_connection_window_size(1 << 24), address).await
    }

    /// The same, with settings of its own.
    pub async fn with(settings: &h2::client::Builder, address: &str) -> Self {
        Self::try_with(settings, address).await.expect("the sidecar listens, and speaks HTTP/2")
    }

    /// The same, where the sidecar may be gone or refuse the connection.
    pub async fn try_with(settings: &h2::client::Builder, address: &str) -> Result<Self, Status> {
        let unavailable = |error: std::io::Error| Status::unavailable(error.to_string());
        let stream = TcpStream::connect(address).await.map_err(unavailable)?;
        // As all clients of gRPC do.
        stream.set_nodelay(true).map_err(unavailable)?;
        let (wire, connection) = settings.handshake(stream).await.map_err(broken)?;
        // How a connection ends is seen in the calls on it.
        tokio::spawn(connection);
        Ok(Self(wire))
    }

    /// Begins a call of a method, such as `consent.v1.ConsentService/CanSend`; these are the bytes
    /// of its body. Calls arrive in the order in which they were begun.
    pub async fn begin(
        &mut self,
        method: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Call, h2::Error> {
        let (call, mut sending) = self.begin_headers(method, headers).await?;
        sending.send_data(body.into(), true)?;
        Ok(call)
    }

    /// The same without a body, which whoever holds the other part may send yet.
    pub async fn begin_headers(
        &mut self,
        method: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Call, h2::SendStream<Bytes>), h2::Error> {
        let mut request = http::Request::post(format!("http://sidecar/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a method's name makes a path");
        self.0 = self.0.clone().ready().await?;
        let (answer, sending) = self.0.send_request(request, false)?;
        Ok((Call { answer: Some(answer), body: None }, sending))
    }

    /// Calls with one message, and gives the bytes of the first one that is answered.
    pub async fn call(&mut self, method: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
        let call = self.begin(method, &[], framed(message)).await;
        call.map_err(broken)?.end().await
    }
}

/// A call that was begun.
pub struct Call {
    answer: Option<h2::client::ResponseFuture>,
    body: Option<h2::RecvStream>,
}

impl Call {
    /// The next bytes of the answer's body; nothing at its end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if let Some(answer) = self.answer.take() {
            let (head, body) = answer.await.map_err(broken)?.into_parts();
            match Status::from_header_map(&head.headers) {
                Some(status) if status.code() != tonic::Code::Ok => return Err(status),
                _ => self.body = Some(body),
            }
        }
        let Some(body) = &mut self.body else { return Ok(None) };
        let Some(bytes) = body.data().await.transpose().map_err(broken)? else { return Ok(None) };
        body.flow_control().release_capacity(bytes.len()).map_err(broken)?;
        Ok(Some(bytes))
    }

    /// The bytes of the answer's first message, once the call has ended well.
    pub async fn end(mut self) -> Result<Vec<u8>, Status> {
        let mut answer = Vec::new();
        while let Some(bytes) = self.next().await? {
            answer.extend_from_slice(&bytes);
        }
        self.status().await?;
        Ok(answer.get(5..).unwrap_or_default().to_vec())
    }

    /// How the call ended, once all of its body was read.
    pub async fn status(&mut self) -> Result<(), Status> {
        let trailers = match &mut self.body {
            Some(body) => body.trailers().await.map_err(broken)?,
            None => None,
        };
        let status = trailers.as_ref().and_then(Status::from_header_map);
        match status.ok_or_else(|| Status::internal("the answer has no status"))? {
            status if status.code() == tonic::Code::Ok => Ok(()),
            status => Err(status),
        }
    }
}

/// A broken connection or stream, as clients of gRPC tell it.
fn broken(error: h2::Error) -> Status {
    if error.is_io() || error.is_go_away() {
        Status::unavailable(format!("the connection: {error}"))
    } else {
        Status::from(error)
    }
}

/// A message behind the five bytes that gRPC puts before it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a message is short");
    [&[0][..], &length.to_be_bytes(), message].concat()
}

/// Asks again until it is so; gives up after [`PATIENCE`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let started = Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How long a command may run before it is killed: what never ends must fail, and say where.
const COMMAND_PATIENCE: Duration = Duration::from_mins(3);

/// Runs a command of the binary; gives its exit code, standard output and standard error.
#[track_caller]
pub fn run(arguments: &[&str]) -> (i32, String, String) {
    let child = Command::new(BINARY)
        .args(arguments)
        .env_remove("CONSENTD_ADDR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary was built");
    let pid = Pid::from_child(&child);
    let (ended, when_ended) = mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    let output = when_ended.recv_timeout(COMMAND_PATIENCE).unwrap_or_else(|_| {
        let _ = kill_process(pid, Signal::KILL);
        panic!("{arguments:?} has not ended within {COMMAND_PATIENCE:?}")
    });
    let output = output.expect("its output can be read");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A question.
pub fn question(user: &str, business: &str, category: &str) -> pb::CanSendRequest {
    pb::CanSendRequest {
        user_id: user.into(),
        business_id: business.into(),
        category: category.into(),
        ..Default::default()
    }
}

/// Something to record.
pub fn event(user: &str, business: &str, what: pb::consent_event::What) -> pb::RecordEventRequest {
    pb::RecordEventRequest {
        event: Some(pb::ConsentEvent {
            user_id: user.into(),
            business_id: business.into(),
            event_time: None,
            what: Some(what),
        }),
        request_id: String::new(),
    }
}

/// An opt-in with good evidence.
pub fn opt_in(category: &str) -> pb::consent_event::What {
    pb::consent_event::What::OptIn(pb::OptIn {
        category: category.into(),
        evidence: Some(pb::Evidence {
            method: pb::OptInMethod::Website.into(),
            statement: "Yes to messages from Acme on WhatsApp".into(),
            business_name: "Acme".into(),
            locale: "en".into(),
            ..pb::Evidence::default()
        }),
        expire_time: None,
        pending: false,
    })
}

/// An opt-out.
pub fn opt_out(scope: &str) -> pb::consent_event::What {
    pb::consent_event::What::OptOut(pb::OptOut { scope: scope.into(), reference: String::new() })
}

/// A message from the user.
pub fn inbound(text: &str) -> pb::consent_event::What {
    pb::consent_event::What::InboundMessage(pb::InboundMessage {
        message_id: String::new(),
        text: text.into(),
    })
}

/// A moment `ago` before now.
pub fn ago(ago: Duration) -> prost_types::Timestamp {
    (std::time::SystemTime::now() - ago).into()
}
