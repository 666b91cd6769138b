//! Which service takes a call, and which calls are turned away before.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic_health::pb::health_server::HealthServer;
use tower::Service as _;

use super::body::{Answer, Metered};
use super::call_telemetry::{self, Call, Watcher};
use super::consent_service::Method;
use super::pb::consent_service_server::SERVICE_NAME as CHECKS;
use super::pb::record_service_server::{RecordServiceServer, SERVICE_NAME as RECORDS};
use super::timeout_of;
use super::{
    CheckService, DESCRIPTOR_SET, HealthService, MAX_REQUEST_BYTES, RecordService, status,
};
use crate::budget::{Charge, Connection, Full, Pool};
use consentd_os::access;
use consentd_os::files;

/// Where checks are called.
const CHECKS_PATH: &str = "/consent.v1.ConsentService/";

/// Where events are recorded.
const RECORDS_PATH: &str = "/consent.v1.RecordService/";

/// Its methods that have one request and one answer.
const RECORDS_OF_ONE: [&str; 2] = ["RecordEvent", "EraseUser"];

/// What a call becomes.
pub(super) type Answering = Pin<Box<dyn Future<Output = Response<Answer>> + Send>>;

/// The bearer tokens that may record, as digests, so that comparing takes as long for any.
#[derive(Clone)]
pub struct Tokens(Arc<ArcSwap<Vec<[u8; 32]>>>);

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("cannot read the token file {path}: {source}{}", access::hint(path, source))]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It has no tokens.
    #[error("the token file {path} has no tokens: write one a line, 16 characters at the least")]
    Empty {
        /// The file.
        path: std::path::PathBuf,
    },
    /// One of them can be guessed.
    #[error("line {line} of the token file {path} is shorter than 16 characters")]
    Short {
        /// The file.
        path: std::path::PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

/// The longest that a call may take until it begins to be answered: above all waits of our own.
const MAX_CALL: Duration = Duration::from_secs(35);

/// A token that is shorter could be guessed.
const MIN_TOKEN_CHARS: usize = 16;

impl Tokens {
    /// Reads a file of tokens, one a line; empty lines and those that start with `#` are left out.
    ///
    /// # Errors
    ///
    /// [`TokensError`] names the file, never a token.
    pub fn read(path: &Path) -> Result<Self, TokensError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(Self::digests(path)?))))
    }

    /// Reads a file of tokens again, for all clones; one that cannot be used changes nothing.
    ///
    /// # Errors
    ///
    /// [`TokensError`] names the file, never a token.
    pub fn read_again(&self, path: &Path) -> Result<(), TokensError> {
        self.0.store(Arc::new(Self::digests(path)?));
        Ok(())
    }

    fn digests(path: &Path) -> Result<Vec<[u8; 32]>, TokensError> {
        let at = || path.to_owned();
        let text =
            files::read_trusted(path).map_err(|source| TokensError::Io { path: at(), source })?;
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.len() < MIN_TOKEN_CHARS {
                return Err(TokensError::Short { path: at(), line: index + 1 });
            }
            tokens.push(Sha256::digest(line.as_bytes()).into());
        }
        if tokens.is_empty() { Err(TokensError::Empty { path: at() }) } else { Ok(tokens) }
    }

    fn allow(&self, request: &Request<Incoming>) -> bool {
        let header = request.headers().get(http::header::AUTHORIZATION);
        let token = header
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(token) = token else { return false };
        let given: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let tokens = self.0.load();
        let known = tokens.iter().map(|token| given.ct_eq(token));
        known.fold(subtle::Choice::from(0), |any, this| any | this).into()
    }
}

/// The services of one listener; clones share them.
#[derive(Clone)]
pub struct Routes {
    check: Option<Arc<CheckService>>,
    record: Option<RecordServiceServer<RecordService>>,
    tokens: Option<Tokens>,
    /// Health and reflection of what is served here: seldom called, so routed by tonic.
    others: tonic::service::Routes,
    health: HealthService,
    watcher: Watcher,
}

/// About the memory of an open call of one message: its task, its headers' table, the state that
/// HTTP/2 keeps of it, and [`INCLUDED_BYTES`](super::body::INCLUDED_BYTES) of its message.
const CALL_BYTES: usize = 6 * 1024;
/// About the memory of an open stream, whose buffers are larger, and stay; with
/// [`ANSWER_BYTES`](super::body::ANSWER_BYTES) of its answers.
const STREAM_BYTES: usize = 16 * 1024;
/// About the memory of a probe, or of who watches over health.
const PROBE_BYTES: usize = 8 * 1024;

/// Why the services cannot be reflected.
#[derive(Debug, thiserror::Error)]
#[error("the contract's descriptors are damaged: {0}")]
pub struct ReflectionError(#[from] tonic_reflection::server::Error);

impl Routes {
    /// Health and reflection alone.
    ///
    /// # Errors
    ///
    /// [`ReflectionError`] where the binary holds a damaged contract.
    pub fn new(health: HealthService) -> Result<Self, ReflectionError> {
        let others = others(&health)?;
        let (check, record, tokens) = (None, None, None);
        let watcher = Watcher::new(None);
        Ok(Self { check, record, tokens, others, health, watcher })
    }

    /// Watched by `watcher`, which may trace.
    #[must_use]
    pub fn watched_by(mut self, watcher: Watcher) -> Self {
        self.watcher = watcher;
        self
    }

    /// Checks too, watched as is said by then.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_checks(mut self, checks: CheckService) -> Result<Self, ReflectionError> {
        self.check = Some(Arc::new(checks.watched_by(self.watcher.clone())));
        self.telling_of(CHECKS)
    }

    /// Recordings too, by those who have one of `tokens` where such are given.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_records(
        mut self,
        records: RecordService,
        tokens: Option<Tokens>,
    ) -> Result<Self, ReflectionError> {
        let record = RecordServiceServer::new(records);
        self.record = Some(record.max_decoding_message_size(MAX_REQUEST_BYTES));
        self.tokens = tokens;
        self.telling_of(RECORDS)
    }

    /// Health and reflection know this service too.
    fn telling_of(mut self, service: &'static str) -> Result<Self, ReflectionError> {
        self.health.add(service);
        self.others = others(&self.health)?;
        Ok(self)
    }

    /// Whether checks are served.
    #[must_use]
    pub fn serves_checks(&self) -> bool {
        self.check.is_some()
    }

    /// Whether it records events.
    #[must_use]
    pub fn serves_records(&self) -> bool {
        self.record.is_some()
    }

    /// Answers a call on a connection, which is charged for it; streams that could go on end once
    /// `ending` is cancelled.
    pub(super) fn call(
        &self,
        request: Request<Incoming>,
        ending: &CancellationToken,
        connection: &Arc<Connection>,
    ) -> Answering {
        let Some(bytes) = grpc_header_bytes(request.headers()) else {
            return not_grpc(request.headers());
        };
        let path = request.uri().path();
        if let Some(method) = path.strip_prefix(CHECKS_PATH).and_then(Method::named) {
            let open = if method.is_stream() { STREAM_BYTES } else { CALL_BYTES };
            return match admit(connection, Pool::Checks, open + bytes) {
                Ok(charge) => self.call_check(method, request, ending, charge),
                Err(full) => self.turn_away(&request, full),
            };
        }
        if let Some(method) =
            path.strip_prefix(RECORDS_PATH).filter(|_| call_telemetry::is_known(path))
        {
            let is_stream = !RECORDS_OF_ONE.contains(&method);
            let open = if is_stream { STREAM_BYTES } else { CALL_BYTES };
            return match admit(connection, Pool::Records, open + bytes) {
                Ok(charge) => self.call_record(request, is_stream, connection, charge),
                Err(full) => self.turn_away(&request, full),
            };
        }
        let (pool, open) = if path.starts_with("/grpc.health.v1.Health/") {
            // Probes have room of their own: a busy process must not be ended for being busy.
            (Pool::Probes, PROBE_BYTES)
        } else if path.starts_with("/grpc.reflection.") {
            (Pool::Checks, STREAM_BYTES)
        } else {
            return refuse(&status::unknown_method(path, self.health.services()));
        };
        match admit(connection, pool, open + bytes) {
            Ok(charge) => self.call_other(request, charge),
            Err(full) => self.turn_away(&request, full),
        }
    }

    fn call_check(
        &self,
        method: Method,
        mut request: Request<Incoming>,
        ending: &CancellationToken,
        charge: Charge,
    ) -> Answering {
        let Some(service) = self.check.clone() else {
            return refuse(&Status::unimplemented(
                "checks are not served on this listener, but on those of --listen and --unix",
            ));
        };
        let patience = patience(&request);
        let watched = self.watcher.check(&mut request);
        let ending = ending.clone();
        let answering: Answering = if method.is_stream() {
            let request = request.map(|body| Metered::stream(body, charge.beside()));
            Box::pin(async move {
                let call = service.call_stream(method, request, &ending, &charge);
                within(patience, call).await.map(|body| Answer::stream(body, charge))
            })
        } else {
            let request = request.map(|body| Metered::unary(body, charge.beside()));
            Box::pin(async move {
                let call = service.call(method, request, &charge);
                within(patience, call).await.map(|body| Answer::unary(body, charge))
            })
        };
        watch(watched, answering)
    }

    fn call_record(
        &self,
        mut request: Request<Incoming>,
        is_stream: bool,
        connection: &Arc<Connection>,
        charge: Charge,
    ) -> Answering {
        let Some(service) = &self.record else {
            return refuse(&Status::unimplemented(
                "events are not recorded on this listener; --record says on which they are",
            ));
        };
        if self.tokens.as_ref().is_some_and(|tokens| !tokens.allow(&request)) {
            return refuse(&Status::unauthenticated(
                "recording needs the header `authorization: Bearer TOKEN`, with a token of the \
                 server's --record-token-file",
            ));
        }
        let patience = patience(&request);
        let watched = self.watcher.begin(&mut request);
        // For the handler, which charges for what it keeps of the request.
        request.extensions_mut().insert(Arc::clone(connection));
        let mut service = service.clone();
        let answering: Answering = if is_stream {
            let call = service.call(request.map(|body| Metered::stream(body, charge.beside())));
            let call = async move { infallible(call.await) };
            Box::pin(async move {
                within(patience, call).await.map(|body| Answer::stream(body, charge))
            })
        } else {
            let call = service.call(request.map(|body| Metered::unary(body, charge.beside())));
            let call = async move { infallible(call.await) };
            Box::pin(
                async move { within(patience, call).await.map(|body| Answer::unary(body, charge)) },
            )
        };
        watch(watched, answering)
    }

    /// Health and reflection.
    fn call_other(&self, request: Request<Incoming>, charge: Charge) -> Answering {
        let patience = patience(&request);
        let request = request.map(|body| Metered::stream(body, charge.beside()));
        let call = self.others.clone().call(request);
        let call = async move { infallible(call.await) };
        Box::pin(
            async move { within(patience, call).await.map(|body| Answer::stream(body, charge)) },
        )
    }

    /// Refuses a call that met a limit.
    fn turn_away(&self, request: &Request<Incoming>, full: Full) -> Answering {
        let status = status::of_full(full);
        self.watcher.turned_away(request.uri().path(), request.headers(), &status);
        refuse(&status)
    }
}

/// Charges for an open call. A connection that came when there was no room for more may make none
/// but probes.
fn admit(connection: &Arc<Connection>, pool: Pool, bytes: usize) -> Result<Charge, Full> {
    if connection.is_for_probes_only() && pool != Pool::Probes {
        return Err(Full::Connections);
    }
    connection.charge(pool, bytes)
}

/// About how many bytes the headers of a call take, where it is one of gRPC's.
fn grpc_header_bytes(headers: &HeaderMap) -> Option<usize> {
    let mut bytes = 0;
    let mut is_grpc = false;
    for (name, value) in headers {
        bytes += name.as_str().len() + value.len();
        is_grpc |= name == header::CONTENT_TYPE && is_grpc_type(value.as_bytes());
    }
    is_grpc.then_some(bytes)
}

/// Whether a content type is gRPC's own, with messages of protocol buffers. What is no more than
/// like it (gRPC-Web, or messages of JSON) would be read as something that was not sent. Media types
/// are the same in capitals, and parameters may follow (RFC 9110, section 8.3.1).
fn is_grpc_type(value: &[u8]) -> bool {
    let media_type = value.split(|byte| *byte == b';').next().unwrap_or_default();
    let media_type = media_type.trim_ascii();
    let known: [&[u8]; 2] = [b"application/grpc", b"application/grpc+proto"];
    known.iter().any(|known| media_type.eq_ignore_ascii_case(known))
}

/// What the protocol asks for where a call's content type is not gRPC's: a status of HTTP, so that
/// other clients do not take the answer for a success.
fn not_grpc(headers: &HeaderMap) -> Answering {
    let status = Status::invalid_argument(match headers.get(header::CONTENT_TYPE) {
        None => "no content-type: it must be application/grpc",
        Some(_) => "the content-type must be application/grpc, or application/grpc+proto",
    });
    let mut response = status.into_http::<Body>().map(Answer::refusal);
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Box::pin(std::future::ready(response))
}

/// Health, and reflection of it and of the services that it knows.
fn others(health: &HealthService) -> Result<tonic::service::Routes, ReflectionError> {
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that the details of an error can be shown too.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(tonic_health::pb::health_server::SERVICE_NAME);
        health.services().iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    Ok(tonic::service::Routes::new(HealthServer::new(health.clone()))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare())
}

fn watch(call: Option<Call>, answering: Answering) -> Answering {
    match call {
        Some(call) => call.watch(answering),
        None => answering,
    }
}

/// How long a call may take until it begins to be answered: as long as its caller waits.
fn patience(request: &Request<Incoming>) -> Duration {
    let header = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
    header.and_then(timeout_of).map_or(MAX_CALL, |timeout| timeout.min(MAX_CALL))
}

/// Answers in time. A call whose request never arrives whole must not be counted for ever.
async fn within(patience: Duration, call: impl Future<Output = Response<Body>>) -> Response<Body> {
    tokio::time::timeout(patience, call).await.unwrap_or_else(|_| {
        let why = "the deadline passed before the request had arrived, or was answered";
        Status::deadline_exceeded(why).into_http()
    })
}

fn infallible<T>(result: Result<T, std::convert::Infallible>) -> T {
    match result {
        Ok(value) => value,
    }
}

fn refuse(status: &Status) -> Answering {
    let response = status.clone().into_http::<Body>().map(Answer::refusal);
    Box::pin(std::future::ready(response))
}
