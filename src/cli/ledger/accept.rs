//! `ledger accept`: declares that a ledger is right as it is, so that followers drop retained
//! denials.

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::{TargetArgs, last_pages, only_redis, with_ledger};
use crate::cli::{Verdict, output, prompt};
use consentd_ledger::Ledger;

/// The end of the command's help.
pub(super) const WHAT_IT_MEANS: &str = "\
When a ledger loses changes (by a failover, or a restored backup), followers retain the denials that
it has lost, each until a newer event of that user lifts it. With more than 100,000 of them a
follower is invalid and denies all, until an operator decides. This command is that decision:
followers drop their retained denials, and an opt-out that only they knew of is no longer enforced.
Try first to recover the lost events: recorders write back their last ten minutes by themselves, and
an export or a log of your own can be imported again.";

const QUESTION: &str = "Opt-outs that the ledger has lost, and that followers still remember, will \
                        no longer be enforced.";

#[derive(Args, Debug)]
pub(in crate::cli) struct AcceptArgs {
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: TargetArgs,
}

pub(super) async fn accept(args: AcceptArgs) -> anyhow::Result<Verdict> {
    let AcceptArgs { yes, dry_run, target } = args;
    let address = target.address()?;
    with_ledger(&address, async |ledger: &Ledger| {
        let instead = "its one follower reads what it holds, and remembers nothing else: there is \
                       nothing to accept";
        let redis = only_redis(ledger, instead)?;
        let pages = last_pages(ledger).await?;
        let name = hex::encode(ledger.identity().await?.epoch);
        if dry_run {
            let changes: u64 = pages.iter().map(|page| page.end.revision).sum();
            let accepted = pages.iter().map(|page| page.accepted).max().unwrap_or_default();
            output::line(&format!(
                "ledger {name} at {address}, revision {changes}, would be accepted as it is; it was {accepted} \
                 times so far",
            ))?;
            return Ok(Verdict::Yes);
        }
        let question = format!("Ledger {name} at {address}. {QUESTION}");
        if !yes && !prompt::confirm(&question, "ledger accept")? {
            bail!("nothing was changed");
        }
        let accepted = redis.accept().await?;
        if target.json {
            let result = json!({ "ledger": name, "accepted": accepted });
            output::line(&result.to_string())?;
        } else {
            output::line(&format!(
                "ledger {name} is accepted as it is, {accepted} times by now: followers forget what \
                 only they remember at their next poll"
            ))?;
        }
        Ok(Verdict::Yes)
    })
    .await
}
