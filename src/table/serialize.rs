//! The table as bytes, and back: what lies in a snapshot's file between its position and its hash.
//!
//! Shard by shard, each as it was at one moment; the writer goes on meanwhile. A pair is its key
//! and its entry, 24 bytes; behind one that lapses comes what lapses, behind one that fits nowhere
//! all of it. The profiles come last, when all that a pair can have are known, and under numbers of
//! the file's own: the table may give a number to another profile while it is saved. Any bytes can
//! be read: what no table writes is refused, and takes no more memory than the bytes themselves.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::packed_entry::{Encoding, ExpiringEntry, MAX_PROFILES, PackedEntry};
use super::profiles::profile;
use super::shard::{SHARDS, Shard, shard_of};
use super::shard_directory::View;
use super::shard_writer::ShardWriter;
use super::writer::heap_bytes;
use super::{Shared, Table, Writer};
use consentd_core::facts::{Profile, Resolved};
use consentd_core::id::{Key, KeySecret};

/// The most bytes of one pair that fits nowhere, and of one profile.
const MAX_ALONE: usize = 1 << 16;
/// The fewest bytes of a pair.
const PAIR: u64 = 24;

/// Why bytes are no table.
#[derive(Debug, thiserror::Error)]
pub enum TableImageError {
    /// They could not be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// No table writes these.
    #[error("it is damaged")]
    Damaged,
}

/// A table that was saved, ready to be put in an empty one's place.
pub struct TableImage {
    shards: Vec<ShardWriter>,
    boxed: Vec<(Key, Box<Resolved>)>,
    /// The first has number 1.
    profiles: Vec<Profile>,
}

impl TableImage {
    /// How many pairs it has.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.shards.iter().map(|shard| shard.pairs).sum()
    }

    /// Reads what [`Table::save`] wrote, no more than `most` bytes.
    ///
    /// # Errors
    ///
    /// Where it is not that.
    pub fn read(input: &mut impl Read, most: u64) -> Result<Self, TableImageError> {
        let mut image = Self { shards: Vec::new(), boxed: Vec::new(), profiles: Vec::new() };
        let mut highest = 0;
        let mut bytes = Vec::new();
        for shard in 0..SHARDS {
            let (count, length) = (u64::from(word(input)?), u64::from(word(input)?));
            if length > most || count.saturating_mul(PAIR) > length {
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
            if length > MAX_ALONE {
                return Err(TableImageError::Damaged);
            }
            let mut profile = vec![0; length];
            input.read_exact(&mut profile)?;
            let mut rest = &profile[..];
            let profile = Profile::take(&mut rest).filter(|_| rest.is_empty());
            image.profiles.push(profile.ok_or(TableImageError::Damaged)?);
        }
        Ok(image)
    }

    /// Takes a shard; gives the highest number of a profile there.
    fn shard(
        &mut self,
        shard: usize,
        count: u64,
        mut bytes: &[u8],
    ) -> Result<usize, TableImageError> {
        let count = usize::try_from(count).map_err(|_| TableImageError::Damaged)?;
        let mut pairs = Vec::with_capacity(count);
        let mut lapsing = Vec::new();
        let (mut last, mut highest) = (None, 0);
        for _ in 0..count {
            let read = self.pair(&mut bytes, &mut lapsing);
            let (key, entry, profile) = read.ok_or(TableImageError::Damaged)?;
            if shard_of(key) != shard || last.is_some_and(|last| last >= key) {
                return Err(TableImageError::Damaged);
            }
            last = Some(key);
            highest = highest.max(profile);
            pairs.push((key, entry));
        }
        if !bytes.is_empty() {
            return Err(TableImageError::Damaged);
        }
        let lapses = lapsing.len();
        let slots = Shard::of(count, pairs.into_iter()).beside(lapsing);
        self.shards.push(ShardWriter::of(Arc::new(slots), count, lapses));
        Ok(highest)
    }

    /// Takes a pair off the front: its key, its entry here, and the number of its profile.
    fn pair(
        &mut self,
        bytes: &mut &[u8],
        lapsing: &mut Vec<ExpiringEntry>,
    ) -> Option<(Key, PackedEntry, usize)> {
        let key = Key::from_halves((long(bytes)?, long(bytes)?));
        let entry = PackedEntry::from_word(long(bytes)?)?;
        match entry.encoding() {
            Encoding::Unreadable => Some((key, PackedEntry::UNREADABLE, 0)),
            Encoding::Inline(number, _) => (number > 0).then_some((key, entry, number)),
            Encoding::Expiring(_) => {
                let (shared, lapses) = (PackedEntry::from_word(long(bytes)?)?, long(bytes)?);
                let Encoding::Inline(number, _) = shared.encoding() else { return None };
                let place = PackedEntry::expiring(lapsing.len())?;
                lapsing.push(ExpiringEntry::new(shared, lapses));
                (number > 0 && ExpiringEntry::is_word(lapses)).then_some((key, place, number))
            }
            Encoding::Boxed => {
                let length = usize::try_from(long(bytes)?).ok()?;
                let (all, rest) = bytes.split_at_checked(length)?;
                *bytes = rest;
                self.boxed.push((key, Box::new(Resolved::of_bytes(all)?)));
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

/// Takes 8 bytes off the front.
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
    /// Writes the pairs, while `goes_on` says so.
    ///
    /// Every shard is as it was at a moment of its own.
    ///
    /// # Errors
    ///
    /// What kept it from writing.
    pub fn save(&self, out: &mut impl Write, goes_on: impl Fn() -> bool) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut numbers = Numbers::default();
        for shard in 0..SHARDS {
            if !goes_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            // In this thread's own lane, which no check goes through.
            let count = self.0.lanes.read(|view| {
                let Some(slots) = view.shards.get(shard) else { return Some(0) };
                slots.seqlock_read(|| {
                    bytes.clear();
                    slots.pairs().try_fold(0_usize, |count, (key, entry)| {
                        self.0.put_pair(key, entry, slots, view, &mut numbers, &mut bytes)?;
                        count.checked_add(1)
                    })
                })
            });
            let count = count.flatten().ok_or(io::ErrorKind::InvalidData)?;
            out.write_all(&length(count)?)?;
            out.write_all(&length(bytes.len())?)?;
            out.write_all(&bytes)?;
        }
        out.write_all(&length(numbers.profiles.len())?)?;
        for profile in numbers.profiles {
            bytes.clear();
            profile.put(&mut bytes);
            out.write_all(&length(bytes.len())?)?;
            out.write_all(&bytes)?;
        }
        Ok(())
    }
}

/// The numbers that profiles have in a file.
#[derive(Default)]
struct Numbers {
    /// The first has number 1.
    profiles: Vec<Arc<Profile>>,
    by_profile: HashMap<Arc<Profile>, usize>,
    /// By the table's number: the profile that had it when it was last seen, and its number here.
    by_number: Vec<Option<(Arc<Profile>, usize)>>,
}

impl Numbers {
    /// The entry that a file has for one that the table has; none where the profile is no longer
    /// known by that number, or where more were seen than a file may have.
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
    /// Adds a pair's bytes; none while the writer moves it.
    fn put_pair(
        &self,
        key: Key,
        entry: PackedEntry,
        slots: &Shard,
        view: &View,
        numbers: &mut Numbers,
        bytes: &mut Vec<u8>,
    ) -> Option<()> {
        let (high, low) = key.halves();
        bytes.extend(high.to_le_bytes());
        bytes.extend(low.to_le_bytes());
        match entry.encoding() {
            Encoding::Expiring(place) => {
                let (shared, lapses) = slots.expiring(place)?.words();
                let shared = numbers.renumbered(PackedEntry::from_word(shared)?, view)?;
                bytes.extend(PackedEntry::expiring(0)?.word().to_le_bytes());
                bytes.extend(shared.word().to_le_bytes());
                bytes.extend(lapses.to_le_bytes());
            }
            Encoding::Boxed => {
                let mut all = Vec::new();
                self.boxed.get(&key)?.put(&mut all);
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
    /// The table that it writes.
    #[must_use]
    pub fn table(&self) -> Table {
        Table(Arc::clone(&self.shared))
    }

    /// Puts a table that was saved in the place of this one, in which no pair is yet; tells whether
    /// it did. Their keys are what this secret makes.
    #[must_use]
    pub fn restore(&mut self, image: TableImage, secret: &KeySecret) -> bool {
        if self.pairs().next().is_some() {
            return false;
        }
        self.reset(secret);
        for (profile, number) in image.profiles.iter().zip(1..) {
            if self.profiles.number_of(profile, &self.shared.lanes) != Some(number) {
                return false; // One of them came twice: the others have other numbers.
            }
        }
        for shard in &image.shards {
            for (_, entry) in shard.slots.pairs() {
                if let Some(number) = shard.slots.profile_of(entry) {
                    self.profiles.count(number);
                }
            }
        }
        let shared = &self.shared;
        let pairs = image.pairs();
        self.boxed = (image.boxed.len(), image.boxed.len());
        for (key, boxed) in image.boxed {
            shared.boxed_bytes.fetch_add(heap_bytes(&boxed), Ordering::Relaxed);
            shared.boxed.insert(key, boxed);
        }
        let bytes = image.shards.iter().map(|shard| shard.slots.bytes()).sum();
        shared.slot_bytes.store(bytes, Ordering::Relaxed);
        shared.profile_bytes.store(self.profiles.bytes(), Ordering::Relaxed);
        shared.pairs.store(pairs, Ordering::Relaxed);
        let shards: Vec<_> = image.shards.iter().map(|shard| Arc::clone(&shard.slots)).collect();
        shared.lanes.replace_all(&shards, self.profiles.chunks());
        self.shards = image.shards;
        true
    }

    /// Calls `each` for every pair.
    pub fn for_each_key(&self, each: impl FnMut(Key)) {
        self.pairs().map(|(key, ..)| key).for_each(each);
    }
}
