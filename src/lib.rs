//! consentd answers, from memory and in microseconds, whether a business may message a WhatsApp
//! user. This is the map of the code; ARCHITECTURE.md has it with the walks, docs/ is for users.
//!
//! ```text
//! reads:   ledger ─► follower ─► table ─► checker (+ decision) ─► grpc
//!                    follower ─► change_feed ─► grpc
//! writes:  grpc, webhook (+ whatsapp) ─► recorder ─► ledger ─► (follower ─► table)
//! ```
//!
//! Crates below this one, each of which depends only on those before it:
//!
//! | crate | purpose |
//! |---|---|
//! | [`consentd_core`] | the domain's types, the rules and the decision; pure: no clock, no I/O, no async |
//! | [`consentd_os`] | the one place that reads clocks; files are identified, locked and protected |
//! | [`consentd_ledger`] | the durable truth: its operations and formats, in a file or in Redis |
//! | [`consentd_proto`] | the contract's messages and clients |
//! | [`consentd_bench`] | the load generator, and the made-up table that it asks about |
//!
//! The modules of the sidecar, in reading order:
//!
//! | module | purpose |
//! |---|---|
//! | `table` | the sharded map from which checks are answered, and its freshness |
//! | `change_feed` | the change feed that watchers read |
//! | `follower` | keeps the table equal to the ledger: a pure state machine and the task that feeds it |
//! | `history` | reads histories, by pair, by user and by expiry, from the ledger |
//! | `recorder` | validates, reads, applies, appends: the only way to write |
//! | `decision_log` | writes decisions as lines of JSON; no check waits for it |
//! | `checker` | makes a decision from the table, the policy and the clocks, for every reader |
//! | `net` | sockets, connection limits, TLS, the HTTP/1 serving loop, the log throttle |
//! | `budget` | how much memory clients can make the process hold, and each connection's share |
//! | `grpc` | translates between the wire and the domain; connections, limits, draining |
//! | `whatsapp` | converts WhatsApp's webhook payloads to events; pure |
//! | `secrets` | files of secrets, any of which is valid |
//! | `reload` | reads files again while the process runs |
//! | `webhook` | receives webhooks over HTTP: signatures, limits, responses once all is durable |
//! | `admin` | metrics, probes and a status page over HTTP |
//! | `metrics` | every instrument |
//! | `telemetry` | the log, and the export of traces |
//! | `config` | turns flags, environment and file into validated settings |
//! | `app` | builds every part, runs the tasks, and ends them in order |
//! | `cli` | the commands |
//!
//! Invariants, which crates and visibility enforce, or `tests/house` checks where a test can:
//!
//! - Only the follower holds the table's [`Writer`](table::Writer), and there is one.
//! - The table and the ledger do not know each other; the write path never touches the table.
//! - A decision sees neither a clock nor the network: time is a parameter.
//! - Every look-up returns the freshness of what it returns.
//! - No watcher of changes holds up the follower; no user's name is kept while there is no watcher.
//! - There is no second flag for health or readiness: both are derived from the table.
//! - No redb, redis, dashmap, axum, tonic or OpenTelemetry type crosses its module's border.
//! - No module below `config` sees the whole configuration, and no constructor spawns a task.
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
        reason = "a failed assumption ends the test"
    )
)]

mod admin;
mod app;
pub mod budget;
mod change_feed;
pub mod checker;
pub mod cli;
pub mod config;
pub mod decision_log;
pub mod follower;
pub mod grpc;
pub mod history;
pub mod metrics;
pub mod net;
pub mod recorder;
mod reload;
mod secrets;
pub mod table;
mod telemetry;
mod webhook;
mod whatsapp;
