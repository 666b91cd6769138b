//! Finds opt-ins that expire, or that wait for their confirmation.
//!
//! Records state when opt-ins expire but do not name the user; histories do. So records are read
//! bucket by bucket, and only the histories of pairs with a matching opt-in.

use std::ops::Range;

use super::ReadError;
use consentd_core::expiring_opt_ins::{ExpiringOptIn, expiring, unconfirmed};
use consentd_core::id::Key;
use consentd_core::record::HistoryEntry;
use consentd_core::state::State;
use consentd_core::time::Timestamp;
use consentd_ledger::{Ledger, LedgerError, Partition};

/// Which opt-ins to find.
#[derive(Clone, Debug)]
pub struct OptInFilter {
    /// Opt-ins that expire within this time.
    pub span: Range<Timestamp>,
    /// If set, also opt-ins that wait for their confirmation at this time.
    pub unconfirmed_at: Option<Timestamp>,
}

impl OptInFilter {
    fn matching(&self, state: &State) -> Vec<ExpiringOptIn> {
        let unconfirmed = self.unconfirmed_at.map(|now| unconfirmed(state, now));
        expiring(state, &self.span).into_iter().chain(unconfirmed.into_iter().flatten()).collect()
    }
}

/// The matching opt-ins of the pairs in one bucket of a partition, each with the event that recorded it.
///
/// # Errors
///
/// [`ReadError`] if the ledger, or the record or the history of a pair, cannot be read.
pub async fn in_bucket(
    ledger: &Ledger,
    partition: &Partition,
    bucket: u32,
    filter: &OptInFilter,
) -> Result<Vec<(ExpiringOptIn, HistoryEntry)>, ReadError> {
    let mut found = Vec::new();
    for (key, record) in partition.bucket_in_turn(bucket).await?.pairs {
        let opt_ins = filter.matching(&record?.state);
        if !opt_ins.is_empty() {
            found.extend(with_events(ledger, key, opt_ins).await?);
        }
    }
    Ok(found)
}

/// Adds to each opt-in of a pair the event that recorded it.
async fn with_events(
    ledger: &Ledger,
    key: Key,
    opt_ins: Vec<ExpiringOptIn>,
) -> Result<Vec<(ExpiringOptIn, HistoryEntry)>, LedgerError> {
    let history = ledger.history(key).await?;
    let mut found = Vec::with_capacity(opt_ins.len());
    for opt_in in opt_ins {
        let recorded = |entry: &HistoryEntry| {
            entry.what.effects(entry.time).iter().any(|effect| opt_in.is_effect(effect))
        };
        match history.entries.iter().rev().find(|(_, entry)| recorded(entry)) {
            Some((_, entry)) => found.push((opt_in, entry.clone())),
            // Opt-ins are never deleted, but the user may have been erased since the record was read.
            None if history.record.state.scopes.is_empty() => {}
            None => return Err(LedgerError::Damaged("an opt-in has no history entry")),
        }
    }
    Ok(found)
}
