//! Connects to a sidecar, and explains why a connection or a call failed.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_types::StatusExt as _;
use tower::service_fn;

use super::args;
use super::port_probe::{self, Service};
use crate::config::DEFAULT_GRPC_ADDRESS;
use crate::net::socket::{Address, connect_unix};
use crate::net::tls;
use consentd_bench::load::Socket;
use consentd_os::files;
use consentd_os::io_hint;
use consentd_tls::{ClientFiles, TlsFileError, failure};

/// The time between two attempts to connect to a Unix socket whose backlog is full.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// The `grpc-timeout` header has eight digits, so longer timeouts are cut off here.
const MAX_HEADER_TIMEOUT: Duration = Duration::from_hours(24 * 365);

/// The sidecar that a command calls, and how its response is printed.
#[derive(Args, Clone, Debug)]
pub(super) struct ClientArgs {
    /// The sidecar: HOST:PORT, unix:PATH or unix:@NAME; by default where `CONSENTD_UNIX` or
    /// `CONSENTD_LISTEN` says that `serve` listens, as in a container of its own
    #[arg(long, env = "CONSENTD_ADDR", value_name = "ADDR", default_value_t = served_address())]
    addr: Address,
    #[command(flatten)]
    tls: TlsArgs,
    /// How long to wait for an answer
    #[arg(long, value_name = "TIME", default_value = "5s",
          value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the answer as proto3 JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// TLS to the sidecar.
#[derive(Args, Clone, Debug, Default)]
struct TlsArgs {
    /// Connect by TLS; so do the three flags below
    #[arg(long, env = "CONSENTD_TLS", value_parser = clap::builder::BoolishValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    tls: bool,
    /// The CA certificates to trust, instead of the system's, in PEM form
    #[arg(long, env = "CONSENTD_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// A certificate of this client, where the sidecar asks for one
    #[arg(long, env = "CONSENTD_CERT_FILE", value_name = "FILE", requires = "key_file")]
    cert_file: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, env = "CONSENTD_KEY_FILE", value_name = "FILE", requires = "cert_file")]
    key_file: Option<PathBuf>,
}

impl TlsArgs {
    /// The files of TLS, if connections are to be made by it.
    fn files(&self) -> Option<ClientFiles> {
        // An empty variable counts as unset.
        let given =
            |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        let ca = given(&self.ca_file);
        let own = given(&self.cert_file).zip(given(&self.key_file));
        (self.tls || ca.is_some() || own.is_some()).then_some(ClientFiles { ca, own })
    }
}

/// Where `serve` listens if it is started in this environment. A Unix socket comes first, because a
/// process that serves one may serve nothing else.
fn served_address() -> Address {
    let set = |name: &str| args::variable(name).filter(|value| !value.is_empty());
    if let Some(path) = set("CONSENTD_UNIX") {
        return Address::unix(&path);
    }
    let listen = set("CONSENTD_LISTEN").and_then(|listen| listen.parse::<Address>().ok());
    match listen {
        Some(Address::Tcp(listen)) => Address::Tcp(reachable(&listen)),
        Some(unix) => unix,
        None => Address::Tcp(DEFAULT_GRPC_ADDRESS.to_owned()),
    }
}

/// An address to connect to, for one to listen on: who listens on all addresses is found on loopback.
fn reachable(listen: &str) -> String {
    match listen.parse::<SocketAddr>() {
        Ok(mut address) if address.ip().is_unspecified() => {
            let loopback = match address {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            address.set_ip(loopback);
            address.to_string()
        }
        _ => listen.to_owned(),
    }
}

/// The bearer token that authorizes recording.
#[derive(Args, Clone, Debug)]
pub(super) struct TokenArgs {
    /// A file whose first line is the bearer token, if the server requires one; the server's own
    /// token file will do
    #[arg(long, env = "CONSENTD_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl ClientArgs {
    /// A sidecar at an address that a command takes from flags of its own.
    pub(super) fn at(addr: Address, timeout: Duration) -> Self {
        Self { addr, tls: TlsArgs::default(), timeout, json: false }
    }

    pub(super) fn addr(&self) -> &Address {
        &self.addr
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Opens a socket, with TLS if the flags say so, and without HTTP/2.
    pub(super) async fn socket(&self) -> io::Result<Socket> {
        let address = match &self.addr {
            Address::Tcp(address) => address,
            unix => return Ok(Box::new(connect_unix_with_retries(unix).await?)),
        };
        if let Some(files) = self.tls.files() {
            return Ok(Box::new(tls::connect(&files, address).await?));
        }
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    /// Opens a gRPC channel.
    pub(super) async fn connect(&self) -> anyhow::Result<Channel> {
        let authority = match &self.addr {
            Address::Tcp(address) => address,
            Address::Unix(_) | Address::Abstract(_) => "localhost",
        };
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))?.timeout(self.timeout);
        let begun = Instant::now();
        self.resolve().await?;
        let left = self.timeout.saturating_sub(begun.elapsed());
        let args = self.clone();
        let connecting = endpoint.connect_with_connector(service_fn(move |_: Uri| {
            let args = args.clone();
            async move { args.socket().await.map(TokioIo::new) }
        }));
        if let Ok(connected) = tokio::time::timeout(left, connecting).await {
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

    /// Resolves the host's name once before connecting, so that a failure of DNS is not taken for one of the
    /// sidecar.
    async fn resolve(&self) -> anyhow::Result<()> {
        let Address::Tcp(address) = &self.addr else { return Ok(()) };
        let host = address.rsplit_once(':').map_or(&**address, |(host, _)| host);
        match tokio::time::timeout(self.timeout, tokio::net::lookup_host(address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(anyhow!(
                "cannot reach consentd at {address}: the host name {host} cannot be resolved: {error}\n  \
                 is it spelt right (--addr or CONSENTD_ADDR), and does this machine's DNS server know it?"
            )),
            Err(_) => Err(anyhow!(
                "cannot reach consentd at {address}: the host name {host} was not resolved within \
                 {}\n  no DNS server has answered: see /etc/resolv.conf, and in a pod its NetworkPolicy",
                humantime::format_duration(self.timeout)
            )),
        }
    }

    /// Explains why there is no connection, with a remedy.
    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
        let io_error = sources(error).find_map(|error| error.downcast_ref::<io::Error>());
        let kind = io_error.map_or(io::ErrorKind::Other, io::Error::kind);
        let inner = io_error.and_then(io::Error::get_ref);
        if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<TlsFileError>()) {
            let flag = if matches!(error, TlsFileError::NoRoots) { " with --ca-file" } else { "" };
            return anyhow!("TLS with consentd at {}: {error}{flag}", self.addr);
        }
        if let Some(error) = io_error.filter(|error| is_of_tls(error)) {
            return anyhow!(
                "TLS with consentd at {} failed: {}\n  see --ca-file, --cert-file and --key-file",
                self.addr,
                failure(error)
            );
        }
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
                let hint = io_error.map(|error| io_hint::hint(path, error)).unwrap_or_default();
                let hint = hint.trim_start_matches("; ");
                format!(
                    "a socket may be used by its owner and its group (in a pod, set fsGroup to that \
                     group); {hint}"
                )
            }
            _ => format!("start one with `consentd serve`, {or_where}"),
        };
        let why = root_cause(error);
        anyhow!("cannot reach consentd at {}: {why}\n  {advice}", self.addr)
    }

    /// A request whose deadline the sidecar knows.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout.min(MAX_HEADER_TIMEOUT));
        request
    }

    /// Explains an error of the sidecar. If it names invalid fields, each is on a line of its own.
    pub(super) fn explain(&self, status: &tonic::Status) -> anyhow::Error {
        self.explain_as(status, |_| None)
    }

    /// Like [`Self::explain`], with the names that fields have on the command line.
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
            // Our channel's own timeout.
            tonic::Code::Cancelled if status.message() == "Timeout expired" => {
                let timeout = humantime::format_duration(self.timeout);
                self.explain_port().unwrap_or_else(|| {
                    anyhow!(
                        "consentd at {} did not answer within {timeout}; a busy one may with a \
                         longer --timeout",
                        self.addr
                    )
                })
            }
            // In TLS 1.3 a server refuses a client's certificate after the client's handshake.
            _ if is_local(status) && self.tls.files().is_some() => anyhow!(
                "TLS with consentd at {} broke: {}\n  it may require a client certificate that it \
                 trusts: see --cert-file and --key-file",
                self.addr,
                root_cause(status)
            ),
            _ if is_local(status) => {
                let message = status.message();
                let error = || {
                    anyhow!(
                        "the connection to consentd at {} broke: {message} ({code:?})",
                        self.addr
                    )
                };
                self.explain_port().unwrap_or_else(error)
            }
            _ if status.message().is_empty() => anyhow!("{} ({code:?})", code.description()),
            _ => anyhow!("{} ({code:?})", status.message()),
        }
    }

    /// Explains which other service listens at the address, if it is not gRPC.
    fn explain_port(&self) -> Option<anyhow::Error> {
        let Address::Tcp(address) = &self.addr else { return None };
        let advice = "the commands need consentd's gRPC port, which `serve --listen` sets \
                      (50051 by default): give it with --addr or CONSENTD_ADDR";
        let what = match port_probe::probe(address) {
            Service::Http2 => return None,
            Service::Nothing => return Some(anyhow!("consentd at {address} went away")),
            Service::Admin => {
                "no gRPC port: it is a sidecar's admin port, for metrics and probes (`serve \
                 --admin`, 9464 by default)"
            }
            Service::Http => "no gRPC port: a web server listens there",
            Service::Redis => "no gRPC port: a Redis listens there",
            Service::Tls => {
                "no plain gRPC port, but expects TLS: if a sidecar is there, give --tls, or --ca-file \
                 with the CA of its certificate"
            }
            Service::Unknown => {
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

/// Connects to a Unix socket, with retries while its backlog is full.
async fn connect_unix_with_retries(address: &Address) -> io::Result<UnixStream> {
    loop {
        match connect_unix(address).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            connected => return connected,
        }
    }
}

/// The command that starts a sidecar at `address`.
fn serving(address: &str) -> String {
    match address {
        "127.0.0.1:50051" | "localhost:50051" => "`consentd serve`".to_owned(),
        address => format!("`consentd serve --listen {address}`"),
    }
}

/// Whether our side of the connection made the status, because it received no valid response.
fn is_local(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
        || status.message().starts_with("grpc-status header missing")
}

/// Whether it is an error of TLS, and not of the socket.
fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some()
}

impl TokenArgs {
    /// Adds the token to a request, if there is one.
    pub(super) fn authorize<T>(&self, request: &mut Request<T>) -> anyhow::Result<()> {
        if let Some(header) = self.header()? {
            request.metadata_mut().insert("authorization", header);
        }
        Ok(())
    }

    /// The token file, if there is one.
    pub(super) fn path(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    /// The value of the `authorization` header, if there is a token.
    pub(super) fn header(&self) -> anyhow::Result<Option<MetadataValue<Ascii>>> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text = files::read_trusted(path).map_err(|error| {
            let hint = io_hint::hint(path, &error);
            anyhow!("cannot read the token file {}: {error}{hint}", path.display())
        })?;
        let Some((_, token)) = crate::secrets::lines(&text).next() else {
            bail!("the token file {} is empty", path.display());
        };
        let header = MetadataValue::try_from(format!("Bearer {token}"));
        Ok(Some(header.map_err(|_| {
            anyhow!("the token in {} has characters that a header cannot hold", path.display())
        })?))
    }
}

/// An error and its causes, the root cause last.
fn sources<'e>(
    error: &'e (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'e (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The text of the root cause, which is usually the system's error.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    sources(error).last().unwrap_or(error).to_string()
}
