//! The gRPC services: they translate between the wire and the domain. Only this module uses `Status`.
//!
//! In reading order: [`connection`] (HTTP/2 connections and their end), `connection_context` (what the
//! calls of a connection share), `router` (which service takes a call, and which calls are refused),
//! `auth` and `roles` (who may do what), `body` (bodies whose bytes are charged to a budget),
//! `call_telemetry` (logs and traces of single calls), `consent_service` (with `stream_can_send`,
//! `filter_recipients` and [`watch_consents`]) and `record_service` (with `history_service`), `health`,
//! `convert`, `status` (errors on the wire), [`codec`], `fast_decode` (requests read in place).

mod auth;
mod body;
mod call_telemetry;
mod client_frames;
pub mod codec;
pub mod connection;
mod connection_context;
mod consent_service;
mod convert;
mod fast_decode;
mod filter_recipients;
mod header_block;
mod health;
mod history_service;
mod method;
mod record_service;
mod roles;
mod router;
mod status;
mod stream_can_send;
mod table_status;
pub mod watch_consents;

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

pub use auth::BearerTokens;
pub use call_telemetry::CallTelemetry;
pub use consent_service::{CheckLimits, CheckService};
pub use convert::{entry, event_error};
pub use health::HealthService;
pub use record_service::{
    LEDGER_ID, PARTITION_REVISIONS, PARTITION_SPREAD, REVISION, RecordService,
};
pub use roles::{Role, Roles};
pub use router::{ReflectionError, Router};
pub use watch_consents::WatchService;

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

/// The most bytes of a request, except for batches.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// The most bytes of a batch's request.
pub const MAX_BATCH_BYTES: usize = 2 * 1024 * 1024;

/// The longest part of a caller's timeout that is reserved for the response's way back. The reserve
/// is an eighth otherwise.
const MAX_RESPONSE_MARGIN: Duration = Duration::from_millis(50);

/// When a response must be sent to reach its caller in time.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let timeout = timeout_of(metadata.get("grpc-timeout")?.to_str().ok()?)?;
    Instant::now().checked_add(timeout.saturating_sub((timeout / 8).min(MAX_RESPONSE_MARGIN)))
}

/// Parses a `grpc-timeout` header: at most 8 digits and a unit.
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
