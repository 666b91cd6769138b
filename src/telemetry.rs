//! The process' log, and the export of traces.
//!
//! OpenTelemetry's SDK builds the spans, and its OTLP exporter sends them. The bounded queue between
//! the two and the thread that empties it are our own, because the SDK's batch processor neither
//! counts what it drops nor ends by a deadline. A call never waits for the queue.
//!
//! The exporter reads OpenTelemetry's own variables, such as `OTEL_RESOURCE_ATTRIBUTES` and
//! `OTEL_EXPORTER_OTLP_HEADERS`. None of them enables it.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter as _, SpanProcessor,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Uri};
use tower::service_fn;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::metrics::Metrics;
use crate::net;
use consentd_tls::ClientFiles;

/// Spans that wait to be exported. Further ones are dropped and counted.
const QUEUE_SPANS: usize = 4_096;
/// The most spans of one export.
const BATCH_SPANS: usize = 512;
/// How long a span waits for others before it is exported.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// The longest that an export may take, retries included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a version 00 `traceparent`: a version, two ids, flags. Later versions may only be longer.
const TRACEPARENT_BYTES: usize = 55;

/// An invalid log filter.
#[derive(Debug, thiserror::Error)]
#[error("must be a level such as info, or directives such as info,h2=debug: {0}")]
pub(crate) struct FilterError(#[from] tracing_subscriber::filter::ParseError);

/// Starts logging what `filter` selects to standard error: as text on a terminal, as JSON otherwise.
///
/// # Errors
///
/// [`FilterError`] if the filter is invalid.
pub(crate) fn start_log(filter: &str) -> Result<(), FilterError> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(std::io::stderr)
        // They would be printed by a macro that panics if standard error is closed.
        .log_internal_errors(false);
    if std::io::stderr().is_terminal() {
        log.init();
    } else {
        // There is at most one span, the call's.
        log.json().flatten_event(true).with_span_list(false).init();
    }
    Ok(())
}

/// The address of an OTLP collector.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    url: String,
    /// `HOST:PORT`, if it is reached by TLS.
    tls: Option<String>,
}

/// The port of collectors, for URLs without one.
const OTLP_PORT: u16 = 4317;

/// Why a collector's address is invalid.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EndpointError {
    /// It is not a URL of a collector.
    #[error("must be http://HOST:PORT or https://HOST:PORT, such as http://localhost:4317")]
    Malformed,
    /// It contains credentials.
    #[error("must not hold credentials: give them by OTEL_EXPORTER_OTLP_HEADERS")]
    Credentials,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let uri: http::Uri = text.parse().map_err(|_| EndpointError::Malformed)?;
        let authority = uri.authority().ok_or(EndpointError::Malformed)?;
        let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"));
        let scheme = scheme.ok_or(EndpointError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(EndpointError::Credentials);
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(EndpointError::Malformed);
        }
        let port = authority.port_u16().unwrap_or(OTLP_PORT);
        let tls = (scheme == "https").then(|| format!("{}:{port}", authority.host()));
        Ok(Self { url: text.to_owned(), tls })
    }
}

/// Which traces are sampled, and where they are sent.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    /// The collector.
    pub endpoint: Endpoint,
    /// The CA certificates that are trusted if it is reached by TLS, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The share of calls without a `traceparent` that are sampled. Those with one are sampled as
    /// their callers are.
    pub ratio: f64,
}

/// The caller's part of a trace.
#[derive(Clone, Debug)]
pub struct Parent(Context);

impl Parent {
    /// Parses W3C trace context. Malformed context is ignored.
    #[must_use]
    pub fn read(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        if traceparent.len() < TRACEPARENT_BYTES {
            return None;
        }
        let headers = Headers { traceparent, tracestate };
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
        context.has_active_span().then_some(Self(context))
    }

    /// Whether a `traceparent` says that its trace is not sampled. Most do, and this takes a tenth of
    /// the time that parsing takes.
    #[must_use]
    pub fn is_unsampled(traceparent: &str) -> bool {
        let is_part = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
        traceparent.len() == TRACEPARENT_BYTES
            && traceparent.starts_with("00-")
            && traceparent.ends_with("-00")
            && traceparent.bytes().all(is_part)
    }

    /// The trace's id, in hexadecimal.
    #[must_use]
    pub fn trace_id(&self) -> String {
        self.0.span().span_context().trace_id().to_string()
    }
}

struct Headers<'a> {
    traceparent: &'a str,
    tracestate: Option<&'a str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "traceparent" => Some(self.traceparent),
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// Starts spans; clones share the queue.
#[derive(Clone, Debug)]
pub struct Tracer(SdkTracer);

/// A sampled call's span. It ends, and is exported, when it is dropped.
#[derive(Debug)]
pub struct Span(opentelemetry_sdk::trace::Span);

impl Tracer {
    /// Starts a call's span, if it is sampled.
    #[must_use]
    pub fn start(&self, name: &'static str, parent: Option<&Parent>) -> Option<Span> {
        let builder = self.0.span_builder(name).with_kind(SpanKind::Server);
        let span = match parent {
            Some(Parent(context)) => self.0.build_with_context(builder, context),
            None => self.0.build_with_context(builder, &Context::new()),
        };
        span.is_recording().then_some(Span(span))
    }
}

impl Span {
    /// Adds an attribute. It must name no user and no business, and hold no text.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    /// Marks it as failed.
    pub fn fail(&mut self) {
        self.0.set_status(Status::error(""));
    }

    /// The trace's id, in hexadecimal.
    #[must_use]
    pub fn trace_id(&self) -> String {
        self.0.span_context().trace_id().to_string()
    }
}

/// Queues spans that ended, without waiting.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
    many: Arc<Notify>,
    metrics: Arc<Metrics>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.metrics.spans("dropped", 1);
        }
        if self.spans.capacity() < QUEUE_SPANS - BATCH_SPANS {
            self.many.notify_one();
        }
    }

    // `Exporter::run` flushes and ends.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends what is queued to the collector.
pub(crate) struct Exporter {
    settings: TraceSettings,
    resource: Resource,
    spans: mpsc::Receiver<SpanData>,
    many: Arc<Notify>,
    metrics: Arc<Metrics>,
    /// Whether the last export failed.
    failing: bool,
}

/// A tracer, which starts spans, and the exporter of those spans.
#[must_use]
pub(crate) fn traces(settings: TraceSettings, metrics: Arc<Metrics>) -> (Tracer, Exporter) {
    let resource = Resource::builder_empty()
        .with_service_name("consentd")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_detector(Box::new(EnvResourceDetector::new()))
        .build();
    let (queue, spans) = mpsc::channel(QUEUE_SPANS);
    let many = Arc::new(Notify::new());
    let queue = Queue { spans: queue, many: Arc::clone(&many), metrics: Arc::clone(&metrics) };
    let sampler = Sampler::parent_based(Sampler::TraceIdRatioBased(settings.ratio));
    let provider =
        SdkTracerProvider::builder().with_sampler(sampler).with_span_processor(queue).build();
    let tracer = Tracer(provider.tracer("consentd"));
    (tracer, Exporter { settings, resource, spans, many, metrics, failing: false })
}

impl Exporter {
    /// Exports until `finish`, and then what is queued until the deadline that `finish` carries.
    /// Blocks its thread, which must run nothing else: encoding many spans takes as long as some checks
    /// do.
    pub(crate) fn run(self, finish: oneshot::Receiver<Instant>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return self.give_up(&error, finish),
        };
        let connected = {
            let _in = runtime.enter();
            self.connect()
        };
        match connected {
            Ok(exporter) => runtime.block_on(self.follow(&exporter, finish)),
            Err(error) => self.give_up(&error, finish),
        }
    }

    /// Closes the queue, so that spans are counted as dropped, and waits for `finish`.
    fn give_up(self, error: &dyn std::fmt::Display, finish: oneshot::Receiver<Instant>) {
        error!(%error, "cannot set up the export of traces: none are exported until a restart");
        drop(self);
        let _ = finish.blocking_recv();
    }

    async fn follow(mut self, exporter: &SpanExporter, mut finish: oneshot::Receiver<Instant>) {
        let last = CancellationToken::new();
        let work = self.work(exporter, last.clone());
        tokio::pin!(work);
        let deadline = tokio::select! {
            () = &mut work => return,
            deadline = &mut finish => deadline.unwrap_or_else(|_| Instant::now()),
        };
        last.cancel();
        if timeout_at(deadline, work).await.is_err() {
            warn!("the last traces could not be exported in time");
        }
    }

    fn connect(&self) -> Result<SpanExporter, ExporterBuildError> {
        let TraceSettings { endpoint: Endpoint { url: endpoint, tls }, ca, ratio } = &self.settings;
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint.clone());
        let mut exporter = exporter.with_timeout(EXPORT_TIMEOUT);
        if let Some(address) = tls {
            exporter = exporter.with_channel(tls_channel(address.clone(), ca.clone()));
        }
        let mut exporter = exporter.build()?;
        exporter.set_resource(&self.resource);
        info!(endpoint, ratio, "exporting sampled traces");
        Ok(exporter)
    }

    /// Exports batch by batch; the last when `last` is cancelled.
    async fn work(&mut self, exporter: &SpanExporter, last: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_SPANS);
        loop {
            if self.spans.len() < BATCH_SPANS && !last.is_cancelled() {
                tokio::select! {
                    () = sleep(BATCH_DELAY) => {}
                    () = self.many.notified() => {}
                    () = last.cancelled() => {}
                }
            }
            while let Ok(span) = self.spans.try_recv() {
                batch.push(span);
                if batch.len() == BATCH_SPANS {
                    break;
                }
            }
            match batch.len() {
                0 if last.is_cancelled() => return,
                0 => {}
                _ => self.export(exporter, std::mem::take(&mut batch)).await,
            }
        }
    }

    async fn export(&mut self, exporter: &SpanExporter, batch: Vec<SpanData>) {
        let count = batch.len();
        match exporter.export(batch).await {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    info!("traces are exported again");
                }
                self.metrics.spans("exported", count);
            }
            Err(error) => {
                // Logged once per outage, not once a second.
                if !std::mem::replace(&mut self.failing, true) {
                    let cause = error.to_string();
                    warn!(
                        cause,
                        "cannot export traces: they are lost until the collector can be reached; consent_spans_total \
                         counts them"
                    );
                }
                self.metrics.spans("failed", count);
            }
        }
    }
}

/// A channel to `HOST:PORT` by TLS, which connects when it is first used.
fn tls_channel(address: String, ca: Option<PathBuf>) -> Channel {
    let files = ClientFiles { ca, own: None };
    // The scheme is that of a connection whose TLS is not tonic's: the address is the one below.
    let endpoint = tonic::transport::Endpoint::from_static("http://collector");
    endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let (files, address) = (files.clone(), address.clone());
        async move { net::tls::connect(&files, &address).await.map(TokioIo::new) }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_context_is_read_as_the_standard_says() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let parent = |text: &str| Parent::read(text, Some("vendor=1"));
        let valid = parent(&format!("00-{id}-00f067aa0ba902b7-01")).unwrap();
        assert_eq!(valid.trace_id(), id);
        assert!(!Parent::is_unsampled(&format!("00-{id}-00f067aa0ba902b7-01")));
        assert!(Parent::is_unsampled(&format!("00-{id}-00f067aa0ba902b7-00")));
        assert!(parent(&format!("cc-{id}-00f067aa0ba902b7-01-more")).is_some(), "a later version");
        for malformed in [
            String::new(),
            id.to_owned(),
            format!("00-{id}-00f067aa0ba902b7"),
            format!("ff-{id}-00f067aa0ba902b7-01"),
            format!("00-{id}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{id}-00f067aa0ba902b7-01-more"),
            "-".repeat(55),
            "é".repeat(40),
        ] {
            assert!(parent(&malformed).is_none(), "{malformed}");
            assert!(!Parent::is_unsampled(&malformed), "{malformed}");
        }
    }

    #[test]
    fn endpoints_are_http_or_https() {
        for (good, tls) in [
            ("http://localhost:4317", None),
            ("http://[::1]:4317/", None),
            ("http://collector", None),
            ("https://collector", Some("collector:4317")),
            ("https://[::1]:1/", Some("[::1]:1")),
        ] {
            assert_eq!(good.parse::<Endpoint>().unwrap().tls.as_deref(), tls, "{good}");
        }
        let wrong = |text: &str| text.parse::<Endpoint>().unwrap_err();
        assert_eq!(wrong("http://user:secret@collector"), EndpointError::Credentials);
        for bad in ["", "collector", "collector:4317", "grpc://c:1", "http://c/v1/traces"] {
            assert_eq!(wrong(bad), EndpointError::Malformed, "{bad}");
        }
    }
}
