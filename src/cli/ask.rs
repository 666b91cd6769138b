//! `check`, `get`, `status` and `healthcheck`: the commands that ask a sidecar.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::time::Duration;

use clap::{Args, ValueEnum};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::client::ClientArgs;
use super::{Verdict, explain, print};
use crate::grpc::pb;
use crate::grpc::pb::consent_service_client::ConsentServiceClient;
use consentd_core::time::Timestamp;
use consentd_os::clock;

/// How the message is written.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(clippy::enum_variant_names, reason = "WhatsApp's own word is free-form")]
enum Form {
    /// Not decided yet.
    Any,
    /// Text, media or an interactive message.
    FreeForm,
    /// An approved template.
    Template,
}

impl From<Form> for pb::MessageForm {
    fn from(form: Form) -> Self {
        match form {
            Form::Any => Self::Unspecified,
            Form::FreeForm => Self::FreeForm,
            Form::Template => Self::Template,
        }
    }
}

/// Clocks that are so near to each other are not worth a word.
const CLOCKS_AGREE: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// The business, by the deployment's own id
    business: String,
    /// The category: CLASS or CLASS.TOPIC, such as utility.order_updates
    category: String,
    /// How the message is written
    #[arg(long, value_enum, default_value_t = Form::Any)]
    form: Form,
    /// Wait until the sidecar holds this revision, as a recording answered it
    #[arg(long, value_name = "REVISION", default_value_t = 0)]
    min_revision: u64,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Args, Debug)]
pub(super) struct PairArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// The business, by the deployment's own id
    business: String,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Args, Debug)]
pub(super) struct HealthArgs {
    /// What to ask for: readiness, liveness, or a service's full name; empty for the whole server
    #[arg(default_value = "")]
    service: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn check(args: CheckArgs) -> anyhow::Result<Verdict> {
    let channel = args.client.connect().await?;
    let request = pb::CanSendRequest {
        user_id: args.user,
        business_id: args.business,
        category: args.category,
        form: pb::MessageForm::from(args.form).into(),
        min_revision: args.min_revision,
    };
    let answer = ConsentServiceClient::new(channel).can_send(args.client.request(request)).await;
    let answer = answer.map_err(|status| args.client.explain_as(&status, part_of))?.into_inner();
    if args.client.json {
        print::json("CanSendResponse", &answer)?;
    } else {
        print::line(&in_words(&answer))?;
    }
    Ok(if answer.allowed { Verdict::Yes } else { Verdict::No })
}

/// What a field of a question is on the command line.
fn part_of(field: &str) -> Option<&'static str> {
    Some(match field {
        "user_id" => "USER",
        "business_id" => "BUSINESS",
        "category" => "CATEGORY",
        "min_revision" => "--min-revision",
        _ => return None,
    })
}

fn in_words(answer: &pb::CanSendResponse) -> String {
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let mut text = format!(
        "{}: {}\n  {}\n  template {}, free-form {}",
        if answer.allowed { "allowed" } else { "denied" },
        explain::name(answer.reason()),
        explain::reason(answer.reason()),
        yes(answer.template_allowed),
        yes(answer.free_form_allowed),
    );
    let is_over = |time: &prost_types::Timestamp| print::timestamp(time) <= clock::wall();
    let window = match &answer.window_expire_time {
        Some(time) if is_over(time) => "window closed at",
        _ => "window until",
    };
    for (name, time) in [(window, &answer.window_expire_time), ("ask again at", &answer.retry_time)]
    {
        if time.is_some() {
            text.push_str("\n  ");
            text.push_str(name);
            text.push(' ');
            text.push_str(&print::time(time.as_ref()));
        }
    }
    let staleness = print::span(answer.staleness.as_ref());
    text + &format!("\n  revision {}, proven {staleness} ago", answer.revision)
}

pub(super) async fn get(args: PairArgs) -> anyhow::Result<Verdict> {
    let channel = args.client.connect().await?;
    let request = pb::GetConsentRequest { user_id: args.user, business_id: args.business };
    let answer = ConsentServiceClient::new(channel).get_consent(args.client.request(request)).await;
    let answer = answer.map_err(|status| args.client.explain(&status))?.into_inner();
    if args.client.json {
        print::json("GetConsentResponse", &answer)?;
        return Ok(Verdict::Yes);
    }
    let list = |scopes: &[String]| match scopes {
        [] => "nothing".to_owned(),
        scopes => scopes.join(", "),
    };
    let written = match &answer.last_inbound_time {
        None => "never".to_owned(),
        time => print::time(time.as_ref()),
    };
    print::line(&format!("opted in to      {}", list(&answer.opted_in)))?;
    print::line(&format!("opted out of     {}", list(&answer.opted_out)))?;
    print::line(&format!("last wrote       {written}"))?;
    print::line(&format!("WhatsApp stop    {}", answer.platform_stopped))?;
    print::line(&format!("suppressed       {}", answer.suppressed))?;
    print::line(&format!("revision         {}", answer.revision))?;
    print::line(&format!("pair             {}", print::shown(&answer.pair_key)))?;
    Ok(Verdict::Yes)
}

pub(super) async fn status(args: StatusArgs) -> anyhow::Result<Verdict> {
    let channel = args.client.connect().await?;
    let asked = clock::wall();
    let answer = ConsentServiceClient::new(channel)
        .get_status(args.client.request(pb::GetStatusRequest {}))
        .await;
    let answer = answer.map_err(|status| args.client.explain(&status))?.into_inner();
    if args.client.json {
        print::json("GetStatusResponse", &answer)?;
        return Ok(Verdict::Yes);
    }
    let phase = answer.phase().as_str_name().trim_start_matches("PHASE_").to_lowercase();
    let cause = if answer.cause.is_empty() { String::new() } else { format!(": {}", answer.cause) };
    print::line(&format!("phase      {phase}{cause}"))?;
    print::line(&format!("proven     {} ago", print::span(answer.staleness.as_ref())))?;
    print::line(&format!("revision   {}", answer.revision))?;
    print::line(&format!("pairs      {}", answer.pairs))?;
    print::line(&format!("ledger     {}", answer.ledger))?;
    if answer.remembered_pairs > 0 {
        let pairs = answer.remembered_pairs;
        print::line(&format!("remembers  denials of {pairs} users that the ledger has lost"))?;
    }
    for warning in &answer.warnings {
        print::line(&format!("warning    {warning}"))?;
    }
    if let Some(time) = &answer.current_time {
        let offset = offset(print::timestamp(time), asked, clock::wall());
        print::line(&format!("clock      {}{offset}", print::time(Some(time))))?;
    }
    print::line(&format!("version    {}", answer.version))?;
    Ok(Verdict::Yes)
}

/// How far the sidecar's clock is from ours, which said these times when it was asked and when it
/// had answered; nothing where they may well be the same.
fn offset(theirs: Timestamp, asked: Timestamp, answered: Timestamp) -> String {
    let (earliest, latest) = (asked.minus(CLOCKS_AGREE), answered.plus(CLOCKS_AGREE));
    let (apart, which) = if theirs > latest {
        (theirs.since(answered), "ahead of")
    } else if theirs < earliest {
        (asked.since(theirs), "behind")
    } else {
        return String::new();
    };
    let apart = humantime::format_duration(Duration::from_secs(apart.as_secs()));
    format!(
        ", {apart} {which} this machine's\n           one of the two is wrong: events that are \
         timed by it count too early or too late"
    )
}

pub(super) async fn healthcheck(args: HealthArgs) -> anyhow::Result<Verdict> {
    let channel = args.client.connect().await?;
    let request = tonic_health::pb::HealthCheckRequest { service: args.service };
    let answer = HealthClient::new(channel).check(args.client.request(request)).await;
    let answer = answer.map_err(|status| args.client.explain(&status))?.into_inner();
    let serving = answer.status() == ServingStatus::Serving;
    let name = answer.status().as_str_name();
    let text =
        if args.client.json { format!("{{\"status\":\"{name}\"}}") } else { name.to_owned() };
    print::line(&text)?;
    Ok(if serving { Verdict::Yes } else { Verdict::No })
}
