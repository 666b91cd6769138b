//! `subject`: everything about one user, over all businesses.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use clap::Args;
use tonic::Request;

use super::Verdict;
use super::client::{ClientArgs, TokenArgs};
use super::history::{self, is_broken};
use super::print::{self, Json, shown};
use crate::grpc::pb;
use crate::grpc::pb::list_user_events_response::What;
use crate::grpc::pb::record_service_client::RecordServiceClient;

#[derive(Args, Debug)]
pub(super) struct SubjectArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// A business to look at besides those that the ledger's events name; may be repeated
    #[arg(long, value_name = "ID")]
    business: Vec<String>,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

pub(super) async fn subject(args: SubjectArgs) -> anyhow::Result<Verdict> {
    let SubjectArgs { user, business, client, token } = args;
    let channel = client.connect().await?;
    // All events are read to find the businesses: that has no time to be done within.
    let request = pb::ListUserEventsRequest { user_id: user, business_ids: business };
    let mut request = Request::new(request);
    token.authorize(&mut request)?;
    let explain = |status: tonic::Status| client.explain(&status);
    let answers = RecordServiceClient::new(channel).list_user_events(request).await;
    let mut answers = answers.map_err(explain)?.into_inner();
    let json = client.json.then(|| Json::new("ListUserEventsResponse")).transpose()?;
    let (mut pairs, mut broken) = (0_u64, false);
    loop {
        let answer = match answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => break,
            Err(status) if status.code() == tonic::Code::DataLoss && broken => {
                return Err(is_broken());
            }
            Err(status) => return Err(explain(status)),
        };
        match &answer.what {
            Some(What::Listed(pb::ListEventsResponse { chain: Some(chain), .. })) => {
                broken |= !chain.intact;
            }
            Some(What::Pair(_)) => pairs += 1,
            _ => {}
        }
        let line = match &json {
            Some(json) => String::from_utf8(json.without_defaults(&answer)?)?,
            None => in_words(&answer, pairs),
        };
        if !print::read_line(&line)? {
            return Ok(Verdict::Yes); // Whoever read has gone.
        }
    }
    if json.is_none() {
        print::line(&match pairs {
            0 => "no business of this ledger has anything about this user".to_owned(),
            1 => "\n1 business has something about this user".to_owned(),
            pairs => format!("\n{pairs} businesses have something about this user"),
        })?;
    }
    Ok(Verdict::Yes)
}

fn in_words(answer: &pb::ListUserEventsResponse, number: u64) -> String {
    match &answer.what {
        None => "something that only a newer consentd knows".to_owned(),
        Some(What::Listed(listed)) => {
            format!("  {}", history::in_words(listed).replace('\n', "\n  "))
        }
        Some(What::Pair(pair)) => {
            let consent = pair.consent.clone().unwrap_or_default();
            let list = |scopes: &[String]| match scopes {
                [] => "nothing".to_owned(),
                scopes => scopes.join(", "),
            };
            let wrote = match &consent.last_inbound_time {
                None => "never".to_owned(),
                time => print::time(time.as_ref()),
            };
            let suppressed = if consent.suppressed { "; must not be contacted" } else { "" };
            let stopped =
                if consent.platform_stopped { "; stopped marketing inside WhatsApp" } else { "" };
            let above = if number > 1 { "\n" } else { "" };
            format!(
                "{above}{}: opted in to {}; opted out of {}; last wrote {wrote}{stopped}{suppressed}",
                shown(&pair.business_id),
                list(&consent.opted_in),
                list(&consent.opted_out),
            )
        }
    }
}
