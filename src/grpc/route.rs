//! Which service takes a call, and which calls are turned away before.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic_health::pb::health_server::HealthServer;
use tower::Service as _;

use super::call::{self, Call, Watcher};
use super::check::Method;
use super::pb::consent_service_server::SERVICE_NAME as CHECKS;
use super::pb::record_service_server::{RecordServiceServer, SERVICE_NAME as RECORDS};
use super::timeout_of;
use super::{
    CheckService, DESCRIPTOR_SET, HealthService, MAX_REQUEST_BYTES, RecordService, status,
};
use crate::access;
use crate::files;
use crate::metrics::Metrics;

/// Where checks are called.
const CHECKS_PATH: &str = "/consent.v1.ConsentService/";

/// What a call becomes.
pub(super) type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// The bearer tokens that may record, as digests, so that comparing takes as long for any.
#[derive(Clone)]
pub struct Tokens(Arc<[[u8; 32]]>);

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
        if tokens.is_empty() {
            Err(TokensError::Empty { path: at() })
        } else {
            Ok(Self(tokens.into()))
        }
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
        let known = self.0.iter().map(|token| given.ct_eq(token));
        known.fold(subtle::Choice::from(0), |any, this| any | this).into()
    }
}

/// The services of one listener; clones share them.
#[derive(Clone)]
pub struct Routes {
    check: Option<CheckService>,
    record: Option<RecordServiceServer<RecordService>>,
    tokens: Option<Tokens>,
    /// Health and reflection of what is served here: seldom called, so routed by tonic.
    others: tonic::service::Routes,
    health: HealthService,
    limit: Arc<InFlight>,
    watcher: Watcher,
}

/// Counts the calls that are being answered, of all listeners together.
pub struct InFlight {
    calls: AtomicUsize,
    most: usize,
    metrics: Arc<Metrics>,
}

impl InFlight {
    /// At most `most` calls at once; one more is answered `RESOURCE_EXHAUSTED`.
    #[must_use]
    pub fn new(most: usize, metrics: Arc<Metrics>) -> Self {
        Self { calls: AtomicUsize::new(0), most, metrics }
    }
}

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
    pub fn new(health: HealthService, limit: Arc<InFlight>) -> Result<Self, ReflectionError> {
        let others = others(&health)?;
        let (check, record, tokens) = (None, None, None);
        let watcher = Watcher::new(None);
        Ok(Self { check, record, tokens, others, health, limit, watcher })
    }

    /// Watched by `watcher`, which may trace.
    #[must_use]
    pub fn watched_by(mut self, watcher: Watcher) -> Self {
        self.watcher = watcher;
        self
    }

    /// Checks too.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_checks(mut self, checks: CheckService) -> Result<Self, ReflectionError> {
        self.check = Some(checks);
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

    /// Answers a call; `guard` lives as long as its answer is being sent, and streams that could
    /// go on end once `ending` is cancelled.
    pub(super) fn call(
        &self,
        mut request: Request<Incoming>,
        ending: &CancellationToken,
        guard: impl Send + 'static,
    ) -> Answering {
        if request.uri().path().starts_with("/grpc.health.v1.Health/") {
            // A probe must not have a busy process ended for being busy.
            let call = self.others.clone().call(request);
            return Box::pin(async move { held(infallible(call.await), guard) });
        }
        let Some(counted) = Counted::new(&self.limit) else {
            let message = "too many calls at once; do not send, try again shortly";
            let status = status::busy(message);
            self.watcher.turned_away(&request, &status);
            return refuse(&status);
        };
        let path = request.uri().path();
        if !call::is_known(path) && !path.starts_with("/grpc.reflection.") {
            return refuse(&status::unknown_method(path, self.health.services()));
        }
        let guard = (guard, counted);
        let patience = patience(&request);
        if let Some(method) = path.strip_prefix(CHECKS_PATH).and_then(Method::named) {
            let Some(service) = self.check.clone() else {
                return refuse(&Status::unimplemented(
                    "checks are not served on this listener, but on those of --listen and --unix",
                ));
            };
            let watched = self.watcher.check(&mut request);
            let ending = ending.clone();
            let answering = Box::pin(async move {
                let response = within(patience, service.call(method, request, &ending)).await;
                if method.is_stream() { held(response, guard) } else { response }
            });
            return watch(watched, answering);
        }
        if path.starts_with("/consent.v1.RecordService/") {
            let watched = self.watcher.begin(&mut request);
            return watch(watched, self.call_record(request, guard));
        }
        let call = self.others.clone().call(request);
        let call = async move { infallible(call.await) };
        Box::pin(async move { held(within(patience, call).await, guard) })
    }

    fn call_record(&self, request: Request<Incoming>, guard: impl Send + 'static) -> Answering {
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
        let call = service.clone().call(request);
        let call = async move { infallible(call.await) };
        Box::pin(async move { held(within(patience, call).await, guard) })
    }
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
    let response = status.clone().into_http();
    Box::pin(std::future::ready(response))
}

/// One call, until it is answered.
struct Counted(Arc<InFlight>);

impl Counted {
    fn new(limit: &Arc<InFlight>) -> Option<Self> {
        let counted = Self(Arc::clone(limit));
        let before = limit.calls.fetch_add(1, Ordering::Relaxed);
        if before >= limit.most {
            limit.metrics.refused("in_flight");
            return None;
        }
        Some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer that may be a stream, and what is held until its end.
struct Held<G> {
    body: Body,
    _guard: G,
}

fn held(response: Response<Body>, guard: impl Send + 'static) -> Response<Body> {
    response.map(|body| Body::new(Held { body, _guard: guard }))
}

impl<G> Unpin for Held<G> {}

impl<G> http_body::Body for Held<G> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
