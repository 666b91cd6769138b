//! `history`: what was recorded of a pair, with its evidence, and whether its chain holds.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use anyhow::anyhow;
use clap::Args;

use super::client::{ClientArgs, TokenArgs};
use super::{Verdict, print};
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

/// What a history whose chain does not match is answered behind all that is there.
pub(super) fn is_broken() -> anyhow::Error {
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
    let mut broken = false;
    loop {
        let entry = match entries.message().await {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(Verdict::Yes),
            Err(status) if status.code() == tonic::Code::DataLoss && broken => {
                return Err(is_broken());
            }
            Err(status) => return Err(explain(status)),
        };
        broken |= entry.chain.as_ref().is_some_and(|chain| !chain.intact);
        if client.json {
            print::json("ListEventsResponse", &entry)?;
        } else {
            print::line(&in_words(&entry))?;
        }
    }
}

/// An event, or what the check of its chain came to.
pub(super) fn in_words(listed: &pb::ListEventsResponse) -> String {
    if let Some(chain) = &listed.chain {
        return chain_in_words(chain);
    }
    let event = listed.event.clone().unwrap_or_default();
    let time = print::time(event.event_time.as_ref());
    format!("{time}  r{}  {}", listed.revision, print::what(&event))
}

/// What the check of a chain came to.
pub(super) fn chain_in_words(chain: &pb::ChainCheck) -> String {
    if chain.event_count == 0 && chain.intact {
        return "nothing was recorded".to_owned();
    }
    let gone = match chain.expired_count {
        0 => String::new(),
        gone => format!(", {gone} gone by retention (their digests are kept)"),
    };
    let unreadable = match chain.unreadable_count {
        0 => String::new(),
        some => format!(", {some} that cannot be read"),
    };
    format!(
        "chain checked: {}, {} {}: {} kept{gone}{unreadable}\n  head {}",
        if chain.intact { "intact" } else { "BROKEN" },
        chain.event_count,
        if chain.event_count == 1 { "event" } else { "events" },
        chain.kept_count,
        print::hex(&chain.head),
    )
}
