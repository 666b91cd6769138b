//! The memory that clients can make this process hold, and everybody's share of it.
//!
//! Whatever is not answered yet is charged here: open calls, bodies as they arrive, questions that
//! wait for a revision, answers that nobody has read yet. Each kind of work has a pool of its own,
//! so that checks cannot use up what recordings and probes need.
//!
//! A pool is shared by a dynamic threshold, as the buffers of network switches are: a connection
//! may hold at most half as much as is still free. One greedy connection therefore gets a third of
//! a pool at the most, `n` of them leave `1/(n + 2)` of it, and whoever comes later with little
//! always finds room, without anybody having to be thrown out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::metrics::{Metrics, POOL_COUNT};

/// A pool, by what it is for; in the order of the metric's labels, which are those of bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pool {
    /// Bytes of checks, and of reflection.
    Checks,
    /// Bytes of recordings.
    Records,
    /// Bytes of webhooks.
    Webhooks,
    /// Bytes of streams' answers, beyond those that an open stream is charged for.
    Answers,
    /// Bytes of probes, and of the admin listener's forms.
    Probes,
    /// Checks that are being answered, or that wait for a revision.
    Checking,
    /// Recordings that are being answered.
    Recording,
}

/// The least budget that leaves room for the largest request of every kind.
pub const MIN_BYTES: usize = 32 * 1024 * 1024;

/// The least share of a connection: twice the largest request of checks, and what comes with it.
pub const MIN_CONNECTION_BYTES: usize = 5 * 1024 * 1024;

/// What an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of all that is not answered yet.
    pub bytes: usize,
    /// Bytes of that for one connection.
    pub connection_bytes: usize,
    /// Checks being answered at once; recordings have a quarter as many places of their own.
    pub calls: usize,
}

/// How much a pool holds, and how much it may.
#[derive(Debug)]
struct Level {
    most: usize,
    /// The most for one connection, however much is free.
    share: usize,
}

/// The part of a pool that is kept for connections that hold little: a quarter.
const KEPT_PART: usize = 4;

/// The part of a pool that counts as little for one connection.
const MODEST_PART: usize = 256;

/// The most that one call without a body is charged: a stream, and headers of the length that is
/// taken at the most. A connection that holds nothing else finds room for it in the kept part, of
/// which a 256th is less where the budget is small.
const MAX_CALL_BYTES: usize = 24 * 1024;

/// All pools.
#[derive(Debug)]
pub struct Budget {
    levels: [Level; POOL_COUNT],
    held: Arc<[AtomicUsize; POOL_COUNT]>,
    metrics: Arc<Metrics>,
}

/// What one connection holds of every pool.
#[derive(Debug)]
pub struct Connection {
    budget: Arc<Budget>,
    held: [AtomicUsize; POOL_COUNT],
    /// Questions of streams that wait for a revision.
    waiting: AtomicUsize,
    /// Set whenever something moves; cleared by whoever asks whether it is silent.
    was_used: AtomicBool,
    /// It came when there was no room for more connections: it is for probes alone.
    probes_only: bool,
}

/// A limit that was met; the metric `consent_refused_total` counts it by this label.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// The budget of bytes for everybody.
    Bytes,
    /// The connection's share of bytes.
    ConnectionBytes,
    /// The calls that may be answered at once.
    InFlight,
    /// The recordings that may be answered at once.
    Recording,
    /// The connections of a listener: this one came when they were as many as may be.
    Connections,
}

impl Full {
    fn label(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::ConnectionBytes => "connection_bytes",
            Self::InFlight => "in_flight",
            Self::Recording => "recording",
            Self::Connections => "connections",
        }
    }
}

impl Budget {
    /// A budget of these sizes.
    #[must_use]
    pub fn new(sizes: Sizes, metrics: Arc<Metrics>) -> Arc<Self> {
        let bytes = |sixteenths: usize| Level {
            most: (sizes.bytes / 16).saturating_mul(sixteenths),
            share: sizes.connection_bytes,
        };
        let calls = |most: usize| Level { most, share: most };
        let levels = [
            bytes(6),
            bytes(3),
            bytes(5),
            bytes(1),
            bytes(1),
            calls(sizes.calls),
            calls(sizes.calls.div_ceil(4)),
        ];
        let held = metrics.held();
        Arc::new(Self { levels, held, metrics })
    }

    /// A new connection's share.
    #[must_use]
    pub fn connection(self: &Arc<Self>) -> Arc<Connection> {
        self.share(false)
    }

    /// The share of a connection that is for probes alone.
    #[must_use]
    pub fn probe(self: &Arc<Self>) -> Arc<Connection> {
        self.share(true)
    }

    fn share(self: &Arc<Self>, probes_only: bool) -> Arc<Connection> {
        let (held, waiting, was_used) = Default::default();
        Arc::new(Connection { budget: Arc::clone(self), held, waiting, was_used, probes_only })
    }

    /// Takes so much, and says whether it may; it is taken in either case.
    fn take(&self, connection: &Connection, pool: Pool, amount: usize) -> Result<(), Full> {
        let (level, held) = (&self.levels[pool as usize], &self.held[pool as usize]);
        let own = &connection.held[pool as usize];
        let before = held.fetch_add(amount, Ordering::Relaxed);
        let own = own.fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        let free = level.most.saturating_sub(before);
        // The last part is kept for connections that hold little. Each greedy connection leaves two
        // thirds of what it found, so many of them would leave nothing.
        let is_first_call = own == amount && amount <= MAX_CALL_BYTES;
        let is_modest = is_first_call || own <= (level.most / MODEST_PART).max(1);
        let leaves_enough = free >= amount.saturating_add(level.most / KEPT_PART);
        let is_fair = own <= level.share && own <= free.div_ceil(2);
        if is_fair && amount <= free && (leaves_enough || is_modest) {
            return Ok(());
        }
        Err(match pool {
            Pool::Checking => Full::InFlight,
            Pool::Recording => Full::Recording,
            // With so much free it is this connection that holds too much, and not everybody.
            _ if own > level.share || free >= level.most / 2 => Full::ConnectionBytes,
            _ => Full::Bytes,
        })
    }

    fn give_back(&self, connection: &Connection, pool: Pool, amount: usize) {
        self.held[pool as usize].fetch_sub(amount, Ordering::Relaxed);
        connection.held[pool as usize].fetch_sub(amount, Ordering::Relaxed);
    }
}

impl Connection {
    /// Charges so much until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// [`Full`] names the limit that was met, which is counted.
    pub fn charge(self: &Arc<Self>, pool: Pool, amount: usize) -> Result<Charge, Full> {
        self.was_used.store(true, Ordering::Relaxed);
        let mut charge =
            Charge { connection: Arc::clone(self), pool, amount: 0, is_waiting: false };
        charge.grow(amount)?;
        Ok(charge)
    }

    /// Whether nothing moved on it since this was asked last, and the server works on nothing for
    /// it. Calls that are open do not count: a stream on which nobody says anything, a body that
    /// does not arrive, and answers that nobody reads are silent.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        let nothing = |held: &AtomicUsize| held.load(Ordering::Relaxed) == 0;
        let is_at_work = !nothing(&self.waiting)
            || [Pool::Checking, Pool::Recording]
                .iter()
                .any(|pool| !nothing(&self.held[*pool as usize]));
        !self.was_used.swap(false, Ordering::Relaxed) && !is_at_work
    }

    /// Whether nothing of it is being answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.iter().all(|held| held.load(Ordering::Relaxed) == 0)
    }

    /// Whether it may make no other calls than probes.
    #[must_use]
    pub fn is_for_probes_only(&self) -> bool {
        self.probes_only
    }
}

/// What is charged to a connection, until it is dropped.
#[derive(Debug)]
pub struct Charge {
    connection: Arc<Connection>,
    pool: Pool,
    amount: usize,
    is_waiting: bool,
}

impl Charge {
    /// Says that something moved on the connection: bytes of a request, or of a stream's answers.
    pub fn touch(&self) {
        self.connection.was_used.store(true, Ordering::Relaxed);
    }

    /// Counts as a question that waits for a revision, until it is dropped: its connection is not
    /// silent meanwhile.
    #[must_use]
    pub fn of_a_waiting_question(mut self) -> Self {
        self.connection.waiting.fetch_add(1, Ordering::Relaxed);
        self.is_waiting = true;
        self
    }

    /// Charges more.
    ///
    /// # Errors
    ///
    /// As [`Connection::charge`]; then nothing more is charged.
    pub fn grow(&mut self, amount: usize) -> Result<(), Full> {
        let budget = &self.connection.budget;
        let taken = budget.take(&self.connection, self.pool, amount);
        match taken {
            Ok(()) => self.amount = self.amount.saturating_add(amount),
            Err(full) => {
                budget.give_back(&self.connection, self.pool, amount);
                budget.metrics.refused(full.label());
            }
        }
        taken
    }

    /// Charges what is held already, whatever the limits are: those who come later are refused.
    pub fn force(&mut self, amount: usize) {
        let _ = self.connection.budget.take(&self.connection, self.pool, amount);
        self.amount = self.amount.saturating_add(amount);
    }

    /// Charges so much more to the same connection, and for the same use.
    ///
    /// # Errors
    ///
    /// As [`Connection::charge`].
    pub fn another(&self, amount: usize) -> Result<Self, Full> {
        self.connection.charge(self.pool, amount)
    }

    /// A charge of nothing yet to the same connection, and for the same use.
    #[must_use]
    pub fn beside(&self) -> Self {
        let connection = Arc::clone(&self.connection);
        Self { connection, pool: self.pool, amount: 0, is_waiting: false }
    }

    /// Charges the same connection for another use.
    ///
    /// # Errors
    ///
    /// As [`Connection::charge`].
    pub fn of(&self, pool: Pool, amount: usize) -> Result<Self, Full> {
        self.connection.charge(pool, amount)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.is_waiting {
            self.connection.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        if self.amount > 0 {
            self.connection.budget.give_back(&self.connection, self.pool, self.amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(calls: usize) -> Arc<Budget> {
        let metrics = Arc::new(Metrics::new(prometheus::Registry::new()).unwrap());
        let sizes = Sizes { bytes: MIN_BYTES, connection_bytes: MIN_CONNECTION_BYTES, calls };
        Budget::new(sizes, metrics)
    }

    /// Takes as much of a pool as there is to be had, in parts.
    fn hog(connection: &Arc<Connection>, pool: Pool, part: usize) -> Vec<Charge> {
        std::iter::from_fn(|| connection.charge(pool, part).ok()).collect()
    }

    #[test]
    fn charge_by_greedy_connections_leaves_room_for_the_next() {
        for greedy in [1, 4, 32] {
            let budget = budget(4_096);
            let connections: Vec<_> = (0..greedy).map(|_| budget.connection()).collect();
            for pool in [Pool::Checks, Pool::Records, Pool::Webhooks, Pool::Answers, Pool::Probes] {
                let mut held: Vec<_> =
                    connections.iter().map(|one| hog(one, pool, 8 * 1024)).collect();
                held.extend(connections.iter().map(|one| hog(one, pool, 128)));
                let next = budget.connection();
                let most = budget.levels[pool as usize].most;
                next.charge(pool, most / MODEST_PART).unwrap();
                drop(held);
            }
            assert!(budget.held.iter().all(|held| held.load(Ordering::Relaxed) == 0));
        }
    }

    #[test]
    fn charge_of_a_first_call_finds_room_beside_greedy_connections_in_the_least_budget() {
        let budget = budget(4_096);
        let greedy: Vec<_> = (0..8).map(|_| budget.connection()).collect();
        for pool in [Pool::Checks, Pool::Records, Pool::Webhooks, Pool::Answers, Pool::Probes] {
            let held: Vec<_> = greedy.iter().map(|one| hog(one, pool, 8 * 1024)).collect();
            let next = budget.connection();
            let call = next.charge(pool, MAX_CALL_BYTES).unwrap();
            let more = next.charge(pool, MAX_CALL_BYTES);
            let most = budget.levels[pool as usize].most;
            assert!(more.is_err() || 2 * MAX_CALL_BYTES <= most / MODEST_PART, "{pool:?}");
            drop((held, call, more));
        }
    }

    #[test]
    fn charge_of_one_connection_ends_at_its_share() {
        let budget = budget(9);
        let connection = budget.connection();
        let charges = hog(&connection, Pool::Checks, 64 * 1024);
        assert_eq!(charges.len() * 64 * 1024, MIN_BYTES / 16 * 6 / 3, "a third of what there is");
        let full = connection.charge(Pool::Checks, 64 * 1024).unwrap_err();
        assert_eq!(full, Full::ConnectionBytes);
        let largest = budget.connection().charge(Pool::Checks, MIN_CONNECTION_BYTES + 1);
        assert_eq!(largest.unwrap_err(), Full::ConnectionBytes);
        assert_eq!(hog(&connection, Pool::Checking, 1).len(), 3, "a third, and not all");
        let _records = connection.charge(Pool::Records, 1024).expect("they have room of their own");
        drop(charges);
        assert!(!connection.is_idle());
    }

    #[test]
    fn is_silent_counts_what_moves_and_what_is_worked_on_and_not_what_is_open() {
        let connection = budget(9).connection();
        let open = connection.charge(Pool::Checks, 1024).unwrap();
        assert!(!connection.is_silent(), "the call began");
        assert!(connection.is_silent() && !connection.is_idle(), "an open call is no work");
        open.touch();
        assert!(!connection.is_silent() && connection.is_silent());
        for pool in [Pool::Checking, Pool::Recording] {
            let place = open.of(pool, 1).unwrap();
            assert!(!connection.is_silent() && !connection.is_silent(), "{pool:?}");
            drop(place);
            assert!(connection.is_silent());
        }
        let waits = open.another(1).unwrap().of_a_waiting_question();
        assert!(!connection.is_silent() && !connection.is_silent());
        drop(waits);
        assert!(connection.is_silent());
    }

    #[test]
    fn charge_of_a_single_place_is_for_whoever_comes_first() {
        let budget = budget(1);
        let (first, second) = (budget.connection(), budget.connection());
        let place = first.charge(Pool::Checking, 1).unwrap();
        for other in [&first, &second] {
            assert_eq!(other.charge(Pool::Checking, 1).unwrap_err(), Full::InFlight);
        }
        drop(place);
        second.charge(Pool::Checking, 1).unwrap();
    }
}
