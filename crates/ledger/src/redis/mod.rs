//! The ledger in Redis or Valkey: one primary, with or without replicas and Sentinels.
//!
//! What is where is in `layout`; what must be atomic is in `scripts/`. Those who read ask on one
//! connection, with answers in bounded parts. Those who write hand their changes to the
//! [`Driver`], which sends whatever waits together, on another.

mod append;
mod backoff;
mod create;
mod dial;
mod driver;
mod erase;
mod fitness;
mod flight;
mod history;
mod layout;
mod link;
mod listen;
mod login;
mod losses;
mod operate;
mod read;
mod refusal;
mod retention;
mod route;
mod scripts;
mod sentinel;
mod standing;
mod sync;
mod target;
mod tls;
mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use self::append::Item;
pub use self::create::{CreateError, Created, MAX_BUCKETS, Plan, create, plan};
use self::dial::LinkError;
pub use self::driver::Driver;
pub use self::fitness::{Fitness, FitnessError, Fsync, Persistence, Unfit, Warning};
pub(crate) use self::layout::holds_statements;
use self::layout::{Names, PARTITION};
pub use self::layout::{announcement, channel};
use self::link::Link;
use self::losses::Losses;
pub use self::operate::{Mended, Mending, NewRedis, Status, look_at};
use self::refusal::Failure;
pub use self::refusal::RefusedBy;
use self::route::{Route, Timeouts};
use self::standing::Looked;
pub use self::target::{Target, TargetError, TargetOptions, WrongTarget};
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
    appends: mpsc::Sender<Item>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Redis").field(&self.shared.describe).finish()
    }
}

struct Shared {
    names: Names,
    options: Options,
    describe: String,
    /// For reading, and for the follower's polls.
    reads: Link,
    /// For appends.
    writes: Link,
    /// The way that both go, and the announcements.
    route: Arc<Route>,
    /// What the ledger was when it was last asked.
    identity: RwLock<Option<Arc<Identity>>>,
    /// How well it keeps what it acknowledges, as last seen.
    standing: RwLock<DurabilityStatus>,
    looked: Mutex<Option<Looked>>,
    /// What is known of keys that this Redis loses.
    losses: Mutex<Losses>,
    /// Which server was found to sync before it confirms that it has.
    syncs: tokio::sync::Mutex<Option<sync::Proven>>,
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
    pub fn new(target: Target, options: Options) -> (Self, Driver) {
        let describe = target.describe().to_owned();
        let route = Arc::new(Route::new(Arc::new(target)));
        let timeouts = Timeouts::default();
        // One that waits for its replicas answers later; what is sent there has bounds of its own.
        let waiting_long = Timeouts { response: flight::answer_within(&options), ..timeouts };
        let (appends, waiting) = mpsc::channel(MAX_WAITING);
        let shared = Arc::new(Shared {
            names: Names::of(PARTITION),
            options,
            describe,
            reads: Link::on(Arc::clone(&route), timeouts),
            writes: Link::on(Arc::clone(&route), waiting_long),
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
        let driver = Driver::new(Arc::clone(&shared), waiting);
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
    fn failed(&self, epoch: Epoch, failure: Failure) -> LedgerError {
        if matches!(failure, Failure::Refused(RefusedBy::Replaced | RefusedBy::Missing)) {
            self.forget(epoch);
        }
        self.noted(failure)
    }
}

/// Whether it takes an operator to mend what failed.
pub(super) fn needs_an_operator(why: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let denied = matches!(why.downcast_ref(), Some(RefusedBy::Denied { .. }));
    let at_link = why.downcast_ref::<LinkError>().is_some_and(LinkError::needs_an_operator);
    denied || at_link || why.is::<Unfit>()
}
