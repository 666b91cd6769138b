//! Where a user stopped a business's marketing inside WhatsApp: by the business's number.
//!
//! A business may have several numbers, and a stop inside WhatsApp is of one of them (Kapso's
//! documentation of marketing opt-outs, read in November 2026; the webhook names one number, and Meta's
//! page says "from your business" alone). The latest preference at each number counts there, and the
//! user is stopped while any stop stands. A stop whose number is unknown is kept in a place of its own,
//! and only a resume without a number lifts it.

use std::collections::BTreeMap;

use super::id::PhoneNumberId;
use super::state::raise;
use super::time::Timestamp;

/// The most numbers of one business that a pair has preferences at. A stop at one more counts as one
/// whose number is unknown, so that no denial is refused and the size of a record stays bounded. A resume
/// at one more changes nothing.
pub const MAX_NUMBERS: usize = 64;

/// The preferences at one number. They only grow.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Preferences {
    /// The latest: its time, and whether marketing was stopped.
    pub latest: Option<(Timestamp, bool)>,
    /// When marketing was last stopped, even if it was resumed since.
    pub last_stop: Option<Timestamp>,
}

impl Preferences {
    /// Whether the stop stands.
    #[must_use]
    pub fn is_stopped(self) -> bool {
        self.latest.is_some_and(|(_, stopped)| stopped)
    }

    fn raise(&mut self, time: Timestamp, stopped: bool) -> bool {
        let denied = stopped && raise(&mut self.last_stop, time);
        // `true` is the greater bool, so that the denial wins at equal times.
        raise(&mut self.latest, (time, stopped)) || denied
    }

    fn join(self, other: Self) -> Self {
        Self {
            latest: self.latest.max(other.latest),
            last_stop: self.last_stop.max(other.last_stop),
        }
    }
}

/// The preferences about marketing inside WhatsApp of one pair, by the business's number; `None` stands
/// for those whose number is unknown. A join semilattice, as the whole state is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PlatformStops(BTreeMap<Option<PhoneNumberId>, Preferences>);

impl PlatformStops {
    /// Adds a preference. Returns whether it changed anything.
    pub fn apply(
        &mut self,
        number: Option<&PhoneNumberId>,
        time: Timestamp,
        stopped: bool,
    ) -> bool {
        let place = number.filter(|number| self.has_room_for(number));
        if !stopped && place.is_none() && number.is_some() {
            return false;
        }
        self.0.entry(place.cloned()).or_default().raise(time, stopped)
    }

    fn has_room_for(&self, number: &PhoneNumberId) -> bool {
        let numbers = self.numbered().count();
        numbers < MAX_NUMBERS || self.0.contains_key(&Some(number.clone()))
    }

    /// Sets the preferences at a number, or those without one, as a ledger has them.
    pub fn set(&mut self, number: Option<PhoneNumberId>, preferences: Preferences) {
        self.0.insert(number, preferences);
    }

    /// The preferences at a number, or those without one.
    #[must_use]
    pub fn at(&self, number: Option<&PhoneNumberId>) -> Preferences {
        self.0.get(&number.cloned()).copied().unwrap_or_default()
    }

    /// When marketing was last stopped where a stop at this number is kept.
    #[must_use]
    pub fn last_stop(&self, number: Option<&PhoneNumberId>) -> Option<Timestamp> {
        self.at(number.filter(|number| self.has_room_for(number))).last_stop
    }

    /// All preferences; those without a number come first.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&PhoneNumberId>, Preferences)> {
        self.0.iter().map(|(number, preferences)| (number.as_ref(), *preferences))
    }

    /// The preferences at known numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (&PhoneNumberId, Preferences)> {
        self.iter().filter_map(|(number, preferences)| Some((number?, preferences)))
    }

    /// The stops that stand, and since when.
    pub fn standing(&self) -> impl Iterator<Item = (Option<&PhoneNumberId>, Timestamp)> {
        self.iter().filter_map(|(number, preferences)| {
            let (time, stopped) = preferences.latest?;
            stopped.then_some((number, time))
        })
    }

    /// Whether any stop stands.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.standing().next().is_some()
    }

    /// The time of the latest preference.
    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        self.iter().filter_map(|(_, preferences)| Some(preferences.latest?.0)).max()
    }

    /// Whether the latest preference at some number is a resume of this time.
    #[must_use]
    pub fn is_resumed_at(&self, moment: Timestamp) -> bool {
        self.iter().any(|(_, preferences)| preferences.latest == Some((moment, false)))
    }

    /// All preferences as those of one number, for versions that know no numbers: stopped while any stop
    /// stands.
    #[must_use]
    pub fn aggregated(&self) -> Preferences {
        let all = self.iter().map(|(_, preferences)| preferences);
        let all = all.fold(Preferences::default(), Preferences::join);
        let stopped = self.standing().map(|(_, time)| time).max();
        Preferences { latest: stopped.map(|time| (time, true)).or(all.latest), ..all }
    }

    /// The preferences of both.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        for (number, preferences) in other.0 {
            let known = self.0.entry(number).or_default();
            *known = known.join(preferences);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis).unwrap()
    }

    fn number(name: &str) -> PhoneNumberId {
        PhoneNumberId::parse(name).unwrap()
    }

    #[test]
    fn resume_at_a_number_lifts_its_own_stop_alone() {
        let mut stops = PlatformStops::default();
        let (one, two) = (number("11"), number("22"));
        for place in [Some(&one), Some(&two), None] {
            assert!(stops.apply(place, at(5), true));
        }
        assert!(stops.apply(Some(&one), at(9), false));
        let standing = |stops: &PlatformStops| {
            stops.standing().map(|(number, _)| number.cloned()).collect::<Vec<_>>()
        };
        assert_eq!(standing(&stops), [None, Some(two.clone())]);
        assert!(stops.apply(None, at(9), false));
        assert_eq!(standing(&stops), [Some(two.clone())]);
        assert_eq!(stops.aggregated().latest, Some((at(5), true)), "an older version denies");
        assert!(stops.apply(Some(&two), at(7), false) && !stops.is_stopped());
        let resumed = Preferences { latest: Some((at(9), false)), last_stop: Some(at(5)) };
        assert_eq!((stops.aggregated(), stops.latest()), (resumed, Some(at(9))));
        assert!(stops.is_resumed_at(at(7)) && !stops.is_resumed_at(at(5)));
    }

    #[test]
    fn stop_beyond_the_bound_is_kept_without_its_number() {
        let mut stops = PlatformStops::default();
        for n in 0..MAX_NUMBERS {
            assert!(stops.apply(Some(&number(&n.to_string())), at(1), n % 2 == 0));
        }
        let more = number("more");
        assert!(!stops.apply(Some(&more), at(9), false), "a resume has no room");
        assert!(stops.apply(Some(&more), at(2), true));
        assert_eq!(stops.numbered().count(), MAX_NUMBERS);
        assert_eq!(stops.at(None).latest, Some((at(2), true)));
        assert_eq!(stops.last_stop(Some(&more)), Some(at(2)), "its repeat is recognised");
        assert!(!stops.apply(Some(&more), at(9), false) && stops.at(None).is_stopped());
        assert!(stops.apply(Some(&number("0")), at(3), false), "a known number has its place");
    }
}
