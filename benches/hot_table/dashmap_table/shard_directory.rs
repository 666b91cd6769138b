//! How readers find profiles. The name is that of the product's module in this place, which
//! `src/table/profiles.rs` imports.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::profiles::Chunk;

/// The chunks of profiles, replaced as a whole. No grace period is needed: readers load them while
/// they hold the lock of the run whose entries they resolve, and the writer frees a profile's
/// number only after every entry that held it was changed under that lock.
#[derive(Default)]
pub(super) struct ShardDirectory(ArcSwap<Vec<Arc<Chunk>>>);

impl ShardDirectory {
    /// The chunks now.
    pub(super) fn load(&self) -> Guard<Arc<Vec<Arc<Chunk>>>> {
        self.0.load()
    }

    /// Puts a chunk in the place of one, or behind the last.
    pub(super) fn replace_chunk(&self, place: usize, chunk: &Arc<Chunk>) {
        let mut chunks = Vec::clone(&self.0.load());
        match chunks.get_mut(place) {
            Some(known) => *known = Arc::clone(chunk),
            None => chunks.push(Arc::clone(chunk)),
        }
        self.0.store(Arc::new(chunks));
    }

    /// Forgets all chunks.
    pub(super) fn clear(&self) {
        self.0.store(Arc::default());
    }
}
