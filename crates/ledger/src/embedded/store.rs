//! What is in the file: the tables, and the transactions on them.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use redb::{
    Database, ReadableDatabase as _, ReadableTable, ReadableTableMetadata as _, Table,
    TableDefinition,
};

use super::super::{
    Appended, Bucket, Change, Epoch, Identity, LedgerError, LogBody, LogEntry, LogHead, MAX_PAGE,
    Page, Position, Read, Retention, StoredRecord, Tail, UnreadableRecord, Version, bucket_of,
    codec,
};
use super::erase::{self, DOOMED};
use super::history::{self, HISTORY, PreparedHistory};
use super::recent::{MAX_MOVED, Mover, Part, Recent};
use super::{OpenError, opening, retention};
use consentd_core::id::Key;
use consentd_core::record::{Revision, sha256};
use consentd_os::clock;

/// The format of the file: which tables there are, and what is in them. The values have their own.
pub(super) const FILE_FORMAT: u32 = 2;

/// Names to values: `epoch`, `secret`, `format`, `revision`, `head`, [`history::SWEPT`], and
/// [`erase::ERASED`].
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// A pair's key to a [`PairValue`].
pub(super) const PAIRS: TableDefinition<&[u8; 16], &[u8]> = TableDefinition::new("pairs");
/// A revision to the log's head before it (20 bytes), after it (20), the time (8), the last revision
/// that added to the pair's history (8), and the body.
pub(super) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
/// A statement's SHA-256 to the statement.
pub(super) const TEXTS: TableDefinition<&[u8; 32], &str> = TableDefinition::new("texts");

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
    let boxed = |error: LedgerError| opening::damaged(path, error);
    let transaction = database.begin_write().map_err(|e| boxed(failed(e)))?;
    let empty = transaction.list_tables().map_err(|e| boxed(failed(e)))?.next().is_none();
    let existing = {
        let meta = transaction.open_table(META).map_err(|e| boxed(failed(e)))?;
        read_meta(&meta).map_err(boxed)?
    };
    let (format, meta) = match existing {
        Some(found) => found,
        // It is another program's, and stays as it is.
        None if !empty => {
            let source = damaged("it has tables, but none of a ledger").into();
            return Err(OpenError::NotALedger { path: path.to_owned(), source });
        }
        None => (FILE_FORMAT, create(&transaction).map_err(boxed)?),
    };
    let (path, known) = (path.to_owned(), FILE_FORMAT);
    match format.cmp(&FILE_FORMAT) {
        Ordering::Less => return Err(OpenError::Older { path, format, known }),
        Ordering::Equal => {}
        Ordering::Greater => return Err(OpenError::Newer { path, format, known }),
    }
    // A file from before there were erases lacks it, and needs nothing else of it.
    drop(transaction.open_table(DOOMED).map_err(|e| boxed(failed(e)))?);
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
    let format = FILE_FORMAT.to_be_bytes();
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

/// A number of the meta table; 0 where there is none yet.
pub(super) fn number(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    name: &'static str,
) -> Result<u64, LedgerError> {
    let Some(value) = meta.get(name).map_err(failed)? else { return Ok(0) };
    Ok(u64::from_be_bytes(value.value().try_into().map_err(|_| damaged(name))?))
}

/// Reads back the pairs that the log alone holds.
pub(super) fn load_recent(database: &Database) -> Result<(Recent, Mover), LedgerError> {
    let transaction = database.begin_write().map_err(failed)?;
    let meta = transaction.open_table(META).map_err(failed)?;
    let tables = Tables::open(&transaction)?;
    Recent::load(&tables, &meta, read_end(&meta)?)
}

/// How many pairs are in the tree.
pub(super) fn count_pairs(database: &Database) -> Result<u64, LedgerError> {
    let table = database.begin_read().map_err(failed)?.open_table(PAIRS).map_err(failed)?;
    table.len().map_err(failed)
}

/// Moves more pairs to the tree, where some wait; tells whether it did.
pub(super) fn move_pairs(
    database: &Database,
    recent: &Recent,
    mover: &mut Mover,
) -> Result<bool, LedgerError> {
    let end = recent.end();
    if mover.settled() >= end.0 {
        return Ok(false);
    }
    let transaction = database.begin_write().map_err(failed)?;
    let step = {
        let mut meta = transaction.open_table(META).map_err(failed)?;
        mover.move_on(recent, &mut Tables::open(&transaction)?, &mut meta, MAX_MOVED)?
    };
    transaction.commit().map_err(failed)?;
    recent.publish(end, [], step, mover);
    Ok(true)
}

/// What the file has of a pair: the revision that wrote its record (8 bytes, big-endian), the last
/// one that added to its history (8, 0 for none), and the record.
pub(super) struct PairValue<'a> {
    pub(super) revision: Revision,
    pub(super) history: Revision,
    pub(super) record: &'a [u8],
}

impl<'a> PairValue<'a> {
    const NONE: PairValue<'static> = PairValue { revision: 0, history: 0, record: &[] };

    /// The value of these bytes; none where they are damaged.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let (revision, rest) = bytes.split_first_chunk()?;
        let (history, record) = rest.split_first_chunk()?;
        let (revision, history) = (u64::from_be_bytes(*revision), u64::from_be_bytes(*history));
        // No change is of revision 0: a pair of it could pass for one that there is not.
        (revision != 0).then_some(Self { revision, history, record })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        [&self.revision.to_be_bytes(), &self.history.to_be_bytes(), self.record].concat()
    }
}

/// A pair as the file has it, where it has it.
fn stored(value: Option<&[u8]>) -> Result<StoredRecord, UnreadableRecord> {
    let Some(value) = value else { return Ok(StoredRecord::default()) };
    let value = PairValue::of(value).ok_or(UnreadableRecord::Damaged)?;
    let version = Version { revision: value.revision, head_prefix: 0 };
    Ok(StoredRecord { version, record: codec::decode_record(value.record)? })
}

/// A change, encoded before it waits for its turn.
pub(super) struct Prepared {
    key: Key,
    base: Version,
    update: Option<PreparedUpdate>,
}

struct PreparedUpdate {
    record: Vec<u8>,
    log: Vec<u8>,
    body: LogBody,
    history: PreparedHistory,
    erases: bool,
}

impl Prepared {
    pub(super) fn of(change: Change) -> Self {
        let Change { key, base, update } = change;
        let update = update.map(|update| {
            let erases = update.erases();
            let mut record = update.record;
            let history = PreparedHistory::of(&update.history, update.record_time, &mut record);
            let encoded = codec::encode_record(&record);
            let body = LogBody {
                key,
                user_id: update.user_id,
                business_id: update.business_id,
                record: Ok(record),
                record_time: update.record_time,
            };
            let log = codec::encode_log(&body, &encoded);
            PreparedUpdate { record: encoded, log, body, history, erases }
        });
        Self { key, base, update }
    }
}

/// What one transaction wrote.
pub(super) struct Committed {
    pub(super) entries: Vec<LogEntry>,
    /// For each group of changes, in order.
    pub(super) outcomes: Vec<Vec<Appended>>,
    /// Whether it took anything away.
    pub(super) erased: bool,
}

pub(super) struct Tables<'t> {
    pub(super) pairs: Table<'t, &'static [u8; 16], &'static [u8]>,
    pub(super) log: Table<'t, u64, &'static [u8]>,
    pub(super) history: Table<'t, u64, &'static [u8]>,
    pub(super) texts: Table<'t, &'static [u8; 32], &'static str>,
    pub(super) doomed: Table<'t, &'static [u8; 32], u64>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t redb::WriteTransaction) -> Result<Self, LedgerError> {
        Ok(Self {
            pairs: transaction.open_table(PAIRS).map_err(failed)?,
            log: transaction.open_table(LOG).map_err(failed)?,
            history: transaction.open_table(HISTORY).map_err(failed)?,
            texts: transaction.open_table(TEXTS).map_err(failed)?,
            doomed: transaction.open_table(DOOMED).map_err(failed)?,
        })
    }
}

/// A pair's value as a transaction finds it, and as it leaves it.
#[derive(Default)]
struct Pending {
    value: Option<Vec<u8>>,
    changed: bool,
}

/// Writes all groups of changes in one transaction; returns once it is synced, and readers see it.
pub(super) fn append(
    database: &Database,
    recent: &Recent,
    mover: &mut Mover,
    groups: Vec<Vec<Prepared>>,
    keep: Retention,
) -> Result<Committed, LedgerError> {
    let transaction = database.begin_write().map_err(failed)?;
    let mut committed = Committed { entries: Vec::new(), outcomes: Vec::new(), erased: false };
    let (mut revision, mut head) = recent.end();
    let (pairs, step) = {
        let mut meta = transaction.open_table(META).map_err(failed)?;
        let mut tables = Tables::open(&transaction)?;
        let mut pairs = read_pairs(recent, &tables, &groups)?;
        for changes in groups {
            let mut outcomes = Vec::with_capacity(changes.len());
            for change in changes {
                let pair = pairs.entry(change.key.to_bytes()).or_default();
                if let Some(other) = conflict(pair, &change) {
                    outcomes.push(Appended::Conflict(other));
                    continue;
                }
                // What is read here is durable already.
                let Some(update) = change.update else {
                    outcomes.push(Appended::Committed(change.base.revision));
                    continue;
                };
                committed.erased |= update.erases;
                let entry = write(&mut tables, pair, update, revision, head)?;
                (revision, head) = (entry.revision, entry.head);
                outcomes.push(Appended::Committed(revision));
                committed.entries.push(entry);
            }
            committed.outcomes.push(outcomes);
        }
        let appended = committed.entries.len();
        if appended == 0 {
            return Ok(committed); // Dropping the transaction aborts it: nothing was written.
        }
        meta.insert("revision", &revision.to_be_bytes()[..]).map_err(failed)?;
        meta.insert("head", &head[..]).map_err(failed)?;
        if committed.erased {
            erase::note(&mut meta, revision)?;
        }
        let step = mover.keep_up(recent, &mut tables, &mut meta, appended, keep.log_entries)?;
        let trim = retention::Trim { revision, settled: mover.settled(), most: appended * 2 };
        retention::trim_log(&mut tables, keep, trim, clock::wall())?;
        (pairs, step)
    };
    transaction.commit().map_err(failed)?;
    let changed = pairs.into_iter().filter(|(_, pair)| pair.changed);
    let changed = changed.filter_map(|(key, pair)| Some((key, pair.value?)));
    recent.publish((revision, head), changed, step, mover);
    Ok(committed)
}

/// The pairs that changes are of, as they are.
fn read_pairs(
    recent: &Recent,
    tables: &Tables<'_>,
    groups: &[Vec<Prepared>],
) -> Result<BTreeMap<[u8; 16], Pending>, LedgerError> {
    let keys = groups.iter().flatten().map(|change| change.key.to_bytes());
    let keys: Vec<_> = keys.collect();
    let mut values = recent.values(&keys);
    fill_in(&mut values, &tables.pairs, &keys)?;
    let pending = values.into_iter().map(|value| Pending { value, changed: false });
    Ok(keys.into_iter().zip(pending).collect())
}

/// Pairs' values, wherever they are.
pub(super) fn values(
    database: &Database,
    recent: &Recent,
    keys: &[[u8; 16]],
) -> Result<Vec<Option<Vec<u8>>>, LedgerError> {
    let mut values = recent.values(keys);
    // Opened after the others were asked: what has left there since is in it.
    let tree = database.begin_read().map_err(failed)?.open_table(PAIRS).map_err(failed)?;
    fill_in(&mut values, &tree, keys)?;
    Ok(values)
}

/// Reads those values that are not there yet.
fn fill_in(
    values: &mut [Option<Vec<u8>>],
    tree: &impl ReadableTable<&'static [u8; 16], &'static [u8]>,
    keys: &[[u8; 16]],
) -> Result<(), LedgerError> {
    // In the order of the keys, neighbours are on one page.
    let missing = keys.iter().zip(values).filter(|(_, value)| value.is_none());
    let mut missing: Vec<_> = missing.collect();
    missing.sort_unstable_by_key(|(key, _)| **key);
    for (key, value) in missing {
        *value = tree.get(key).map_err(failed)?.map(|value| value.value().to_vec());
    }
    Ok(())
}

/// The pair as it is, where it is not what the change started from.
fn conflict(pair: &Pending, change: &Prepared) -> Option<Result<StoredRecord, UnreadableRecord>> {
    let value = pair.value.as_deref();
    let revision = value.map_or(Some(0), |value| Some(PairValue::of(value)?.revision));
    let version = revision.map(|revision| Version { revision, head_prefix: 0 });
    (version != Some(change.base)).then(|| stored(value))
}

fn write(
    tables: &mut Tables<'_>,
    pair: &mut Pending,
    change: PreparedUpdate,
    last: Revision,
    previous: LogHead,
) -> Result<LogEntry, LedgerError> {
    let revision = last + 1;
    let head = next_head(&previous, revision, &change.log);

    let before = pair.value.as_deref().and_then(PairValue::of).unwrap_or(PairValue::NONE).history;
    let mut history = before;
    if change.erases {
        erase::history(tables, revision, before)?;
        history = 0;
    }
    if !change.history.is_empty() {
        history::add(tables, revision, before, &change.history)?;
        history = revision;
    }

    let mut value = Vec::with_capacity(56 + change.log.len());
    value.extend_from_slice(&previous);
    value.extend_from_slice(&head);
    value.extend_from_slice(&change.body.record_time.as_millis().to_be_bytes());
    value.extend_from_slice(&history.to_be_bytes());
    value.extend_from_slice(&change.log);
    tables.log.insert(revision, value.as_slice()).map_err(failed)?;
    pair.value = Some(PairValue { revision, history, record: &change.record }.encode());
    pair.changed = true;
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

pub(super) fn read(
    database: &Database,
    recent: &Recent,
    keys: &[Key],
) -> Result<Read, LedgerError> {
    let keys: Vec<_> = keys.iter().map(|key| key.to_bytes()).collect();
    let values = values(database, recent, &keys)?;
    let pairs = values.iter().map(|value| stored(value.as_deref())).collect();
    Ok(Read { clock: clock::wall(), pairs })
}

/// One pair's value, wherever it is.
pub(super) fn pair_value(
    database: &Database,
    recent: &Recent,
    key: Key,
) -> Result<Option<Vec<u8>>, LedgerError> {
    Ok(values(database, recent, &[key.to_bytes()])?.pop().flatten())
}

pub(super) fn bucket(
    database: &Database,
    recent: &Recent,
    identity: &Identity,
    number: u32,
) -> Result<Bucket, LedgerError> {
    let from = first_of(number, identity.buckets);
    let next = number.checked_add(1).filter(|next| *next < identity.buckets);
    let end = next.map(|next| first_of(next, identity.buckets));
    let range = (Bound::Included(&from), end.as_ref().map_or(Bound::Unbounded, Bound::Excluded));
    // What leaves here meanwhile is in the tree by the time that it is read.
    let Part { end: (revision, head), pairs: waiting } = recent.part(range, usize::MAX);
    let table = database.begin_read().map_err(failed)?.open_table(PAIRS).map_err(failed)?;
    let mut values: BTreeMap<[u8; 16], Vec<u8>> = waiting.into_iter().collect();
    for item in table.range::<&[u8; 16]>(range).map_err(failed)? {
        let (key, value) = item.map_err(failed)?;
        let newer = |waiting: &Vec<u8>| revision_of(waiting) >= revision_of(value.value());
        if !values.get(key.value()).is_some_and(newer) {
            values.insert(*key.value(), value.value().to_vec());
        }
    }
    let pair = |(key, value): (_, Vec<u8>)| {
        (Key::from_bytes(key), stored(Some(&value)).map(|stored| stored.record))
    };
    let pairs = values.into_iter().map(pair).collect();
    Ok(Bucket { number, label: Position { epoch: identity.epoch, revision, head }, pairs })
}

/// The first key of a bucket.
pub(super) fn first_of(number: u32, buckets: u32) -> [u8; 16] {
    let place = (u64::from(number) << 32).div_ceil(u64::from(buckets.max(1)));
    let mut key = [0; 16];
    key[..4].copy_from_slice(&u32::try_from(place).unwrap_or(u32::MAX).to_be_bytes());
    debug_assert_eq!(bucket_of(Key::from_bytes(key), buckets), number);
    key
}

pub(super) fn revision_of(value: &[u8]) -> Option<Revision> {
    PairValue::of(value).map(|value| value.revision)
}

pub(super) fn read_after(
    database: &Database,
    identity: Arc<Identity>,
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
    let end = Position { epoch: identity.epoch, revision, head };
    Ok(Page { identity, end, accepted: 0, clock: clock::wall(), tail })
}

fn log_entry(revision: Revision, value: &[u8]) -> Result<LogEntry, LedgerError> {
    let short = || damaged("a log entry");
    let (previous, rest) = value.split_first_chunk().ok_or_else(short)?;
    let (head, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let (_time_and_history, body) = rest.split_first_chunk::<16>().ok_or_else(short)?;
    let body = codec::decode_log(body);
    Ok(LogEntry { revision, previous: *previous, head: *head, body })
}

/// The pair that a log entry changed, and the value that it has in the pairs' tree.
pub(super) fn log_of_pair(revision: Revision, value: &[u8]) -> Option<([u8; 16], Vec<u8>)> {
    let (history, body) = value.get(48..)?.split_first_chunk()?;
    let (key, record) = codec::decode_pair(body)?;
    let history = u64::from_be_bytes(*history);
    Some((key.to_bytes(), PairValue { revision, history, record: &record }.encode()))
}
