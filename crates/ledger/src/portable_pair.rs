//! A pair with all that a ledger holds of it, as bytes: what is copied, and what is verified.

use std::collections::BTreeSet;

use super::codec;
use super::{Position, UnreadableRecord};
use consentd_core::id::Key;
use consentd_core::record::{ChainHead, HistoryEntry, Record, Revision, extend_chain, sha256};

/// A pair: its record, and its history item by item. The bytes are the same in every ledger, so
/// that chains stay whole whichever ledger they came through.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct PortablePair {
    pub(super) key: [u8; 16],
    /// The revision that wrote the record.
    pub(super) revision: Revision,
    /// The log's hash after it, in part, where the ledger has one: see [`super::Version`].
    pub(super) head_prefix: u64,
    /// The record, encoded.
    pub(super) record: Vec<u8>,
    /// What is left of its history, oldest first; nothing where an item is not there. What was
    /// erased came before.
    pub(super) history: Vec<Option<Entry>>,
}

/// All pairs of one bucket.
#[derive(Debug)]
pub(super) struct PortableBucket {
    pub(super) label: Position,
    pub(super) pairs: Vec<PortablePair>,
}

/// What stands of one history entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// The entry, kept for good.
    Kept,
    /// The entry, kept for a time.
    Perishable,
    /// The digest of one that was kept for a time.
    Gone,
}

/// One item of a history.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    /// The revision that wrote it.
    pub(super) revision: Revision,
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
}

impl Entry {
    /// By what it stands in the chain; none where it is damaged.
    fn digest(&self) -> Option<[u8; 32]> {
        match self.kind {
            Kind::Kept | Kind::Perishable => Some(sha256(&self.bytes)),
            Kind::Gone => self.bytes.as_slice().try_into().ok(),
        }
    }

    /// The entry, its statement left out; none where it is damaged, or gone.
    pub(super) fn decode(&self) -> Option<HistoryEntry> {
        match self.kind {
            Kind::Gone => None,
            Kind::Kept | Kind::Perishable => {
                codec::decode_history(&self.bytes, |_| Some(String::new()))
            }
        }
    }

    /// The digest of its statement, where it has one.
    pub(super) fn statement(&self) -> Option<[u8; 32]> {
        (self.kind == Kind::Kept).then(|| codec::statement_digest_of(&self.bytes)).flatten()
    }
}

/// The chain's head after these items, which come after one; none where one is missing or damaged.
pub(super) fn chain_of(start: ChainHead, history: &[Option<Entry>]) -> Option<ChainHead> {
    history
        .iter()
        .try_fold(start, |head, entry| Some(extend_chain(&head, &entry.as_ref()?.digest()?)))
}

impl PortablePair {
    pub(super) fn key(&self) -> Key {
        Key::from_bytes(self.key)
    }

    pub(super) fn decode(&self) -> Result<Record, UnreadableRecord> {
        codec::decode_record(&self.record)
    }

    /// Whether the history is all there, readable, and what the record says it is.
    pub(super) fn is_intact(&self, record: &Record) -> bool {
        let readable = |entry: &Entry| entry.kind == Kind::Gone || entry.decode().is_some();
        let (erased, start) = record.history_start();
        let len = u64::try_from(self.history.len()).unwrap_or(u64::MAX);
        erased.checked_add(len) == Some(record.history_len)
            && self.history.iter().flatten().all(readable)
            && chain_of(start, &self.history) == Some(record.chain)
    }
}

/// The digests of the statements that these pairs' histories name.
pub(super) fn statements<'a>(
    pairs: impl IntoIterator<Item = &'a PortablePair>,
) -> BTreeSet<[u8; 32]> {
    let entries = pairs.into_iter().flat_map(|pair| pair.history.iter().flatten());
    entries.filter_map(Entry::statement).collect()
}
