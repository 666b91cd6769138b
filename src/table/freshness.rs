//! Whether what a look-up found can be used, and how current it is.

use std::time::Duration;

use consentd_core::record::Revision;
use consentd_core::time::{Clock, Timestamp};
use consentd_os::clock::Moment;

/// Whether the table's content can be used, whatever its age.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Validity {
    /// The first load is not complete.
    Loading,
    /// The table holds a state that the ledger had.
    Valid,
    /// The table is known to be wrong, and is being loaded again.
    Invalid,
}

impl Validity {
    /// The worse of two: nothing can be said of a table that was never loaded.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        match (self, other) {
            (Self::Loading, _) | (_, Self::Loading) => Self::Loading,
            (Self::Invalid, _) | (_, Self::Invalid) => Self::Invalid,
            (Self::Valid, Self::Valid) => Self::Valid,
        }
    }
}

/// How current the table was at a look-up.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// The validity.
    pub validity: Validity,
    /// The moment at which the table last had all that the ledger had.
    pub(super) proven: Moment,
    /// The ledger's clock less this machine's time since boot, in milliseconds: the least and the greatest of the
    /// clocks of the partitions that were read.
    pub(super) ledger_offsets: [i64; 2],
    /// The last applied revision.
    pub revision: Revision,
}

impl Freshness {
    /// How long ago the table was proven to have everything.
    #[must_use]
    pub fn staleness(&self, now: Moment) -> Duration {
        now.since(self.proven)
    }

    /// The ledger's clock at `now`: its last known reading, plus the time since. The latest one of the partitions
    /// that were read.
    #[must_use]
    pub fn ledger_clock(&self, now: Moment) -> Timestamp {
        let [_, latest] = self.ledger_clocks(now);
        latest
    }

    /// The clocks at `now`: this machine's, and those of the partitions that were read.
    #[must_use]
    pub fn clock(&self, now: Moment) -> Clock {
        let [earliest, latest] = self.ledger_clocks(now);
        Clock { earliest: earliest.min(now.wall), latest: latest.max(now.wall) }
    }

    fn ledger_clocks(&self, now: Moment) -> [Timestamp; 2] {
        let boot = i64::try_from(now.boot.as_millis()).unwrap_or(i64::MAX);
        self.ledger_offsets
            .map(|offset| Timestamp::saturating_from_millis(boot.saturating_add(offset)))
    }

    /// How current an answer is that rests on another look-up, too, perhaps in another partition: the worst
    /// validity, the oldest proof, and the clocks of both. The revision stays that of this one.
    #[must_use]
    pub fn joined(self, other: Self) -> Self {
        let [earliest, latest] = self.ledger_offsets;
        let [other_earliest, other_latest] = other.ledger_offsets;
        Self {
            validity: self.validity.worse(other.validity),
            proven: Moment {
                boot: self.proven.boot.min(other.proven.boot),
                wall: self.proven.wall.min(other.proven.wall),
            },
            ledger_offsets: [earliest.min(other_earliest), latest.max(other_latest)],
            revision: self.revision,
        }
    }

    /// How current an answer is that rests on this look-up and on an earlier one in the same table: it is as of the
    /// earlier one.
    #[must_use]
    pub fn as_of_earlier(self, earlier: Self) -> Self {
        Self { revision: earlier.revision.min(self.revision), ..self.joined(earlier) }
    }
}
