//! `webhook`: receives webhooks in a process of its own; and `webhook doctor`, which examines one that
//! runs.
//!
//! The doctor reads, and changes nothing: [`receiver`] asks the running process what arrived,
//! [`subscriptions`] reads what Meta says is subscribed, [`ledger`] what was recorded, [`judge`] makes
//! findings of it all (it is pure), and [`report`] prints them.

mod judge;
mod ledger;
mod receiver;
mod report;
mod subscriptions;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use self::judge::{Diagnosis, Observations};
use self::subscriptions::Subscriptions;
use super::ledger_target::name_variable;
use super::{Verdict, block_on, serve};
use crate::config::{DoctorArgs, WebhookArgs};
use consentd_os::clock;

/// The end of the doctor's help.
const HOW_TO_ASK_META: &str = "\
Exit codes: 0 nothing was found, 1 something was, 2 it could not be looked at.

What is subscribed, only Meta can tell. Two reads of its Graph API say it; give their answers by
--subscriptions, and the doctor compares them with what arrives:

  curl -s -H \"Authorization: Bearer $APP_ID|$APP_SECRET\" \\
      https://graph.facebook.com/v25.0/$APP_ID/subscriptions > app.json
  numbers=https://graph.facebook.com/v25.0/$WABA_ID/phone_numbers
  curl -s -H \"Authorization: Bearer $TOKEN\" \\
      \"$numbers?fields=id,webhook_configuration&limit=100\" > numbers.json
  consentd webhook doctor --subscriptions app.json --subscriptions numbers.json

The doctor itself calls the receiver and the ledger alone.";

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct WebhookCommand {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    receive: WebhookArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say of each number what is subscribed, what arrives, what is missing, and how to mend it
    /// (exit code 0: all is well, 1: something is missing)
    #[command(after_help = HOW_TO_ASK_META)]
    Doctor(Box<DoctorCommand>),
}

#[derive(Args, Debug)]
struct DoctorCommand {
    /// An answer of Meta's Graph API about what is subscribed, as JSON: see below; several may be
    /// given
    #[arg(long, value_name = "FILE")]
    subscriptions: Vec<PathBuf>,
    /// How long to wait for each receiver
    #[arg(long, value_name = "TIME", default_value = "5s",
          value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How to print what was found
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
    #[command(flatten)]
    receiver: DoctorArgs,
}

/// How a diagnosis is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Output {
    /// A table for people.
    Text,
    /// One JSON object.
    Json,
}

pub(super) fn run(command: WebhookCommand) -> anyhow::Result<Verdict> {
    match command.action {
        None => serve::receive(command.receive),
        Some(Action::Doctor(doctor)) => block_on(examine(*doctor)),
    }
}

async fn examine(command: DoctorCommand) -> anyhow::Result<Verdict> {
    let review = command.receiver.review().map_err(name_variable)?;
    let subscriptions = Subscriptions::read(&command.subscriptions)?;
    let mut receivers = Vec::with_capacity(review.admin.len());
    for address in &review.admin {
        receivers.push(receiver::ask(address, command.timeout).await);
    }
    let receivers = receiver::answered(receivers)?;
    let recorded = match &review.ledger {
        None => None,
        Some(address) => Some(ledger::read(address).await?),
    };
    let now = clock::wall();
    let seen = Observations { review, subscriptions, receivers, recorded, now };
    let diagnosis = Diagnosis::of(&seen);
    match command.output {
        Output::Text => report::text(&seen, &diagnosis)?,
        Output::Json => report::json(&seen, &diagnosis)?,
    }
    Ok(if diagnosis.is_healthy() { Verdict::Yes } else { Verdict::No })
}
