//! Finding the opt-ins that lapse.
//!
//! Records say when opt-ins lapse, and are read bucket by bucket, as a sidecar's first snapshot is;
//! what names the user is in the histories, of which only those of pairs that are due are read.

use std::ops::Range;

use super::{Recorder, Refusal};
use consentd_core::due::{Due, lapsing, waiting};
use consentd_core::id::Key;
use consentd_core::record::HistoryEntry;
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_ledger::LedgerError;

/// Which opt-ins are looked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Those that lapse within it.
    pub span: Range<Timestamp>,
    /// Those, too, that wait for their confirmation at this moment.
    pub waiting: Option<Timestamp>,
}

impl Wanted {
    fn of(&self, state: &State) -> Vec<Due> {
        let waiting = self.waiting.map(|now| waiting(state, now));
        lapsing(state, &self.span).into_iter().chain(waiting.into_iter().flatten()).collect()
    }
}

/// An opt-in that was looked for, and the event that gave it.
pub type Found = (Due, HistoryEntry);

impl Recorder {
    /// How many buckets there are to be looked through.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the ledger cannot be read.
    pub async fn buckets(&self) -> Result<u32, Refusal> {
        Ok(self.ledger.identity().await?.buckets)
    }

    /// The ledger's clock.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the ledger cannot be read.
    pub async fn clock(&self) -> Result<Timestamp, Refusal> {
        Ok(self.ledger.read(Vec::new()).await?.clock)
    }

    /// The opt-ins of one bucket's pairs.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the ledger cannot be read, or the record or the history of a pair cannot.
    pub async fn due(&self, bucket: u32, wanted: &Wanted) -> Result<Vec<Found>, Refusal> {
        let mut found = Vec::new();
        for (key, record) in self.ledger.bucket(bucket).await?.pairs {
            let due = wanted.of(&record?.state);
            if !due.is_empty() {
                self.name(key, due, &mut found).await?;
            }
        }
        Ok(found)
    }

    /// Finds the events that gave these opt-ins.
    async fn name(&self, key: Key, due: Vec<Due>, found: &mut Vec<Found>) -> Result<(), Refusal> {
        let history = self.ledger.history(key).await?;
        for due in due {
            let gave = |entry: &HistoryEntry| {
                entry.what.effects(entry.time).iter().any(|effect| due.is_given_by(effect))
            };
            match history.entries.iter().rev().find(|(_, entry)| gave(entry)) {
                Some((_, entry)) => found.push((due, entry.clone())),
                // Opt-ins are kept for good, unless the user was erased since the record was read.
                None if history.record.state.scopes.is_empty() => {}
                None => return Err(LedgerError::Damaged("an opt-in has no history entry").into()),
            }
        }
        Ok(())
    }
}
