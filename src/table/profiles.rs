//! The profiles that pairs share: interned, counted by reference, and freed when nobody uses them.
//!
//! An entry holds a profile's number. The one writer interns every profile once and counts the
//! entries that hold its number; readers count nothing. A profile that no entry uses any more stays
//! where it is, ready to be used again, until such profiles take more than a small part of the
//! memory. Then the chunk that holds some of them is replaced by a copy without them.
//!
//! **Why a reader never finds another profile under a number than the entry meant.** A place in a
//! chunk is written once and never changed. A number is given to another profile only after its
//! chunk was replaced in every lane, which waits for the readers that are in that lane. A reader
//! that began before the replacement keeps the old chunk until it is done, and finds there what the
//! number meant. A reader that began after it finds no entry that still has the number, because all
//! entries were changed before. This is the grace period of read-copy-update, with the lanes' locks.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::packed_entry::MAX_PROFILES;
use super::shard_directory::ShardDirectory;
use consentd_core::facts::Profile;

/// How many profiles a chunk has: few enough that its replacement takes microseconds.
const CHUNK: usize = 256;

/// How many bytes of unused profiles are kept however small the table is.
const MIN_UNUSED_BYTES: usize = 16 * 1024;

/// The part of the used profiles' bytes that unused ones may take: a sixteenth.
const UNUSED_PART: usize = 16;

/// Profiles of consecutive numbers. Each place is written at most once.
pub(super) struct Chunk(Box<[OnceLock<Arc<Profile>>]>);

impl Chunk {
    fn of(profiles: impl Iterator<Item = Option<Arc<Profile>>>) -> Self {
        let place = |profile: Option<_>| profile.map_or_else(OnceLock::new, OnceLock::from);
        Self(profiles.map(place).collect())
    }
}

/// The profile of a number.
pub(super) fn profile(chunks: &[Arc<Chunk>], number: usize) -> Option<&Arc<Profile>> {
    chunks.get(number / CHUNK)?.0.get(number % CHUNK)?.get()
}

/// The writer's side: which profile has which number, and how many entries use it.
pub(super) struct Profiles {
    chunks: Vec<Arc<Chunk>>,
    numbers: HashMap<Arc<Profile>, usize>,
    /// By number. The first number is nobody's, because an entry of it could be zero.
    uses: Vec<usize>,
    /// Numbers below the end of `uses` that no profile has.
    free: Vec<usize>,
    /// The bytes of all profiles, and of those that no entry uses.
    bytes: usize,
    unused_bytes: usize,
    /// The chunk that was looked at last for unused profiles.
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

    /// What readers find profiles in.
    pub(super) fn chunks(&self) -> &[Arc<Chunk>] {
        &self.chunks
    }

    /// About how many bytes all of it takes.
    pub(super) fn bytes(&self) -> usize {
        let chunk = CHUNK.saturating_mul(size_of::<OnceLock<Arc<Profile>>>()).saturating_add(64);
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

    /// The number of a profile, which no entry may use yet; none where there are too many.
    pub(super) fn number_of(&mut self, profile: &Profile, lanes: &ShardDirectory) -> Option<usize> {
        if let Some(number) = self.numbers.get(profile) {
            return Some(*number);
        }
        if self.free.is_empty() && self.uses.len() > MAX_PROFILES {
            self.replace_next(lanes);
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.uses.len() > MAX_PROFILES => return None,
            None => {
                self.uses.push(0);
                self.uses.len().saturating_sub(1)
            }
        };
        if number / CHUNK >= self.chunks.len() {
            let chunk = Arc::new(Chunk::of((0..CHUNK).map(|_| None)));
            lanes.replace_chunk(self.chunks.len(), &chunk);
            self.chunks.push(chunk);
        }
        let profile = Arc::new(profile.clone());
        let place = self.chunks.get(number / CHUNK)?.0.get(number % CHUNK)?;
        place.set(Arc::clone(&profile)).ok()?;
        let bytes = bytes_of(&profile);
        self.bytes = self.bytes.saturating_add(bytes);
        self.unused_bytes = self.unused_bytes.saturating_add(bytes);
        self.numbers.insert(profile, number);
        Some(number)
    }

    /// One more entry uses the profile of this number.
    pub(super) fn count(&mut self, number: usize) {
        if let Some(uses) = self.uses.get_mut(number) {
            *uses = uses.saturating_add(1);
            if *uses == 1 {
                let bytes = profile(&self.chunks, number).map_or(0, |profile| bytes_of(profile));
                self.unused_bytes = self.unused_bytes.saturating_sub(bytes);
            }
        }
    }

    /// One entry fewer uses the profile of this number.
    pub(super) fn release(&mut self, number: usize) {
        if let Some(uses) = self.uses.get_mut(number) {
            *uses = uses.saturating_sub(1);
            if *uses == 0 {
                let bytes = profile(&self.chunks, number).map_or(0, |profile| bytes_of(profile));
                self.unused_bytes = self.unused_bytes.saturating_add(bytes);
            }
        }
    }

    /// Frees some unused profiles where they take too much: those of one chunk, so that no change
    /// takes long. Entries that use none of them must have been changed before.
    pub(super) fn sweep(&mut self, lanes: &ShardDirectory) {
        let used = self.bytes.saturating_sub(self.unused_bytes);
        let most = MIN_UNUSED_BYTES.saturating_add(used / UNUSED_PART);
        if self.unused_bytes > most {
            self.replace_next(lanes);
        }
    }

    /// Replaces the next chunk that has unused profiles.
    fn replace_next(&mut self, lanes: &ShardDirectory) {
        for _ in 0..self.chunks.len() {
            let next = self.last_swept.saturating_add(1);
            self.last_swept = if next < self.chunks.len() { next } else { 0 };
            if self.replace(self.last_swept, lanes) {
                break;
            }
        }
        // The map has grown for as many as there were once.
        if self.numbers.len().saturating_mul(4) < self.numbers.capacity() {
            self.numbers.shrink_to(self.numbers.len().saturating_mul(2));
        }
    }

    /// Replaces a chunk by one without its unused profiles; tells whether it had any.
    fn replace(&mut self, place: usize, lanes: &ShardDirectory) -> bool {
        let first = place.saturating_mul(CHUNK);
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
        let new = Arc::new(Chunk::of(kept));
        lanes.replace_chunk(place, &new);
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

    /// How many profiles are used.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.uses.iter().skip(1).filter(|uses| **uses > 0).count()
    }

    /// How many profiles there are, used or not.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }
}

/// About how many bytes a profile takes: it lies on the heap once, with its two counts, and the
/// allocator rounds up.
fn bytes_of(profile: &Profile) -> usize {
    size_of::<Profile>().saturating_add(profile.heap_bytes()).saturating_add(48)
}
