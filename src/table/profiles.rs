//! Shared profiles: interned, reference-counted, and freed once no pair uses them.
//!
//! An entry holds a profile's number. The writer interns each distinct profile once and counts the
//! entries that hold its number; readers count nothing. A profile without uses stays in place, and can
//! be used again, until such profiles take more than a small part of the memory. The writer then
//! replaces the chunk that holds some of them by a copy without them.
//!
//! **Invariant: a reader never finds another profile under a number than its entry meant.** A place of
//! a chunk is written once. A number is reused only after its chunk was replaced in every replica of
//! the directory, which waits for the readers that hold a replica's lock. A reader that began earlier
//! keeps the old chunk, where the number still means the old profile. A reader that began later finds
//! no entry with the number, because the writer changed all of them before. This is the grace period
//! of read-copy-update.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::packed_entry::MAX_PROFILES;
use super::shard_directory::ShardDirectory;
use consentd_core::standing::Profile;

/// The profiles of a chunk: few enough that its replacement takes microseconds.
const CHUNK_PROFILES: usize = 256;

/// The bytes of unused profiles that are always kept.
const MIN_UNUSED_BYTES: usize = 16 * 1024;

/// Unused profiles may take one part in this many of the bytes of used ones.
const UNUSED_DIVISOR: usize = 16;

/// The profiles of consecutive numbers. Each place is written at most once.
pub(super) struct Chunk(Box<[OnceLock<Arc<Profile>>]>);

impl Chunk {
    fn new(profiles: impl Iterator<Item = Option<Arc<Profile>>>) -> Self {
        let place = |profile: Option<_>| profile.map_or_else(OnceLock::new, OnceLock::from);
        Self(profiles.map(place).collect())
    }
}

/// The profile of a number.
pub(super) fn profile(chunks: &[Arc<Chunk>], number: usize) -> Option<&Arc<Profile>> {
    chunks.get(number / CHUNK_PROFILES)?.0.get(number % CHUNK_PROFILES)?.get()
}

/// The writer's side: the numbers of profiles and the counts of their uses.
pub(super) struct Profiles {
    chunks: Vec<Arc<Chunk>>,
    numbers: HashMap<Arc<Profile>, usize>,
    /// The number of entries that hold each number. Number 0 is never used, because an entry with it
    /// could be zero.
    uses: Vec<usize>,
    /// Numbers below the end of `uses` without a profile.
    free: Vec<usize>,
    bytes: usize,
    /// The part of `bytes` that unused profiles take.
    unused_bytes: usize,
    /// The chunk that was swept last.
    last_swept: usize,
}

impl Profiles {
    pub(super) fn new() -> Self {
        Self {
            chunks: Vec::new(),
            numbers: HashMap::new(),
            uses: vec![1],
            free: Vec::new(),
            bytes: 0,
            unused_bytes: 0,
            last_swept: 0,
        }
    }

    /// The chunks to publish to readers.
    pub(super) fn chunks(&self) -> &[Arc<Chunk>] {
        &self.chunks
    }

    /// About how many bytes all profiles and their index take.
    pub(super) fn bytes(&self) -> usize {
        let chunk =
            CHUNK_PROFILES.saturating_mul(size_of::<OnceLock<Arc<Profile>>>()).saturating_add(64);
        let number = size_of::<(Arc<Profile>, usize)>().saturating_add(1);
        let parts = [
            self.bytes,
            self.chunks.len().saturating_mul(chunk),
            self.numbers.capacity().saturating_mul(number),
            self.uses.capacity().saturating_mul(size_of::<usize>()),
            self.free.capacity().saturating_mul(size_of::<usize>()),
        ];
        parts.into_iter().fold(0, usize::saturating_add)
    }

    /// Interns a profile and returns its number, which may have no use yet; `None` if all
    /// [`MAX_PROFILES`] numbers are in use.
    pub(super) fn number_of(
        &mut self,
        profile: &Profile,
        directory: &ShardDirectory,
    ) -> Option<usize> {
        if let Some(number) = self.numbers.get(profile) {
            return Some(*number);
        }
        // Only if one is unused: the search for it goes through all of them.
        if self.free.is_empty() && self.uses.len() > MAX_PROFILES && self.unused_bytes > 0 {
            self.replace_next(directory);
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.uses.len() > MAX_PROFILES => return None,
            None => {
                self.uses.push(0);
                self.uses.len().saturating_sub(1)
            }
        };
        if number / CHUNK_PROFILES >= self.chunks.len() {
            let chunk = Arc::new(Chunk::new((0..CHUNK_PROFILES).map(|_| None)));
            directory.replace_chunk(self.chunks.len(), &chunk);
            self.chunks.push(chunk);
        }
        let profile = Arc::new(profile.clone());
        let chunk = self.chunks.get(number / CHUNK_PROFILES);
        let place = chunk.and_then(|chunk| chunk.0.get(number % CHUNK_PROFILES));
        let is_set = place.is_some_and(|place| place.set(Arc::clone(&profile)).is_ok());
        assert!(is_set, "profile {number} is free and has a place");
        let bytes = bytes_of(&profile);
        self.bytes = self.bytes.saturating_add(bytes);
        self.unused_bytes = self.unused_bytes.saturating_add(bytes);
        self.numbers.insert(profile, number);
        Some(number)
    }

    /// Counts one more entry that uses this number.
    pub(super) fn add_use(&mut self, number: usize) {
        let uses = self.uses_of(number);
        *uses = uses.saturating_add(1);
        if *uses == 1 {
            self.unused_bytes = self.unused_bytes.saturating_sub(self.bytes_of_number(number));
        }
    }

    /// Counts one entry less that uses this number.
    pub(super) fn remove_use(&mut self, number: usize) {
        let uses = self.uses_of(number);
        // A profile that was freed while an entry holds its number would change that entry's meaning.
        let left = uses.checked_sub(1);
        *uses = left.unwrap_or_else(|| unreachable!("profile {number} has no use left"));
        if *uses == 0 {
            self.unused_bytes = self.unused_bytes.saturating_add(self.bytes_of_number(number));
        }
    }

    fn uses_of(&mut self, number: usize) -> &mut usize {
        let uses = self.uses.get_mut(number);
        uses.unwrap_or_else(|| unreachable!("an entry has the unknown profile {number}"))
    }

    fn bytes_of_number(&self, number: usize) -> usize {
        profile(&self.chunks, number).map_or(0, |profile| bytes_of(profile))
    }

    /// Frees the unused profiles of one chunk if unused ones take too much memory. The cost is
    /// amortised: a change sweeps one chunk at most.
    pub(super) fn sweep(&mut self, directory: &ShardDirectory) {
        let used = self.bytes.saturating_sub(self.unused_bytes);
        let most = MIN_UNUSED_BYTES.saturating_add(used / UNUSED_DIVISOR);
        if self.unused_bytes > most {
            self.replace_next(directory);
        }
    }

    /// Replaces the next chunk that has unused profiles.
    fn replace_next(&mut self, directory: &ShardDirectory) {
        for _ in 0..self.chunks.len() {
            let next = self.last_swept.saturating_add(1);
            self.last_swept = if next < self.chunks.len() { next } else { 0 };
            if self.replace(self.last_swept, directory) {
                break;
            }
        }
        // The index has the capacity of its peak.
        if self.numbers.len().saturating_mul(4) < self.numbers.capacity() {
            self.numbers.shrink_to(self.numbers.len().saturating_mul(2));
        }
    }

    /// Replaces a chunk by a copy without its unused profiles; returns whether it had any.
    fn replace(&mut self, place: usize, directory: &ShardDirectory) -> bool {
        let first = place.saturating_mul(CHUNK_PROFILES);
        let Some(old) = self.chunks.get(place).map(Arc::clone) else { return false };
        let uses = self.uses.get(first..).unwrap_or_default();
        let held = old.0.iter().map(OnceLock::get).zip(first..);
        let unused: Vec<_> = held
            .zip(uses)
            .filter_map(|((profile, number), uses)| {
                (*uses == 0).then_some((Arc::clone(profile?), number))
            })
            .collect();
        if unused.is_empty() {
            return false;
        }
        let uses = |number: usize| self.uses.get(number).is_some_and(|uses| *uses > 0);
        let kept = old.0.iter().zip(first..);
        let kept = kept.map(|(profile, number)| profile.get().filter(|_| uses(number)).cloned());
        let new = Arc::new(Chunk::new(kept));
        directory.replace_chunk(place, &new);
        if let Some(chunk) = self.chunks.get_mut(place) {
            *chunk = new;
        }
        for (profile, number) in unused {
            let bytes = bytes_of(&profile);
            self.bytes = self.bytes.saturating_sub(bytes);
            self.unused_bytes = self.unused_bytes.saturating_sub(bytes);
            self.numbers.remove(&profile);
            self.free.push(number);
        }
        true
    }

    /// The number of profiles in use.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.uses.iter().skip(1).filter(|uses| **uses > 0).count()
    }

    /// The number of profiles, in use or not.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }
}

/// About how many bytes a profile takes: one heap allocation with the two counts of an `Arc` and the
/// allocator's rounding.
fn bytes_of(profile: &Profile) -> usize {
    size_of::<Profile>().saturating_add(profile.heap_bytes()).saturating_add(48)
}
