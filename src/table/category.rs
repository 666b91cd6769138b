//! Look-ups of what is known of a template's category, which is kept in the records of the template and of
//! the account.

use super::{Freshness, Pair, Table, UnreadablePair};
use consentd_core::scope::Class;
use consentd_core::standing::{Profile, ResolvedState};
use consentd_core::state::State;
use consentd_core::time::Timestamp;

impl Table {
    /// The least strict class that a template may be sent as, and how current that is.
    pub fn least_class(&self, template: Pair) -> (Result<Class, UnreadablePair>, Freshness) {
        let (read, freshness) = self.read_profile(template, Profile::least_class);
        let stricter = |(own, previous): (Class, Option<Class>)| {
            previous.map_or(own, |previous| own.stricter(previous))
        };
        (read.map(stricter), freshness)
    }

    /// Until when the utility templates of an account count as marketing: see
    /// [`Profile::restricted_until`]; and how current that is. The caller must not read the clock before.
    pub fn restricted_until(
        &self,
        account: Pair,
    ) -> (Result<Option<Timestamp>, UnreadablePair>, Freshness) {
        let (read, freshness) = self.read_profile(account, Profile::restricted_until);
        (read.map(|(own, previous)| own.max(previous.flatten())), freshness)
    }

    /// What a pair's profile says, and what its denials in the previous ledger do, if it has any.
    fn read_profile<T>(
        &self,
        pair: Pair,
        read: impl Fn(&Profile) -> T,
    ) -> (Result<(T, Option<T>), UnreadablePair>, Freshness) {
        // Before the look-up, as in `facts`.
        let previous = self.0.previous_ledger_denials(pair);
        let stamp = self.0.stamp();
        let own = match self.0.lookup(&self.0.directory.view(), pair.key) {
            None => Ok(read(&Profile::default())),
            Some(found) => found.map(|pair| read(pair.parts().0)),
        };
        let freshness = self.0.freshness_since(stamp);
        let previous = previous.map(|denied| {
            let lost = denied.missing_from(&State::default(), Timestamp::MIN);
            read(&ResolvedState::of(&lost.unwrap_or_default()).profile)
        });
        (own.map(|own| (own, previous)), freshness)
    }
}
