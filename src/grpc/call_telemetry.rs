//! Logs and traces of single calls: a span if the call is sampled, and log lines.
//!
//! Recordings are always observed: next to a disk's sync the cost does not matter. A check is
//! observed only if traces are exported or calls are logged. Otherwise next to none of this is on its
//! path: only a limit that refuses it, the one failure of a check that is the server's fault, is logged.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use consentd_proto::code_name;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::{Instrument as _, Level, debug, field, warn};

use super::body::ResponseBody;
use super::method::{Method, Service};
use super::router::ResponseFuture;
use crate::checker::CheckResult;
use crate::net::log_throttle::LogThrottle;
use crate::telemetry::{Parent, Span, Tracer};

/// The target of log lines about calls, for filters such as `--log info,consentd::calls=debug`.
const CALLS: &str = "consentd::calls";

/// The longest request id that is logged, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// The shortest time between two warnings of one status code.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Observes calls. Clones share the throttles of its warnings.
#[derive(Clone)]
pub struct CallTelemetry(Arc<Shared>);

struct Shared {
    tracer: Option<Tracer>,
    failures: Arc<FailureThrottles>,
}

impl CallTelemetry {
    /// Logs calls, and traces them if there is a tracer.
    #[must_use]
    pub fn new(tracer: Option<Tracer>) -> Self {
        Self(Arc::new(Shared { tracer, failures: Arc::new(FailureThrottles::new()) }))
    }

    /// Begins to watch a call. A check is observed only if it may be sampled or calls are logged.
    pub(super) fn watch<B>(&self, method: Method, request: &mut Request<B>) -> CallWatch {
        let even_unsampled = method.service() == Service::Record || are_logged();
        match self.begin(method, request.headers(), even_unsampled) {
            Some(call) => {
                // For the handler, which alone knows what it decided.
                request.extensions_mut().insert(call.notes.clone());
                CallWatch::Observed(Box::new(call))
            }
            None => CallWatch::Limits(LimitWatch::new(self.clone(), method, request.headers())),
        }
    }

    /// Logs a call that was over a limit, or had no valid token. There may be many, and most are only
    /// counted, as is every call of a method that the contract does not have.
    pub(super) fn on_rejected(&self, method: Option<Method>, headers: &HeaderMap, status: &Status) {
        let throttle = self.0.failures.of(status.code());
        let is_due = throttle.is_some_and(LogThrottle::is_due);
        let call = method.and_then(|method| self.begin(method, headers, is_due || are_logged()));
        match (call, throttle) {
            (Some(call), _) => call.end(status),
            (None, Some(throttle)) => throttle.suppress(1),
            (None, None) => {}
        }
    }

    /// Logs an item of a stream that was refused by a limit, which does not end the call.
    pub(super) fn item_refused(&self, cause: &str) {
        self.0.failures.item_failed(Code::ResourceExhausted, cause);
    }

    fn begin(
        &self,
        method: Method,
        headers: &HeaderMap,
        even_unsampled: bool,
    ) -> Option<ObservedCall> {
        if self.0.tracer.is_none() && !even_unsampled {
            return None;
        }
        let text = |name| header_text(headers, name);
        let traceparent = text("traceparent");
        if !even_unsampled && traceparent.is_some_and(Parent::is_unsampled) {
            return None;
        }
        let parent = traceparent.and_then(|parent| Parent::read(parent, text("tracestate")));
        let tracer = self.0.tracer.as_ref();
        let mut span = tracer.and_then(|tracer| tracer.start(method.full_name(), parent.as_ref()));
        if span.is_none() && !even_unsampled {
            return None;
        }
        // Its level is that of errors, so that every line that is logged has the call's ids.
        let log = tracing::error_span!(
            target: CALLS,
            "call",
            method = method.full_name(),
            request_id = field::Empty,
            trace_id = field::Empty
        );
        if let Some(id) = text("x-request-id").filter(|id| is_request_id(id)) {
            log.record("request_id", id);
            if let Some(span) = &mut span {
                span.set("consent.request_id", id.to_owned());
            }
        }
        let trace_id = span.as_ref().map(Span::trace_id);
        if let Some(id) = trace_id.or_else(|| parent.as_ref().map(Parent::trace_id)) {
            log.record("trace_id", id);
        }
        let notes = CallNotes { failures: Arc::clone(&self.0.failures), outcome: Arc::default() };
        Some(ObservedCall { method, started: Instant::now(), log, span, notes, ended: false })
    }
}

/// Whether every call is logged.
fn are_logged() -> bool {
    tracing::enabled!(target: CALLS, Level::DEBUG)
}

fn header_text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Whether a request id is short and consists of visible ASCII characters. Any other is omitted, not
/// truncated.
fn is_request_id(text: &str) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Notes that a handler adds to an observed call. It finds them in the request's extensions.
#[derive(Clone)]
pub(super) struct CallNotes {
    failures: Arc<FailureThrottles>,
    outcome: Arc<OnceLock<CallOutcome>>,
}

#[derive(Clone, Copy)]
enum CallOutcome {
    Decided { allowed: bool, reason: &'static str },
    Batch { size: usize },
}

impl CallNotes {
    /// Notes the one decision of a call.
    pub(super) fn decided(&self, result: &CheckResult) {
        let reason = result.decision.reason;
        let (allowed, reason) = (reason.allows(), reason.name());
        let _ = self.outcome.set(CallOutcome::Decided { allowed, reason });
    }

    /// Notes the number of requests in a batch.
    pub(super) fn batch(&self, size: usize) {
        let _ = self.outcome.set(CallOutcome::Batch { size });
    }

    /// Logs an item of a stream that failed, which does not end the call.
    pub(super) fn item_failed(&self, code: Code, cause: &str) {
        self.failures.item_failed(code, cause);
    }
}

/// An observed call, until its response was sent or given up.
pub(super) struct ObservedCall {
    method: Method,
    started: Instant,
    log: tracing::Span,
    span: Option<Span>,
    notes: CallNotes,
    ended: bool,
}

impl ObservedCall {
    fn end(mut self, status: &Status) {
        self.report(status.code(), status.message());
    }

    fn report(&mut self, code: Code, cause: &str) {
        self.ended = true;
        let log = self.log.clone();
        let _in = log.enter();
        let outcome = self.notes.outcome.get().copied();
        // A check before the table is loaded is answered UNAVAILABLE, which is no fault.
        let is_loading = code == Code::Unavailable && self.method.service() == Service::Consent;
        if !is_loading && let Some(suppressed) = self.notes.failures.record(code) {
            warn!(target: CALLS, code = code_name(code), cause, suppressed, "a call failed");
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let code_name = code_name(code);
        match outcome {
            Some(CallOutcome::Decided { allowed, reason }) => {
                debug!(target: CALLS, code = code_name, seconds, allowed, reason, "answered");
            }
            Some(CallOutcome::Batch { size: batch }) => {
                debug!(target: CALLS, code = code_name, seconds, batch, "answered");
            }
            None => debug!(target: CALLS, code = code_name, seconds, "answered"),
        }
        if let Some(mut span) = self.span.take() {
            self.finish(&mut span, code, outcome);
        }
    }

    /// Sets the span's attributes by OpenTelemetry's conventions for gRPC, and our own.
    fn finish(&self, span: &mut Span, code: Code, outcome: Option<CallOutcome>) {
        span.set("rpc.system", "grpc");
        span.set("rpc.service", self.method.service().name());
        span.set("rpc.method", self.method.name());
        span.set("rpc.grpc.status_code", i64::from(i32::from(code)));
        match outcome {
            Some(CallOutcome::Decided { allowed, reason }) => {
                span.set("consent.allowed", allowed);
                span.set("consent.reason", reason);
            }
            Some(CallOutcome::Batch { size }) => {
                span.set("consent.batch_size", i64::try_from(size).unwrap_or(i64::MAX));
            }
            None => {}
        }
        // The codes that the conventions count as a server's errors.
        if matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ) {
            span.fail();
        }
    }
}

impl Drop for ObservedCall {
    fn drop(&mut self) {
        if !self.ended {
            self.report(Code::Cancelled, "the caller gave up, or its connection ended");
        }
    }
}

/// The throttles of warnings about failed calls: one for each code that is the server's fault, overload,
/// or a caller without a valid token or role, who may be trying what is possible.
struct FailureThrottles([(Code, LogThrottle); 7]);

impl FailureThrottles {
    fn new() -> Self {
        let codes = [
            Code::Unknown,
            Code::ResourceExhausted,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
            Code::Unauthenticated,
            Code::PermissionDenied,
        ];
        Self(codes.map(|code| (code, LogThrottle::new(LOG_INTERVAL))))
    }

    /// The throttle of a code; `None` if such a failure is not logged.
    fn of(&self, code: Code) -> Option<&LogThrottle> {
        self.0.iter().find(|(one, _)| *one == code).map(|(_, throttle)| throttle)
    }

    /// Logs an item of a stream that failed.
    fn item_failed(&self, code: Code, cause: &str) {
        if let Some(suppressed) = self.record(code) {
            warn!(
                target: CALLS,
                code = code_name(code),
                cause,
                suppressed,
                "a request in a gRPC stream failed"
            );
        }
    }

    /// Counts a failure. If it is to be logged, returns how many of its code were not since the last
    /// that was.
    fn record(&self, code: Code) -> Option<u64> {
        let recorded = self.of(code)?.record(1)?;
        Some(recorded.saturating_sub(1))
    }
}

/// The headers that name a call in the log and in traces.
const ID_HEADERS: [&str; 2] = ["x-request-id", "traceparent"];

/// Watches a check that is not observed, until its response was sent or given up.
pub(super) struct LimitWatch {
    telemetry: CallTelemetry,
    method: Method,
    /// The values of [`ID_HEADERS`]. Most checks are not refused, so no map is built of them here.
    ids: [Option<HeaderValue>; ID_HEADERS.len()],
}

impl LimitWatch {
    fn new(telemetry: CallTelemetry, method: Method, headers: &HeaderMap) -> Self {
        Self { telemetry, method, ids: ID_HEADERS.map(|name| headers.get(name).cloned()) }
    }

    fn end(self, status: &Status) {
        if status.code() != Code::ResourceExhausted {
            return;
        }
        let ids = ID_HEADERS.into_iter().zip(self.ids);
        let ids = ids.filter_map(|(name, value)| Some((HeaderName::from_static(name), value?)));
        self.telemetry.on_rejected(Some(self.method), &ids.collect(), status);
    }
}

/// What a call's status is reported to: by the response's headers, or by its body, which has the
/// status in its trailers, the last frame.
pub(super) enum CallWatch {
    Observed(Box<ObservedCall>),
    Limits(LimitWatch),
}

pin_project! {
    /// The response of a watched call. An async block would hold the future of the response twice, once as what
    /// it captures and once as what it awaits, and that future is large.
    struct Watched<F> {
        #[pin]
        response: F,
        watch: Option<CallWatch>,
    }
}

impl<F: Future<Output = Response<ResponseBody>>> Future for Watched<F> {
    type Output = Response<ResponseBody>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.response.poll(context));
        Poll::Ready(match this.watch.take() {
            Some(watch) => watch.watch_response(response),
            None => response,
        })
    }
}

impl CallWatch {
    /// Watches the call's response.
    pub(super) fn observe(
        self,
        response: impl Future<Output = Response<ResponseBody>> + Send + 'static,
    ) -> ResponseFuture {
        match self.log().cloned() {
            Some(log) => {
                Box::pin(Watched { response: response.instrument(log), watch: Some(self) })
            }
            None => Box::pin(Watched { response, watch: Some(self) }),
        }
    }

    fn watch_response(self, response: Response<ResponseBody>) -> Response<ResponseBody> {
        if let Some(status) = Status::from_header_map(response.headers()) {
            self.end(&status);
            return response;
        }
        match &self {
            // Limits are checked before a unary response has a body.
            Self::Limits(watch) if !watch.method.is_stream() => response,
            _ => response.map(|body| body.watched(self)),
        }
    }

    /// The span that lines are logged in while the response is made, if the call is observed.
    pub(super) fn log(&self) -> Option<&tracing::Span> {
        match self {
            Self::Observed(call) => Some(&call.log),
            Self::Limits(_) => None,
        }
    }

    pub(super) fn end(self, status: &Status) {
        match self {
            Self::Observed(call) => call.end(status),
            Self::Limits(watch) => watch.end(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_of_a_check_without_tracing_or_logging_allocates_nothing() {
        let method = Method::CanSend;
        let mut request = Request::post(format!("/{}", method.full_name()));
        for (name, value) in [
            ("x-request-id", "order-42"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ] {
            // As in HTTP/2, where a value shares the memory of the frame that it came in.
            request = request.header(name, HeaderValue::from_static(value));
        }
        let mut request = request.body(()).unwrap();
        let off = CallTelemetry::new(None);
        let check = |telemetry: &CallTelemetry, request: &mut Request<()>| {
            telemetry.watch(method, request).log().is_some()
        };
        let spent = allocation_counter::measure(|| assert!(!check(&off, &mut request)));
        assert_eq!(spent.count_total, 0);
        assert!(request.extensions().is_empty());

        let endpoint = "http://localhost:4317".parse().unwrap();
        let metrics = crate::metrics::Metrics::new(prometheus::Registry::new()).unwrap();
        let settings = crate::telemetry::TraceSettings { endpoint, ca: None, ratio: 0.0 };
        let (tracer, _exporter) = crate::telemetry::traces(settings, Arc::new(metrics));
        let on = CallTelemetry::new(Some(tracer));
        assert!(check(&on, &mut request), "it is sampled");
        let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        request.headers_mut().insert("traceparent", HeaderValue::from_static(unsampled));
        let spent = allocation_counter::measure(|| assert!(!check(&on, &mut request)));
        assert_eq!(spent.count_total, 0, "its caller does not sample it");
        request.headers_mut().remove("traceparent");
        assert!(!check(&on, &mut request), "this creates the thread's random number generator");
        let spent = allocation_counter::measure(|| assert!(!check(&on, &mut request)));
        assert_eq!(spent.count_total, 0, "nor do we");
    }

    #[test]
    fn is_request_id_takes_short_visible_text_alone() {
        for good in ["1", "order-42/try:1", &"x".repeat(128)] {
            assert!(is_request_id(good), "{good}");
        }
        for bad in ["", " ", "a b", "tab\t", "é", &"x".repeat(129)] {
            assert!(!is_request_id(bad), "{bad}");
        }
    }

    #[test]
    fn record_logs_each_code_of_ours_once_and_counts_the_rest() {
        let failures = FailureThrottles::new();
        assert_eq!(failures.record(Code::Internal), Some(0));
        assert_eq!(failures.record(Code::Unavailable), Some(0), "another code");
        assert_eq!(failures.record(Code::Internal), None);
        assert_eq!(failures.record(Code::InvalidArgument), None, "the caller's fault");
    }
}
