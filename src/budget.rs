//! The budget of memory that clients can make this process hold, and its fair sharing.
//!
//! Everything that is not answered yet is charged here: open calls, bodies as they arrive, checks that
//! wait for a revision, responses that no client has read yet. Each kind of work has a pool of its
//! own, so that checks cannot use up what recordings and probes need.
//!
//! A pool is shared by a dynamic threshold, like the buffers of network switches: a connection may
//! hold at most half as much as is still free. One greedy connection therefore gets at most a third
//! of a pool, `n` of them leave `1/(n + 2)` of it, and a later connection that needs little always
//! finds room, without any other being closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::metrics::{Metrics, POOL_COUNT};

/// The pools, in the order of the metric's labels; those that do not count bytes come last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pool {
    /// Bytes of checks and of reflection.
    Checks,
    /// Bytes of recordings.
    Records,
    /// Bytes of webhooks.
    Webhooks,
    /// Bytes of streams' unsent responses, beyond those that the charge for the stream covers.
    Answers,
    /// Bytes of probes and of the admin listener's forms.
    Probes,
    /// The number of checks that are being answered or wait for a revision.
    Checking,
    /// The number of recordings that are being answered.
    Recording,
}

/// The smallest budget: it has room for the largest request of every kind.
pub const MIN_BYTES: usize = 32 * 1024 * 1024;

/// The smallest share of a connection: twice the largest request of checks, and its overhead.
pub const MIN_CONNECTION_BYTES: usize = 5 * 1024 * 1024;

/// The configured sizes.
#[derive(Clone, Copy, Debug)]
pub struct BudgetSizes {
    /// Bytes of everything that is not answered yet.
    pub bytes: usize,
    /// The most of these bytes for one connection.
    pub connection_bytes: usize,
    /// Checks that are answered at once. Recordings have a limit of their own, a quarter of this.
    pub calls: usize,
}

/// How much a pool may hold.
#[derive(Debug)]
struct PoolLimit {
    max: usize,
    /// The most for one connection, however much is free.
    share: usize,
}

/// A pool divided by this is reserved for connections that hold little.
const RESERVED_DIVISOR: usize = 4;

/// A pool divided by this counts as little for one connection.
const MODEST_DIVISOR: usize = 256;

/// The most that one call without a body is charged: a stream, and headers of the greatest accepted
/// length. A connection that holds nothing else finds room for it in the reserved part, although with
/// a small budget this is more than counts as little.
const MAX_CALL_BYTES: usize = 24 * 1024;

/// All pools.
#[derive(Debug)]
pub struct Budget {
    limits: [PoolLimit; POOL_COUNT],
    held: Arc<[AtomicUsize; POOL_COUNT]>,
    metrics: Arc<Metrics>,
}

/// How much one connection holds of every pool.
#[derive(Debug)]
pub struct ConnectionBudget {
    budget: Arc<Budget>,
    held: [AtomicUsize; POOL_COUNT],
    /// The number of charges for work that has no place of `Checking` or `Recording`.
    working: AtomicUsize,
    /// Set by any activity; cleared by [`is_silent`](Self::is_silent).
    was_used: AtomicBool,
    /// Whether it came beyond the listener's capacity, and may make no calls but probes.
    probes_only: bool,
}

/// A limit that refused a charge. `consent_refused_total` counts it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LimitReached {
    /// The bytes of the whole budget.
    Bytes,
    /// The bytes of the connection's share.
    ConnectionBytes,
    /// The number of checks in flight.
    InFlight,
    /// The number of recordings in flight.
    Recording,
    /// The listener's capacity: this connection came beyond it.
    Connections,
}

impl LimitReached {
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
    pub fn new(sizes: BudgetSizes, metrics: Arc<Metrics>) -> Arc<Self> {
        let bytes = |sixteenths: usize| PoolLimit {
            max: (sizes.bytes / 16).saturating_mul(sixteenths),
            share: sizes.connection_bytes,
        };
        let calls = |max: usize| PoolLimit { max, share: max };
        let limits = [
            bytes(6),
            bytes(3),
            bytes(5),
            bytes(1),
            bytes(1),
            calls(sizes.calls),
            calls(sizes.calls.div_ceil(4)),
        ];
        let held = metrics.held();
        Arc::new(Self { limits, held, metrics })
    }

    /// The budget of a new connection.
    #[must_use]
    pub fn connection(self: &Arc<Self>) -> Arc<ConnectionBudget> {
        self.share(false)
    }

    /// The budget of a new connection that may make no calls but probes.
    #[must_use]
    pub fn probe_connection(self: &Arc<Self>) -> Arc<ConnectionBudget> {
        self.share(true)
    }

    fn share(self: &Arc<Self>, probes_only: bool) -> Arc<ConnectionBudget> {
        let (held, working, was_used) = Default::default();
        Arc::new(ConnectionBudget {
            budget: Arc::clone(self),
            held,
            working,
            was_used,
            probes_only,
        })
    }

    /// Takes an amount, and returns whether the limits permit it. It is taken in either case.
    fn take(
        &self,
        connection: &ConnectionBudget,
        pool: Pool,
        amount: usize,
    ) -> Result<(), LimitReached> {
        let (limit, held) = (&self.limits[pool as usize], &self.held[pool as usize]);
        let own = &connection.held[pool as usize];
        let before = held.fetch_add(amount, Ordering::Relaxed);
        let own = own.fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        let free = limit.max.saturating_sub(before);
        // The last part is reserved for connections that hold little. Each greedy connection leaves
        // two thirds of what it found, so many of them would leave nothing.
        let is_first_call = own == amount && amount <= MAX_CALL_BYTES;
        let is_modest = is_first_call || own <= (limit.max / MODEST_DIVISOR).max(1);
        let leaves_enough = free >= amount.saturating_add(limit.max / RESERVED_DIVISOR);
        let is_fair = own <= limit.share && own <= free.div_ceil(2);
        if is_fair && amount <= free && (leaves_enough || is_modest) {
            return Ok(());
        }
        Err(match pool {
            Pool::Checking => LimitReached::InFlight,
            Pool::Recording => LimitReached::Recording,
            // With so much free, this connection holds too much, not all of them together.
            _ if own > limit.share || free >= limit.max / 2 => LimitReached::ConnectionBytes,
            _ => LimitReached::Bytes,
        })
    }

    fn give_back(&self, connection: &ConnectionBudget, pool: Pool, amount: usize) {
        self.held[pool as usize].fetch_sub(amount, Ordering::Relaxed);
        connection.held[pool as usize].fetch_sub(amount, Ordering::Relaxed);
    }
}

impl ConnectionBudget {
    /// Charges an amount until the returned charge is dropped.
    ///
    /// # Errors
    ///
    /// [`LimitReached`] names the limit, which is counted.
    pub fn charge(self: &Arc<Self>, pool: Pool, amount: usize) -> Result<Charge, LimitReached> {
        self.was_used.store(true, Ordering::Relaxed);
        let mut charge =
            Charge { connection: Arc::clone(self), pool, amount: 0, is_working: false };
        charge.grow(amount)?;
        Ok(charge)
    }

    /// Counts a call that was refused because it had no valid token.
    pub fn count_unauthenticated(&self) {
        self.budget.metrics.refused("unauthenticated");
    }

    /// Whether there was no activity since the last call of this function, and no call is being
    /// worked on. Open calls do not count as activity: an idle stream, a body that does not arrive and
    /// responses that the client does not read are silent.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        let nothing = |held: &AtomicUsize| held.load(Ordering::Relaxed) == 0;
        let is_at_work = !nothing(&self.working)
            || [Pool::Checking, Pool::Recording]
                .iter()
                .any(|pool| !nothing(&self.held[*pool as usize]));
        !self.was_used.swap(false, Ordering::Relaxed) && !is_at_work
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held.iter().all(|held| held.load(Ordering::Relaxed) == 0)
    }

    /// Whether it may make no calls but probes.
    #[must_use]
    pub fn is_for_probes_only(&self) -> bool {
        self.probes_only
    }
}

/// An amount that is charged to a connection until dropped.
#[derive(Debug)]
pub struct Charge {
    connection: Arc<ConnectionBudget>,
    pool: Pool,
    amount: usize,
    is_working: bool,
}

impl Charge {
    /// Marks activity on the connection: bytes of a request arrived, or a stream's responses were
    /// taken.
    pub fn mark_active(&self) {
        self.connection.was_used.store(true, Ordering::Relaxed);
    }

    /// Counts as work on a call until dropped; its connection is not silent meanwhile.
    #[must_use]
    pub fn mark_working(mut self) -> Self {
        self.connection.working.fetch_add(1, Ordering::Relaxed);
        self.is_working = true;
        self
    }

    /// Charges more.
    ///
    /// # Errors
    ///
    /// As [`ConnectionBudget::charge`]; the charge is unchanged then.
    pub fn grow(&mut self, amount: usize) -> Result<(), LimitReached> {
        if amount == 0 {
            return Ok(());
        }
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

    /// How much is charged.
    #[must_use]
    pub fn amount(&self) -> usize {
        self.amount
    }

    /// Charges more, up to a total.
    ///
    /// # Errors
    ///
    /// As [`ConnectionBudget::charge`]; the charge is unchanged then.
    pub fn grow_to(&mut self, total: usize) -> Result<(), LimitReached> {
        match total.saturating_sub(self.amount) {
            0 => Ok(()),
            more => self.grow(more),
        }
    }

    /// Charges memory that is held already, regardless of the limits: later charges are refused.
    pub fn grow_unchecked(&mut self, amount: usize) {
        let _ = self.connection.budget.take(&self.connection, self.pool, amount);
        self.amount = self.amount.saturating_add(amount);
    }

    /// A new charge to the same connection and pool.
    ///
    /// # Errors
    ///
    /// As [`ConnectionBudget::charge`].
    pub fn charge_same_pool(&self, amount: usize) -> Result<Self, LimitReached> {
        self.connection.charge(self.pool, amount)
    }

    /// An empty charge to the same connection and pool, to be grown later.
    #[must_use]
    pub fn empty(&self) -> Self {
        let connection = Arc::clone(&self.connection);
        Self { connection, pool: self.pool, amount: 0, is_working: false }
    }

    /// A new charge to the same connection and another pool.
    ///
    /// # Errors
    ///
    /// As [`ConnectionBudget::charge`].
    pub fn charge(&self, pool: Pool, amount: usize) -> Result<Self, LimitReached> {
        self.connection.charge(pool, amount)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.is_working {
            self.connection.working.fetch_sub(1, Ordering::Relaxed);
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
        let sizes = BudgetSizes { bytes: MIN_BYTES, connection_bytes: MIN_CONNECTION_BYTES, calls };
        Budget::new(sizes, metrics)
    }

    /// Charges parts until the pool refuses.
    fn hog(connection: &Arc<ConnectionBudget>, pool: Pool, part: usize) -> Vec<Charge> {
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
                let most = budget.limits[pool as usize].max;
                next.charge(pool, most / MODEST_DIVISOR).unwrap();
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
            let most = budget.limits[pool as usize].max;
            assert!(more.is_err() || 2 * MAX_CALL_BYTES <= most / MODEST_DIVISOR, "{pool:?}");
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
        assert_eq!(full, LimitReached::ConnectionBytes);
        let largest = budget.connection().charge(Pool::Checks, MIN_CONNECTION_BYTES + 1);
        assert_eq!(largest.unwrap_err(), LimitReached::ConnectionBytes);
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
        open.mark_active();
        assert!(!connection.is_silent() && connection.is_silent());
        for pool in [Pool::Checking, Pool::Recording] {
            let place = open.charge(pool, 1).unwrap();
            assert!(!connection.is_silent() && !connection.is_silent(), "{pool:?}");
            drop(place);
            assert!(connection.is_silent());
        }
        let waits = open.charge_same_pool(1).unwrap().mark_working();
        assert!(!connection.is_silent() && !connection.is_silent());
        drop(waits);
        assert!(connection.is_silent());
    }

    #[test]
    fn charge_of_a_single_call_goes_to_the_first_connection() {
        let budget = budget(1);
        let (first, second) = (budget.connection(), budget.connection());
        let place = first.charge(Pool::Checking, 1).unwrap();
        for other in [&first, &second] {
            assert_eq!(other.charge(Pool::Checking, 1).unwrap_err(), LimitReached::InFlight);
        }
        drop(place);
        second.charge(Pool::Checking, 1).unwrap();
    }
}
