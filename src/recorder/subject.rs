//! Which pairs a person is in.
//!
//! No ledger keeps a list of a user's pairs: keys are hashes. So all that is kept is read once for
//! the businesses that there are, and then each of them is asked for the user.

use std::collections::BTreeSet;

use super::{Recorder, Refusal};
use crate::consent::Violation;
use crate::consent::id::{BusinessId, Key, KeySecret, UserId};
use crate::ledger::{MAX_APPEND, Stored, UnreadableRecord};

/// The most businesses that are looked through; more are refused, and have to be named.
const MAX_BUSINESSES: usize = 1_000_000;

/// One pair of the person's, as it was read.
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) stored: Result<Stored, UnreadableRecord>,
}

impl Recorder {
    /// The person's pairs that there are: with one business, or with all that any kept event names.
    ///
    /// A pair is found by its business, be it named by other users' events alone; one whose business
    /// no kept event names at all has to be asked for by name.
    pub(super) async fn pairs_of(
        &self,
        user_id: &str,
        business_id: &str,
    ) -> Result<Vec<Found>, Refusal> {
        let identity = self.ledger.identity().await?;
        let user = UserId::parse(user_id);
        let named = Some(business_id).filter(|id| !id.is_empty()).map(BusinessId::parse);
        let (user, named) = match (user, named.transpose()) {
            (Ok(user), Ok(named)) => (user, named),
            (user, named) => {
                return Err(Refusal::Invalid(user.err().into_iter().chain(named.err()).collect()));
            }
        };
        let secret = &identity.secret;
        let keys = match named {
            Some(business) => BTreeSet::from([secret.key(&user, business)]),
            None => self.with_every_business(&user, secret).await?,
        };
        let keys: Vec<_> = keys.into_iter().collect();
        let mut found = Vec::new();
        for some in keys.chunks(MAX_APPEND) {
            let read = self.ledger.read(some.to_vec()).await?;
            let there = some.iter().zip(read.pairs).filter(|(_, stored)| {
                // An unreadable one is there.
                stored.as_ref().map_or(true, |stored| stored.version.revision > 0)
            });
            found.extend(there.map(|(key, stored)| Found { key: *key, stored }));
        }
        Ok(found)
    }

    async fn with_every_business(
        &self,
        user: &UserId<'_>,
        secret: &KeySecret,
    ) -> Result<BTreeSet<Key>, Refusal> {
        let (mut seen, mut keys) = (BTreeSet::new(), BTreeSet::new());
        let mut next = Some(0);
        while let Some(from) = next {
            let page = self.ledger.events_after(from).await?;
            for (_, entry) in page.entries {
                if seen.contains(&entry.business_id) {
                    continue;
                }
                // What could not be a business' id was never recorded for one.
                if let Ok(business) = BusinessId::parse(&entry.business_id) {
                    keys.insert(secret.key(user, business));
                }
                seen.insert(entry.business_id);
                if seen.len() > MAX_BUSINESSES {
                    let why = "required: the ledger has too many businesses to look through";
                    return Err(Refusal::Invalid(vec![Violation::new("business_id", why)]));
                }
            }
            next = page.next;
        }
        Ok(keys)
    }
}
