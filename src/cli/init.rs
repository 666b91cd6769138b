//! `init`: creates a ledger.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use clap::Args;
use indicatif::HumanCount;

use super::ledger_target::{
    DEFAULT_BUCKETS, LayoutArgs, check_servers, durability_text, name_variable, print_warnings,
};
use super::{Verdict, output};
use crate::config::{LedgerAddress, LedgerArgs};
use consentd_core::partition::Layout;
use consentd_ledger::{Embedded, Ledger, NewFile, Retention, Shape, Shard, create, plan};

/// The end of the command's help.
pub(super) const WHEN_CUT: &str = "\
A ledger is created once, and by this command alone: a Redis that has lost its data must not look
like a new ledger without opt-outs. If there is a ledger already, nothing is changed. A run that was
interrupted is continued.

  consentd init --ledger redis://10.0.0.5:6379
  consentd init --ledger redis+cluster://10.0.0.5:6379,10.0.0.6:6379,10.0.0.7:6379
  consentd serve --ledger redis://10.0.0.5:6379 --record 127.0.0.1:50052";

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    #[command(flatten)]
    layout: LayoutArgs,
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
        LedgerAddress::File(path) => {
            args.layout.refuse_for_file()?;
            NewFile::check(path)?;
            if args.dry_run {
                output::line(&format!("would make {address}"))?;
                return Ok(Verdict::Yes);
            }
            let (ledger, _appender) = Embedded::open(path, Retention::default(), 1 << 20)?;
            let identity = Ledger::Embedded(ledger).identity().await?;
            let shape = Shape { layout: identity.layout, buckets: identity.buckets };
            print(&args, &address, &identity.epoch, shape, &[])?;
        }
        LedgerAddress::Redis(target) => {
            let shape = args.layout.shape(target, DEFAULT_BUCKETS)?;
            // All checks come first, so that a failed command changes nothing. `create` makes those of `plan` itself.
            let (shards, warnings) = check_servers(target, shape.layout, &address).await?;
            if args.dry_run {
                let plan = plan((**target).clone(), shape).await?;
                print_warnings(&warnings);
                output::line(&format!(
                    "would make a ledger of {}{} buckets at {address}: {} keys, {} of which are \
                     there already, from a run that was cut",
                    partitions_text(shape.layout, &shards),
                    HumanCount(shape.total_buckets().into()),
                    HumanCount(plan.keys),
                    HumanCount(plan.present),
                ))?;
                return Ok(Verdict::Yes);
            }
            let made = create((**target).clone(), shape).await?;
            print(&args, &address, &made.epoch, shape, &shards)?;
            if !args.json {
                print_warnings(&warnings);
            }
        }
    }
    Ok(Verdict::Yes)
}

/// The partitions, if there are several.
fn partitions_text(layout: Layout, shards: &[Shard]) -> String {
    match (layout.partitions(), shards.len()) {
        (1, _) => String::new(),
        (partitions, 1) => format!("{partitions} partitions and "),
        (partitions, servers) => format!("{partitions} partitions on {servers} servers and "),
    }
}

fn print(
    args: &InitArgs,
    address: &LedgerAddress,
    epoch: &[u8; 16],
    shape: Shape,
    shards: &[Shard],
) -> anyhow::Result<()> {
    // One text if all servers keep data alike.
    let durable = shards.iter().map(|shard| durability_text(&shard.server)).collect::<Vec<_>>();
    let durable = match &durable[..] {
        [] => "a file, synced before every answer".to_owned(),
        [first, others @ ..] if others.iter().all(|other| other == first) => (*first).to_owned(),
        _ => "differs by server: see consentd ledger status".to_owned(),
    };
    let (layout, buckets) = (shape.layout, shape.total_buckets());
    if args.json {
        let made = serde_json::json!({
            "ledger": hex::encode(epoch), "address": address.to_string(), "buckets": buckets,
            "partitions": layout.partitions(), "spread": layout.spread(), "durable": durable,
        });
        return output::line(&made.to_string());
    }
    output::line(&format!("made ledger  {}", hex::encode(epoch)))?;
    output::line(&format!("at           {address}"))?;
    if layout.partitions() > 1 {
        let servers = match shards.len() {
            1 => "one server".to_owned(),
            servers => format!("{servers} servers"),
        };
        output::line(&format!(
            "partitions   {}, on {servers}; each business is in {}",
            HumanCount(layout.partitions().into()),
            layout.spread(),
        ))?;
    }
    output::line(&format!("buckets      {}", HumanCount(buckets.into())))?;
    output::line(&format!("durable      {durable}"))?;
    output::line(&format!("next         consentd serve --ledger {address}"))
}
