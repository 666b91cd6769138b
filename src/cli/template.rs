//! `template`: what is known of the categories of message templates.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use consentd_core::scope::Class;
use consentd_core::standing::{Profile, ResolvedState};
use consentd_core::state::State;
use consentd_core::template::{ACCOUNT, TemplateId};
use consentd_core::time::Timestamp;
use serde_json::{Value, json};

use super::client::{ClientArgs, TokenArgs};
use super::import::{self, ImportArgs};
use super::record::random_request_id;
use super::{Verdict, output, time};
use crate::grpc::pb;
use crate::grpc::pb::consent_event::What;
use crate::grpc::pb::record_service_client::RecordServiceClient;

#[derive(Debug, Subcommand)]
pub(super) enum TemplateCommand {
    /// Record which category WhatsApp has a template in
    Set(SetArgs),
    /// Record that all utility templates of a business count as marketing, or no longer
    Restrict(RestrictArgs),
    /// List the templates of a business whose category is known; reads all recorded events once
    List(ListArgs),
    /// Import a list of templates: CSV with the columns name, language, category and time
    #[command(after_long_help = import::help())]
    Import(Box<ImportArgs>),
}

/// The arguments of every event about a template.
#[derive(Args, Debug)]
struct EventArgs {
    /// The business, by the deployment's own id
    #[arg(long, value_name = "ID")]
    business: String,
    /// When it happened, as RFC 3339 (2026-01-31T09:30:00Z) or as a time ago (2h) [default: now, by
    /// the ledger's clock]
    #[arg(long, value_name = "TIME", value_parser = time::parse_past)]
    time: Option<Timestamp>,
    /// Makes a retry safe: a template remembers its last 8 [default: a random one without a time]
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Who or what said so, for the record
    #[arg(long, default_value = "", hide_default_value = true)]
    reference: String,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

#[derive(Args, Debug)]
pub(super) struct SetArgs {
    /// The template's name, as WhatsApp has it
    name: String,
    /// The template's language, such as pt_BR
    language: String,
    /// Its category: marketing, utility or authentication
    category: String,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Args, Debug)]
pub(super) struct RestrictArgs {
    /// When the restriction ends, as RFC 3339 or as a time from now (7d) [default: once it is lifted]
    #[arg(long, value_name = "TIME", value_parser = time::parse_future)]
    until: Option<Timestamp>,
    /// Lift the restriction instead
    #[arg(long, conflicts_with = "until")]
    lift: bool,
    #[command(flatten)]
    event: EventArgs,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// The business, by the deployment's own id
    #[arg(long, value_name = "ID")]
    business: String,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

pub(super) async fn run(command: TemplateCommand) -> anyhow::Result<Verdict> {
    match command {
        TemplateCommand::Set(args) => set(args).await,
        TemplateCommand::Restrict(args) => restrict(args).await,
        TemplateCommand::List(args) => list(args).await,
        TemplateCommand::Import(args) => import::import(args.of_templates()).await,
    }
}

async fn set(args: SetArgs) -> anyhow::Result<Verdict> {
    let SetArgs { name, language, category, event } = args;
    let template = TemplateId::parse(&name, &language).map_err(|found| {
        let found: Vec<_> = found.into_iter().map(|violation| violation.description).collect();
        anyhow::anyhow!(found.join("; "))
    })?;
    let (user_id, reference) = (template.to_string(), event.reference.clone());
    let what = pb::TemplateCategory { category, lift_time: None, reference };
    record(event, user_id, What::TemplateCategory(what)).await
}

async fn restrict(args: RestrictArgs) -> anyhow::Result<Verdict> {
    let RestrictArgs { until, lift, event } = args;
    let what = pb::TemplateRestriction {
        restricted: !lift,
        until_time: until.map(time::to_wire),
        reference: event.reference.clone(),
    };
    record(event, ACCOUNT.to_owned(), What::TemplateRestriction(what)).await
}

async fn record(args: EventArgs, user_id: String, what: What) -> anyhow::Result<Verdict> {
    let EventArgs { business, time, request_id, reference: _, client, token } = args;
    let event = pb::ConsentEvent {
        user_id,
        business_id: business,
        event_time: time.map(time::to_wire),
        what: Some(what),
    };
    let request_id = match (request_id, time) {
        (Some(id), _) => id,
        (None, Some(_)) => String::new(),
        (None, None) => random_request_id()?,
    };
    let channel = client.connect().await?;
    let request = pb::RecordEventRequest { event: Some(event), request_id };
    let mut request = client.request(request);
    token.authorize(&mut request)?;
    let response = RecordServiceClient::new(channel).record_event(request).await;
    let response = response.map_err(|status| client.explain_as(&status, flag_of))?.into_inner();
    if client.json {
        output::json("RecordEventResponse", &response)?;
        return Ok(Verdict::Yes);
    }
    let done =
        if response.applied { "recorded" } else { "recorded before, or older than what is known" };
    output::line(&format!("{done}, revision {}", response.revision))?;
    Ok(Verdict::Yes)
}

/// The name of a request's field on the command line.
fn flag_of(field: &str) -> Option<&'static str> {
    Some(match field.strip_prefix("event.").unwrap_or(field) {
        "business_id" => "--business",
        "event_time" => "--time",
        "request_id" => "--request-id",
        "template_category.category" => "CATEGORY",
        "template_category.reference" | "template_restriction.reference" => "--reference",
        "template_restriction.until_time" => "--until",
        _ => return None,
    })
}

/// What is known of one template, or of the account.
#[derive(Default)]
struct Known {
    state: State,
    /// The time of the latest event.
    latest: Option<Timestamp>,
}

impl Known {
    fn profile(&self) -> Profile {
        ResolvedState::of(&self.state).profile
    }
}

async fn list(args: ListArgs) -> anyhow::Result<Verdict> {
    let ListArgs { business, client, token } = args;
    let channel = client.connect().await?;
    let request =
        pb::ExportEventsRequest { business_id: business, since_time: None, templates_only: true };
    // It takes as long as reading all events does.
    let mut request = tonic::Request::new(request);
    token.authorize(&mut request)?;
    let explain = |status: tonic::Status| client.explain(&status);
    let answers = RecordServiceClient::new(channel).export_events(request).await;
    let mut answers = answers.map_err(explain)?.into_inner();
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    while let Some(answer) = answers.message().await.map_err(explain)? {
        let listed = pb::ListEventsResponse {
            event: answer.event,
            record_time: answer.record_time,
            revision: answer.revision,
            number: answer.number,
            chain_head: answer.chain_head,
            chain: None,
        };
        let Some((_, entry)) = crate::grpc::entry(listed) else { continue };
        let of = known.entry(entry.user_id).or_default();
        of.latest = of.latest.max(Some(entry.time));
        for effect in entry.what.effects(entry.time) {
            of.state.apply(&effect)?;
        }
    }
    let account = known.remove(ACCOUNT).and_then(|known| known.profile().restricted_until());
    let restricted = account.filter(|end| *end > consentd_os::clock::wall());
    let rows: Vec<_> = known.iter().filter_map(|(id, known)| row(id, known)).collect();
    if client.json {
        let restricted_until = restricted.map(end_text);
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        let found = json!({"utilityIsMarketingUntil": restricted_until, "templates": rows});
        output::line(&found.to_string())?;
        return Ok(Verdict::Yes);
    }
    if let Some(end) = restricted {
        output::line(&format!("all utility counts as marketing, until {}", end_text(end)))?;
    }
    if rows.is_empty() {
        output::line("no category of a template is known")?;
    }
    for row in &rows {
        output::line(&row.text())?;
    }
    Ok(Verdict::Yes)
}

/// The end of a restriction.
fn end_text(end: Timestamp) -> String {
    if end == Timestamp::MAX { "it is lifted".to_owned() } else { end.rfc3339_seconds() }
}

struct Row<'a> {
    template: TemplateId<'a>,
    class: Class,
    latest: Option<Timestamp>,
}

fn row<'a>(id: &'a str, known: &Known) -> Option<Row<'a>> {
    let (class, latest) = (known.profile().least_class(), known.latest);
    Some(Row { template: TemplateId::of_subject(id)?, class, latest })
}

impl Row<'_> {
    fn text(&self) -> String {
        let since = self.latest.map(Timestamp::rfc3339_millis).unwrap_or_default();
        let (name, language) = (self.template.name(), self.template.language());
        format!("{name} {language}: {}, since {since}", self.class.name())
    }

    fn json(&self) -> Value {
        json!({
            "name": self.template.name(),
            "language": self.template.language(),
            "category": self.class.name(),
            "since": self.latest.map(Timestamp::rfc3339_millis),
        })
    }
}
