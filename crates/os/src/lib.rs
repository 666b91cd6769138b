//! The operating system, as consentd uses it: clocks, file identity and permissions, the memory limit,
//! and hints for I/O errors. Other modules get times and open files as parameters, which keeps them testable.

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
pub mod memory_limit;
