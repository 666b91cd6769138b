//! Clock skew: the times that clamped events claimed, by which their repeats are recognised.

use std::time::Duration;

use super::time::Timestamp;

/// The most claims of a pair. The oldest ones are merged into one range.
const MAX_CLAIMS: usize = 8;

/// Allows that claimed these times were clamped to this moment.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Claim {
    /// The earliest claimed time.
    pub from: Timestamp,
    /// The latest claimed time, inclusive. It equals `from` if one event was clamped.
    pub until: Timestamp,
    /// The ledger's clock when the first of the events was recorded.
    pub moment: Timestamp,
}

/// The claims that a pair remembers, which make clamped events idempotent.
///
/// An allow whose time is ahead of the ledger's clock counts as of the moment at which it is recorded.
/// Once its own time has passed, a repeat would count as of that time, and would lift a denial from in
/// between. So the pair remembers both times, and an event of the claimed time counts as of the first
/// moment. The number of claims is bounded: the two oldest are merged into a range whose events count
/// as of the earlier moment, which can only deny too much.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Claims(Vec<Claim>);

impl Claims {
    /// Adds a claim. Returns whether it was new: whether an event of a claimed time now counts as of an
    /// earlier moment than before.
    pub fn add(&mut self, claim: Claim) -> bool {
        let implies_claim = |known: &Claim| {
            known.from <= claim.from && known.until >= claim.until && known.moment <= claim.moment
        };
        if self.0.iter().any(implies_claim) {
            return false;
        }
        let place = self.0.partition_point(|known| *known < claim);
        self.0.insert(place, claim);
        if let [first, second, ..] = self.0[..]
            && self.0.len() > MAX_CLAIMS
        {
            // Two claims of one time become a range, too, so that it shows that a moment was merged away.
            let until =
                first.until.max(second.until).max(first.from.plus(Duration::from_millis(1)));
            let moment = first.moment.min(second.moment);
            self.0.splice(..2, [Claim { until, moment, ..first }]);
        }
        true
    }

    /// The moment as of which an allow of this time counts, if one of that time was clamped before.
    #[must_use]
    pub fn moment_of(&self, time: Timestamp) -> Option<Timestamp> {
        let known = self.0.iter().filter(|known| (known.from..=known.until).contains(&time));
        known.map(|known| known.moment).min()
    }

    /// Whether an allow may have been clamped to this moment. Of the claims that were merged into a range
    /// only the earliest moment is known: the others lie between that one and the end of the range.
    #[must_use]
    pub fn may_clamp_to(&self, moment: Timestamp) -> bool {
        self.0.iter().any(|known| {
            let is_range = known.from < known.until;
            known.moment == moment || is_range && (known.moment..=known.until).contains(&moment)
        })
    }

    /// The latest claimed time.
    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        self.iter().map(|claim| claim.until).max()
    }

    /// All claims, ordered by claimed time.
    pub fn iter(&self) -> impl Iterator<Item = Claim> {
        self.0.iter().copied()
    }

    /// The claims of both.
    #[must_use]
    pub fn join(mut self, other: &Self) -> Self {
        for claim in other.iter() {
            self.add(claim);
        }
        self
    }
}

impl Claim {
    /// The claim to assume if only the moment is known: the sender's clock was ahead by anything up to
    /// `ahead`.
    #[must_use]
    pub fn up_to(moment: Timestamp, ahead: Duration) -> Self {
        Self { from: moment, until: moment.plus(ahead), moment }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    fn claim(own: i64, moment: i64) -> Claim {
        Claim { from: at(own), until: at(own), moment: at(moment) }
    }

    #[test]
    fn claimed_time_counts_as_of_its_first_moment() {
        let mut claims = Claims::default();
        assert_eq!(claims.moment_of(at(50)), None);
        assert!(claims.add(claim(50, 10)));
        assert!(!claims.add(claim(50, 20)), "a repeat is no news");
        assert_eq!(claims.moment_of(at(50)), Some(at(10)));
        assert!(claims.add(claim(50, 5)), "the earliest moment counts");
        assert_eq!(claims.moment_of(at(50)), Some(at(5)));
        assert_eq!(claims.moment_of(at(51)), None);
        assert_eq!(claims.latest(), Some(at(50)));
    }

    #[test]
    fn older_claims_become_a_range_of_the_earliest_moment() {
        let mut claims = Claims::default();
        let count = i64::try_from(MAX_CLAIMS).unwrap() + 2;
        for n in 0..count {
            claims.add(claim(100 + 10 * n, n));
        }
        assert_eq!(claims.iter().count(), MAX_CLAIMS);
        let oldest = Claim { from: at(100), until: at(120), moment: at(0) };
        assert_eq!(claims.iter().next(), Some(oldest));
        for n in 0..count {
            let moment = claims.moment_of(at(100 + 10 * n)).unwrap();
            assert!(moment <= at(n), "{n} counts as of {moment:?}");
        }
        assert_eq!(claims.moment_of(at(110 + 10 * count)), None);
    }

    proptest! {
        #[test]
        fn no_merge_hides_a_moment(
            claims in proptest::collection::vec((0..40_i64, 1..40_i64), 1..30),
        ) {
            let mut known = Claims::default();
            let mut moments = Vec::new();
            for (moment, ahead) in claims {
                // As a recorder does: an event of a claimed time counts as of the first moment.
                let own = at(moment + ahead);
                let moment = known.moment_of(own).unwrap_or(own).min(at(moment));
                known.add(Claim { from: own, until: own, moment });
                moments.push(moment);
                for moment in &moments {
                    prop_assert!(known.may_clamp_to(*moment), "{moment:?}: {known:?}");
                }
            }
        }
    }

    #[test]
    fn moment_of_a_single_claim_is_exact() {
        let mut claims = Claims::default();
        claims.add(claim(50, 10));
        assert_eq!(
            [9, 10, 11, 50].map(|time| claims.may_clamp_to(at(time))),
            [false, true, false, false]
        );
    }

    #[test]
    fn range_between_known_times_is_new() {
        let mut claims = Claims::default();
        claims.add(claim(10, 1));
        claims.add(claim(30, 2));
        let range = Claim { from: at(10), until: at(30), moment: at(2) };
        assert!(claims.add(range));
        assert_eq!(claims.moment_of(at(20)), Some(at(2)), "what lies between the two is claimed");
        assert_eq!(claims.moment_of(at(10)), Some(at(1)), "and the earlier moment still counts");
        assert!(!claims.add(range));
        assert!(!claims.add(claim(20, 5)), "a time within a range is known");
    }

    #[test]
    fn joined_claims_hold_both() {
        let mut one = Claims::default();
        one.add(claim(50, 10));
        let mut other = Claims::default();
        other.add(Claim::up_to(at(20), Duration::from_millis(5)));
        let both = one.join(&other);
        assert_eq!(
            [25, 26, 50].map(|time| both.moment_of(at(time))),
            [Some(at(20)), None, Some(at(10))]
        );
    }
}
