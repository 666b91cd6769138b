//! Pairs whose keys name no business, in a ledger whose other keys do.
//!
//! A copy that re-keys a ledger learns a pair's business from its names. Some have none left: those of erased
//! people, and those of which only expired events were known. Their keys get the tag
//! [`NAMELESS`](consentd_core::id::BusinessTag::NAMELESS), so that every reader can derive them from the
//! pair's own key, and knows that it must hold them whichever businesses it holds.
//!
//! A nameless record counts for a pair that has no record of its own. The first event that is recorded of the
//! pair continues it under the pair's own key, and from then on the nameless one counts no more. Nothing but
//! an erasure ever changes it, so that the comparison with "no record" protects that step like any other.

use super::{
    AppendReceipt, Appended, Change, Ledger, LedgerError, Read, StoredRecord, UnreadableRecord,
};
use consentd_core::id::Key;
use consentd_core::record::{Erased, Record};
use consentd_core::time::Timestamp;

type Stored = Result<StoredRecord, UnreadableRecord>;

impl Ledger {
    /// Reads pairs' records and the ledger's clock. A pair without a record has that of its nameless pair, if
    /// there is one, with the version of a pair without a record.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] if it cannot be read.
    pub async fn read(&self, keys: Vec<Key>) -> Result<Read, LedgerError> {
        if keys.is_empty() || !self.identity_of_any().await?.has_nameless {
            return self.read_own(keys).await;
        }
        let mut read = self.read_own(keys.clone()).await?;
        let pairs = keys.into_iter().zip(&mut read.pairs);
        self.complete(pairs.collect()).await?;
        Ok(read)
    }

    /// Appends like [`append`](Self::append), and returns receipts. By their versions,
    /// [`FollowerPosition`](super::FollowerPosition) detects whether the follower has applied these
    /// very changes, or others with the same revisions.
    ///
    /// # Errors
    ///
    /// The same as for [`append`](Self::append).
    pub async fn append_with_receipts(
        &self,
        changes: Vec<Change>,
    ) -> Result<Vec<AppendReceipt>, LedgerError> {
        if !self.identity_of_any().await?.has_nameless {
            return self.append_own(changes).await;
        }
        let keys: Vec<_> = changes.iter().map(|change| change.key).collect();
        let mut receipts = self.append_own(changes).await?;
        let conflicts = keys.into_iter().zip(&mut receipts).filter_map(|(key, receipt)| {
            match &mut receipt.outcome {
                Appended::Conflict(stored) => Some((key, stored)),
                Appended::Committed(_) | Appended::Failed(_) => None,
            }
        });
        self.complete(conflicts.collect()).await?;
        Ok(receipts)
    }

    /// Gives those of these pairs that have no record the record of their nameless pair.
    async fn complete(&self, pairs: Vec<(Key, &mut Stored)>) -> Result<(), LedgerError> {
        let is_missing =
            |stored: &Stored| stored.as_ref().is_ok_and(|stored| stored.version.revision == 0);
        let missing = pairs.into_iter().filter(|(_, stored)| is_missing(stored));
        let secret = &self.identity_of_any().await?.secret;
        let missing: Vec<_> =
            missing.filter_map(|(key, stored)| Some((secret.nameless(key)?, stored))).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let read = self.read_own(missing.iter().map(|(key, _)| *key).collect()).await?;
        for ((_, stored), nameless) in missing.into_iter().zip(read.pairs) {
            *stored = nameless.map(|found| StoredRecord {
                record: continued(found.record),
                ..StoredRecord::default()
            });
        }
        Ok(())
    }

    async fn read_own(&self, keys: Vec<Key>) -> Result<Read, LedgerError> {
        match self {
            Self::Embedded(ledger) => ledger.read(keys).await,
            Self::Redis(ledger) => ledger.read(keys).await,
        }
    }

    async fn append_own(&self, changes: Vec<Change>) -> Result<Vec<AppendReceipt>, LedgerError> {
        match self {
            Self::Embedded(ledger) => {
                let appended = ledger.append(changes).await?;
                Ok(appended.into_iter().map(AppendReceipt::unforked).collect())
            }
            Self::Redis(ledger) => ledger.append(changes).await,
        }
    }
}

/// The record as the first one under the pair's own key. Its history stays where it is, and is continued from
/// its length and its chain's head, as after an erasure; but no event is too old to be recorded.
fn continued(record: Record) -> Record {
    if record.history_len == 0 {
        return record;
    }
    let time = record.erased.as_ref().map_or(Timestamp::MIN, |erased| erased.time);
    let (history_len, chain) = (record.history_len, record.chain);
    Record { erased: Some(Box::new(Erased { time, history_len, chain })), ..record }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continued_record_keeps_its_state_and_takes_events_of_any_time() {
        let (chain, time) = ([5; 32], Timestamp::from_millis(9).unwrap());
        let mut record = Record { history_len: 3, chain, ..Record::default() };
        record.state.last_inbound = Some(time);
        let mut continued_one = continued(record.clone());
        assert_eq!(continued_one.history_start(), (3, chain));
        assert_eq!(continued_one.erased.as_ref().map(|erased| erased.time), Some(Timestamp::MIN));
        continued_one.erased = None;
        assert_eq!(continued_one, record);
        let tombstone = record.tombstone(time);
        assert_eq!(continued(tombstone.clone()), tombstone, "it is one already");
        assert_eq!(continued(Record::default()), Record::default());
    }
}
