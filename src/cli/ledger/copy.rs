//! `ledger copy`: copies a ledger into a new one.

use std::path::Path;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use indicatif::HumanCount;
use serde_json::json;

use super::{bucket_progress, last_pages, show_progress, verify, with_ledger};
use crate::cli::ledger_target::{
    DEFAULT_BUCKETS, LayoutArgs, check_servers, name_variable, print_warnings,
};
use crate::cli::{Verdict, output};
use crate::config::{LedgerAddress, LedgerArgs};
use consentd_core::id::KEY_VERSION;
use consentd_core::partition::Layout;
use consentd_ledger::{
    CopyError, CopyReport, Depth, Ledger, MAX_BUCKETS, NewFile, NewLedger, NewRedis, RekeyReport,
    Report, Shape, Target, copy as copy_ledger,
};
use consentd_os::clock;

/// The end of the command's help.
pub(super) const HOW_TO_MOVE: &str = "\
Copied are all pairs, their histories, the statements, and the secret of the pairs' keys; revisions
continue from those of FROM. The copy may be divided into other partitions than FROM. It is a ledger
of its own with another id: its followers read it completely, and retain their denials. It becomes a
ledger at the very end; until then it cannot be followed. A ledger in Redis may be written to
meanwhile, but not at the end: stop the recorders, or wait for a quiet second. A file must not be
open in a sidecar.

The keys of a ledger of an earlier consentd are derived again, because user ids are read otherwise today:
notations that are one person become one pair, which denies what any of them denied.

  consentd ledger copy file:consentd.redb redis://10.0.0.5:6379
  consentd ledger copy redis://10.0.0.5:6379/0 redis://10.0.0.5:6379/1 --buckets 65536
  consentd ledger copy redis://10.0.0.5:6379 redis+cluster://10.0.0.6:6379,10.0.0.7:6379

Then restart sidecars with --ledger TO. Flags such as --ledger-user apply to both FROM and TO;
if they differ, write user and password into the address.";

#[derive(Args, Debug)]
pub(in crate::cli) struct CopyArgs {
    /// The ledger to copy from, as for --ledger
    #[arg(value_name = "FROM")]
    from: String,
    /// Where to copy it to, as for --ledger: there must be no ledger yet
    #[arg(value_name = "TO")]
    to: String,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Remove an unfinished copy, and begin again
    #[arg(long)]
    anew: bool,
    /// How long FROM must have been without writes at the end
    #[arg(long, value_name = "TIME", default_value = "1s",
          value_parser = humantime::parse_duration)]
    still: Duration,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
}

pub(super) async fn copy(args: CopyArgs) -> anyhow::Result<Verdict> {
    let from = named("FROM", args.ledger.address_of(&args.from))?;
    let to = named("TO", args.ledger.address_of(&args.to))?;
    if from.to_string() == to.to_string() {
        bail!("FROM and TO are the same ledger");
    }
    let began = clock::boot();
    let mut bar = bucket_progress();
    let copied = with_ledger(&from, async |ledger: &Ledger| {
        let destination = args.destination(ledger, &to).await?;
        if args.dry_run {
            Box::pin(plan(&args, ledger, &to, &destination)).await?;
            return Ok(None);
        }
        let place = Box::pin(begin(&args, &to, destination)).await?;
        let tell = &mut |progress| show_progress(&mut bar, progress);
        Ok(Some(Box::pin(copy_ledger(ledger, place, args.still, tell)).await?))
    })
    .await;
    drop(bar);
    let Some(copied) = copied? else { return Ok(Verdict::Yes) };
    // Reads the copy back, rather than trusting what was written.
    let mut bar = bucket_progress();
    let report = with_ledger(&to, async |ledger: &Ledger| {
        Ok(ledger.verify(Depth::Records, &mut |progress| show_progress(&mut bar, progress)).await?)
    })
    .await;
    drop(bar);
    let report = report?;
    print(&args, &to, &copied, &report, clock::boot().saturating_sub(began))?;
    let is_complete = report.found == 0 && copied.late == 0 && copied.missing_statements == 0;
    Ok(if is_complete { Verdict::Yes } else { Verdict::No })
}

/// An address, or an error that names the argument.
fn named(
    argument: &str,
    address: Result<LedgerAddress, crate::config::ConfigError>,
) -> anyhow::Result<LedgerAddress> {
    address.map_err(name_variable).map_err(|error| anyhow!("{argument}: {error}"))
}

/// Where the copy is made.
enum Destination<'a> {
    File(&'a Path),
    Redis(&'a Target, Shape),
}

impl CopyArgs {
    async fn destination<'a>(
        &self,
        from: &Ledger,
        to: &'a LedgerAddress,
    ) -> anyhow::Result<Destination<'a>> {
        let target = match to {
            LedgerAddress::Redis(target) => target,
            LedgerAddress::File(path) => {
                self.layout.refuse_for_file()?;
                return Ok(Destination::File(path));
            }
        };
        let own = from.identity().await?;
        let buckets = match from {
            Ledger::Redis(_) => own.buckets.saturating_mul(own.layout.partitions()),
            Ledger::Embedded(_) => DEFAULT_BUCKETS,
        };
        let shape = self.layout.shape(target, buckets.min(MAX_BUCKETS))?;
        Ok(Destination::Redis(target, shape))
    }
}

async fn plan(
    args: &CopyArgs,
    from: &Ledger,
    to: &LedgerAddress,
    destination: &Destination<'_>,
) -> anyhow::Result<()> {
    let identity = from.identity().await?;
    let (layout, buckets) = match *destination {
        Destination::Redis(target, shape) => {
            let (_, warnings) = check_servers(target, shape.layout, to).await?;
            NewRedis::plan(target.clone(), shape, args.anew).await?;
            print_warnings(&warnings);
            (shape.layout, shape.total_buckets())
        }
        Destination::File(path) => {
            NewFile::check(path)?;
            (Layout::SINGLE, identity.buckets)
        }
    };
    let changes: u64 = last_pages(from).await?.iter().map(|page| page.end.revision).sum();
    output::line(&format!(
        "would copy ledger {} at {}, revision {changes}, to {to}, into {}{} buckets{}",
        hex::encode(identity.epoch),
        from.describe(),
        match layout.partitions() {
            1 => String::new(),
            partitions => format!("{partitions} partitions and "),
        },
        HumanCount(buckets.into()),
        if identity.key_version < KEY_VERSION { ", with the keys of today" } else { "" },
    ))
}

async fn begin(
    args: &CopyArgs,
    to: &LedgerAddress,
    destination: Destination<'_>,
) -> anyhow::Result<NewLedger> {
    Ok(match destination {
        Destination::Redis(target, shape) => {
            let (_, warnings) = check_servers(target, shape.layout, to).await?;
            if !args.json {
                print_warnings(&warnings);
            }
            let begun = NewRedis::begin(target.clone(), shape, args.anew).await;
            NewLedger::Redis(Box::new(begun.map_err(|error: CopyError| anyhow!("{to}: {error}"))?))
        }
        Destination::File(path) => NewLedger::File(Box::new(NewFile::begin(path)?)),
    })
}

fn print_rekeyed(report: &RekeyReport) -> anyhow::Result<()> {
    let RekeyReport { moved, unified, nameless, refused, several } = report;
    output::line(&format!(
        "re-keyed     {} pairs have the key of another reading, {} of which were another notation of somebody",
        HumanCount(*moved),
        HumanCount(*unified),
    ))?;
    if *nameless > 0 {
        output::line(&format!(
            "{} pairs name nobody any more, such as those of erased people: they deny under the notations \
             that they denied under, and every sidecar holds them, for their business is not known",
            HumanCount(*nameless)
        ))?;
    }
    if *refused > 0 {
        output::line(&format!(
            "{} pairs have an id that is refused today: they keep the reading of their key, and checks of \
             that id are refused",
            HumanCount(*refused)
        ))?;
    }
    if *several > 0 {
        output::line(&format!(
            "{} pairs were recorded under notations that are several people today: they keep the reading \
             of their key, and deny all of them what they denied",
            HumanCount(*several)
        ))?;
    }
    Ok(())
}

fn print(
    args: &CopyArgs,
    to: &LedgerAddress,
    copied: &CopyReport,
    report: &Report,
    elapsed: Duration,
) -> anyhow::Result<()> {
    let CopyReport { epoch, layout, buckets, revision, missing_statements, late, rekeyed, .. } =
        copied;
    let buckets = layout.partitions().saturating_mul(*buckets);
    if args.json {
        let rekeyed = rekeyed.map(|report| {
            json!({
                "moved": report.moved, "unified": report.unified, "nameless": report.nameless,
                "refused": report.refused, "several": report.several,
            })
        });
        let result = json!({
            "ledger": hex::encode(epoch), "address": to.to_string(), "buckets": buckets,
            "partitions": layout.partitions(), "spread": layout.spread(),
            "pairs": report.pairs, "revision": revision, "late": late,
            "missingStatements": missing_statements, "rekeyed": rekeyed, "verified": verify::as_json(report, 20),
        });
        return output::line(&result.to_string());
    }
    output::line(&format!("made ledger  {}", hex::encode(epoch)))?;
    output::line(&format!("at           {to}"))?;
    if layout.partitions() > 1 {
        let (partitions, spread) = (layout.partitions(), layout.spread());
        output::line(&format!("partitions   {partitions}; each business is in {spread}"))?;
    }
    output::line(&format!("buckets      {}", HumanCount(buckets.into())))?;
    output::line(&format!("pairs        {}", HumanCount(report.pairs)))?;
    output::line(&format!("revision     {}", HumanCount(*revision)))?;
    output::line(&format!("took         {:.1} s", elapsed.as_secs_f64()))?;
    if let Some(report) = rekeyed {
        print_rekeyed(report)?;
    }
    verify::list(report, 20)?;
    verify::summarize(report, Depth::Records)?;
    if *missing_statements > 0 {
        output::line(&format!(
            "{} statements that histories name were not in FROM, and are not in the copy",
            HumanCount(*missing_statements)
        ))?;
    }
    if *late > 0 {
        output::line(&format!(
            "FROM took {} changes while the copy was finished: they are not in it; export what was \
             recorded of late from FROM, and import it",
            HumanCount(*late)
        ))?;
    }
    output::line(&format!("next         consentd serve --ledger {to}"))
}
