//! Which businesses a table holds: all of a ledger, or some.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Violation;
use super::id::{BusinessId, BusinessTag, Key};

/// The businesses that a table holds. Clones are cheap.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Businesses {
    /// Every business of the ledger.
    #[default]
    All,
    /// These alone, and pairs of which it is not known whose they are.
    Only(Arc<BusinessSet>),
}

/// Some businesses, by their ids.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BusinessSet {
    /// The ids in their order, which is that of status pages.
    ids: Vec<Box<str>>,
    /// For each tag, the places of its ids. Two ids may have one tag.
    by_tag: BTreeMap<BusinessTag, Vec<usize>>,
}

impl BusinessSet {
    /// The set of these ids.
    ///
    /// # Errors
    ///
    /// The [`Violation`] of the first id that no business can have.
    pub fn of<'a>(ids: impl IntoIterator<Item = &'a str>) -> Result<Self, Violation> {
        let mut ids: Vec<Box<str>> = ids.into_iter().map(Into::into).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut by_tag: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (place, id) in ids.iter().enumerate() {
            by_tag.entry(BusinessId::parse(id)?.tag()).or_default().push(place);
        }
        Ok(Self { ids, by_tag })
    }

    /// The ids, in order.
    #[must_use]
    pub fn ids(&self) -> impl ExactSizeIterator<Item = &str> {
        self.ids.iter().map(|id| &**id)
    }

    fn holds(&self, business: BusinessId<'_>) -> bool {
        self.by_tag.get(&business.tag()).is_some_and(|places| {
            let ids = places.iter().filter_map(|place| self.ids.get(*place));
            ids.into_iter().any(|id| **id == *business.as_str())
        })
    }

    fn holds_key(&self, key: Key) -> bool {
        key.is_nameless() || self.by_tag.contains_key(&key.tag())
    }
}

impl Businesses {
    /// These businesses alone.
    #[must_use]
    pub fn only(set: BusinessSet) -> Self {
        Self::Only(Arc::new(set))
    }

    /// Whether questions about this business can be answered.
    #[must_use]
    pub fn holds(&self, business: BusinessId<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Only(set) => set.holds(business),
        }
    }

    /// Whether the pair with this key must be held: it may be of one of these businesses, whose tag it has.
    #[inline]
    #[must_use]
    pub fn holds_key(&self, key: Key) -> bool {
        match self {
            Self::All => true,
            Self::Only(set) => set.holds_key(key),
        }
    }

    /// The ids, if not every business is held.
    #[must_use]
    pub fn ids(&self) -> Option<impl ExactSizeIterator<Item = &str>> {
        match self {
            Self::All => None,
            Self::Only(set) => Some(set.ids()),
        }
    }

    /// The businesses that both hold.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::All, one) | (one, Self::All) => one.clone(),
            (Self::Only(one), Self::Only(another)) if one == another => self.clone(),
            (Self::Only(one), Self::Only(another)) => {
                let is_common = |id: &&str| BusinessId::parse(id).is_ok_and(|id| another.holds(id));
                // All of these ids were parsed before.
                Self::only(BusinessSet::of(one.ids().filter(is_common)).unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{KeySecret, UserId};

    fn only(ids: &[&str]) -> Businesses {
        Businesses::only(BusinessSet::of(ids.iter().copied()).unwrap())
    }

    #[test]
    fn set_holds_its_own_businesses_and_nameless_pairs() {
        let (set, all) = (only(&["globex", "acme", "acme"]), Businesses::All);
        let secret = KeySecret::new(&[7; 16]);
        let user = UserId::parse("15550123456").unwrap();
        for (id, is_held) in [("acme", true), ("globex", true), ("Acme", false), ("shop", false)] {
            let business = BusinessId::parse(id).unwrap();
            let key = secret.key(&user, business);
            assert_eq!((set.holds(business), set.holds_key(key)), (is_held, is_held), "{id}");
            assert!(all.holds(business) && all.holds_key(key));
            assert!(set.holds_key(secret.nameless(key).unwrap()), "its business is not known");
        }
        assert_eq!(set.ids().unwrap().collect::<Vec<_>>(), ["acme", "globex"]);
        assert!(all.ids().is_none());
        assert!(BusinessSet::of(["acme", "a\tb"]).is_err());
    }

    proptest! {
        #[test]
        fn intersection_holds_what_both_hold(
            one in proptest::collection::vec("[a-f]{1,2}", 0..8),
            another in proptest::collection::vec("[a-f]{1,2}", 0..8),
            asked in "[a-f]{1,2}",
        ) {
            let [one, another] = [one, another].map(|ids| {
                Businesses::only(BusinessSet::of(ids.iter().map(String::as_str)).unwrap())
            });
            let both = one.intersection(&another);
            let asked = BusinessId::parse(&asked).unwrap();
            prop_assert_eq!(both.holds(asked), one.holds(asked) && another.holds(asked));
            prop_assert_eq!(one.intersection(&Businesses::All), one.clone());
            prop_assert_eq!(Businesses::All.intersection(&one), one.clone());
            prop_assert_eq!(one.intersection(&one), one);
        }
    }
}
