//! The table's status for operators, and its gauges.

use std::sync::Arc;
use std::time::Duration;

use super::Checker;
use crate::metrics::{PartitionGauges, TableGauges};
use crate::table::{Freshness, Table, Validity};
use consentd_core::businesses::Businesses;
use consentd_core::record::Revision;
use consentd_core::time::{Timestamp, clock_offset_warning};
use consentd_os::clock::Moment;

/// How many partitions the cause names.
const MAX_CAUSES: usize = 3;

/// The phase of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TablePhase {
    /// The first load is not complete.
    Loading,
    /// Valid, and proven within the maximum staleness.
    Live,
    /// Valid, but not proven within the maximum staleness.
    Stale,
    /// Known to be wrong, and being loaded again.
    Invalid,
}

/// The status of the table.
#[derive(Clone, Debug)]
pub struct TableStatus {
    /// The phase.
    pub phase: TablePhase,
    /// How long ago the table was proven to be current; zero while loading.
    pub staleness: Duration,
    /// The last applied revision; with several partitions, their sum.
    pub revision: Revision,
    /// The number of pairs.
    pub pairs: usize,
    /// Why the table is not live; empty if it is.
    pub cause: String,
    /// The ledger's clock, the latest one of several; this machine's while loading.
    pub now: Timestamp,
    /// What an operator should correct about the ledger or the clocks.
    pub warnings: Arc<[String]>,
    /// How many pairs have retained denials.
    pub remembered: u64,
    /// The businesses that the table holds.
    pub businesses: Arc<Businesses>,
    /// The last applied revision of each partition; 0 of those that are not followed.
    pub revisions: Vec<Revision>,
    /// The partitions that are followed, if there are several.
    pub partitions: Vec<PartitionStatus>,
}

/// The status of one partition's table.
#[derive(Clone, Debug)]
pub struct PartitionStatus {
    /// The partition's number.
    pub number: u32,
    /// The phase of its table.
    pub phase: TablePhase,
    /// How long ago it was proven to be current; zero while loading.
    pub staleness: Duration,
    /// Its last applied revision.
    pub revision: Revision,
    /// The number of its pairs.
    pub pairs: usize,
    /// Why it is not live; empty if it is.
    pub cause: String,
    /// How many of its pairs have retained denials.
    pub remembered: u64,
}

/// A partition's number and table, and how current that was when it was looked at.
type CurrentTable = (u32, Table, Freshness);

impl Checker {
    /// The tables as they are now. The clock is to be read after this.
    fn current_tables(&self) -> Vec<CurrentTable> {
        let current = |(number, table): (u32, Table)| {
            let freshness = table.freshness();
            (number, table, freshness)
        };
        self.tables.all().into_iter().map(current).collect()
    }

    /// The table's status.
    #[must_use]
    pub fn status(&self) -> TableStatus {
        let (tables, now) = (self.current_tables(), Moment::now());
        let partitions: Vec<_> = tables.iter().map(|table| self.partition(table, now)).collect();
        let worst = partitions.iter().map(|one| one.phase).max_by_key(|phase| severity(*phase));
        // A sidecar that holds no business follows no partition once it knows them, and lacks nothing.
        let phase = match worst.unwrap_or(TablePhase::Live) {
            // Some of the tables that it starts with are not there yet.
            TablePhase::Live | TablePhase::Stale if !self.tables.is_ready() => TablePhase::Loading,
            phase => phase,
        };
        let current = tables.iter().map(|(_, _, freshness)| freshness);
        let loaded = current.filter(|one| one.validity != Validity::Loading);
        let clocks = loaded.map(|one| one.ledger_clock(now));
        let mut warnings: Vec<String> = Vec::new();
        for (_, table, _) in &tables {
            let others = table.warnings();
            let new: Vec<_> =
                others.iter().filter(|one| !warnings.contains(one)).cloned().collect();
            warnings.extend(new);
        }
        let mut revisions = vec![0; usize::try_from(self.tables.partitions()).unwrap_or(0)];
        for one in &partitions {
            if let Some(slot) = usize::try_from(one.number).ok().and_then(|n| revisions.get_mut(n))
            {
                *slot = one.revision;
            }
        }
        let ahead = now.wall.as_millis().saturating_add(clock_offset(&tables));
        let ahead = Timestamp::saturating_from_millis(ahead);
        warnings.extend(clock_offset_warning(now.wall, ahead));
        TableStatus {
            phase,
            staleness: partitions.iter().map(|one| one.staleness).max().unwrap_or_default(),
            revision: partitions.iter().fold(0, |sum, one| one.revision.saturating_add(sum)),
            pairs: partitions.iter().map(|one| one.pairs).fold(0, usize::saturating_add),
            cause: joined_causes(&partitions, self.tables.is_divided()),
            now: clocks.max().unwrap_or(now.wall),
            warnings: warnings.into(),
            remembered: partitions.iter().fold(0, |sum, one| one.remembered.saturating_add(sum)),
            businesses: self.tables.businesses(),
            revisions,
            partitions: if self.tables.is_divided() { partitions } else { Vec::new() },
        }
    }

    fn partition(&self, table: &CurrentTable, now: Moment) -> PartitionStatus {
        let (number, table, freshness) = table;
        let staleness = staleness_of(freshness, now);
        let phase = match freshness.validity {
            Validity::Loading => TablePhase::Loading,
            Validity::Invalid => TablePhase::Invalid,
            Validity::Valid if staleness > self.max_staleness => TablePhase::Stale,
            Validity::Valid => TablePhase::Live,
        };
        let cause = match (phase, table.cause()) {
            (TablePhase::Live, _) => String::new(),
            (_, cause) if cause.is_empty() => no_proof_since(staleness),
            (_, cause) => cause,
        };
        let (pairs, remembered) = (table.pairs(), table.retained_pairs());
        PartitionStatus {
            number: *number,
            phase,
            staleness,
            revision: freshness.revision,
            pairs,
            cause,
            remembered,
        }
    }

    /// The gauges of the table.
    #[must_use]
    pub fn gauges(&self) -> TableGauges {
        let (tables, now) = (self.current_tables(), Moment::now());
        let gauges = |(number, table, freshness): &CurrentTable| {
            // An alert on staleness must see a table that never gets its first proof.
            let staleness = match freshness.validity {
                Validity::Loading => now.since(self.created),
                Validity::Valid | Validity::Invalid => freshness.staleness(now),
            };
            let (number, revision, pairs) = (*number, freshness.revision, table.pairs());
            let is_live = self.is_fresh(*freshness, now);
            PartitionGauges { number, staleness, revision, pairs, is_live }
        };
        let partitions: Vec<_> = tables.iter().map(gauges).collect();
        TableGauges {
            staleness: partitions.iter().map(|one| one.staleness).max().unwrap_or_default(),
            pairs: partitions.iter().map(|one| one.pairs).fold(0, usize::saturating_add),
            bytes: tables.iter().map(|(_, table, _)| table.bytes()).fold(0, usize::saturating_add),
            clock_offset: seconds(clock_offset(&tables)),
            remembered: tables
                .iter()
                .fold(0, |sum, (_, table, _)| table.retained_pairs().saturating_add(sum)),
            businesses: self.tables.businesses().ids().map_or(0, |ids| ids.len()),
            is_divided: self.tables.is_divided(),
            partitions,
        }
    }
}

/// How bad a phase is: while one partition is being loaded for the first time, some questions have no answer at all.
fn severity(phase: TablePhase) -> u8 {
    match phase {
        TablePhase::Live => 0,
        TablePhase::Stale => 1,
        TablePhase::Invalid => 2,
        TablePhase::Loading => 3,
    }
}

/// The greatest offset of the ledger's clocks to this machine's, either way, in milliseconds.
fn clock_offset(tables: &[CurrentTable]) -> i64 {
    let offsets = tables.iter().map(|(_, table, _)| table.clock_offset());
    offsets.max_by_key(|offset| offset.unsigned_abs()).unwrap_or(0)
}

/// Why the table is not live: the causes of a few partitions, by their numbers where there are several.
fn joined_causes(partitions: &[PartitionStatus], is_divided: bool) -> String {
    let caused = || partitions.iter().filter(|one| !one.cause.is_empty());
    if !is_divided {
        return caused().map(|one| one.cause.clone()).collect();
    }
    let mut shown: Vec<String> = caused()
        .take(MAX_CAUSES)
        .map(|one| format!("partition {}: {}", one.number, one.cause))
        .collect();
    let more = caused().count().saturating_sub(shown.len());
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown.join("; ")
}

/// The staleness; zero before the first proof.
fn staleness_of(freshness: &Freshness, now: Moment) -> Duration {
    match freshness.validity {
        Validity::Loading => Duration::ZERO,
        Validity::Valid | Validity::Invalid => freshness.staleness(now),
    }
}

/// The cause of a table that no longer gets proofs: in seconds, or in milliseconds below one second.
fn no_proof_since(staleness: Duration) -> String {
    let rounded = match staleness.as_secs() {
        0 => Duration::from_millis(u64::from(staleness.subsec_millis())),
        seconds => Duration::from_secs(seconds),
    };
    format!("no proof from the ledger for {}", humantime::format_duration(rounded))
}

fn seconds(millis: i64) -> f64 {
    let magnitude = Duration::from_millis(millis.unsigned_abs()).as_secs_f64();
    if millis < 0 { -magnitude } else { magnitude }
}
