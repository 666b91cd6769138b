//! The read side of the ledger: the history of a pair, all pairs of a user, and opt-ins that expire.
//! It writes nothing; the recorder is the only writer.
//!
//! Keys are hashes of a user and a business. What a ledger stores under a key is found from the two
//! ids ([`of_pair`]), and the users behind keys are found in the histories ([`by_user`],
//! [`expiring_opt_ins`]).

pub mod by_user;
pub mod expiring_opt_ins;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use self::by_user::TooManyBusinesses;
use consentd_core::Violation;
use consentd_core::id::Key;
use consentd_core::record::Revision;
use consentd_ledger::{History, Ledger, LedgerError, Position, UnreadableRecord};

/// How many partitions are asked for their ends at once.
const MAX_POLLS: usize = 16;

/// Why a ledger could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// An id in the request is malformed.
    #[error("the request is not valid")]
    Invalid(Vec<Violation>),
    /// The search would have to keep too many names of businesses in memory.
    #[error(transparent)]
    TooManyBusinesses(#[from] TooManyBusinesses),
    /// A pair's record is damaged, lost, or in a format of a newer version.
    #[error(transparent)]
    Unreadable(#[from] UnreadableRecord),
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The history of a pair, whose chain was verified. The ids may be in notations that only older
/// versions accepted: their events are still in the ledger. Of an id that those versions read otherwise,
/// and under which nothing was recorded since, it is what they recorded.
///
/// # Errors
///
/// [`ReadError`] if an id is malformed or the ledger cannot be read.
pub async fn of_pair(
    ledger: &Ledger,
    user_id: &str,
    business_id: &str,
) -> Result<History, ReadError> {
    Ok(ledger.history(key_of_pair(ledger, user_id, business_id).await?).await?)
}

/// The key of a pair. The ids may be in notations that only older versions accepted, as for
/// [`of_pair`].
///
/// # Errors
///
/// As [`of_pair`].
pub async fn key_of_pair(
    ledger: &Ledger,
    user_id: &str,
    business_id: &str,
) -> Result<Key, ReadError> {
    let secret = ledger.secret().await?;
    let key = secret.read(user_id, business_id).map_err(ReadError::Invalid)?;
    match secret.read_formerly(user_id, business_id) {
        Some(former) if !was_recorded(ledger, key).await? => Ok(former),
        _ => Ok(key),
    }
}

/// Whether a pair's record has a history. A record is read for this, and not the history itself, which
/// may be long. An unreadable record was recorded, and is reported once its history is read.
async fn was_recorded(ledger: &Ledger, key: Key) -> Result<bool, LedgerError> {
    let stored = ledger.read(vec![key]).await?.pairs;
    Ok(stored.iter().any(|pair| match pair {
        Ok(stored) => stored.record.history_len > stored.record.history_start().0,
        Err(_) => true,
    }))
}

/// The ends of the logs of a ledger's partitions, in their order.
///
/// # Errors
///
/// [`LedgerError`] if one of them cannot be read.
pub async fn ends_of_logs(ledger: &Ledger) -> Result<Vec<Position>, LedgerError> {
    polled_ends(ledger).await?.into_iter().collect()
}

/// The last revisions of a ledger's partitions, in their order; `None` for one that cannot be read.
///
/// # Errors
///
/// [`LedgerError`] if none of them can be read.
pub async fn last_revisions(ledger: &Ledger) -> Result<Vec<Option<Revision>>, LedgerError> {
    let ends = polled_ends(ledger).await?;
    match ends.last() {
        Some(Err(error)) if ends.iter().all(Result::is_err) => Err(error.clone()),
        _ => Ok(ends.into_iter().map(|end| end.ok().map(|end| end.revision)).collect()),
    }
}

async fn polled_ends(ledger: &Ledger) -> Result<Vec<Result<Position, LedgerError>>, LedgerError> {
    let polls = stream::iter(ledger.partitions().await?)
        .map(|partition| async move { partition.read_after(Revision::MAX).await })
        .buffered(MAX_POLLS);
    Ok(polls.map_ok(|page| page.end).collect().await)
}
