//! Pairs with their histories, out of a file and into a new one, as bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};
use tempfile::NamedTempFile;

use super::history::{Added, HISTORY, Item, text};
use super::recent::{Part, Recent, SETTLED};
use super::store::{
    self, LOG, META, PAIRS, PairValue, TEXTS, Tables, damaged, failed, first_of, revision_of,
    values,
};
use super::{Embedded, OpenError, buckets_for, mark, open_error, retention};
use crate::portable_pair::{Entry, Kind, PortableBucket, PortablePair};
use crate::{CopyError, Epoch, LedgerError, Position};
use consentd_core::id::Key;
use consentd_core::record::{Revision, sha256};
use consentd_core::time::Timestamp;
use consentd_os::files;

/// How many bytes of a new file are kept in memory.
const CACHE_BYTES: usize = 256 << 20;

impl Embedded {
    /// The pairs of one bucket with their histories.
    pub(crate) async fn portable_bucket(&self, number: u32) -> Result<PortableBucket, LedgerError> {
        let identity = self.identity();
        self.blocking(move |database, recent| {
            let from = first_of(number, identity.buckets);
            let next = number.checked_add(1).filter(|next| *next < identity.buckets);
            let end = next.map(|next| first_of(next, identity.buckets));
            let until = end.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let range = (Bound::Included(&from), until);
            // What leaves here meanwhile is in the tree by the time that it is read.
            let Part { end: (revision, head), pairs } = recent.part(range, usize::MAX);
            let mut values: BTreeMap<[u8; 16], Vec<u8>> = pairs.into_iter().collect();
            let transaction = database.begin_read().map_err(failed)?;
            let table = transaction.open_table(PAIRS).map_err(failed)?;
            for item in table.range::<&[u8; 16]>(range).map_err(failed)? {
                let (key, value) = item.map_err(failed)?;
                let newer = |known: &Vec<u8>| revision_of(known) >= revision_of(value.value());
                if !values.get(key.value()).is_some_and(newer) {
                    values.insert(*key.value(), value.value().to_vec());
                }
            }
            let pairs = wholes(database, values)?;
            let label = Position { epoch: identity.epoch, revision, head };
            Ok(PortableBucket { label, pairs })
        })
        .await
    }

    /// These pairs with their histories, those that there are.
    pub(crate) async fn portable_pairs(
        &self,
        keys: &[Key],
    ) -> Result<Vec<PortablePair>, LedgerError> {
        let keys: Vec<_> = keys.iter().map(|key| key.to_bytes()).collect();
        self.blocking(move |database, recent: &Recent| {
            let found = values(database, recent, &keys)?;
            let there = keys.iter().zip(found).filter_map(|(key, value)| Some((*key, value?)));
            wholes(database, there)
        })
        .await
    }

    /// Statements by their digests, those that are there and still have them.
    pub(crate) async fn statements(
        &self,
        digests: &[[u8; 32]],
    ) -> Result<Vec<Option<Vec<u8>>>, LedgerError> {
        let digests = digests.to_vec();
        self.blocking(move |database, _| {
            let transaction = database.begin_read().map_err(failed)?;
            let texts = transaction.open_table(TEXTS).map_err(failed)?;
            let found = digests.iter().map(|digest| text(&texts, digest).map(String::into_bytes));
            Ok(found.collect())
        })
        .await
    }

    /// The secret of the pairs' keys.
    pub(crate) async fn secret(&self) -> Result<[u8; 16], LedgerError> {
        self.blocking(move |database, _| {
            let transaction = database.begin_read().map_err(failed)?;
            let meta = transaction.open_table(META).map_err(failed)?;
            let secret = meta.get("secret").map_err(failed)?.ok_or(damaged("secret"))?;
            secret.value().try_into().map_err(|_| damaged("secret"))
        })
        .await
    }

    /// The log's first revision; the one after the last where it has no entry.
    pub(crate) async fn log_start(&self) -> Result<Revision, LedgerError> {
        self.blocking(move |database, recent: &Recent| {
            let transaction = database.begin_read().map_err(failed)?;
            let log = transaction.open_table(LOG).map_err(failed)?;
            let first = log.first().map_err(failed)?.map(|(revision, _)| revision.value());
            Ok(first.unwrap_or_else(|| recent.end().0.saturating_add(1)))
        })
        .await
    }

    /// How many pairs there are, how many entries the log has, and when the first was recorded.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] where it cannot be read.
    pub async fn extent(&self) -> Result<(u64, u64, Option<Timestamp>), LedgerError> {
        self.blocking(move |database, recent: &Recent| {
            let waiting = recent.part((Bound::Unbounded, Bound::Unbounded), usize::MAX).pairs;
            let transaction = database.begin_read().map_err(failed)?;
            let table = transaction.open_table(PAIRS).map_err(failed)?;
            let mut pairs = table.len().map_err(failed)?;
            for (key, _) in waiting {
                pairs += u64::from(table.get(&key).map_err(failed)?.is_none());
            }
            let log = transaction.open_table(LOG).map_err(failed)?;
            let (entries, oldest) = retention::log_extent(&log)?;
            Ok((pairs, entries, oldest.map(Timestamp::saturating_from_millis)))
        })
        .await
    }
}

fn wholes(
    database: &Database,
    values: impl IntoIterator<Item = ([u8; 16], Vec<u8>)>,
) -> Result<Vec<PortablePair>, LedgerError> {
    let transaction = database.begin_read().map_err(failed)?;
    let table = transaction.open_table(HISTORY).map_err(failed)?;
    let mut pairs = Vec::new();
    for (key, value) in values {
        let value = PairValue::of(&value).ok_or(damaged("a pair's record"))?;
        // From the last to the first. Each must lie before the one that names it.
        let (mut next, mut before) = (value.history, Revision::MAX);
        let mut additions = Vec::new();
        while next != 0 && next < before {
            let Some(row) = table.get(next).map_err(failed)? else { break };
            let row = row.value().to_vec();
            let previous = Added::decode(&row).ok_or(damaged("a history entry"))?.previous;
            additions.push((next, row));
            (before, next) = (next, previous);
        }
        let mut history = Vec::new();
        if next != 0 {
            history.push(None); // The rest, from here to the first, is not there.
        }
        for (revision, row) in additions.iter().rev() {
            let added = Added::decode(row).ok_or(damaged("a history entry"))?;
            history.extend(added.items.iter().map(|item| Some(entry(*revision, item))));
        }
        let (revision, record) = (value.revision, value.record.to_vec());
        pairs.push(PortablePair { key, revision, head_prefix: 0, record, history });
    }
    Ok(pairs)
}

fn entry(revision: Revision, item: &Item<'_>) -> Entry {
    let (kind, bytes): (_, &[u8]) = match item {
        Item::Kept(bytes) => (Kind::Kept, bytes),
        Item::Perishable(bytes) => (Kind::Perishable, bytes),
        Item::Gone(digest) => (Kind::Gone, &digest[..]),
    };
    Entry { revision, kind, bytes: bytes.to_vec() }
}

/// A ledger file to be. It has a name only once it is finished: what is left of one that was not
/// is removed with it, or by whoever tidies the folder.
pub struct NewFile {
    path: PathBuf,
    file: NamedTempFile,
    database: Database,
}

impl NewFile {
    /// Begins one.
    ///
    /// # Errors
    ///
    /// [`CopyError`] where there is anything at that path, or it cannot be written.
    pub fn begin(path: &Path) -> Result<Self, CopyError> {
        Self::check(path).map_err(CopyError::File)?;
        let file = super::temporary(path).map_err(CopyError::File)?;
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(file.path());
        let database = database.map_err(|error| CopyError::File(open_error(path, error)))?;
        store::prepare(&database, path).map_err(CopyError::File)?;
        Ok(Self { path: path.to_owned(), file, database })
    }

    /// Sees whether one could be begun, and changes nothing.
    ///
    /// # Errors
    ///
    /// [`OpenError::Exists`] where there is anything at that path.
    pub fn check(path: &Path) -> Result<(), OpenError> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            _ => Err(OpenError::Exists { path: path.to_owned() }),
        }
    }

    /// Writes pairs, and statements by their digests. Not durable before the end.
    pub(crate) fn put(
        &self,
        pairs: &[PortablePair],
        texts: &[([u8; 32], Vec<u8>)],
    ) -> Result<(), LedgerError> {
        let mut transaction = self.database.begin_write().map_err(failed)?;
        transaction.set_durability(redb::Durability::None).map_err(failed)?;
        {
            let mut tables = Tables::open(&transaction)?;
            for (digest, text) in texts {
                let text = std::str::from_utf8(text).map_err(|_| damaged("a statement"))?;
                if sha256(text.as_bytes()) == *digest {
                    tables.texts.insert(digest, text).map_err(failed)?;
                }
            }
            for pair in pairs {
                let last = put_history(&mut tables, pair)?;
                let value =
                    PairValue { revision: pair.revision, history: last, record: &pair.record };
                tables.pairs.insert(&pair.key, value.encode().as_slice()).map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)
    }

    /// Makes it a ledger, whose revisions go on from `end`.
    pub(crate) fn finish(
        self,
        end: &Position,
        secret: &[u8; 16],
    ) -> Result<(Epoch, u32), CopyError> {
        let epoch = self.write_meta(end, secret).map_err(CopyError::Writing)?;
        let pairs = store::count_pairs(&self.database).map_err(CopyError::Writing)?;
        let buckets = buckets_for(pairs);
        let Self { path, file, database } = self;
        drop(database);
        let io = |source| CopyError::File(OpenError::Io { path: path.clone(), source });
        let folder = File::open(files::folder(&path)).map_err(io)?;
        // That of a ledger that was here before, and was moved away.
        mark::remove(&path).map_err(CopyError::File)?;
        match file.persist_noclobber(&path) {
            Ok(_) => {}
            Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => {
                return Err(CopyError::File(OpenError::Exists { path }));
            }
            Err(failed) => return Err(io(failed.error)),
        }
        folder.sync_all().map_err(io)?;
        Ok((epoch, buckets))
    }

    fn write_meta(&self, end: &Position, secret: &[u8; 16]) -> Result<Epoch, LedgerError> {
        // `prepare` drew an epoch, and a secret, which is the other ledger's: keys are made of it.
        let transaction = self.database.begin_write().map_err(failed)?;
        let epoch = {
            let mut meta = transaction.open_table(META).map_err(failed)?;
            let epoch = meta.get("epoch").map_err(failed)?;
            let epoch = epoch.ok_or(damaged("epoch"))?.value().try_into();
            let epoch = epoch.map_err(|_| damaged("epoch"))?;
            let revision = end.revision.to_be_bytes();
            let values: [(&str, &[u8]); 4] = [
                ("secret", secret),
                ("revision", &revision),
                ("head", &end.head),
                // All is in the pairs' tree: there is no log to read it from.
                (SETTLED, &revision),
            ];
            for (name, value) in values {
                meta.insert(name, value).map_err(failed)?;
            }
            epoch
        };
        transaction.commit().map_err(failed)?;
        Ok(epoch)
    }
}

/// Writes a pair's history by revision; gives the last one that added to it.
fn put_history(tables: &mut Tables<'_>, pair: &PortablePair) -> Result<Revision, LedgerError> {
    // A record that cannot be read is no reader's, and has none that was erased.
    let record = pair.decode().ok().filter(|record| record.erased.is_some());
    let mut begins = record.map(|record| record.history_start());
    let mut last = 0;
    for some in pair.history.chunk_by(|a, b| revision(a.as_ref()) == revision(b.as_ref())) {
        let Some(number) = some.first().and_then(|first| revision(first.as_ref())) else {
            continue;
        };
        let mut items = Vec::with_capacity(some.len());
        for entry in some.iter().flatten() {
            items.push(match entry.kind {
                Kind::Kept => Item::Kept(&entry.bytes),
                Kind::Perishable => Item::Perishable(&entry.bytes),
                Kind::Gone => {
                    let digest = entry.bytes.as_slice().try_into();
                    Item::Gone(digest.map_err(|_| damaged("a history entry"))?)
                }
            });
        }
        // Of what has gone, nobody needs the time any more.
        let recorded = some.iter().flatten().filter_map(Entry::decode);
        let time = recorded.map(|entry| entry.record_time.as_millis()).max().unwrap_or(0);
        let added = Added { previous: last, time, begins: begins.take(), items };
        tables.history.insert(number, added.encode().as_slice()).map_err(failed)?;
        last = number;
    }
    Ok(last)
}

fn revision(entry: Option<&Entry>) -> Option<Revision> {
    entry.map(|entry| entry.revision)
}
