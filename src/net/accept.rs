//! Letting connections in: so many at once, and with patience where the system has no more to give.
//!
//! Silent connections keep nobody out: where there are too many, the one that has had nothing in
//! progress for the longest makes room.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::metrics::Metrics;

/// How long to wait before accepting again where the system is out of something.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a system that stays out of something is complained about.
const COMPLAINTS: Duration = Duration::from_secs(30);

/// How many connections that were ended for others may still be closing before no more are
/// accepted: a burst would otherwise open many more sockets than the listener has places.
const MAX_CLOSING: usize = 8;

/// How often, and for how long at the most, the sockets that are closing are waited for.
const CLOSING_CHECK: Duration = Duration::from_millis(1);
const MAX_CLOSING_CHECKS: usize = 100;

/// How many connections a listener takes.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Connections at once.
    pub most: usize,
    /// From so many on, for each new one the one that was silent the longest is asked to end.
    pub crowded: usize,
    /// For how long a connection must have been silent before it may be ended for another.
    pub silence: Duration,
}

/// A listener's door.
pub struct Door {
    capacity: Capacity,
    open: Vec<Guest>,
    /// Those that were ended for others; each is set once its socket is closed.
    closing: Vec<Arc<AtomicBool>>,
    /// The label under which `consent_refused_total` counts those for whom another was ended, or
    /// who were turned away.
    limit: Option<&'static str>,
    metrics: Arc<Metrics>,
    complained: Option<Instant>,
}

/// What the door knows of an open connection.
struct Guest {
    ends: Ends,
    closed: Arc<AtomicBool>,
    /// Whether it has nothing in progress, and had nothing since it was asked last.
    is_silent: Box<dyn Fn() -> bool + Send>,
    silent_since: Option<Instant>,
}

/// How a connection is told to end for others.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// Once what was begun is done.
    pub gently: CancellationToken,
    /// At once.
    pub now: CancellationToken,
}

/// A connection's place. Another gets it once it is dropped.
#[derive(Debug)]
pub struct Place {
    /// Tells when the place is needed for another.
    pub ends: Ends,
    closed: Arc<AtomicBool>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

impl Door {
    /// A door for so many connections; those who met the limit are counted under `limit`.
    #[must_use]
    pub fn new(capacity: Capacity, limit: Option<&'static str>, metrics: Arc<Metrics>) -> Self {
        let (open, closing) = (Vec::new(), Vec::new());
        Self { capacity, open, closing, limit, metrics, complained: None }
    }

    /// A place for a new connection, which is silent while `is_silent` says so. Where there is
    /// none left, the connection that was silent the longest is ended; without one there is none.
    pub fn admit(&mut self, is_silent: impl Fn() -> bool + Send + 'static) -> Option<Place> {
        self.admit_at(Instant::now(), is_silent)
    }

    fn admit_at(
        &mut self,
        now: Instant,
        is_silent: impl Fn() -> bool + Send + 'static,
    ) -> Option<Place> {
        self.look(now);
        if self.open.len() >= self.capacity.most {
            if let Some(limit) = self.limit {
                self.metrics.refused(limit);
            }
            let place = self.most_silent(now)?;
            let guest = self.open.swap_remove(place);
            guest.ends.now.cancel();
            self.closing.push(guest.closed);
        } else if self.open.len() >= self.capacity.crowded
            && let Some(guest) = self.most_silent(now).and_then(|place| self.open.get(place))
        {
            guest.ends.gently.cancel();
        }
        let place = Place { ends: Ends::default(), closed: Arc::default() };
        self.open.push(Guest {
            ends: place.ends.clone(),
            closed: Arc::clone(&place.closed),
            is_silent: Box::new(is_silent),
            silent_since: None,
        });
        Some(place)
    }

    /// Whether the next connection may cost another its place. Then [`look`](Self::look) from time to
    /// time, so that it is known since when each is silent.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.open.len() >= self.capacity.crowded
    }

    /// Looks which connections are silent.
    pub fn look(&mut self, now: Instant) {
        self.open.retain(|guest| !guest.closed.load(Ordering::Relaxed));
        for guest in &mut self.open {
            guest.silent_since =
                if (guest.is_silent)() { guest.silent_since.or(Some(now)) } else { None };
        }
    }

    /// Who was silent the longest, and long enough; of those who were not asked to end, if any.
    fn most_silent(&self, now: Instant) -> Option<usize> {
        let long_enough = |guest: &Guest| {
            guest.silent_since.is_some_and(|since| now - since >= self.capacity.silence)
        };
        let silent = self.open.iter().enumerate().filter(|(_, guest)| long_enough(guest));
        let by_silence =
            |(_, guest): &(usize, &Guest)| (guest.ends.gently.is_cancelled(), guest.silent_since);
        silent.min_by_key(by_silence).map(|(place, _)| place)
    }

    /// Waits until few of the connections that were ended for others are still open. To be called
    /// before a connection is admitted, as [`next`](Self::next) does.
    pub async fn let_close(&mut self) {
        for _ in 0..MAX_CLOSING_CHECKS {
            self.closing.retain(|closed| !closed.load(Ordering::Relaxed));
            if self.closing.len() < MAX_CLOSING {
                return;
            }
            sleep(CLOSING_CHECK).await;
        }
        // Whoever does not close in time must not keep others out.
        self.closing.clear();
    }

    /// The next connection. May be dropped before it returns.
    pub async fn next<T, F: Future<Output = io::Result<T>>>(
        &mut self,
        accept: impl Fn() -> F,
    ) -> T {
        self.let_close().await;
        loop {
            match accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: it passes, and a busy loop would not help.
                    self.metrics.refused("accept");
                    if self.complained.is_none_or(|last| last.elapsed() >= COMPLAINTS) {
                        self.complained = Some(Instant::now());
                        warn!(
                            %error,
                            "cannot accept connections: retrying every 100 ms; if it is \"too many \
                             open files\", raise the limit of file descriptors (ulimit -n) or lower \
                             --max-connections"
                        );
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(most: usize, crowded: usize, silence: Duration) -> Door {
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        Door::new(Capacity { most, crowded, silence }, Some("connections"), metrics)
    }

    #[test]
    fn admit_at_the_cap_ends_whoever_was_silent_the_longest() {
        let silence = Duration::from_secs(10);
        let (mut door, now) = (door(3, 2, silence), Instant::now());
        let busy = door.admit_at(now, || false).unwrap();
        let first = door.admit_at(now, || true).unwrap();
        let second = door.admit_at(now, || true).unwrap();
        assert!(door.admit_at(now, || true).is_none(), "nobody was silent for long enough");
        let later = now + silence;
        let third = door.admit_at(later, || true).unwrap();
        let ended = [&first, &second].map(|place| place.ends.now.is_cancelled());
        assert_eq!(ended.iter().filter(|ended| **ended).count(), 1);
        assert!(!busy.ends.now.is_cancelled());
        drop(third);
        let _fourth = door.admit_at(later, || true).unwrap();
        for silent in [&first, &second] {
            let Ends { gently, now } = &silent.ends;
            assert!(gently.is_cancelled() != now.is_cancelled(), "crowded, and yet with room");
        }
        assert!(!busy.ends.gently.is_cancelled());
    }

    #[tokio::test]
    async fn let_close_keeps_no_trace_of_connections_that_have_closed() {
        let mut door = door(8, 8, Duration::ZERO);
        let mut places = std::collections::VecDeque::new();
        for _ in 0..1_000 {
            door.let_close().await;
            places.push_back(door.admit(|| true).unwrap());
            places.retain(|place| !place.ends.now.is_cancelled());
            assert!(door.open.len() <= 8 && door.closing.len() <= MAX_CLOSING);
        }
    }

    #[test]
    fn look_between_admissions_tells_since_when_a_connection_is_silent() {
        let silence = Duration::from_secs(10);
        let (mut door, now) = (door(1, 1, silence), Instant::now());
        let _guest = door.admit_at(now, || true).unwrap();
        assert!(door.is_crowded());
        door.look(now);
        assert!(door.admit_at(now + silence, || true).is_some(), "the first attempt succeeds");
    }

    #[test]
    fn admit_counts_silence_anew_after_a_call() {
        let silence = Duration::from_secs(10);
        let (mut door, now) = (door(1, 1, silence), Instant::now());
        let called = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&called);
        let _guest = door.admit_at(now, move || !seen.swap(false, Ordering::Relaxed)).unwrap();
        assert!(door.admit_at(now, || true).is_none());
        called.store(true, Ordering::Relaxed);
        assert!(door.admit_at(now + silence / 2, || true).is_none());
        assert!(door.admit_at(now + silence, || true).is_none(), "it made a call meanwhile");
        assert!(door.admit_at(now + 3 * silence, || true).is_some());
    }
}
