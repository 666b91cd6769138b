//! A load generator for consentd. It measures from outside: it knows the contract and not the
//! sidecar. `consentd bench` parses its flags and prints its figures.
//!
//! In reading order: [`fixture`] (a made-up table, which `serve --synthetic` holds), [`workload`]
//! (questions about it, and how they are encoded), [`latencies`] (a histogram), [`load`]
//! (throughput and latency of checks), [`propagation`] (how long a recorded event takes to be
//! enforced by other sidecars).

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
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::disallowed_methods,
        reason = "a failed assumption ends the test"
    )
)]

pub mod fixture;
pub mod latencies;
pub mod load;
pub mod propagation;
pub mod workload;

use std::time::Duration;

/// How far a measurement has come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// The time since the first request was due.
    pub elapsed: Duration,
    /// How many checks or recordings were answered.
    pub answered: u64,
    /// How many failed.
    pub failed: u64,
}
