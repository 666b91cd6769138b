//! Routes each call to its service, charges it to its connection, and refuses what is over a limit.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tonic_health::pb::health_server::HealthServer;
use tower::Service as _;

use super::auth::BearerTokens;
use super::body::{MeteredBody, ResponseBody};
use super::call_telemetry::CallTelemetry;
use super::connection_context::ConnectionContext;
use super::method::{Method, Service};
use super::pb::record_service_server::RecordServiceServer;
use super::record_service::MAX_ERASE;
use super::timeout_of;
use super::{
    CheckService, DESCRIPTOR_SET, HealthService, MAX_REQUEST_BYTES, RecordService, status,
};
use crate::budget::{Charge, ConnectionBudget, LimitReached, Pool};

/// The response of a call, once it begins.
pub(super) type ResponseFuture = Pin<Box<dyn Future<Output = Response<ResponseBody>> + Send>>;

/// The longest that a request may take to arrive, and a call until its response begins. It exceeds
/// every wait of our own but those of [`EraseUser`](Method::EraseUser).
const MAX_CALL: Duration = Duration::from_secs(35);

/// The longest that a call may take that erases a user: the erasure itself ends a little before.
const MAX_ERASE_CALL: Duration = MAX_ERASE.saturating_add(Duration::from_secs(5));

/// About the memory of an open unary call: its task, its header table, HTTP/2's state of it, and
/// [`INCLUDED_BYTES`](super::body::INCLUDED_BYTES) of its message.
const CALL_BYTES: usize = 6 * 1024;
/// About the memory of an open stream, whose larger buffers stay allocated; with
/// [`ANSWER_BYTES`](super::body::ANSWER_BYTES) of its responses.
const STREAM_BYTES: usize = 16 * 1024;
/// About the memory of a health check, or of a health watch.
const PROBE_BYTES: usize = 8 * 1024;

/// The services of one listener. Clones share them.
#[derive(Clone)]
pub struct Router {
    check: Option<Arc<CheckService>>,
    record: Option<RecordServiceServer<RecordService>>,
    tokens: Option<BearerTokens>,
    /// Health, and reflection of the services that are served here. They are called seldom, so tonic
    /// routes them.
    others: tonic::service::Routes,
    health: HealthService,
    telemetry: CallTelemetry,
}

/// The descriptors of the contract cannot be reflected.
#[derive(Debug, thiserror::Error)]
#[error("the contract's descriptors are damaged: {0}")]
pub struct ReflectionError(#[from] tonic_reflection::server::Error);

impl Router {
    /// A router to health and reflection alone.
    ///
    /// # Errors
    ///
    /// [`ReflectionError`] if the binary contains damaged descriptors.
    pub fn new(health: HealthService) -> Result<Self, ReflectionError> {
        let others = others(&health)?;
        let (check, record, tokens) = (None, None, None);
        let telemetry = CallTelemetry::new(None);
        Ok(Self { check, record, tokens, others, health, telemetry })
    }

    /// Logs and traces calls by `telemetry`.
    #[must_use]
    pub fn with_telemetry(mut self, telemetry: CallTelemetry) -> Self {
        self.telemetry = telemetry;
        self
    }

    /// Serves checks, with the telemetry that was set before.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_checks(mut self, checks: CheckService) -> Result<Self, ReflectionError> {
        self.check = Some(Arc::new(checks.with_telemetry(self.telemetry.clone())));
        self.announce(Service::Consent)
    }

    /// Serves recordings. If `tokens` is given, a call needs one of them.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_records(
        mut self,
        records: RecordService,
        tokens: Option<BearerTokens>,
    ) -> Result<Self, ReflectionError> {
        let record = RecordServiceServer::new(records);
        self.record = Some(record.max_decoding_message_size(MAX_REQUEST_BYTES));
        self.tokens = tokens;
        self.announce(Service::Record)
    }

    /// Adds a service to health and reflection.
    fn announce(mut self, service: Service) -> Result<Self, ReflectionError> {
        self.health.add(service.name());
        self.others = others(&self.health)?;
        Ok(self)
    }

    /// Whether checks are served.
    #[must_use]
    pub fn serves_checks(&self) -> bool {
        self.check.is_some()
    }

    /// Whether recordings are served.
    #[must_use]
    pub fn serves_records(&self) -> bool {
        self.record.is_some()
    }

    /// Answers a call, and charges it to its connection. Streams that could go on end with it.
    pub(super) fn call(
        &self,
        request: Request<Incoming>,
        connection: &ConnectionContext,
    ) -> ResponseFuture {
        let Some(header_bytes) = grpc_header_bytes(request.headers()) else {
            return not_grpc(request.headers());
        };
        let path = request.uri().path();
        if let Some(method) = Method::from_path(path) {
            if let Err(status) = self.authorize(method, request.headers(), connection) {
                connection.budget.count_unauthenticated();
                self.telemetry.on_rejected(Some(method), request.headers(), &status);
                return refuse(&status);
            }
            let open = if method.is_stream() { STREAM_BYTES } else { CALL_BYTES };
            let pool = match method.service() {
                Service::Consent => Pool::Checks,
                Service::Record => Pool::Records,
            };
            let admitted = admit(&connection.budget, pool, open + header_bytes);
            return match (admitted, method.service()) {
                (Err(limit), _) => self.reject(Some(method), &request, limit),
                (Ok(charge), Service::Consent) => {
                    self.call_check(method, request, connection, charge)
                }
                (Ok(charge), Service::Record) => {
                    self.call_record(method, request, connection, charge)
                }
            };
        }
        let (pool, open) = if path.starts_with("/grpc.health.v1.Health/") {
            // Probes have a pool of their own: a busy process must not be restarted for being busy.
            (Pool::Probes, PROBE_BYTES)
        } else if path.starts_with("/grpc.reflection.") {
            (Pool::Checks, STREAM_BYTES)
        } else {
            return refuse(&status::unknown_method(path, self.health.services()));
        };
        match admit(&connection.budget, pool, open + header_bytes) {
            Ok(charge) => self.call_other(request, connection, charge),
            Err(limit) => self.reject(None, &request, limit),
        }
    }

    /// Whether the client may call a method: by a bearer token, which is for recording alone, or by a role.
    fn authorize(
        &self,
        method: Method,
        headers: &HeaderMap,
        connection: &ConnectionContext,
    ) -> Result<(), Status> {
        let by_role = connection.peer.has(method.role());
        let tokens = match method.service() {
            Service::Record => self.tokens.as_ref(),
            Service::Consent => None,
        };
        match (by_role, tokens) {
            (Some(true), _) | (None, None) => Ok(()),
            (_, Some(tokens)) if tokens.authorize(headers) => Ok(()),
            // A client without a certificate is asked for the token, which it may have forgotten.
            (_, Some(_)) if !connection.peer.is_identified() => Err(Status::unauthenticated(
                "recording needs the header `authorization: Bearer TOKEN`, with a token of the \
                 server's --record-token-file",
            )),
            (_, _) => Err(Status::permission_denied(format!(
                "the client has no certificate, or no name in it has the role `{}`: see [roles] in the \
                 server's --config, and its --anonymous-roles",
                method.role().name()
            ))),
        }
    }

    fn call_check(
        &self,
        method: Method,
        mut request: Request<Incoming>,
        connection: &ConnectionContext,
        charge: Charge,
    ) -> ResponseFuture {
        let Some(service) = self.check.clone() else {
            return refuse(&Status::unimplemented(
                "checks are not served on this listener, but on those of --listen and --unix",
            ));
        };
        let call_timeout = call_timeout(Some(method), request.headers());
        let watch = self.telemetry.watch(method, &mut request);
        let ending = connection.ending.clone();
        if method.is_stream() {
            let request = request.map(|body| MeteredBody::stream(body, charge.empty()));
            watch.observe(async move {
                let call = service.call_stream(method, request, &ending, &charge);
                with_timeout(call_timeout, call)
                    .await
                    .map(|body| ResponseBody::stream(body, charge))
            })
        } else {
            let request = request.map(|body| MeteredBody::unary(body, charge.empty()));
            watch.observe(async move {
                let call = service.call(method, request, &charge);
                with_timeout(call_timeout, call).await.map(|body| ResponseBody::unary(body, charge))
            })
        }
    }

    fn call_record(
        &self,
        method: Method,
        mut request: Request<Incoming>,
        connection: &ConnectionContext,
        charge: Charge,
    ) -> ResponseFuture {
        let Some(service) = &self.record else {
            return refuse(&Status::unimplemented(
                "events are not recorded on this listener; --record says on which they are",
            ));
        };
        let call_timeout = call_timeout(Some(method), request.headers());
        let watch = self.telemetry.watch(method, &mut request);
        // The handler charges it for what it keeps of the request, and ends with it.
        request.extensions_mut().insert(connection.clone());
        let mut service = service.clone();
        if method.is_stream() {
            let call = service.call(request.map(|body| MeteredBody::stream(body, charge.empty())));
            let call = async move { into_ok(call.await) };
            watch.observe(async move {
                with_timeout(call_timeout, call)
                    .await
                    .map(|body| ResponseBody::stream(body, charge))
            })
        } else {
            let body = |body| MeteredBody::unary(body, charge.empty()).arriving_within(MAX_CALL);
            let call = service.call(request.map(body));
            let call = async move { into_ok(call.await) };
            watch.observe(async move {
                with_timeout(call_timeout, call).await.map(|body| ResponseBody::unary(body, charge))
            })
        }
    }

    /// Calls health or reflection.
    fn call_other(
        &self,
        mut request: Request<Incoming>,
        connection: &ConnectionContext,
        charge: Charge,
    ) -> ResponseFuture {
        let call_timeout = call_timeout(None, request.headers());
        request.extensions_mut().insert(connection.clone());
        let request = request.map(|body| MeteredBody::stream(body, charge.empty()));
        let call = self.others.clone().call(request);
        let call = async move { into_ok(call.await) };
        Box::pin(async move {
            with_timeout(call_timeout, call).await.map(|body| ResponseBody::stream(body, charge))
        })
    }

    /// Refuses a call that is over a limit.
    fn reject(
        &self,
        method: Option<Method>,
        request: &Request<Incoming>,
        limit: LimitReached,
    ) -> ResponseFuture {
        let status = status::limit_reached(limit);
        self.telemetry.on_rejected(method, request.headers(), &status);
        refuse(&status)
    }
}

/// Charges an open call. A connection beyond the listener's capacity may make no calls but probes.
fn admit(
    connection: &Arc<ConnectionBudget>,
    pool: Pool,
    bytes: usize,
) -> Result<Charge, LimitReached> {
    if connection.is_for_probes_only() && pool != Pool::Probes {
        return Err(LimitReached::Connections);
    }
    connection.charge(pool, bytes)
}

/// About how many bytes the headers of a call take; `None` if it is not a call of gRPC.
fn grpc_header_bytes(headers: &HeaderMap) -> Option<usize> {
    let mut bytes = 0;
    let mut is_grpc = false;
    for (name, value) in headers {
        bytes += name.as_str().len() + value.len();
        is_grpc |= name == header::CONTENT_TYPE && is_grpc_type(value.as_bytes());
    }
    is_grpc.then_some(bytes)
}

/// Whether a content type is gRPC's with protocol buffers. A type that is only similar (gRPC-Web, or
/// gRPC with JSON) would be decoded as something that was not sent. Media types are case-insensitive,
/// and parameters may follow (RFC 9110, section 8.3.1).
fn is_grpc_type(value: &[u8]) -> bool {
    let media_type = value.split(|byte| *byte == b';').next().unwrap_or_default();
    let media_type = media_type.trim_ascii();
    let known: [&[u8]; 2] = [b"application/grpc", b"application/grpc+proto"];
    known.iter().any(|known| media_type.eq_ignore_ascii_case(known))
}

/// The response to a content type that is not gRPC's. The protocol asks for an HTTP status, so that
/// other clients do not take the response for a success.
fn not_grpc(headers: &HeaderMap) -> ResponseFuture {
    let message = match headers.get(header::CONTENT_TYPE) {
        None => "no content-type: it must be application/grpc",
        Some(_) => "the content-type must be application/grpc, or application/grpc+proto",
    };
    let mut response = Status::invalid_argument(message).into_http::<Body>();
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    // A client that sends JSON shows its user the body, and not the status of gRPC.
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    let body =
        Body::new(http_body_util::Full::from(format!("this port speaks gRPC alone: {message}\n")));
    let response = response.map(|_| ResponseBody::refusal(body));
    Box::pin(std::future::ready(response))
}

/// Health, and reflection of it and of the services that it knows.
fn others(health: &HealthService) -> Result<tonic::service::Routes, ReflectionError> {
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that clients can decode the details of an error.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(tonic_health::pb::health_server::SERVICE_NAME);
        health.services().iter().fold(builder, |builder, name| builder.with_service_name(*name))
    };
    Ok(tonic::service::Routes::new(HealthServer::new(health.clone()))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare())
}

/// How long a call may take until its response begins: the caller's timeout, or the limit of its
/// method if that is shorter. `None` stands for a method of health or reflection.
fn call_timeout(method: Option<Method>, headers: &HeaderMap) -> Duration {
    let limit = match method {
        Some(Method::EraseUser) => MAX_ERASE_CALL,
        _ => MAX_CALL,
    };
    let header = headers.get("grpc-timeout").and_then(|value| value.to_str().ok());
    header.and_then(timeout_of).map_or(limit, |timeout| timeout.min(limit))
}

/// Ends a call after its timeout, so that one whose request never arrives whole is not counted as
/// open for ever.
async fn with_timeout(
    call_timeout: Duration,
    call: impl Future<Output = Response<Body>>,
) -> Response<Body> {
    tokio::time::timeout(call_timeout, call).await.unwrap_or_else(|_| status::late().into_http())
}

fn into_ok<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
    }
}

fn refuse(status: &Status) -> ResponseFuture {
    let response = status.clone().into_http::<Body>().map(ResponseBody::refusal);
    Box::pin(std::future::ready(response))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_timeout_of_an_erase_leaves_it_the_time_that_it_may_take() {
        let none = HeaderMap::new();
        assert!(call_timeout(Some(Method::EraseUser), &none) > MAX_ERASE);
        assert_eq!(call_timeout(Some(Method::RecordEvent), &none), MAX_CALL);
        assert_eq!(call_timeout(None, &none), MAX_CALL);
        let mut minute = HeaderMap::new();
        minute.insert("grpc-timeout", "1M".parse().unwrap());
        assert_eq!(call_timeout(Some(Method::EraseUser), &minute), Duration::from_mins(1));
        assert_eq!(call_timeout(Some(Method::CanSend), &minute), MAX_CALL);
    }
}
