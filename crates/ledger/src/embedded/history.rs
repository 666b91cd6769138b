//! Histories in the file: by revision, so that writing them is appending. What a revision added
//! names the one before it of the same pair, and the pair names the last.

use redb::{Database, ReadableDatabase as _, ReadableTable, TableDefinition};

use super::recent::Recent;
use super::store::{PairValue, TEXTS, Tables, damaged, failed, number, pair_value};
use crate::history::{ChainCache, HistoryBuilder};
use crate::{Cursor, EntryPosition, Events, History, LedgerError, MAX_PAGE, codec};
use consentd_core::id::Key;
use consentd_core::record::{ChainHead, HistoryEntry, Record, Revision, extend_chain, sha256};
use consentd_core::time::Timestamp;

/// A revision to the pair's revision before it here (8 bytes, big-endian, 0 for none), the time
/// that it was recorded (8), and its items: each a tag, its length (4), and its bytes.
pub(super) const HISTORY: TableDefinition<u64, &[u8]> = TableDefinition::new("history");

/// The name in the meta table of the last revision that was looked at for what has outlived its time.
pub(super) const SWEPT: &str = "swept";

/// What stands of one entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Item<'a> {
    /// The entry, kept for good.
    Kept(&'a [u8]),
    /// The entry, kept for a time.
    Perishable(&'a [u8]),
    /// The digest of one that was kept for a time.
    Gone(&'a [u8; 32]),
}

/// What one revision added to its pair's history.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Added<'a> {
    pub(super) previous: Revision,
    pub(super) time: i64,
    /// How many entries were erased before this, and the chain's head after them, where the pair
    /// was erased and this is the first that it has had since.
    pub(super) begins: Option<(u64, ChainHead)>,
    pub(super) items: Vec<Item<'a>>,
}

impl<'a> Item<'a> {
    const KEPT: u8 = 0;
    const PERISHABLE: u8 = 1;
    const GONE: u8 = 2;
    /// No item: where an erased history begins anew.
    const BEGINS: u8 = 3;

    fn parts(&self) -> (u8, &'a [u8]) {
        match self {
            Self::Kept(entry) => (Self::KEPT, entry),
            Self::Perishable(entry) => (Self::PERISHABLE, entry),
            Self::Gone(digest) => (Self::GONE, *digest),
        }
    }

    fn of(tag: u8, bytes: &'a [u8]) -> Option<Self> {
        Some(match tag {
            Self::KEPT => Self::Kept(bytes),
            Self::PERISHABLE => Self::Perishable(bytes),
            Self::GONE => Self::Gone(bytes.try_into().ok()?),
            _ => return None,
        })
    }

    /// By what it stands in the chain.
    fn digest(&self) -> [u8; 32] {
        match self {
            Self::Kept(entry) | Self::Perishable(entry) => sha256(entry),
            Self::Gone(digest) => **digest,
        }
    }

    fn entry(&self) -> Option<&'a [u8]> {
        match self {
            Self::Kept(entry) | Self::Perishable(entry) => Some(entry),
            Self::Gone(_) => None,
        }
    }
}

impl<'a> Added<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(256);
        value.extend_from_slice(&self.previous.to_be_bytes());
        value.extend_from_slice(&self.time.to_be_bytes());
        let begins = self.begins.map(|(number, head)| [&number.to_be_bytes()[..], &head].concat());
        let begins = begins.iter().map(|bytes| (Item::BEGINS, bytes.as_slice()));
        for (tag, bytes) in begins.chain(self.items.iter().map(Item::parts)) {
            value.push(tag);
            // An entry is bounded far below by the bounds of its fields.
            value.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            value.extend_from_slice(bytes);
        }
        value
    }

    pub(super) fn decode(value: &'a [u8]) -> Option<Self> {
        let (previous, rest) = value.split_first_chunk()?;
        let (time, mut rest) = rest.split_first_chunk()?;
        let (mut begins, mut items) = (None, Vec::with_capacity(1));
        while let Some((tag, more)) = rest.split_first() {
            let (len, more) = more.split_first_chunk()?;
            let (bytes, more) = more.split_at_checked(u32::from_be_bytes(*len).try_into().ok()?)?;
            if *tag == Item::BEGINS {
                let (number, head) = bytes.split_first_chunk()?;
                begins = Some((u64::from_be_bytes(*number), head.try_into().ok()?));
            } else {
                items.push(Item::of(*tag, bytes)?);
            }
            rest = more;
        }
        let (previous, time) = (u64::from_be_bytes(*previous), i64::from_be_bytes(*time));
        Some(Self { previous, time, begins, items })
    }
}

/// What a change adds, encoded before it waits for its turn.
pub(super) struct PreparedHistory {
    time: Timestamp,
    begins: Option<(u64, ChainHead)>,
    entries: Vec<PreparedEntry>,
}

struct PreparedEntry {
    bytes: Vec<u8>,
    kept: bool,
    statement: Option<([u8; 32], String)>,
}

impl PreparedEntry {
    fn item(&self) -> Item<'_> {
        if self.kept { Item::Kept(&self.bytes) } else { Item::Perishable(&self.bytes) }
    }
}

impl PreparedHistory {
    /// Encodes the entries, and extends the record's chain by them.
    pub(super) fn of(entries: &[HistoryEntry], time: Timestamp, record: &mut Record) -> Self {
        let begins = record.is_without_history().then(|| record.history_start());
        let mut prepared = Vec::with_capacity(entries.len());
        for entry in entries {
            let bytes = codec::encode_history(entry);
            record.chain = extend_chain(&record.chain, &sha256(&bytes));
            record.history_len += 1;
            let statement = codec::statement_of(entry);
            let statement = statement.map(|(digest, text)| (digest, text.to_owned()));
            prepared.push(PreparedEntry { bytes, kept: entry.is_kept_for_good(), statement });
        }
        Self { time, begins, entries: prepared }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Writes what a revision adds to a pair's history, whose last addition so far is `previous`.
pub(super) fn add(
    tables: &mut Tables<'_>,
    revision: Revision,
    previous: Revision,
    prepared: &PreparedHistory,
) -> Result<(), LedgerError> {
    let items = prepared.entries.iter().map(PreparedEntry::item).collect();
    let (time, begins) = (prepared.time.as_millis(), prepared.begins);
    let added = Added { previous, time, begins, items };
    tables.history.insert(revision, added.encode().as_slice()).map_err(failed)?;
    for (digest, text) in prepared.entries.iter().filter_map(|entry| entry.statement.as_ref()) {
        if tables.texts.get(digest).map_err(failed)?.is_none() {
            tables.texts.insert(digest, text.as_str()).map_err(failed)?;
        }
    }
    Ok(())
}

/// A statement by its digest. An edited one no longer has its digest, and is not shown as the
/// words agreed to.
pub(super) fn text(
    texts: &impl ReadableTable<&'static [u8; 32], &'static str>,
    digest: &[u8],
) -> Option<String> {
    let digest: &[u8; 32] = digest.try_into().ok()?;
    let text = texts.get(digest).ok()??;
    (sha256(text.value().as_bytes()) == *digest).then(|| text.value().to_owned())
}

/// A pair's history, with its chain checked.
pub(super) fn history(
    database: &Database,
    recent: &Recent,
    key: Key,
) -> Result<History, LedgerError> {
    let pair = pair_value(database, recent, key)?;
    let transaction = database.begin_read().map_err(failed)?;
    let table = transaction.open_table(HISTORY).map_err(failed)?;
    let texts = transaction.open_table(TEXTS).map_err(failed)?;
    let unreadable = || damaged("the pair's record, or this version cannot read it");
    let (mut next, record) = match pair {
        None => (0, Record::default()),
        Some(value) => {
            let value = PairValue::of(&value).ok_or_else(unreadable)?;
            let record = codec::decode_record(value.record).map_err(|_| unreadable())?;
            (value.history, record)
        }
    };
    // From the last to the first. Each must lie before the one that names it: no circle is walked.
    let mut additions = Vec::new();
    let mut before = Revision::MAX;
    while next != 0 && next < before {
        let Some(value) = table.get(next).map_err(failed)? else { break };
        let value = value.value().to_vec();
        // What is no history ends the walk: what came after it is still told.
        let Some(Added { previous, .. }) = Added::decode(&value) else { break };
        additions.push((next, value));
        (before, next) = (next, previous);
    }
    let items = |value: &[u8]| Added::decode(value).map_or(0, |added| added.items.len());
    let left: usize = additions.iter().map(|(_, value)| items(value)).sum();
    let mut reading = HistoryBuilder::new(record);
    if next != 0 {
        reading.skip_missing(u64::try_from(left).unwrap_or(u64::MAX));
    }
    for (revision, value) in additions.iter().rev() {
        let Some(added) = Added::decode(value) else { continue };
        for item in added.items {
            match item.entry() {
                None => reading.push_expired(&item.digest()),
                Some(entry) => {
                    let entry = codec::decode_history(entry, |digest| text(&texts, digest));
                    reading.push_entry(*revision, &item.digest(), entry);
                }
            }
        }
    }
    Ok(reading.finish())
}

/// Every pair's entries, in the order in which they were recorded, behind a revision.
pub(super) fn events_after(
    database: &Database,
    Cursor { after, mut chains }: Cursor,
) -> Result<Events, LedgerError> {
    let transaction = database.begin_read().map_err(failed)?;
    let table = transaction.open_table(HISTORY).map_err(failed)?;
    let texts = transaction.open_table(TEXTS).map_err(failed)?;
    let mut events = Events { entries: Vec::new(), next: None, by_revision: true };
    for value in table.range(after.saturating_add(1)..).map_err(failed)? {
        let (revision, value) = value.map_err(failed)?;
        let revision = revision.value();
        let added = Added::decode(value.value()).ok_or(damaged("a history entry"))?;
        let (mut number, mut head) = match added.begins {
            Some(begins) => begins,
            None => stands(&table, &mut chains, added.previous, revision)?,
        };
        for item in &added.items {
            number = number.saturating_add(1);
            head = extend_chain(&head, &item.digest());
            let Some(entry) = item.entry() else { continue };
            let entry = codec::decode_history(entry, |digest| text(&texts, digest));
            let place = EntryPosition { revision, number, head };
            events.entries.push((place, entry.ok_or(damaged("a history entry"))?));
        }
        chains.put(revision, (number, head));
        if events.entries.len() >= MAX_PAGE {
            events.next = Some(Cursor { after: revision, chains });
            break;
        }
    }
    Ok(events)
}

/// How many entries a pair had, and its chain's head, behind the revision that `revision` names as
/// the one before it: known, or walked from the beginning.
fn stands(
    table: &impl ReadableTable<u64, &'static [u8]>,
    chains: &mut ChainCache,
    previous: Revision,
    revision: Revision,
) -> Result<(u64, ChainHead), LedgerError> {
    let mut digests = Vec::new();
    let (mut next, mut before) = (previous, revision);
    let mut known = chains.take(next);
    // Each must lie before the one that names it: no circle is walked.
    while known.is_none() && next != 0 && next < before {
        let Some(value) = table.get(next).map_err(failed)? else { break };
        let added = Added::decode(value.value()).ok_or(damaged("a history entry"))?;
        digests.extend(added.items.iter().rev().map(Item::digest));
        (before, next) = (next, added.previous);
        known = added.begins.or_else(|| chains.take(next));
    }
    let from = known.unwrap_or_default();
    Ok(digests.iter().rev().fold(from, |(number, head), digest| {
        (number.saturating_add(1), extend_chain(&head, digest))
    }))
}

/// Replaces entries recorded before `limit` that are kept for a time by their digests, which keep
/// the chain whole. Looks at `most` revisions; gives how many it looked at.
///
/// Revisions are looked at in their order, once. Where a clock was set back meanwhile, an entry
/// waits until the ones before it are due too.
pub(super) fn expire(
    tables: &mut Tables<'_>,
    meta: &mut redb::Table<'_, &'static str, &'static [u8]>,
    limit: Timestamp,
    most: usize,
) -> Result<usize, LedgerError> {
    let swept = number(meta, SWEPT)?;
    let mut last = swept;
    let mut looked_at = 0;
    let mut changed = Vec::new();
    for value in tables.history.range(swept.saturating_add(1)..).map_err(failed)?.take(most) {
        let (revision, value) = value.map_err(failed)?;
        let mut added = Added::decode(value.value()).ok_or(damaged("a history entry"))?;
        if added.time >= limit.as_millis() {
            break;
        }
        (last, looked_at) = (revision.value(), looked_at + 1);
        let perishable = |item: &Item<'_>| matches!(item, Item::Perishable(_));
        if added.items.iter().any(perishable) {
            let digests: Vec<_> = added.items.iter().map(Item::digest).collect();
            for (item, digest) in added.items.iter_mut().zip(&digests) {
                if perishable(item) {
                    *item = Item::Gone(digest);
                }
            }
            changed.push((last, added.encode()));
        }
    }
    for (revision, value) in changed {
        tables.history.insert(revision, value.as_slice()).map_err(failed)?;
    }
    if last > swept {
        meta.insert(SWEPT, &last.to_be_bytes()[..]).map_err(failed)?;
    }
    Ok(looked_at)
}
