//! What every ledger promises to whoever reads and writes it, and what a ledger file promises.
//!
//! A kind of ledger is added by a [`Kind`] and an arm of [`Home::open`]; all of this then holds
//! of it too.

#[path = "ledger/aof.rs"]
mod aof;
#[path = "ledger/contract.rs"]
mod contract;
#[path = "ledger/copy.rs"]
mod copy;
#[path = "ledger/damage.rs"]
mod damage;
#[path = "ledger/erase.rs"]
mod erase;
#[path = "ledger/file.rs"]
mod file;
#[path = "ledger/linked.rs"]
mod linked;
#[path = "ledger/lost_partitions.rs"]
mod lost_partitions;
#[path = "ledger/redis.rs"]
mod on_redis;
#[path = "ledger/pages.rs"]
mod pages;
#[path = "ledger/partitions.rs"]
mod partitions;
#[path = "ledger/server.rs"]
mod server;
mod servers;
#[path = "ledger/stops.rs"]
mod stops;

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use consentd_core::event::{Evidence, Method, StatementNames, What};
use consentd_core::id::Key;
use consentd_core::partition::Layout;
use consentd_core::record::{HistoryEntry, Record, Revision};
use consentd_core::scope::Scope;
use consentd_core::time::Timestamp;
use consentd_ledger::{
    Appended, Bucket, BucketReader, Change, DurabilityStatus, Embedded, Ledger, LedgerError,
    LogHead, Notification, Options, Page, Partition, Retention, Shape, StoredRecord, Update,
};
use server::Server;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps all: these tests' events happen soon after 1970.
const FOREVER: Retention =
    Retention { log: Duration::MAX, log_entries: u64::MAX, history: Duration::MAX };

const CACHE: usize = 8 << 20;

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A file, and a thread that writes it.
    Embedded,
    /// A Redis of its own.
    Redis,
    /// A Cluster of its own, of one node. The ledger has four partitions, and all keys of these tests are in the
    /// last one.
    Cluster,
}

const KINDS: [Kind; 3] = [Kind::Embedded, Kind::Redis, Kind::Cluster];

/// A ledger with one partition, and this many buckets.
fn shape(buckets: u32) -> Shape {
    Shape { layout: Layout::SINGLE, buckets }
}

/// The number of partitions of a ledger in a Cluster.
const PARTITIONS: u32 = 4;

/// The partition that all keys of these tests are in, of a ledger that has several.
const PARTITION: u32 = PARTITIONS - 1;

/// What these tests read of the partition that their keys are in.
trait OnePartition {
    async fn part(&self) -> Result<Partition, LedgerError>;

    /// The same, once the ledger was contacted.
    fn known_part(&self) -> Partition;

    async fn read_after(&self, revision: Revision) -> Result<Page, LedgerError> {
        self.part().await?.read_after(revision).await
    }

    async fn read_after_head(
        &self,
        revision: Revision,
        head: LogHead,
    ) -> Result<Page, LedgerError> {
        self.part().await?.read_after_head(revision, head).await
    }

    async fn bucket(&self, number: u32) -> Result<Bucket, LedgerError> {
        self.part().await?.bucket(number).await
    }

    fn bucket_reader(&self) -> BucketReader {
        self.known_part().bucket_reader()
    }

    fn listen(&self) -> tokio::sync::broadcast::Receiver<Notification> {
        self.known_part().listen()
    }

    fn durability(&self) -> DurabilityStatus {
        self.known_part().durability()
    }

    fn unannounced(&self) -> u64 {
        self.known_part().unannounced()
    }
}

impl OnePartition for Ledger {
    async fn part(&self) -> Result<Partition, LedgerError> {
        let last = self.layout().await?.partitions() - 1;
        Ok(self.partition(last).unwrap())
    }

    fn known_part(&self) -> Partition {
        let layout = self.known_layout().unwrap_or_default();
        self.partition(layout.partitions() - 1).unwrap()
    }
}

/// Where one ledger lives: it can be closed there, and opened again.
struct Home {
    kind: Kind,
    folder: TempDir,
    server: Option<Server>,
}

/// One new home of each kind.
fn homes() -> impl Iterator<Item = Home> {
    KINDS.into_iter().map(|kind| {
        let home = empty(kind);
        home.server.iter().for_each(Server::create);
        home
    })
}

/// A home of this kind in which there is no ledger yet.
fn empty(kind: Kind) -> Home {
    let folder = tempfile::tempdir().unwrap();
    let server = match kind {
        Kind::Embedded => None,
        Kind::Redis => Some(Server::start(folder.path(), &[])),
        Kind::Cluster => Some(Server::start_cluster(folder.path())),
    };
    Home { kind, folder, server }
}

/// A ledger that is open.
struct Open {
    ledger: Ledger,
    writer: Writer,
}

/// What runs, for as long as a ledger is open.
enum Writer {
    Thread(JoinHandle<Result<(), LedgerError>>),
    Task(tokio::task::JoinHandle<()>),
}

impl Home {
    fn path(&self) -> PathBuf {
        self.folder.path().join("ledger.redb")
    }

    fn open(&self, retention: Retention) -> Open {
        match self.kind {
            Kind::Embedded => {
                let (ledger, appender) = Embedded::open(&self.path(), retention, CACHE).unwrap();
                let writer = Writer::Thread(std::thread::spawn(move || appender.run()));
                Open { ledger: Ledger::Embedded(ledger), writer }
            }
            Kind::Redis | Kind::Cluster => {
                let server = self.server.as_ref().unwrap();
                // The log is shared by all partitions, and these tests are about one.
                let partitions = if server.is_cluster() { u64::from(PARTITIONS) } else { 1 };
                let log_entries = retention.log_entries.saturating_mul(partitions);
                let retention = Some(Retention { log_entries, ..retention });
                open_redis(server, Options { retention, ..Options::default() })
            }
        }
    }
}

/// The ledger in a Redis, with what runs for it.
fn open_redis(server: &Server, options: Options) -> Open {
    let (ledger, driver) = consentd_ledger::Redis::new(server.target(), options);
    let writer = Writer::Task(tokio::spawn(driver.run(CancellationToken::new())));
    Open { ledger: Ledger::Redis(ledger), writer }
}

impl Open {
    async fn close(self) {
        self.ledger.close().await;
        match self.writer {
            Writer::Thread(writer) => writer.join().unwrap().unwrap(),
            Writer::Task(writer) => writer.await.unwrap(),
        }
    }
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis).unwrap()
}

fn key(number: u64) -> Key {
    let mut bytes = [0; 16];
    // Spread like the hashes that keys are.
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..].copy_from_slice(&(number << 40 | u64::from(PARTITION)).to_be_bytes());
    Key::from_bytes(bytes)
}

fn opt_in(statement: &str) -> What {
    let evidence = Evidence {
        method: Method::Website,
        statement: statement.into(),
        business_name: "Acme".into(),
        locale: "en".into(),
        reference: "form 1".into(),
        confirmation: String::new(),
        phone_number_id: None,
        statement_names: StatementNames::default(),
    };
    let category = Scope::parse("marketing").unwrap();
    What::OptIn { category, evidence, expire: Some(at(900)), pending: false }
}

fn opt_out(reference: &str) -> What {
    What::OptOut { scope: Scope::All, reference: reference.into() }
}

fn inbound(message_id: &str) -> What {
    What::Inbound { message_id: message_id.into(), text: String::new() }
}

fn nothing() -> StoredRecord {
    StoredRecord::default()
}

/// The change by which these things happen, one a millisecond, to a pair that was read as `stored`.
fn change(key: Key, stored: &StoredRecord, happened: impl IntoIterator<Item = What>) -> Change {
    let mut record = stored.record.clone();
    let mut history = Vec::new();
    for what in happened {
        let time = at(record.state.latest().map_or(1, |latest| latest.as_millis() + 1));
        for effect in what.effects(time) {
            record.state.apply(&effect).unwrap();
        }
        let (user_id, business_id) = (format!("US.{key:?}"), "acme".to_owned());
        history.push(HistoryEntry { user_id, business_id, time, record_time: time, what });
    }
    let record_time = history.last().map_or(at(1), |entry| entry.record_time);
    let (user_id, business_id) = (format!("US.{key:?}"), "acme".to_owned());
    let update = Update { user_id, business_id, record, history, record_time };
    Change { key, base: stored.version, update: Some(update) }
}

async fn read(ledger: &Ledger, key: Key) -> StoredRecord {
    ledger.read(vec![key]).await.unwrap().pairs.remove(0).unwrap()
}

/// Appends one change to a pair as it is, however often others come first.
async fn append(ledger: &Ledger, key: Key, what: What) -> Revision {
    loop {
        let change = change(key, &read(ledger, key).await, [what.clone()]);
        match &ledger.append(vec![change]).await.unwrap()[..] {
            [Appended::Committed(revision)] => return *revision,
            [Appended::Conflict(_)] => {}
            other => panic!("one change has one outcome: {other:?}"),
        }
    }
}

/// What a change that was appended leaves of its pair.
fn record_after(change: &Change, stored: &StoredRecord) -> Record {
    // Its history's length and chain are the ledger's to reckon.
    let Record { history_len, chain, .. } = stored.record.clone();
    Record { history_len, chain, ..update(change).record.clone() }
}

/// What a change writes.
fn update(change: &Change) -> &Update {
    change.update.as_ref().unwrap()
}
