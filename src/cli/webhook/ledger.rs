//! What was recorded lately of each business, from the ledger's log.

use std::collections::BTreeMap;

use super::super::ledger::with_ledger;
use crate::config::LedgerAddress;
use consentd_core::record::Revision;
use consentd_core::time::Timestamp;
use consentd_ledger::{Ledger, LogBody, OpenError, Partition, Tail};

/// The most changes of the log that are read, the latest ones.
const MAX_CHANGES: u64 = 100_000;

/// What the ledger says.
#[derive(Debug)]
pub(super) struct Recorded {
    /// The ledger's address, without credentials.
    pub(super) address: String,
    /// What was read; or why nothing was, if the file belongs to a running sidecar.
    pub(super) log: Result<RecentLog, String>,
}

/// The latest changes of the log.
#[derive(Debug, Default)]
pub(super) struct RecentLog {
    /// When the earliest of them was recorded.
    pub(super) since: Option<Timestamp>,
    /// What they say of each business.
    pub(super) businesses: BTreeMap<String, BusinessLog>,
}

/// What the pairs say that changed lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BusinessLog {
    /// How many changes there were.
    pub(super) changes: u64,
    /// The latest message or call of a user.
    pub(super) last_inbound: Option<Timestamp>,
    /// The latest stop or resume inside WhatsApp.
    pub(super) last_preference: Option<Timestamp>,
}

/// Reads the end of the log.
///
/// # Errors
///
/// If the ledger cannot be read, other than because a running sidecar has its file.
pub(super) async fn read(address: &LedgerAddress) -> anyhow::Result<Recorded> {
    let log = with_ledger(address, async |ledger: &Ledger| read_log(ledger).await).await;
    let log = match log {
        Ok(log) => Ok(log),
        Err(error) if matches!(error.downcast_ref(), Some(OpenError::InUse { .. })) => {
            Err("the sidecar that has the file is running, and nothing else can read it".to_owned())
        }
        Err(error) => return Err(error),
    };
    Ok(Recorded { address: address.to_string(), log })
}

async fn read_log(ledger: &Ledger) -> anyhow::Result<RecentLog> {
    let mut log = RecentLog::default();
    let partitions = ledger.partitions().await?;
    let most = MAX_CHANGES / u64::try_from(partitions.len()).unwrap_or(1).max(1);
    for partition in partitions {
        read_partition(&partition, most, &mut log).await?;
    }
    Ok(log)
}

/// Reads the last changes of a partition, at most this many.
async fn read_partition(
    partition: &Partition,
    most: u64,
    log: &mut RecentLog,
) -> anyhow::Result<()> {
    let end = partition.read_after(Revision::MAX).await?.end.revision;
    let mut after = end.saturating_sub(most);
    while after < end {
        match partition.read_after(after).await?.tail {
            Tail::Entries(entries) if entries.is_empty() => break,
            Tail::Entries(entries) => {
                for entry in entries {
                    after = entry.revision;
                    if let Ok(body) = &entry.body {
                        log.add(body);
                    }
                }
            }
            // The log is shorter: the beginning is looked for by halves.
            Tail::Trimmed => after = after.saturating_add((end - after).div_ceil(2)),
        }
    }
    Ok(())
}

impl RecentLog {
    fn add(&mut self, body: &LogBody) {
        self.since = Some(self.since.map_or(body.record_time, |since| since.min(body.record_time)));
        let Ok(record) = &body.record else { return };
        if body.business_id.is_empty() {
            return;
        }
        let business = self.businesses.entry(body.business_id.clone()).or_default();
        business.changes += 1;
        let state = &record.state;
        business.last_inbound = business.last_inbound.max(state.last_inbound);
        let preference = state.platform.latest();
        business.last_preference = business.last_preference.max(preference);
    }
}
