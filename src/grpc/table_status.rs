//! Converts the status of the table, and of its partitions.

use super::convert::{duration, timestamp};
use super::pb;
use crate::checker::{PartitionStatus, TablePhase, TableStatus};

/// The most held businesses that the status names.
const MAX_BUSINESSES: usize = 1_000;

/// Converts the status of the table.
pub(super) fn status(status: TableStatus, ledger: String) -> pb::GetStatusResponse {
    let held = status.businesses.ids();
    let business_count = held.as_ref().map_or(0, ExactSizeIterator::len);
    pb::GetStatusResponse {
        phase: phase(status.phase).into(),
        staleness: Some(duration(status.staleness)),
        revision: status.revision,
        pairs: u64::try_from(status.pairs).unwrap_or(u64::MAX),
        ledger,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        partition_revisions: status.revisions,
        cause: status.cause,
        current_time: Some(timestamp(status.now)),
        warnings: status.warnings.iter().map(ToString::to_string).collect(),
        remembered_pairs: status.remembered,
        businesses: held.into_iter().flatten().take(MAX_BUSINESSES).map(str::to_owned).collect(),
        business_count: u64::try_from(business_count).unwrap_or(u64::MAX),
        partitions: status.partitions.into_iter().map(partition).collect(),
    }
}

fn phase(phase: TablePhase) -> pb::get_status_response::Phase {
    use pb::get_status_response::Phase as Pb;
    match phase {
        TablePhase::Loading => Pb::Loading,
        TablePhase::Live => Pb::Live,
        TablePhase::Stale => Pb::Stale,
        TablePhase::Invalid => Pb::Invalid,
    }
}

fn partition(status: PartitionStatus) -> pb::PartitionStatus {
    pb::PartitionStatus {
        number: status.number,
        phase: phase(status.phase).into(),
        staleness: Some(duration(status.staleness)),
        revision: status.revision,
        pairs: u64::try_from(status.pairs).unwrap_or(u64::MAX),
        cause: status.cause,
        remembered_pairs: status.remembered,
    }
}
