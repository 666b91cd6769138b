//! Locates the primary: at a fixed address, or by a majority of the Sentinels or of a Cluster's nodes.
//!
//! A proof of the primary is an answer by a majority to a question that was asked after the event that is to
//! be proven. Polls and appends share the rounds of questions: one round runs at a time, and its answer
//! serves all callers that had asked before the round began.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::credentials::Credentials;
use super::handshake::{ConnectionError, Handshake, Handshaken, ServerKind};
use super::quorum::{Electorate, Quorum};
use super::resp::{Reply, RespConnection};
use super::url::{Address, Endpoint, Target};
use crate::redis::keyspace::SLOT;

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
}

/// Locates one target's primary. All connections share it, and with it the connections to those that name
/// the primary.
pub(crate) struct PrimaryLocator {
    target: Arc<Target>,
    location: Location,
    rounds: Rounds,
    /// The primary that a majority named last; `None` at a fixed address.
    named: watch::Sender<Option<Primary>>,
}

/// How the primary is located.
enum Location {
    /// It is the server at this address.
    Fixed(Address),
    /// It is the server that a majority names.
    Named(Quorum),
}

/// Rounds of questions, one at a time.
#[derive(Default)]
struct Rounds {
    /// The number of rounds that have begun.
    begun: AtomicU64,
    /// Held while a round runs.
    turn: tokio::sync::Mutex<()>,
    /// The last completed round: its number, and its answer.
    last: Mutex<Option<(u64, Result<Primary, ConnectionError>)>>,
}

impl PrimaryLocator {
    pub(crate) fn new(target: Arc<Target>) -> Self {
        let tls = target.tls.clone();
        let location = match &target.endpoint {
            Endpoint::Server(address) => Location::Fixed(address.clone()),
            Endpoint::Sentinels { sentinels, master, credentials } => {
                let electorate = Electorate::Sentinels { master: master.clone() };
                let sentinels = sentinels.clone();
                Location::Named(Quorum::new(sentinels, electorate, credentials.clone(), tls))
            }
            Endpoint::Cluster(nodes) => {
                let electorate = Electorate::Cluster { slot: SLOT };
                let credentials = target.credentials.clone();
                Location::Named(Quorum::new(nodes.clone(), electorate, credentials, tls))
            }
        };
        let (rounds, named) = (Rounds::default(), watch::Sender::new(None));
        Self { target, location, rounds, named }
    }

    /// Opens a new connection to the primary, and returns it with what the primary is.
    pub(crate) async fn connect(
        &self,
        within: Duration,
    ) -> Result<(RespConnection, Primary), ConnectionError> {
        let quorum = match &self.location {
            Location::Fixed(address) => {
                let resp = self.handshake(address).run(within).await?.resp;
                return Ok((resp, address.clone().into()));
            }
            Location::Named(quorum) => quorum,
        };
        let deadline = Instant::now() + within;
        // At most half of the time is for those that name the primary.
        let primary = Box::pin(self.ask(quorum, within / 2)).await?;
        let handshake = self.handshake(&primary.address);
        let left = deadline.saturating_duration_since(Instant::now()).max(within / 4);
        let Handshaken { mut resp, primary: says_primary } = handshake.run(left).await?;
        if says_primary != Some(true) {
            let (address, voters) = (primary.address, quorum.electorate().voters());
            return Err(ConnectionError::NotPrimary { address, voters });
        }
        if let Some(term) = &primary.term {
            let asked = tokio::time::timeout(left, node_id(&mut resp, &handshake)).await;
            let late =
                |_| ConnectionError::TimedOut { address: primary.address.clone(), after: left };
            if asked.map_err(late)?? != term.node {
                return Err(ConnectionError::OtherNode { address: primary.address });
            }
        }
        Ok((resp, primary))
    }

    /// The target whose primary this locates.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The parameters of a connection to this address.
    pub(crate) fn handshake<'a>(&'a self, address: &'a Address) -> Handshake<'a> {
        let credentials: &Credentials = &self.target.credentials;
        let tls = self.target.tls.as_ref();
        let kind = if matches!(self.target.endpoint, Endpoint::Cluster(_)) {
            ServerKind::ClusterNode
        } else {
            ServerKind::Redis(self.target.database)
        };
        Handshake { address, credentials, tls, kind }
    }

    /// Proves that this is still the primary, in the same term: if others name the primary, a majority of
    /// them names this one, and was asked after this call began. Waits for two rounds at most: one that is
    /// already running, and its own.
    pub(crate) async fn confirm(
        &self,
        primary: &Primary,
        within: Duration,
    ) -> Result<(), ConnectionError> {
        let Location::Named(quorum) = &self.location else { return Ok(()) };
        let now = Box::pin(self.ask(quorum, within)).await?;
        if now.is_same(primary) { Ok(()) } else { Err(moved(quorum, primary, now)) }
    }

    /// The error of a connection to this server, if another one is the primary by now.
    pub(crate) fn moved_error(&self, primary: &Primary) -> Option<ConnectionError> {
        let Location::Named(quorum) = &self.location else { return None };
        Some(moved(quorum, primary, self.successor_of(primary)?))
    }

    /// The primary, by a round of questions that begins after this call.
    async fn ask(&self, quorum: &Quorum, within: Duration) -> Result<Primary, ConnectionError> {
        let before = self.rounds.begun.load(Ordering::SeqCst);
        let _turn = self.rounds.turn.lock().await;
        {
            let last = self.rounds.last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((round, answer)) = &*last
                && *round > before
            {
                return answer.clone();
            }
        }
        let round = self.rounds.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let answer = quorum.primary(within).await;
        if let Ok(primary) = &answer {
            self.named.send_if_modified(|named| {
                let is_new = named.as_ref().is_none_or(|named| !named.is_same(primary));
                *named = Some(primary.clone());
                is_new
            });
        }
        let mut last = self.rounds.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((round, answer.clone()));
        answer
    }

    /// The primary that a majority named last, if it is not this one.
    pub(crate) fn successor_of(&self, primary: &Primary) -> Option<Primary> {
        let named = self.named.borrow();
        named.as_ref().filter(|named| !named.is_same(primary)).cloned()
    }

    /// Waits until a majority names another primary than this one; for ever at a fixed address.
    pub(crate) fn wait_until_moved(
        &self,
        primary: Primary,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut named = self.named.subscribe();
        async move {
            let other =
                |named: &Option<Primary>| named.as_ref().is_some_and(|it| !it.is_same(&primary));
            if named.wait_for(other).await.is_err() {
                // The locator was dropped: no other primary will be named.
                std::future::pending::<()>().await;
            }
        }
    }
}

fn moved(quorum: &Quorum, primary: &Primary, now: Primary) -> ConnectionError {
    let (address, voters) = (primary.address.clone(), quorum.electorate().voters());
    ConnectionError::Moved { address, voters, now: now.address }
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
