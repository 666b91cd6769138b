//! The directory through which readers find shards and profiles while the writer replaces them.
//!
//! A "big-reader lock": several replicas of the directory, each behind its own `RwLock`, and each
//! thread reads through one of them. Readers on different replicas share no cache line. The writer
//! publishes a resized shard by taking the write lock of every replica in turn, after it has copied
//! the shard: this is read-copy-update, with the locks as the grace period.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::profiles::Chunk;
use super::shard::{PerShard, SHARDS, Shard, ShardIndex};

/// The most replicas. If there are more threads, some share one.
const MAX_REPLICAS: usize = 32;

/// How many threads have read so far.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's number in the order of their first reads; `usize::MAX` before its first.
    static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The shards and the profiles that their entries refer to by number.
pub(super) struct View {
    pub(super) shards: PerShard<Arc<Shard>>,
    pub(super) profiles: Vec<Arc<Chunk>>,
}

/// A replica, aligned so that it shares no cache line (nor the adjacent one) with another.
#[repr(align(128))]
struct Replica(RwLock<View>);

pub(super) struct ShardDirectory {
    replicas: Box<[Replica]>,
    count: NonZeroUsize,
}

impl ShardDirectory {
    /// A directory of these shards, without profiles.
    pub(super) fn new(shards: &PerShard<Arc<Shard>>) -> Self {
        // One thread per core checks, and a few others read now and then.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = cores.saturating_mul(2).clamp(4, MAX_REPLICAS);
        let count = NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        let view = || View { shards: shards.clone(), profiles: Vec::new() };
        let replicas = (0..count.get()).map(|_| Replica(RwLock::new(view()))).collect();
        Self { replicas, count }
    }

    /// Locks this thread's replica for reading: for a microsecond at most, and not twice by one
    /// thread, because the writer may wait in between.
    pub(super) fn view(&self) -> RwLockReadGuard<'_, View> {
        let number = THREAD.get();
        let number = if number == usize::MAX { register_thread() } else { number };
        let replica = self.replicas.get(number % self.count);
        let Replica(view) = replica.unwrap_or_else(|| unreachable!("fewer replicas than counted"));
        view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a resized shard with the same pairs.
    pub(super) fn replace_shard(&self, index: ShardIndex, shard: &Arc<Shard>) {
        self.update(|view| *view.shards.get_mut(index) = Arc::clone(shard));
    }

    /// Publishes a chunk of profiles in the place of one, or behind the last. Once this returns, no
    /// reader holds an entry that it read before, nor the chunk that was replaced.
    pub(super) fn replace_chunk(&self, place: usize, chunk: &Arc<Chunk>) {
        self.update(|view| match view.profiles.get_mut(place) {
            Some(known) => *known = Arc::clone(chunk),
            None => view.profiles.push(Arc::clone(chunk)),
        });
    }

    /// Publishes other shards and profiles.
    pub(super) fn replace_all(&self, shards: &PerShard<Arc<Shard>>, profiles: &[Arc<Chunk>]) {
        self.update(|view| {
            *view = View { shards: shards.clone(), profiles: profiles.to_vec() };
        });
    }

    /// Updates every replica, one after the other.
    fn update(&self, change: impl Fn(&mut View)) {
        for Replica(view) in &self.replicas {
            change(&mut view.write().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The size in bytes.
    pub(super) fn bytes(&self) -> usize {
        let replica =
            size_of::<Replica>().saturating_add(SHARDS.saturating_mul(size_of::<Arc<Shard>>()));
        self.replicas.len().saturating_mul(replica)
    }
}

#[cold]
fn register_thread() -> usize {
    let number = THREADS.fetch_add(1, Ordering::Relaxed);
    THREAD.set(number);
    number
}
