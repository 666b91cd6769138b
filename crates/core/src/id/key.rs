//! The key of a pair, and the tag by which it names its business.

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
}

/// The key of a pair: a keyed 128-bit hash (SipHash-2-4) of the folded user id and the business. From key
/// version 3 on, its lower 32 bits are the [`BusinessTag`] instead.
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

    /// The key that the pair would have if its names had been gone when the ledger was re-keyed; `None` if
    /// this is such a key.
    #[must_use]
    pub fn nameless(self) -> Option<Self> {
        (self.tag() != BusinessTag::NAMELESS).then(|| self.with_tag(BusinessTag::NAMELESS))
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
            let nameless = tagged.nameless().unwrap();
            prop_assert_eq!(nameless.tag(), BusinessTag::NAMELESS);
            prop_assert_eq!(nameless.nameless(), None);
            prop_assert_eq!(nameless.with_tag(tag), tagged);
            prop_assert_eq!(Key::from_bytes(tagged.to_bytes()), tagged);
        }
    }
}
