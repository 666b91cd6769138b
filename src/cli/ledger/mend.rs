//! `ledger scrub` and `ledger repair`: mending a ledger in Redis.

use clap::Args;
use indicatif::HumanCount;
use serde_json::json;

use super::shown::Shown;
use super::{WhichArgs, only_redis, verify, with_ledger};
use crate::cli::{Verdict, print};
use consentd_ledger::{Ledger, RepairMode, Repaired};

/// For the help.
pub(super) const WHAT_SCRUB_DOES: &str = "\
Where a record is not what the log last said of its pair, something wrote it past the log (an
HSET by hand, a restored key). Of both the join is appended: on every scope the latest word stands,
at equal times the one that denies. So no opt-out of either is lost, and every follower hears of
it. Records that are older than the log cannot be compared with it. Running sidecars scrub too, and
reload what they find; this finds all of it at once, and writes down what holds.";

/// For the help.
pub(super) const WHAT_REPAIR_DOES: &str = "\
An append that was cut short is completed from the log. The log, the fence and sentinel fields are
put back where they were deleted or evicted. A lost bucket is used again once every pair that its
histories tell of is rebuilt; where its histories were lost too, a backup brings it back, or
--accept-loss uses it as it is: then opt-outs of which nothing is left are forgotten.
Records that are damaged or missing are rebuilt from what the log last said of their pair, or else
from their history, by the rules by which they were made; the ids of requests that a rebuilt record
remembered are lost: a retry of one that has an event_time changes nothing, one without is as new. A
damaged log is cut behind the damage: followers read all anew. Each change is compared with what was
read: recorders may go on. Histories and statements cannot be rebuilt: restore a backup for them.";

#[derive(Args, Debug)]
pub(in crate::cli) struct MendArgs {
    /// Say what would be done, and do nothing (exit code 1: something would be)
    #[arg(long)]
    dry_run: bool,
    /// Print at most so many lines of what was found
    #[arg(long, value_name = "N", default_value = "20")]
    lines: usize,
    #[command(flatten)]
    which: WhichArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RepairArgs {
    /// Use lost buckets again even where nothing tells any more what they held: opt-outs are
    /// forgotten
    #[arg(long)]
    accept_loss: bool,
    #[command(flatten)]
    mend: MendArgs,
}

pub(super) async fn scrub(args: MendArgs) -> anyhow::Result<Verdict> {
    let instead = "nobody else writes to it, so that nothing can come past its log; to look at all \
                   of it: consentd ledger verify";
    mend(args, RepairMode::OutOfBand, instead).await
}

pub(super) async fn repair(args: RepairArgs) -> anyhow::Result<Verdict> {
    let instead = "what is cut short in a file is completed when it is opened, and what is damaged \
                   in it is mended by restoring a backup; to look at all of it: consentd ledger \
                   verify";
    let RepairArgs { accept_loss, mend: args } = args;
    let mending = if accept_loss { RepairMode::AcceptingLoss } else { RepairMode::All };
    mend(args, mending, instead).await
}

async fn mend(args: MendArgs, mending: RepairMode, instead: &str) -> anyhow::Result<Verdict> {
    let MendArgs { dry_run, lines, which } = args;
    let mut shown = Shown::new();
    let mended = with_ledger(&which.address()?, async |ledger: &Ledger| {
        let redis = only_redis(ledger, instead)?;
        let tell = &mut |progress| shown.show(progress);
        // What it keeps from one wait to the next is much, and is moved about less often so.
        Ok(Box::pin(redis.repair(mending, dry_run, tell)).await?)
    })
    .await;
    shown.end();
    let Repaired { done, left } = mended?;
    let is_left = if dry_run { !done.is_empty() } else { left.found > 0 };
    let verdict = if is_left { Verdict::No } else { Verdict::Yes };
    if which.json {
        let listed = done
            .iter()
            .take(lines)
            .map(|(found, how)| json!({ "found": verify::finding(found), "how": how }));
        let listed: Vec<_> = listed.collect();
        let told = json!({
            "dryRun": dry_run, "mended": done.len(), "list": listed,
            "left": verify::as_json(&left, lines),
        });
        print::line(&told.to_string())?;
        return Ok(verdict);
    }
    let would = if dry_run { "would be " } else { "" };
    for (found, how) in done.iter().take(lines) {
        print::line(&format!("{found}: {would}{how}"))?;
    }
    if done.len() > lines {
        let more = u64::try_from(done.len() - lines).unwrap_or(u64::MAX);
        print::line(&format!("and {} more", HumanCount(more)))?;
    }
    if dry_run {
        let count = HumanCount(done.len().try_into().unwrap_or(u64::MAX));
        print::line(&match done.len() {
            0 => "nothing would be done".to_owned(),
            1 => "1 thing would be mended".to_owned(),
            _ => format!("{count} things would be mended"),
        })?;
        return Ok(verdict);
    }
    if left.found > 0 {
        print::line(match mending {
            RepairMode::OutOfBand => "what scrub does not mend (see consentd ledger repair):",
            RepairMode::All | RepairMode::AcceptingLoss => "what cannot be mended, or not yet:",
        })?;
        verify::list(&left, lines)?;
    }
    let count = HumanCount(done.len().try_into().unwrap_or(u64::MAX));
    print::line(&format!("{count} mended, {} left", HumanCount(left.found)))?;
    Ok(verdict)
}
