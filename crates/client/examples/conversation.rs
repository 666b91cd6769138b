//! A sender in one page: records events, asks, and does not send where there is no answer.
//!
//! `cargo run --example conversation -- ADDRESS`, where a sidecar listens: `HOST:PORT`, `unix:PATH` or `unix:@NAME`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use consentd_client::{Client, Error, Event, Evidence, Form, OptInMethod, Question};

fn opt_in(user: &str, category: &str, statement: &str) -> Event {
    let evidence = Evidence::new(OptInMethod::Website, statement, "Acme").locale("en");
    Event::opt_in(user, "acme", category, evidence)
}

fn template(user: &str, category: &str) -> Question {
    Question::new(user, "acme", category).form(Form::Template)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1);
    let builder = Client::builder().deadline(Duration::from_secs(30));
    let client = match address {
        Some(address) => builder.address(address).build()?,
        None => builder.build()?,
    };
    client.ready(Duration::from_secs(10)).await?;
    // A phone number in any usual notation, or an id of your own with a letter in it.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let user = &format!("example-{}", now.as_nanos());

    client.record(opt_in(user, "marketing", "Yes, send me offers from Acme on WhatsApp")).await?;
    println!("opt-in recorded");
    println!("marketing: {}", client.may_send(template(user, "marketing")).await);

    let said = Event::inbound_message(user, "acme", "STOP").request_id(format!("message-{user}"));
    let stop = client.record(said).await?;
    println!("STOP recorded: opted out of {}", stop.opted_out_scope());
    // With min_revision, any sidecar of the ledger answers only once it has applied the event.
    let offer = template(user, "marketing").min_revision(stop.revision());
    println!("marketing: {}", client.may_send(offer).await);

    // Concurrent questions become batches by themselves.
    let categories = ["marketing", "newsletter", "utility.order_updates"];
    let [a, b, c] = categories.map(|category| client.may_send(template(user, category)));
    let (a, b, c) = tokio::join!(a, b, c);
    for (category, verdict) in categories.iter().zip([a, b, c]) {
        println!("{category}: {verdict}");
    }

    if let Err(error) = client.record(opt_in(user, "newsletter", "Yes, send me offers")).await {
        println!("opt-in refused: {}", error.code_name());
        for violation in error.violations() {
            println!("  {}: {}", violation.field, violation.description);
        }
    }

    let nowhere = Client::new("unix:/no/such/socket")?;
    println!("no sidecar: {}", nowhere.may_send(template(user, "marketing")).await);
    Ok(())
}
