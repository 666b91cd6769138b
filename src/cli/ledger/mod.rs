//! `ledger`: what operators do to a ledger, beside any sidecar.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

mod accept;
mod compact;
mod copy;
mod mend;
mod shown;
mod status;
mod verify;

use std::path::Path;

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

pub(super) use super::print::hex;
use super::{Verdict, given};
use crate::config::{ConfigError, LedgerAddress, LedgerArgs};
use consentd_ledger::{
    Embedded, Fsync, Ledger, Options, Persistence, Redis, Retention, ServerInfo,
};

/// How much of a file is kept in memory.
const CACHE_BYTES: usize = 64 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Show how a ledger is (exit code 0: well, 1: not)
    Status(status::StatusArgs),
    /// Look whether all that a ledger holds fits together (exit code 0: it does, 1: it does not)
    #[command(after_help = verify::WHAT_IS_LOOKED_AT)]
    Verify(verify::VerifyArgs),
    /// Find records that were written past the log, and tell followers what holds now
    #[command(after_help = mend::WHAT_SCRUB_DOES)]
    Scrub(mend::MendArgs),
    /// Mend what can be mended, while recorders go on
    #[command(after_help = mend::WHAT_REPAIR_DOES)]
    Repair(mend::RepairArgs),
    /// Say that a ledger is right as it is, so that followers forget what only they remember
    #[command(after_help = accept::WHAT_IT_MEANS)]
    Accept(accept::AcceptArgs),
    /// Copy a ledger into a new one: from a file to Redis and back, or into more buckets
    #[command(after_help = copy::HOW_TO_MOVE)]
    Copy(copy::CopyArgs),
    /// Write a ledger's file anew, so that it holds no bytes of what was erased
    #[command(after_help = compact::WHAT_IT_IS_FOR)]
    Compact(compact::CompactArgs),
}

pub(super) async fn run(command: LedgerCommand) -> anyhow::Result<Verdict> {
    match command {
        LedgerCommand::Status(args) => status::status(args).await,
        LedgerCommand::Verify(args) => verify::verify(args).await,
        LedgerCommand::Scrub(args) => mend::scrub(args).await,
        LedgerCommand::Repair(args) => mend::repair(args).await,
        LedgerCommand::Accept(args) => accept::accept(args).await,
        LedgerCommand::Copy(args) => Box::pin(copy::copy(args)).await,
        LedgerCommand::Compact(args) => compact::compact(&args),
    }
}

/// Which ledger, and how to print of it.
#[derive(Args, Debug)]
struct WhichArgs {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ledger: LedgerArgs,
}

impl WhichArgs {
    fn address(&self) -> anyhow::Result<LedgerAddress> {
        of_address(self.ledger.address())
    }
}

/// The address, or an error that names the variable that a wrong value is from.
pub(super) fn of_address(
    address: Result<LedgerAddress, ConfigError>,
) -> anyhow::Result<LedgerAddress> {
    address.map_err(|error| {
        let variable = match &error {
            ConfigError::Value { setting, .. } => given::variable_of(setting),
            _ => None,
        };
        match variable {
            Some(variable) => anyhow!("{error}\n  the value is that of {variable}"),
            None => error.into(),
        }
    })
}

/// Refuses a path where there is no ledger. An empty file is none: to open it would make a ledger
/// there, and forget what shows that there was another.
fn check_exists(path: &Path, address: &LedgerAddress) -> anyhow::Result<()> {
    if std::fs::metadata(path).is_ok_and(|found| found.len() == 0) || !path.exists() {
        bail!("there is no ledger at {address}: make one with consentd init");
    }
    Ok(())
}

/// Opens the ledger at an address, runs what it needs, and asks `work` of it.
async fn with_ledger<T>(
    address: &LedgerAddress,
    work: impl AsyncFnOnce(&Ledger) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    match address {
        LedgerAddress::File(path) => {
            check_exists(path, address)?;
            // What writes is not run: nothing is appended, and nothing removed.
            let (ledger, _appender) = Embedded::open(path, Retention::default(), CACHE_BYTES)?;
            work(&Ledger::Embedded(ledger)).await
        }
        LedgerAddress::Redis(target) => {
            // What has outlived its time is the recorders' to remove.
            let options = Options { retention: None, ..Options::default() };
            super::init::fit(target, address).await?;
            let (ledger, driver) = Redis::new((**target).clone(), options);
            let stop = CancellationToken::new();
            let working = async {
                let done = work(&Ledger::Redis(ledger)).await;
                stop.cancel();
                done
            };
            let (done, ()) = tokio::join!(working, driver.run(stop.clone()));
            done
        }
    }
}

/// The ledger in Redis, or what else is to be done with a file.
fn only_redis<'a>(ledger: &'a Ledger, instead: &str) -> anyhow::Result<&'a Redis> {
    match ledger {
        Ledger::Redis(ledger) => Ok(ledger),
        Ledger::Embedded(_) => bail!("{} is a file: {instead}", ledger.describe()),
    }
}

/// What survives when a Redis' process ends, for people.
pub(super) fn persistence(fitness: &ServerInfo) -> &'static str {
    match fitness.durability {
        Persistence::Memory => "in memory alone: a restart loses it",
        Persistence::Snapshots => "snapshots alone: a crash loses what came after the last",
        Persistence::AppendOnly(Fsync::Always) => "append-only file, synced before every answer",
        Persistence::AppendOnly(Fsync::EverySecond) => "append-only file, synced every second",
        Persistence::AppendOnly(Fsync::Never) => "append-only file, synced when the system likes",
        Persistence::AppendOnly(Fsync::Unstated) => "append-only file",
        Persistence::Unstated => "not known: CONFIG GET is refused",
    }
}
