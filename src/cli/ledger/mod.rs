//! `ledger`: commands for operators, which work on a ledger without a sidecar.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

mod accept;
mod compact;
mod copy;
mod repair;
mod status;
mod verify;

use std::path::Path;

use anyhow::bail;
use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::Verdict;
use super::ledger_target::{check_servers, name_variable};
use super::progress_bar::ProgressBar;
use crate::config::{LedgerAddress, LedgerArgs};
use consentd_core::partition::Layout;
use consentd_ledger::{
    Embedded, Ledger, Options, Page, Progress, Redis, Retention, Topology, inspect_servers,
};
use indicatif::HumanCount;

/// The cache of a ledger's file, in bytes.
const CACHE_BYTES: usize = 64 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Show the state of a ledger (exit code 0: healthy, 1: not)
    Status(status::StatusArgs),
    /// Check a ledger for damage (exit code 0: none, 1: some)
    #[command(after_help = verify::WHAT_IS_LOOKED_AT)]
    Verify(verify::VerifyArgs),
    /// Find records that were changed without the log, and append what holds now
    #[command(after_help = repair::WHAT_SCRUB_DOES)]
    Scrub(repair::ScrubArgs),
    /// Repair what can be repaired, while recorders go on
    #[command(after_help = repair::WHAT_REPAIR_DOES)]
    Repair(repair::RepairArgs),
    /// Declare a ledger right as it is, so that followers drop the denials that it has lost
    #[command(after_help = accept::WHAT_IT_MEANS)]
    Accept(accept::AcceptArgs),
    /// Copy a ledger into a new one: from a file to Redis and back, or into more buckets
    #[command(after_help = copy::HOW_TO_MOVE)]
    Copy(copy::CopyArgs),
    /// Rewrite a ledger's file, so that no bytes of erased data are left in it
    #[command(after_help = compact::WHAT_IT_IS_FOR)]
    Compact(compact::CompactArgs),
}

pub(super) async fn run(command: LedgerCommand) -> anyhow::Result<Verdict> {
    match command {
        LedgerCommand::Status(args) => status::status(args).await,
        LedgerCommand::Verify(args) => verify::verify(args).await,
        LedgerCommand::Scrub(args) => repair::scrub(args).await,
        LedgerCommand::Repair(args) => repair::repair(args).await,
        LedgerCommand::Accept(args) => accept::accept(args).await,
        LedgerCommand::Copy(args) => Box::pin(copy::copy(args)).await,
        LedgerCommand::Compact(args) => compact::compact(&args),
    }
}

/// The ledger that a command works on, and how its result is printed.
#[derive(Args, Debug)]
struct TargetArgs {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
}

impl TargetArgs {
    fn address(&self) -> anyhow::Result<LedgerAddress> {
        self.ledger.address().map_err(name_variable)
    }
}

/// Refuses a path without a ledger. Opening an empty file would create a ledger in it, and hide
/// that another one was lost there.
fn check_exists(path: &Path, address: &LedgerAddress) -> anyhow::Result<()> {
    if std::fs::metadata(path).is_ok_and(|found| found.len() == 0) || !path.exists() {
        bail!("there is no ledger at {address}: make one with consentd init");
    }
    Ok(())
}

/// Opens the ledger at an address with its background task, and runs `work` on it.
pub(super) async fn with_ledger<T>(
    address: &LedgerAddress,
    work: impl AsyncFnOnce(&Ledger) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if let LedgerAddress::Redis(target) = address {
        check_servers(target, Layout::SINGLE, address).await?;
    }
    with_unchecked_ledger(address, work).await
}

/// The same for a command that goes on without the first partition of a Cluster, whose shard may be lost.
async fn with_what_is_left<T>(
    address: &LedgerAddress,
    work: impl AsyncFnOnce(&Ledger) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if let LedgerAddress::Redis(target) = address {
        let is_lost = target.topology() == Topology::Cluster
            && inspect_servers((**target).clone(), Layout::SINGLE).await.is_err();
        if !is_lost {
            check_servers(target, Layout::SINGLE, address).await?;
        }
    }
    with_unchecked_ledger(address, work).await
}

/// The same without a look at the server of the first partition.
async fn with_unchecked_ledger<T>(
    address: &LedgerAddress,
    work: impl AsyncFnOnce(&Ledger) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    match address {
        LedgerAddress::File(path) => {
            check_exists(path, address)?;
            // Without its appender, the ledger is only read.
            let (ledger, _appender) =
                Embedded::open_with_any_keys(path, Retention::default(), CACHE_BYTES)?;
            work(&Ledger::Embedded(ledger)).await
        }
        LedgerAddress::Redis(target) => {
            // Without a retention, nothing is removed: that is left to recorders.
            // These commands look no user up.
            let options = Options { retention: None, any_keys: true, ..Options::default() };
            let (ledger, task) = Redis::new((**target).clone(), options);
            let stop = CancellationToken::new();
            let working = async {
                let done = work(&Ledger::Redis(ledger)).await;
                stop.cancel();
                done
            };
            let (done, ()) = tokio::join!(working, task.run(stop.clone()));
            done
        }
    }
}

/// The last page of each partition, which has its position.
async fn last_pages(ledger: &Ledger) -> anyhow::Result<Vec<Page>> {
    let mut pages = Vec::new();
    for partition in ledger.partitions().await? {
        pages.push(partition.read_after(u64::MAX).await?);
    }
    Ok(pages)
}

/// The ledger in Redis, or an error that says what to do instead with a file.
fn only_redis<'a>(ledger: &'a Ledger, instead: &str) -> anyhow::Result<&'a Redis> {
    match ledger {
        Ledger::Redis(ledger) => Ok(ledger),
        Ledger::Embedded(_) => bail!("{} is a file: {instead}", ledger.describe()),
    }
}

/// A progress bar for work on all buckets of a ledger.
fn bucket_progress() -> ProgressBar {
    // The number of buckets is known with the first progress.
    ProgressBar::new(Some(0))
}

fn show_progress(bar: &mut ProgressBar, progress: Progress) {
    let pairs = format!("{} pairs", HumanCount(progress.pairs));
    let line = format!("{pairs}, bucket {} of {}", progress.done, progress.of);
    bar.set_total(progress.of.into());
    bar.show(progress.done.into(), &pairs, Some(&line));
}
