//! A pair with everything that a ledger stores of it, in the encoding that all kinds of ledgers
//! share. Copying and verification work on these.

use std::collections::BTreeSet;

use super::codec;
use super::history::HistoryItem;
use super::{Position, UnreadableRecord};
use consentd_core::id::Key;
use consentd_core::record::{ChainHead, Record, Revision, extend_chain};

/// A pair's record and history. The encoding is the same in every ledger, so that copying keeps
/// digests and chains valid.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct PortablePair {
    pub(super) key: [u8; 16],
    /// The revision that wrote the record.
    pub(super) revision: Revision,
    /// See [`Version::head_prefix`](super::Version::head_prefix).
    pub(super) head_prefix: u64,
    /// The encoded record.
    pub(super) record: Vec<u8>,
    /// The history since the last erasure, oldest first; `None` for an item that is missing.
    pub(super) history: Vec<Option<PortableEntry>>,
}

/// The pairs of one bucket.
#[derive(Debug)]
pub(super) struct PortableBucket {
    pub(super) label: Position,
    pub(super) pairs: Vec<PortablePair>,
}

/// One item of a history, and the revision that wrote it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct PortableEntry {
    pub(super) revision: Revision,
    pub(super) item: HistoryItem<'static>,
}

/// The chain's head after these items, starting from `start`; `None` if an item is missing.
pub(super) fn chain_of(start: ChainHead, history: &[Option<PortableEntry>]) -> Option<ChainHead> {
    history
        .iter()
        .try_fold(start, |head, entry| Some(extend_chain(&head, &entry.as_ref()?.item.digest())))
}

impl PortablePair {
    pub(super) fn key(&self) -> Key {
        Key::from_bytes(self.key)
    }

    pub(super) fn decode(&self) -> Result<Record, UnreadableRecord> {
        codec::decode_record(&self.record)
    }

    /// Whether the history is complete, readable, and has the length and chain that `record` states.
    pub(super) fn is_intact(&self, record: &Record) -> bool {
        let is_readable = |entry: &PortableEntry| {
            matches!(entry.item, HistoryItem::Expired(_))
                || entry.item.decode_without_statement().is_some()
        };
        let (erased, start) = record.history_start();
        let len = u64::try_from(self.history.len()).unwrap_or(u64::MAX);
        erased.checked_add(len) == Some(record.history_len)
            && self.history.iter().flatten().all(is_readable)
            && chain_of(start, &self.history) == Some(record.chain)
    }
}

/// The digests of the statements that these pairs' histories refer to.
pub(super) fn statement_digests<'a>(
    pairs: impl IntoIterator<Item = &'a PortablePair>,
) -> BTreeSet<[u8; 32]> {
    let entries = pairs.into_iter().flat_map(|pair| pair.history.iter().flatten());
    entries.filter_map(|entry| entry.item.statement_digest()).collect()
}
