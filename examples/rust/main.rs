//! A client of consentd: records, checks with a deadline, and does not send on error.
//!
//! Usage: `rust ADDRESS [DEADLINE_MS]`; `ADDRESS` is `HOST:PORT`, `unix:PATH` or `unix:@NAME`.
//!
//! Elsewhere, depend on `crates/client` of this repository, or copy its two files: it is a library of
//! a few functions, and needs nothing of the sidecar but its contract.

use std::time::Duration;

use anyhow::Context as _;
use consentd_client::{CHECK_DEADLINE, Client, RECORD_DEADLINE, code_name, pb};
use tonic::Status;
use tonic_types::StatusExt as _;

/// Records an event. After an error call it again: the same request id makes that safe.
async fn record(
    client: &Client,
    request_id: String,
    event: pb::ConsentEvent,
) -> Result<pb::RecordEventResponse, Status> {
    client.record(event, &request_id, RECORD_DEADLINE).await
}

/// The faults of a request, one a field, from the details of an `INVALID_ARGUMENT`.
fn violations(status: &Status) -> Vec<String> {
    let fields = status.get_details_bad_request().map(|bad| bad.field_violations);
    let fields = fields.unwrap_or_default().into_iter();
    fields.map(|one| format!("{}: {}", one.field, one.description)).collect()
}

fn question(user: &str, category: &str, min_revision: u64) -> pb::CanSendRequest {
    pb::CanSendRequest {
        template: None,
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
    let client = Client::connect(address)?;
    // A phone number in any notation, or an id of your own.
    let user = &format!("example-{:016x}", getrandom::u64()?);

    let agreed = opt_in(user, "marketing", "Yes, send me offers from Acme on WhatsApp");
    let recorded = record(&client, format!("signup-{user}"), agreed).await?;
    println!("opt-in recorded");
    // With min_revision, any sidecar of the ledger answers once it has applied the event.
    let offer = question(user, "marketing", recorded.revision);
    println!("marketing: {}", client.may_send(offer, deadline).await);

    let said = pb::InboundMessage { text: "STOP".to_owned(), ..Default::default() };
    let stop = event(user, pb::consent_event::What::InboundMessage(said));
    let recorded = record(&client, format!("message-{user}"), stop).await?;
    println!("STOP recorded: opted out of {}", recorded.opted_out_scope);
    let offer = question(user, "marketing", recorded.revision);
    println!("marketing: {}", client.may_send(offer, deadline).await);

    let categories = ["marketing", "newsletter", "utility.order_updates"];
    let questions = categories.iter().map(|category| question(user, category, 0)).collect();
    let verdicts = client.may_send_each(questions, deadline).await;
    for (category, verdict) in categories.iter().zip(verdicts) {
        println!("in a batch, {category}: {verdict}");
    }

    let vague = opt_in(user, "newsletter", "Yes, send me offers");
    if let Err(status) = record(&client, format!("second-{user}"), vague).await {
        println!("opt-in refused: {}", code_name(status.code()));
        for violation in violations(&status) {
            println!("  {violation}");
        }
    }

    let not_yet = question(user, "marketing", recorded.revision + 1_000_000);
    let verdict = client.may_send(not_yet, Duration::from_millis(50)).await;
    println!("not known in time: {verdict}");

    let missing = format!("{address}.missing");
    let nowhere = if address.starts_with("unix:") { &missing } else { "127.0.0.1:1" };
    let unconnected = Client::connect(nowhere)?;
    let verdict = unconnected.may_send(question(user, "marketing", 0), deadline).await;
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
