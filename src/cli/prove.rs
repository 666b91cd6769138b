//! `prove`: what was known of a user at a moment, and what a check would have been answered then.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::Verdict;
use super::client::{ClientArgs, TokenArgs};
use super::history::is_broken;
use super::print::{self, Json};
use crate::config::PastPolicyArgs;
use crate::grpc::pb;
use crate::grpc::pb::record_service_client::RecordServiceClient;
use consentd_core::decision::Policy;
use consentd_core::replay::{AsOf, DeletedEvents, FormDecision, HistoryEvent, Uncertainty};
use consentd_core::scope::{Category, Class, Scope};
use consentd_core::time::Timestamp;
use consentd_os::clock;

/// The most events of a history that are replayed: all of them are kept in memory.
const MAX_LISTED: usize = 1_000_000;

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
    let time = print::timestamp(&time);
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

/// A history as the ledger has it today.
struct Today {
    events: Vec<pb::ListEventsResponse>,
    listed: Vec<HistoryEvent>,
    chain: pb::ChainCheck,
    gone: DeletedEvents,
}

pub(super) async fn prove(args: ProveArgs) -> anyhow::Result<Verdict> {
    let policy = args.policy.policy()?;
    let today = read(&args).await?;
    // Without a moment: by the later of the two clocks, so that all that is recorded is known.
    let last = today.listed.iter().map(|event| event.entry.record_time).max();
    let at = args.at.unwrap_or_else(|| clock::wall().max(last.unwrap_or(Timestamp::MIN)));
    let past = AsOf::of(&today.listed, &today.gone, &policy, at)
        .context("the history cannot be replayed by the rules")?;
    let categories = if args.category.is_empty() { past.categories() } else { args.category };
    let shown = Shown { past: &past, today: &today, policy: &policy };
    if args.client.json {
        print::line(&shown.json(&args.user, &args.business, &categories)?.to_string())?;
    } else {
        let (user, business) = (print::shown(&args.user), print::shown(&args.business));
        print::line(&format!("{user} at {business}, as known at {}", at.rfc3339_millis()))?;
        for line in shown.text(&categories) {
            print::line(&line)?;
        }
    }
    if today.chain.intact { Ok(Verdict::Yes) } else { Err(is_broken()) }
}

async fn read(args: &ProveArgs) -> anyhow::Result<Today> {
    let (user_id, business_id) = (args.user.clone(), args.business.clone());
    let channel = args.client.connect().await?;
    let mut request = args.client.request(pb::ListEventsRequest { user_id, business_id });
    args.token.authorize(&mut request)?;
    let explain = |status: tonic::Status| args.client.explain(&status);
    let answer = RecordServiceClient::new(channel).list_events(request).await;
    let mut answers = answer.map_err(explain)?.into_inner();
    let (mut events, mut listed, mut chain) = (Vec::new(), Vec::new(), None);
    loop {
        let answer = match answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => break,
            // What was listed is shown all the same, and said to prove nothing.
            Err(status) if status.code() == tonic::Code::DataLoss && chain.is_some() => break,
            Err(status) => return Err(explain(status)),
        };
        if answer.chain.is_some() {
            chain = answer.chain;
            continue;
        }
        if listed.len() >= MAX_LISTED {
            bail!("the history has more than {MAX_LISTED} events, the most that are replayed");
        }
        let (at, entry) = crate::grpc::entry(answer.clone())
            .context("the history has an event that only a newer consentd knows")?;
        listed.push(HistoryEvent { number: at.number, head: at.head, entry });
        events.push(answer);
    }
    let chain = chain.context("the sidecar is older than this command: it checks no chains")?;
    let moment = |time: &Option<prost_types::Timestamp>| time.as_ref().map(print::timestamp);
    let gone = DeletedEvents {
        events: chain.event_count,
        last_inbound: moment(&chain.last_inbound_time),
        last_failure: moment(&chain.last_failure_time),
    };
    Ok(Today { events, listed, chain, gone })
}

/// What is printed.
struct Shown<'a> {
    past: &'a AsOf<'a>,
    today: &'a Today,
    policy: &'a Policy,
}

impl Shown<'_> {
    fn text(&self, categories: &[Scope]) -> Vec<String> {
        let mut lines = vec![format!("policy assumed: {}", self.policy_in_words()), String::new()];
        let known = self.past.known.len();
        lines.push(match known {
            0 => "known then: nothing".to_owned(),
            1 => "known then: 1 event".to_owned(),
            some => format!("known then: {some} events"),
        });
        lines.extend(self.past.known.iter().map(|event| self.event(event)));
        if !self.past.late.is_empty() {
            lines.push("happened by then, but recorded later, so not known:".to_owned());
            lines.extend(self.past.late.iter().map(|event| self.event(event)));
        }
        lines.extend(self.unknown());
        lines.push(String::new());
        lines.push("what CanSend would have answered, from a sidecar that was current:".to_owned());
        for scope in categories {
            let Some(category) = scope.category() else { continue };
            let answer = self.past.decision(category, self.policy);
            lines.push(format!("  {category}"));
            let (template, free_form) = (&answer.template, &answer.free_form);
            if template == free_form {
                lines.extend(self.said("both     ", template));
            } else {
                lines.extend(self.said("template ", template));
                lines.extend(self.said("free-form", free_form));
            }
        }
        lines.push(String::new());
        lines.extend(self.chain());
        lines
    }

    fn policy_in_words(&self) -> String {
        format!(
            "window {} less {}, standing in for an opt-in to {}",
            humantime::format_duration(self.policy.window),
            humantime::format_duration(self.policy.margin),
            match self.implied().as_slice() {
                [] => "no class".to_owned(),
                classes => classes.join(", "),
            }
        )
    }

    fn implied(&self) -> Vec<&'static str> {
        let implies = |class: &Class| self.policy.window_implies.contains(*class);
        Class::ALL.into_iter().filter(implies).map(Class::name).collect()
    }

    /// An event in words, and when it was recorded where that was not at once.
    fn event(&self, event: &HistoryEvent) -> String {
        let entry = &event.entry;
        let recorded = match entry.record_time {
            time if time == entry.time => String::new(),
            time => format!(" (recorded {})", time.rfc3339_millis()),
        };
        let what = self.today.event(event.number).map(print::what).unwrap_or_default();
        let what = what.replace('\n', "\n    ");
        format!("  #{}  {}{recorded}  {what}", event.number, entry.time.rfc3339_millis())
    }

    fn said(&self, form: &str, said: &FormDecision<'_>) -> Vec<String> {
        let verdict = if said.reason.allows() { "allowed" } else { "denied" };
        let mut lines = vec![
            format!("    {form}  {verdict}: {}", said.reason.name()),
            format!("      {}", said.reason.explanation()),
        ];
        for event in &said.because {
            let what = self.today.event(event.number).map(print::what).unwrap_or_default();
            let what = what.replace('\n', "\n      ");
            lines.push(format!("      by #{}: {what}", event.number));
        }
        if !said.alternatives.is_empty() {
            let names: Vec<_> = said.alternatives.iter().map(|reason| reason.name()).collect();
            lines.push(format!(
                "      cannot be told for certain: by events that are no longer kept it may have \
                 been {}",
                names.join(" or ")
            ));
        }
        lines
    }

    fn unknown(&self) -> Option<String> {
        let Uncertainty { events, before, inbound, failure } = self.past.uncertainty;
        if events == 0 {
            return None;
        }
        let before = match before {
            None => String::new(),
            Some(time) => format!(" recorded before {}", time.rfc3339_millis()),
        };
        let what = match events {
            1 => format!("1 inbound message or refusal{before} is"),
            some => format!("{some} inbound messages or refusals{before} are"),
        };
        let so = match (inbound, failure) {
            (false, false) => "all were too long before this moment to matter to it",
            (true, false) => "an open window can be neither shown nor excluded",
            (false, true) => "a refusal by WhatsApp that counted can be neither shown nor excluded",
            (true, true) => {
                "neither an open window nor a refusal by WhatsApp can be shown or excluded"
            }
        };
        Some(format!("{what} no longer kept: {so}"))
    }

    fn chain(&self) -> Vec<String> {
        let then = match self.past.known.last() {
            None => "the chain then: no event that is kept".to_owned(),
            Some(last) => {
                format!("the chain then: head {} after #{}", print::hex(&last.head), last.number)
            }
        };
        vec![then, super::history::chain_in_words(&self.today.chain)]
    }

    fn json(&self, user: &str, business: &str, categories: &[Scope]) -> anyhow::Result<Value> {
        let event = Json::new("ListEventsResponse")?;
        let list = |events: &[&HistoryEvent]| -> anyhow::Result<Vec<Value>> {
            let found = events.iter().filter_map(|listed| self.today.listed(listed.number));
            found
                .map(|listed| Ok(serde_json::from_slice(&event.without_defaults(listed)?)?))
                .collect()
        };
        let answers: Vec<_> = categories
            .iter()
            .filter_map(Scope::category)
            .map(|category| {
                let answer = self.past.decision(category, self.policy);
                json!({
                    "category": category.to_string(),
                    "template": said_in_json(&answer.template),
                    "freeForm": said_in_json(&answer.free_form),
                    "windowExpireTime": answer.window_expire.map(Timestamp::rfc3339_millis),
                })
            })
            .collect();
        let chain: Value =
            serde_json::from_slice(&Json::new("ChainCheck")?.with_defaults(&self.today.chain)?)?;
        let newest = self.past.known.last();
        let unknown = &self.past.uncertainty;
        Ok(json!({
            "userId": user,
            "businessId": business,
            "at": self.past.at.rfc3339_millis(),
            "policy": {
                "window": humantime::format_duration(self.policy.window).to_string(),
                "windowMargin": humantime::format_duration(self.policy.margin).to_string(),
                "windowImplies": self.implied(),
            },
            "known": list(&self.past.known)?,
            "recordedLater": list(&self.past.late)?,
            "noLongerKept": {
                "events": unknown.events,
                "recordedBefore": unknown.before.map(Timestamp::rfc3339_millis),
                "mayHaveOpenedWindow": unknown.inbound,
                "mayHaveBeenRefusal": unknown.failure,
            },
            "answers": answers,
            "chainThen": {
                "number": newest.map(|event| event.number),
                "head": newest.map(|event| print::hex(&event.head)),
            },
            "chain": chain,
        }))
    }
}

fn said_in_json(said: &FormDecision<'_>) -> Value {
    let numbers: Vec<_> = said.because.iter().map(|event| event.number).collect();
    let or_else: Vec<_> = said.alternatives.iter().map(|reason| reason.name()).collect();
    json!({
        "allowed": said.reason.allows(),
        "reason": said.reason.name(),
        "explanation": said.reason.explanation(),
        "because": numbers,
        "orElse": or_else,
    })
}

impl Today {
    fn listed(&self, number: u64) -> Option<&pb::ListEventsResponse> {
        let place = self.events.binary_search_by_key(&number, |listed| listed.number).ok()?;
        self.events.get(place)
    }

    fn event(&self, number: u64) -> Option<&pb::ConsentEvent> {
        self.listed(number)?.event.as_ref()
    }
}
