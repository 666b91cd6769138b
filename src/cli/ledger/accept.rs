//! `ledger accept`: a ledger is right as it is.

use std::io::{IsTerminal as _, stdin};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use super::{WhichArgs, hex, only_redis, with_ledger};
use crate::cli::{Verdict, print};
use consentd_ledger::Ledger;

/// For the help.
pub(super) const WHAT_IT_MEANS: &str = "\
A follower that sees its ledger lose changes (a failover, a backup) goes on denying whom it denied
before, until a newer event of that user says otherwise. Where that is more than 100,000 users it
stays invalid, and denies all, until somebody decides. This says: what the ledger holds is all there
is. Every follower forgets what only it remembers; an opt-out that only they knew of is no longer
enforced. Try first to bring the lost events back: recorders give back their last ten minutes by
themselves, and an export or a log of your own can be imported again.";

const QUESTION: &str = "Opt-outs that the ledger has lost, and that followers still remember, will \
                        no longer be enforced. Type yes to go on: ";

#[derive(Args, Debug)]
pub(in crate::cli) struct AcceptArgs {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    which: WhichArgs,
}

pub(super) async fn accept(args: AcceptArgs) -> anyhow::Result<Verdict> {
    let AcceptArgs { yes, dry_run, which } = args;
    let address = which.address()?;
    with_ledger(&address, async |ledger: &Ledger| {
        let instead = "its one follower reads what it holds, and remembers nothing else: there is \
                       nothing to accept";
        let redis = only_redis(ledger, instead)?;
        let page = ledger.read_after(u64::MAX).await?;
        let name = hex(&page.end.epoch);
        if dry_run {
            print::line(&format!(
                "ledger {name} at {address}, revision {}, would be accepted as it is; it was {} \
                 times so far",
                page.end.revision, page.accepted
            ))?;
            return Ok(Verdict::Yes);
        }
        if !yes && !confirmed(&format!("Ledger {name} at {address}. {QUESTION}"))? {
            bail!("nothing was changed");
        }
        let accepted = redis.accept().await?;
        if which.json {
            let told = json!({ "ledger": name, "accepted": accepted });
            print::line(&told.to_string())?;
        } else {
            print::line(&format!(
                "ledger {name} is accepted as it is, {accepted} times by now: followers forget what \
                 only they remember at their next poll"
            ))?;
        }
        Ok(Verdict::Yes)
    })
    .await
}

/// Asks on a terminal.
fn confirmed(question: &str) -> anyhow::Result<bool> {
    if !stdin().is_terminal() {
        bail!("this wants to be confirmed: give --yes (see consentd ledger accept --help)");
    }
    print::note(question);
    let mut answer = String::new();
    stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(answer.trim() == "yes")
}
