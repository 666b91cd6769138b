//! Reading pairs and the log. A pair's current row is in the memtable, or else in the table of pairs.
//!
//! The memtable is always read *before* a read transaction begins: a pair that is flushed in between
//! is then found in the table. In the opposite order it could be missed.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use redb::{Database, ReadableDatabase as _, ReadableTable};

use super::memtable::{Memtable, MemtableRange};
use super::tables::{LOG, LogRow, META, PAIRS, PairRow, damaged, read_end, storage_error};
use crate::{
    Bucket, Identity, LedgerError, LogEntry, LogHead, MAX_PAGE, Page, Position, Read, Tail,
    bucket_of, codec,
};
use consentd_core::id::Key;
use consentd_core::record::Revision;
use consentd_os::clock;

/// Reads the records of pairs.
pub(super) fn read(
    database: &Database,
    memtable: &Memtable,
    keys: &[Key],
) -> Result<Read, LedgerError> {
    let keys: Vec<_> = keys.iter().map(|key| key.to_bytes()).collect();
    let rows = pair_rows(database, memtable, &keys)?;
    let pairs = rows.iter().map(|row| PairRow::stored_record(row.as_deref())).collect();
    Ok(Read { clock: clock::wall(), pairs })
}

/// Reads the row of one pair.
pub(super) fn pair_row(
    database: &Database,
    memtable: &Memtable,
    key: Key,
) -> Result<Option<Vec<u8>>, LedgerError> {
    Ok(pair_rows(database, memtable, &[key.to_bytes()])?.pop().flatten())
}

/// Reads the rows of pairs.
pub(super) fn pair_rows(
    database: &Database,
    memtable: &Memtable,
    keys: &[[u8; 16]],
) -> Result<Vec<Option<Vec<u8>>>, LedgerError> {
    let mut rows = memtable.rows(keys);
    let transaction = database.begin_read().map_err(storage_error)?;
    let table = transaction.open_table(PAIRS).map_err(storage_error)?;
    read_missing(&mut rows, &table, keys)?;
    Ok(rows)
}

/// Reads those rows from the table of pairs that the memtable does not have.
pub(super) fn read_missing(
    rows: &mut [Option<Vec<u8>>],
    table: &impl ReadableTable<&'static [u8; 16], &'static [u8]>,
    keys: &[[u8; 16]],
) -> Result<(), LedgerError> {
    let missing = keys.iter().zip(rows).filter(|(_, row)| row.is_none());
    let mut missing: Vec<_> = missing.collect();
    // In the order of keys, neighbours share a page.
    missing.sort_unstable_by_key(|(key, _)| **key);
    for (key, row) in missing {
        *row = table.get(key).map_err(storage_error)?.map(|row| row.value().to_vec());
    }
    Ok(())
}

/// The rows of one bucket's pairs by their keys, and the end of the log that they are read at.
pub(super) struct BucketRows {
    pub(super) end: (Revision, LogHead),
    pub(super) rows: BTreeMap<[u8; 16], Vec<u8>>,
}

/// Reads the rows of one bucket's pairs.
pub(super) fn bucket_rows(
    database: &Database,
    memtable: &Memtable,
    buckets: u32,
    number: u32,
) -> Result<BucketRows, LedgerError> {
    let from = first_key_of(number, buckets);
    let next = number.checked_add(1).filter(|next| *next < buckets);
    let end = next.map(|next| first_key_of(next, buckets));
    let range = (Bound::Included(&from), end.as_ref().map_or(Bound::Unbounded, Bound::Excluded));
    let MemtableRange { end, rows: unflushed } = memtable.range(range, usize::MAX);
    let mut rows: BTreeMap<[u8; 16], Vec<u8>> = unflushed.into_iter().collect();
    let transaction = database.begin_read().map_err(storage_error)?;
    let table = transaction.open_table(PAIRS).map_err(storage_error)?;
    for item in table.range::<&[u8; 16]>(range).map_err(storage_error)? {
        let (key, row) = item.map_err(storage_error)?;
        let is_newer = |known: &Vec<u8>| revision_of(known) >= revision_of(row.value());
        if !rows.get(key.value()).is_some_and(is_newer) {
            rows.insert(*key.value(), row.value().to_vec());
        }
    }
    Ok(BucketRows { end, rows })
}

/// The first key of a bucket.
fn first_key_of(number: u32, buckets: u32) -> [u8; 16] {
    let prefix = (u64::from(number) << 32).div_ceil(u64::from(buckets.max(1)));
    let mut key = [0; 16];
    key[..4].copy_from_slice(&u32::try_from(prefix).unwrap_or(u32::MAX).to_be_bytes());
    debug_assert_eq!(bucket_of(Key::from_bytes(key), buckets), number);
    key
}

fn revision_of(row: &[u8]) -> Option<Revision> {
    PairRow::decode(row).map(|row| row.revision)
}

/// Reads the pairs of one bucket.
pub(super) fn bucket(
    database: &Database,
    memtable: &Memtable,
    identity: &Identity,
    number: u32,
) -> Result<Bucket, LedgerError> {
    let BucketRows { end, rows } = bucket_rows(database, memtable, identity.buckets, number)?;
    let (revision, head) = end;
    let pair = |(key, row): (_, Vec<u8>)| {
        let record = PairRow::stored_record(Some(&row)).map(|stored| stored.record);
        (Key::from_bytes(key), record)
    };
    let pairs = rows.into_iter().map(pair).collect();
    Ok(Bucket { number, label: Position { epoch: identity.epoch, revision, head }, pairs })
}

/// Reads a page of the log after a revision.
pub(super) fn read_after(
    database: &Database,
    identity: Arc<Identity>,
    after: Revision,
) -> Result<Page, LedgerError> {
    let transaction = database.begin_read().map_err(storage_error)?;
    let (revision, head) = read_end(&transaction.open_table(META).map_err(storage_error)?)?;
    let table = transaction.open_table(LOG).map_err(storage_error)?;
    let mut entries = Vec::new();
    for item in table.range(after.saturating_add(1)..).map_err(storage_error)?.take(MAX_PAGE) {
        let (revision, row) = item.map_err(storage_error)?;
        let row = LogRow::decode(row.value()).ok_or(damaged("a log entry"))?;
        let body = codec::decode_log(row.body);
        let (revision, previous, head) = (revision.value(), row.previous, row.head);
        entries.push(LogEntry { revision, previous, head, body });
    }
    let continues = entries.first().map_or(after >= revision, |first| first.revision == after + 1);
    let tail = if continues { Tail::Entries(entries) } else { Tail::Trimmed };
    let end = Position { epoch: identity.epoch, revision, head };
    Ok(Page { identity, end, accepted: 0, clock: clock::wall(), tail })
}
