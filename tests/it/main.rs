//! The sidecar as its users meet it: the real binary, real sockets, real files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub,
    reason = "tests read clocks and the environment, and are no library"
)]

mod admin;
mod basics;
mod bench;
mod browser;
mod clients;
mod comfort;
mod commands;
mod decision_log;
mod erase;
mod faults;
mod fuzz;
mod greedy;
mod hangup;
mod histories;
mod ids;
mod import;
mod killed;
mod limits;
mod linked;
mod listeners;
mod loadtest;
mod malformed;
mod memory;
mod metrics;
mod mistakes;
mod model;
mod moved;
mod operators;
mod own_files;
mod page;
mod proof;
mod rng;
mod shares;
mod shutdown;
mod sidecar;
mod streams;
mod traces;
mod warm;
mod watching;
mod webhook;
mod world;
