//! What consentd asks of the operating system, so that everything else gets it as a parameter:
//! clocks, and files.

#![warn(
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)]

pub mod backoff;
pub mod clock;
pub mod files;
pub mod io_hint;
