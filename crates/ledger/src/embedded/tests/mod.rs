//! The guarantees of the file: after a power loss, over time, and after modifications from outside.

mod chains;
mod damage;
mod disk;
mod erase;
mod memtable;
mod power;
mod retention;

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{Database, TableDefinition};

use self::disk::Disk;
use super::super::codec;
use super::*;
use crate::{StoredRecord, UnreadableRecord, Update, Version, bucket_of};
use consentd_core::event::{Evidence, Method, StatementNames, What};
use consentd_core::record::{HistoryEntry, Record, extend_chain, sha256};
use consentd_core::scope::Scope;
use consentd_core::time::Timestamp;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const PAIRS: TableDefinition<&[u8; 16], &[u8]> = TableDefinition::new("pairs");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const HISTORY: TableDefinition<u64, &[u8]> = TableDefinition::new("history");
const TEXTS: TableDefinition<&[u8; 32], &str> = TableDefinition::new("texts");

/// A retention that keeps everything, because the events of these tests happen soon after 1970.
const FOREVER: Retention =
    Retention { log: Duration::MAX, log_entries: u64::MAX, history: Duration::MAX };

const CACHE: usize = 64 << 10;

/// A ledger with its appender thread.
struct Running {
    disk: Disk,
    ledger: Embedded,
    writer: JoinHandle<Result<(), LedgerError>>,
}

impl Running {
    fn on(disk: Disk) -> Result<Self, Box<dyn std::error::Error>> {
        Self::keeping(FOREVER, disk)
    }

    fn keeping(retention: Retention, disk: Disk) -> Result<Self, Box<dyn std::error::Error>> {
        // With such a small cache, redb also writes pages before their commit.
        let builder_disk = disk.clone();
        let database =
            Database::builder().set_cache_size(CACHE).create_with_backend(builder_disk)?;
        let path = Path::new("disk");
        let meta = tables::prepare(&database, path)?;
        let (ledger, appender) = Embedded::with_database(database, &meta, None, path, retention)?;
        Ok(Self { disk, ledger, writer: std::thread::spawn(move || appender.run()) })
    }

    fn database(&self) -> Arc<Database> {
        self.ledger.shared.database().unwrap()
    }

    /// Closes the ledger, which flushes all pairs, and opens it again.
    async fn reopen(self) -> Self {
        let disk = self.disk.clone();
        self.close().await;
        Self::on(Disk::new(disk.bytes())).unwrap()
    }

    async fn close(self) {
        self.ledger.close().await;
        self.writer.join().unwrap().unwrap();
    }
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap()
}

fn key(number: u8) -> Key {
    Key::from_bytes([number; 16])
}

fn opt_in(reference: &str) -> What {
    let evidence = Evidence {
        method: Method::Website,
        statement: format!("Yes to WhatsApp from Acme, {}", reference.len()),
        business_name: "Acme".into(),
        locale: "en".into(),
        reference: reference.into(),
        confirmation: String::new(),
        phone_number_id: None,
        statement_names: StatementNames::default(),
    };
    let category = Scope::parse("marketing").unwrap();
    What::OptIn { category, evidence, expire: None, pending: false }
}

fn opt_out(reference: &str) -> What {
    What::OptOut { scope: Scope::All, reference: reference.into() }
}

fn inbound(message_id: &str) -> What {
    What::Inbound { message_id: message_id.into(), text: String::new() }
}

/// The change that records this event, at `time`, for a pair that was read as `stored`.
fn change(key: Key, stored: &StoredRecord, what: What, time: Timestamp) -> Change {
    let mut record = stored.record.clone();
    for effect in what.effects(time) {
        record.state.apply(&effect).unwrap();
    }
    let (user_id, business_id) = (format!("US.{key:?}"), "acme".to_owned());
    let entry = HistoryEntry {
        user_id: user_id.clone(),
        business_id: business_id.clone(),
        time,
        record_time: time,
        what,
    };
    let update = Update { user_id, business_id, record, history: vec![entry], record_time: time };
    Change { key, base: stored.version, update: Some(update) }
}

/// The record after a change, computed independently of the ledger.
fn record_after(change: &Change) -> Record {
    let update = change.update.as_ref().unwrap();
    let mut record = update.record.clone();
    for entry in &update.history {
        record.chain = extend_chain(&record.chain, &sha256(&codec::encode_history(entry)));
        record.history_len += 1;
    }
    record
}

/// All pairs, in the order of their keys.
async fn all(ledger: &Embedded) -> Vec<(Key, Result<Record, UnreadableRecord>)> {
    let mut pairs = Vec::new();
    for number in 0..ledger.identity().buckets {
        let bucket = ledger.bucket(number).await.unwrap();
        assert!(
            bucket
                .pairs
                .iter()
                .all(|(key, _)| bucket_of(*key, ledger.identity().buckets) == number)
        );
        pairs.extend(bucket.pairs);
    }
    pairs
}

/// The version that a revision wrote.
fn version(revision: Revision) -> Version {
    Version { revision, head_prefix: 0 }
}

async fn read(ledger: &Embedded, key: Key) -> StoredRecord {
    ledger.read(vec![key]).await.unwrap().pairs.remove(0).unwrap()
}

/// Records an event of a pair.
async fn append(ledger: &Embedded, key: Key, what: What, time: Timestamp) -> Revision {
    let stored = read(ledger, key).await;
    let appended = ledger.append(vec![change(key, &stored, what, time)]).await.unwrap();
    let [Appended::Committed(revision)] = appended[..] else { panic!("{appended:?}") };
    revision
}
