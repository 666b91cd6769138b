//! `due`: opt-ins that expire, so that users can be asked again in time.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::io;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tonic::Request;

use super::client::{ClientArgs, TokenArgs};
use super::output::{self, JsonEncoder};
use super::{Verdict, time};
use crate::grpc::pb;
use crate::grpc::pb::record_service_client::RecordServiceClient;
use consentd_core::time::Timestamp;
use consentd_os::clock;

#[derive(Args, Debug)]
pub(super) struct DueArgs {
    /// Opt-ins that expire within this time from now; with --lapsed, that expired within this time
    #[arg(long, value_name = "TIME", default_value = "30d",
          value_parser = humantime::parse_duration)]
    within: Duration,
    /// List opt-ins that have expired, instead of those that will
    #[arg(long)]
    lapsed: bool,
    /// Also list double opt-ins that wait for their confirmation, whenever they expire
    #[arg(long)]
    pending: bool,
    /// Only the opt-ins of this business
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    business: String,
    #[command(flatten)]
    client: ClientArgs,
    #[command(flatten)]
    token: TokenArgs,
}

/// The columns of the CSV output.
const COLUMNS: [&str; 6] =
    ["user_id", "business_id", "category", "event_time", "expire_time", "state"];

pub(super) async fn due(args: DueArgs) -> anyhow::Result<Verdict> {
    let DueArgs { within, lapsed, pending, business, client, token } = args;
    let channel = client.connect().await?;
    let now = clock::wall();
    let (since, until) = if lapsed { (now.minus(within), now) } else { (now, now.plus(within)) };
    let request = pb::ListDueOptInsRequest {
        business_id: business,
        since_time: Some(time::to_wire(since)),
        until_time: Some(time::to_wire(until)),
        pending,
    };
    let mut request = Request::new(request);
    token.authorize(&mut request)?;
    let explain = |status: tonic::Status| client.explain(&status);
    let answers = RecordServiceClient::new(channel).list_due_opt_ins(request).await;
    let mut answers = answers.map_err(explain)?.into_inner();
    let json = client.json.then(|| JsonEncoder::new("ListDueOptInsResponse")).transpose()?;
    if json.is_none() && !output::try_line(&COLUMNS.join(","))? {
        return Ok(Verdict::Yes);
    }
    while let Some(due) = answers.message().await.map_err(explain)? {
        let line = match &json {
            Some(json) => String::from_utf8(json.without_defaults(&due)?)?,
            None => row(&due, now)?,
        };
        if !output::try_line(&line)? {
            break; // The reader closed the pipe.
        }
    }
    Ok(Verdict::Yes)
}

/// A row of CSV, without a line break.
fn row(due: &pb::ListDueOptInsResponse, now: Timestamp) -> anyhow::Result<String> {
    let state = match &due.expire_time {
        _ if due.pending => "pending",
        Some(expire) if time::from_wire(expire) <= now => "lapsed",
        _ => "opted_in",
    };
    let (user, business) = (output::printable(&due.user_id), output::printable(&due.business_id));
    let event_time = output::time_text(due.event_time.as_ref());
    let expire_time = output::time_text(due.expire_time.as_ref());
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.write_record([&user, &business, &due.category, &event_time, &expire_time, state])?;
    let row = csv.into_inner().map_err(|error| io::Error::other(error.to_string()))?;
    let row = String::from_utf8(row).context("a row is text")?;
    Ok(row.trim_end_matches('\n').to_owned())
}
