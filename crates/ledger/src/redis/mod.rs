//! The ledger in Redis or Valkey: one primary, with or without replicas and Sentinels.
//!
//! What is where is in `keyspace`; what must be atomic is in `scripts/`. Those who read ask on one
//! connection, with answers in bounded parts. Those who write hand their changes to the
//! [`BackgroundTask`], which sends whatever waits together, on another.

mod admin;
mod append;
mod append_batch;
mod background;
mod conn;
mod error;
mod fsync_check;
mod history;
mod keyspace;
mod missing_keys;
mod read;
mod retention;
mod scripts;
mod server_check;
mod server_info;
mod statement_gc;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

pub use self::admin::{
    CreateError, Created, MAX_BUCKETS, NewRedis, Plan, RepairMode, Repaired, Status, create,
    inspect_server, plan,
};
use self::append::PendingAppend;
pub use self::background::BackgroundTask;
use self::conn::{ConnectionError, ConnectionManager, PrimaryLocator, Timeouts};
pub use self::conn::{InvalidTarget, Target, TargetError, TargetOptions};
use self::error::RedisFailure;
pub use self::error::RedisRejection;
use self::keyspace::Keyspace;
pub(crate) use self::keyspace::holds_statements;
use self::missing_keys::MissingKeys;
use self::server_check::CheckedServer;
pub use self::server_info::{
    Fsync, Persistence, ServerInfo, ServerInfoError, UnsupportedServer, Warning,
};
use super::{
    DurabilityStatus, Epoch, Identity, LedgerError, MAX_ANNOUNCEMENTS, Notification, Retention,
};
use consentd_core::id::KeySecret;

/// How many changes may wait to be appended; one more is answered [`LedgerError::Busy`].
const MAX_WAITING: usize = 8_192;

/// What an append waits for before it is acknowledged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Durability {
    /// What that Redis is configured for.
    Ledger,
    /// That so many replicas have it.
    Replicas(u32),
    /// That it is in the primary's append-only file, synced.
    Aof,
}

impl Durability {
    /// How long an append may wait for it: a file that is synced every second may take that long,
    /// and the sync itself comes on top.
    #[must_use]
    pub fn confirm_within(self) -> Duration {
        match self {
            Self::Ledger | Self::Replicas(_) => Duration::from_secs(1),
            Self::Aof => Duration::from_secs(3),
        }
    }
}

/// No sensible Redis has more replicas.
const MAX_REPLICAS: u32 = 100;

/// It is none of the three.
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
    /// How long it waits for that.
    pub confirm_within: Duration,
    /// How long a poll may take: a connection that is silent for longer is given up.
    pub poll_within: Duration,
    /// What is removed once it has outlived its time. Nothing, where nothing is to be written.
    pub retention: Option<Retention>,
    /// How often that is looked for.
    pub sweep_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Ledger,
            confirm_within: Durability::Ledger.confirm_within(),
            poll_within: Duration::from_secs(1),
            retention: Some(Retention::default()),
            sweep_interval: Duration::from_mins(1),
        }
    }
}

/// A handle on the ledger; clones share it.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
    appends: mpsc::Sender<PendingAppend>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Redis").field(&self.shared.describe).finish()
    }
}

struct Shared {
    keyspace: Keyspace,
    options: Options,
    describe: String,
    /// For reading, and for the follower's polls.
    reads: ConnectionManager,
    /// For appends.
    writes: ConnectionManager,
    /// The way that both go, and the announcements.
    route: Arc<PrimaryLocator>,
    /// What the ledger was when it was last asked.
    identity: RwLock<Option<Arc<Identity>>>,
    /// How well it keeps what it acknowledges, as last seen.
    standing: RwLock<DurabilityStatus>,
    looked: Mutex<Option<CheckedServer>>,
    /// What is known of keys that this Redis loses.
    losses: Mutex<MissingKeys>,
    /// Which server was found to sync before it confirms that it has.
    syncs: tokio::sync::Mutex<Option<fsync_check::FsyncProof>>,
    announcements: broadcast::Sender<Notification>,
    unannounced: AtomicU64,
    /// Nothing more is to be asked or appended.
    closing: CancellationToken,
    /// The driver has ended.
    closed: CancellationToken,
}

impl Redis {
    /// The ledger at `target`. Connects to nothing before it is asked something, or before the
    /// driver, without which nothing is appended or heard, is run.
    #[must_use]
    pub fn new(target: Target, options: Options) -> (Self, BackgroundTask) {
        let describe = target.describe().to_owned();
        let route = Arc::new(PrimaryLocator::new(Arc::new(target)));
        let timeouts = Timeouts::default();
        // One that waits for its replicas answers later; what is sent there has bounds of its own.
        let waiting_long = Timeouts { response: append_batch::answer_within(&options), ..timeouts };
        let (appends, waiting) = mpsc::channel(MAX_WAITING);
        let shared = Arc::new(Shared {
            keyspace: Keyspace::new(),
            options,
            describe,
            reads: ConnectionManager::on(Arc::clone(&route), timeouts),
            writes: ConnectionManager::on(Arc::clone(&route), waiting_long),
            route,
            identity: RwLock::new(None),
            standing: RwLock::default(),
            looked: Mutex::default(),
            losses: Mutex::default(),
            syncs: tokio::sync::Mutex::default(),
            announcements: broadcast::Sender::new(MAX_ANNOUNCEMENTS),
            unannounced: AtomicU64::new(0),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
        });
        let driver = BackgroundTask::new(Arc::clone(&shared), waiting);
        (Self { shared, appends }, driver)
    }

    /// How many appends were written that Redis does not permit to announce: followers find them
    /// by their polls.
    #[must_use]
    pub fn unannounced(&self) -> u64 {
        self.shared.unannounced.load(Ordering::Relaxed)
    }

    pub(super) fn reconnect_appends(&self) {
        self.shared.writes.renew();
    }

    pub(super) fn describe(&self) -> &str {
        &self.shared.describe
    }

    pub(super) fn durability(&self) -> DurabilityStatus {
        let standing = self.shared.standing.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.shared.standing_with_losses(standing)
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Notification> {
        self.shared.announcements.subscribe()
    }

    pub(super) async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.closed.cancelled().await;
    }
}

impl Shared {
    fn check_open(&self) -> Result<(), LedgerError> {
        if self.closing.is_cancelled() { Err(LedgerError::Closed) } else { Ok(()) }
    }

    fn known_identity(&self) -> Option<Arc<Identity>> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the ledger is by an answer of it: the same value for as long as it is the same ledger.
    fn remember(&self, epoch: Epoch, secret: &[u8; 16], buckets: u32) -> Arc<Identity> {
        if let Some(known) = self.known_identity().filter(|known| known.epoch == epoch) {
            return known;
        }
        let new = Arc::new(Identity { epoch, secret: KeySecret::new(secret), buckets });
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&new));
        new
    }

    /// Asks anew what the ledger is, next time, if it is taken for this one.
    fn forget(&self, epoch: Epoch) {
        let mut identity = self.identity.write().unwrap_or_else(PoisonError::into_inner);
        if identity.as_ref().is_some_and(|known| known.epoch == epoch) {
            *identity = None;
        }
    }

    /// What a failure means to a caller who took the ledger for that of `epoch`.
    fn failed(&self, epoch: Epoch, failure: RedisFailure) -> LedgerError {
        if matches!(
            failure,
            RedisFailure::Refused(RedisRejection::Replaced | RedisRejection::Missing)
        ) {
            self.forget(epoch);
        }
        self.noted(failure)
    }
}

/// Whether it takes an operator to mend what failed.
pub(super) fn needs_an_operator(why: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let denied = matches!(why.downcast_ref(), Some(RedisRejection::Denied { .. }));
    let at_link =
        why.downcast_ref::<ConnectionError>().is_some_and(ConnectionError::needs_an_operator);
    denied || at_link || why.is::<UnsupportedServer>()
}
