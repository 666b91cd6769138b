//! A table for load tests: pairs that nobody recorded, the same for everybody who asks for as many.
//!
//! `serve --synthetic` holds them beside an empty ledger; `bench requests` asks about them.

use consentd_core::id::{Key, KeySecret};
use consentd_core::scope::{Category, Class, Scope};
use consentd_core::state::{OnScope, State, Word};
use consentd_core::time::Timestamp;

/// The business of all synthetic pairs.
pub const BUSINESS: &str = "synthetic";

/// The most pairs: their users' numbers have so many digits left.
pub const MAX_PAIRS: u64 = 100_000_000;

/// How many milliseconds an hour has.
const HOUR: i64 = 3_600_000;

/// The user of a pair. No country code begins with 999: it is nobody's number.
#[must_use]
pub fn user(number: u64) -> String {
    format!("999555{number:09}")
}

/// A user that no synthetic table holds.
#[must_use]
pub fn stranger(number: u64) -> String {
    format!("999666{number:09}")
}

/// The pairs of a table.
#[derive(Clone, Debug)]
pub struct Synthetic {
    count: u64,
    secret: KeySecret,
    /// What their times are counted from, so that windows are open when they are asked about.
    now: Timestamp,
}

impl Synthetic {
    /// So many pairs, [`MAX_PAIRS`] at most, with times before `now`.
    #[must_use]
    pub fn new(count: u64, secret: KeySecret, now: Timestamp) -> Self {
        Self { count: count.min(MAX_PAIRS), secret, now }
    }

    /// How many they are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// One of them.
    #[must_use]
    pub fn pair(&self, number: u64) -> Option<(Key, State)> {
        let key = self.secret.read(&user(number), BUSINESS).ok()?;
        Some((key, self.state(number)))
    }

    /// All wrote, up to 40 hours ago. Of ten, six opted in to marketing, four of those to order
    /// updates as well, and one opted out of everything.
    fn state(&self, number: u64) -> State {
        let mut state = State::default();
        let hours = i64::try_from(number % 41).unwrap_or(0);
        let at = |hours: i64| {
            Timestamp::saturating_from_millis(self.now.as_millis().saturating_sub(hours * HOUR))
        };
        let said = |word: Word| OnScope::from(word);
        let mut opt_in = |class, topic| {
            let word = Word::opt_in(at(1_000), None);
            state.scopes.insert(Scope::from(Category { class, topic }), said(word));
        };
        match number % 10 {
            0..=3 => {
                opt_in(Class::Marketing, None);
                opt_in(Class::Utility, Some("order_updates"));
            }
            4 | 5 => opt_in(Class::Marketing, None),
            6 => {
                let word = Word::opt_out(at(500));
                state.scopes.insert(Scope::All, said(word));
            }
            _ => {}
        }
        state.last_inbound = Some(at(hours));
        state
    }
}
