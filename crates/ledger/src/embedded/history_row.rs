//! Rows of the history table. What one revision added to a pair's history is one row, which names
//! the row before it of the same pair. The pair's own row names the last one (a linked list).

use redb::ReadableTable;

use super::tables::{Tables, storage_error};
use crate::LedgerError;
use crate::encoded_update::EncodedUpdate;
use crate::history::HistoryItem;
use consentd_core::record::{ChainHead, Revision, sha256};

/// The tag of the pseudo-item that restarts an erased history.
const RESTART: u8 = 3;

/// What one revision added to its pair's history.
///
/// Encoded: the previous row's revision (8 bytes, big-endian, 0 for none), the time of recording
/// (8), and the items, each a tag (1), a length (4) and as many bytes.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct HistoryRow<'a> {
    pub(super) previous: Revision,
    /// Milliseconds since 1970.
    pub(super) time: i64,
    /// For the first row after an erasure: the number of erased entries, and the chain's head after
    /// them.
    pub(super) restart: Option<(u64, ChainHead)>,
    pub(super) items: Vec<HistoryItem<'a>>,
}

impl<'a> HistoryRow<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(256);
        value.extend_from_slice(&self.previous.to_be_bytes());
        value.extend_from_slice(&self.time.to_be_bytes());
        let restart =
            self.restart.map(|(number, head)| [&number.to_be_bytes()[..], &head].concat());
        let restart = restart.iter().map(|bytes| (RESTART, bytes.as_slice()));
        for (tag, bytes) in restart.chain(self.items.iter().map(HistoryItem::parts)) {
            value.push(tag);
            // The bounds of an entry's fields keep it far below this limit.
            value.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            value.extend_from_slice(bytes);
        }
        value
    }

    pub(super) fn decode(value: &'a [u8]) -> Option<Self> {
        let (previous, rest) = value.split_first_chunk()?;
        let (time, mut rest) = rest.split_first_chunk()?;
        let (mut restart, mut items) = (None, Vec::with_capacity(1));
        while let Some((tag, more)) = rest.split_first() {
            let (len, more) = more.split_first_chunk()?;
            let (bytes, more) = more.split_at_checked(u32::from_be_bytes(*len).try_into().ok()?)?;
            if *tag == RESTART {
                let (number, head) = bytes.split_first_chunk()?;
                restart = Some((u64::from_be_bytes(*number), head.try_into().ok()?));
            } else {
                items.push(HistoryItem::from_parts(*tag, bytes)?);
            }
            rest = more;
        }
        let (previous, time) = (u64::from_be_bytes(*previous), i64::from_be_bytes(*time));
        Some(Self { previous, time, restart, items })
    }
}

/// Writes the history items of an update and their statements. `previous` is the pair's last history
/// row so far.
pub(super) fn insert(
    tables: &mut Tables<'_>,
    revision: Revision,
    previous: Revision,
    update: &mut EncodedUpdate,
) -> Result<(), LedgerError> {
    let row = HistoryRow {
        previous,
        time: update.body.record_time.as_millis(),
        restart: update.restart,
        items: std::mem::take(&mut update.items),
    };
    tables.history.insert(revision, row.encode().as_slice()).map_err(storage_error)?;
    for (digest, text) in &update.statements {
        if tables.statements.get(digest).map_err(storage_error)?.is_none() {
            tables.statements.insert(digest, text.as_str()).map_err(storage_error)?;
        }
    }
    Ok(())
}

/// How reading the rows of a pair ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RowsEnd {
    /// At the first row since the pair's creation or erasure.
    Complete,
    /// At a row that does not exist, or that is not older than the row that names it.
    Missing,
    /// At a row that cannot be decoded.
    Damaged,
}

/// The encoded rows of one pair's history with their revisions, from the last to the first.
pub(super) struct RowsOfPair {
    pub(super) rows: Vec<(Revision, Vec<u8>)>,
    pub(super) end: RowsEnd,
}

/// Reads the rows of one pair's history.
///
/// A row must be older than the row that names it, so that damaged rows cannot form a cycle.
pub(super) fn rows_of_pair(
    table: &impl ReadableTable<u64, &'static [u8]>,
    last: Revision,
) -> Result<RowsOfPair, LedgerError> {
    let mut rows = Vec::new();
    let (mut next, mut newer) = (last, Revision::MAX);
    while next != 0 {
        let row = if next < newer { table.get(next).map_err(storage_error)? } else { None };
        let Some(row) = row else { return Ok(RowsOfPair { rows, end: RowsEnd::Missing }) };
        let row = row.value().to_vec();
        let Some(HistoryRow { previous, .. }) = HistoryRow::decode(&row) else {
            return Ok(RowsOfPair { rows, end: RowsEnd::Damaged });
        };
        rows.push((next, row));
        (newer, next) = (next, previous);
    }
    Ok(RowsOfPair { rows, end: RowsEnd::Complete })
}

/// Looks up a statement by its digest. A modified one does not have that digest any more and is not
/// returned, because it is not what the user agreed to.
pub(super) fn statement(
    statements: &impl ReadableTable<&'static [u8; 32], &'static str>,
    digest: &[u8],
) -> Option<String> {
    let digest: &[u8; 32] = digest.try_into().ok()?;
    let text = statements.get(digest).ok()??;
    (sha256(text.value().as_bytes()) == *digest).then(|| text.value().to_owned())
}
