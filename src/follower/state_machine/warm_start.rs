//! A table that was saved before: from where the log is followed, where nothing else was.

use consentd_ledger::{Page, Position, Tail};

/// Why a saved table is not used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WarmStartRefusal {
    /// It is another ledger's, or was written by one who does not know its secret.
    #[error("it is another ledger's")]
    Foreign,
    /// It is too old to be caught up. What it denied may have been lifted since, so it is not
    /// taken for something that the ledger lost either.
    #[error("the ledger's log no longer holds what came after it")]
    Trimmed,
}

impl WarmStartRefusal {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Trimmed => "trimmed",
        }
    }
}

/// Where a saved table stands. Its pairs were read one after the other while changes went on, so
/// that it holds all up to a first position, and of what came then up to a second one some.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WarmStart {
    /// What it holds for certain.
    pub from: Position,
    /// What it holds at the most: once the log was followed to here, it is a state that the ledger
    /// had.
    pub until: Position,
    /// How often an operator had accepted the ledger as it is.
    pub accepted: u64,
    /// The hash of all that was saved.
    pub hash: [u8; 32],
    /// That, under the ledger's secret: none but who knows it can have written the table.
    pub seal: [u8; 16],
}

impl WarmStart {
    /// Whether it is of the ledger that this page is of, was written by one who knows that one's
    /// secret, and can be caught up from there, or is ahead of it.
    ///
    /// # Errors
    ///
    /// Why it is of no use.
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
