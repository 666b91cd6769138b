//! The ledger that a command works on: its address, how it is divided, and whether its servers are suitable.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use anyhow::{anyhow, bail};
use clap::Args;
use consentd_core::partition::{InvalidLayout, Layout};
use consentd_ledger::{
    Fsync, MAX_BUCKETS, Persistence, ServerInfo, Shape, Shard, Target, Topology, Warning,
    inspect_servers,
};

use super::{args, output};
use crate::config::{ConfigError, LedgerAddress};

/// The buckets of a new ledger in Redis: enough for ten million pairs.
pub(super) const DEFAULT_BUCKETS: u32 = 8_192;

/// Names the environment variable that an invalid setting is from, if it is from one.
pub(super) fn name_variable(error: ConfigError) -> anyhow::Error {
    let variable = match &error {
        ConfigError::Value { setting, .. } => args::variable_of(setting),
        _ => None,
    };
    match variable {
        Some(variable) => anyhow!("{error}\n  the value is that of {variable}"),
        None => error.into(),
    }
}

/// The partitions of a new ledger in a Cluster: enough that a dozen shards share them evenly.
const CLUSTER_PARTITIONS: u32 = 64;

/// Over how many of the partitions the pairs of a business are spread: enough that no shard has all of a large one,
/// and few enough that a sidecar for some businesses follows few.
const DEFAULT_SPREAD: u32 = 4;

/// How a new ledger in Redis is divided.
#[derive(Args, Debug)]
pub(super) struct LayoutArgs {
    /// How many partitions it is divided into, in Redis: 1, 2, 4, ... 1024. Each has a log and a proof
    /// of its own, and they are even over the shards of a Cluster [default: 64 in a Cluster, else 1]
    #[arg(long, value_name = "P")]
    partitions: Option<u32>,
    /// Over how many of the partitions the pairs of each business are spread, in Redis: a sidecar with
    /// --business follows those alone [default: 4, or as many as there are]
    #[arg(long, value_name = "S")]
    spread: Option<u32>,
    /// How many buckets its pairs are distributed over, in Redis: a snapshot reads one at a time,
    /// and with some million pairs each of 8192 has some hundred [default: 8192, over all partitions]
    #[arg(long, value_name = "B")]
    buckets: Option<u32>,
}

impl LayoutArgs {
    /// The shape of a ledger at this target, whose buckets are these by default.
    ///
    /// # Errors
    ///
    /// Names the flag that no ledger can have.
    pub(super) fn shape(&self, target: &Target, buckets: u32) -> anyhow::Result<Shape> {
        let is_cluster = target.topology() == Topology::Cluster;
        let partitions = self.partitions.unwrap_or(if is_cluster { CLUSTER_PARTITIONS } else { 1 });
        let spread = self.spread.unwrap_or(DEFAULT_SPREAD.min(partitions));
        let layout = Layout::new(partitions, spread).map_err(|error| match error {
            InvalidLayout::Partitions => anyhow!("--partitions: {error}"),
            InvalidLayout::Spread => anyhow!("--spread: {error}"),
        })?;
        Shape::new(layout, self.buckets.unwrap_or(buckets)).map_err(|_| {
            anyhow!("--buckets: must be from 1 to {MAX_BUCKETS}, such as {DEFAULT_BUCKETS}")
        })
    }

    /// Refuses flags that a file does not have.
    ///
    /// # Errors
    ///
    /// Names the flag.
    pub(super) fn refuse_for_file(&self) -> anyhow::Result<()> {
        let given = [
            ("--partitions", self.partitions, "has one"),
            ("--spread", self.spread, "has one partition"),
            ("--buckets", self.buckets, "has as many as it needs"),
        ];
        match given.into_iter().find(|(_, value, _)| value.is_some()) {
            None => Ok(()),
            Some((flag, _, instead)) => {
                bail!("{flag}: is for a ledger in Redis; a file {instead}")
            }
        }
    }
}

/// Inspects the servers that have the partitions of a ledger. Returns them, and what an operator should know of them.
///
/// # Errors
///
/// If one of the servers cannot hold a ledger.
pub(super) async fn check_servers(
    target: &Target,
    layout: Layout,
    address: &LedgerAddress,
) -> anyhow::Result<(Vec<Shard>, Vec<String>)> {
    let shards = inspect_servers(target.clone(), layout).await?;
    let mut warnings = Vec::new();
    for shard in &shards {
        let of_shard = shard.server.verdict(target.topology(), target.accepts_unfenced());
        let of_shard = of_shard.map_err(|unfit| match shards.len() {
            1 => anyhow!("{address} cannot hold a ledger: {unfit}"),
            _ => anyhow!("{} cannot hold partitions of a ledger: {unfit}", shard.address),
        })?;
        warnings.extend(warnings_of(shard, &shards, &of_shard));
    }
    warnings.extend(unevenness(&shards));
    Ok((shards, warnings))
}

/// The warnings about a server, with its address if there are several.
pub(super) fn warnings_of(shard: &Shard, shards: &[Shard], warnings: &[Warning]) -> Vec<String> {
    let of = |warning: &Warning| match shards.len() {
        1 => warning.to_string(),
        _ => format!("{}: {warning}", shard.address),
    };
    warnings.iter().map(of).collect()
}

/// What an operator should know if some servers have more partitions than others.
pub(super) fn unevenness(shards: &[Shard]) -> Option<String> {
    let counts = || shards.iter().map(|shard| shard.partitions.len());
    let (most, least) = (counts().max()?, counts().min()?);
    // Equal shards differ by one partition at most, for each of them has equally many slots.
    (most > least.saturating_add(1) && most > least.saturating_mul(5).div_ceil(4)).then(|| {
        format!(
            "the partitions are uneven over the shards, which have {least} to {most} of them: redis-cli \
             --cluster rebalance moves slots, while sidecars go on"
        )
    })
}

/// Prints warnings about a server. They are no errors, so they go to standard output.
pub(super) fn print_warnings(warnings: &[String]) {
    for warning in warnings {
        let _ = output::line(&format!("warning: {warning}"));
    }
}

/// What survives the end of a Redis server's process.
pub(super) fn durability_text(server: &ServerInfo) -> &'static str {
    match server.durability {
        Persistence::Memory => "in memory alone: a restart loses it",
        Persistence::Snapshots => "snapshots alone: a crash loses what came after the last",
        Persistence::AppendOnly(Fsync::Always) => "append-only file, synced before every answer",
        Persistence::AppendOnly(Fsync::EverySecond) => "append-only file, synced every second",
        Persistence::AppendOnly(Fsync::Never) => "append-only file, synced when the system likes",
        Persistence::AppendOnly(Fsync::Unstated) => "append-only file",
        Persistence::Unstated => "not known: CONFIG GET is refused",
    }
}
