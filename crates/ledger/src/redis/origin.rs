//! Which ledger each partition belongs to. All partitions of a ledger have its id and its secret; a shard that was
//! restored from the backup of another ledger has others, though everything in it fits together.
//!
//! The first partition is the reference. While a ledger is replaced as a whole, its partitions change one after the
//! other: those that differ are refused until they agree again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What all partitions of a ledger have alike.
#[derive(Clone, Eq, PartialEq)]
pub(super) struct Origin {
    /// The ledger's id.
    pub(super) ledger: Vec<u8>,
    /// The encoded secret of its keys.
    pub(super) secret: Vec<u8>,
}

/// What the partition's origin says, compared with the others'.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// It is of this ledger, as far as is known.
    Member,
    /// It is of another ledger than the first partition was when that one was last read; so often it was read.
    UnlikeFirst { reads: u64 },
    /// The partitions are of several ledgers, and it is not known that this one is of the right one.
    Doubtful,
}

/// The origins of all partitions that were read.
#[derive(Default)]
pub(super) struct Origins {
    known: Mutex<Known>,
    /// Held while the first partition is read anew, so that all who differ from it share one read.
    pub(super) reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    /// The first partition's, as last read: also after it was lost.
    first: Option<Origin>,
    /// How often it was read, or could not be.
    reads: u64,
    /// Those of the partitions that are there.
    present: BTreeMap<u32, Origin>,
    /// Whether those differ, so that a poll has more to compare than its own.
    differ: bool,
}

impl Origins {
    /// Remembers a partition's origin, and compares it.
    pub(super) fn note(&self, partition: u32, origin: &Origin) -> Standing {
        let mut known = self.known();
        if known.present.get(&partition) != Some(origin) {
            known.present.insert(partition, origin.clone());
            known.compare();
        }
        if partition == 0 {
            known.reads = known.reads.wrapping_add(1);
            if known.first.as_ref() != Some(origin) {
                known.first = Some(origin.clone());
            }
        }
        match &known.first {
            Some(first) if first != origin => Standing::UnlikeFirst { reads: known.reads },
            // The first partition's own shard may be the one with the wrong backup.
            Some(_) if known.differ && known.is_outnumbered(origin) => Standing::Doubtful,
            // Without the first one, nobody knows which of them is right.
            None if known.differ => Standing::Doubtful,
            _ => Standing::Member,
        }
    }

    /// Forgets the origin of a partition that is missing: what replaces it may be of another ledger.
    pub(super) fn forget(&self, partition: u32) {
        let mut known = self.known();
        if known.present.remove(&partition).is_some() {
            known.compare();
        }
    }

    /// Whether the first partition's origin is known.
    pub(super) fn knows_first(&self) -> bool {
        self.known().first.is_some()
    }

    /// How often the first partition was read, or could not be.
    pub(super) fn reads(&self) -> u64 {
        self.known().reads
    }

    /// Counts an attempt to read the first partition that failed.
    pub(super) fn note_unread(&self) {
        let mut known = self.known();
        known.reads = known.reads.wrapping_add(1);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn compare(&mut self) {
        let mut origins = self.present.values();
        let one = origins.next();
        self.differ = origins.any(|other| Some(other) != one);
    }

    /// Whether more partitions are of another ledger than of this one.
    fn is_outnumbered(&self, origin: &Origin) -> bool {
        let alike = self.present.values().filter(|one| *one == origin).count();
        alike < self.present.len().saturating_sub(alike)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ledger: u8) -> Origin {
        Origin { ledger: vec![ledger], secret: vec![7] }
    }

    #[test]
    fn first_partition_is_the_reference_unless_it_is_outnumbered() {
        let origins = Origins::default();
        assert_eq!(origins.note(3, &of(1)), Standing::Member, "there is nothing to compare with");
        assert!(!origins.knows_first());
        assert_eq!(origins.note(4, &of(2)), Standing::Doubtful);
        assert_eq!(origins.note(3, &of(1)), Standing::Doubtful);
        assert_eq!(origins.note(0, &of(1)), Standing::Member);
        assert_eq!(origins.note(3, &of(1)), Standing::Member);
        assert_eq!(origins.note(4, &of(2)), Standing::UnlikeFirst { reads: 1 });
        for other in 5..8 {
            assert_ne!(origins.note(other, &of(2)), Standing::Member);
        }
        assert_eq!(origins.note(0, &of(1)), Standing::Doubtful);
        assert_eq!(origins.note(3, &of(1)), Standing::Doubtful);
        // A missing one has no say.
        for other in 4..8 {
            origins.forget(other);
        }
        assert_eq!(origins.note(3, &of(1)), Standing::Member);
        // Once all agree, they are the ledger.
        assert_eq!(origins.note(0, &of(2)), Standing::Member);
        assert_eq!(origins.note(3, &of(2)), Standing::Member);
    }
}
