//! The ledger in Redis or Valkey: one primary, with or without replicas and Sentinels.

mod backoff;
mod dial;
mod fitness;
mod link;
mod listen;
mod login;
mod route;
mod sentinel;
mod target;
mod tls;
mod wire;

use std::sync::Arc;

pub use self::fitness::{Durability, Fitness, FitnessError, Fsync, Unfit, Warning};
use self::link::Link;
pub use self::target::{Target, TargetError, TargetOptions, WrongTarget};

/// A handle on the ledger; clones share it.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Redis").field(&self.shared.target).finish()
    }
}

struct Shared {
    target: Arc<Target>,
    /// For reading, and for the follower's polls.
    reads: Link,
    /// For appends.
    writes: Link,
}

impl Redis {
    /// The ledger at `target`. Connects to nothing before it is asked something.
    #[must_use]
    pub fn new(target: Target) -> Self {
        let target = Arc::new(target);
        let (reads, writes) = (Link::new(Arc::clone(&target)), Link::new(Arc::clone(&target)));
        Self { shared: Arc::new(Shared { target, reads, writes }) }
    }
}
