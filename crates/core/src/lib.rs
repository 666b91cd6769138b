//! The domain of consent: its types, the rules by which events change a pair's state, and the decision.
//! Pure: no clock, no I/O, no async.
//!
//! In reading order: [`time`], [`hidden_chars`] (hidden characters in ids), [`user_id`] (the notations
//! of user ids), [`id`] (users, businesses, keys), [`partition`] (which part of a divided ledger a key is
//! in), [`businesses`] (which of them a table holds), [`scope`] (classes, categories), [`template`]
//! (templates in the place of users), [`event`] (events and their validation), [`submission`] (an event to
//! be recorded, with what is known of its source), [`state`] (how events change a state), [`platform_stops`] (stops inside WhatsApp, by number), [`claims`] (the claimed times of clamped
//! events), [`record`] (a state with the head of its history), [`standing`] (the facts that a decision
//! needs), [`decision`] (whether a message may be sent), [`retained_denials`] (denials that survive a
//! loss of the ledger), [`unified`] (pairs that turn out to be one person), [`expiring_opt_ins`],
//! [`keyword`] (the meaning of a text), [`replay`] (the state and decisions as of a past time).

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

pub mod businesses;
pub mod claims;
pub mod country_list;
pub mod decision;
pub mod event;
mod evidence;
pub mod expiring_opt_ins;
pub mod failure;
pub mod hidden_chars;
pub mod id;
pub mod keyword;
pub mod partition;
pub mod platform_stops;
pub mod record;
pub mod replay;
pub mod retained_denials;
pub mod scope;
pub mod standing;
pub mod state;
pub mod submission;
pub mod template;
pub mod time;
pub mod unified;
pub mod user_id;

/// An invalid field of a request, described so that the caller can correct it.
///
/// It never contains the invalid value if that may name a user.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {description}")]
pub struct Violation {
    /// The field's path, such as `opt_in.evidence.statement`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub description: String,
}

impl Violation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }

    /// The same violation with its field nested in `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => outer.to_owned(),
            inner => format!("{outer}.{inner}"),
        };
        self
    }
}
