//! Why a row is not recorded.

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
