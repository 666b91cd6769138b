//! The facts of one person who has two keys.

use super::{Facts, Standing};
use crate::time::Timestamp;

impl Facts {
    /// What is known of one person from two pairs: the id's own, and that of the key which versions
    /// before gave to the id ([`user_id`](crate::user_id)).
    ///
    /// Which of the two was said later is unknown, so that a denial of either counts, and what allows
    /// counts where neither denies.
    #[must_use]
    pub fn joined(self, other: Self) -> Self {
        let (later, earlier) =
            if self.last_inbound >= other.last_inbound { (self, other) } else { (other, self) };
        let is_same_time = later.last_inbound == earlier.last_inbound;
        Self {
            standing: self.standing.joined(other.standing),
            suppressed: self.suppressed || other.suppressed,
            platform_stopped: self.platform_stopped || other.platform_stopped,
            capped: self.capped.max(other.capped),
            last_inbound: later.last_inbound,
            window_closed: later.window_closed || (is_same_time && earlier.window_closed),
            failures: self.failures.union(other.failures),
        }
    }
}

impl Standing {
    /// The stricter of two standings of one person; no standing is replaced by any.
    fn joined(self, other: Self) -> Self {
        // Of two times the earlier; none is without end.
        let sooner = |a: Option<Timestamp>, b: Option<Timestamp>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        match (self, other) {
            (Self::None, standing) | (standing, Self::None) => standing,
            (Self::OptedOut, _) | (_, Self::OptedOut) => Self::OptedOut,
            (Self::OptedOutAll { answerable: a }, Self::OptedOutAll { answerable: b }) => {
                Self::OptedOutAll { answerable: a && b }
            }
            (Self::OptedOutAll { .. }, _) | (_, Self::OptedOutAll { .. }) => {
                Self::OptedOutAll { answerable: false }
            }
            (
                Self::PendingOverOptOut { answerable: a },
                Self::PendingOverOptOut { answerable: b },
            ) => Self::PendingOverOptOut { answerable: a && b },
            (Self::PendingOverOptOut { .. }, _) | (_, Self::PendingOverOptOut { .. }) => {
                Self::OptedOut
            }
            (
                Self::OptedInOverOptOut { expire: a, all: over_a },
                Self::OptedInOverOptOut { expire: b, all: over_b },
            ) => Self::OptedInOverOptOut { expire: a.min(b), all: over_a || over_b },
            (Self::OptedInOverOptOut { expire, all }, Self::OptedIn { expire: end })
            | (Self::OptedIn { expire: end }, Self::OptedInOverOptOut { expire, all }) => {
                Self::OptedInOverOptOut { expire: end.map_or(expire, |end| expire.min(end)), all }
            }
            (lapsing @ Self::OptedInOverOptOut { .. }, Self::Pending)
            | (Self::Pending, lapsing @ Self::OptedInOverOptOut { .. }) => lapsing,
            (Self::OptedIn { expire: a }, Self::OptedIn { expire: b }) => {
                Self::OptedIn { expire: sooner(a, b) }
            }
            (opted_in @ Self::OptedIn { .. }, Self::Pending)
            | (Self::Pending, opted_in @ Self::OptedIn { .. }) => opted_in,
            (Self::Pending, Self::Pending) => Self::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::{Form, Policy, Proof, decide};
    use crate::failure::UserFailures;
    use crate::scope::Class;
    use crate::time::Clock;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + millis).unwrap()
    }

    /// Facts of every kind, around this moment.
    fn every() -> Vec<Facts> {
        let (past, future) = (at(-1), at(1_000_000));
        let mut standings = vec![Standing::None, Standing::Pending, Standing::OptedOut];
        for expire in [None, Some(past), Some(future)] {
            standings.push(Standing::OptedIn { expire });
        }
        for flag in [false, true] {
            standings.push(Standing::PendingOverOptOut { answerable: flag });
            standings.push(Standing::OptedOutAll { answerable: flag });
            for expire in [past, future] {
                standings.push(Standing::OptedInOverOptOut { expire, all: flag });
            }
        }
        let mut all = Vec::new();
        for standing in standings {
            for bits in 0..8 {
                for last_inbound in [None, Some(at(-1_000))] {
                    // Who wrote after an opt-out has written.
                    let answerable = matches!(
                        standing,
                        Standing::OptedOutAll { answerable: true }
                            | Standing::PendingOverOptOut { answerable: true }
                    );
                    if answerable && last_inbound.is_none() {
                        continue;
                    }
                    all.push(Facts {
                        standing,
                        suppressed: bits & 1 != 0,
                        platform_stopped: bits & 2 != 0,
                        capped: (bits & 4 != 0).then(|| at(-10)),
                        last_inbound,
                        window_closed: false,
                        failures: UserFailures::NONE,
                    });
                }
            }
        }
        all
    }

    #[test]
    fn what_either_denies_is_denied_and_nothing_known_changes_nothing() {
        let decided = |facts: &Facts, class, form| {
            decide(facts, class, form, &Policy::default(), Clock::at(at(0)), Proof::Fresh)
        };
        let (mut denied, mut allowed) = (0, 0);
        for a in every() {
            assert_eq!(a.joined(Facts::NOTHING), a);
            assert_eq!(Facts::NOTHING.joined(a), a);
            for b in every() {
                let both = a.joined(b);
                assert_eq!(both, b.joined(a));
                for class in [Class::Marketing, Class::Utility] {
                    for form in [Form::Template, Form::FreeForm] {
                        let either = [&a, &b].map(|one| decided(one, class, form));
                        let joined = decided(&both, class, form);
                        if joined.allowed() {
                            allowed += 1;
                            assert!(
                                either.iter().any(crate::decision::Decision::allowed),
                                "{a:?} {b:?}"
                            );
                            assert!(
                                !either.iter().any(|one| one.reason.is_denial_by_events()),
                                "{a:?} {b:?}"
                            );
                        } else {
                            denied += 1;
                        }
                    }
                }
            }
        }
        assert!(denied > 1_000 && allowed > 1_000, "{denied} {allowed}");
    }
}
