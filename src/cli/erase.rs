//! `erase`: what is known of a user goes.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::io::{IsTerminal as _, stdin};

use anyhow::{Context as _, bail};
use clap::Args;

use super::client::{ClientArgs, TokenArgs};
use super::{Verdict, print};
use crate::grpc::pb;
use crate::grpc::pb::record_service_client::RecordServiceClient;

/// For the help.
pub(super) const WHAT_STAYS: &str = "\
The user's events and their evidence go from the ledger for good, and with them what could be proven
by them: export first what must be kept. What stays of each pair is a tombstone, a keyed hash that
names nobody and is suppressed, so that the user is not messaged again, whatever is replayed or
imported from before; and for as long as it is kept, the ledger's log. Without BUSINESS all that is
recorded is read once, to find every business: a large ledger takes longer than --timeout's default.";

#[derive(Args, Debug)]
pub(super) struct EraseArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// The business [default: every one]
    #[arg(default_value = "", hide_default_value = true)]
    business: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

pub(super) async fn erase(args: EraseArgs) -> anyhow::Result<Verdict> {
    let EraseArgs { user, business, yes, client, token } = args;
    if !yes && !confirmed(&business)? {
        bail!("nothing was erased");
    }
    let channel = client.connect().await?;
    let request = pb::EraseUserRequest { user_id: user, business_id: business };
    let mut request = client.request(request);
    token.authorize(&mut request)?;
    let answer = RecordServiceClient::new(channel).erase_user(request).await;
    let answer = answer.map_err(|status| client.explain_as(&status, flag_of))?.into_inner();
    if client.json {
        print::json("EraseUserResponse", &answer)?;
        return Ok(Verdict::Yes);
    }
    print::line(&match answer.erased_count {
        0 => "nothing to erase: nothing is known, or what was is erased already".to_owned(),
        1 => "1 pair erased, and suppressed".to_owned(),
        pairs => format!("{pairs} pairs erased, and suppressed"),
    })?;
    if let Some(time) = &answer.log_expire_time {
        print::line(&format!(
            "the ledger's log, which names users, forgets by {}",
            print::time(Some(time))
        ))?;
    }
    Ok(Verdict::Yes)
}

/// What a field of the request is on the command line.
fn flag_of(field: &str) -> Option<&'static str> {
    match field {
        "user_id" => Some("USER"),
        "business_id" => Some("BUSINESS"),
        _ => None,
    }
}

/// Asks on a terminal.
fn confirmed(business: &str) -> anyhow::Result<bool> {
    if !stdin().is_terminal() {
        bail!("this wants to be confirmed: give --yes (see consentd erase --help)");
    }
    let at = if business.is_empty() { "at every business" } else { "at this business" };
    print::note(&format!(
        "What is recorded of this user {at} goes for good, evidence included. Type yes to go on: "
    ));
    let mut answer = String::new();
    stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(answer.trim() == "yes")
}
