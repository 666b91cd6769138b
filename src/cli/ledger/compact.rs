//! `ledger compact`: rewrites a ledger's file without free pages.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::{CACHE_BYTES, TargetArgs, check_exists};
use crate::cli::{Verdict, output};
use crate::config::LedgerAddress;
use consentd_ledger::{CompactionReport, Embedded, Retention};

/// The end of the command's help.
pub(super) const WHAT_IT_IS_FOR: &str = "\
Erased and expired data is removed from a file's tables, but stays in its free pages until they are
overwritten. This command rewrites the file without them, which also returns its free space to the
disk (`consentd ledger status` shows how much that is). Meanwhile it needs as much space again; if
it is interrupted, the file stays as it was. A sidecar does the same when it starts, once the log
names no erased user. The file must not be open in a sidecar.";

#[derive(Args, Debug)]
pub(in crate::cli) struct CompactArgs {
    /// How long the ledger's log is kept, as for serve: older entries are removed first
    #[arg(long, env = "CONSENTD_LOG_RETENTION", value_name = "TIME", default_value = "24h",
          value_parser = humantime::parse_duration)]
    log_retention: Duration,
    #[command(flatten)]
    target: TargetArgs,
}

pub(super) fn compact(args: &CompactArgs) -> anyhow::Result<Verdict> {
    let address = args.target.address()?;
    let LedgerAddress::File(path) = &address else {
        bail!("{address} is no file: Redis frees what is erased by itself");
    };
    check_exists(path, &address)?;
    // Only the log is trimmed: the sidecar knows how long histories are kept.
    let keep = Retention { log: args.log_retention, log_entries: u64::MAX, history: Duration::MAX };
    let CompactionReport { bytes_before, bytes_after, last_naming_entry } =
        Embedded::compact(path, keep, CACHE_BYTES)?;
    let until = last_naming_entry.map(|time| time.plus(args.log_retention).rfc3339_millis());
    if args.target.json {
        let result =
            json!({ "bytesBefore": bytes_before, "bytes": bytes_after, "namedUntil": until });
        output::line(&result.to_string())?;
        return Ok(Verdict::Yes);
    }
    output::line(&format!(
        "{address}: {} are {} now",
        HumanBytes(bytes_before),
        HumanBytes(bytes_after)
    ))?;
    if let Some(until) = until {
        output::line(&format!(
            "its log may name users who were erased until {until}: compact it again then, or start \
             a sidecar with it, which does"
        ))?;
    }
    Ok(Verdict::Yes)
}
