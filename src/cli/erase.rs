//! `erase`: erases a user's events and evidence.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use anyhow::bail;
use clap::Args;

use super::client::{ClientArgs, TokenArgs};
use super::{Verdict, output, prompt};
use crate::grpc::pb;
use crate::grpc::pb::record_service_client::RecordServiceClient;

/// The end of the command's help.
pub(super) const WHAT_STAYS: &str = "\
The user's events and their evidence are removed from the ledger for good, and with them their
proof: export first what must be kept. Each pair leaves a tombstone, a keyed hash that identifies no
user and is suppressed, so that the user is not messaged again, whatever is replayed or imported
later. The ledger's log names the user until it is trimmed. Without BUSINESS the whole ledger is
read to find every business, for which the default --timeout may be too short.";

#[derive(Args, Debug)]
pub(super) struct EraseArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// The business [default: every one]
    #[arg(default_value = "", hide_default_value = true)]
    business: String,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

pub(super) async fn erase(args: EraseArgs) -> anyhow::Result<Verdict> {
    let EraseArgs { user, business, yes, client, token } = args;
    if !yes && !prompt::confirm(&question(&business), "erase")? {
        bail!("nothing was erased");
    }
    let channel = client.connect().await?;
    let request = pb::EraseUserRequest { user_id: user, business_id: business };
    let mut request = client.request(request);
    token.authorize(&mut request)?;
    let response = RecordServiceClient::new(channel).erase_user(request).await;
    let response = response.map_err(|status| client.explain_as(&status, flag_of))?.into_inner();
    if client.json {
        output::json("EraseUserResponse", &response)?;
        return Ok(Verdict::Yes);
    }
    output::line(&match response.erased_count {
        0 => "nothing to erase: nothing is known, or what was is erased already".to_owned(),
        1 => "1 pair erased, and suppressed".to_owned(),
        pairs => format!("{pairs} pairs erased, and suppressed"),
    })?;
    if let Some(time) = &response.log_expire_time {
        output::line(&format!(
            "the ledger's log, which names users, forgets by {}",
            output::time_text(Some(time))
        ))?;
    }
    Ok(Verdict::Yes)
}

/// The name of a request's field on the command line.
fn flag_of(field: &str) -> Option<&'static str> {
    match field {
        "user_id" => Some("USER"),
        "business_id" => Some("BUSINESS"),
        _ => None,
    }
}

fn question(business: &str) -> String {
    let at = if business.is_empty() { "at every business" } else { "at this business" };
    format!("What is recorded of this user {at} goes for good, evidence included.")
}
