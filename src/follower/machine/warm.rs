//! A table that was saved before: from where the log is followed, where nothing else was.

use crate::ledger::{Identity, Position};

/// Where a saved table stands. Its pairs were read one after the other while changes went on, so
/// that it holds all up to a first position, and of what came then up to a second one some.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Warm {
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

impl Warm {
    /// Whether it is of this ledger, and was written by one who knows its secret.
    #[must_use]
    pub fn is_of(&self, identity: &Identity) -> bool {
        self.from.epoch == identity.epoch
            && self.until.epoch == identity.epoch
            && identity.secret.digest(&self.hash) == self.seal
    }
}
