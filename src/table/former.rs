//! A person who has two keys: the key of the id, and the one that versions before made of its notation.

use super::{Freshness, Pair, PairSummary, Table, UnreadablePair};
use consentd_core::id::PhoneNumberId;
use consentd_core::scope::Category;
use consentd_core::standing::Facts;

impl Table {
    /// The facts of a person from two pairs: the id's own, and the one under whose key versions before
    /// recorded it. The freshness is that of the first look-up, unless the table became invalid since.
    ///
    /// The caller must read the clock after this call. It allocates nothing.
    pub fn facts_joined(
        &self,
        pair: Pair,
        former: Pair,
        category: Category<'_>,
    ) -> (Result<Facts, UnreadablePair>, Freshness) {
        let (mut facts, freshness) = self.facts(pair, category);
        let freshness = self.join_former(&mut facts, former, category, freshness);
        (facts, freshness)
    }

    /// Joins the facts of the former pair to facts that were looked up before, at this freshness.
    pub fn join_former(
        &self,
        facts: &mut Result<Facts, UnreadablePair>,
        former: Pair,
        category: Category<'_>,
        freshness: Freshness,
    ) -> Freshness {
        let (former, later) = self.facts(former, category);
        *facts = facts.and_then(|facts| former.map(|former| facts.joined(former)));
        freshness.and(later.validity)
    }
}

impl PairSummary {
    /// Adds where marketing is stopped.
    pub(super) fn add_stops(&mut self, stops: impl IntoIterator<Item = Option<PhoneNumberId>>) {
        self.stops.extend(stops);
        self.stops.sort();
        self.stops.dedup();
    }

    /// What is known of one person from two pairs.
    pub(super) fn joined(mut self, other: Self) -> Self {
        self.last_inbound = self.last_inbound.max(other.last_inbound);
        for (own, more) in
            [(&mut self.opted_in, other.opted_in), (&mut self.opted_out, other.opted_out)]
        {
            own.extend(more);
            own.sort();
            own.dedup();
        }
        self.opted_in.retain(|scope| !self.opted_out.contains(scope));
        self.add_stops(other.stops);
        self.suppressed |= other.suppressed;
        // Of two caps the later one holds.
        self.failures.extend(other.failures);
        self.failures.sort_unstable_by(|a, b| (a.code, b.retry).cmp(&(b.code, a.retry)));
        self.failures.dedup_by_key(|failure| failure.code);
        self
    }
}
