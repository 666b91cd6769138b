//! Connecting to a sidecar, and saying why that failed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_types::StatusExt as _;
use tower::service_fn;

use super::stranger::{self, Stranger};
use crate::net::socket::{Address, connect_unix};
use consentd_os::files;
use consentd_os::io_hint;

/// How long to wait before another try where a socket has no room.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Which sidecar to ask, and how to print its answer.
#[derive(Args, Clone, Debug)]
pub(super) struct ClientArgs {
    /// The sidecar: HOST:PORT, unix:PATH or unix:@NAME
    #[arg(long, env = "CONSENTD_ADDR", value_name = "ADDR", default_value = "127.0.0.1:50051")]
    addr: Address,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "5s",
          value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the answer as proto3 JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The bearer token of those who may record.
#[derive(Args, Clone, Debug)]
pub(super) struct TokenArgs {
    /// A file whose first line is the bearer token, where the server wants one; the server's own
    /// file will do
    #[arg(long, env = "CONSENTD_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl ClientArgs {
    /// For commands that speak to several sidecars.
    pub(super) fn at(addr: Address, timeout: Duration) -> Self {
        Self { addr, timeout, json: false }
    }

    pub(super) fn addr(&self) -> &Address {
        &self.addr
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Connects, and leaves it to the caller to speak HTTP/2.
    pub(super) async fn socket(&self) -> io::Result<Either<TcpStream, UnixStream>> {
        match &self.addr {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Either::Left(stream))
            }
            unix => connect_when_there_is_room(unix).await.map(Either::Right),
        }
    }

    /// Connects.
    pub(super) async fn connect(&self) -> anyhow::Result<Channel> {
        let connecting = async {
            match &self.addr {
                Address::Tcp(address) => {
                    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
                    endpoint.timeout(self.timeout).connect().await
                }
                unix => {
                    let unix = unix.clone();
                    Endpoint::from_static("http://localhost")
                        .timeout(self.timeout)
                        .connect_with_connector(service_fn(move |_: Uri| {
                            let unix = unix.clone();
                            async move { connect_when_there_is_room(&unix).await.map(TokioIo::new) }
                        }))
                        .await
                }
            }
        };
        if let Ok(connected) = tokio::time::timeout(self.timeout, connecting).await {
            return connected.map_err(|error| self.unreachable(&error));
        }
        let timeout = humantime::format_duration(self.timeout);
        Err(anyhow!(
            "cannot reach consentd at {}: no connection within {timeout}\n  it hangs, is too busy, \
             or something in between swallows what is sent; is the address right (--addr or \
             CONSENTD_ADDR)?",
            self.addr
        ))
    }

    /// Says why there is no connection, and what would help.
    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
        let system = sources(error).find_map(|error| error.downcast_ref::<io::Error>());
        let kind = system.map_or(io::ErrorKind::Other, io::Error::kind);
        let or_where = "or say where it is with --addr or CONSENTD_ADDR";
        let advice = match (&self.addr, kind) {
            (Address::Tcp(address), io::ErrorKind::ConnectionRefused) => {
                format!("nothing listens there: start one with {}, {or_where}", serving(address))
            }
            (Address::Unix(path), io::ErrorKind::ConnectionRefused) => {
                format!(
                    "the socket was left behind by a sidecar that is gone: start one with \
                     `consentd serve --unix {}`, {or_where}",
                    path.display()
                )
            }
            (Address::Unix(path), io::ErrorKind::NotFound) => {
                format!(
                    "there is no such socket: start one with `consentd serve --unix {}`, {or_where}",
                    path.display()
                )
            }
            (Address::Unix(path), io::ErrorKind::PermissionDenied) => {
                let hint = system.map(|error| io_hint::hint(path, error)).unwrap_or_default();
                let hint = hint.trim_start_matches("; ");
                format!("a socket may be used by its owner and its group; {hint}")
            }
            _ => format!("start one with `consentd serve`, {or_where}"),
        };
        let why = innermost(error);
        anyhow!("cannot reach consentd at {}: {why}\n  {advice}", self.addr)
    }

    /// A request that tells the sidecar how long its answer is waited for.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        // More than the header could hold is as good as for ever.
        request.set_timeout(self.timeout.min(Duration::from_hours(24 * 365)));
        request
    }

    /// Explains an error that the sidecar answered, field by field where it names fields.
    pub(super) fn explain(&self, status: &tonic::Status) -> anyhow::Error {
        self.explain_as(status, |_| None)
    }

    /// The same, where some fields have other names on the command line.
    pub(super) fn explain_as(
        &self,
        status: &tonic::Status,
        flag_of: fn(&str) -> Option<&'static str>,
    ) -> anyhow::Error {
        let details = status.get_error_details();
        if let Some(bad) = details.bad_request().filter(|bad| !bad.field_violations.is_empty()) {
            let lines = bad.field_violations.iter().map(|violation| {
                let field = flag_of(&violation.field).unwrap_or(&violation.field);
                format!("\n  {field}: {}", violation.description)
            });
            return anyhow!("the request is not valid:{}", lines.collect::<String>());
        }
        let code = status.code();
        match code {
            tonic::Code::Unavailable if status.message().is_empty() => {
                anyhow!("consentd at {} went away", self.addr)
            }
            // What our own side of the connection says of its own clock.
            tonic::Code::Cancelled if status.message() == "Timeout expired" => {
                let timeout = humantime::format_duration(self.timeout);
                self.is_a_stranger().unwrap_or_else(|| {
                    anyhow!(
                        "consentd at {} did not answer within {timeout}; a busy one may with a \
                         longer --timeout",
                        self.addr
                    )
                })
            }
            _ if is_our_own(status) => {
                let said = status.message();
                let error = || anyhow!("consentd at {} broke off: {said} ({code:?})", self.addr);
                self.is_a_stranger().unwrap_or_else(error)
            }
            _ if status.message().is_empty() => anyhow!("{} ({code:?})", code.description()),
            _ => anyhow!("{} ({code:?})", status.message()),
        }
    }

    /// What else than a sidecar's gRPC listener is there, where it is something else.
    fn is_a_stranger(&self) -> Option<anyhow::Error> {
        let Address::Tcp(address) = &self.addr else { return None };
        let advice = "the commands need consentd's gRPC port, which `serve --listen` sets \
                      (50051 by default): give it with --addr or CONSENTD_ADDR";
        let what = match stranger::at(address) {
            Stranger::Http2 => return None,
            Stranger::Nobody => return Some(anyhow!("consentd at {address} went away")),
            Stranger::Admin => {
                "no gRPC port: it is a sidecar's admin port, for metrics and probes (`serve \
                 --admin`, 9464 by default)"
            }
            Stranger::Http => "no gRPC port: a web server listens there",
            Stranger::Redis => "no gRPC port: a Redis listens there",
            Stranger::Tls => "no plain gRPC port: what listens there expects TLS",
            Stranger::Unknown => {
                let timeout = humantime::format_duration(self.timeout);
                return Some(anyhow!(
                    "{address} accepts connections, but did not answer as a gRPC server within \
                     {timeout}\n  {advice}"
                ));
            }
        };
        Some(anyhow!("{address} is {what}\n  {advice}"))
    }
}

/// Connects to a Unix socket, as soon as it takes one more connection.
async fn connect_when_there_is_room(address: &Address) -> io::Result<UnixStream> {
    loop {
        match connect_unix(address).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            connected => return connected,
        }
    }
}

/// How a sidecar is started that listens at `address`.
fn serving(address: &str) -> String {
    match address {
        "127.0.0.1:50051" | "localhost:50051" => "`consentd serve`".to_owned(),
        address => format!("`consentd serve --listen {address}`"),
    }
}

/// Whether a status is our own side's, which heard nothing that it could understand.
fn is_our_own(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
        || status.message().starts_with("grpc-status header missing")
}

impl TokenArgs {
    /// Puts the token into a request, where one was given.
    pub(super) fn authorize<T>(&self, request: &mut Request<T>) -> anyhow::Result<()> {
        if let Some(header) = self.header()? {
            request.metadata_mut().insert("authorization", header);
        }
        Ok(())
    }

    /// The file, where one was given.
    pub(super) fn path(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    /// The value of the `authorization` header, where a token was given.
    pub(super) fn header(&self) -> anyhow::Result<Option<MetadataValue<Ascii>>> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text = files::read_trusted(path).map_err(|error| {
            let hint = io_hint::hint(path, &error);
            anyhow!("cannot read the token file {}: {error}{hint}", path.display())
        })?;
        let Some((_, token)) = crate::grpc::parse_token_file(&text).next() else {
            bail!("the token file {} is empty", path.display());
        };
        let header = MetadataValue::try_from(format!("Bearer {token}"));
        Ok(Some(header.map_err(|_| {
            anyhow!("the token in {} has characters that a header cannot hold", path.display())
        })?))
    }
}

/// An error and its causes, the innermost last.
fn sources<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The cause at the bottom, which is what the system said.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    sources(error).last().unwrap_or(error).to_string()
}
