//! Finds all pairs of one user.
//!
//! Keys are hashes, so no ledger has an index from a user to businesses. But a key can be computed
//! from a user and a business, and every stored event names its business: it is enough to collect
//! the names of all businesses and to look the user up at each.

use std::collections::BTreeSet;

use super::ReadError;
use consentd_core::Violation;
use consentd_core::id::{BusinessId, Key, KeySecret, UserId};
use consentd_core::template::Subject;
use consentd_core::time::Timestamp;
use consentd_ledger::{Cursor, Ledger, MAX_APPEND, StoredRecord};

/// The most businesses of one ledger that are searched: their names are kept in memory.
pub const MAX_BUSINESSES: usize = 1_000_000;

/// The ledger has more than [`MAX_BUSINESSES`] businesses.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the ledger has more than {MAX_BUSINESSES} businesses, the most that are looked at")]
pub struct TooManyBusinesses;

/// A pair of a user.
#[derive(Debug)]
pub struct UserPair {
    /// The business.
    pub business_id: String,
    /// The pair's key.
    pub key: Key,
    /// The pair's record, with its version.
    pub stored: StoredRecord,
}

/// All pairs of one user.
#[derive(Debug)]
pub struct UserPairs {
    /// The pairs, ordered by business.
    pub pairs: Vec<UserPair>,
    /// The ledger's clock when they were read.
    pub clock: Timestamp,
}

/// The businesses that the ledger's events name. Reads all events once.
async fn businesses(ledger: &Ledger) -> Result<BTreeSet<String>, ReadError> {
    let mut businesses = BTreeSet::new();
    let mut next = Some(Cursor::default());
    while let Some(cursor) = next {
        let page = ledger.events_after(cursor).await?;
        for (_, entry) in page.entries {
            if !businesses.contains(&entry.business_id) {
                businesses.insert(entry.business_id);
            }
        }
        if businesses.len() > MAX_BUSINESSES {
            return Err(TooManyBusinesses.into());
        }
        next = page.next;
    }
    Ok(businesses)
}

/// The key of a pair, the one under which versions before recorded it, if they read the user's id otherwise,
/// and those of the pair's [nameless](KeySecret::nameless) ones.
///
/// # Errors
///
/// The violations of either id, or of both.
pub fn keys_of(
    secret: &KeySecret,
    user_id: &str,
    business_id: &str,
) -> Result<impl Iterator<Item = Key> + use<>, Vec<Violation>> {
    let key = secret.read(user_id, business_id)?;
    let keys = std::iter::once(key).chain(secret.read_formerly(user_id, business_id));
    let secret = secret.clone();
    Ok(keys.flat_map(move |key| std::iter::once(key).chain(secret.nameless(key))))
}

/// Every pair of a user that has a record in the ledger, even if none of its events are left: at each
/// business that an event of anyone names, and at `more` businesses.
///
/// # Errors
///
/// [`ReadError`] if an id is malformed, the ledger or one of the records cannot be read, or there are
/// more than [`MAX_BUSINESSES`].
pub async fn pairs_of_user(
    ledger: &Ledger,
    user_id: &str,
    more: &[String],
) -> Result<UserPairs, ReadError> {
    // Ids that only older versions accepted are searched too: their events must be found, so that
    // they can be erased.
    let user = match Subject::of(user_id) {
        Subject::Person => UserId::recorded(user_id).err(),
        Subject::Template | Subject::Account => {
            let why = "names a message template and no person; give the business, too";
            Some(Violation::new("user_id", why))
        }
    };
    let invalid = more.iter().filter_map(|id| BusinessId::recorded(id).err());
    let invalid = invalid.map(|found| Violation::new("business_ids", found.description));
    let violations: Vec<_> = user.into_iter().chain(invalid).collect();
    if !violations.is_empty() {
        return Err(ReadError::Invalid(violations));
    }
    let secret = ledger.secret().await?;
    let mut businesses = businesses(ledger).await?;
    businesses.extend(more.iter().cloned());
    let mut keyed = Vec::with_capacity(businesses.len());
    for business_id in businesses {
        let keys = keys_of(&secret, user_id, &business_id).map_err(ReadError::Invalid)?;
        keyed.extend(keys.map(|key| (key, business_id.clone())));
    }
    let mut found = UserPairs { pairs: Vec::new(), clock: Timestamp::MIN };
    for chunk in keyed.chunks(MAX_APPEND) {
        let read = ledger.read(chunk.iter().map(|(key, _)| *key).collect()).await?;
        found.clock = read.clock;
        for ((key, business_id), stored) in chunk.iter().zip(read.pairs) {
            let stored = stored?;
            if stored.version.revision > 0 {
                let business_id = business_id.clone();
                found.pairs.push(UserPair { business_id, key: *key, stored });
            }
        }
    }
    if keyed.is_empty() {
        found.clock = ledger.read(Vec::new()).await?.clock;
    }
    Ok(found)
}
