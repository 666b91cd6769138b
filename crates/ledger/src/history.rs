//! Histories as they are read: every entry with its place in its pair's chain.

use std::collections::HashMap;

use consentd_core::record::{ChainHead, HistoryEntry, Record, Revision, extend_chain};

/// How many chains a reading of all events goes on with, in each of two generations, before it
/// forgets those that it met longest ago: about 8 MB of them.
const MAX_CHAINS: usize = 65_536;

/// Where an entry of a history stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EntryPosition {
    /// The revision that wrote it.
    pub revision: Revision,
    /// Its number among all that its pair's history ever had, from 1.
    pub number: u64,
    /// The chain's head after it.
    pub head: ChainHead,
}

/// A pair's history.
#[derive(Debug, Default)]
pub struct History {
    /// The entries that are kept, oldest first.
    pub entries: Vec<(EntryPosition, HistoryEntry)>,
    /// The pair's record; the empty one where there is none.
    pub record: Record,
    /// The chain's head after each entry since the last erase, those included that are no longer
    /// kept. See [`Record::history_start`] for how many came before.
    pub heads: Vec<ChainHead>,
    /// How many entries have gone by their retention. Their digests are in the chain.
    pub expired: u64,
    /// How many entries are there and cannot be read, or have lost the words agreed to.
    pub unreadable: u64,
    /// Whether the chain over the whole history is the one in the pair's record, and every entry
    /// that should be readable is.
    pub intact: bool,
}

impl History {
    /// The number of the last entry.
    fn number(&self) -> u64 {
        let (start, _) = self.record.history_start();
        start.saturating_add(u64::try_from(self.heads.len()).unwrap_or(u64::MAX))
    }

    /// The chain's head after the entry of this number; none where there is none, or where it was
    /// erased.
    #[must_use]
    pub fn head_after(&self, number: u64) -> Option<ChainHead> {
        let (start, _) = self.record.history_start();
        let index = number.checked_sub(start)?.checked_sub(1)?;
        self.heads.get(usize::try_from(index).ok()?).copied()
    }
}

/// A history while it is being read, oldest entry first.
#[derive(Debug)]
pub(super) struct HistoryBuilder {
    history: History,
    head: ChainHead,
    whole: bool,
}

impl HistoryBuilder {
    /// A history of a pair whose record is this one.
    pub(super) fn new(record: Record) -> Self {
        let (_, head) = record.history_start();
        let history = History { record, ..History::default() };
        Self { history, head, whole: true }
    }

    /// Begins behind entries that cannot be found: what is left has the last numbers.
    pub(super) fn skip_missing(&mut self, left: u64) {
        let (start, _) = self.history.record.history_start();
        for _ in start..self.history.record.history_len.saturating_sub(left) {
            self.push_missing();
        }
        self.whole = false;
    }

    /// An entry that is not there at all.
    pub(super) fn push_missing(&mut self) {
        self.history.heads.push(self.head);
        self.whole = false;
    }

    /// An entry that is there, and is none.
    pub(super) fn push_garbled(&mut self) {
        self.history.unreadable += 1;
        self.push_missing();
    }

    /// An entry of which its digest alone is kept.
    pub(super) fn push_expired(&mut self, digest: &[u8; 32]) {
        self.extend(digest);
        self.history.expired += 1;
    }

    /// An entry that is kept; none where it cannot be read.
    pub(super) fn push_entry(
        &mut self,
        revision: Revision,
        digest: &[u8; 32],
        entry: Option<HistoryEntry>,
    ) {
        self.extend(digest);
        let number = self.history.number();
        match entry {
            Some(entry) => {
                let place = EntryPosition { revision, number, head: self.head };
                self.history.entries.push((place, entry));
            }
            None => self.history.unreadable += 1,
        }
    }

    fn extend(&mut self, digest: &[u8; 32]) {
        self.head = extend_chain(&self.head, digest);
        self.history.heads.push(self.head);
    }

    /// The history, with its chain checked.
    pub(super) fn finish(self) -> History {
        let Self { mut history, head, whole } = self;
        let as_recorded =
            head == history.record.chain && history.number() == history.record.history_len;
        history.intact = whole && as_recorded && history.unreadable == 0;
        history
    }
}

/// How far the chains had come that a reading by revision has met: by the revision that wrote a
/// pair's last entry so far, how many there were and the head after them.
///
/// It is bounded: a chain that it has forgotten is walked again from its beginning.
#[derive(Clone, Debug, Default)]
pub(super) struct ChainCache {
    young: HashMap<Revision, (u64, ChainHead)>,
    old: HashMap<Revision, (u64, ChainHead)>,
}

impl ChainCache {
    /// Where the chain stands behind a revision. Nothing goes on from there twice.
    pub(super) fn take(&mut self, revision: Revision) -> Option<(u64, ChainHead)> {
        self.young.remove(&revision).or_else(|| self.old.remove(&revision))
    }

    /// Where the chain stands behind a revision now.
    pub(super) fn put(&mut self, revision: Revision, stands: (u64, ChainHead)) {
        if self.young.len() >= MAX_CHAINS {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(revision, stands);
    }
}
