//! What is counted of the answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tonic::Code;

use super::super::latencies::Latencies;
use super::answers::Answer;
use super::pace::Ticket;

/// More than the contract has reasons.
const REASONS: usize = 64;

/// What came of the requests that count.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// From when they were to be sent.
    pub(super) latency: Latencies,
    /// From when they were sent.
    pub(super) service: Latencies,
    /// Requests that were answered.
    pub(super) requests: u64,
    /// Decisions, by the number of their reason.
    pub(super) reasons: [u64; REASONS],
    /// What was not decided, by its code.
    pub(super) errors: BTreeMap<i32, u64>,
    /// Connections that ended, and could not be made again, by the code of what they ended with.
    pub(super) lost: BTreeMap<i32, u64>,
    /// Requests that were due, and were not sent for want of time.
    pub(super) late: u64,
    /// When the last one was answered.
    pub(super) last: Duration,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            latency: Latencies::new(),
            service: Latencies::new(),
            requests: 0,
            reasons: [0; REASONS],
            errors: BTreeMap::new(),
            lost: BTreeMap::new(),
            late: 0,
            last: Duration::ZERO,
        }
    }

    /// One more request was answered.
    pub(super) fn answered(&mut self, ticket: &Ticket, now: Duration) {
        self.requests += 1;
        self.last = self.last.max(now);
        self.latency.record(now.saturating_sub(ticket.intended));
        self.service.record(now.saturating_sub(ticket.sent));
    }

    /// What it said to one of its questions.
    pub(super) fn count(&mut self, answer: Answer) {
        match answer {
            Answer::Reason(reason) => {
                let place = usize::try_from(reason).ok();
                match place.and_then(|place| self.reasons.get_mut(place)) {
                    Some(count) => *count += 1,
                    None => self.failed(Code::Internal.into(), 1),
                }
            }
            Answer::Error(code) => {
                self.failed(i32::try_from(code).unwrap_or(Code::Unknown.into()), 1);
            }
        }
    }

    /// So many were not answered.
    pub(super) fn failed(&mut self, code: i32, count: u64) {
        if count > 0 {
            *self.errors.entry(code).or_default() += count;
        }
    }

    /// A connection ended so, and could not be made again.
    pub(super) fn lost(&mut self, code: i32) {
        *self.lost.entry(code).or_default() += 1;
    }

    pub(super) fn all_lost(&self) -> u64 {
        self.lost.values().sum()
    }

    pub(super) fn checks(&self) -> u64 {
        self.reasons.iter().sum()
    }

    pub(super) fn all_errors(&self) -> u64 {
        self.errors.values().sum()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.latency.add(&other.latency);
        self.service.add(&other.service);
        self.requests += other.requests;
        for (count, more) in self.reasons.iter_mut().zip(other.reasons) {
            *count += more;
        }
        for (code, count) in &other.errors {
            self.failed(*code, *count);
        }
        for (code, count) in &other.lost {
            *self.lost.entry(*code).or_default() += count;
        }
        self.late += other.late;
        self.last = self.last.max(other.last);
    }
}

/// What is shown while a load lasts. One for each thread: they do not wait for each other's.
#[derive(Debug, Default)]
pub(super) struct Live {
    checks: AtomicU64,
    errors: AtomicU64,
}

impl Live {
    pub(super) fn add(&self, checks: u64, errors: u64) {
        self.checks.fetch_add(checks, Ordering::Relaxed);
        if errors > 0 {
            self.errors.fetch_add(errors, Ordering::Relaxed);
        }
    }

    /// How many checks and how many errors there were.
    pub(super) fn read(&self) -> (u64, u64) {
        (self.checks.load(Ordering::Relaxed), self.errors.load(Ordering::Relaxed))
    }
}
