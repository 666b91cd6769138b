//! The ledger in Redis or Valkey: one primary, with or without replicas and Sentinels, or the nodes of a
//! Cluster that own the slots of its partitions.
//!
//! The keys and the formats of their values are in `keyspace`; the atomic operations are the scripts in
//! `scripts/`. Readers use one connection, with replies of bounded size. Writers queue their changes for
//! the [`BackgroundTask`], which appends them in batches over another connection. `conn` opens and keeps
//! connections, and `admin` has the operators' commands.

mod admin;
mod announcement;
mod append;
mod append_batch;
mod background;
mod bucket_stream;
mod conn;
mod error;
mod fsync_check;
mod history;
mod keyspace;
mod known_clock;
mod missing_keys;
mod origin;
mod partitions;
mod pipeline;
mod read;
mod retention;
mod roll_forward;
mod scripts;
mod server_check;
mod server_info;
mod statement_gc;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

pub use self::admin::{
    CreateError, Created, MAX_BUCKETS, NewRedis, Plan, RepairMode, Repaired, Shape, Shard, Status,
    create, inspect_servers, plan,
};
use self::append::PendingAppend;
use self::background::{AnnouncementSink, PartitionTask};
pub(crate) use self::bucket_stream::BucketStream;
use self::conn::{
    ConnectionError, ConnectionManager, PrimaryLocator, Purpose, Servers, Subscriptions, Timeouts,
};
pub use self::conn::{InvalidTarget, Target, TargetError, TargetOptions};
use self::error::RedisFailure;
pub use self::error::RedisRejection;
use self::keyspace::Keyspace;
pub(crate) use self::keyspace::holds_statements;
use self::known_clock::KnownClock;
use self::missing_keys::MissingKeys;
use self::origin::Origins;
pub use self::partitions::{BackgroundTask, PartitionStatus, Redis};
use self::server_check::CheckedServer;
pub use self::server_info::{
    Fsync, Persistence, ServerInfo, ServerInfoError, Topology, UnsupportedServer, Warning,
};
use super::{
    DurabilityStatus, Epoch, Identity, LedgerError, MAX_ANNOUNCEMENTS, Notification, Retention,
};
use crate::history::MAX_READS;
use crate::stored_secret::StoredSecret;
use consentd_core::businesses::Businesses;
use consentd_core::id::{KEY_VERSION, OLDEST_KEY_VERSION, TAGGED_KEY_VERSION};
use consentd_core::partition::Layout;

/// The maximum number of queued changes; further ones are rejected with [`LedgerError::Busy`].
const MAX_WAITING: usize = 8_192;

/// The least number of announcements that wait for a partition's followers.
const MIN_ANNOUNCEMENTS: usize = 256;

/// What an append waits for before it is acknowledged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Durability {
    /// For nothing more than what that Redis is configured for.
    Ledger,
    /// That this number of replicas have received it.
    Replicas(u32),
    /// That the primary's append-only file, which has it, is synced.
    Aof,
}

impl Durability {
    /// The default timeout of the confirmation: an append-only file that is synced every second may take
    /// a second, and the sync itself takes time as well.
    #[must_use]
    pub fn confirm_within(self) -> Duration {
        match self {
            Self::Ledger | Self::Replicas(_) => Duration::from_secs(1),
            Self::Aof => Duration::from_secs(3),
        }
    }
}

/// The maximum number of replicas that an append can wait for.
const MAX_REPLICAS: u32 = 100;

/// A text that is not a durability.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "must be ledger (what that Redis is configured for), replicas:N (N replicas have it, 1 to \
     {MAX_REPLICAS}), or aof (it is in the append-only file, synced)"
)]
pub struct NotADurability;

impl std::str::FromStr for Durability {
    type Err = NotADurability;

    fn from_str(text: &str) -> Result<Self, NotADurability> {
        match text {
            "ledger" => Ok(Self::Ledger),
            "aof" => Ok(Self::Aof),
            text => {
                let count = text.strip_prefix("replicas:").and_then(|count| count.parse().ok());
                let count = count.filter(|count| (1..=MAX_REPLICAS).contains(count));
                count.map(Self::Replicas).ok_or(NotADurability)
            }
        }
    }
}

/// How a ledger in Redis is used.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What an append waits for.
    pub durability: Durability,
    /// The timeout of that confirmation.
    pub confirm_within: Duration,
    /// The timeout of a poll, after which its connection is discarded.
    pub poll_within: Duration,
    /// How long the log and histories are kept; none if this process does not write.
    pub retention: Option<Retention>,
    /// The interval at which expired entries are removed.
    pub sweep_interval: Duration,
    /// Whether the ledger may have keys of any [version](KEY_VERSION). For what neither decides nor records
    /// under a user's id.
    pub any_keys: bool,
    /// Whether its keys must name their businesses, for a follower that holds only some.
    pub tagged_keys: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Ledger,
            confirm_within: Durability::Ledger.confirm_within(),
            poll_within: Duration::from_secs(1),
            retention: Some(Retention::default()),
            sweep_interval: Duration::from_mins(1),
            any_keys: false,
            tagged_keys: false,
        }
    }
}

/// A handle on one partition of a ledger; clones share it.
#[derive(Clone)]
pub(crate) struct RedisPartition {
    shared: Arc<Shared>,
    appends: mpsc::Sender<PendingAppend>,
}

impl std::fmt::Debug for RedisPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("RedisPartition").field(&self.shared.common.describe).finish()
    }
}

/// What the handles and the background task share.
struct Shared {
    keyspace: Keyspace,
    /// The connection for reading, and for the follower's polls.
    reads: ConnectionManager,
    /// The connection for appends.
    writes: ConnectionManager,
    /// Locates the primary for both, and for the subscription.
    primary: PrimaryLocator,
    /// What all partitions of the ledger share.
    common: Arc<Common>,
    /// The ledger's identity, as last read.
    identity: RwLock<Option<Arc<Identity>>>,
    /// The durability status, as last read.
    durability_status: RwLock<DurabilityStatus>,
    /// The server whose configuration was last checked.
    checked_server: Mutex<Option<CheckedServer>>,
    /// Keys that were evicted or deleted, as far as known.
    missing_keys: Mutex<MissingKeys>,
    /// The server that was found to sync its append-only file before it confirms.
    fsync_proof: tokio::sync::Mutex<Option<fsync_check::FsyncProof>>,
    /// The clock of the partition's server.
    known_clock: KnownClock,
    /// Bounds the reads of histories that are under way.
    history_reads: tokio::sync::Semaphore,
    /// Made when the partition is first listened to.
    announcements: OnceLock<broadcast::Sender<Notification>>,
    /// The businesses of which buckets and log entries are decoded.
    held: RwLock<Businesses>,
    /// The number of appends that the ACL does not permit to announce.
    unannounced: AtomicU64,
}

/// What all partitions of a ledger share.
#[derive(Clone)]
struct Common {
    servers: Arc<Servers>,
    options: Options,
    describe: String,
    /// How the ledger is divided, once that is known.
    layout: OnceLock<Layout>,
    /// Which ledger each partition was found to belong to.
    origins: Arc<Origins>,
    subscriptions: Arc<Subscriptions>,
    /// Bounds the partitions that are loaded at once.
    loads: Arc<tokio::sync::Semaphore>,
    /// Cancelled when the ledger is to be closed.
    closing: CancellationToken,
}

impl Common {
    /// The number of partitions; 1 while it is not known.
    fn partitions(&self) -> u32 {
        self.layout.get().map_or(1, |layout| layout.partitions())
    }
}

impl RedisPartition {
    /// A handle on the partition with this number of a ledger with this layout, and its background task, without
    /// which nothing is appended. Connects with the first command.
    fn new(common: Arc<Common>, number: u32, layout: Layout) -> (Self, PartitionTask) {
        let keyspace = Keyspace::of(number, layout);
        let primary = PrimaryLocator::new(Arc::clone(&common.servers), keyspace.slot());
        let timeouts = Timeouts::default();
        // A reply that waits for replicas comes later; `send_pipeline` has a timeout of its own.
        let write_timeouts =
            Timeouts { response: pipeline::response_timeout(&common.options), ..timeouts };
        let (appends, waiting) = mpsc::channel(MAX_WAITING);
        let shared = Arc::new(Shared {
            keyspace,
            reads: ConnectionManager::to(primary.clone(), Purpose::Reading, timeouts),
            writes: ConnectionManager::to(primary.clone(), Purpose::Writing, write_timeouts),
            primary,
            common,
            identity: RwLock::new(None),
            durability_status: RwLock::default(),
            checked_server: Mutex::default(),
            missing_keys: Mutex::default(),
            fsync_proof: tokio::sync::Mutex::default(),
            known_clock: KnownClock::default(),
            history_reads: tokio::sync::Semaphore::new(MAX_READS),
            announcements: OnceLock::new(),
            held: RwLock::default(),
            unannounced: AtomicU64::new(0),
        });
        let task = PartitionTask::new(Arc::clone(&shared), waiting);
        (Self { shared, appends }, task)
    }

    /// The number of appends of this process that Redis' ACL did not permit to announce. Followers find
    /// them by their polls.
    #[must_use]
    pub(crate) fn unannounced(&self) -> u64 {
        self.shared.unannounced.load(Ordering::Relaxed)
    }

    pub(super) fn hold(&self, businesses: Businesses) {
        *self.shared.held.write().unwrap_or_else(PoisonError::into_inner) = businesses;
    }

    pub(super) fn reconnect_appends(&self) {
        self.shared.writes.reconnect();
    }

    pub(super) fn durability(&self) -> DurabilityStatus {
        let status = self.shared.durability_status.read().unwrap_or_else(PoisonError::into_inner);
        self.shared.status_with_missing_keys(status.clone())
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Notification> {
        let shared = &self.shared;
        let partitions = usize::try_from(shared.common.partitions());
        let capacity = partitions.map_or(1, |count| MAX_ANNOUNCEMENTS / count);
        let capacity = capacity.max(MIN_ANNOUNCEMENTS);
        let announcements = shared.announcements.get_or_init(|| broadcast::Sender::new(capacity));
        let receiver = announcements.subscribe();
        let (channel, primary) = (&shared.keyspace.channel, shared.primary.clone());
        let sink = Arc::new(AnnouncementSink::new(shared));
        shared.common.subscriptions.add(channel, primary, sink);
        receiver
    }
}

impl Shared {
    fn check_open(&self) -> Result<(), LedgerError> {
        if self.common.closing.is_cancelled() { Err(LedgerError::Closed) } else { Ok(()) }
    }

    /// The businesses of which buckets and log entries are decoded.
    fn held(&self) -> Businesses {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn known_identity(&self) -> Option<Arc<Identity>> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses keys that were made by another reading of user ids than this program's.
    fn check_keys(&self, secret: &StoredSecret) -> Result<(), RedisFailure> {
        let version = secret.key_version;
        let refusal = match version {
            _ if self.common.options.any_keys => return Ok(()),
            OLDEST_KEY_VERSION..TAGGED_KEY_VERSION if self.common.options.tagged_keys => {
                RedisRejection::UntaggedKeys { version, from: self.common.describe.as_str().into() }
            }
            OLDEST_KEY_VERSION..=KEY_VERSION => return Ok(()),
            ..OLDEST_KEY_VERSION => {
                RedisRejection::OlderKeys { version, from: self.common.describe.as_str().into() }
            }
            _ => RedisRejection::NewerKeys { version },
        };
        Err(RedisFailure::Rejected(refusal))
    }

    /// Remembers the identity in a reply, and returns the same value for as long as the epoch is the
    /// same.
    fn remember(
        &self,
        epoch: Epoch,
        secret: &StoredSecret,
        layout: Layout,
        buckets: u32,
    ) -> Arc<Identity> {
        if let Some(known) = self.known_identity().filter(|known| known.epoch == epoch) {
            return known;
        }
        let new = Arc::new(secret.identity(epoch, layout, buckets));
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&new));
        new
    }

    /// Forgets the identity if it has this epoch, so that it is read again.
    fn forget(&self, epoch: Epoch) {
        self.forget_if(|known| known.epoch == epoch);
    }

    /// Forgets the identity if it is outdated, so that it is read again. Compares it under the lock, because
    /// another task may just have stored a newer one.
    fn forget_if(&self, is_outdated: impl FnOnce(&Identity) -> bool) {
        let mut identity = self.identity.write().unwrap_or_else(PoisonError::into_inner);
        if identity.as_ref().is_some_and(|known| is_outdated(known)) {
            *identity = None;
        }
    }

    /// Converts a failure of a command for the ledger of this epoch. Forgets the identity if the ledger
    /// is missing or has been replaced.
    fn convert_failure_for(&self, epoch: Epoch, failure: RedisFailure) -> LedgerError {
        if matches!(
            failure,
            RedisFailure::Rejected(RedisRejection::Replaced | RedisRejection::Missing)
        ) {
            self.forget(epoch);
        }
        self.convert_failure(failure)
    }
}

/// Whether an operator must act before a retry can succeed.
pub(super) fn needs_an_operator(why: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let denied = matches!(
        why.downcast_ref(),
        Some(
            RedisRejection::Denied { .. }
                | RedisRejection::OlderKeys { .. }
                | RedisRejection::UntaggedKeys { .. }
                | RedisRejection::NewerKeys { .. }
        )
    );
    let connecting =
        why.downcast_ref::<ConnectionError>().is_some_and(ConnectionError::needs_an_operator);
    denied || connecting || why.is::<UnsupportedServer>()
}
