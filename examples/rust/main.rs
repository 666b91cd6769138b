//! A client of consentd: records, checks with a deadline, and does not send on error.
//!
//! Usage: `rust ADDRESS [DEADLINE_MS]`; `ADDRESS` is `HOST:PORT`, `unix:PATH` or `unix:@NAME`.
//!
//! Elsewhere, generate `pb` from `proto/consent/v1` with tonic-prost-build; this repository's
//! `build.rs` shows how, without protoc.

#![allow(clippy::print_stdout, reason = "it is a program for a terminal")]

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use consentd::grpc::pb;
use consentd::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd::grpc::pb::record_service_client::RecordServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

/// A check is answered from memory: one that takes longer has gone wrong.
const CHECK_DEADLINE: Duration = Duration::from_millis(250);
/// An event is acknowledged once it is on the disk.
const RECORD_DEADLINE: Duration = Duration::from_secs(5);

/// Opens the one channel of a process: clones of it share its connection, and it connects again by
/// itself.
fn connect(address: &str) -> Result<Channel, tonic::transport::Error> {
    if let Some(name) = address.strip_prefix("unix:@") {
        // An abstract socket's name begins with a zero byte, which no URI holds.
        let name = format!("\0{name}");
        let endpoint = Endpoint::from_static("http://localhost");
        return Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let name = name.clone();
            async move { UnixStream::connect(name).await.map(TokioIo::new) }
        })));
    }
    let scheme = if address.starts_with("unix:") { "" } else { "http://" };
    Ok(Endpoint::from_shared(format!("{scheme}{address}"))?.connect_lazy())
}

/// Waits for an answer until the deadline, and tells the sidecar about it. tonic's own clock does not
/// run while it connects, and calls its end `CANCELLED`.
async fn within<Q, A>(
    deadline: Duration,
    question: Q,
    call: impl AsyncFnOnce(Request<Q>) -> Result<Response<A>, Status>,
) -> Result<A, Status> {
    let mut request = Request::new(question);
    request.set_timeout(deadline);
    match timeout(deadline, call(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if status.message() != "Timeout expired" => Err(status),
        Ok(Err(_)) | Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

/// Whether to send, and why.
#[derive(Clone, Debug)]
struct Verdict {
    send: bool,
    why: String,
}

impl Verdict {
    fn new(answer: &pb::CanSendResponse) -> Self {
        // A newer server may have reasons that this client does not know: `allowed` decides.
        let why = match pb::Reason::try_from(answer.reason) {
            Ok(reason) => reason.as_str_name().trim_start_matches("REASON_").to_owned(),
            Err(_) => answer.reason.to_string(),
        };
        Self { send: answer.allowed, why }
    }

    /// An error, a timeout or no sidecar means: do not send. Keep the message, and ask again.
    fn no_answer(status: &Status) -> Self {
        Self { send: false, why: format!("no answer ({})", name_of(status.code())) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", if self.send { "send" } else { "do not send" }, self.why)
    }
}

/// A code as gRPC writes it, such as `DEADLINE_EXCEEDED`.
fn name_of(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// To be called right before each send.
async fn may_send(
    checks: &ConsentServiceClient<Channel>,
    question: pb::CanSendRequest,
    deadline: Duration,
) -> Verdict {
    let mut checks = checks.clone();
    match within(deadline, question, async |request| checks.can_send(request).await).await {
        Ok(answer) => Verdict::new(&answer),
        Err(status) => Verdict::no_answer(&status),
    }
}

/// The same for many at once; a malformed one has its own error and does not stop the others.
async fn may_send_each(
    checks: &ConsentServiceClient<Channel>,
    questions: Vec<pb::CanSendRequest>,
    deadline: Duration,
) -> Vec<Verdict> {
    use pb::batch_can_send_result::Result::{Error, Response};
    let mut checks = checks.clone();
    let count = questions.len();
    let batch = pb::BatchCanSendRequest { requests: questions };
    let answers = within(deadline, batch, async |request| checks.batch_can_send(request).await);
    let answers = match answers.await {
        Ok(answers) => answers,
        Err(status) => return vec![Verdict::no_answer(&status); count],
    };
    let verdict = |result: pb::BatchCanSendResult| match result.result {
        Some(Response(answer)) => Verdict::new(&answer),
        Some(Error(error)) => {
            Verdict { send: false, why: format!("{}: {}", error.field, error.message) }
        }
        None => Verdict { send: false, why: "an empty result".to_owned() },
    };
    answers.results.into_iter().map(verdict).collect()
}

/// Records an event. After an error call it again: the same request id makes that safe.
async fn record(
    records: &RecordServiceClient<Channel>,
    request_id: String,
    event: pb::ConsentEvent,
) -> Result<pb::RecordEventResponse, Status> {
    let mut records = records.clone();
    let request = pb::RecordEventRequest { event: Some(event), request_id };
    within(RECORD_DEADLINE, request, async |request| records.record_event(request).await).await
}

/// What was wrong with each field, from the details of an `INVALID_ARGUMENT`.
fn violations(status: &Status) -> Vec<String> {
    let fields = status.get_details_bad_request().map(|bad| bad.field_violations);
    let fields = fields.unwrap_or_default().into_iter();
    fields.map(|one| format!("{}: {}", one.field, one.description)).collect()
}

fn question(user: &str, category: &str, min_revision: u64) -> pb::CanSendRequest {
    pb::CanSendRequest {
        user_id: user.to_owned(),
        business_id: "acme".to_owned(),
        category: category.to_owned(),
        form: pb::MessageForm::Template.into(),
        min_revision,
    }
}

fn event(user: &str, what: pb::consent_event::What) -> pb::ConsentEvent {
    pb::ConsentEvent {
        user_id: user.to_owned(),
        business_id: "acme".to_owned(),
        event_time: None,
        what: Some(what),
    }
}

fn opt_in(user: &str, category: &str, statement: &str) -> pb::ConsentEvent {
    let evidence = pb::Evidence {
        method: pb::OptInMethod::Website.into(),
        statement: statement.to_owned(),
        business_name: "Acme".to_owned(),
        locale: "en".to_owned(),
        ..Default::default()
    };
    let given =
        pb::OptIn { category: category.to_owned(), evidence: Some(evidence), ..Default::default() };
    event(user, pb::consent_event::What::OptIn(given))
}

async fn converse(address: &str, deadline: Duration) -> anyhow::Result<()> {
    let channel = connect(address)?;
    let checks = ConsentServiceClient::new(channel.clone());
    let records = RecordServiceClient::new(channel);
    // A phone number in any notation, or an id of your own.
    let user = &format!("example-{:016x}", getrandom::u64()?);

    let agreed = opt_in(user, "marketing", "Yes, send me offers from Acme on WhatsApp");
    let recorded = record(&records, format!("signup-{user}"), agreed).await?;
    println!("opt-in recorded");
    // Whichever sidecar is asked, it answers once it knows of what was just recorded.
    let offer = question(user, "marketing", recorded.revision);
    println!("marketing: {}", may_send(&checks, offer, deadline).await);

    let said = pb::InboundMessage { text: "STOP".to_owned(), ..Default::default() };
    let stop = event(user, pb::consent_event::What::InboundMessage(said));
    let recorded = record(&records, format!("message-{user}"), stop).await?;
    println!("STOP recorded: opted out of {}", recorded.opted_out_scope);
    let offer = question(user, "marketing", recorded.revision);
    println!("marketing: {}", may_send(&checks, offer, deadline).await);

    let categories = ["marketing", "newsletter", "utility.order_updates"];
    let questions = categories.iter().map(|category| question(user, category, 0)).collect();
    let verdicts = may_send_each(&checks, questions, deadline).await;
    for (category, verdict) in categories.iter().zip(verdicts) {
        println!("in a batch, {category}: {verdict}");
    }

    let vague = opt_in(user, "newsletter", "Yes, send me offers");
    if let Err(status) = record(&records, format!("second-{user}"), vague).await {
        println!("opt-in refused: {}", name_of(status.code()));
        for violation in violations(&status) {
            println!("  {violation}");
        }
    }

    let not_yet = question(user, "marketing", recorded.revision + 1_000_000);
    let verdict = may_send(&checks, not_yet, Duration::from_millis(50)).await;
    println!("not known in time: {verdict}");

    let beside = format!("{address}.nobody");
    let nowhere = if address.starts_with("unix:") { &beside } else { "127.0.0.1:1" };
    let nobody = ConsentServiceClient::new(connect(nowhere)?);
    let verdict = may_send(&nobody, question(user, "marketing", 0), deadline).await;
    println!("no sidecar: {verdict}");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().context("usage: rust ADDRESS [DEADLINE_MS]")?;
    let deadline = match arguments.next() {
        Some(milliseconds) => Duration::from_millis(milliseconds.parse()?),
        None => CHECK_DEADLINE,
    };
    converse(&address, deadline).await
}
