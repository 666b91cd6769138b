//! `ledger compact`: a file without what is not in it any more.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::HumanBytes;
use serde_json::json;

use super::{CACHE_BYTES, WhichArgs, check_exists};
use crate::cli::{Verdict, print};
use crate::config::LedgerAddress;
use consentd_ledger::{CompactionReport, Embedded, Retention};

/// For the help.
pub(super) const WHAT_IT_IS_FOR: &str = "\
What is erased or has outlived its time goes from a file's tables, and stays in its free pages until
they are written over. This writes the file anew, without them; it takes as much room again
meanwhile, and leaves the file as it was where it is cut short. A sidecar does the same by itself
when it is started, once the log names nobody who was erased. It also gives the file's free room
back to the disk: `consentd ledger status` says how much that is. The file must not be open in a
sidecar.";

#[derive(Args, Debug)]
pub(in crate::cli) struct CompactArgs {
    /// How long the ledger's log is kept, as for serve: what is older is removed first
    #[arg(long, env = "CONSENTD_LOG_RETENTION", value_name = "TIME", default_value = "24h",
          value_parser = humantime::parse_duration)]
    log_retention: Duration,
    #[command(flatten)]
    which: WhichArgs,
}

pub(super) fn compact(args: &CompactArgs) -> anyhow::Result<Verdict> {
    let address = args.which.address()?;
    let LedgerAddress::File(path) = &address else {
        bail!("{address} is no file: Redis frees what is erased by itself");
    };
    check_exists(path, &address)?;
    // Histories are left to the sidecar, which knows how long they are kept.
    let keep = Retention { log: args.log_retention, log_entries: u64::MAX, history: Duration::MAX };
    let CompactionReport { bytes_before, bytes_after, last_naming_entry } =
        Embedded::compact(path, keep, CACHE_BYTES)?;
    let until = last_naming_entry.map(|time| time.plus(args.log_retention).rfc3339_millis());
    if args.which.json {
        let told =
            json!({ "bytesBefore": bytes_before, "bytes": bytes_after, "namedUntil": until });
        print::line(&told.to_string())?;
        return Ok(Verdict::Yes);
    }
    print::line(&format!(
        "{address}: {} are {} now",
        HumanBytes(bytes_before),
        HumanBytes(bytes_after)
    ))?;
    if let Some(until) = until {
        print::line(&format!(
            "its log may name users who were erased until {until}: compact it again then, or start \
             a sidecar with it, which does"
        ))?;
    }
    Ok(Verdict::Yes)
}
