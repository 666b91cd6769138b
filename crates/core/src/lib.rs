//! The nouns of consent, and how events make a pair's record. Pure: no clock, no I/O, no async.
//!
//! In reading order: [`time`], [`hidden`] (characters that are invisible), [`user_id`] (how a user id is read), [`id`] (users, businesses,
//! keys), [`scope`] (classes, categories), [`event`] (what can happen, and what is refused),
//! [`state`] (how events make a state), [`claims`] (the times that fast clocks claimed), [`record`]
//! (a state with its history's head and its request ids), [`facts`] (what a decision needs to know of
//! a state), [`decision`] (may it be sent), [`denied`] (retained denials), [`due`] (opt-ins that
//! expire), [`keyword`] (what a text means), [`replay`] (what would have been decided at a moment).

#![warn(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::as_conversions, clippy::arithmetic_side_effects)
)]

pub mod claims;
pub mod decision;
pub mod denied;
pub mod due;
pub mod event;
pub mod facts;
pub mod hidden;
pub mod id;
pub mod keyword;
pub mod record;
pub mod replay;
pub mod scope;
pub mod state;
pub mod time;
pub mod user_id;

/// Something wrong with one field of what a caller gave, in words that the caller can act upon.
///
/// Never holds the offending value where that may name a user.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {description}")]
pub struct Violation {
    /// The field's path, such as `opt_in.evidence.statement`.
    pub field: String,
    /// What was wrong, and what would be right.
    pub description: String,
}

impl Violation {
    /// Says what was wrong with `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }

    /// The same violation, seen from one level further out.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => outer.to_owned(),
            inner => format!("{outer}.{inner}"),
        };
        self
    }
}
