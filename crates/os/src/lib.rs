//! What consentd asks of the operating system, so that everything else gets it as a parameter:
//! clocks, and files.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::disallowed_methods,
        reason = "a test ends where something is not as it should be"
    )
)]

pub mod access;
pub mod clock;
pub mod files;
