//! How readers find the shards while the writer puts longer arrays in their place.
//!
//! A thread reads through a lane of its own, where it finds all shards: it locks what nobody but
//! the writer ever wants, and that for an instant, when a shard has grown or profiles are freed. So
//! no reader waits for another one, nor for the copying, and one lock serves for as many look-ups
//! as it is held for.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::profiles::Chunk;
use super::shard::Shard;

/// How many lanes there are at most. More threads than that share them.
const MAX_LANES: usize = 32;

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The number of this thread among those that have read.
    static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// What readers find pairs and their profiles in.
pub(super) struct View {
    /// The shards.
    pub(super) shards: Vec<Arc<Shard>>,
    /// The profiles that entries tell the numbers of.
    pub(super) profiles: Vec<Arc<Chunk>>,
}

/// All of it, for the threads of one lane; on cache lines that it does not share.
#[repr(align(128))]
struct Replica(RwLock<View>);

/// The lanes.
pub(super) struct ShardDirectory(Box<[Replica]>);

impl ShardDirectory {
    /// Directories of these shards, without a profile.
    pub(super) fn to(shards: &[Arc<Shard>]) -> Self {
        // A thread for each core checks, and a few others read now and then.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let count = cores.saturating_mul(2).clamp(4, MAX_LANES);
        let view = || View { shards: shards.to_vec(), profiles: Vec::new() };
        Self((0..count).map(|_| Replica(RwLock::new(view()))).collect())
    }

    /// Reads the shards and profiles. `read` must not come back here. None where there is no lane,
    /// which is never so.
    pub(super) fn read<T>(&self, read: impl FnOnce(&View) -> T) -> Option<T> {
        let number = THREAD.get();
        let number = if number == usize::MAX { enter() } else { number };
        let Replica(view) = self.0.get(number.checked_rem(self.0.len())?)?;
        Some(read(&view.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Puts a shard in the place of one that holds the same.
    pub(super) fn replace(&self, place: usize, slots: &Arc<Shard>) {
        self.each(|view| {
            if let Some(known) = view.shards.get_mut(place) {
                *known = Arc::clone(slots);
            }
        });
    }

    /// Puts a chunk of profiles in the place of one, or behind the last. Once this returns, no
    /// reader holds an entry that it read before, nor reads the chunk that was there.
    pub(super) fn replace_chunk(&self, place: usize, chunk: &Arc<Chunk>) {
        self.each(|view| match view.profiles.get_mut(place) {
            Some(known) => *known = Arc::clone(chunk),
            None => view.profiles.push(Arc::clone(chunk)),
        });
    }

    /// Puts all shards and profiles in the place of others.
    pub(super) fn replace_all(&self, shards: &[Arc<Shard>], profiles: &[Arc<Chunk>]) {
        self.each(|view| {
            *view = View { shards: shards.to_vec(), profiles: profiles.to_vec() };
        });
    }

    /// Changes what every lane has, one after the other.
    fn each(&self, change: impl Fn(&mut View)) {
        for Replica(view) in &self.0 {
            change(&mut view.write().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// How many bytes they take.
    pub(super) fn bytes(&self) -> usize {
        let lane = size_of::<Replica>()
            .saturating_add(super::shard::SHARDS.saturating_mul(size_of::<Arc<Shard>>()));
        self.0.len().saturating_mul(lane)
    }
}

#[cold]
fn enter() -> usize {
    let number = THREADS.fetch_add(1, Ordering::Relaxed);
    THREAD.set(number);
    number
}
