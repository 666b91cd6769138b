//! `ledger status`: the state of a ledger, read from the ledger itself.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use clap::Args;
use indicatif::HumanCount;
use serde_json::json;

use super::{TargetArgs, first_partition, with_ledger};
use crate::cli::ledger_target::{durability_text, print_warnings};
use crate::cli::{Verdict, output};
use crate::config::LedgerAddress;
use consentd_core::id::{KEY_VERSION, OLDEST_KEY_VERSION, TAGGED_KEY_VERSION};
use consentd_core::time::Timestamp;
use consentd_ledger::{
    DiskUsage, Ledger, Page, ServerInfo, Status, UnsupportedServer, Warning, inspect_server,
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
    server: Option<ServerInfo>,
    warnings: Vec<Warning>,
    page: Page,
    status: Status,
    /// The disk usage, if the ledger is a file.
    space: Option<DiskUsage>,
}

pub(super) async fn status(args: StatusArgs) -> anyhow::Result<Verdict> {
    let StatusArgs { dry_run: _, target } = args;
    let address = target.address()?;
    let (server, warnings) = match &address {
        LedgerAddress::File(_) => (None, Vec::new()),
        LedgerAddress::Redis(redis) => {
            let server = inspect_server((**redis).clone()).await?;
            match server.verdict(redis.topology(), redis.accepts_unfenced()) {
                Ok(warnings) => (Some(server), warnings),
                // A report rather than an error: the server was inspected, and whatever its ledger
                // is like, no sidecar can record there or prove its freshness.
                Err(unfit @ (UnsupportedServer::Evicting(_) | UnsupportedServer::Unfenced)) => {
                    return unfit_server(&target, &address, &server, &unfit);
                }
                Err(unfit) => bail!("{address} cannot hold a ledger: {unfit}"),
            }
        }
    };
    let (page, status, space) = with_ledger(&address, async |ledger: &Ledger| {
        let page = match ledger {
            Ledger::Redis(redis) => first_of(redis.ends().await?)?,
            Ledger::Embedded(_) => first_partition(ledger)?.read_after(u64::MAX).await?,
        };
        let (status, space) = match ledger {
            Ledger::Redis(redis) => (first_of(redis.status().await?)?, None),
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
                (status, file.disk_usage().await?)
            }
        };
        Ok((page, status, space))
    })
    .await?;
    let report = StatusReport { address, server, warnings, page, status, space };
    if target.json {
        output::line(&report.as_json().to_string())?;
    } else {
        report.print()?;
    }
    Ok(if report.is_well() { Verdict::Yes } else { Verdict::No })
}

fn first_of<T>(of_partitions: Vec<T>) -> anyhow::Result<T> {
    of_partitions.into_iter().next().context("the ledger has no partition")
}

/// Reports a server whose configuration rules out a ledger.
fn unfit_server(
    target: &TargetArgs,
    address: &LedgerAddress,
    server: &ServerInfo,
    unfit: &UnsupportedServer,
) -> anyhow::Result<Verdict> {
    if target.json {
        let report = json!({
            "address": address.to_string(), "server": server_as_json(server, None),
            "unfit": unfit.to_string(), "warnings": [], "well": false,
        });
        output::line(&report.to_string())?;
    } else {
        line("at", &address.to_string())?;
        print_server(server)?;
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
        (true, _) => "of a Cluster",
        (false, true) => "fenced",
        (false, false) => "unfenced",
    };
    line("server", &format!("{}, primary, {replicas}, {fenced}", server.called))?;
    line("durable", durability_text(server))?;
    line("eviction", server.eviction.as_deref().unwrap_or("not known"))
}

fn line(name: &str, value: &str) -> anyhow::Result<()> {
    output::line(&format!("{name:<10} {value}"))
}

impl StatusReport {
    fn is_well(&self) -> bool {
        let status = &self.status;
        !status.cut_short && status.takes_appends && status.has_fence && status.lost_keys == 0
    }

    fn as_json(&self) -> serde_json::Value {
        let Self { address, warnings, page, status, space, .. } = self;
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        let server = self.server.as_ref().map(|server| server_as_json(server, status.memory));
        json!({
            "ledger": hex::encode(page.end.epoch), "address": address.to_string(),
            "revision": page.end.revision, "head": hex::encode(page.end.head),
            "logEntries": status.log_entries,
            "oldestLogEntry": status.oldest.map(Timestamp::rfc3339_millis),
            "buckets": page.identity.buckets, "keyVersion": page.identity.key_version,
            "pairs": status.pairs, "accepted": page.accepted,
            "cutShort": status.cut_short, "takesAppends": status.takes_appends,
            "fence": status.has_fence,
            "lostKeys": status.lost_keys, "lost": status.lost, "server": server,
            "fileBytes": space.map(|space| space.file_bytes),
            "fileFreeBytes": space.map(|space| space.free_bytes()),
            "warnings": warnings, "well": self.is_well(),
        })
    }

    fn print(&self) -> anyhow::Result<()> {
        let Self { page, status, .. } = self;
        let age = status.oldest.map(|oldest| page.clock.since(oldest));
        line("ledger", &hex::encode(page.end.epoch))?;
        line("at", &self.address.to_string())?;
        line("revision", &HumanCount(page.end.revision).to_string())?;
        line("head", &hex::encode(page.end.head))?;
        line("log", &log_text(status.log_entries, age))?;
        line("buckets", &HumanCount(page.identity.buckets.into()).to_string())?;
        line("pairs", &HumanCount(status.pairs).to_string())?;
        line("keys", &keys_text(page.identity.key_version))?;
        line("accepted", &format!("{} times", page.accepted))?;
        if let Some(server) = &self.server {
            print_server(server)?;
        }
        if let Some(space) = &self.space {
            let (file, free) = (ByteSize(space.file_bytes), ByteSize(space.free_bytes()));
            let compact = if space.is_worth_compacting() {
                ": make it smaller with consentd ledger compact, while no sidecar has it"
            } else {
                ""
            };
            line("file", &format!("{file}, of which {free} are free{compact}"))?;
        }
        if let Some((used, most)) = status.memory {
            let most = match most {
                0 => "no limit".to_owned(),
                most => format!("of {}", ByteSize(most)),
            };
            line("memory", &format!("{}, {most}", ByteSize(used)))?;
        }
        if status.cut_short {
            let text = "an append was cut short: the next one completes it, and so does consentd \
                        ledger repair";
            output::line(text)?;
        }
        for key in &status.lost {
            output::line(&format!("the key {key} was deleted or evicted: it is not used"))?;
        }
        if status.lost_keys > 0 {
            let count = HumanCount(status.lost_keys);
            output::line(&format!("{count} keys are lost: run consentd ledger repair"))?;
        }
        if !status.takes_appends {
            let text = "nothing can be appended, no opt-out either: Redis refuses the log's next \
                        entry; mend it with consentd ledger repair";
            output::line(text)?;
        }
        if !status.has_fence {
            output::line("the fence is missing: put it back with consentd ledger repair")?;
        }
        print_warnings(&self.warnings);
        Ok(())
    }
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
