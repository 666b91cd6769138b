//! `get`: the state of a pair.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use clap::Args;

use super::client::ClientArgs;
use super::{Verdict, output};
use crate::grpc::pb;
use crate::grpc::pb::consent_service_client::ConsentServiceClient;

#[derive(Args, Debug)]
pub(super) struct GetArgs {
    /// The user: a phone number in any notation, or a business-scoped id
    user: String,
    /// The business, by the deployment's own id
    business: String,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn get(args: GetArgs) -> anyhow::Result<Verdict> {
    let channel = args.client.connect().await?;
    let request = pb::GetConsentRequest { user_id: args.user, business_id: args.business };
    let response =
        ConsentServiceClient::new(channel).get_consent(args.client.request(request)).await;
    let consent = response.map_err(|status| args.client.explain(&status))?.into_inner();
    if args.client.json {
        output::json("GetConsentResponse", &consent)?;
        return Ok(Verdict::Yes);
    }
    let last_inbound = match &consent.last_inbound_time {
        None => "never".to_owned(),
        time => output::time_text(time.as_ref()),
    };
    output::line(&format!("opted in to      {}", output::scopes_text(&consent.opted_in)))?;
    output::line(&format!("opted out of     {}", output::scopes_text(&consent.opted_out)))?;
    output::line(&format!("last wrote       {last_inbound}"))?;
    output::line(&format!("WhatsApp stop    {}", output::stop_text(&consent)))?;
    output::line(&format!("suppressed       {}", consent.suppressed))?;
    for failure in &consent.failures {
        let at = failure.retry_time.as_ref();
        let at = at.map(|time| format!(": {}", output::time_text(Some(time)))).unwrap_or_default();
        let (code, meaning) = (failure.code, output::printable(&failure.meaning));
        let again = output::printable(&failure.again);
        output::line(&format!("refused          {code}, {meaning}; again {again}{at}"))?;
    }
    output::line(&format!("revision         {}", consent.revision))?;
    output::line(&format!("pair             {}", output::printable(&consent.pair_key)))?;
    Ok(Verdict::Yes)
}
