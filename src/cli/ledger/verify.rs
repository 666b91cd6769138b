//! `ledger verify`: whether all that a ledger holds fits together.

use clap::Args;
use indicatif::HumanCount;
use serde_json::json;

use super::shown::Shown;
use super::{WhichArgs, hex, with_ledger};
use crate::cli::{Verdict, print};
use consentd_ledger::{Depth, Finding, Ledger, Report};

/// For the help.
pub(super) const WHAT_IS_LOOKED_AT: &str = "\
Looked at are: what every ledger has (fence, sentinel fields); the log, whose hashes must continue
from its first entry to the ledger's end; every record, which must be readable, in its bucket, and
what the log last said of its pair; every history, which must be whole and have the chain that its
record names; and the statements that histories name. Pairs are named by their keys, which are
keyed hashes and name nobody. Others may go on writing meanwhile.";

#[derive(Args, Debug)]
pub(in crate::cli) struct VerifyArgs {
    /// Leave histories and statements out
    #[arg(long)]
    quick: bool,
    /// Print at most so many of what was found
    #[arg(long, value_name = "N", default_value = "20")]
    lines: usize,
    /// Accepted as by the other commands: this one never changes anything
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    which: WhichArgs,
}

pub(super) async fn verify(args: VerifyArgs) -> anyhow::Result<Verdict> {
    let VerifyArgs { quick, lines, dry_run: _, which } = args;
    let depth = if quick { Depth::Records } else { Depth::Histories };
    let mut shown = Shown::new();
    let report = with_ledger(&which.address()?, async |ledger: &Ledger| {
        Ok(ledger.verify(depth, &mut |progress| shown.show(progress)).await?)
    })
    .await;
    shown.end();
    let report = report?;
    if which.json {
        print::line(&as_json(&report, lines).to_string())?;
    } else {
        list(&report, lines)?;
        summarize(&report)?;
    }
    Ok(if report.found == 0 { Verdict::Yes } else { Verdict::No })
}

/// Prints what was found.
pub(super) fn list(report: &Report, lines: usize) -> anyhow::Result<()> {
    for finding in report.findings.iter().take(lines) {
        print::line(&finding.to_string())?;
    }
    let listed = u64::try_from(report.findings.len().min(lines)).unwrap_or(u64::MAX);
    match report.found.saturating_sub(listed) {
        0 => Ok(()),
        more => print::line(&format!("and {} more", HumanCount(more))),
    }
}

/// Prints how much was looked at, and what came of it.
pub(super) fn summarize(report: &Report) -> anyhow::Result<()> {
    let found = match report.found {
        0 => "all of it fits together".to_owned(),
        1 => "1 thing does not fit".to_owned(),
        found => format!("{} things do not fit", HumanCount(found)),
    };
    print::line(&format!(
        "{} pairs, {} entries of histories, {} of the log: {found}",
        HumanCount(report.pairs),
        HumanCount(report.history_entries),
        HumanCount(report.log_entries),
    ))
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
        "pair": finding.key.map(|key| hex(&key.to_bytes())),
        "damage": finding.damage.label(), "text": finding.damage.to_string(),
    })
}
