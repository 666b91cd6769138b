//! `history`: the events of a pair with their evidence, and whether their hash chain is intact.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use anyhow::anyhow;
use clap::Args;

use super::client::{ClientArgs, TokenArgs};
use super::{Verdict, output};
use crate::grpc::pb;
use crate::grpc::pb::record_service_client::RecordServiceClient;

#[derive(Args, Debug)]
pub(super) struct HistoryArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// The business, by the deployment's own id
    business: String,
    #[command(flatten)]
    pub(super) client: ClientArgs,
    #[command(flatten)]
    pub(super) token: TokenArgs,
}

/// The error after a history whose hash chain is broken.
pub(super) fn broken_chain() -> anyhow::Error {
    anyhow!(
        "the chain does NOT match: entries were changed, added or removed outside consentd\n  what \
         is shown above is what the ledger holds now, and proves nothing; `consentd ledger verify` \
         says where it is damaged, `consentd verify-export` what an export has of it"
    )
}

pub(super) async fn history(args: HistoryArgs) -> anyhow::Result<Verdict> {
    let HistoryArgs { user, business, client, token } = args;
    let channel = client.connect().await?;
    let request = pb::ListEventsRequest { user_id: user, business_id: business };
    let mut request = client.request(request);
    token.authorize(&mut request)?;
    let explain = |status: tonic::Status| client.explain(&status);
    let answer = RecordServiceClient::new(channel).list_events(request).await;
    let mut entries = answer.map_err(explain)?.into_inner();
    let mut is_broken = false;
    loop {
        let entry = match entries.message().await {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Verdict::Yes),
            Err(status) if status.code() == tonic::Code::DataLoss && is_broken => {
                return Err(broken_chain());
            }
            Err(status) => return Err(explain(status)),
        };
        is_broken |= entry.chain.as_ref().is_some_and(|chain| !chain.intact);
        if client.json {
            output::json("ListEventsResponse", &entry)?;
        } else {
            output::line(&entry_text(&entry))?;
        }
    }
}

/// Describes an event, or the result of checking the hash chain.
pub(super) fn entry_text(listed: &pb::ListEventsResponse) -> String {
    if let Some(chain) = &listed.chain {
        return chain_text(chain);
    }
    let event = listed.event.clone().unwrap_or_default();
    let time = output::time_text(event.event_time.as_ref());
    format!("{time}  r{}  {}", listed.revision, output::event_text(&event))
}

/// Describes the result of checking a hash chain.
pub(super) fn chain_text(chain: &pb::ChainCheck) -> String {
    if chain.event_count == 0 && chain.intact {
        return "nothing was recorded".to_owned();
    }
    let expired = match chain.expired_count {
        0 => String::new(),
        count => format!(", {count} gone by retention (their digests are kept)"),
    };
    let unreadable = match chain.unreadable_count {
        0 => String::new(),
        count => format!(", {count} that cannot be read"),
    };
    format!(
        "chain checked: {}, {} {}: {} kept{expired}{unreadable}\n  head {}",
        if chain.intact { "intact" } else { "BROKEN" },
        chain.event_count,
        if chain.event_count == 1 { "event" } else { "events" },
        chain.kept_count,
        hex::encode(&chain.head),
    )
}
