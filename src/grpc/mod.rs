//! The gRPC services: between the wire and the domain. The only place that knows `Status`.
//!
//! In reading order: [`connection`] (HTTP/2 connections and their end), `router` (which service takes
//! a call, and which calls are refused), `body` (bodies whose bytes are charged to a budget),
//! `call_telemetry` (logs and traces of single calls), `consent_service` (with `stream_can_send`,
//! `filter_recipients` and [`watch_consents`]) and `record_service` (with `history_service`), `health`,
//! `convert`, `status` (errors on the wire), [`codec`], `fast_decode` (requests read in place).

mod body;
mod call_telemetry;
pub mod codec;
pub mod connection;
mod consent_service;
mod convert;
mod fast_decode;
mod filter_recipients;
mod health;
mod history_service;
mod record_service;
mod router;
mod status;
mod stream_can_send;
pub mod watch_consents;

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

pub use call_telemetry::Watcher;
pub use consent_service::{CheckLimits, CheckService};
pub use convert::entry;
pub use health::HealthService;
pub use record_service::{LEDGER_ID, REVISION, RecordService};
pub use router::{ReflectionError, Routes, Tokens, TokensError};
pub use watch_consents::Watches;

pub use consentd_proto::DESCRIPTOR_SET;

/// The contract's messages, clients and servers, generated from `proto/consent/v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    rustdoc::all,
    clippy::pedantic,
    clippy::large_enum_variant,
    reason = "generated"
)]
pub mod pb {
    pub use consentd_proto::v1::*;

    tonic::include_proto!("consent.v1");
}

/// The most bytes of a request, but for those of batches.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// The most bytes of a batch's request.
pub const MAX_BATCH_BYTES: usize = 2 * 1024 * 1024;

/// How much of a caller's patience is left for the answer's way back: an eighth, this at most.
const WAY_BACK: Duration = Duration::from_millis(50);

/// When an answer must leave to reach its caller in time.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let timeout = timeout_of(metadata.get("grpc-timeout")?.to_str().ok()?)?;
    Instant::now().checked_add(timeout.saturating_sub((timeout / 8).min(WAY_BACK)))
}

/// How long a caller waits, as its `grpc-timeout` header says: at most 8 digits and a unit.
fn timeout_of(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3_600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}
