//! How readers find the shards while the writer puts longer arrays in their place.
//!
//! A thread reads through a lane of its own, where it finds all shards: it locks what nobody but
//! the writer ever wants, and that for an instant, when a shard has grown. So no reader waits for
//! another one, nor for the copying, and one lock serves for as many look-ups as it is held for.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::slots::Slots;

/// How many lanes there are at most. More threads than that share them.
const MAX_LANES: usize = 32;

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The number of this thread among those that have read.
    static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// All shards, for the threads of one lane; on cache lines that it does not share.
#[repr(align(128))]
struct Lane(RwLock<Vec<Arc<Slots>>>);

/// The lanes.
pub(super) struct Lanes(Box<[Lane]>);

impl Lanes {
    /// Lanes to these shards.
    pub(super) fn to(shards: &[Arc<Slots>]) -> Self {
        // A thread for each core checks, and a few others read now and then.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = cores.saturating_mul(2).clamp(4, MAX_LANES);
        Self((0..count).map(|_| Lane(RwLock::new(shards.to_vec()))).collect())
    }

    /// Reads the shards. `read` must not come back here.
    pub(super) fn read<T>(&self, read: impl FnOnce(&[Arc<Slots>]) -> T) -> T {
        let number = THREAD.get();
        let number = if number == usize::MAX { enter() } else { number };
        let lane = number.checked_rem(self.0.len()).and_then(|place| self.0.get(place));
        match lane {
            Some(Lane(shards)) => read(&shards.read().unwrap_or_else(PoisonError::into_inner)),
            None => read(&[]), // There is one at least.
        }
    }

    /// Puts a shard in the place of one that holds the same.
    pub(super) fn replace(&self, place: usize, slots: &Arc<Slots>) {
        for Lane(shards) in &self.0 {
            let mut shards = shards.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = shards.get_mut(place) {
                *known = Arc::clone(slots);
            }
        }
    }

    /// Puts all shards in the place of others.
    pub(super) fn replace_all(&self, all: &[Arc<Slots>]) {
        for Lane(shards) in &self.0 {
            *shards.write().unwrap_or_else(PoisonError::into_inner) = all.to_vec();
        }
    }

    /// How many bytes they take.
    pub(super) fn bytes(&self) -> usize {
        let lane = size_of::<Lane>()
            .saturating_add(super::slots::SHARDS.saturating_mul(size_of::<Arc<Slots>>()));
        self.0.len().saturating_mul(lane)
    }
}

#[cold]
fn enter() -> usize {
    let number = THREADS.fetch_add(1, Ordering::Relaxed);
    THREAD.set(number);
    number
}
