//! Why a check has no answer.

use crate::table::{NoPair, NotHeld};
use consentd_core::Violation;
use consentd_core::record::Revision;

/// Why no decision was made. A client that gets this error must not send.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CheckError {
    /// Fields of the request are invalid.
    #[error("the request is not valid")]
    Invalid(Vec<Violation>),
    /// The table has not been loaded yet.
    #[error("the table has not been loaded yet")]
    NotReady,
    /// The table is known to be wrong, so what it holds of a pair is not returned. Checks are denied as stale
    /// instead.
    #[error("the table is known to be wrong, and is being loaded again")]
    Reloading,
    /// The table does not hold the business.
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
}

impl From<NoPair> for CheckError {
    fn from(error: NoPair) -> Self {
        match error {
            NoPair::Invalid(violations) => Self::Invalid(violations),
            NoPair::NotHeld(not_held) => Self::NotHeld(not_held),
        }
    }
}

/// The table did not reach a revision in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("revision {wanted} did not arrive in time; the table holds {applied}")]
pub struct RevisionTimeout {
    /// The revision that was waited for.
    pub wanted: Revision,
    /// The last revision that the table had applied.
    pub applied: Revision,
}
