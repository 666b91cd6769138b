//! The key of a pair, and what it says of the pair: the tag of its business, and the spread of its user.

use siphasher::sip::SipHasher13;

/// How many of a key's lower bits are the tag of its business, from [key version](super::KEY_VERSION) 3 on.
const TAG_BITS: u32 = 32;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;

/// 32 bits by which a key names the business of its pair: an unkeyed hash (SipHash-1-3) of the business's id.
///
/// It is unkeyed so that it is the same in every ledger, and can be computed before a ledger's secret is
/// known. Two businesses may have one tag: a tag says what may be skipped, and never what is whose.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BusinessTag(u32);

impl BusinessTag {
    /// The tag of no business. Pairs whose names were gone when their ledger was re-keyed have it: of which
    /// business they are is not known.
    pub const NAMELESS: Self = Self(0);

    /// The tag of the business with this id.
    #[must_use]
    pub fn of(business_id: &str) -> Self {
        let hash = SipHasher13::new().hash(business_id.as_bytes());
        let [a, b, c, d, ..] = hash.to_le_bytes();
        Self(u32::from_le_bytes([a, b, c, d]).max(1))
    }

    /// The tag as a number.
    #[inline]
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }
}

/// Where the [`Spread`] is in a key: above the tag.
const SPREAD_MASK: u64 = 0xff << TAG_BITS;

/// Eight bits by which the pairs of one business are spread over several partitions of a ledger: an unkeyed
/// hash of the user's id.
///
/// Like the tag it is the same in every ledger, so that the partition of a pair does not depend on the
/// ledger's secret: what a follower retains of a ledger that was replaced stays in its own partition.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Spread(u8);

impl Spread {
    /// The spread of what is no person: templates, and the account of a business.
    pub const FIRST: Self = Self(0);

    /// The spread of a phone number: the finalizer of `SplitMix64`, whose output bits depend on all input bits.
    #[inline]
    pub(super) fn of_number(value: u64, len: usize) -> Self {
        let mut bits = value ^ u64::try_from(len).unwrap_or_default().rotate_right(8);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((bits >> 56).to_le_bytes()[0])
    }

    /// The spread of any other user id.
    pub(super) fn of_opaque(id: &str) -> Self {
        Self(SipHasher13::new().hash(id.as_bytes()).to_le_bytes()[0])
    }

    /// The number that is spread, from 0 to 255.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

/// The key of a pair: a keyed 128-bit hash (SipHash-2-4) of the folded user id and the business. From key
/// version 3 on, its lower 32 bits are the [`BusinessTag`] instead, and from version 4 on, the 8 bits above
/// them are the user's [`Spread`].
///
/// It is stored as two `u64`: the alignment of a `u128` would cost the table 8 bytes per entry.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    high: u64,
    low: u64,
}

impl Key {
    /// The 16 bytes that ledgers store.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        ((u128::from(self.high) << 64) | u128::from(self.low)).to_be_bytes()
    }

    /// The key of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(bytes);
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
        Self { high: half(bits >> 64), low: half(bits) }
    }

    /// The two halves. The bits of the upper one are uniform, so that a map needs no further hash.
    #[must_use]
    pub fn halves(self) -> (u64, u64) {
        (self.high, self.low)
    }

    /// The key of these halves.
    #[must_use]
    pub fn from_halves((high, low): (u64, u64)) -> Self {
        Self { high, low }
    }

    /// 64 bits of the key. They are uniform, so that a map needs no further hash.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.high
    }

    /// The tag of the pair's business, in a ledger whose keys have one.
    #[must_use]
    pub fn tag(self) -> BusinessTag {
        BusinessTag(u32::try_from(self.low & TAG_MASK).unwrap_or_default())
    }

    /// The key with this tag in place of its lower 32 bits.
    #[must_use]
    pub fn with_tag(self, BusinessTag(tag): BusinessTag) -> Self {
        Self { high: self.high, low: (self.low & !TAG_MASK) | u64::from(tag) }
    }

    /// Whether its pair's names were gone when the ledger was re-keyed, in a ledger whose keys name
    /// businesses.
    #[must_use]
    pub fn is_nameless(self) -> bool {
        self.tag() == BusinessTag::NAMELESS
    }

    /// The spread of the pair's user, in a ledger whose keys have one.
    #[inline]
    #[must_use]
    pub fn spread(self) -> Spread {
        Spread(u8::try_from((self.low & SPREAD_MASK) >> TAG_BITS).unwrap_or_default())
    }

    /// The key with this spread in place of the bits above the tag.
    #[must_use]
    pub fn with_spread(self, Spread(spread): Spread) -> Self {
        Self { high: self.high, low: (self.low & !SPREAD_MASK) | (u64::from(spread) << TAG_BITS) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tag_of_a_business_is_the_same_for_ever() {
        // Ledgers store these: another hash would find no pair of a ledger that exists.
        for (id, tag) in [("acme", 0x3a8a_ef94), ("shop", 0x9e98_af90), ("Ünï", 0xda18_e633)] {
            assert_eq!(BusinessTag::of(id), BusinessTag(tag), "{id}");
        }
    }

    #[test]
    fn spread_of_a_user_is_the_same_for_ever_and_even() {
        assert_eq!(
            [15_550_123_456, 447_700_900_123].map(|number| Spread::of_number(number, 12)),
            [Spread(175), Spread(52)]
        );
        assert_eq!(["US.1349", "crm-17"].map(Spread::of_opaque), [Spread(210), Spread(110)]);
        // Neighbouring numbers and ids: of 64,000 in 64 parts, none has 15 % more than its share.
        for spread in [(|n| Spread::of_number(15_550_000_000 + n, 11)) as fn(u64) -> Spread, |n| {
            Spread::of_opaque(&format!("crm-{n}"))
        }] {
            let mut counts = [0; 64];
            (0..64_000).for_each(|n| counts[usize::from(spread(n).number() % 64)] += 1);
            assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
        }
    }

    proptest! {
        #[test]
        fn tag_replaces_the_lower_bits_alone(bytes: [u8; 16], id in "[a-z0-9-]{1,40}") {
            let key = Key::from_bytes(bytes);
            let tag = BusinessTag::of(&id);
            let tagged = key.with_tag(tag);
            prop_assert_eq!(tagged.tag(), tag);
            prop_assert_ne!(tag, BusinessTag::NAMELESS);
            prop_assert_eq!(&tagged.to_bytes()[..12], &bytes[..12]);
            prop_assert_eq!(tagged.bits(), key.bits());
            let spread = Spread(bytes[3]);
            let spread_key = tagged.with_spread(spread);
            prop_assert_eq!((spread_key.tag(), spread_key.spread()), (tag, spread));
            prop_assert_eq!(spread_key.with_spread(tagged.spread()), tagged);
            prop_assert_eq!(Key::from_bytes(spread_key.to_bytes()), spread_key);
        }
    }
}
