//! The binary image of the table: the body of a snapshot file, between its position and its hash.
//!
//! The image has the shards in order, each as it was at one moment while the writer goes on. A pair is
//! its key and its entry, 24 bytes; the two words of an expiring pair, or the length and bytes of a
//! boxed one, follow. The profiles come last, once all that the pairs use are known, and are numbered
//! by the image, because the table may reuse a number while it is being written. The reader accepts
//! only what the writer can produce, and allocates no more memory than the image has bytes.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::packed_entry::{Encoding, ExpiringEntry, MAX_PROFILES, PackedEntry};
use super::profiles::profile;
use super::shard::{PerShard, Shard, ShardIndex};
use super::shard_directory::View;
use super::shard_writer::ShardWriter;
use super::writer::heap_bytes;
use super::{Shared, Table, Writer};
use consentd_core::id::{Key, KeySecret};
use consentd_core::standing::{Profile, ResolvedState};

/// The most bytes of one profile.
const MAX_PROFILE_BYTES: usize = 1 << 16;
/// The fewest bytes of a pair: a key and an entry.
const MIN_PAIR_BYTES: u64 = 24;

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TableImageError {
    /// An I/O error.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// The bytes are not an image that a table wrote.
    #[error("it is damaged")]
    Damaged,
}

/// A decoded image, ready to be put into an empty table.
pub struct TableImage {
    shards: PerShard<ShardWriter>,
    boxed: Vec<(Key, Box<ResolvedState>)>,
    /// The first has number 1.
    profiles: Vec<Profile>,
}

impl TableImage {
    /// The number of pairs.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.shards.iter().map(|shard| shard.pairs).sum()
    }

    /// Reads an image that [`Table::save`] wrote, of at most `max_bytes`.
    ///
    /// # Errors
    ///
    /// [`TableImageError`] if it cannot be read or is damaged.
    pub fn read(input: &mut impl Read, max_bytes: u64) -> Result<Self, TableImageError> {
        let shards = PerShard::from_fn(ShardWriter::empty);
        let mut image = Self { shards, boxed: Vec::new(), profiles: Vec::new() };
        let mut highest = 0;
        let mut bytes = Vec::new();
        for shard in ShardIndex::all() {
            let (count, length) = (u64::from(word(input)?), u64::from(word(input)?));
            if length > max_bytes || count.saturating_mul(MIN_PAIR_BYTES) > length {
                return Err(TableImageError::Damaged);
            }
            bytes.clear();
            input.take(length).read_to_end(&mut bytes)?;
            highest = highest.max(image.shard(shard, count, &bytes)?);
        }
        let count = usize::try_from(word(input)?).map_err(|_| TableImageError::Damaged)?;
        if count > MAX_PROFILES || highest > count {
            return Err(TableImageError::Damaged);
        }
        for _ in 0..count {
            let length = usize::try_from(word(input)?).map_err(|_| TableImageError::Damaged)?;
            if length > MAX_PROFILE_BYTES {
                return Err(TableImageError::Damaged);
            }
            let mut profile = vec![0; length];
            input.read_exact(&mut profile)?;
            let mut rest = &profile[..];
            let profile = Profile::decode(&mut rest).filter(|_| rest.is_empty());
            image.profiles.push(profile.ok_or(TableImageError::Damaged)?);
        }
        Ok(image)
    }

    /// Decodes a shard; returns the highest profile number in it.
    fn shard(
        &mut self,
        index: ShardIndex,
        count: u64,
        mut bytes: &[u8],
    ) -> Result<usize, TableImageError> {
        let count = usize::try_from(count).map_err(|_| TableImageError::Damaged)?;
        let mut pairs = Vec::with_capacity(count);
        let mut expiring = Vec::new();
        let (mut last, mut highest) = (None, 0);
        for _ in 0..count {
            let read = self.pair(&mut bytes, &mut expiring);
            let (key, entry, profile) = read.ok_or(TableImageError::Damaged)?;
            if ShardIndex::of(key) != index || last.is_some_and(|last| last >= key) {
                return Err(TableImageError::Damaged);
            }
            last = Some(key);
            highest = highest.max(profile);
            pairs.push((key, entry));
        }
        if !bytes.is_empty() {
            return Err(TableImageError::Damaged);
        }
        let shard = Shard::from_sorted(count, pairs.into_iter()).with_expiring(expiring);
        let in_use = shard.expiring_capacity();
        *self.shards.get_mut(index) = ShardWriter::new(Arc::new(shard), count, in_use);
        Ok(highest)
    }

    /// Decodes the next pair: its key, its entry, and its profile number (0 for none).
    fn pair(
        &mut self,
        bytes: &mut &[u8],
        expiring: &mut Vec<ExpiringEntry>,
    ) -> Option<(Key, PackedEntry, usize)> {
        let key = Key::from_halves((long(bytes)?, long(bytes)?));
        let entry = PackedEntry::from_word(long(bytes)?)?;
        match entry.encoding() {
            Encoding::Unreadable => Some((key, PackedEntry::UNREADABLE, 0)),
            Encoding::Inline(number, _) => (number > 0).then_some((key, entry, number)),
            Encoding::Expiring(_) => {
                let (inline, expiry) = (PackedEntry::from_word(long(bytes)?)?, long(bytes)?);
                let Encoding::Inline(number, _) = inline.encoding() else { return None };
                let entry = PackedEntry::expiring(u32::try_from(expiring.len()).ok()?);
                expiring.push(ExpiringEntry::new(inline, expiry));
                let is_valid = number > 0 && ExpiringEntry::is_expiry_word(expiry);
                is_valid.then_some((key, entry, number))
            }
            Encoding::Boxed => {
                let length = usize::try_from(long(bytes)?).ok()?;
                let (all, rest) = bytes.split_at_checked(length)?;
                *bytes = rest;
                self.boxed.push((key, Box::new(ResolvedState::decode(all)?)));
                Some((key, PackedEntry::BOXED, 0))
            }
        }
    }
}

fn word(input: &mut impl Read) -> Result<u32, TableImageError> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Decodes the next 8 bytes.
fn long(bytes: &mut &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*first))
}

fn length(bytes: usize) -> io::Result<[u8; 4]> {
    let length = u32::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    Ok(length.to_le_bytes())
}

impl Table {
    /// Writes the image. Every shard is as it was at a moment of its own.
    ///
    /// # Errors
    ///
    /// An error of `out`, or [`io::ErrorKind::Interrupted`] once `is_wanted` returns false.
    pub fn save(&self, out: &mut impl Write, is_wanted: impl Fn() -> bool) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut numbers = ImageNumbers::default();
        for index in ShardIndex::all() {
            if !is_wanted() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = {
                let view = self.0.directory.view();
                let shard = view.shards.get(index);
                shard.seqlock_read(|| {
                    bytes.clear();
                    shard.pairs().try_fold(0_usize, |count, (key, entry)| {
                        self.0.append_pair(key, entry, shard, &view, &mut numbers, &mut bytes)?;
                        count.checked_add(1)
                    })
                })
            };
            let count = count.ok_or(io::ErrorKind::InvalidData)?;
            out.write_all(&length(count)?)?;
            out.write_all(&length(bytes.len())?)?;
            out.write_all(&bytes)?;
        }
        out.write_all(&length(numbers.profiles.len())?)?;
        for profile in numbers.profiles {
            bytes.clear();
            profile.encode(&mut bytes);
            out.write_all(&length(bytes.len())?)?;
            out.write_all(&bytes)?;
        }
        Ok(())
    }
}

/// The numbers of profiles in an image.
#[derive(Default)]
struct ImageNumbers {
    /// The first has number 1.
    profiles: Vec<Arc<Profile>>,
    by_profile: HashMap<Arc<Profile>, usize>,
    /// By the table's number: the profile that had it when it was last seen, and its number in the image.
    by_number: Vec<Option<(Arc<Profile>, usize)>>,
}

impl ImageNumbers {
    /// The entry of the image for one of the table; `None` if no profile has its number any more, or
    /// if the image has [`MAX_PROFILES`] already.
    fn renumbered(&mut self, entry: PackedEntry, view: &View) -> Option<PackedEntry> {
        let Encoding::Inline(number, last_inbound) = entry.encoding() else { return None };
        let profile = profile(&view.profiles, number)?;
        let known = self.by_number.get(number).and_then(Option::as_ref);
        if let Some((_, saved)) = known.filter(|(known, _)| Arc::ptr_eq(known, profile)) {
            return Some(PackedEntry::inline(*saved, last_inbound));
        }
        let saved = self.number_of(profile)?;
        if self.by_number.len() <= number {
            self.by_number.resize(number.checked_add(1)?, None);
        }
        *self.by_number.get_mut(number)? = Some((Arc::clone(profile), saved));
        Some(PackedEntry::inline(saved, last_inbound))
    }

    fn number_of(&mut self, profile: &Arc<Profile>) -> Option<usize> {
        if let Some(number) = self.by_profile.get(profile) {
            return Some(*number);
        }
        if self.profiles.len() >= MAX_PROFILES {
            return None;
        }
        self.profiles.push(Arc::clone(profile));
        self.by_profile.insert(Arc::clone(profile), self.profiles.len());
        Some(self.profiles.len())
    }
}

impl Shared {
    /// Appends a pair's bytes; `None` if the writer is changing the pair.
    fn append_pair(
        &self,
        key: Key,
        entry: PackedEntry,
        shard: &Shard,
        view: &View,
        numbers: &mut ImageNumbers,
        bytes: &mut Vec<u8>,
    ) -> Option<()> {
        let (high, low) = key.halves();
        bytes.extend(high.to_le_bytes());
        bytes.extend(low.to_le_bytes());
        match entry.encoding() {
            Encoding::Expiring(index) => {
                let (inline, expiry) = shard.expiring(index)?.words();
                let inline = numbers.renumbered(PackedEntry::from_word(inline)?, view)?;
                bytes.extend(PackedEntry::expiring(0).word().to_le_bytes());
                bytes.extend(inline.word().to_le_bytes());
                bytes.extend(expiry.to_le_bytes());
            }
            Encoding::Boxed => {
                let mut all = Vec::new();
                self.boxed.get(&key)?.encode(&mut all);
                bytes.extend(entry.word().to_le_bytes());
                bytes.extend(u64::try_from(all.len()).ok()?.to_le_bytes());
                bytes.extend(all);
            }
            Encoding::Unreadable => bytes.extend(entry.word().to_le_bytes()),
            Encoding::Inline(..) => {
                bytes.extend(numbers.renumbered(entry, view)?.word().to_le_bytes());
            }
        }
        Some(())
    }
}

impl Writer {
    /// The table that this writer writes.
    #[must_use]
    pub fn table(&self) -> Table {
        Table(Arc::clone(&self.shared))
    }

    /// Puts the pairs of an image, whose keys this secret made, into this table; returns whether it
    /// did. The table must be empty, and the profiles of the image distinct.
    #[must_use]
    pub fn restore(&mut self, image: TableImage, secret: &KeySecret) -> bool {
        if self.pairs().next().is_some() {
            return false;
        }
        self.reset(secret);
        for (profile, number) in image.profiles.iter().zip(1..) {
            if self.profiles.number_of(profile, &self.shared.directory) != Some(number) {
                return false; // A profile came twice: the numbers do not match.
            }
        }
        let mut nameless = 0_usize;
        for known in image.shards.iter() {
            for (key, entry) in known.shard.pairs() {
                nameless = nameless.saturating_add(usize::from(key.is_nameless()));
                if let Some(number) = known.shard.profile_of(entry) {
                    self.profiles.add_use(number);
                }
            }
        }
        let shared = &self.shared;
        let pairs = image.pairs();
        (self.boxed_pairs, self.boxed_peak) = (image.boxed.len(), image.boxed.len());
        for (key, boxed) in image.boxed {
            shared.boxed_bytes.fetch_add(heap_bytes(&boxed), Ordering::Relaxed);
            shared.boxed.insert(key, boxed);
        }
        let bytes = image.shards.iter().map(|known| known.shard.bytes()).sum();
        shared.shard_bytes.store(bytes, Ordering::Relaxed);
        shared.profile_bytes.store(self.profiles.bytes(), Ordering::Relaxed);
        shared.pairs.store(pairs, Ordering::Relaxed);
        shared.nameless.store(nameless, Ordering::Release);
        let shards = image.shards.map(|known| Arc::clone(&known.shard));
        shared.directory.replace_all(&shards, self.profiles.chunks());
        self.shards = image.shards;
        true
    }

    /// Calls `each` for every key.
    pub fn for_each_key(&self, each: impl FnMut(Key)) {
        self.pairs().map(|(key, ..)| key).for_each(each);
    }
}
