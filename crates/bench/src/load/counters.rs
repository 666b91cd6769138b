//! The counters of a load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tonic::Code;

use super::response_decode::Outcome;
use super::schedule::DueRequest;
use crate::latencies::Latencies;

/// More than the contract has reasons.
const MAX_REASONS: usize = 64;
/// The contract's promise: reasons with smaller numbers allow, all others deny.
const FIRST_DENYING_REASON: usize = 10;

/// The results of the measured requests.
#[derive(Clone, Debug)]
pub struct Counters {
    /// From when requests were due to their responses.
    pub latency: Latencies,
    /// From when requests were sent to their responses.
    pub service_time: Latencies,
    /// Answered requests.
    pub requests: u64,
    /// Decisions, by the number of their reason.
    pub reasons: [u64; MAX_REASONS],
    /// Failed requests and questions, by gRPC code.
    pub errors: BTreeMap<i32, u64>,
    /// Connections that broke and could not be replaced, by the gRPC code of the failure.
    pub lost_connections: BTreeMap<i32, u64>,
    /// Requests that were overdue at the end of the load, and were not sent.
    pub not_sent: u64,
    /// When the last response arrived.
    pub(super) last_response: Duration,
}

impl Counters {
    pub(super) fn new() -> Self {
        Self {
            latency: Latencies::new(),
            service_time: Latencies::new(),
            requests: 0,
            reasons: [0; MAX_REASONS],
            errors: BTreeMap::new(),
            lost_connections: BTreeMap::new(),
            not_sent: 0,
            last_response: Duration::ZERO,
        }
    }

    pub(super) fn count_response(&mut self, request: &DueRequest, now: Duration) {
        self.requests += 1;
        self.last_response = self.last_response.max(now);
        self.latency.record(now.saturating_sub(request.due));
        self.service_time.record(now.saturating_sub(request.sent));
    }

    pub(super) fn count_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Decision(reason) => {
                let index = usize::try_from(reason).ok();
                match index.and_then(|index| self.reasons.get_mut(index)) {
                    Some(count) => *count += 1,
                    None => self.count_error(Code::Internal.into()),
                }
            }
            Outcome::Error(code) => {
                self.count_error(i32::try_from(code).unwrap_or(Code::Unknown.into()));
            }
        }
    }

    pub(super) fn count_error(&mut self, code: i32) {
        *self.errors.entry(code).or_default() += 1;
    }

    pub(super) fn count_lost_connection(&mut self, code: i32) {
        *self.lost_connections.entry(code).or_default() += 1;
    }

    /// All decisions.
    #[must_use]
    pub fn checks(&self) -> u64 {
        self.reasons.iter().sum()
    }

    /// The decisions that allow.
    #[must_use]
    pub fn allowed(&self) -> u64 {
        self.reasons.iter().take(FIRST_DENYING_REASON).sum()
    }

    /// All failed requests and questions.
    #[must_use]
    pub fn all_errors(&self) -> u64 {
        self.errors.values().sum()
    }

    /// All connections that broke and could not be replaced.
    #[must_use]
    pub fn all_lost_connections(&self) -> u64 {
        self.lost_connections.values().sum()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.service_time.add(&other.service_time);
        self.requests += other.requests;
        for (count, more) in self.reasons.iter_mut().zip(other.reasons) {
            *count += more;
        }
        for (code, count) in &other.errors {
            *self.errors.entry(*code).or_default() += count;
        }
        for (code, count) in &other.lost_connections {
            *self.lost_connections.entry(*code).or_default() += count;
        }
        self.not_sent += other.not_sent;
        self.last_response = self.last_response.max(other.last_response);
    }
}

/// The counters that progress is reported from. Each thread has its own, so that threads do not
/// contend for a cache line.
#[derive(Debug, Default)]
pub(super) struct LiveCounters {
    checks: AtomicU64,
    errors: AtomicU64,
}

impl LiveCounters {
    pub(super) fn add(&self, checks: u64, errors: u64) {
        self.checks.fetch_add(checks, Ordering::Relaxed);
        if errors > 0 {
            self.errors.fetch_add(errors, Ordering::Relaxed);
        }
    }

    /// How many checks were answered, and how many errors there were.
    pub(super) fn read(&self) -> (u64, u64) {
        (self.checks.load(Ordering::Relaxed), self.errors.load(Ordering::Relaxed))
    }
}
