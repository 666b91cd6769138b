//! A made-up table for load tests. Equal parameters make equal pairs, so that a server and its load
//! generator agree on them without exchanging anything.

use consentd_core::id::{Key, KeySecret};
use consentd_core::scope::{Category, Class, Scope};
use consentd_core::state::{Choice, ScopeState, State};
use consentd_core::time::Timestamp;

/// The business of all made-up pairs.
pub const BUSINESS: &str = "synthetic";

/// The most pairs: a user's number has nine digits for the pair's.
pub const MAX_PAIRS: u64 = 100_000_000;

const MILLIS_PER_HOUR: i64 = 3_600_000;
/// Last inbound messages are spread over so many hours, so that some windows are open and others
/// have closed.
const INBOUND_SPREAD_HOURS: u64 = 41;

/// The user of a pair. No country code begins with 999, so the number belongs to no real person.
#[must_use]
pub fn user(number: u64) -> String {
    format!("999555{number:09}")
}

/// A user who is in no made-up table.
#[must_use]
pub(crate) fn unknown_user(number: u64) -> String {
    format!("999666{number:09}")
}

/// The pairs of a made-up table.
#[derive(Clone, Debug)]
pub struct Fixture {
    count: u64,
    secret: KeySecret,
    /// The time from which all times of the pairs are subtracted.
    now: Timestamp,
}

impl Fixture {
    /// A table of `count` pairs, at most [`MAX_PAIRS`], whose times lie before `now`.
    #[must_use]
    pub fn new(count: u64, secret: KeySecret, now: Timestamp) -> Self {
        Self { count: count.min(MAX_PAIRS), secret, now }
    }

    /// The number of pairs.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// A pair's key and state by its number, which is below [`Self::count`].
    #[must_use]
    pub fn pair(&self, number: u64) -> Option<(Key, State)> {
        let key = self.secret.read(&user(number), BUSINESS).ok()?;
        Some((key, self.state(number)))
    }

    /// Every user sent a message within the last 40 hours. Of ten users six opted in to marketing,
    /// four of those to order updates as well, and one opted out of everything.
    fn state(&self, number: u64) -> State {
        let mut state = State::default();
        let hours = i64::try_from(number % INBOUND_SPREAD_HOURS).unwrap_or(0);
        let before = |hours: i64| {
            Timestamp::saturating_from_millis(
                self.now.as_millis().saturating_sub(hours * MILLIS_PER_HOUR),
            )
        };
        let mut opt_in = |class, topic| {
            let choice = Choice::opt_in(before(1_000), None);
            state.scopes.insert(Scope::from(Category { class, topic }), ScopeState::from(choice));
        };
        match number % 10 {
            0..=3 => {
                opt_in(Class::Marketing, None);
                opt_in(Class::Utility, Some("order_updates"));
            }
            4 | 5 => opt_in(Class::Marketing, None),
            6 => {
                let choice = Choice::opt_out(before(500));
                state.scopes.insert(Scope::All, ScopeState::from(choice));
            }
            _ => {}
        }
        state.last_inbound = Some(before(hours));
        state
    }
}
