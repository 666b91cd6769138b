//! Why a row is not recorded.

pub(super) const INVALID_TIME: &str = "must be a moment with its zone, such as \
                                       2026-01-31T09:30:00Z or 2026-01-31T09:30:00+01:00";

/// Why a row is not recorded. The text does not quote the row, which may name a user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    /// The field or the column, or nothing if it is about the whole row.
    pub(super) field: String,
    pub(super) reason: String,
}

impl Fault {
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}
