//! Locates the primary of a slot: at a fixed address, or by a majority of the Sentinels or of a Cluster's
//! nodes.
//!
//! A proof of the primary is an answer by a majority to a question that was asked after the event that is to
//! be proven. Polls and appends of all partitions share the rounds of questions: one round runs at a time, and
//! its answer serves all callers that had asked before the round began, about every slot.
//!
//! A slot without a majority is asked about in rounds of its own, which may take long, until it has one again:
//! otherwise the appends of all other partitions would wait for the nodes of a shard that is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::credentials::Credentials;
use super::error::ConnectionError;
use super::handshake::{Handshake, Handshaken, ServerKind};
use super::pool::ConnectionPool;
use super::quorum::{Electorate, Patience, Quorum, Votes};
use super::resp::{Reply, RespConnection};
use super::url::{Address, Endpoint, Target};
use crate::redis::server_info::Topology;

/// The interval between the beginnings of two rounds in a Cluster of up to [`NODES_PER_INTERVAL`] nodes. A round
/// asks every node, so that a node answers at most one question of each recorder in an interval, however many
/// appends there are. Appends that wait meanwhile share the next round.
const ROUND_INTERVAL: Duration = Duration::from_millis(2);

/// In a larger Cluster the interval is longer in proportion, because an answer is: it has a line for each node.
const NODES_PER_INTERVAL: u32 = 8;

/// Timeouts of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// From the first packet, or the first question to a Sentinel, to the end of the handshake.
    pub(crate) connect: Duration,
    /// From a command to its reply.
    pub(crate) response: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(1), response: Duration::from_secs(1) }
    }
}

/// The term of a node of a Cluster as the owner of a slot. A node that lost the slot and got it back has a
/// later one.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Term {
    /// The node's id.
    pub(crate) node: String,
    /// Its config epoch.
    pub(crate) epoch: u64,
}

/// The primary as it is named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Primary {
    pub(crate) address: Address,
    /// Its term in a Cluster; `None` otherwise.
    pub(crate) term: Option<Term>,
}

impl From<Address> for Primary {
    fn from(address: Address) -> Self {
        Self { address, term: None }
    }
}

impl Primary {
    /// Whether both are one server in one term, by whatever address.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.term, &other.term) {
            (None, None) => self.address == other.address,
            (own, other) => own == other,
        }
    }

    /// Whether both are one server, in whatever term.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        match (&self.term, &other.term) {
            (Some(own), Some(other)) => own.node == other.node,
            _ => self.address == other.address,
        }
    }
}

/// The slots that are sought, and the primaries that were named last.
pub(crate) type Named = BTreeMap<u16, Arc<Primary>>;

/// The servers of one target: which of them is the primary of which slot, and the connections to them. All
/// partitions of a ledger share them.
pub(crate) struct Servers {
    target: Arc<Target>,
    location: Location,
    /// Slots that had a majority when they were last asked about, and those that had none.
    lanes: [Lane; 2],
    /// The primary that a majority named last for each slot; empty at a fixed address.
    named: watch::Sender<Named>,
    pub(super) pool: ConnectionPool,
}

/// How the primary is located.
enum Location {
    /// It is the server at this address.
    Fixed(Arc<Primary>),
    /// It is the server that a majority names.
    Named(Box<Quorum>),
}

/// Rounds of questions about some slots, one at a time.
#[derive(Default)]
struct Lane {
    /// The slots that are asked about.
    slots: Mutex<BTreeSet<u16>>,
    /// The number of rounds that have begun.
    begun: AtomicU64,
    /// When the last round began. It is held while a round runs.
    turn: tokio::sync::Mutex<Option<Instant>>,
    /// The last completed round: its number, and its answers.
    last: Mutex<Option<(u64, Votes)>>,
}

/// The lane of the slots that have a majority.
const SETTLED: usize = 0;
/// The lane of those that have none.
const UNSETTLED: usize = 1;

impl Servers {
    pub(crate) fn new(target: Target) -> Arc<Self> {
        let tls = target.tls.clone();
        let location = match &target.endpoint {
            Endpoint::Server(address) => Location::Fixed(Arc::new(address.clone().into())),
            Endpoint::Sentinels { sentinels, master, credentials } => {
                let electorate = Electorate::Sentinels { master: master.clone() };
                let sentinels = sentinels.clone();
                let quorum = Quorum::new(sentinels, electorate, credentials.clone(), tls);
                Location::Named(Box::new(quorum))
            }
            Endpoint::Cluster(nodes) => {
                let credentials = target.credentials.clone();
                let quorum = Quorum::new(nodes.clone(), Electorate::Cluster, credentials, tls);
                Location::Named(Box::new(quorum))
            }
        };
        let (lanes, named) = (Default::default(), watch::Sender::new(Named::new()));
        let (target, pool) = (Arc::new(target), ConnectionPool::default());
        Arc::new(Self { target, location, lanes, named, pool })
    }

    /// The target that these are the servers of.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The parameters of a connection to this address.
    pub(crate) fn handshake<'a>(&'a self, address: &'a Address) -> Handshake<'a> {
        let credentials: &Credentials = &self.target.credentials;
        let tls = self.target.tls.as_ref();
        let kind = if self.target.topology() == Topology::Cluster {
            ServerKind::ClusterNode
        } else {
            ServerKind::Redis(self.target.database)
        };
        Handshake { address, credentials, tls, kind }
    }

    /// The primaries as they were named last, and whenever that changes. At a fixed address there are none.
    pub(super) fn named(&self) -> watch::Receiver<Named> {
        self.named.subscribe()
    }

    /// Opens a connection to a primary, and makes sure that it is that server.
    pub(super) async fn open(
        &self,
        primary: &Primary,
        within: Duration,
    ) -> Result<RespConnection, ConnectionError> {
        let handshake = self.handshake(&primary.address);
        let Handshaken { mut resp, primary: says_primary } = handshake.run(within).await?;
        // Whether the server at a fixed address is a primary is checked with the rest of its configuration.
        let Location::Named(quorum) = &self.location else { return Ok(resp) };
        if says_primary != Some(true) {
            let (address, voters) = (primary.address.clone(), quorum.electorate().voters());
            return Err(ConnectionError::NotPrimary { address, voters });
        }
        if let Some(term) = &primary.term {
            let asked = tokio::time::timeout(within, node_id(&mut resp, &handshake)).await;
            let late =
                |_| ConnectionError::TimedOut { address: primary.address.clone(), after: within };
            if asked.map_err(late)?? != term.node {
                return Err(ConnectionError::OtherNode { address: primary.address.clone() });
            }
        }
        Ok(resp)
    }

    /// Waits until no slot's primary is this server any more; for ever at a fixed address.
    pub(super) fn wait_until_unnamed(
        &self,
        primary: Arc<Primary>,
    ) -> impl Future<Output = ()> + Send + use<> {
        wait_until(self.named.subscribe(), move |named| {
            !named.is_empty() && named.values().all(|one| !one.is_same_server(&primary))
        })
    }

    /// The primary of a slot, by a round of questions that begins after this call.
    async fn ask(
        &self,
        quorum: &Quorum,
        slot: u16,
        within: Duration,
    ) -> Result<Arc<Primary>, ConnectionError> {
        let number = usize::from(self.lanes[UNSETTLED].slots().contains(&slot));
        let lane = &self.lanes[number];
        let before = lane.begun.load(Ordering::SeqCst);
        let mut turn = lane.turn.lock().await;
        {
            let last = lane.last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((round, votes)) = &*last
                && *round > before
                && let Some(answer) = votes.of(slot)
            {
                return answer;
            }
        }
        if self.target.topology() == Topology::Cluster
            && let Some(begun) = *turn
        {
            let nodes = u32::try_from(quorum.voters()).unwrap_or(u32::MAX);
            let interval = ROUND_INTERVAL.saturating_mul(nodes.div_ceil(NODES_PER_INTERVAL).max(1));
            sleep_until(begun + interval).await;
        }
        let mut slots = lane.slots().clone();
        slots.insert(slot);
        // Alone in its lane, a slot holds up no other one.
        let is_settled = number == SETTLED && slots.len() > 1;
        let patience = if is_settled { Patience::UntilMajority } else { Patience::UntilAll };
        let round = lane.begun.fetch_add(1, Ordering::SeqCst) + 1;
        *turn = Some(Instant::now());
        let votes = quorum.votes(&slots, within, patience).await;
        self.named.send_if_modified(|named| {
            let mut is_changed = false;
            for (slot, primary) in &votes.primaries {
                let is_same = |known: &Arc<Primary>| known.is_same(primary);
                is_changed |= !named.get(slot).is_some_and(is_same);
                named.insert(*slot, Arc::clone(primary));
            }
            is_changed
        });
        self.settle(&slots, &votes);
        let answer = votes.of(slot);
        *lane.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((round, votes));
        // It was asked about.
        answer.unwrap_or(Err(ConnectionError::UncoveredSlot { slot }))
    }

    /// Sorts slots into their lanes by the votes about them.
    fn settle(&self, slots: &BTreeSet<u16>, votes: &Votes) {
        for slot in slots {
            let is_settled = votes.primaries.contains_key(slot);
            let (to, from) = if is_settled { (SETTLED, UNSETTLED) } else { (UNSETTLED, SETTLED) };
            self.lanes[to].slots().insert(*slot);
            self.lanes[from].slots().remove(slot);
        }
    }
}

impl Lane {
    fn slots(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Locates the primary of one slot.
#[derive(Clone)]
pub(crate) struct PrimaryLocator {
    servers: Arc<Servers>,
    slot: u16,
}

impl PrimaryLocator {
    /// A locator of the primary of this slot. Where there are no slots, all have the same primary.
    pub(crate) fn new(servers: Arc<Servers>, slot: u16) -> Self {
        let slot = if servers.target.topology() == Topology::Cluster { slot } else { 0 };
        if matches!(servers.location, Location::Named(_)) {
            servers.lanes[SETTLED].slots().insert(slot);
        }
        Self { servers, slot }
    }

    pub(crate) fn servers(&self) -> &Arc<Servers> {
        &self.servers
    }

    /// The target whose primary this locates.
    pub(crate) fn target(&self) -> &Target {
        &self.servers.target
    }

    /// The primary: what a majority, asked now, names.
    pub(super) async fn locate(&self, within: Duration) -> Result<Arc<Primary>, ConnectionError> {
        match &self.servers.location {
            Location::Fixed(primary) => Ok(Arc::clone(primary)),
            Location::Named(quorum) => Box::pin(self.servers.ask(quorum, self.slot, within)).await,
        }
    }

    /// The primary, as far as it is known without a question.
    pub(crate) fn known(&self) -> Option<Arc<Primary>> {
        match &self.servers.location {
            Location::Fixed(primary) => Some(Arc::clone(primary)),
            Location::Named(_) => self.servers.named.borrow().get(&self.slot).cloned(),
        }
    }

    /// Opens a new connection to the primary, and returns it with what the primary is.
    pub(crate) async fn connect(
        &self,
        within: Duration,
    ) -> Result<(RespConnection, Arc<Primary>), ConnectionError> {
        let begun = Instant::now();
        // At most half of the time is for those that name the primary.
        let primary = self.locate(within / 2).await?;
        let left = match &self.servers.location {
            // It took no time, and an error names the timeout as it was set.
            Location::Fixed(_) => within,
            Location::Named(_) => within.saturating_sub(begun.elapsed()).max(within / 4),
        };
        Ok((self.servers.open(&primary, left).await?, primary))
    }

    /// Proves that this is still the primary, in the same term: if others name the primary, a majority of
    /// them names this one, and was asked after this call began. Waits for two rounds at most: one that is
    /// already running, and its own.
    pub(crate) async fn confirm(
        &self,
        primary: &Primary,
        within: Duration,
    ) -> Result<(), ConnectionError> {
        let Location::Named(quorum) = &self.servers.location else { return Ok(()) };
        let now = self.locate(within).await?;
        if now.is_same(primary) { Ok(()) } else { Err(moved(quorum, primary, &now)) }
    }

    /// The error of a connection to this server, if another one is the primary by now.
    pub(crate) fn moved_error(&self, primary: &Primary) -> Option<ConnectionError> {
        let Location::Named(quorum) = &self.servers.location else { return None };
        Some(moved(quorum, primary, &*self.successor_of(primary)?))
    }

    /// The primary that a majority named last, if it is not this one.
    pub(crate) fn successor_of(&self, primary: &Primary) -> Option<Arc<Primary>> {
        let named = self.servers.named.borrow();
        named.get(&self.slot).filter(|named| !named.is_same(primary)).cloned()
    }

    /// Waits until a majority names another primary than this one; for ever at a fixed address.
    pub(crate) fn wait_until_moved(
        &self,
        primary: Arc<Primary>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let slot = self.slot;
        wait_until(self.servers.named.subscribe(), move |named| {
            named.get(&slot).is_some_and(|named| !named.is_same(&primary))
        })
    }
}

/// Waits until the primaries that are named meet a condition.
async fn wait_until(mut named: watch::Receiver<Named>, is_met: impl FnMut(&Named) -> bool) {
    if named.wait_for(is_met).await.is_err() {
        // The servers were dropped: no other primary will be named.
        std::future::pending::<()>().await;
    }
}

fn moved(quorum: &Quorum, primary: &Primary, now: &Primary) -> ConnectionError {
    let (address, voters) = (primary.address.clone(), quorum.electorate().voters());
    ConnectionError::Moved { address, voters, now: now.address.clone() }
}

/// The id of the node at the other end. An address that a node had may be another one's by now, even of
/// another Cluster.
async fn node_id(
    resp: &mut RespConnection,
    handshake: &Handshake<'_>,
) -> Result<String, ConnectionError> {
    let failed = |error| handshake.map_io_error(error);
    resp.send(&[vec![b"CLUSTER", b"MYID"]]).await.map_err(failed)?;
    match resp.reply().await.map_err(failed)? {
        Reply::Error(said) => Err(handshake.rejection("a question (CLUSTER MYID)", &said)),
        reply => reply.text().map(str::to_owned).ok_or_else(|| ConnectionError::NotRedis {
            address: handshake.address.clone(),
            hint: "",
        }),
    }
}
