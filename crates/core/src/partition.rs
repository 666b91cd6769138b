//! The partitions of a ledger, and which of them a pair is in.
//!
//! A ledger in a Redis Cluster is divided into partitions, each with a log, a position and a proof of its own,
//! so that its shards share the work and the failure of one concerns its own pairs alone. The pairs of one
//! business are spread over a few of them, so that a sidecar for some businesses follows those alone.

use super::id::{BusinessTag, Key, Spread};

/// The most partitions of a ledger: each costs a sidecar that follows it a poll in every period.
pub const MAX_PARTITIONS: u32 = 1_024;

/// How a ledger is divided; fixed when it is created.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Layout {
    partitions: u32,
    spread: u32,
}

/// Numbers that are no layout.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidLayout {
    /// The number of partitions.
    #[error("a ledger has 1, 2, 4, 8, ... or {MAX_PARTITIONS} partitions")]
    Partitions,
    /// The number of partitions of one business.
    #[error(
        "the pairs of a business are spread over 1, 2, 4, 8, ... or 256 partitions, and no more than the \
         ledger has"
    )]
    Spread,
}

impl Default for Layout {
    fn default() -> Self {
        Self::SINGLE
    }
}

impl Layout {
    /// One partition, which has all pairs.
    pub const SINGLE: Self = Self { partitions: 1, spread: 1 };

    /// The layout with this many partitions, over `spread` of which the pairs of each business are spread.
    /// Both are powers of two, so that every business has as many pairs in each of its partitions.
    ///
    /// # Errors
    ///
    /// [`InvalidLayout`] if a number is no power of two, or too large.
    pub fn new(partitions: u32, spread: u32) -> Result<Self, InvalidLayout> {
        if !partitions.is_power_of_two() || partitions > MAX_PARTITIONS {
            return Err(InvalidLayout::Partitions);
        }
        // A key has 8 bits of its user's spread.
        if !spread.is_power_of_two() || spread > partitions.min(256) {
            return Err(InvalidLayout::Spread);
        }
        Ok(Self { partitions, spread })
    }

    /// The number of partitions.
    #[must_use]
    pub fn partitions(self) -> u32 {
        self.partitions
    }

    /// The number of partitions that the pairs of one business are spread over.
    #[must_use]
    pub fn spread(self) -> u32 {
        self.spread
    }

    /// The numbers of all partitions.
    #[must_use]
    pub fn all(self) -> std::ops::Range<u32> {
        0..self.partitions
    }

    /// The partition of the pair with this key. Each partition has its own copy of a pair whose
    /// business is not known, so this is not called for those.
    #[inline]
    #[must_use]
    pub fn partition_of(self, key: Key) -> u32 {
        self.partition_at(key.tag(), key.spread())
    }

    /// The partition of a business' pair whose key has this spread. The secret that the key is made with need not
    /// be known.
    #[inline]
    #[must_use]
    pub fn partition_at(self, business: BusinessTag, spread: Spread) -> u32 {
        self.place(business, u32::from(spread.number()))
    }

    /// The partitions that the pairs of a business are in, each once.
    pub fn partitions_of(self, business: BusinessTag) -> impl Iterator<Item = u32> {
        (0..self.spread).map(move |spread| self.place(business, spread))
    }

    /// The partition at this place among those of a business. They are as far apart as possible, so that they
    /// are on different shards.
    #[inline]
    fn place(self, business: BusinessTag, spread: u32) -> u32 {
        // Both numbers are powers of two, so that these masks are remainders.
        let mask = |number: u32| number.wrapping_sub(1);
        let apart = self.partitions.checked_div(self.spread).unwrap_or_default();
        let place = (spread & mask(self.spread)).wrapping_mul(apart);
        business.number().wrapping_add(place) & mask(self.partitions)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::id::{BusinessId, KeySecret, UserId};

    #[test]
    fn layout_takes_powers_of_two_alone() {
        assert_eq!(Layout::new(1, 1), Ok(Layout::SINGLE));
        assert_eq!(Layout::new(0, 1), Err(InvalidLayout::Partitions));
        assert_eq!(Layout::new(48, 4), Err(InvalidLayout::Partitions));
        assert_eq!(Layout::new(2_048, 4), Err(InvalidLayout::Partitions));
        for spread in [0, 3, 8, 512] {
            assert_eq!(Layout::new(4, spread), Err(InvalidLayout::Spread), "{spread}");
        }
        assert_eq!(Layout::new(1_024, 512), Err(InvalidLayout::Spread));
    }

    #[test]
    fn pairs_of_many_businesses_are_even_over_the_partitions() {
        let (layout, secret) = (Layout::new(64, 4).unwrap(), KeySecret::new(&[7; 16]));
        let mut counts = [0; 64];
        for business in 0..8_000 {
            let business = format!("business-{business}");
            let business = BusinessId::parse(&business).unwrap();
            for number in 0..8 {
                let user = format!("155501{number:05}");
                let key = secret.key(&UserId::parse(&user).unwrap(), business);
                counts[layout.partition_of(key) as usize] += 1;
            }
        }
        assert!(counts.iter().all(|count| (700..1_300).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn pair_is_in_one_of_the_partitions_of_its_business(
            (partitions, spread) in (0_u32..=10).prop_flat_map(|p| (Just(1 << p), (0..=p.min(8)).prop_map(|s| 1 << s))),
            user in "1555[0-9]{7}|US\\.[0-9]{5}",
            business in "[a-z]{1,12}",
        ) {
            let layout = Layout::new(partitions, spread).unwrap();
            let business = BusinessId::parse(&business).unwrap();
            let secret = KeySecret::new(&[7; 16]);
            let key = secret.key(&UserId::parse(&user).unwrap(), business);
            let all: BTreeSet<_> = layout.partitions_of(business.tag()).collect();
            prop_assert_eq!(all.len(), spread as usize, "each once");
            prop_assert!(all.iter().all(|partition| layout.all().contains(partition)));
            prop_assert!(all.contains(&layout.partition_of(key)));
            prop_assert!(all.contains(&layout.partition_of(secret.account_key(business))));
            // It does not depend on the secret.
            let other = KeySecret::new(&[8; 16]);
            let other = other.key(&UserId::parse(&user).unwrap(), business);
            prop_assert_eq!(layout.partition_of(other), layout.partition_of(key));
            let user = UserId::parse(&user).unwrap();
            prop_assert_eq!(layout.partition_at(business.tag(), user.spread()), layout.partition_of(key));
        }
    }
}
