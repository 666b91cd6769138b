//! Batches of look-ups: their cache misses overlap, and fixed costs are paid once per batch.

use std::sync::Arc;

use arc_swap::Guard;

use super::{Freshness, Pair, PreviousLedgerDenials, Table, UnreadablePair};
use consentd_core::Violation;
use consentd_core::id::{BusinessId, Key, KeySecret, UserId};
use consentd_core::scope::Category;
use consentd_core::standing::Facts;
use consentd_core::template::TemplateId;

/// How many look-ups are prefetched together: more than a core can have cache misses in flight, and
/// few enough that the first prefetched line is still cached at the last look-up.
const LOOKUPS_PER_PREFETCH: usize = 64;

/// Derives the keys of pairs, with the secrets loaded once.
pub struct KeyDeriver {
    secret: Guard<Arc<KeySecret>>,
    previous: Guard<Option<Arc<PreviousLedgerDenials>>>,
}

impl KeyDeriver {
    /// The pair of a user and a business.
    #[must_use]
    pub fn pair(&self, user: &UserId<'_>, business: BusinessId<'_>) -> Pair {
        let previous = self.previous.as_ref();
        let previous_key = previous.map(|previous| previous.secret.key(user, business));
        Pair { key: self.secret.key(user, business), previous_key }
    }

    /// The pair under whose key versions before recorded the user, if they read the id otherwise. What
    /// they recorded counts, too: see [`Table::facts_joined`].
    #[must_use]
    pub fn former_pair(&self, user: &UserId<'_>, business: BusinessId<'_>) -> Option<Pair> {
        let key = self.secret.former_key(user, business)?;
        let previous = self.previous.as_ref();
        let previous_key = previous.and_then(|previous| previous.secret.former_key(user, business));
        Some(Pair { key, previous_key })
    }

    /// The pair of a template and a business, in whose record the template's category is kept.
    #[must_use]
    pub fn template_pair(&self, template: &TemplateId<'_>, business: BusinessId<'_>) -> Pair {
        self.pair_of(|secret| secret.template_key(template, business))
    }

    /// The pair in whose record it is kept whether WhatsApp restricts the account of a business.
    #[must_use]
    pub fn account_pair(&self, business: BusinessId<'_>) -> Pair {
        self.pair_of(|secret| secret.account_key(business))
    }

    fn pair_of(&self, key: impl Fn(&KeySecret) -> Key) -> Pair {
        let previous_key = self.previous.as_ref().map(|previous| key(&previous.secret));
        Pair { key: key(&self.secret), previous_key }
    }

    /// The pair of two unvalidated ids, and its former pair.
    ///
    /// # Errors
    ///
    /// The violations of either id, or of both.
    pub fn parse(
        &self,
        user_id: &str,
        business_id: &str,
    ) -> Result<(Pair, Option<Pair>), Vec<Violation>> {
        match (UserId::parse(user_id), BusinessId::parse(business_id)) {
            (Ok(user), Ok(business)) => {
                Ok((self.pair(&user, business), self.former_pair(&user, business)))
            }
            (user, business) => Err([user.err(), business.err()].into_iter().flatten().collect()),
        }
    }
}

impl Table {
    /// The current key deriver. It must not be kept: a ledger that replaces this one has other secrets.
    #[must_use]
    pub fn key_deriver(&self) -> KeyDeriver {
        KeyDeriver { secret: self.0.secret.load(), previous: self.0.previous_ledger.load() }
    }

    /// The facts of many pairs, each for the category at its place, and how current all of them are.
    /// `into` is cleared and filled in the order of the pairs.
    ///
    /// Each result is what a single look-up after the reading of the freshness could have returned. The
    /// caller must read the clock after this call. It allocates nothing if `into` has the capacity.
    pub fn facts_batch(
        &self,
        pairs: &[Pair],
        categories: &[Category<'_>],
        into: &mut Vec<Result<Facts, UnreadablePair>>,
    ) -> Freshness {
        into.clear();
        let stamp = self.0.stamp();
        let chunks = pairs.chunks(LOOKUPS_PER_PREFETCH);
        for (pairs, categories) in chunks.zip(categories.chunks(LOOKUPS_PER_PREFETCH)) {
            self.append_facts(pairs, categories, into);
        }
        self.0.freshness_since(stamp)
    }

    fn append_facts(
        &self,
        pairs: &[Pair],
        categories: &[Category<'_>],
        into: &mut Vec<Result<Facts, UnreadablePair>>,
    ) {
        // Before the look-ups, as in `facts`.
        let previous = pairs.iter().any(|pair| pair.previous_key.is_some()).then(|| {
            let denied = pairs.iter().map(|pair| self.0.previous_ledger_denials(*pair));
            (into.len(), denied.collect::<Vec<_>>())
        });
        let view = self.0.directory.view();
        // These loads do not depend on each other, so their cache misses overlap.
        let prefetched =
            pairs.iter().fold(0, |all: u64, pair| all ^ view.shard(pair.key).prefetch(pair.key));
        std::hint::black_box(prefetched);
        for (pair, category) in pairs.iter().zip(categories) {
            into.push(match self.0.lookup(&view, pair.key) {
                None => Ok(Facts::NOTHING),
                Some(found) => found.map(|pair| pair.facts(*category)),
            });
        }
        drop(view);
        let Some((first, denied)) = previous else { return };
        for ((facts, denied), category) in into.iter_mut().skip(first).zip(denied).zip(categories) {
            if let (Ok(facts), Some(denied)) = (facts, denied) {
                *facts = denied.overlay(*category, *facts);
            }
        }
    }
}
