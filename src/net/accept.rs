//! Accepts connections: at most so many at once, and again after a pause if the system is out of
//! resources.
//!
//! Idle connections keep no client out: if there are too many, the connection that has had nothing in
//! progress for the longest is closed to make room.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::log_throttle::LogThrottle;
use crate::metrics::Metrics;

/// How long to wait before accepting again after an error.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The shortest time between two warnings that connections cannot be accepted.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// How many evicted connections may still be closing before no more are accepted. Without this bound
/// a burst would open many more sockets than the listener's capacity.
const MAX_CLOSING: usize = 8;

/// How often evicted connections are looked at, while the listener waits for them to close.
const CLOSING_CHECK_INTERVAL: Duration = Duration::from_millis(1);
/// After so many looks the listener goes on without them.
const MAX_CLOSING_CHECKS: usize = 100;

/// How many connections a listener takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    /// The most connections at once.
    pub(crate) max: usize,
    /// From this number on, each new connection has the longest silent one shut down gracefully.
    pub(crate) crowded: usize,
    /// How long a connection must have been silent before it may be closed for another.
    pub(crate) min_silence: Duration,
}

/// Accepts a listener's connections and limits their number.
pub(crate) struct Acceptor {
    capacity: Capacity,
    open: Vec<OpenConnection>,
    /// One flag for each evicted connection, set once its socket is closed.
    closing: Vec<Arc<AtomicBool>>,
    /// The label under which `consent_refused_total` counts connections beyond the capacity: those
    /// that were refused, and those for which another was evicted.
    limit: Option<&'static str>,
    metrics: Arc<Metrics>,
    accept_errors: LogThrottle,
}

struct OpenConnection {
    close: CloseSignals,
    closed: Arc<AtomicBool>,
    /// Whether it has nothing in progress, and had nothing since the last call.
    is_silent: Box<dyn Fn() -> bool + Send>,
    silent_since: Option<Instant>,
}

/// The signals by which a connection is closed to make room for another.
#[derive(Clone, Debug, Default)]
pub(crate) struct CloseSignals {
    /// Finish what was begun, and close.
    pub(crate) graceful: CancellationToken,
    /// Close at once.
    pub(crate) immediate: CancellationToken,
}

/// The permit of an open connection. Dropping it makes room for another.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    /// Cancelled when the permit is needed for another connection.
    pub(crate) close: CloseSignals,
    closed: Arc<AtomicBool>,
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

impl Acceptor {
    /// An acceptor of this capacity. `limit` is the label of `consent_refused_total`.
    pub(crate) fn new(
        capacity: Capacity,
        limit: Option<&'static str>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (open, closing) = (Vec::new(), Vec::new());
        let accept_errors = LogThrottle::new(LOG_INTERVAL);
        Self { capacity, open, closing, limit, metrics, accept_errors }
    }

    /// Admits a new connection, if there is room or a silent connection can be evicted for it.
    /// `is_silent` says whether the new connection has nothing in progress.
    pub(crate) fn admit(
        &mut self,
        is_silent: impl Fn() -> bool + Send + 'static,
    ) -> Option<ConnectionPermit> {
        self.admit_at(Instant::now(), is_silent)
    }

    fn admit_at(
        &mut self,
        now: Instant,
        is_silent: impl Fn() -> bool + Send + 'static,
    ) -> Option<ConnectionPermit> {
        self.update_silence(now);
        if self.open.len() >= self.capacity.max {
            if let Some(limit) = self.limit {
                self.metrics.refused(limit);
            }
            let evicted = self.longest_silent(now)?;
            let evicted = self.open.swap_remove(evicted);
            evicted.close.immediate.cancel();
            self.closing.push(evicted.closed);
        } else if self.open.len() >= self.capacity.crowded
            && let Some(silent) = self.longest_silent(now).and_then(|index| self.open.get(index))
        {
            silent.close.graceful.cancel();
        }
        let permit = ConnectionPermit { close: CloseSignals::default(), closed: Arc::default() };
        self.open.push(OpenConnection {
            close: permit.close.clone(),
            closed: Arc::clone(&permit.closed),
            is_silent: Box::new(is_silent),
            silent_since: None,
        });
        Some(permit)
    }

    /// Whether the next connection may have another one closed. While it is so,
    /// [`update_silence`](Self::update_silence) must be called periodically, so that the acceptor knows
    /// since when each connection is silent.
    pub(crate) fn is_crowded(&self) -> bool {
        self.open.len() >= self.capacity.crowded
    }

    /// Updates since when each open connection is silent.
    pub(crate) fn update_silence(&mut self, now: Instant) {
        self.open.retain(|connection| !connection.closed.load(Ordering::Relaxed));
        for connection in &mut self.open {
            connection.silent_since =
                if (connection.is_silent)() { connection.silent_since.or(Some(now)) } else { None };
        }
    }

    /// The index of the connection that has been silent for the longest, and for at least the minimum.
    /// Connections that are not being shut down already come first.
    fn longest_silent(&self, now: Instant) -> Option<usize> {
        let long_enough = |connection: &OpenConnection| {
            connection.silent_since.is_some_and(|since| now - since >= self.capacity.min_silence)
        };
        let silent = self.open.iter().enumerate().filter(|(_, open)| long_enough(open));
        let by_silence = |(_, open): &(usize, &OpenConnection)| {
            (open.close.graceful.is_cancelled(), open.silent_since)
        };
        silent.min_by_key(by_silence).map(|(index, _)| index)
    }

    /// Waits until few evicted connections are still open, 100 ms at the most. It must be called
    /// before a connection is admitted, as [`accept_next`](Self::accept_next) does.
    pub(crate) async fn wait_for_closing(&mut self) {
        for _ in 0..MAX_CLOSING_CHECKS {
            self.closing.retain(|closed| !closed.load(Ordering::Relaxed));
            if self.closing.len() < MAX_CLOSING {
                return;
            }
            sleep(CLOSING_CHECK_INTERVAL).await;
        }
        // A connection that does not close in time must not keep others out.
        self.closing.clear();
    }

    /// Accepts the next connection. This future is cancel safe.
    pub(crate) async fn accept_next<T, F: Future<Output = io::Result<T>>>(
        &mut self,
        accept: impl Fn() -> F,
    ) -> T {
        self.wait_for_closing().await;
        loop {
            match accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    // Mostly the process is out of file descriptors. That passes, and a busy loop
                    // would not help.
                    self.metrics.refused("accept");
                    if self.accept_errors.record(1).is_some() {
                        warn!(
                            %error,
                            "cannot accept connections: retrying every 100 ms; if it is \"too many \
                             open files\", raise the limit of file descriptors (ulimit -n) or lower \
                             --max-connections"
                        );
                    }
                    sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acceptor(max: usize, crowded: usize, min_silence: Duration) -> Acceptor {
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        Acceptor::new(Capacity { max, crowded, min_silence }, Some("connections"), metrics)
    }

    #[test]
    fn admit_at_capacity_evicts_the_longest_silent_connection() {
        let silence = Duration::from_secs(10);
        let (mut acceptor, now) = (acceptor(3, 2, silence), Instant::now());
        let busy = acceptor.admit_at(now, || false).unwrap();
        let first = acceptor.admit_at(now, || true).unwrap();
        let second = acceptor.admit_at(now, || true).unwrap();
        assert!(
            acceptor.admit_at(now, || true).is_none(),
            "no connection was silent for long enough"
        );
        let later = now + silence;
        let third = acceptor.admit_at(later, || true).unwrap();
        let ended = [&first, &second].map(|permit| permit.close.immediate.is_cancelled());
        assert_eq!(ended.iter().filter(|ended| **ended).count(), 1);
        assert!(!busy.close.immediate.is_cancelled());
        drop(third);
        let _fourth = acceptor.admit_at(later, || true).unwrap();
        for silent in [&first, &second] {
            let CloseSignals { graceful, immediate } = &silent.close;
            assert!(graceful.is_cancelled() != immediate.is_cancelled(), "crowded, but not full");
        }
        assert!(!busy.close.graceful.is_cancelled());
    }

    #[tokio::test]
    async fn wait_for_closing_forgets_closed_connections() {
        let mut acceptor = acceptor(8, 8, Duration::ZERO);
        let mut permits = std::collections::VecDeque::new();
        for _ in 0..1_000 {
            acceptor.wait_for_closing().await;
            permits.push_back(acceptor.admit(|| true).unwrap());
            permits.retain(|permit| !permit.close.immediate.is_cancelled());
            assert!(acceptor.open.len() <= 8 && acceptor.closing.len() <= MAX_CLOSING);
        }
    }

    #[test]
    fn update_silence_between_admissions_starts_the_silence() {
        let silence = Duration::from_secs(10);
        let (mut acceptor, now) = (acceptor(1, 1, silence), Instant::now());
        let _connection = acceptor.admit_at(now, || true).unwrap();
        assert!(acceptor.is_crowded());
        acceptor.update_silence(now);
        assert!(acceptor.admit_at(now + silence, || true).is_some(), "the first attempt succeeds");
    }

    #[test]
    fn admit_restarts_silence_after_a_call() {
        let silence = Duration::from_secs(10);
        let (mut acceptor, now) = (acceptor(1, 1, silence), Instant::now());
        let called = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&called);
        let _connection =
            acceptor.admit_at(now, move || !seen.swap(false, Ordering::Relaxed)).unwrap();
        assert!(acceptor.admit_at(now, || true).is_none());
        called.store(true, Ordering::Relaxed);
        assert!(acceptor.admit_at(now + silence / 2, || true).is_none());
        assert!(acceptor.admit_at(now + silence, || true).is_none(), "it made a call meanwhile");
        assert!(acceptor.admit_at(now + 3 * silence, || true).is_some());
    }
}
