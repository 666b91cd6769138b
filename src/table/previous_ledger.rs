//! The denials of a ledger that was followed before, until its pairs are known by their new keys.

use std::sync::Arc;

use dashmap::DashMap;

use super::{Pair, Shared};
use consentd_core::id::{Key, KeySecret};
use consentd_core::retained_denials::RetainedDenials;

/// The retained denials of a ledger whose keys were made with another secret. Its keys cannot be
/// converted: a pair is found once its ids come by.
pub(super) struct PreviousLedgerDenials {
    pub(super) secret: KeySecret,
    pub(super) pairs: DashMap<Key, Arc<RetainedDenials>>,
}

impl PreviousLedgerDenials {
    /// The denials of the pair with this key, or of its nameless pair; and the key that has them.
    pub(super) fn denials(&self, key: Key) -> Option<(Key, Arc<RetainedDenials>)> {
        let at = |key| self.pairs.get(&key).map(|denied| (key, Arc::clone(&denied)));
        at(key).or_else(|| at(self.secret.nameless(key)?))
    }
}

impl Shared {
    /// The retained denials of the pair in the previous ledger.
    pub(super) fn previous_ledger_denials(&self, pair: Pair) -> Option<Arc<RetainedDenials>> {
        let previous = self.previous_ledger.load();
        previous.as_ref()?.denials(pair.previous_key?).map(|(_, denied)| denied)
    }
}
