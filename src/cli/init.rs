//! `init`: making a ledger.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use anyhow::{anyhow, bail};
use clap::Args;
use indicatif::HumanCount;

use super::ledger::{hex, of_address, persistence};
use super::{Verdict, print};
use crate::config::{LedgerAddress, LedgerArgs};
use consentd_ledger::{
    Embedded, MAX_BUCKETS, NewFile, Retention, ServerInfo, Target, Warning, create, inspect_server,
    plan,
};

/// How many buckets a ledger in Redis has, where nothing is said: good for ten million pairs.
pub(super) const BUCKETS: u32 = 8_192;

/// For the help.
pub(super) const WHEN_CUT: &str = "\
A ledger is made once, and by this command alone: a Redis that lost its data must not look like a
new ledger in which nobody has opted out. Nothing is changed where anything of a ledger is there.
What a run that was cut has left is gone on with.

  consentd init --ledger redis://10.0.0.5:6379
  consentd serve --ledger redis://10.0.0.5:6379 --record 127.0.0.1:50052";

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    /// How many buckets its pairs lie in, in Redis: a snapshot reads one at a time, and of some
    /// million pairs each of 8192 has some hundred [default: 8192]
    #[arg(long, value_name = "B")]
    buckets: Option<u32>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print what was made as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
}

pub(super) async fn init(args: InitArgs) -> anyhow::Result<Verdict> {
    let address = of_address(args.ledger.address())?;
    match &address {
        LedgerAddress::File(_) if args.buckets.is_some() => {
            bail!("--buckets: is for a ledger in Redis; a file has as many as it needs")
        }
        LedgerAddress::File(path) => {
            NewFile::check(path)?;
            if args.dry_run {
                print::line(&format!("would make {address}"))?;
                return Ok(Verdict::Yes);
            }
            let (ledger, _appender) = Embedded::open(path, Retention::default(), 1 << 20)?;
            let identity = consentd_ledger::Ledger::Embedded(ledger).identity().await?;
            say(&args, &address, &identity.epoch, identity.buckets, None)?;
        }
        LedgerAddress::Redis(target) => {
            let buckets = args.buckets.unwrap_or(BUCKETS);
            if !(1..=MAX_BUCKETS).contains(&buckets) {
                bail!("--buckets: must be from 1 to {MAX_BUCKETS}, such as {BUCKETS}");
            }
            let (fitness, warnings) = fit(target, &address).await?;
            // Before anything is made: what is refused changes nothing.
            let plan = plan((**target).clone(), buckets).await?;
            if args.dry_run {
                warn(&warnings);
                print::line(&format!(
                    "would make a ledger of {} buckets at {address}: {} keys, {} of which are \
                     there already, from a run that was cut",
                    HumanCount(buckets.into()),
                    HumanCount(plan.keys),
                    HumanCount(plan.present),
                ))?;
                return Ok(Verdict::Yes);
            }
            let made = create((**target).clone(), buckets).await?;
            say(&args, &address, &made.epoch, made.buckets, Some(&fitness))?;
            if !args.json {
                warn(&warnings);
            }
        }
    }
    Ok(Verdict::Yes)
}

/// Makes sure that a Redis is fit to hold a ledger; gives what an operator should know of it.
pub(super) async fn fit(
    target: &Target,
    address: &LedgerAddress,
) -> anyhow::Result<(ServerInfo, Vec<Warning>)> {
    let fitness = inspect_server(target.clone()).await?;
    let warnings = fitness.verdict(target.has_sentinels(), target.accepts_unfenced());
    let warnings = warnings.map_err(|unfit| anyhow!("{address} cannot hold a ledger: {unfit}"))?;
    Ok((fitness, warnings))
}

/// Says what an operator should know. Nothing is wrong, so that it goes where answers go.
pub(super) fn warn(warnings: &[Warning]) {
    for warning in warnings {
        let _ = print::line(&format!("warning: {warning}"));
    }
}

fn say(
    args: &InitArgs,
    address: &LedgerAddress,
    epoch: &[u8; 16],
    buckets: u32,
    fitness: Option<&ServerInfo>,
) -> anyhow::Result<()> {
    let durable = fitness.map_or("a file, synced before every answer", persistence);
    if args.json {
        let made = serde_json::json!({
            "ledger": hex(epoch), "address": address.to_string(), "buckets": buckets,
            "durable": durable,
        });
        return print::line(&made.to_string());
    }
    print::line(&format!("made ledger  {}", hex(epoch)))?;
    print::line(&format!("at           {address}"))?;
    print::line(&format!("buckets      {}", HumanCount(buckets.into())))?;
    print::line(&format!("durable      {durable}"))?;
    print::line(&format!("next         consentd serve --ledger {address}"))
}
