//! `ledger status`: the state of a ledger, read from the ledger itself.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytesize::ByteSize;
use clap::Args;
use indicatif::HumanCount;
use serde_json::json;

use super::{TargetArgs, with_unchecked_ledger};
use crate::cli::ledger_target::{check_servers, durability_text, print_warnings};
use crate::cli::{Verdict, output};
use crate::config::LedgerAddress;
use consentd_core::id::{KEY_VERSION, OLDEST_KEY_VERSION, TAGGED_KEY_VERSION};
use consentd_core::partition::Layout;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    DiskUsage, Identity, Ledger, Page, PartitionStatus, ServerInfo, Shard, Status, Topology,
    UnsupportedServer, inspect_servers,
};

#[derive(Args, Debug)]
pub(in crate::cli) struct StatusArgs {
    /// Has no effect, because this command changes nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: TargetArgs,
}

/// The state of a ledger, as it is printed.
struct StatusReport {
    address: LedgerAddress,
    ledger: Arc<Identity>,
    shards: Vec<Shard>,
    warnings: Vec<String>,
    partitions: Vec<PartitionStatus>,
    /// The disk usage, if the ledger is a file.
    space: Option<DiskUsage>,
}

pub(super) async fn status(args: StatusArgs) -> anyhow::Result<Verdict> {
    let StatusArgs { dry_run: _, target } = args;
    let address = target.address()?;
    if let LedgerAddress::Redis(redis) = &address {
        let shards = match inspect_servers((**redis).clone(), Layout::SINGLE).await {
            // The first partition's shard may be lost, which is reported with the partitions.
            Err(_) if redis.topology() == Topology::Cluster => Vec::new(),
            shards => shards?,
        };
        for shard in &shards {
            match shard.server.verdict(redis.topology(), redis.accepts_unfenced()) {
                Ok(_) => {}
                // A report rather than an error: the server was inspected, and whatever its ledger
                // is like, no sidecar can record there or prove its freshness.
                Err(unfit @ (UnsupportedServer::Evicting(_) | UnsupportedServer::Unfenced)) => {
                    return unfit_server(&target, &address, shard, &unfit);
                }
                Err(unfit) => bail!("{address} cannot hold a ledger: {unfit}"),
            }
        }
    }
    let (partitions, space) =
        with_unchecked_ledger(&address, async |ledger: &Ledger| match ledger {
            Ledger::Redis(redis) => Ok((redis.status().await?, None)),
            Ledger::Embedded(file) => {
                let (pairs, log_entries, oldest) = file.extent().await?;
                let status = Status {
                    log_entries,
                    oldest,
                    pairs,
                    cut_short: false,
                    takes_appends: true,
                    lost: Vec::new(),
                    lost_keys: 0,
                    has_fence: true,
                    memory: None,
                };
                let mut partitions = Vec::new();
                for partition in ledger.partitions().await? {
                    let page = partition.read_after(u64::MAX).await?;
                    partitions.push(Ok((page, status.clone())));
                }
                Ok((partitions, file.disk_usage().await?))
            }
        })
        .await?;
    let ledger = match (partitions.iter().flatten().next(), partitions.first()) {
        (Some((page, _)), _) => Arc::clone(&page.identity),
        (None, Some(Err(error))) => return Err(error.clone().into()),
        (None, _) => bail!("{address} has no partitions"),
    };
    let (shards, warnings) = match &address {
        LedgerAddress::File(_) => (Vec::new(), Vec::new()),
        LedgerAddress::Redis(redis) => check_servers(redis, ledger.layout, &address)
            .await
            .unwrap_or_else(|error| (Vec::new(), vec![error.to_string()])),
    };
    let report = StatusReport { address, ledger, shards, warnings, partitions, space };
    if target.json {
        output::line(&report.as_json().to_string())?;
    } else {
        report.print()?;
    }
    Ok(if report.is_well() { Verdict::Yes } else { Verdict::No })
}

/// Reports a server whose configuration rules out a ledger.
fn unfit_server(
    target: &TargetArgs,
    address: &LedgerAddress,
    shard: &Shard,
    unfit: &UnsupportedServer,
) -> anyhow::Result<Verdict> {
    if target.json {
        let report = json!({
            "address": address.to_string(), "server": server_as_json(&shard.server, None),
            "unfit": unfit.to_string(), "warnings": [], "well": false,
        });
        output::line(&report.to_string())?;
    } else {
        line("at", &address.to_string())?;
        print_server(&shard.server)?;
        output::line(&format!(
            "this server cannot hold a ledger: {unfit}. Until then nothing is recorded here, and \
             every check is denied as STALE"
        ))?;
    }
    Ok(Verdict::No)
}

/// A server's properties, with the used and the maximum memory in bytes, if known.
fn server_as_json(server: &ServerInfo, memory: Option<(u64, u64)>) -> serde_json::Value {
    json!({
        "version": server.called, "primary": server.is_primary,
        "cluster": server.is_cluster, "replicas": server.replicas, "fenced": server.is_fenced,
        "durable": durability_text(server), "canSave": server.can_save,
        "eviction": server.eviction,
        "memoryBytes": memory.map(|(used, _)| used),
        "maxMemoryBytes": memory.map(|(_, most)| most),
    })
}

fn print_server(server: &ServerInfo) -> anyhow::Result<()> {
    let replicas = match server.replicas {
        1 => "1 replica".to_owned(),
        count => format!("{count} replicas"),
    };
    let fenced = match (server.is_cluster, server.is_fenced) {
        (true, _) => ", of a Cluster",
        (false, true) => ", fenced",
        // Without replicas there is nothing that could be promoted.
        (false, false) if server.replicas == 0 => "",
        (false, false) => ", unfenced",
    };
    line("server", &format!("{}, primary, {replicas}{fenced}", server.called))?;
    line("durable", durability_text(server))?;
    line("eviction", server.eviction.as_deref().unwrap_or("not known"))
}

fn line(name: &str, value: &str) -> anyhow::Result<()> {
    output::line(&format!("{name:<10} {value}"))
}

fn is_well((_, status): &(Page, Status)) -> bool {
    !status.cut_short && status.takes_appends && status.has_fence && status.lost_keys == 0
}

impl StatusReport {
    /// The ledger's id, which is its first partition's.
    fn id(&self) -> Option<String> {
        let (page, _) = self.partitions.first()?.as_ref().ok()?;
        Some(hex::encode(page.end.epoch))
    }

    fn is_well(&self) -> bool {
        self.partitions.iter().all(|partition| partition.as_ref().is_ok_and(is_well))
    }

    /// The partitions that can be read.
    fn readable(&self) -> impl Iterator<Item = &(Page, Status)> {
        self.partitions.iter().flatten()
    }

    /// The sum of a number over the partitions.
    fn sum(&self, number: impl Fn(&Page, &Status) -> u64) -> u64 {
        let numbers = self.readable().map(|(page, status)| number(page, status));
        numbers.fold(0, u64::saturating_add)
    }

    /// What a sum over the partitions lacks: those that cannot be read.
    fn without_unreadable(&self) -> String {
        match self.partitions.iter().filter(|partition| partition.is_err()).count() {
            0 => String::new(),
            1 => " without one partition, which cannot be read".to_owned(),
            unreadable => format!(" without {unreadable} partitions, which cannot be read"),
        }
    }

    fn accepted(&self) -> u64 {
        self.readable().map(|(page, _)| page.accepted).max().unwrap_or_default()
    }

    fn buckets(&self) -> u32 {
        self.ledger.buckets.saturating_mul(self.ledger.layout.partitions())
    }

    fn as_json(&self) -> serde_json::Value {
        let Self { address, ledger, warnings, partitions, space, .. } = self;
        let all = |what: fn(&Status) -> bool| self.readable().all(|(_, status)| what(status));
        let memory = |_: &Shard| self.readable().find_map(|(_, status)| status.memory);
        let server = self.shards.first().map(|shard| server_as_json(&shard.server, memory(shard)));
        let oldest = self.readable().filter_map(|(_, status)| status.oldest).min();
        let mut report = json!({
            "ledger": self.id(), "address": address.to_string(),
            "revision": self.sum(|page, _| page.end.revision),
            "logEntries": self.sum(|_, status| status.log_entries),
            "oldestLogEntry": oldest.map(Timestamp::rfc3339_millis),
            "buckets": self.buckets(), "keyVersion": ledger.key_version,
            "pairs": self.sum(|_, status| status.pairs), "accepted": self.accepted(),
            "cutShort": !all(|status| !status.cut_short),
            "takesAppends": all(|status| status.takes_appends),
            "fence": all(|status| status.has_fence),
            "lostKeys": self.sum(|_, status| status.lost_keys),
            "lost": self.readable().flat_map(|(_, status)| &status.lost).collect::<Vec<_>>(),
            "server": server,
            "fileBytes": space.map(|space| space.file_bytes),
            "fileFreeBytes": space.map(|space| space.free_bytes()),
            "warnings": warnings, "well": self.is_well(),
        });
        if let ([Ok((page, _))], Some(report)) = (&partitions[..], report.as_object_mut()) {
            report.insert("head".to_owned(), json!(hex::encode(page.end.head)));
        } else if let Some(report) = report.as_object_mut() {
            let partitions = partitions.iter().enumerate();
            let partitions: Vec<_> = partitions.map(|(n, one)| partition_as_json(n, one)).collect();
            let shards = self.shards.iter().map(|shard| {
                json!({ "address": shard.address, "partitions": shard.partitions,
                        "server": server_as_json(&shard.server, None) })
            });
            let shards: Vec<_> = shards.collect();
            report.insert("spread".to_owned(), json!(ledger.layout.spread()));
            report.insert("partitions".to_owned(), json!(partitions));
            report.insert("shards".to_owned(), json!(shards));
        }
        report
    }

    fn print(&self) -> anyhow::Result<()> {
        let Self { ledger, partitions, .. } = self;
        let id = self.id();
        line("ledger", id.as_deref().unwrap_or("not known: its first partition cannot be read"))?;
        line("at", &self.address.to_string())?;
        if let [Ok((page, _))] = &partitions[..] {
            line("revision", &HumanCount(page.end.revision).to_string())?;
            line("head", &hex::encode(page.end.head))?;
        } else {
            let (count, spread) = (ledger.layout.partitions(), ledger.layout.spread());
            line("partitions", &format!("{count}; each business is in {spread}"))?;
            let changes = self.sum(|page, _| page.end.revision);
            line(
                "revision",
                &format!(
                    "{}, the sum of the partitions' own{}; in a copy, each of those goes on from the source's",
                    HumanCount(changes),
                    self.without_unreadable(),
                ),
            )?;
        }
        let age = |(page, status): &(Page, Status)| Some(page.clock.since(status.oldest?));
        let age = self.readable().filter_map(age).max();
        line("log", &log_text(self.sum(|_, status| status.log_entries), age))?;
        line("buckets", &HumanCount(self.buckets().into()).to_string())?;
        let pairs = HumanCount(self.sum(|_, status| status.pairs));
        line("pairs", &format!("{pairs}{}", self.without_unreadable()))?;
        line("keys", &keys_text(ledger.key_version))?;
        line("accepted", &format!("{} times", self.accepted()))?;
        self.print_servers()?;
        if let Some(space) = &self.space {
            let (file, free) = (ByteSize(space.file_bytes), ByteSize(space.free_bytes()));
            let compact = if space.is_worth_compacting() {
                ": make it smaller with consentd ledger compact, while no sidecar has it"
            } else {
                ""
            };
            line("file", &format!("{file}, of which {free} are free{compact}"))?;
        }
        let mut problems: Vec<String> = Vec::new();
        for (number, partition) in partitions.iter().enumerate() {
            let of = match partitions.len() {
                1 => String::new(),
                _ => format!("partition {number}: "),
            };
            let own = problems_of(partition).into_iter();
            problems.extend(own.map(|problem| format!("{of}{problem}")));
        }
        for problem in problems.iter().take(MAX_PROBLEMS) {
            output::line(problem)?;
        }
        if problems.len() > MAX_PROBLEMS {
            output::line(&format!("and {} more", problems.len() - MAX_PROBLEMS))?;
        }
        print_warnings(&self.warnings);
        Ok(())
    }

    fn print_servers(&self) -> anyhow::Result<()> {
        let memory = |shard: &Shard| {
            let first = usize::try_from(*shard.partitions.first()?).ok()?;
            self.partitions.get(first)?.as_ref().ok()?.1.memory
        };
        for shard in &self.shards {
            if self.ledger.layout.partitions() > 1 {
                let count = shard.partitions.len();
                output::line(&format!("{}, which has {count} of the partitions:", shard.address))?;
            }
            print_server(&shard.server)?;
            if let Some((used, most)) = memory(shard) {
                let most = match most {
                    0 => "no limit".to_owned(),
                    most => format!("of {}", ByteSize(most)),
                };
                line("memory", &format!("{}, {most}", ByteSize(used)))?;
            }
        }
        Ok(())
    }
}

/// The most problems that are printed.
const MAX_PROBLEMS: usize = 24;

fn partition_as_json(number: usize, partition: &PartitionStatus) -> serde_json::Value {
    match partition {
        Err(error) => json!({ "partition": number, "error": error.to_string(), "well": false }),
        Ok(both @ (page, status)) => json!({
            "partition": number, "epoch": hex::encode(page.end.epoch),
            "revision": page.end.revision, "head": hex::encode(page.end.head),
            "logEntries": status.log_entries, "pairs": status.pairs, "accepted": page.accepted,
            "cutShort": status.cut_short, "takesAppends": status.takes_appends,
            "fence": status.has_fence, "lostKeys": status.lost_keys, "well": is_well(both),
        }),
    }
}

/// What an operator must do about a partition.
fn problems_of(partition: &PartitionStatus) -> Vec<String> {
    let status = match partition {
        Ok((_, status)) => status,
        Err(error) => return vec![error.to_string()],
    };
    let mut problems = Vec::new();
    if status.cut_short {
        problems.push(
            "an append was cut short: the next one completes it, and so does consentd ledger repair"
                .to_owned(),
        );
    }
    for key in &status.lost {
        problems.push(format!("the key {key} was deleted or evicted: it is not used"));
    }
    if status.lost_keys > 0 {
        let count = HumanCount(status.lost_keys);
        problems.push(format!("{count} keys are lost: run consentd ledger repair"));
    }
    if !status.takes_appends {
        problems.push(
            "nothing can be appended, no opt-out either: Redis refuses the log's next entry; mend it \
             with consentd ledger repair"
                .to_owned(),
        );
    }
    if !status.has_fence {
        problems.push("the fence is missing: put it back with consentd ledger repair".to_owned());
    }
    problems
}

fn keys_text(version: u32) -> String {
    let what = match version {
        ..OLDEST_KEY_VERSION => {
            ": not served by this consentd before consentd ledger copy has re-keyed it"
        }
        OLDEST_KEY_VERSION..TAGGED_KEY_VERSION => {
            ": its keys name no business, so that a sidecar for some businesses takes a consentd ledger \
             copy of it"
        }
        TAGGED_KEY_VERSION..=KEY_VERSION => "",
        _ => ": made by a newer consentd, and not served by this one",
    };
    format!("version {version}{what}")
}

fn log_text(entries: u64, age: Option<Duration>) -> String {
    let entries = HumanCount(entries);
    match age {
        None => format!("{entries} entries"),
        Some(age) => {
            let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
            format!("{entries} entries, the oldest of {age} ago")
        }
    }
}
