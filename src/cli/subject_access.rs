//! `subject`: everything about one user at all businesses, for a data-subject access request.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use clap::Args;
use tonic::Request;

use super::Verdict;
use super::client::{ClientArgs, TokenArgs};
use super::history::{self, broken_chain};
use super::output::{self, JsonEncoder, printable, scopes_text};
use crate::grpc::pb;
use crate::grpc::pb::list_user_events_response::What;
use crate::grpc::pb::record_service_client::RecordServiceClient;

#[derive(Args, Debug)]
pub(super) struct SubjectArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// A business to include in addition to those in the ledger's events; may be repeated
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
    // No deadline: the ledger reads all events to find the businesses.
    let request = pb::ListUserEventsRequest { user_id: user, business_ids: business };
    let mut request = Request::new(request);
    token.authorize(&mut request)?;
    let explain = |status: tonic::Status| client.explain(&status);
    let answers = RecordServiceClient::new(channel).list_user_events(request).await;
    let mut answers = answers.map_err(explain)?.into_inner();
    let json = client.json.then(|| JsonEncoder::new("ListUserEventsResponse")).transpose()?;
    let (mut pairs, mut is_broken) = (0_u64, false);
    loop {
        let answer = match answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => break,
            Err(status) if status.code() == tonic::Code::DataLoss && is_broken => {
                return Err(broken_chain());
            }
            Err(status) => return Err(explain(status)),
        };
        match &answer.what {
            Some(What::Listed(pb::ListEventsResponse { chain: Some(chain), .. })) => {
                is_broken |= !chain.intact;
            }
            Some(What::Pair(_)) => pairs += 1,
            _ => {}
        }
        let line = match &json {
            Some(json) => String::from_utf8(json.without_defaults(&answer)?)?,
            None => text(&answer, pairs),
        };
        if !output::try_line(&line)? {
            return Ok(Verdict::Yes); // The reader closed the pipe.
        }
    }
    if json.is_none() {
        output::line(&match pairs {
            0 => "no business of this ledger has anything about this user".to_owned(),
            1 => "\n1 business has something about this user".to_owned(),
            pairs => format!("\n{pairs} businesses have something about this user"),
        })?;
    }
    Ok(Verdict::Yes)
}

/// Describes one part of the response. `number` counts the businesses so far.
fn text(answer: &pb::ListUserEventsResponse, number: u64) -> String {
    match &answer.what {
        None => "something that only a newer consentd knows".to_owned(),
        Some(What::Listed(listed)) => {
            format!("  {}", history::entry_text(listed).replace('\n', "\n  "))
        }
        Some(What::Pair(pair)) => {
            let consent = pair.consent.clone().unwrap_or_default();
            let last_inbound = match &consent.last_inbound_time {
                None => "never".to_owned(),
                time => output::time_text(time.as_ref()),
            };
            let suppressed = if consent.suppressed { "; must not be contacted" } else { "" };
            let stopped = if consent.platform_stopped {
                format!("; stopped marketing inside WhatsApp{}", output::stopped_at(&consent))
            } else {
                String::new()
            };
            let separator = if number > 1 { "\n" } else { "" };
            format!(
                "{separator}{}: opted in to {}; opted out of {}; last wrote {last_inbound}{stopped}{suppressed}",
                printable(&pair.business_id),
                scopes_text(&consent.opted_in),
                scopes_text(&consent.opted_out),
            )
        }
    }
}
