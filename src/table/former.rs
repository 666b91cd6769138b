//! A person who has two keys: the key of the id, and the one that versions before made of its notation.

use super::PairSummary;
use consentd_core::id::PhoneNumberId;

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
