//! What is in the file: the tables, and the transactions on them.

use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase as _, ReadableTable, Table, TableDefinition};

use super::super::{
    Appended, Bucket, Change, Epoch, History, LedgerError, LogBody, LogEntry, LogHead, MAX_PAGE,
    Page, Position, Read, Retention, Stored, Tail, UnreadableRecord, codec,
};
use super::{OpenError, retention};
use crate::clock;
use crate::consent::id::Key;
use crate::consent::record::{ChainHead, FORMAT, Record, Revision, extend_chain, sha256};
use crate::consent::time::Timestamp;

/// Names to values: `epoch`, `secret`, `format`, `revision`, `head`.
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// A pair's key to the revision that wrote its record (8 bytes, big-endian) and the record.
const PAIRS: TableDefinition<&[u8; 16], &[u8]> = TableDefinition::new("pairs");
/// A revision to the log's head before it (20 bytes), after it (20), the time (8), and the body.
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// A pair's key and an entry's number (8 bytes, big-endian) to the revision that wrote it (8) and
/// either [`ENTRY`] and the entry or [`GONE`] and its digest.
const HISTORY: TableDefinition<&[u8; 24], &[u8]> = TableDefinition::new("history");
/// A statement's SHA-256 to the statement.
const TEXTS: TableDefinition<&[u8; 32], &str> = TableDefinition::new("texts");
/// What goes one day: a time (8 bytes, big-endian) and a key of [`HISTORY`].
const PERISHABLE: TableDefinition<&[u8; 32], ()> = TableDefinition::new("perishable");

pub(super) const ENTRY: u8 = 0;
pub(super) const GONE: u8 = 1;

pub(super) struct Meta {
    pub(super) epoch: Epoch,
    pub(super) secret: [u8; 16],
}

pub(super) fn failed(error: impl std::error::Error + Send + Sync + 'static) -> LedgerError {
    LedgerError::Storage(Arc::new(error))
}

pub(super) fn damaged(what: &'static str) -> LedgerError {
    LedgerError::Damaged(what)
}

/// Reads the meta table, or makes the tables where there are none.
pub(super) fn prepare(database: &Database, path: &Path) -> Result<Meta, OpenError> {
    let not_a_ledger = |source| OpenError::NotALedger { path: path.to_owned(), source };
    let boxed = |error: LedgerError| not_a_ledger(error.into());
    let transaction = database.begin_write().map_err(|e| boxed(failed(e)))?;
    let empty = transaction.list_tables().map_err(|e| boxed(failed(e)))?.next().is_none();
    let existing = {
        let meta = transaction.open_table(META).map_err(|e| boxed(failed(e)))?;
        read_meta(&meta).map_err(boxed)?
    };
    let (format, meta) = match existing {
        Some(found) => found,
        // It is another program's, and stays as it is.
        None if !empty => return Err(boxed(damaged("it has tables, but none of a ledger"))),
        None => (FORMAT, create(&transaction).map_err(boxed)?),
    };
    if format > FORMAT {
        return Err(OpenError::Newer { path: path.to_owned(), format, known: FORMAT });
    }
    transaction.commit().map_err(|e| boxed(failed(e)))?;
    Ok(meta)
}

fn read_meta(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<(u32, Meta)>, LedgerError> {
    let Some(format) = meta.get("format").map_err(failed)? else { return Ok(None) };
    let format = format.value().try_into().map_err(|_| damaged("its format"))?;
    let sixteen = |name: &'static str| {
        let value = meta.get(name).map_err(failed)?.ok_or(damaged(name))?;
        value.value().try_into().map_err(|_| damaged(name))
    };
    let meta = Meta { epoch: sixteen("epoch")?, secret: sixteen("secret")? };
    Ok(Some((u32::from_be_bytes(format), meta)))
}

fn create(transaction: &redb::WriteTransaction) -> Result<Meta, LedgerError> {
    let mut meta = Meta { epoch: [0; 16], secret: [0; 16] };
    for random in [&mut meta.epoch, &mut meta.secret] {
        getrandom::fill(random).map_err(failed)?;
    }
    let mut table = transaction.open_table(META).map_err(failed)?;
    let format = FORMAT.to_be_bytes();
    let values: [(&str, &[u8]); 5] = [
        ("epoch", &meta.epoch),
        ("secret", &meta.secret),
        ("revision", &[0; 8]),
        ("head", &[0; 20]),
        ("format", &format),
    ];
    for (name, value) in values {
        table.insert(name, value).map_err(failed)?;
    }
    transaction.open_table(PAIRS).map_err(failed)?;
    transaction.open_table(LOG).map_err(failed)?;
    transaction.open_table(HISTORY).map_err(failed)?;
    transaction.open_table(TEXTS).map_err(failed)?;
    transaction.open_table(PERISHABLE).map_err(failed)?;
    Ok(meta)
}

pub(super) fn read_end(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<(Revision, LogHead), LedgerError> {
    let get = |name| meta.get(name).map_err(failed)?.ok_or(damaged(name));
    let (revision, head) = (get("revision")?, get("head")?);
    let revision = revision.value().try_into().map_err(|_| damaged("revision"))?;
    let head = head.value().try_into().map_err(|_| damaged("head"))?;
    Ok((u64::from_be_bytes(revision), head))
}

/// A change, encoded before it waits for its turn.
pub(super) struct Prepared {
    key: Key,
    base: Revision,
    record: Vec<u8>,
    log: Vec<u8>,
    body: LogBody,
    history: Vec<PreparedEntry>,
    first_entry: u64,
}

struct PreparedEntry {
    /// [`ENTRY`] and the entry.
    bytes: Vec<u8>,
    statement: Option<([u8; 32], String)>,
    /// When it was recorded, where it is kept for a time alone.
    perishes_from: Option<Timestamp>,
}

impl Prepared {
    pub(super) fn of(change: Change) -> Self {
        let mut record = change.record;
        let first_entry = record.history_len;
        let mut history = Vec::with_capacity(change.history.len());
        for entry in &change.history {
            let encoded = codec::encode_history(entry);
            record.chain = extend_chain(&record.chain, &sha256(&encoded));
            record.history_len += 1;
            let mut bytes = vec![ENTRY];
            bytes.extend_from_slice(&encoded);
            history.push(PreparedEntry {
                bytes,
                statement: codec::statement_of(entry)
                    .map(|(digest, text)| (digest, text.to_owned())),
                perishes_from: (!entry.is_kept_for_good()).then_some(entry.record_time),
            });
        }
        let encoded = codec::encode_record(&record);
        let (user_id, business_id) = (change.user_id, change.business_id);
        let log = codec::encode_log(
            change.key,
            user_id.clone(),
            business_id.clone(),
            encoded.clone(),
            change.record_time,
        );
        let body = LogBody {
            key: change.key,
            user_id,
            business_id,
            record: Ok(record),
            record_time: change.record_time,
        };
        Self {
            key: change.key,
            base: change.base,
            record: encoded,
            log,
            body,
            history,
            first_entry,
        }
    }
}

/// What one transaction wrote.
pub(super) struct Committed {
    pub(super) entries: Vec<LogEntry>,
    /// For each group of changes, in order.
    pub(super) outcomes: Vec<Vec<Appended>>,
}

pub(super) struct Tables<'t> {
    pub(super) pairs: Table<'t, &'static [u8; 16], &'static [u8]>,
    pub(super) log: Table<'t, u64, &'static [u8]>,
    pub(super) history: Table<'t, &'static [u8; 24], &'static [u8]>,
    pub(super) texts: Table<'t, &'static [u8; 32], &'static str>,
    pub(super) perishable: Table<'t, &'static [u8; 32], ()>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t redb::WriteTransaction) -> Result<Self, LedgerError> {
        Ok(Self {
            pairs: transaction.open_table(PAIRS).map_err(failed)?,
            log: transaction.open_table(LOG).map_err(failed)?,
            history: transaction.open_table(HISTORY).map_err(failed)?,
            texts: transaction.open_table(TEXTS).map_err(failed)?,
            perishable: transaction.open_table(PERISHABLE).map_err(failed)?,
        })
    }
}

/// Writes all groups of changes in one transaction; returns once it is synced.
pub(super) fn append(
    database: &Database,
    groups: Vec<Vec<Prepared>>,
    keep: Retention,
) -> Result<Committed, LedgerError> {
    let transaction = database.begin_write().map_err(failed)?;
    let mut committed = Committed { entries: Vec::new(), outcomes: Vec::new() };
    {
        let mut meta = transaction.open_table(META).map_err(failed)?;
        let mut tables = Tables::open(&transaction)?;
        let (mut revision, mut head) = read_end(&meta)?;
        for changes in groups {
            let mut outcomes = Vec::with_capacity(changes.len());
            for change in changes {
                if let Some(other) = conflict(&tables, &change)? {
                    outcomes.push(Appended::Conflict(other));
                    continue;
                }
                let entry = write(&mut tables, change, revision, head)?;
                (revision, head) = (entry.revision, entry.head);
                outcomes.push(Appended::At(revision));
                committed.entries.push(entry);
            }
            committed.outcomes.push(outcomes);
        }
        if committed.entries.is_empty() {
            return Ok(committed); // Dropping the transaction aborts it: nothing was written.
        }
        meta.insert("revision", &revision.to_be_bytes()[..]).map_err(failed)?;
        meta.insert("head", &head[..]).map_err(failed)?;
        let spare = committed.entries.len() * 2;
        retention::trim_log(&mut tables, keep, revision, clock::wall(), spare)?;
    }
    transaction.commit().map_err(failed)?;
    Ok(committed)
}

/// The pair as it is, where it is not what the change started from.
fn conflict(
    tables: &Tables<'_>,
    change: &Prepared,
) -> Result<Option<Result<Stored, UnreadableRecord>>, LedgerError> {
    let value = tables.pairs.get(&change.key.to_bytes()).map_err(failed)?;
    let (revision, bytes) = match &value {
        None => (0, None),
        Some(value) => {
            let (revision, record) = split_revision(value.value())?;
            (revision, Some(record))
        }
    };
    Ok((revision != change.base).then(|| stored(revision, bytes)))
}

fn split_revision(value: &[u8]) -> Result<(Revision, &[u8]), LedgerError> {
    let (revision, rest) = value.split_first_chunk().ok_or(damaged("a pair's revision"))?;
    Ok((u64::from_be_bytes(*revision), rest))
}

fn stored(revision: Revision, bytes: Option<&[u8]>) -> Result<Stored, UnreadableRecord> {
    let record = bytes.map(codec::decode_record).transpose()?.unwrap_or_default();
    Ok(Stored { revision, record })
}

fn write(
    tables: &mut Tables<'_>,
    change: Prepared,
    last: Revision,
    previous: LogHead,
) -> Result<LogEntry, LedgerError> {
    let revision = last + 1;
    let head = next_head(&previous, revision, &change.log);
    let key = change.key.to_bytes();

    let mut value = Vec::with_capacity(8 + change.record.len());
    value.extend_from_slice(&revision.to_be_bytes());
    value.extend_from_slice(&change.record);
    tables.pairs.insert(&key, value.as_slice()).map_err(failed)?;

    let mut value = Vec::with_capacity(48 + change.log.len());
    value.extend_from_slice(&previous);
    value.extend_from_slice(&head);
    value.extend_from_slice(&change.body.record_time.as_millis().to_be_bytes());
    value.extend_from_slice(&change.log);
    tables.log.insert(revision, value.as_slice()).map_err(failed)?;

    for (number, entry) in (change.first_entry..).zip(&change.history) {
        let place = history_key(&key, number);
        let mut value = Vec::with_capacity(8 + entry.bytes.len());
        value.extend_from_slice(&revision.to_be_bytes());
        value.extend_from_slice(&entry.bytes);
        tables.history.insert(&place, value.as_slice()).map_err(failed)?;
        if let Some((digest, text)) = &entry.statement
            && tables.texts.get(digest).map_err(failed)?.is_none()
        {
            tables.texts.insert(digest, text.as_str()).map_err(failed)?;
        }
        if let Some(time) = entry.perishes_from {
            tables.perishable.insert(&perishable_key(time, &place), ()).map_err(failed)?;
        }
    }
    Ok(LogEntry { revision, previous, head, body: Ok(change.body) })
}

/// The log's hash after a change: the first 20 bytes of SHA-256 over the hash before it, its
/// revision, and its body.
fn next_head(previous: &LogHead, revision: Revision, body: &[u8]) -> LogHead {
    let mut bytes = Vec::with_capacity(28 + body.len());
    bytes.extend_from_slice(previous);
    bytes.extend_from_slice(&revision.to_be_bytes());
    bytes.extend_from_slice(body);
    let mut head = LogHead::default();
    head.copy_from_slice(&sha256(&bytes)[..20]);
    head
}

fn history_key(key: &[u8; 16], number: u64) -> [u8; 24] {
    let mut place = [0; 24];
    place[..16].copy_from_slice(key);
    place[16..].copy_from_slice(&number.to_be_bytes());
    place
}

fn perishable_key(time: Timestamp, place: &[u8; 24]) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&time.as_millis().to_be_bytes());
    key[8..].copy_from_slice(place);
    key
}

pub(super) fn read(database: &Database, keys: &[Key]) -> Result<Read, LedgerError> {
    let transaction = database.begin_read().map_err(failed)?;
    let table = transaction.open_table(PAIRS).map_err(failed)?;
    let mut pairs = Vec::with_capacity(keys.len());
    for key in keys {
        let value = table.get(&key.to_bytes()).map_err(failed)?;
        pairs.push(match &value {
            None => stored(0, None),
            Some(value) => {
                let (revision, record) = split_revision(value.value())?;
                stored(revision, Some(record))
            }
        });
    }
    Ok(Read { clock: clock::wall(), pairs })
}

pub(super) fn bucket(
    database: &Database,
    epoch: Epoch,
    after: Option<Key>,
) -> Result<Bucket, LedgerError> {
    let transaction = database.begin_read().map_err(failed)?;
    let (revision, head) = read_end(&transaction.open_table(META).map_err(failed)?)?;
    let table = transaction.open_table(PAIRS).map_err(failed)?;
    let after = after.map(Key::to_bytes);
    let from = after.as_ref().map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
    let range = table.range::<&[u8; 16]>((from, std::ops::Bound::Unbounded)).map_err(failed)?;
    let mut pairs = Vec::new();
    for item in range.take(MAX_PAGE) {
        let (key, value) = item.map_err(failed)?;
        let (_, record) = split_revision(value.value())?;
        pairs.push((Key::from_bytes(*key.value()), codec::decode_record(record)));
    }
    Ok(Bucket { label: Position { epoch, revision, head }, pairs })
}

pub(super) fn read_after(
    database: &Database,
    epoch: Epoch,
    after: Revision,
) -> Result<Page, LedgerError> {
    let transaction = database.begin_read().map_err(failed)?;
    let (revision, head) = read_end(&transaction.open_table(META).map_err(failed)?)?;
    let table = transaction.open_table(LOG).map_err(failed)?;
    let mut entries = Vec::new();
    for item in table.range(after.saturating_add(1)..).map_err(failed)?.take(MAX_PAGE) {
        let (revision, value) = item.map_err(failed)?;
        entries.push(log_entry(revision.value(), value.value())?);
    }
    let continues = entries.first().map_or(after >= revision, |first| first.revision == after + 1);
    let tail = if continues { Tail::Entries(entries) } else { Tail::Trimmed };
    Ok(Page { end: Position { epoch, revision, head }, clock: clock::wall(), tail })
}

fn log_entry(revision: Revision, value: &[u8]) -> Result<LogEntry, LedgerError> {
    let short = || damaged("a log entry");
    let (previous, rest) = value.split_first_chunk().ok_or_else(short)?;
    let (head, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let (_time, body) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let body = codec::decode_log(body);
    Ok(LogEntry { revision, previous: *previous, head: *head, body })
}

pub(super) fn history(database: &Database, key: Key) -> Result<History, LedgerError> {
    let transaction = database.begin_read().map_err(failed)?;
    let pairs = transaction.open_table(PAIRS).map_err(failed)?;
    let history = transaction.open_table(HISTORY).map_err(failed)?;
    let texts = transaction.open_table(TEXTS).map_err(failed)?;
    let key = key.to_bytes();
    let record = match pairs.get(&key).map_err(failed)? {
        None => Record::default(),
        Some(value) => codec::decode_record(split_revision(value.value())?.1)
            .map_err(|_| damaged("the pair's record, or this version cannot read it"))?,
    };
    let text = |digest: &[u8]| {
        let digest: &[u8; 32] = digest.try_into().ok()?;
        let text = texts.get(digest).ok()??;
        // An edited statement no longer has its digest, and is not shown as the words agreed to.
        (sha256(text.value().as_bytes()) == *digest).then(|| text.value().to_owned())
    };
    let mut entries = Vec::new();
    let mut chain = ChainHead::default();
    let mut number = 0_u64;
    let (first, last) = (history_key(&key, 0), history_key(&key, u64::MAX));
    for item in history.range::<&[u8; 24]>(&first..=&last).map_err(failed)? {
        let (_, value) = item.map_err(failed)?;
        let (revision, rest) = split_revision(value.value())?;
        number += 1;
        match rest.split_first() {
            Some((&ENTRY, entry)) => {
                chain = extend_chain(&chain, &sha256(entry));
                let entry = codec::decode_history(entry, text);
                entries.push((revision, entry.ok_or(damaged("a history entry"))?));
            }
            Some((&GONE, digest)) => {
                let digest = digest.try_into().map_err(|_| damaged("a history entry"))?;
                chain = extend_chain(&chain, digest);
            }
            _ => return Err(damaged("a history entry")),
        }
    }
    let intact = chain == record.chain && number == record.history_len;
    Ok(History { entries, intact })
}
