//! consentd answers, from memory and in microseconds, whether a business may message a WhatsApp
//! user. This is the map of the code; ARCHITECTURE.md has it with the walks, docs/ is for users.
//!
//! ```text
//! reads:   ledger ─► follower ─► table ─► checker (+ decision) ─► grpc
//!                    follower ─► change_feed ─► grpc
//! writes:  grpc, webhook (+ whatsapp) ─► recorder ─► ledger ─► (follower ─► table)
//! ```
//!
//! Crates below this one, each of which knows only those before it:
//!
//! | crate | purpose |
//! |---|---|
//! | [`consentd_core`] | the nouns, the rules and the decision; pure: no clock, no I/O, no async |
//! | [`consentd_os`] | the one place that reads clocks; files are told apart, locked and protected |
//! | [`consentd_ledger`] | the durable truth: its operations and formats, in a file or in Redis |
//! | [`consentd_proto`] | the contract's messages and clients |
//!
//! The modules of the sidecar, in reading order:
//!
//! | module | purpose |
//! |---|---|
//! | [`table`] | the sharded map from which checks are answered, and how current it is |
//! | [`change_feed`] | the change feed that watchers read |
//! | [`follower`] | keeps the table equal to the ledger: a pure machine and the task that feeds it |
//! | [`recorder`] | validate, read, apply, append: the only way in |
//! | [`decision_log`] | decisions as lines of JSON that no check waits for |
//! | [`checker`] | table, policy and clocks make a decision: what every reader calls |
//! | [`grpc`] | between the wire and the domain; sockets, limits, draining |
//! | [`whatsapp`] | what WhatsApp's webhooks say, as events; pure |
//! | [`webhook`] | receives them over HTTP: signatures, limits, answers once all is durable |
//! | [`synthetic`] | a table for load tests |
//! | [`admin`] | metrics, probes and a page for people over HTTP |
//! | [`net`] | sockets, and how many connections a listener takes at once |
//! | [`budget`] | how much memory clients can make the process hold, and everybody's share of it |
//! | [`metrics`] | every instrument |
//! | [`telemetry`] | the log, and the traces that are exported |
//! | [`config`] | flags, environment and file become validated settings |
//! | [`app`] | what is built from them, which tasks run, in which order they end |
//! | [`cli`] | the commands |
//!
//! What is never so, and is enforced by the crates, or checked by `tests/house` where a test can:
//!
//! - Nobody but the follower holds the table's [`Writer`](table::Writer), and there is one.
//! - The table and the ledger do not know each other; the write path never touches the table.
//! - A decision sees neither a clock nor the network: time is a parameter.
//! - Nobody reads consent without being told how old it is: a look-up returns both.
//! - Nobody who watches changes holds up the follower; nobody's name is kept where nobody does.
//! - There is no second flag for health or readiness: both are read off the table.
//! - No redb, redis, dashmap, axum, tonic or OpenTelemetry type crosses its module's border.
//! - Nothing below `config` sees the whole configuration, and no constructor spawns anything.
//! - No user id, message text or secret is in a log line, a metric or an error.

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
        reason = "a test ends where something is not as it should be"
    )
)]

pub mod admin;
pub mod app;
pub mod budget;
pub mod change_feed;
pub mod checker;
pub mod cli;
pub mod config;
pub mod decision_log;
pub mod follower;
pub mod grpc;
pub mod metrics;
pub mod net;
pub mod recorder;
pub mod synthetic;
pub mod table;
pub mod telemetry;
pub mod webhook;
pub mod whatsapp;
