//! The table's status for operators, and its gauges.

use std::sync::Arc;
use std::time::Duration;

use super::Checker;
use crate::metrics::TableGauges;
use crate::table::{Freshness, Validity};
use consentd_core::businesses::Businesses;
use consentd_core::record::Revision;
use consentd_core::time::{Timestamp, clock_offset_warning};
use consentd_os::clock::Moment;

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
    /// The last applied revision.
    pub revision: Revision,
    /// The number of pairs.
    pub pairs: usize,
    /// Why the table is not live; empty if it is.
    pub cause: String,
    /// The ledger's clock; this machine's while loading.
    pub now: Timestamp,
    /// What an operator should correct about the ledger or the clocks.
    pub warnings: Arc<[String]>,
    /// How many pairs have retained denials.
    pub remembered: u64,
    /// The businesses that the table holds.
    pub businesses: Arc<Businesses>,
}

impl Checker {
    /// The table's status.
    #[must_use]
    pub fn status(&self) -> TableStatus {
        let freshness = self.table.freshness();
        let staleness = staleness_of(&freshness);
        let phase = match freshness.validity {
            Validity::Loading => TablePhase::Loading,
            Validity::Invalid => TablePhase::Invalid,
            Validity::Valid if staleness > self.max_staleness => TablePhase::Stale,
            Validity::Valid => TablePhase::Live,
        };
        let cause = match (phase, self.table.cause()) {
            (TablePhase::Live, _) => String::new(),
            (_, cause) if cause.is_empty() => no_proof_since(staleness),
            (_, cause) => cause,
        };
        let now = Moment::now();
        let ledger_now = match freshness.validity {
            Validity::Loading => now.wall,
            Validity::Valid | Validity::Invalid => freshness.ledger_clock(now),
        };
        let mut warnings = self.table.warnings();
        let ahead = now.wall.as_millis().saturating_add(self.table.clock_offset());
        let ahead = Timestamp::saturating_from_millis(ahead);
        if let Some(warning) = clock_offset_warning(now.wall, ahead) {
            warnings = warnings.iter().cloned().chain([warning]).collect();
        }
        TableStatus {
            phase,
            staleness,
            revision: freshness.revision,
            pairs: self.table.pairs(),
            cause,
            now: ledger_now,
            warnings,
            remembered: self.table.retained_pairs(),
            businesses: self.table.businesses(),
        }
    }

    /// The gauges of the table.
    #[must_use]
    pub fn gauges(&self) -> TableGauges {
        let freshness = self.table.freshness();
        let now = Moment::now();
        let loaded = freshness.validity != Validity::Loading;
        TableGauges {
            // An alert on staleness must see a table that never gets its first proof.
            staleness: if loaded { freshness.staleness(now) } else { now.since(self.created) },
            revision: freshness.revision,
            pairs: self.table.pairs(),
            bytes: self.table.bytes(),
            clock_offset: seconds(self.table.clock_offset()),
            remembered: self.table.retained_pairs(),
            businesses: self.table.businesses().ids().map_or(0, |ids| ids.len()),
        }
    }
}

/// The staleness; zero before the first proof.
fn staleness_of(freshness: &Freshness) -> Duration {
    match freshness.validity {
        Validity::Loading => Duration::ZERO,
        Validity::Valid | Validity::Invalid => freshness.staleness(Moment::now()),
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
