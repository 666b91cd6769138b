//! Batches of look-ups: their cache misses overlap, and fixed costs are paid once per batch.

use std::sync::Arc;

use arc_swap::Guard;

use super::partitions::Divided;
use super::{Freshness, Pair, PreviousLedgerDenials, Table, UnreadablePair};
use consentd_core::Violation;
use consentd_core::businesses::Businesses;
use consentd_core::id::{BusinessId, Key, KeySecret, Spread, UserId};
use consentd_core::scope::Category;
use consentd_core::standing::Facts;
use consentd_core::template::TemplateId;

/// How many look-ups are prefetched together: more than a core can have cache misses in flight, and
/// few enough that the first prefetched line is still cached at the last look-up.
const LOOKUPS_PER_PREFETCH: usize = 64;

/// Derives the keys of pairs, with the secrets and the businesses loaded once.
pub struct KeyDeriver<'a>(Deriving<'a>);

enum Deriving<'a> {
    /// By what one table has.
    Whole {
        secret: Guard<Arc<KeySecret>>,
        previous: Guard<Option<Arc<PreviousLedgerDenials>>>,
        businesses: Guard<Arc<Businesses>>,
    },
    /// By what the tables of the pairs' partitions have.
    Divided(&'a Divided, Guard<Arc<Businesses>>),
}

/// Derives the keys of the pairs of one business, which the table holds. There is no other way to a key, so
/// that no question about another business can be answered from its absence.
#[derive(Clone, Copy)]
pub struct BusinessKeys<'a> {
    secrets: Secrets<'a>,
    business: BusinessId<'a>,
}

#[derive(Clone, Copy)]
enum Secrets<'a> {
    Whole { secret: &'a KeySecret, previous: Option<&'a KeySecret> },
    Divided(&'a Divided),
}

/// The table does not hold the business, so that nothing is known of its pairs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "this sidecar does not hold this business, and answers for others alone: ask a sidecar that \
     holds it, or add it to this one's --business or --business-file"
)]
pub struct NotHeld;

/// Why there is no pair of two ids.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoPair {
    /// Either id is invalid, or both are.
    #[error("an id is not valid")]
    Invalid(Vec<Violation>),
    /// The table does not hold the business.
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
}

impl BusinessKeys<'_> {
    /// The pair of a user and the business.
    #[must_use]
    pub fn pair(&self, user: &UserId<'_>) -> Pair {
        self.pair_of(|| user.spread(), |secret| secret.key(user, self.business))
    }

    /// The pair under whose key versions before recorded the user, if they read the id otherwise. What
    /// they recorded counts, too: see [`Tables::facts_joined`](super::Tables::facts_joined).
    #[inline]
    #[must_use]
    pub fn former_pair(&self, user: &UserId<'_>) -> Option<Pair> {
        let spread = user.former_spread()?;
        // Which ids have a former reading does not depend on the secret.
        let key = |secret: &KeySecret| {
            let former = secret.former_key(user, self.business);
            former.unwrap_or_else(|| secret.key(user, self.business))
        };
        Some(self.pair_of(|| spread, key))
    }

    /// The pair of a template and the business, in whose record the template's category is kept.
    #[must_use]
    pub fn template_pair(&self, template: &TemplateId<'_>) -> Pair {
        self.pair_of(|| Spread::FIRST, |secret| secret.template_key(template, self.business))
    }

    /// The pair in whose record it is kept whether WhatsApp restricts the account of the business.
    #[must_use]
    pub fn account_pair(&self) -> Pair {
        self.pair_of(|| Spread::FIRST, |secret| secret.account_key(self.business))
    }

    #[inline]
    fn pair_of(&self, spread: impl Fn() -> Spread, key: impl Fn(&KeySecret) -> Key) -> Pair {
        match self.secrets {
            Secrets::Whole { secret, previous } => {
                Pair { key: key(secret), previous_key: previous.map(&key) }
            }
            Secrets::Divided(divided) => divided.pair(self.business.tag(), spread(), key),
        }
    }
}

impl<'k> KeyDeriver<'k> {
    pub(super) fn divided(divided: &'k Divided) -> Self {
        Self(Deriving::Divided(divided, divided.held()))
    }

    /// The keys of a business.
    ///
    /// # Errors
    ///
    /// [`NotHeld`] if the table does not hold it.
    #[inline]
    pub fn at<'a>(&'a self, business: BusinessId<'a>) -> Result<BusinessKeys<'a>, NotHeld> {
        let (secrets, businesses) = match &self.0 {
            Deriving::Whole { secret, previous, businesses } => {
                let previous = previous.as_ref().map(|previous| &previous.secret);
                (Secrets::Whole { secret, previous }, businesses)
            }
            Deriving::Divided(divided, businesses) => (Secrets::Divided(divided), businesses),
        };
        if !businesses.holds(business) {
            return Err(NotHeld);
        }
        Ok(BusinessKeys { secrets, business })
    }

    /// The pair of two unvalidated ids, and its former pair.
    ///
    /// # Errors
    ///
    /// [`NoPair`] if either id is invalid, or the business is not held.
    pub fn parse(&self, user_id: &str, business_id: &str) -> Result<(Pair, Option<Pair>), NoPair> {
        match (UserId::parse(user_id), BusinessId::parse(business_id)) {
            (Ok(user), Ok(business)) => {
                let keys = self.at(business)?;
                Ok((keys.pair(&user), keys.former_pair(&user)))
            }
            (user, business) => {
                let violations = [user.err(), business.err()].into_iter().flatten();
                Err(NoPair::Invalid(violations.collect()))
            }
        }
    }
}

impl Table {
    /// The current key deriver. It must not be kept: a ledger that replaces this one has other secrets.
    #[must_use]
    pub fn key_deriver(&self) -> KeyDeriver<'static> {
        KeyDeriver(Deriving::Whole {
            secret: self.0.secret.load(),
            previous: self.0.previous_ledger.load(),
            businesses: self.0.businesses.load(),
        })
    }

    /// The pair whose key this makes with the table's secrets.
    pub(super) fn pair_of(&self, key: impl Fn(&KeySecret) -> Key) -> Pair {
        let previous = self.0.previous_ledger.load();
        let previous_key = previous.as_ref().map(|previous| key(&previous.secret));
        Pair { key: key(&self.0.secret.load()), previous_key }
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
