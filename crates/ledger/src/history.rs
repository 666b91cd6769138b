//! Histories: how an entry is stored, how a pair's history is read and verified against its chain,
//! and how the histories of all pairs are read page by page.

use std::borrow::Cow;
use std::collections::HashMap;

use super::codec;
use consentd_core::event::{Evidence, What};
use consentd_core::id::Key;
use consentd_core::record::{ChainHead, HistoryEntry, Record, Revision, extend_chain, sha256};

/// How many reads of histories run at once. Each may take long; the follower's polls and the reads of
/// recordings go on beside them.
pub(super) const MAX_READS: usize = 4;

/// The bytes of entries at which a page of [`events_after`](super::Ledger::events_after) is complete.
/// The last pair's entries may exceed it.
pub(super) const MAX_PAGE_BYTES: usize = 256 * 1024;

/// About the memory that a history's entry takes.
pub(super) fn bytes_of(entry: &HistoryEntry) -> usize {
    let HistoryEntry { user_id, business_id, time: _, record_time: _, what } = entry;
    let texts = match what {
        What::OptIn { evidence, .. } => {
            let Evidence { statement, business_name, locale, reference, confirmation, .. } =
                evidence;
            [statement, business_name, locale, reference, confirmation]
                .iter()
                .map(|text| text.len())
                .sum()
        }
        What::OptOut { reference, .. }
        | What::Suppression { reference, .. }
        | What::TemplateCategory { reference, .. }
        | What::TemplateRestriction { reference, .. } => reference.len(),
        What::Inbound { message_id, text } => message_id.len() + text.len(),
        What::Link { other_user_id, .. } => other_user_id.len(),
        What::Platform { phone_number_id, .. } | What::Failure { phone_number_id, .. } => {
            phone_number_id.as_ref().map_or(0, |id| id.as_str().len())
        }
    };
    let places = size_of::<(EntryPosition, HistoryEntry)>();
    places + user_id.len() + business_id.len() + texts
}

/// The capacity of each of the two generations of a [`ChainCache`]; together about 8 MB.
const MAX_CHAINS_PER_GENERATION: usize = 65_536;

/// One entry of a history as it is stored: encoded, or reduced to its digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum HistoryItem<'a> {
    /// An encoded entry that is kept forever.
    Permanent(Cow<'a, [u8]>),
    /// An encoded entry that is kept for [`Retention::history`](super::Retention::history).
    Perishable(Cow<'a, [u8]>),
    /// The digest of a perishable entry that has expired. It keeps the chain verifiable.
    Expired([u8; 32]),
}

impl<'a> HistoryItem<'a> {
    const PERMANENT: u8 = 0;
    const PERISHABLE: u8 = 1;
    const EXPIRED: u8 = 2;

    /// The stored form: a tag and its payload.
    pub(super) fn parts(&self) -> (u8, &[u8]) {
        match self {
            Self::Permanent(entry) => (Self::PERMANENT, entry),
            Self::Perishable(entry) => (Self::PERISHABLE, entry),
            Self::Expired(digest) => (Self::EXPIRED, digest),
        }
    }

    /// The item with this stored form, or `None` if it is invalid.
    pub(super) fn from_parts(tag: u8, payload: &'a [u8]) -> Option<Self> {
        Some(match tag {
            Self::PERMANENT => Self::Permanent(payload.into()),
            Self::PERISHABLE => Self::Perishable(payload.into()),
            Self::EXPIRED => Self::Expired(payload.try_into().ok()?),
            _ => return None,
        })
    }

    pub(super) fn into_owned(self) -> HistoryItem<'static> {
        match self {
            Self::Permanent(entry) => HistoryItem::Permanent(entry.into_owned().into()),
            Self::Perishable(entry) => HistoryItem::Perishable(entry.into_owned().into()),
            Self::Expired(digest) => HistoryItem::Expired(digest),
        }
    }

    /// The digest that the pair's chain is extended with.
    pub(super) fn digest(&self) -> [u8; 32] {
        match self {
            Self::Permanent(entry) | Self::Perishable(entry) => sha256(entry),
            Self::Expired(digest) => *digest,
        }
    }

    /// The encoded entry, unless it has expired.
    pub(super) fn encoded_entry(&self) -> Option<&[u8]> {
        match self {
            Self::Permanent(entry) | Self::Perishable(entry) => Some(entry),
            Self::Expired(_) => None,
        }
    }

    /// The decoded entry without its statement, or `None` if it has expired or is damaged.
    pub(super) fn decode_without_statement(&self) -> Option<HistoryEntry> {
        codec::decode_history(self.encoded_entry()?, |_| Some(String::new()))
    }

    /// The digest of the statement that the entry refers to, if it has one.
    pub(super) fn statement_digest(&self) -> Option<[u8; 32]> {
        match self {
            Self::Permanent(entry) => codec::statement_digest_of(entry),
            Self::Perishable(_) | Self::Expired(_) => None,
        }
    }
}

/// The position of an entry in its pair's history.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EntryPosition {
    /// The revision that wrote it.
    pub revision: Revision,
    /// Its number among all entries that the history has ever had, from 1.
    pub number: u64,
    /// The chain's head after it.
    pub head: ChainHead,
}

/// A pair's history.
#[derive(Debug, Default)]
pub struct History {
    /// The entries that are kept, oldest first.
    pub entries: Vec<(EntryPosition, HistoryEntry)>,
    /// The pair's record; an empty one for a pair that has none.
    pub record: Record,
    /// The chain's head after each entry since the last erasure, including expired entries.
    /// [`Record::history_start`] has the number of entries before.
    pub heads: Vec<ChainHead>,
    /// The number of expired entries. Their digests are in the chain.
    pub expired: u64,
    /// The number of entries that exist but cannot be decoded, or whose statement is missing or
    /// modified.
    pub unreadable: u64,
    /// Whether the chain of the complete history equals the one in the pair's record, and every
    /// entry that should be readable is.
    pub intact: bool,
}

impl History {
    /// The number of the last entry.
    fn number(&self) -> u64 {
        let (start, _) = self.record.history_start();
        start.saturating_add(u64::try_from(self.heads.len()).unwrap_or(u64::MAX))
    }

    /// The chain's head after the entry with this number, or `None` if there is no such entry or it
    /// was erased.
    #[must_use]
    pub fn head_after(&self, number: u64) -> Option<ChainHead> {
        let (start, _) = self.record.history_start();
        let index = number.checked_sub(start)?.checked_sub(1)?;
        self.heads.get(usize::try_from(index).ok()?).copied()
    }
}

/// Builds a [`History`] from its items, oldest first, and verifies its chain.
#[derive(Debug)]
pub(super) struct HistoryBuilder {
    history: History,
    head: ChainHead,
    is_complete: bool,
}

impl HistoryBuilder {
    /// An empty history of a pair with this record.
    pub(super) fn new(record: Record) -> Self {
        let (_, head) = record.history_start();
        let history = History { record, ..History::default() };
        Self { history, head, is_complete: true }
    }

    /// Skips the oldest entries because they cannot be found. The `left` remaining entries get the
    /// last numbers.
    pub(super) fn skip_missing(&mut self, left: u64) {
        let (start, _) = self.history.record.history_start();
        for _ in start..self.history.record.history_len.saturating_sub(left) {
            self.push_missing();
        }
        self.is_complete = false;
    }

    /// Adds an entry that is missing.
    pub(super) fn push_missing(&mut self) {
        self.history.heads.push(self.head);
        self.is_complete = false;
    }

    /// Adds an entry whose item cannot be decoded.
    pub(super) fn push_garbled(&mut self) {
        self.history.unreadable += 1;
        self.push_missing();
    }

    /// Adds a stored item; `statement` looks up a statement by its digest.
    pub(super) fn push(
        &mut self,
        revision: Revision,
        item: &HistoryItem<'_>,
        statement: impl FnOnce(&[u8]) -> Option<String>,
    ) {
        self.head = extend_chain(&self.head, &item.digest());
        self.history.heads.push(self.head);
        let Some(entry) = item.encoded_entry() else {
            self.history.expired += 1;
            return;
        };
        let number = self.history.number();
        match codec::decode_history(entry, statement) {
            Some(entry) => {
                let position = EntryPosition { revision, number, head: self.head };
                self.history.entries.push((position, entry));
            }
            None => self.history.unreadable += 1,
        }
    }

    /// The history, with its chain verified.
    pub(super) fn finish(self) -> History {
        let Self { mut history, head, is_complete } = self;
        let as_recorded =
            head == history.record.chain && history.number() == history.record.history_len;
        history.intact = is_complete && as_recorded && history.unreadable == 0;
        history
    }
}

/// A page of the histories of all pairs.
#[derive(Debug)]
pub struct Events {
    /// The entries that are kept, with their positions.
    pub entries: Vec<(EntryPosition, HistoryEntry)>,
    /// The cursor of the next page; `None` after the last page.
    pub next: Option<Cursor>,
    /// Whether the pages are ordered by revision and the cursor's `after` is a revision. Then the
    /// entries of all earlier revisions are on earlier pages. A ledger that stores histories by
    /// pair has no such order.
    pub by_revision: bool,
}

/// How far the histories of all pairs have been read.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    /// The last revision that was read, or the bucket that is read next; which of them depends on the
    /// ledger.
    pub after: u64,
    /// The number of the partition that is read.
    pub(super) partition: u32,
    /// The last pair of that bucket that was read.
    pub(super) pair: Option<Key>,
    /// The chains up to there, for a ledger that does not store histories by pair.
    pub(super) chains: ChainCache,
}

impl Cursor {
    /// About the memory that it takes: some 8 MB at the most, for a ledger that does not store histories
    /// by pair.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let slot = size_of::<(Revision, (u64, ChainHead))>() + 1;
        (self.chains.young.capacity() + self.chains.old.capacity()) * slot
    }

    /// The same place without what makes reading on from it quick.
    #[must_use]
    pub fn without_cache(self) -> Self {
        Self { chains: ChainCache::default(), ..self }
    }
}

/// Caches the chain state of pairs while their histories are read by revision, keyed by the
/// revision of the pair's last entry so far. The value is the number of entries and the head.
///
/// It is bounded by two generations: the older one is dropped when the younger one is full. A chain
/// that was dropped is recomputed from its beginning.
#[derive(Clone, Debug, Default)]
pub(super) struct ChainCache {
    young: HashMap<Revision, (u64, ChainHead)>,
    old: HashMap<Revision, (u64, ChainHead)>,
}

impl ChainCache {
    /// Removes and returns the chain state after a revision. It is used once, because only one
    /// revision continues it.
    pub(super) fn take(&mut self, revision: Revision) -> Option<(u64, ChainHead)> {
        self.young.remove(&revision).or_else(|| self.old.remove(&revision))
    }

    /// Stores the chain state after a revision.
    pub(super) fn put(&mut self, revision: Revision, state: (u64, ChainHead)) {
        if self.young.len() >= MAX_CHAINS_PER_GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(revision, state);
    }
}
