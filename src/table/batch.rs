//! Many look-ups at once: their cache misses overlap, and what one look-up costs beside them is
//! paid once for all.

use std::sync::Arc;

use arc_swap::Guard;

use super::shard::shard_of;
use super::{Freshness, Pair, PreviousLedgerDenials, Table, UnreadablePair};
use consentd_core::Violation;
use consentd_core::facts::{Facts, Profile, Times};
use consentd_core::id::{BusinessId, KeySecret, UserId};
use consentd_core::scope::Category;

/// How many look-ups are on their way at once: more than a core has misses open, and little enough
/// that what the first of them brought is still there when the last one was asked for.
const LOOKUPS_PER_PREFETCH: usize = 64;

/// What makes the keys of pairs, for as many of them as are asked about together.
pub struct KeyDeriver {
    secret: Guard<Arc<KeySecret>>,
    before: Guard<Option<Arc<PreviousLedgerDenials>>>,
}

impl KeyDeriver {
    /// The pair of a user and a business.
    #[must_use]
    pub fn pair(&self, user: &UserId<'_>, business: BusinessId<'_>) -> Pair {
        let previous_key = self.before.as_ref().map(|previous| previous.secret.key(user, business));
        Pair { key: self.secret.key(user, business), previous_key }
    }

    /// The same of ids as they came.
    ///
    /// # Errors
    ///
    /// What is wrong with either id, or both.
    pub fn parse(&self, user_id: &str, business_id: &str) -> Result<Pair, Vec<Violation>> {
        match (UserId::parse(user_id), BusinessId::parse(business_id)) {
            (Ok(user), Ok(business)) => Ok(self.pair(&user, business)),
            (user, business) => Err([user.err(), business.err()].into_iter().flatten().collect()),
        }
    }
}

impl Table {
    /// What makes the keys now. Not to be kept: a ledger that comes in this one's place has others.
    #[must_use]
    pub fn key_deriver(&self) -> KeyDeriver {
        KeyDeriver { secret: self.0.secret.load(), before: self.0.before.load() }
    }

    /// What decisions need to know of many pairs, each about the category in its place; and how
    /// current all of that is. `into` is emptied, and gets as many facts as there are pairs,
    /// in their order.
    ///
    /// Each is as a look-up of its own would have found it after the freshness was read. Read the
    /// clock after this, not before. Allocates nothing where `into` has room.
    pub fn facts_batch(
        &self,
        pairs: &[Pair],
        categories: &[Category<'_>],
        into: &mut Vec<Result<Facts, UnreadablePair>>,
    ) -> Freshness {
        into.clear();
        let ((), freshness) = self.0.with_generation_check(|| {
            for (pairs, categories) in
                pairs.chunks(LOOKUPS_PER_PREFETCH).zip(categories.chunks(LOOKUPS_PER_PREFETCH))
            {
                self.add_facts(pairs, categories, into);
            }
        });
        freshness
    }

    fn add_facts(
        &self,
        pairs: &[Pair],
        categories: &[Category<'_>],
        into: &mut Vec<Result<Facts, UnreadablePair>>,
    ) {
        // First, as in `facts`: whoever is taken out of there is in an entry by then.
        let before = pairs.iter().any(|pair| pair.previous_key.is_some()).then(|| {
            let denied: Vec<_> =
                pairs.iter().map(|pair| self.0.previous_ledger_denials(*pair)).collect();
            (into.len(), denied)
        });
        self.0.lanes.read(|view| {
            // None of these waits for another one; the look-ups below find what they brought.
            let touched = pairs.iter().fold(0, |all: u64, pair| {
                let slots = view.shards.get(shard_of(pair.key));
                all ^ slots.map_or(0, |slots| slots.prefetch(pair.key))
            });
            std::hint::black_box(touched);
            for (pair, category) in pairs.iter().zip(categories) {
                let read = |profile: &Profile, last_inbound, times: Times<'_>| {
                    profile.facts(*category, last_inbound, times)
                };
                let found = view.shards.get(shard_of(pair.key)).and_then(|slots| {
                    slots.read(pair.key, |entry| {
                        Some(self.0.resolve(pair.key, entry?, slots, &view.profiles, read))
                    })
                });
                into.push(found.unwrap_or(Ok(Facts::NOTHING)));
            }
        });
        let Some((first, denied)) = before else { return };
        for ((facts, denied), category) in into.iter_mut().skip(first).zip(denied).zip(categories) {
            if let (Ok(facts), Some(denied)) = (facts, denied) {
                *facts = denied.over(*category, *facts);
            }
        }
    }
}
