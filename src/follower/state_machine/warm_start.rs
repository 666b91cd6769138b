//! The warm start: a snapshot of the table from which the log is followed.

use consentd_ledger::{Page, Position, Tail};

/// Why a snapshot is not used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WarmStartRefusal {
    /// It is another ledger's, or was written without that ledger's secret.
    #[error("it is another ledger's")]
    Foreign,
    /// The log was trimmed past it. Its denials may have been lifted since, so they are not retained
    /// as if the ledger had lost them.
    #[error("the ledger's log no longer holds what came after it")]
    Trimmed,
}

impl WarmStartRefusal {
    /// The refusal as a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Trimmed => "trimmed",
        }
    }
}

/// The position of a snapshot. Its pairs were read one by one while changes went on, so that it holds
/// all changes up to a first position, and some of those up to a second one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WarmStart {
    /// All changes up to this position are in the snapshot.
    pub from: Position,
    /// No change past this position is in the snapshot: once the log was replayed to here, the table
    /// holds a state that the ledger had.
    pub until: Position,
    /// How often an operator had accepted the ledger as it is.
    pub accepted: u64,
    /// The SHA-256 of the file's content.
    pub hash: [u8; 32],
    /// The hash's digest under the ledger's secret, which proves that the writer knew the secret.
    pub seal: [u8; 16],
}

impl WarmStart {
    /// Checks that the snapshot is of this page's ledger, was written with its secret, and that the
    /// log continues it.
    ///
    /// A snapshot ahead of the ledger passes, so that the fork is detected and its denials retained.
    ///
    /// # Errors
    ///
    /// Why the snapshot cannot be used.
    pub(super) fn check(&self, page: &Page) -> Result<(), WarmStartRefusal> {
        let identity = &page.identity;
        let same = self.from.epoch == identity.epoch && self.until.epoch == identity.epoch;
        if !same || identity.secret.digest(&self.hash) != self.seal {
            return Err(WarmStartRefusal::Foreign);
        }
        let ahead = page.end.revision < self.until.revision;
        if page.tail == Tail::Trimmed && !ahead { Err(WarmStartRefusal::Trimmed) } else { Ok(()) }
    }
}
