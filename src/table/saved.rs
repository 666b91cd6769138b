//! The table as bytes, and back: what lies in a snapshot's file between its position and its hash.
//!
//! Shard by shard, each as it was at one moment; the writer goes on meanwhile. A pair is its key
//! and its entry, 24 bytes; behind one that lapses comes what lapses, behind one that fits nowhere
//! all of it. The profiles come last, when all that a pair can have are known. Any bytes can be
//! read: what no table writes is refused, and takes no more memory than the bytes themselves.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::entry::{Content, Entry, Lapsing, MAX_PROFILES};
use super::slots::{SHARDS, Slots, shard_of};
use super::writer::heap_bytes;
use super::{Table, Writer};
use crate::consent::facts::{Profile, Resolved};
use crate::consent::id::{Key, KeySecret};

/// The most bytes of one pair that fits nowhere, and of one profile.
const MAX_ALONE: usize = 1 << 16;
/// The fewest bytes of a pair.
const PAIR: u64 = 24;

/// Why bytes are no table.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// They could not be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// No table writes these.
    #[error("it is damaged")]
    Damaged,
}

/// A table that was saved, ready to be put in an empty one's place.
pub struct Saved {
    shards: Vec<(Arc<Slots>, usize)>,
    /// By the places that entries tell.
    lapsing: Vec<(Entry, u64)>,
    whole: Vec<(Key, Box<Resolved>)>,
    /// The first has number 1.
    profiles: Vec<Profile>,
}

impl Saved {
    /// How many pairs it has.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.shards.iter().map(|(_, pairs)| pairs).sum()
    }

    /// Reads what [`Table::save`] wrote, no more than `most` bytes.
    ///
    /// # Errors
    ///
    /// Where it is not that.
    pub fn read(input: &mut impl Read, most: u64) -> Result<Self, SavedError> {
        let mut saved = Self {
            shards: Vec::new(),
            lapsing: Vec::new(),
            whole: Vec::new(),
            profiles: Vec::new(),
        };
        let mut highest = 0;
        let mut bytes = Vec::new();
        for shard in 0..SHARDS {
            let (count, length) = (u64::from(word(input)?), u64::from(word(input)?));
            if length > most || count.saturating_mul(PAIR) > length {
                return Err(SavedError::Damaged);
            }
            bytes.clear();
            input.take(length).read_to_end(&mut bytes)?;
            highest = highest.max(saved.shard(shard, count, &bytes)?);
        }
        let count = usize::try_from(word(input)?).map_err(|_| SavedError::Damaged)?;
        if count > MAX_PROFILES || highest > count {
            return Err(SavedError::Damaged);
        }
        for _ in 0..count {
            let length = usize::try_from(word(input)?).map_err(|_| SavedError::Damaged)?;
            if length > MAX_ALONE {
                return Err(SavedError::Damaged);
            }
            let mut profile = vec![0; length];
            input.read_exact(&mut profile)?;
            let mut rest = &profile[..];
            let profile = Profile::take(&mut rest).filter(|_| rest.is_empty());
            saved.profiles.push(profile.ok_or(SavedError::Damaged)?);
        }
        Ok(saved)
    }

    /// Takes a shard; gives the highest number of a profile there.
    fn shard(&mut self, shard: usize, count: u64, mut bytes: &[u8]) -> Result<usize, SavedError> {
        let count = usize::try_from(count).map_err(|_| SavedError::Damaged)?;
        let mut pairs = Vec::with_capacity(count);
        let (mut last, mut highest) = (None, 0);
        for _ in 0..count {
            let read = self.pair(&mut bytes);
            let (key, entry, profile) = read.ok_or(SavedError::Damaged)?;
            if shard_of(key) != shard || last.is_some_and(|last| last >= key) {
                return Err(SavedError::Damaged);
            }
            last = Some(key);
            highest = highest.max(profile);
            pairs.push((key, entry));
        }
        if !bytes.is_empty() {
            return Err(SavedError::Damaged);
        }
        self.shards.push((Arc::new(Slots::of(count, pairs.into_iter())), count));
        Ok(highest)
    }

    /// Takes a pair off the front: its key, its entry here, and the number of its profile.
    fn pair(&mut self, bytes: &mut &[u8]) -> Option<(Key, Entry, usize)> {
        let key = Key::from_halves((long(bytes)?, long(bytes)?));
        let entry = Entry::from_word(long(bytes)?)?;
        match entry.content() {
            Content::Unreadable => Some((key, Entry::UNREADABLE, 0)),
            Content::Shared(number, _) => (number > 0).then_some((key, entry, number)),
            Content::Lapsing(_) => {
                let (shared, lapses) = (Entry::from_word(long(bytes)?)?, long(bytes)?);
                let Content::Shared(number, _) = shared.content() else { return None };
                let place = Entry::lapsing(self.lapsing.len())?;
                self.lapsing.push((shared, lapses));
                (number > 0 && Lapsing::is_word(lapses)).then_some((key, place, number))
            }
            Content::Whole => {
                let length = usize::try_from(long(bytes)?).ok()?;
                let (all, rest) = bytes.split_at_checked(length)?;
                *bytes = rest;
                self.whole.push((key, Box::new(Resolved::of_bytes(all)?)));
                Some((key, Entry::WHOLE, 0))
            }
        }
    }
}

fn word(input: &mut impl Read) -> Result<u32, SavedError> {
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
        for shard in 0..SHARDS {
            if !goes_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            // In this thread's own lane, which no check goes through.
            let count = self.0.lanes.read(|shards| {
                let Some(slots) = shards.get(shard) else { return Some(0) };
                slots.consistently(|| {
                    bytes.clear();
                    slots.pairs().try_fold(0_usize, |count, (key, entry)| {
                        self.put_pair(key, entry, &mut bytes)?;
                        count.checked_add(1)
                    })
                })
            });
            let count = count.ok_or(io::ErrorKind::InvalidData)?;
            out.write_all(&length(count)?)?;
            out.write_all(&length(bytes.len())?)?;
            out.write_all(&bytes)?;
        }
        let profiles = self.0.profiles.iter().skip(1); // The first is nobody's.
        out.write_all(&length(self.0.profiles.count().saturating_sub(1))?)?;
        for (_, profile) in profiles {
            bytes.clear();
            profile.put(&mut bytes);
            out.write_all(&length(bytes.len())?)?;
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Adds a pair's bytes; none while the writer moves it.
    fn put_pair(&self, key: Key, entry: Entry, bytes: &mut Vec<u8>) -> Option<()> {
        let (high, low) = key.halves();
        bytes.extend(high.to_le_bytes());
        bytes.extend(low.to_le_bytes());
        match entry.content() {
            Content::Lapsing(place) => {
                let (shared, lapses) = self.0.lapsing.get(place)?.words();
                bytes.extend(Entry::lapsing(0)?.word().to_le_bytes());
                bytes.extend(shared.to_le_bytes());
                bytes.extend(lapses.to_le_bytes());
            }
            Content::Whole => {
                let mut all = Vec::new();
                self.0.whole.get(&key)?.put(&mut all);
                bytes.extend(entry.word().to_le_bytes());
                bytes.extend(u64::try_from(all.len()).ok()?.to_le_bytes());
                bytes.extend(all);
            }
            Content::Unreadable | Content::Shared(..) => {
                bytes.extend(entry.word().to_le_bytes());
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

    /// Puts a table that was saved in the place of this one, in which nothing was written yet;
    /// tells whether it did. Their keys are what this secret makes.
    #[must_use]
    pub fn restore(&mut self, saved: Saved, secret: &KeySecret) -> bool {
        let shared = &self.shared;
        if shared.profiles.count() > 1 || shared.lapsing.count() > 0 {
            return false; // Numbers and places are those of an empty table.
        }
        self.begin(secret);
        for profile in &saved.profiles {
            if self.number_of(profile).is_none() {
                return false;
            }
        }
        let shared = &self.shared;
        if shared.profiles.count().saturating_sub(1) != saved.profiles.len() {
            return false; // One of them came twice: the others have other numbers.
        }
        let pairs = saved.pairs();
        for (entry, lapses) in saved.lapsing {
            shared.lapsing.push(Lapsing::new(entry, lapses));
        }
        for (key, whole) in saved.whole {
            shared.heap_bytes.fetch_add(heap_bytes(&whole), Ordering::Relaxed);
            shared.whole.insert(key, whole);
        }
        let bytes = saved.shards.iter().map(|(slots, _)| slots.bytes()).sum();
        shared.slot_bytes.store(bytes, Ordering::Relaxed);
        shared.pairs.store(pairs, Ordering::Relaxed);
        let shards: Vec<_> = saved.shards.iter().map(|(slots, _)| Arc::clone(slots)).collect();
        shared.lanes.replace_all(&shards);
        self.shards = saved.shards;
        true
    }

    /// Calls `each` for every pair.
    pub fn each_key(&self, each: impl FnMut(Key)) {
        self.shards.iter().flat_map(|(slots, _)| slots.pairs()).map(|(key, _)| key).for_each(each);
    }
}
