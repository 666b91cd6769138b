//! What is told of a single call: a span where it is sampled, and lines in the log.
//!
//! Recordings are always watched: beside a disk's sync it costs nothing. A check is watched only
//! where somebody wants to see it, because it is sampled or calls are logged: otherwise nothing of
//! this is on its path, and it cannot fail by our fault but for the limit of calls, where it is
//! told as it is turned away.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::{Instrument as _, Level, debug, field, warn};

use super::router::Answering;
use crate::checker::CheckResult;
use crate::telemetry::{Parent, Span, Tracer};

/// The contract's methods. What else is called is answered `UNIMPLEMENTED`, and is not told: its
/// name is the caller's text.
const METHODS: [&str; 15] = [
    "consent.v1.ConsentService/CanSend",
    "consent.v1.ConsentService/BatchCanSend",
    "consent.v1.ConsentService/StreamCanSend",
    "consent.v1.ConsentService/FilterRecipients",
    "consent.v1.ConsentService/GetConsent",
    "consent.v1.ConsentService/WatchConsents",
    "consent.v1.ConsentService/GetStatus",
    "consent.v1.RecordService/RecordEvent",
    "consent.v1.RecordService/RecordEvents",
    "consent.v1.RecordService/ListEvents",
    "consent.v1.RecordService/ExportEvents",
    "consent.v1.RecordService/CheckEvents",
    "consent.v1.RecordService/ListUserEvents",
    "consent.v1.RecordService/ListDueOptIns",
    "consent.v1.RecordService/EraseUser",
];

/// Whether a path is that of a method of the contract.
pub(super) fn is_known(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|path| METHODS.contains(&path))
}

/// The method of these services whose name is nearest to what was called.
pub(super) fn nearest(called: &str, services: &[&str]) -> Option<&'static str> {
    let served = METHODS
        .into_iter()
        .filter(|method| services.iter().any(|service| method.split('/').next() == Some(*service)));
    let likeness = |method: &str| strsim::normalized_damerau_levenshtein(method, called);
    let nearest = served.map(|method| (likeness(method), method));
    nearest
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, m)| m)
}

/// What their lines go by in a filter of the log: `--log info,consentd::calls=debug`.
const CALLS: &str = "consentd::calls";

/// The most bytes of a request id that are told.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// How long a failure keeps others of its kind out of the log, in milliseconds.
const QUIET_MILLIS: u64 = 1_000;

/// Watches calls; clones share the count of what was not told.
#[derive(Clone)]
pub struct Watcher {
    tracer: Option<Tracer>,
    failures: Arc<Failures>,
}

impl Watcher {
    /// Watches, and traces by `tracer` where there is one.
    #[must_use]
    pub fn new(tracer: Option<Tracer>) -> Self {
        Self { tracer, failures: Arc::new(Failures::new()) }
    }

    /// Begins to watch a check, where somebody wants to see this one.
    pub(super) fn check<B>(&self, request: &mut Request<B>) -> Option<Call> {
        let logged = are_logged();
        if self.tracer.is_none() && !logged {
            return None;
        }
        self.begin_if(request, logged)
    }

    /// Begins to watch a call.
    pub(super) fn begin<B>(&self, request: &mut Request<B>) -> Option<Call> {
        self.begin_if(request, true)
    }

    fn begin_if<B>(&self, request: &mut Request<B>, though_unsampled: bool) -> Option<Call> {
        let call = self.read(request.uri().path(), request.headers(), though_unsampled)?;
        // For the handler, which alone knows what it decided.
        request.extensions_mut().insert(call.notes.clone());
        Some(call)
    }

    /// Tells of a call that met a limit. Under overload they are many, and most are only counted.
    pub(super) fn turned_away(&self, path: &str, headers: &HeaderMap, status: &Status) {
        let due = self.failures.is_due(status.code(), self.failures.now());
        match self.read(path, headers, due || are_logged()) {
            Some(call) => call.end(status),
            None => self.failures.leave_out(status.code()),
        }
    }

    fn read(&self, path: &str, headers: &HeaderMap, though_unsampled: bool) -> Option<Call> {
        if self.tracer.is_none() && !though_unsampled {
            return None;
        }
        let path = path.strip_prefix('/')?;
        let method = METHODS.into_iter().find(|method| *method == path)?;
        let text = |name| text_of(headers, name);
        let traceparent = text("traceparent");
        if !though_unsampled && traceparent.is_some_and(Parent::is_unsampled) {
            return None;
        }
        let parent = traceparent.and_then(|parent| Parent::read(parent, text("tracestate")));
        let mut span =
            self.tracer.as_ref().and_then(|tracer| tracer.start(method, parent.as_ref()));
        if span.is_none() && !though_unsampled {
            return None;
        }
        // Enabled where any line is, so that each has the call's ids.
        let log = tracing::error_span!(
            target: CALLS,
            "call",
            method,
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
        let notes = Notes { failures: Arc::clone(&self.failures), said: Arc::default() };
        Some(Call { method, started: Instant::now(), log, span, notes, ended: false })
    }
}

/// Whether every call is logged.
fn are_logged() -> bool {
    tracing::enabled!(target: CALLS, Level::DEBUG)
}

fn text_of<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Whether it is short and of visible characters alone. What is not is left out, not cut.
fn is_request_id(text: &str) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// What a handler notes of a call that is watched. It finds them in the request's extensions.
#[derive(Clone)]
pub(super) struct Notes {
    failures: Arc<Failures>,
    said: Arc<OnceLock<Said>>,
}

#[derive(Clone, Copy)]
enum Said {
    Decided { allowed: bool, reason: &'static str },
    Batch(usize),
}

impl Notes {
    /// One decision was made.
    pub(super) fn decided(&self, answer: &CheckResult) {
        let reason = answer.decision.reason;
        let (allowed, reason) = (reason.allows(), reason.name());
        let _ = self.said.set(Said::Decided { allowed, reason });
    }

    /// A batch of so many questions came.
    pub(super) fn batch(&self, size: usize) {
        let _ = self.said.set(Said::Batch(size));
    }

    /// An item of a stream failed, which does not end the call.
    pub(super) fn item_failed(&self, code: Code, cause: &str) {
        if is_our_fault(code)
            && let Some(untold) = self.failures.tell(code, self.failures.now())
        {
            warn!(target: CALLS, code = name(code), cause, untold, "a request in a gRPC stream failed");
        }
    }
}

/// A call that is watched, until its answer was sent or given up.
pub(super) struct Call {
    method: &'static str,
    started: Instant,
    log: tracing::Span,
    span: Option<Span>,
    notes: Notes,
    ended: bool,
}

impl Call {
    /// Watches over its answer.
    pub(super) fn watch(self, answering: Answering) -> Answering {
        Box::pin(async move {
            let response = answering.instrument(self.log.clone()).await;
            match Status::from_header_map(response.headers()) {
                Some(status) => {
                    self.end(&status);
                    response
                }
                None => response.map(|answer| {
                    answer.within(|body| Body::new(Watched { body, call: Some(self) }))
                }),
            }
        })
    }

    fn end(mut self, status: &Status) {
        self.tell(status.code(), status.message());
    }

    fn tell(&mut self, code: Code, cause: &str) {
        self.ended = true;
        let log = self.log.clone();
        let _in = log.enter();
        let said = self.notes.said.get().copied();
        if is_our_fault(code)
            // Whoever asks before the table was loaded is told so; it is no fault.
            && !(code == Code::Unavailable && self.method.starts_with("consent.v1.ConsentService/"))
            && let Some(untold) = self.notes.failures.tell(code, self.notes.failures.now())
        {
            warn!(target: CALLS, code = name(code), cause, untold, "a call failed");
        }
        let seconds = self.started.elapsed().as_secs_f64();
        match said {
            Some(Said::Decided { allowed, reason }) => {
                debug!(target: CALLS, code = name(code), seconds, allowed, reason, "answered");
            }
            Some(Said::Batch(batch)) => {
                debug!(target: CALLS, code = name(code), seconds, batch, "answered");
            }
            None => debug!(target: CALLS, code = name(code), seconds, "answered"),
        }
        if let Some(mut span) = self.span.take() {
            self.finish(&mut span, code, said);
        }
    }

    /// Gives the span what OpenTelemetry's conventions for gRPC ask for, and what we decided.
    fn finish(&self, span: &mut Span, code: Code, said: Option<Said>) {
        let (service, method) = self.method.split_once('/').unwrap_or_default();
        span.set("rpc.system", "grpc");
        span.set("rpc.service", service);
        span.set("rpc.method", method);
        span.set("rpc.grpc.status_code", i64::from(i32::from(code)));
        match said {
            Some(Said::Decided { allowed, reason }) => {
                span.set("consent.allowed", allowed);
                span.set("consent.reason", reason);
            }
            Some(Said::Batch(size)) => {
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

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.tell(Code::Cancelled, "the caller gave up, or its connection ended");
        }
    }
}

/// Whether it is the server that could not, for a fault or for overload.
fn is_our_fault(code: Code) -> bool {
    Failures::place(code).is_some()
}

/// A code's name, as the documentation of gRPC has it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Which failures are told: of each kind the first of a second, with how many were not told.
struct Failures {
    begun: Instant,
    kinds: [Kind; 5],
}

#[derive(Default)]
struct Kind {
    /// Until when others are not told, in milliseconds since `begun`.
    quiet_until: AtomicU64,
    untold: AtomicU64,
}

impl Failures {
    fn new() -> Self {
        Self { begun: Instant::now(), kinds: Default::default() }
    }

    fn place(code: Code) -> Option<usize> {
        let kinds = [
            Code::Unknown,
            Code::ResourceExhausted,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
        ];
        kinds.iter().position(|kind| *kind == code)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_due(&self, code: Code, now: u64) -> bool {
        let kind = Self::place(code).and_then(|place| self.kinds.get(place));
        kind.is_some_and(|kind| kind.quiet_until.load(Ordering::Relaxed) <= now)
    }

    /// Whether a failure is to be told, and how many of its kind were not since the last that was.
    fn tell(&self, code: Code, now: u64) -> Option<u64> {
        let kind = Self::place(code).and_then(|place| self.kinds.get(place))?;
        let quiet_until = kind.quiet_until.load(Ordering::Relaxed);
        let next = now.saturating_add(QUIET_MILLIS);
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        if quiet_until <= now
            && kind.quiet_until.compare_exchange(quiet_until, next, set, get).is_ok()
        {
            return Some(kind.untold.swap(0, Ordering::Relaxed));
        }
        self.leave_out(code);
        None
    }

    /// Counts a failure that is not told.
    fn leave_out(&self, code: Code) {
        if let Some(kind) = Self::place(code).and_then(|place| self.kinds.get(place)) {
            kind.untold.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// An answer's body, whose last frame tells what came of the call.
struct Watched {
    body: Body,
    call: Option<Call>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let log = this.call.as_ref().map_or_else(tracing::Span::none, |call| call.log.clone());
        let _in = log.enter();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        let trailers = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.trailers_ref());
        if let Some(status) = trailers.and_then(Status::from_header_map)
            && let Some(call) = this.call.take()
        {
            call.end(&status);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_contract_is_known() {
        let contract = prost_reflect::DescriptorPool::decode(crate::grpc::DESCRIPTOR_SET).unwrap();
        let methods = contract.services().flat_map(|service| {
            let name = |method: prost_reflect::MethodDescriptor| {
                format!("{}/{}", service.full_name(), method.name())
            };
            service.methods().map(name).collect::<Vec<_>>()
        });
        let methods: std::collections::BTreeSet<_> = methods.collect();
        assert_eq!(methods, METHODS.map(str::to_owned).into());
    }

    #[test]
    fn a_check_that_nobody_traces_or_logs_is_let_alone() {
        let mut request = Request::post(format!("/{}", METHODS[0]));
        for (name, value) in [
            ("x-request-id", "order-42"),
            ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
        ] {
            request = request.header(name, value);
        }
        let mut request = request.body(()).unwrap();
        let off = Watcher::new(None);
        let spent = allocation_counter::measure(|| assert!(off.check(&mut request).is_none()));
        assert_eq!(spent.count_total, 0);
        assert!(request.extensions().is_empty());

        let endpoint = "http://localhost:4317".parse().unwrap();
        let metrics = crate::metrics::Metrics::new(prometheus::Registry::new()).unwrap();
        let settings = crate::telemetry::TraceSettings { endpoint, ratio: 0.0 };
        let (tracer, _exporter) = crate::telemetry::traces(settings, Arc::new(metrics));
        let on = Watcher::new(Some(tracer));
        assert!(on.check(&mut request).is_some(), "it is sampled");
        let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        request.headers_mut().insert("traceparent", unsampled.parse().unwrap());
        let spent = allocation_counter::measure(|| assert!(on.check(&mut request).is_none()));
        assert_eq!(spent.count_total, 0, "its caller does not sample it");
        request.headers_mut().remove("traceparent");
        assert!(on.check(&mut request).is_none(), "the thread's random numbers are made");
        let spent = allocation_counter::measure(|| assert!(on.check(&mut request).is_none()));
        assert_eq!(spent.count_total, 0, "nor do we");
    }

    #[test]
    fn request_ids_are_short_and_visible() {
        for good in ["1", "order-42/try:1", &"x".repeat(128)] {
            assert!(is_request_id(good), "{good}");
        }
        for bad in ["", " ", "a b", "tab\t", "é", &"x".repeat(129)] {
            assert!(!is_request_id(bad), "{bad}");
        }
    }

    #[test]
    fn one_failure_of_a_kind_is_told_a_second_and_the_others_are_counted() {
        let failures = Failures::new();
        assert_eq!(failures.tell(Code::Internal, 5), Some(0));
        assert_eq!(failures.tell(Code::Unavailable, 5), Some(0), "another kind");
        for later in 0..3 {
            let now = 5 + later * (QUIET_MILLIS - 1) / 2;
            assert!(!failures.is_due(Code::Internal, now));
            assert_eq!(failures.tell(Code::Internal, now), None);
        }
        assert!(failures.is_due(Code::Internal, 5 + QUIET_MILLIS));
        assert_eq!(failures.tell(Code::Internal, 5 + QUIET_MILLIS), Some(3));
        assert_eq!(failures.tell(Code::InvalidArgument, 5), None, "the caller's fault");
    }
}
