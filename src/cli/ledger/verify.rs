//! `ledger verify`: checks a ledger for damage.

use clap::Args;
use indicatif::HumanCount;
use serde_json::json;

use super::{TargetArgs, bucket_progress, show_progress, with_what_is_left};
use crate::cli::{Verdict, output};
use consentd_ledger::{Depth, Finding, Ledger, Report};

/// The end of the command's help.
pub(super) const WHAT_IS_LOOKED_AT: &str = "\
Checked are the fence and the sentinel fields; the log, whose hash chain must be intact up to the
ledger's head; every record, which must be readable, in its bucket, and equal to the log's last
entry of its pair; every history, which must be complete and match its record's chain; and the
statements that histories refer to. Findings name pairs by their keys, which are keyed hashes and
identify no user. The ledger may be written to meanwhile.";

#[derive(Args, Debug)]
pub(in crate::cli) struct VerifyArgs {
    /// Do not check histories and statements
    #[arg(long)]
    quick: bool,
    /// The most findings that are printed
    #[arg(long, value_name = "N", default_value = "20")]
    lines: usize,
    /// Has no effect, because this command changes nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: TargetArgs,
}

pub(super) async fn verify(args: VerifyArgs) -> anyhow::Result<Verdict> {
    let VerifyArgs { quick, lines, dry_run: _, target } = args;
    let depth = if quick { Depth::Records } else { Depth::Histories };
    let mut bar = bucket_progress();
    let report = with_what_is_left(&target.address()?, async |ledger: &Ledger| {
        Ok(ledger.verify(depth, &mut |progress| show_progress(&mut bar, progress)).await?)
    })
    .await;
    drop(bar);
    let report = report?;
    if target.json {
        output::line(&as_json(&report, lines).to_string())?;
    } else {
        list(&report, lines)?;
        summarize(&report, depth)?;
    }
    Ok(if report.found == 0 { Verdict::Yes } else { Verdict::No })
}

/// Prints the findings.
pub(super) fn list(report: &Report, lines: usize) -> anyhow::Result<()> {
    for finding in report.findings.iter().take(lines) {
        output::line(&finding.to_string())?;
    }
    let listed = u64::try_from(report.findings.len().min(lines)).unwrap_or(u64::MAX);
    match report.found.saturating_sub(listed) {
        0 => Ok(()),
        more => output::line(&format!("and {} more", HumanCount(more))),
    }
}

/// Prints how much was checked, and how many findings there are.
pub(super) fn summarize(report: &Report, depth: Depth) -> anyhow::Result<()> {
    let found = match report.found {
        0 => "all of it fits together".to_owned(),
        1 => "1 thing does not fit".to_owned(),
        found => format!("{} things do not fit", HumanCount(found)),
    };
    let (pairs, log) = (HumanCount(report.pairs), HumanCount(report.log_entries));
    output::line(&match depth {
        Depth::Records => format!("{pairs} pairs, {log} entries of the log: {found}"),
        Depth::Histories => {
            let histories = HumanCount(report.history_entries);
            format!("{pairs} pairs, {histories} entries of histories, {log} of the log: {found}")
        }
    })
}

pub(super) fn as_json(report: &Report, lines: usize) -> serde_json::Value {
    let findings: Vec<_> = report.findings.iter().take(lines).map(finding).collect();
    json!({
        "pairs": report.pairs, "historyEntries": report.history_entries,
        "logEntries": report.log_entries, "found": report.found, "findings": findings,
    })
}

pub(super) fn finding(finding: &Finding) -> serde_json::Value {
    json!({
        "pair": finding.key.map(|key| hex::encode(key.to_bytes())),
        "damage": finding.damage.label(), "text": finding.damage.to_string(),
    })
}
