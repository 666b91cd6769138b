//! `ledger scrub` and `ledger repair`: repair a ledger in Redis.

use clap::Args;
use indicatif::HumanCount;
use serde_json::json;

use super::{TargetArgs, bucket_progress, only_redis, show_progress, verify, with_what_is_left};
use crate::cli::{Verdict, output};
use consentd_ledger::{Ledger, RepairMode, Repaired};

/// The end of the command's help.
pub(super) const WHAT_SCRUB_DOES: &str = "\
A record that differs from the log's last entry of its pair was changed without the log, such as by
an HSET by hand or a restored key. The join of both is appended: on every scope the latest event
counts, and at equal times the one that denies. So no opt-out of either is lost, and every follower
learns of it. Records that are older than the log cannot be compared with it. Running sidecars scrub
too, and reload what they find; this command finds all of it at once, and appends the result.";

/// The end of the command's help.
pub(super) const WHAT_REPAIR_DOES: &str = "\
An interrupted append is completed from the log. The log, the fence and sentinel fields are restored
if they were deleted or evicted. A lost bucket is used again once every pair in its histories is
rebuilt; if its histories were lost too, restore a backup, or use it as it is with --accept-loss:
then opt-outs of which nothing is left are forgotten. Damaged or missing records are rebuilt from
the log's last entry of their pair, or else by replaying their history. The request ids of a rebuilt
record are lost: the retry of a request with an event_time has no effect, one without counts as new.
A damaged log is truncated after the damage, and followers read the whole ledger again. Each change
is a compare-and-set, so recorders may go on. Histories and statements cannot be rebuilt: restore a
backup for them.";

#[derive(Args, Debug)]
pub(in crate::cli) struct ScrubArgs {
    /// Print what would be done, and do nothing (exit code 1: something would be)
    #[arg(long)]
    dry_run: bool,
    /// The most findings that are printed
    #[arg(long, value_name = "N", default_value = "20")]
    lines: usize,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct RepairArgs {
    /// Use lost buckets again even if their content cannot be rebuilt: their opt-outs are forgotten
    #[arg(long)]
    accept_loss: bool,
    #[command(flatten)]
    scrub: ScrubArgs,
}

pub(super) async fn scrub(args: ScrubArgs) -> anyhow::Result<Verdict> {
    let instead = "nobody else writes to it, so that nothing can come past its log; to look at all \
                   of it: consentd ledger verify";
    run(args, RepairMode::OutOfBand, instead).await
}

pub(super) async fn repair(args: RepairArgs) -> anyhow::Result<Verdict> {
    let instead = "what is cut short in a file is completed when it is opened, and what is damaged \
                   in it is mended by restoring a backup; to look at all of it: consentd ledger \
                   verify";
    let RepairArgs { accept_loss, scrub: args } = args;
    let mode = if accept_loss { RepairMode::AcceptingLoss } else { RepairMode::All };
    run(args, mode, instead).await
}

async fn run(args: ScrubArgs, mode: RepairMode, instead: &str) -> anyhow::Result<Verdict> {
    let ScrubArgs { dry_run, lines, target } = args;
    let mut bar = bucket_progress();
    let repaired = with_what_is_left(&target.address()?, async |ledger: &Ledger| {
        let redis = only_redis(ledger, instead)?;
        let tell = &mut |progress| show_progress(&mut bar, progress);
        // Boxed, because the future is large and would be copied with this one.
        Ok(Box::pin(redis.repair(mode, dry_run, tell)).await?)
    })
    .await;
    drop(bar);
    let Repaired { done, left } = repaired?;
    let is_left = if dry_run { !done.is_empty() } else { left.found > 0 };
    let verdict = if is_left { Verdict::No } else { Verdict::Yes };
    if target.json {
        let listed = done
            .iter()
            .take(lines)
            .map(|(found, how)| json!({ "found": verify::finding(found), "how": how }));
        let listed: Vec<_> = listed.collect();
        let result = json!({
            "dryRun": dry_run, "mended": done.len(), "list": listed,
            "left": verify::as_json(&left, lines),
        });
        output::line(&result.to_string())?;
        return Ok(verdict);
    }
    let would = if dry_run { "would be " } else { "" };
    for (found, how) in done.iter().take(lines) {
        output::line(&format!("{found}: {would}{how}"))?;
    }
    let count = |number: usize| HumanCount(u64::try_from(number).unwrap_or(u64::MAX));
    if done.len() > lines {
        output::line(&format!("and {} more", count(done.len() - lines)))?;
    }
    if dry_run {
        output::line(&match done.len() {
            0 => "nothing would be done".to_owned(),
            1 => "1 thing would be mended".to_owned(),
            several => format!("{} things would be mended", count(several)),
        })?;
        return Ok(verdict);
    }
    if left.found > 0 {
        output::line(match mode {
            RepairMode::OutOfBand => "what scrub does not mend (see consentd ledger repair):",
            RepairMode::All | RepairMode::AcceptingLoss => "what cannot be mended, or not yet:",
        })?;
        verify::list(&left, lines)?;
    }
    output::line(&format!("{} mended, {} left", count(done.len()), HumanCount(left.found)))?;
    Ok(verdict)
}
