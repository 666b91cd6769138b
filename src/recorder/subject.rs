//! Finding all pairs of one user.
//!
//! Keys are hashes, so no ledger has an index from a user to its businesses. But whoever knows a
//! user and a business knows their key: it is enough to know every business, and every event that
//! is kept names its own.

use std::collections::BTreeSet;

use super::{Recorder, Refusal};
use consentd_core::Violation;
use consentd_core::id::{BusinessId, Key, UserId};
use consentd_core::time::Timestamp;
use consentd_ledger::{Cursor, LedgerError, MAX_APPEND, StoredRecord};

/// The most businesses of one ledger that are looked at: their names are kept in memory.
pub const MAX_BUSINESSES: usize = 1_000_000;

/// A pair of the user that was asked about.
#[derive(Debug)]
pub struct UserPair {
    /// The business.
    pub business_id: String,
    /// The pair's key.
    pub key: Key,
    /// What the ledger holds of it.
    pub stored: StoredRecord,
}

/// All pairs of one user.
#[derive(Debug)]
pub struct UserPairs {
    /// The pairs, in the order of their businesses' names.
    pub pairs: Vec<UserPair>,
    /// The ledger's clock when they were read.
    pub clock: Timestamp,
}

impl Recorder {
    /// The businesses that the ledger's events name. Reads all of them once.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where the ledger cannot be read, or has more than [`MAX_BUSINESSES`].
    pub async fn businesses(&self) -> Result<BTreeSet<String>, Refusal> {
        let mut found = BTreeSet::new();
        let mut next = Some(Cursor::default());
        while let Some(cursor) = next {
            let page = self.ledger.events_after(cursor).await?;
            for (_, entry) in page.entries {
                if !found.contains(&entry.business_id) {
                    found.insert(entry.business_id);
                }
            }
            if found.len() > MAX_BUSINESSES {
                return Err(Refusal::TooManyBusinesses);
            }
            next = page.next;
        }
        Ok(found)
    }

    /// Every pair of a user that the ledger has a record of, whether or not any of its events are
    /// kept: at each business that any event names, and at `more` businesses.
    ///
    /// # Errors
    ///
    /// [`Refusal`] where an id is malformed, the ledger cannot be read, or one of the records
    /// cannot.
    pub async fn pairs_of_user(
        &self,
        user_id: &str,
        more: &[String],
    ) -> Result<UserPairs, Refusal> {
        // Also ids that only versions before took: what they recorded must be found, to be erased.
        let user = UserId::recorded(user_id).err();
        let invalid = more.iter().filter_map(|id| BusinessId::recorded(id).err());
        let invalid = invalid.map(|found| Violation::new("business_ids", found.description));
        let found: Vec<_> = user.into_iter().chain(invalid).collect();
        if !found.is_empty() {
            return Err(Refusal::Invalid(found));
        }
        let identity = self.ledger.identity().await?;
        let mut businesses = self.businesses().await?;
        businesses.extend(more.iter().cloned());
        let mut keyed = Vec::with_capacity(businesses.len());
        for business_id in businesses {
            let key = identity.secret.read(user_id, &business_id).map_err(Refusal::Invalid)?;
            keyed.push((key, business_id));
        }
        let mut found = UserPairs { pairs: Vec::new(), clock: Timestamp::MIN };
        for some in keyed.chunks(MAX_APPEND) {
            let read = self.ledger.read(some.iter().map(|(key, _)| *key).collect()).await?;
            found.clock = read.clock;
            for ((key, business_id), stored) in some.iter().zip(read.pairs) {
                let stored = stored?;
                if stored.version.revision > 0 {
                    let business_id = business_id.clone();
                    found.pairs.push(UserPair { business_id, key: *key, stored });
                }
            }
        }
        if keyed.is_empty() {
            found.clock = self.ledger.read(Vec::new()).await?.clock;
        }
        Ok(found)
    }

    /// The history of a pair that was found, with its chain checked.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be read.
    pub async fn history_of(&self, key: Key) -> Result<consentd_ledger::History, LedgerError> {
        self.ledger.history(key).await
    }
}
