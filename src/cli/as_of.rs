//! `prove`: what was known of a user at a time, and what a check would have been answered then.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

mod report;

use anyhow::{Context as _, bail};
use clap::Args;
use consentd_core::decision::Policy;
use consentd_core::replay::{AsOf, DeletedEvents, HistoryEvent};
use consentd_core::scope::{Category, Scope};
use consentd_core::template::{ACCOUNT, TemplateId};
use consentd_core::time::Timestamp;
use consentd_os::clock;
use serde_json::Value;

use self::report::{Report, Rule};
use super::client::{ClientArgs, TokenArgs};
use super::history::broken_chain;
use super::output::JsonEncoder;
use super::{Verdict, output, time};
use crate::config::PastPolicyArgs;
use crate::grpc::pb;
use crate::grpc::pb::record_service_client::RecordServiceClient;

/// The longest history that is replayed. It is kept in memory.
const MAX_EVENTS: usize = 1_000_000;

#[derive(Args, Debug)]
pub(super) struct ProveArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// The business, by the deployment's own id
    business: String,
    /// The moment: RFC 3339 (2026-01-31T09:30:00Z, 2026-01-31T10:30:00+01:00), or a date, which is
    /// its first moment in UTC [default: now]
    #[arg(long, value_name = "TIME", value_parser = moment)]
    at: Option<Timestamp>,
    /// Only this category, CLASS or CLASS.TOPIC; may be repeated [default: all classes, and all
    /// topics that the events name]
    #[arg(long, value_name = "CATEGORY", value_parser = category)]
    category: Vec<Scope>,
    /// For a message by this template: what was known of its category counts, too
    #[arg(long, value_name = "NAME", requires = "language")]
    template: Option<String>,
    /// The language of the template, such as pt_BR
    #[arg(long, value_name = "CODE", requires = "template")]
    language: Option<String>,
    #[command(flatten)]
    policy: PastPolicyArgs,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

fn moment(text: &str) -> Result<Timestamp, String> {
    let time: prost_types::Timestamp = text.parse().map_err(|_| {
        "must be a time such as 2026-01-31T09:30:00Z, or a date such as 2026-01-31".to_owned()
    })?;
    if time.seconds < 0 {
        return Err("must be 1970 or later".to_owned());
    }
    let time = time::from_wire(&time);
    let now = clock::wall();
    if time > now {
        return Err(format!(
            "lies in the future (it is {} by this machine's clock): what will be known then cannot \
             be shown",
            now.rfc3339_millis()
        ));
    }
    Ok(time)
}

fn category(text: &str) -> Result<Scope, String> {
    Category::parse(text).map(Scope::from).map_err(|violation| violation.description)
}

/// The history of a pair as the ledger has it today.
struct History {
    /// The events as they were received, in order.
    responses: Vec<pb::ListEventsResponse>,
    events: Vec<HistoryEvent>,
    chain: pb::ChainCheck,
    deleted: DeletedEvents,
}

/// The histories in which a template's category is, with the ids that they have in the ledger.
struct CategoryRules {
    template: (String, History),
    account: (String, History),
}

pub(super) async fn prove(args: ProveArgs) -> anyhow::Result<Verdict> {
    let policy = args.policy.policy()?;
    let history = read(&args, &args.user).await?;
    let rules = read_rules(&args).await?;
    // The default is the later of this machine's clock and the last event's, so that it covers all
    // events even if this machine's clock is behind.
    let of_rules = rules.iter().flat_map(|rules| [&rules.template.1, &rules.account.1]);
    let all = of_rules.chain([&history]).flat_map(|history| &history.events);
    let last = all.map(|event| event.entry.record_time).max();
    let at = args.at.unwrap_or_else(|| clock::wall().max(last.unwrap_or(Timestamp::MIN)));
    let person = replay(&history, &policy, at)?;
    let rules = match &rules {
        None => None,
        Some(CategoryRules { template, account }) => Some([
            Rule {
                id: &template.0,
                history: &template.1,
                as_of: replay(&template.1, &policy, at)?,
            },
            Rule { id: &account.0, history: &account.1, as_of: replay(&account.1, &policy, at)? },
        ]),
    };
    let categories = if args.category.is_empty() { person.categories() } else { args.category };
    let is_intact =
        history.chain.intact && rules.iter().flatten().all(|rule| rule.history.chain.intact);
    let report = Report { as_of: &person, history: &history, policy: &policy, rules: &rules };
    if args.client.json {
        output::line(&report.json(&args.user, &args.business, &categories)?.to_string())?;
    } else {
        let (user, business) = (output::printable(&args.user), output::printable(&args.business));
        output::line(&format!("{user} at {business}, as known at {}", at.rfc3339_millis()))?;
        for line in report.lines(&categories) {
            output::line(&line)?;
        }
    }
    if is_intact { Ok(Verdict::Yes) } else { Err(broken_chain()) }
}

/// A pair as it was known at this time.
fn replay<'a>(history: &'a History, policy: &Policy, at: Timestamp) -> anyhow::Result<AsOf<'a>> {
    AsOf::of(&history.events, &history.deleted, policy, at)
        .context("the history cannot be replayed by the rules")
}

/// Reads what was recorded of the template that the message is by, if one is named.
async fn read_rules(args: &ProveArgs) -> anyhow::Result<Option<CategoryRules>> {
    let Some((name, language)) = args.template.as_ref().zip(args.language.as_ref()) else {
        return Ok(None);
    };
    let template = TemplateId::parse(name, language).map_err(|found| {
        let found: Vec<_> = found.into_iter().map(|violation| violation.description).collect();
        anyhow::anyhow!(found.join("; "))
    })?;
    let (template, account) = (template.to_string(), ACCOUNT.to_owned());
    let histories = (read(args, &template).await?, read(args, &account).await?);
    Ok(Some(CategoryRules { template: (template, histories.0), account: (account, histories.1) }))
}

async fn read(args: &ProveArgs, user_id: &str) -> anyhow::Result<History> {
    let (user_id, business_id) = (user_id.to_owned(), args.business.clone());
    let channel = args.client.connect().await?;
    let mut request = args.client.request(pb::ListEventsRequest { user_id, business_id });
    args.token.authorize(&mut request)?;
    let explain = |status: tonic::Status| args.client.explain(&status);
    let listed = RecordServiceClient::new(channel).list_events(request).await;
    let mut listed = listed.map_err(explain)?.into_inner();
    let (mut responses, mut events, mut chain) = (Vec::new(), Vec::new(), None);
    loop {
        let response = match listed.message().await {
            Ok(Some(response)) => response,
            Ok(None) => break,
            // The chain is broken: what was listed is still printed, with an error that it proves
            // nothing.
            Err(status) if status.code() == tonic::Code::DataLoss && chain.is_some() => break,
            Err(status) => return Err(explain(status)),
        };
        if response.chain.is_some() {
            chain = response.chain;
            continue;
        }
        if events.len() >= MAX_EVENTS {
            bail!("the history has more than {MAX_EVENTS} events, the most that are replayed");
        }
        let (at, entry) = crate::grpc::entry(response.clone())
            .context("the history has an event that only a newer consentd knows")?;
        events.push(HistoryEvent { number: at.number, head: at.head, entry });
        responses.push(response);
    }
    let chain = chain.context("the sidecar is older than this command: it checks no chains")?;
    let deleted = DeletedEvents {
        events: chain.event_count,
        last_inbound: chain.last_inbound_time.as_ref().map(time::from_wire),
        last_failure: chain.last_failure_time.as_ref().map(time::from_wire),
    };
    Ok(History { responses, events, chain, deleted })
}

impl History {
    /// An event as it was received, by its number.
    fn response(&self, number: u64) -> Option<&pb::ListEventsResponse> {
        let index = self.responses.binary_search_by_key(&number, |listed| listed.number).ok()?;
        self.responses.get(index)
    }

    /// Describes an event by its number. Further lines begin with `indent`.
    fn event_text(&self, number: u64, indent: &str) -> String {
        let event = self.response(number).and_then(|response| response.event.as_ref());
        let text = event.map(output::event_text).unwrap_or_default();
        text.replace('\n', &format!("\n{indent}"))
    }

    /// An event, with the time at which it was recorded if that was later.
    fn event_line(&self, event: &HistoryEvent) -> String {
        let entry = &event.entry;
        let recorded = match entry.record_time {
            time if time == entry.time => String::new(),
            time => format!(" (recorded {})", time.rfc3339_millis()),
        };
        let text = self.event_text(event.number, "    ");
        format!("  #{}  {}{recorded}  {text}", event.number, entry.time.rfc3339_millis())
    }

    fn events_json(&self, events: &[&HistoryEvent]) -> anyhow::Result<Vec<Value>> {
        let encoder = JsonEncoder::new("ListEventsResponse")?;
        let responses = events.iter().filter_map(|event| self.response(event.number));
        responses
            .map(|response| Ok(serde_json::from_slice(&encoder.without_defaults(response)?)?))
            .collect()
    }
}
