//! `ledger status`: how a ledger is, asked of itself and of no sidecar.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use indicatif::HumanCount;
use serde_json::json;

use super::{WhichArgs, hex, persistence, with_ledger};
use crate::cli::{Verdict, print};
use crate::config::LedgerAddress;
use crate::ledger::{Ledger, Status, look_at};

#[derive(Args, Debug)]
pub(in crate::cli) struct StatusArgs {
    /// Accepted as by the other commands: this one never changes anything
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    which: WhichArgs,
}

pub(super) async fn status(args: StatusArgs) -> anyhow::Result<Verdict> {
    let StatusArgs { dry_run: _, which } = args;
    let address = which.address()?;
    let (server, unfit, warnings) = match &address {
        LedgerAddress::File(_) => (None, None, Vec::new()),
        LedgerAddress::Redis(target) => {
            let fitness = look_at((**target).clone()).await?;
            match fitness.verdict(target.has_sentinels(), target.accepts_unfenced()) {
                Ok(warnings) => (Some(fitness), None, warnings),
                Err(unfit) => (Some(fitness), Some(unfit.to_string()), Vec::new()),
            }
        }
    };
    if let (Some(unfit), false) = (&unfit, which.json) {
        print::line(&format!("{address} is not fit to hold a ledger: {unfit}"))?;
        return Ok(Verdict::No);
    }
    let (page, status) = with_ledger(&address, async |ledger: &Ledger| {
        let page = ledger.read_after(u64::MAX).await?;
        let status = match ledger {
            Ledger::Redis(redis) => redis.status().await?,
            Ledger::Embedded(file) => {
                let (pairs, log_entries, oldest) = file.extent().await?;
                let (cut_short, has_fence, memory) = (false, true, None);
                Status { log_entries, oldest, pairs, cut_short, has_fence, memory }
            }
        };
        Ok((page, status))
    })
    .await?;
    let is_well = unfit.is_none() && !status.cut_short && status.has_fence;
    let age = status.oldest.map(|oldest| page.clock.since(oldest));
    let (end, identity) = (page.end, page.identity);
    if which.json {
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        let server = server.as_ref().map(|server| {
            json!({
                "version": server.called, "primary": server.is_primary,
                "replicas": server.replicas, "fenced": server.is_fenced,
                "durable": persistence(server), "canSave": server.can_save,
                "eviction": server.eviction,
                "memoryBytes": status.memory.map(|(used, _)| used),
                "maxMemoryBytes": status.memory.map(|(_, most)| most),
            })
        });
        let told = json!({
            "ledger": hex(&end.epoch), "address": address.to_string(), "revision": end.revision,
            "head": hex(&end.head), "logEntries": status.log_entries,
            "oldestLogEntry": status.oldest.map(print::rfc3339),
            "buckets": identity.buckets, "pairs": status.pairs, "accepted": page.accepted,
            "cutShort": status.cut_short, "fence": status.has_fence, "server": server,
            "unfit": unfit, "warnings": warnings, "well": is_well,
        });
        print::line(&told.to_string())?;
        return Ok(if is_well { Verdict::Yes } else { Verdict::No });
    }
    let line = |name: &str, value: &str| print::line(&format!("{name:<10} {value}"));
    line("ledger", &hex(&end.epoch))?;
    line("at", &address.to_string())?;
    line("revision", &HumanCount(end.revision).to_string())?;
    line("head", &hex(&end.head))?;
    line("log", &log_text(status.log_entries, age))?;
    line("buckets", &HumanCount(identity.buckets.into()).to_string())?;
    line("pairs", &HumanCount(status.pairs).to_string())?;
    line("accepted", &format!("{} times", page.accepted))?;
    if let Some(server) = &server {
        let replicas = match server.replicas {
            1 => "1 replica".to_owned(),
            count => format!("{count} replicas"),
        };
        let role = if server.is_primary { "primary" } else { "replica" };
        let fenced = if server.is_fenced { "fenced" } else { "unfenced" };
        line("server", &format!("{}, {role}, {replicas}, {fenced}", server.called))?;
        line("durable", persistence(server))?;
        line("eviction", server.eviction.as_deref().unwrap_or("not known"))?;
    }
    if let Some((used, most)) = status.memory {
        let most = match most {
            0 => "no limit".to_owned(),
            most => format!("of {}", ByteSize(most)),
        };
        line("memory", &format!("{}, {most}", ByteSize(used)))?;
    }
    if status.cut_short {
        print::line(
            "an append was cut short: the next one completes it, and so does consentd ledger repair",
        )?;
    }
    if !status.has_fence {
        print::line("the fence is missing: put it back with consentd ledger repair")?;
    }
    crate::cli::init::warn(&warnings);
    Ok(if is_well { Verdict::Yes } else { Verdict::No })
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
