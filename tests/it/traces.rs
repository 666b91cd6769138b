//! What is told of single calls: spans that a real collector takes, and lines of the log.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use consentd::grpc::pb;
use consentd_tls::{Protocol, ServerFiles};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::{
    Span, Status as SpanStatus, span::SpanKind, status::StatusCode,
};
use prost::Message as _;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status};

use crate::sidecar::{
    BINARY, Sidecar, Wire, event, eventually, framed, inbound, ledger_in, opt_in, question,
};
use crate::tls::authority::{Authority, Signed};

const CAN_SEND: &str = "consent.v1.ConsentService/CanSend";
const USER: &str = "15550123456";
const BUSINESS: &str = "secretive-business";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves it; gives it and its URL.
    async fn serve() -> (Self, String) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(collector.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        // It ends with the test's runtime.
        tokio::spawn(server);
        (collector, url)
    }

    fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|request| &request.resource_spans);
        resources.flat_map(|r| &r.scope_spans).flat_map(|s| s.spans.clone()).collect()
    }

    /// All that was sent, as it was on the wire.
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().iter().flat_map(prost::Message::encode_to_vec).collect()
    }
}

/// A request with these headers.
fn with<T>(message: T, headers: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

fn traceparent(sampled: bool) -> String {
    format!("00-{TRACE}-{PARENT}-0{}", u8::from(sampled))
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.clone().unwrap().value.unwrap() {
        Value::StringValue(text) => text,
        Value::BoolValue(flag) => flag.to_string(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(attribute))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

async fn end(sidecar: &mut Sidecar) -> Duration {
    let started = Instant::now();
    sidecar.signal("TERM");
    let status = sidecar.ended().await;
    assert!(status.success(), "{status}: {}", sidecar.said());
    started.elapsed()
}

fn assert_attributes(span: &Span, expected: &[(&str, &str)]) {
    let expected = expected.iter().map(|(key, value)| ((*key).into(), (*value).into()));
    assert_eq!(attributes(&span.attributes), expected.collect(), "{}", span.name);
}

/// Serves TLS with this certificate before a plain server; gives the port.
async fn tls_before(url: &str, certificate: &Signed) -> u16 {
    let files = ServerFiles {
        certificate: certificate.certificate.clone(),
        key: certificate.key.clone(),
        client_ca: None,
    };
    let acceptor = TlsAcceptor::from(files.read().unwrap().config(Protocol::Http2));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let plain = url.strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut plain = TcpStream::connect(&plain).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut stream, &mut plain).await });
        }
    });
    port
}

#[tokio::test]
async fn traces_reach_a_collector_by_tls_if_its_ca_is_trusted() {
    let (collector, url) = Collector::serve().await;
    let authority = Authority::new("collectors");
    let port = tls_before(&url, &authority.server("collector")).await;
    let (endpoint, ca) = (format!("https://localhost:{port}"), authority.ca());
    for trusted in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut flags = vec!["--otlp-endpoint", &endpoint, "--otlp-sample", "1"];
        if trusted {
            flags.extend(["--otlp-ca-file", ca.to_str().unwrap()]);
        }
        let mut sidecar = Sidecar::live(folder.path(), &flags).await;
        sidecar.checks().await.can_send(question(USER, BUSINESS, "marketing")).await.unwrap();
        if trusted {
            eventually("the spans arrive", || async { !collector.spans().is_empty() }).await;
        } else {
            eventually("the failure is said", || async {
                sidecar.said().contains("cannot export traces")
            })
            .await;
            assert!(collector.spans().is_empty());
        }
        end(&mut sidecar).await;
    }
}

#[tokio::test]
async fn sampled_calls_are_exported_as_parts_of_their_callers_traces() {
    let (collector, url) = Collector::serve().await;
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--otlp-endpoint", &url, "--otlp-sample", "0", "--max-watchers", "0"];
    let variables = [("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")];
    let mut sidecar = Sidecar::try_start_in(&ledger_in(folder.path()), &flags, &variables).unwrap();
    sidecar.wait_until_live().await;
    let (mut checks, mut records) = (sidecar.checks().await, sidecar.records().await);

    let sampled = traceparent(true);
    let headers = [
        ("traceparent", sampled.as_str()),
        ("tracestate", "vendor=1"),
        ("x-request-id", "order-42"),
    ];
    let ask = question(USER, BUSINESS, "marketing");
    checks.can_send(with(ask.clone(), &headers)).await.unwrap();
    let headers = &headers[..2];
    checks.can_send(with(question(USER, BUSINESS, "news"), headers)).await.unwrap_err();
    let requests = vec![ask.clone(), ask.clone(), ask.clone()];
    checks.batch_can_send(with(pb::BatchCanSendRequest { requests }, headers)).await.unwrap();
    let mut given = event(USER, BUSINESS, opt_in("marketing"));
    given.request_id = "signup-7".into();
    records.record_event(with(given, headers)).await.unwrap();
    let said = event(USER, BUSINESS, inbound("a private text"));
    records.record_event(with(said, headers)).await.unwrap();
    let list = pb::ListEventsRequest { user_id: USER.into(), business_id: BUSINESS.into() };
    let mut entries = records.list_events(with(list, headers)).await.unwrap().into_inner();
    while entries.message().await.unwrap().is_some() {}
    checks.watch_consents(with(pb::WatchConsentsRequest::default(), headers)).await.unwrap_err();
    // Nobody asks for these.
    checks.can_send(ask.clone()).await.unwrap();
    let not_sampled = traceparent(false);
    checks.can_send(with(ask, &[("traceparent", &not_sampled)])).await.unwrap();

    // What is sampled is exported before the end, and does not hold it up.
    assert!(end(&mut sidecar).await < Duration::from_secs(5));
    let mut spans = collector.spans();
    spans.sort_by_key(|span| span.start_time_unix_nano);
    let methods = [
        CAN_SEND,
        CAN_SEND,
        "consent.v1.ConsentService/BatchCanSend",
        "consent.v1.RecordService/RecordEvent",
        "consent.v1.RecordService/RecordEvent",
        "consent.v1.RecordService/ListEvents",
        "consent.v1.ConsentService/WatchConsents",
    ];
    assert_eq!(spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(), methods);
    for span in &spans {
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), PARENT.into()));
        assert_eq!((span.kind(), span.trace_state.as_str()), (SpanKind::Server, "vendor=1"));
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        let failed = span.name.ends_with("WatchConsents");
        let code = span.status.as_ref().map_or(StatusCode::Unset, SpanStatus::code);
        assert_eq!(code == StatusCode::Error, failed, "{}", span.name);
    }
    let rpc = |service: &'static str, method: &'static str, code: &'static str| {
        [
            ("rpc.system", "grpc"),
            ("rpc.service", service),
            ("rpc.method", method),
            ("rpc.grpc.status_code", code),
        ]
    };
    let (check, record) = ("consent.v1.ConsentService", "consent.v1.RecordService");
    let decided = [("consent.allowed", "false"), ("consent.reason", "NO_CONSENT")];
    let id = [("consent.request_id", "order-42")];
    let all = [&rpc(check, "CanSend", "0")[..], &decided, &id].concat();
    assert_attributes(&spans[0], &all);
    assert_attributes(&spans[1], &rpc(check, "CanSend", "3"));
    let batch = [&rpc(check, "BatchCanSend", "0")[..], &[("consent.batch_size", "3")]].concat();
    assert_attributes(&spans[2], &batch);
    assert_attributes(&spans[4], &rpc(record, "RecordEvent", "0"));
    assert_attributes(&spans[5], &rpc(record, "ListEvents", "0"));
    assert_attributes(&spans[6], &rpc(check, "WatchConsents", "12"));
    let resource = collector.0.lock().unwrap()[0].resource_spans[0].resource.clone().unwrap();
    let resource = attributes(&resource.attributes);
    assert_eq!(resource["service.name"], "consentd");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(resource["deployment.environment.name"], "test");
    assert_names_nobody(&collector.bytes());
    assert_names_nobody(sidecar.said().as_bytes());
}

fn assert_names_nobody(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for secret in [USER, BUSINESS, "private text", "Yes to messages"] {
        assert!(!text.contains(secret), "{secret} is told");
    }
}

#[tokio::test]
async fn the_ratio_is_for_calls_that_begin_a_trace() {
    let (collector, url) = Collector::serve().await;
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--otlp-endpoint", &url, "--otlp-sample", "1"];
    let mut sidecar = Sidecar::live(folder.path(), &flags).await;
    let mut checks = sidecar.checks().await;
    let ask = question(USER, BUSINESS, "marketing");
    let not_sampled = traceparent(false);
    for malformed in ["", "00-not-a-trace", &"-".repeat(55)] {
        checks.can_send(with(ask.clone(), &[("traceparent", malformed)])).await.unwrap();
    }
    for _ in 0..7 {
        checks.can_send(with(ask.clone(), &[("traceparent", &not_sampled)])).await.unwrap();
    }
    end(&mut sidecar).await;
    let spans = collector.spans();
    let spans: Vec<_> = spans.iter().filter(|span| span.name == CAN_SEND).collect();
    assert_eq!(spans.len(), 3);
    for span in spans {
        assert!(span.parent_span_id.is_empty() && hex(&span.trace_id) != TRACE, "{span:?}");
    }
}

/// How often something is in the log.
fn times_said(sidecar: &Sidecar, message: &str) -> usize {
    let message = format!("\"message\":\"{message}");
    sidecar.said().lines().filter(|line| line.contains(&message)).count()
}

async fn spans_counted(sidecar: &Sidecar, outcome: &str) -> u64 {
    let (_, metrics) = sidecar.get("/metrics").await;
    let sample = format!("consent_spans_total{{outcome=\"{outcome}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&sample)).unwrap().parse().unwrap()
}

/// Asks so often that the queue of spans runs over; no check may wait for it.
async fn ask_many(sidecar: &Sidecar) -> u64 {
    const TASKS: u64 = 16;
    const CALLS: u64 = 400;
    let mut tasks = tokio::task::JoinSet::new();
    let checks = sidecar.checks().await;
    for _ in 0..TASKS {
        let mut checks = checks.clone();
        tasks.spawn(async move {
            for _ in 0..CALLS {
                let mut ask = Request::new(question(USER, BUSINESS, "marketing"));
                // Less than an export may take.
                ask.set_timeout(Duration::from_secs(4));
                checks.can_send(ask).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    TASKS * CALLS
}

#[tokio::test]
async fn a_collector_that_is_not_there_is_told_of_once_and_hurts_no_check() {
    let folder = tempfile::tempdir().unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let url = format!("http://{gone}");
    let flags = ["--otlp-endpoint", &url, "--otlp-sample", "1"];
    let mut sidecar = Sidecar::live(folder.path(), &flags).await;
    ask_many(&sidecar).await;
    eventually("two exports failed", || async { spans_counted(&sidecar, "failed").await > 512 })
        .await;
    assert_eq!(times_said(&sidecar, "cannot export traces"), 1, "{}", sidecar.said());
    assert!(end(&mut sidecar).await < Duration::from_secs(8), "it waits for no collector");
}

#[tokio::test]
async fn a_collector_that_does_not_answer_costs_spans_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    // It is connected to, by the system, and accepts nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let flags = ["--otlp-endpoint", &url, "--otlp-sample", "1"];
    let mut sidecar = Sidecar::live(folder.path(), &flags).await;
    let asked = ask_many(&sidecar).await;
    let dropped = spans_counted(&sidecar, "dropped").await;
    assert!(dropped > 0 && dropped < asked, "{dropped} of {asked}");
    assert_eq!(spans_counted(&sidecar, "exported").await, 0);
    assert!(end(&mut sidecar).await < Duration::from_secs(8), "it waits for no collector");
    assert_eq!(times_said(&sidecar, "the last traces could not be exported"), 1);
}

/// The lines of the log with this message, once there are so many.
async fn lines(sidecar: &Sidecar, message: &str, least: usize) -> Vec<serde_json::Value> {
    let found = || {
        let said = sidecar.said();
        let lines = said.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines.filter(|line: &serde_json::Value| line["message"] == message).collect::<Vec<_>>()
    };
    eventually(message, || async { found().len() >= least }).await;
    found()
}

#[tokio::test]
async fn calls_are_logged_with_their_ids_where_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--log", "info,consentd::calls=debug"];
    let mut sidecar = Sidecar::live(folder.path(), &flags).await;
    let mut checks = sidecar.checks().await;
    let (sampled, long) = (traceparent(true), "x".repeat(129));
    let headers = [("x-request-id", "order-42"), ("traceparent", sampled.as_str())];
    let ask = question(USER, BUSINESS, "marketing");
    checks.can_send(with(ask.clone(), &headers)).await.unwrap();
    for bad in ["two words", &long] {
        checks.can_send(with(ask.clone(), &[("x-request-id", bad)])).await.unwrap();
    }
    let mut wire = Wire::to(&sidecar.grpc).await;
    let method = format!("consent.v1.ConsentService/{BUSINESS}");
    wire.call(&method, &framed(&ask.encode_to_vec())).await.unwrap_err();
    let mut records = sidecar.records().await;
    let said = event(USER, BUSINESS, inbound("a private text"));
    records.record_event(with(said, &headers[..1])).await.unwrap();
    end(&mut sidecar).await;

    let lines = lines(&sidecar, "answered", 4).await;
    let of = |method: &str| {
        lines.iter().filter(|line| line["span"]["method"] == method).collect::<Vec<_>>()
    };
    let asked = of(CAN_SEND);
    assert_eq!(asked.len(), 3, "{lines:?}");
    assert_eq!(asked[0]["span"]["request_id"], "order-42");
    assert_eq!(asked[0]["span"]["trace_id"], TRACE);
    assert_eq!((&asked[0]["code"], &asked[0]["reason"]), (&"OK".into(), &"NO_CONSENT".into()));
    assert_eq!(asked[0]["allowed"], false);
    assert!(asked[0]["seconds"].as_f64().is_some_and(|took| took > 0.0));
    assert!(asked[1..].iter().all(|line| line["span"]["request_id"].is_null()), "{asked:?}");
    let recorded = of("consent.v1.RecordService/RecordEvent");
    assert_eq!(recorded[0]["span"]["request_id"], "order-42");
    assert_names_nobody(sidecar.said().as_bytes());
}

#[tokio::test]
async fn what_fails_by_our_fault_is_logged_with_its_id_and_not_once_a_call() {
    const REFUSED: u64 = 50;
    let folder = tempfile::tempdir().unwrap();
    let sidecar = Sidecar::live(folder.path(), &["--max-in-flight", "1"]).await;
    let mut wire = Wire::to(&sidecar.grpc).await;
    // Each waits for a revision that does not come, and the first takes the only place to do so.
    let question = question(USER, BUSINESS, "marketing");
    let waits = pb::CanSendRequest { min_revision: u64::MAX, ..question };
    let body = framed(&waits.encode_to_vec());
    let forever = [("grpc-timeout", "1H")];
    let _waits = wire.begin(CAN_SEND, &forever, body.clone()).await.unwrap();
    eventually("it waits", || async {
        sidecar.get("/metrics").await.1.contains("consent_in_flight{pool=\"checks\"} 1\n")
    })
    .await;
    let started = Instant::now();
    for n in 0..REFUSED {
        let id = format!("order-{n}");
        let asked = wire.begin(CAN_SEND, &[("x-request-id", &id)], body.clone()).await.unwrap();
        assert_eq!(asked.end().await.unwrap_err().code(), Code::ResourceExhausted);
    }
    let most = usize::try_from(started.elapsed().as_secs()).unwrap() + 1;
    let failed = lines(&sidecar, "a call failed", 1).await;
    assert!(failed.len() <= most, "{failed:?}");
    assert_eq!(failed[0]["span"]["request_id"], "order-0");
    assert_eq!(failed[0]["span"]["method"], CAN_SEND);
    assert_eq!(failed[0]["code"], "RESOURCE_EXHAUSTED");
    assert_eq!(failed[0]["suppressed"], 0);
    // The next that is told says how many were not.
    eventually("another failure is told", || {
        let (mut wire, body, sidecar) = (wire.clone(), body.clone(), &sidecar);
        async move {
            let asked = wire.begin(CAN_SEND, &[("x-request-id", "last")], body).await.unwrap();
            asked.end().await.unwrap_err();
            sidecar.said().contains("\"last\"")
        }
    })
    .await;
    let failed = lines(&sidecar, "a call failed", 2).await;
    let told = failed.last().unwrap();
    assert_eq!(told["span"]["request_id"], "last");
    let suppressed: u64 = failed.iter().map(|line| line["suppressed"].as_u64().unwrap()).sum();
    assert!(suppressed >= REFUSED - u64::try_from(failed.len() - 1).unwrap(), "{failed:?}");
    assert_names_nobody(sidecar.said().as_bytes());
}

#[tokio::test]
async fn a_stream_that_is_cut_off_is_logged_with_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let mut sidecar = Sidecar::live(folder.path(), &[]).await;
    let (events, arriving) = tokio::sync::mpsc::channel(1);
    let said = event(USER, BUSINESS, inbound("a private text")).event;
    events.send(pb::RecordEventsRequest { event: said, ..Default::default() }).await.unwrap();
    let stream = with(ReceiverStream::new(arriving), &[("x-request-id", "import-7")]);
    let answers = sidecar.records().await.record_events(stream).await.unwrap();
    let mut answers = answers.into_inner();
    assert!(answers.message().await.unwrap().is_some());
    end(&mut sidecar).await;
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unavailable);
    let failed = lines(&sidecar, "a call failed", 1).await;
    assert_eq!(failed[0]["span"]["request_id"], "import-7");
    assert_eq!(failed[0]["code"], "UNAVAILABLE");
    assert_names_nobody(sidecar.said().as_bytes());
}

#[test]
fn on_a_terminal_the_log_is_for_people() {
    let folder = tempfile::tempdir().unwrap();
    let serve = format!(
        "exec {BINARY} serve --listen 127.0.0.1:0 --admin none --ledger file:{}",
        ledger_in(folder.path()).display()
    );
    // It gives the command a terminal, and tells what that shows.
    let mut terminal = Command::new("script")
        .args(["--quiet", "--flush", "--command", &serve, "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is needed: apt-get install -y bsdutils");
    let mut line = String::new();
    let mut shown = BufReader::new(terminal.stdout.take().unwrap());
    while !line.contains("listening") {
        assert!(shown.read_line(&mut line).unwrap() > 0, "it ended: {line}");
    }
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    assert!(line.contains("INFO") && line.contains("127.0.0.1:"), "{line}");
    assert!(!line.contains('{'), "{line}");
}
