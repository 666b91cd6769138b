//! `init`: creates a ledger.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use anyhow::bail;
use clap::Args;
use indicatif::HumanCount;

use super::ledger_target::{
    DEFAULT_BUCKETS, check_server, durability_text, name_variable, print_warnings,
};
use super::{Verdict, output};
use crate::config::{LedgerAddress, LedgerArgs};
use consentd_ledger::{
    Embedded, Ledger, MAX_BUCKETS, NewFile, Retention, ServerInfo, create, plan,
};

/// The end of the command's help.
pub(super) const WHEN_CUT: &str = "\
A ledger is created once, and by this command alone: a Redis that has lost its data must not look
like a new ledger without opt-outs. If there is a ledger already, nothing is changed. A run that was
interrupted is continued.

  consentd init --ledger redis://10.0.0.5:6379
  consentd serve --ledger redis://10.0.0.5:6379 --record 127.0.0.1:50052";

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    /// How many buckets its pairs are distributed over, in Redis: a snapshot reads one at a time,
    /// and with some million pairs each of 8192 has some hundred [default: 8192]
    #[arg(long, value_name = "B")]
    buckets: Option<u32>,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
}

pub(super) async fn init(args: InitArgs) -> anyhow::Result<Verdict> {
    let address = args.ledger.address().map_err(name_variable)?;
    match &address {
        LedgerAddress::File(_) if args.buckets.is_some() => {
            bail!("--buckets: is for a ledger in Redis; a file has as many as it needs")
        }
        LedgerAddress::File(path) => {
            NewFile::check(path)?;
            if args.dry_run {
                output::line(&format!("would make {address}"))?;
                return Ok(Verdict::Yes);
            }
            let (ledger, _appender) = Embedded::open(path, Retention::default(), 1 << 20)?;
            let identity = Ledger::Embedded(ledger).identity().await?;
            print(&args, &address, &identity.epoch, identity.buckets, None)?;
        }
        LedgerAddress::Redis(target) => {
            let buckets = args.buckets.unwrap_or(DEFAULT_BUCKETS);
            if !(1..=MAX_BUCKETS).contains(&buckets) {
                bail!("--buckets: must be from 1 to {MAX_BUCKETS}, such as {DEFAULT_BUCKETS}");
            }
            // All checks come first, so that a failed command changes nothing.
            let (server, warnings) = check_server(target, &address).await?;
            let plan = plan((**target).clone(), buckets).await?;
            if args.dry_run {
                print_warnings(&warnings);
                output::line(&format!(
                    "would make a ledger of {} buckets at {address}: {} keys, {} of which are \
                     there already, from a run that was cut",
                    HumanCount(buckets.into()),
                    HumanCount(plan.keys),
                    HumanCount(plan.present),
                ))?;
                return Ok(Verdict::Yes);
            }
            let made = create((**target).clone(), buckets).await?;
            print(&args, &address, &made.epoch, made.buckets, Some(&server))?;
            if !args.json {
                print_warnings(&warnings);
            }
        }
    }
    Ok(Verdict::Yes)
}

fn print(
    args: &InitArgs,
    address: &LedgerAddress,
    epoch: &[u8; 16],
    buckets: u32,
    server: Option<&ServerInfo>,
) -> anyhow::Result<()> {
    let durable = server.map_or("a file, synced before every answer", durability_text);
    if args.json {
        let made = serde_json::json!({
            "ledger": hex::encode(epoch), "address": address.to_string(), "buckets": buckets,
            "durable": durable,
        });
        return output::line(&made.to_string());
    }
    output::line(&format!("made ledger  {}", hex::encode(epoch)))?;
    output::line(&format!("at           {address}"))?;
    output::line(&format!("buckets      {}", HumanCount(buckets.into())))?;
    output::line(&format!("durable      {durable}"))?;
    output::line(&format!("next         consentd serve --ledger {address}"))
}
