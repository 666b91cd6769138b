//! Bounds on threads, connections, calls, memory and time.

use std::time::Duration;

use bytesize::ByteSize;
use clap::Args;
use serde::Deserialize;

use super::ConfigError;
use super::values::{at_least, at_most, bytes_of, number, size, span};
use crate::budget::{MIN_BYTES, MIN_CONNECTION_BYTES};

/// The most threads that serve: each has a stack, and threads beyond the CPUs serve nothing faster.
const MAX_WORKERS: usize = 1_024;
/// The most connections of a listener; the system's limit on open files is lower.
const MAX_CONNECTIONS: usize = 1 << 20;

/// Bounds on threads, connections, calls, memory and time.
#[derive(Args, Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct LimitArgs {
    /// Threads that serve [default: 2, or the CPUs that this process may use where that is less]
    #[arg(long, env = "CONSENTD_WORKERS", value_name = "N", value_parser = number::<usize>)]
    pub workers: Option<usize>,
    /// gRPC connections at once, on each listener; beyond them only probes are answered
    /// [default: 1024]
    #[arg(long, env = "CONSENTD_MAX_CONNECTIONS", value_name = "N", value_parser = number::<usize>)]
    pub max_connections: Option<usize>,
    /// Checks being answered at once, or waiting for a revision, on all listeners together;
    /// recordings have a quarter as many places of their own [default: 4096]
    #[arg(long, env = "CONSENTD_MAX_IN_FLIGHT", value_name = "N", value_parser = number::<usize>)]
    pub max_in_flight: Option<usize>,
    /// Bytes of all that is not answered yet, on all listeners together; checks, recordings,
    /// webhooks and probes have parts of their own; 32MiB or more [default: 64MiB]
    #[arg(long, env = "CONSENTD_MAX_REQUEST_BYTES", value_name = "SIZE", value_parser = size)]
    pub max_request_bytes: Option<ByteSize>,
    /// The most of them for one connection; where little is free, it gets half of that at the most;
    /// 5MiB or more [default: 8MiB]
    #[arg(long, env = "CONSENTD_MAX_CONNECTION_BYTES", value_name = "SIZE", value_parser = size)]
    pub max_connection_bytes: Option<ByteSize>,
    /// Requests of one BatchCanSend [default: 1000]
    #[arg(long, env = "CONSENTD_MAX_BATCH", value_name = "N", value_parser = number::<usize>)]
    pub max_batch: Option<usize>,
    /// Users of one message of FilterRecipients, of 2 MiB at the most [default: 10000]
    #[arg(long, env = "CONSENTD_MAX_RECIPIENTS", value_name = "N", value_parser = number::<usize>)]
    pub max_recipients: Option<usize>,
    /// Streams of WatchConsents at once, on all listeners together; 0 for none [default: 100]
    #[arg(long, env = "CONSENTD_MAX_WATCHERS", value_name = "N", value_parser = number::<usize>)]
    pub max_watchers: Option<usize>,
    /// Ask a connection to end after this long; clients connect again [default: 1h]
    #[arg(long, env = "CONSENTD_MAX_CONNECTION_AGE", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    pub max_connection_age: Option<Duration>,
    /// How long a shutdown waits for what was begun [default: 10s]
    #[arg(long, env = "CONSENTD_DRAIN_TIMEOUT", value_name = "TIME", value_parser = span)]
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Option<Duration>,
}

impl LimitArgs {
    /// These settings; where one is unset, that of `weaker`.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            workers: self.workers.or(weaker.workers),
            max_connections: self.max_connections.or(weaker.max_connections),
            max_in_flight: self.max_in_flight.or(weaker.max_in_flight),
            max_request_bytes: self.max_request_bytes.or(weaker.max_request_bytes),
            max_connection_bytes: self.max_connection_bytes.or(weaker.max_connection_bytes),
            max_batch: self.max_batch.or(weaker.max_batch),
            max_recipients: self.max_recipients.or(weaker.max_recipients),
            max_watchers: self.max_watchers.or(weaker.max_watchers),
            max_connection_age: self.max_connection_age.or(weaker.max_connection_age),
            drain_timeout: self.drain_timeout.or(weaker.drain_timeout),
        }
    }

    /// Checks each bound and fills in the defaults.
    pub(super) fn validate(self) -> Result<LimitSettings, ConfigError> {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(LimitSettings {
            workers: at_most(MAX_WORKERS, "--workers", self.workers, cpus.min(2))?,
            max_connections: at_most(
                MAX_CONNECTIONS,
                "--max-connections",
                self.max_connections,
                1_024,
            )?,
            max_in_flight: at_least(1, "--max-in-flight", self.max_in_flight, 4_096)?,
            max_request_bytes: bytes_of(
                MIN_BYTES,
                "--max-request-bytes",
                self.max_request_bytes.unwrap_or(ByteSize::mib(64)),
            )?,
            max_connection_bytes: bytes_of(
                MIN_CONNECTION_BYTES,
                "--max-connection-bytes",
                self.max_connection_bytes.unwrap_or(ByteSize::mib(8)),
            )?,
            max_batch: at_least(1, "--max-batch", self.max_batch, 1_000)?,
            max_recipients: at_least(1, "--max-recipients", self.max_recipients, 10_000)?,
            max_watchers: self.max_watchers.unwrap_or(100),
            max_connection_age: self.max_connection_age.unwrap_or(Duration::from_hours(1)),
            drain_timeout: self.drain_timeout.unwrap_or(Duration::from_secs(10)),
        })
    }
}

/// Bounds on threads, connections, calls, memory and time.
#[derive(Clone, Debug)]
pub struct LimitSettings {
    /// Threads that serve.
    pub workers: usize,
    /// Connections of each listener.
    pub max_connections: usize,
    /// Concurrent checks, on all listeners together.
    pub max_in_flight: usize,
    /// Bytes of all requests and answers that are in flight.
    pub max_request_bytes: usize,
    /// Bytes of those on one connection.
    pub max_connection_bytes: usize,
    /// Requests of one `BatchCanSend`.
    pub max_batch: usize,
    /// Users of one message of `FilterRecipients`.
    pub max_recipients: usize,
    /// Concurrent streams of `WatchConsents`.
    pub max_watchers: usize,
    /// The age at which a connection is asked to end.
    pub max_connection_age: Duration,
    /// How long a shutdown waits for the calls that were begun.
    pub drain_timeout: Duration,
}
