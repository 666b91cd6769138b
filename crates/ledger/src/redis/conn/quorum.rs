//! The primary by a majority (quorum) of those that know it: the Sentinels, or the nodes of a Cluster.
//!
//! A voter that is cut off from the others goes on naming the primary that it knew. Therefore all of them
//! are asked, including those that only other voters name, and more than half of all known ones must
//! agree. Voters are identified by their own ids, because one may have several addresses.
//!
//! Two majorities of the same voters have one in common. So if an append is acknowledged only after a
//! majority, asked afterwards, has named its server, a poll of a former primary can never be confirmed
//! later: the common voter does not go back to a former primary, except in a new term. That does not hold
//! if voters are exchanged for others while some are cut off, which only an operator can do.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::credentials::Credentials;
use super::error::ConnectionError;
use super::handshake::{Handshake, ServerKind};
use super::pool::multiplexed;
use super::primary::{Primary, Timeouts};
use super::round::Round;
use super::url::Address;
use super::{cluster, sentinel};
use consentd_tls::ClientFiles;

/// The maximum number of voters that are asked in a round. All known ones count for the majority, asked or not.
const MAX_VOTERS: usize = 128;

/// After how many consecutive unanswered questions a connection is closed. A distant voter may always be
/// slower than the majority, and must not be reconnected each time; one that hangs must be.
const MAX_UNANSWERED: u32 = 4;

/// Those that decide which server is the primary.
#[derive(Clone, Debug)]
pub(crate) enum Electorate {
    /// The Sentinels of the primary with this name.
    Sentinels {
        /// The primary's name at the Sentinels.
        master: String,
    },
    /// The nodes of a Cluster. The primary of a slot is its owner.
    Cluster,
}

impl Electorate {
    /// The plural of what its voters are called.
    pub(crate) fn voters(&self) -> &'static str {
        match self {
            Self::Sentinels { .. } => "Sentinels",
            Self::Cluster => "nodes of the Cluster",
        }
    }

    /// What they are asked for.
    fn sought(&self, slot: u16) -> String {
        match self {
            Self::Sentinels { master } => format!("one primary for {master}"),
            Self::Cluster => format!("one owner of the ledger's slot {slot}"),
        }
    }

    fn server_kind(&self) -> ServerKind {
        match self {
            Self::Sentinels { .. } => ServerKind::Sentinel,
            Self::Cluster => ServerKind::ClusterNode,
        }
    }

    /// The commands that ask one voter.
    fn question(&self) -> redis::Pipeline {
        match self {
            Self::Sentinels { master } => sentinel::question(master),
            Self::Cluster => cluster::question(),
        }
    }

    /// Reads one voter's reply about these slots.
    fn answer(
        &self,
        replies: &[Value],
        slots: &BTreeSet<u16>,
        handshake: &Handshake<'_>,
    ) -> Result<Answer, ConnectionError> {
        match self {
            Self::Sentinels { .. } => sentinel::answer(replies, slots, handshake),
            Self::Cluster => cluster::answer(replies, slots, handshake),
        }
    }

    /// The error if every voter answers that there is no such primary.
    fn unknown(&self, slot: u16) -> ConnectionError {
        match self {
            Self::Sentinels { master } => ConnectionError::UnknownMaster { master: master.clone() },
            Self::Cluster => ConnectionError::UncoveredSlot { slot },
        }
    }
}

/// How long a round goes on for the slots that have no majority yet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Patience {
    /// Until all voters have answered, or the time is over.
    UntilAll,
    /// For [`GRACE`] after a majority has answered.
    UntilMajority,
}

/// How long voters that disagree may take to agree, once a majority has answered.
const GRACE: Duration = Duration::from_millis(20);

/// The result of a round of questions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Votes {
    /// The primary that a majority names, of each slot that has one.
    pub(crate) primaries: BTreeMap<u16, Arc<Primary>>,
    /// Why the other slots have none.
    pub(crate) failures: BTreeMap<u16, ConnectionError>,
}

impl Votes {
    /// The answer about a slot; `None` if it was not asked about.
    pub(crate) fn of(&self, slot: u16) -> Option<Result<Arc<Primary>, ConnectionError>> {
        match self.primaries.get(&slot) {
            Some(primary) => Some(Ok(Arc::clone(primary))),
            None => self.failures.get(&slot).cloned().map(Err),
        }
    }
}

/// The voters about one primary, and the connections to them, kept between questions.
pub(crate) struct Quorum {
    configured: Vec<Address>,
    electorate: Electorate,
    credentials: Credentials,
    tls: Option<ClientFiles>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The addresses of the voters that answered in the last round or were named then.
    named: BTreeSet<Address>,
    connections: BTreeMap<Address, VoterConnection>,
    /// The number of voters that were known in the last round with a majority.
    total: usize,
}

#[derive(Clone)]
struct VoterConnection {
    redis: MultiplexedConnection,
    _driver: Arc<AbortOnDropHandle<()>>,
    /// The number of consecutive questions that it did not answer before the round ended.
    unanswered: u32,
}

/// The answer of one of those that were asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Answer {
    /// Its id.
    pub(super) id: String,
    /// The primary that it names of each slot, as far as it knows one.
    pub(super) primaries: BTreeMap<u16, Arc<Primary>>,
    /// The other voters that it knows: their ids and addresses.
    pub(super) others: Vec<(String, Address)>,
}

impl Quorum {
    pub(crate) fn new(
        configured: Vec<Address>,
        electorate: Electorate,
        credentials: Credentials,
        tls: Option<ClientFiles>,
    ) -> Self {
        Self { configured, electorate, credentials, tls, known: Mutex::default() }
    }

    /// Those that are asked.
    pub(crate) fn electorate(&self) -> &Electorate {
        &self.electorate
    }

    /// The number of voters that were known in the last round with a majority.
    pub(crate) fn voters(&self) -> usize {
        self.known().total
    }

    /// Asks all voters, and returns the primaries that a majority names of these slots.
    pub(crate) async fn votes(
        &self,
        slots: &BTreeSet<u16>,
        within: Duration,
        patience: Patience,
    ) -> Votes {
        let mut deadline = Instant::now() + within;
        let mut asked: BTreeSet<Address> = self.configured.iter().cloned().collect();
        asked.extend(self.known().named.iter().cloned());
        let mut asking: FuturesUnordered<
            BoxFuture<'_, (Address, Result<Answer, ConnectionError>)>,
        > = asked
            .iter()
            .map(|address| self.question_with_address(address.clone(), slots, within))
            .collect();
        // A voter that was reset may have forgotten the others, and a node of a Cluster that has lost its
        // configuration takes itself for the whole Cluster.
        let known = match self.electorate {
            Electorate::Sentinels { .. } => 0,
            Electorate::Cluster => self.known().total,
        };
        let min_total = self.configured.len().max(known);
        let mut round = Round { min_total, ..Round::default() };
        let mut votes = Votes::default();
        let mut is_majority = false;
        // Voters that have not answered by the deadline count as failed.
        while let Ok(Some((address, answer))) = timeout_at(deadline, asking.next()).await {
            match answer {
                Err(error) => {
                    self.known().connections.remove(&address);
                    round.failure = Some(Arc::new(error));
                }
                Ok(answer) => {
                    round.heard.insert(address);
                    for (_, other) in &answer.others {
                        if asked.len() < MAX_VOTERS && asked.insert(other.clone()) {
                            asking.push(self.question_with_address(other.clone(), slots, within));
                        }
                    }
                    round.add(answer);
                }
            }
            let unsettled = slots.iter().filter(|slot| !votes.primaries.contains_key(slot));
            let agreed = unsettled.filter_map(|slot| Some((*slot, round.agreed(*slot)?)));
            let agreed: Vec<_> = agreed.collect();
            votes.primaries.extend(agreed);
            if votes.primaries.len() == slots.len() {
                break;
            }
            if patience == Patience::UntilMajority && !is_majority && round.is_majority() {
                is_majority = true;
                deadline = deadline.min(Instant::now() + GRACE);
            }
        }
        let has_majority = !votes.primaries.is_empty();
        self.remember(&round, &asked, has_majority);
        if has_majority {
            self.known().total = round.voters();
        }
        let is_over = round.failure.is_none() && asking.is_empty();
        drop(asking);
        for slot in slots.iter().filter(|slot| !votes.primaries.contains_key(slot)) {
            let failure = if is_over && round.is_unknown(*slot) {
                self.electorate.unknown(*slot)
            } else {
                self.no_majority(*slot, &round, &asked, within)
            };
            votes.failures.insert(*slot, failure);
        }
        votes
    }

    /// The error about a slot without a majority.
    fn no_majority(
        &self,
        slot: u16,
        round: &Round,
        asked: &BTreeSet<Address>,
        within: Duration,
    ) -> ConnectionError {
        let failure = round.failure.clone().or_else(|| {
            let address =
                asked.iter().find(|address| !self.known().connections.contains_key(address))?;
            let late = ConnectionError::TimedOut { address: address.clone(), after: within };
            Some(Arc::new(late))
        });
        ConnectionError::NoMajority {
            voters: self.electorate.voters(),
            sought: self.electorate.sought(slot),
            total: round.total(),
            answered: round.answers.len(),
            agreed: round.best(slot).map_or(0, |(_, votes)| votes),
            failure,
        }
    }

    fn question_with_address<'a>(
        &'a self,
        address: Address,
        slots: &'a BTreeSet<u16>,
        within: Duration,
    ) -> BoxFuture<'a, (Address, Result<Answer, ConnectionError>)> {
        Box::pin(async move {
            let answer = self.question(&address, slots, within).await;
            (address, answer)
        })
    }

    /// Asks one server over its connection, or over a new one.
    async fn question(
        &self,
        address: &Address,
        slots: &BTreeSet<u16>,
        within: Duration,
    ) -> Result<Answer, ConnectionError> {
        let handshake = Handshake {
            address,
            credentials: &self.credentials,
            tls: self.tls.as_ref(),
            kind: self.electorate.server_kind(),
        };
        let kept = self.known().connections.get(address).cloned();
        let is_kept = kept.is_some();
        let connection = match kept {
            Some(connection) => connection,
            None => self.connect(&handshake, within).await?,
        };
        match self.send_question(connection, slots, &handshake, within).await {
            // A kept connection may have been closed long ago: a new one shows whether the server works.
            Err(ConnectionError::Closed { .. }) if is_kept => {
                let connection = self.connect(&handshake, within).await?;
                self.send_question(connection, slots, &handshake, within).await
            }
            answer => answer,
        }
    }

    async fn connect(
        &self,
        handshake: &Handshake<'_>,
        within: Duration,
    ) -> Result<VoterConnection, ConnectionError> {
        let resp = handshake.run(within).await?.resp;
        let timeouts = Timeouts { connect: within, response: within };
        let (redis, driver) = multiplexed(resp, handshake.address, timeouts, pending()).await?;
        let connection = VoterConnection { redis, _driver: Arc::new(driver), unanswered: 0 };
        self.known().connections.insert(handshake.address.clone(), connection.clone());
        Ok(connection)
    }

    /// Sends the question, and reads the answer.
    async fn send_question(
        &self,
        mut connection: VoterConnection,
        slots: &BTreeSet<u16>,
        handshake: &Handshake<'_>,
        within: Duration,
    ) -> Result<Answer, ConnectionError> {
        let mut question = self.electorate.question();
        question.ignore_errors();
        let failed = |error: RedisError| {
            let address = handshake.address.clone();
            if error.is_timeout() {
                ConnectionError::TimedOut { address, after: within }
            } else {
                ConnectionError::Closed { address }
            }
        };
        let replies: Vec<Value> =
            question.query_async(&mut connection.redis).await.map_err(failed)?;
        self.electorate.answer(&replies, slots, handshake)
    }

    /// Remembers the addresses that this round has named, and closes the connections to all servers that
    /// are neither named nor configured. Without a majority the former addresses are kept, because those
    /// that answered may have forgotten the others.
    fn remember(&self, round: &Round, asked: &BTreeSet<Address>, has_majority: bool) {
        let mut known = self.known();
        for (address, connection) in &mut known.connections {
            let is_unanswered = asked.contains(address) && !round.heard.contains(address);
            connection.unanswered = if is_unanswered { connection.unanswered + 1 } else { 0 };
        }
        known.connections.retain(|_, connection| connection.unanswered < MAX_UNANSWERED);
        if round.answers.is_empty() {
            return;
        }
        let others = round.answers.values().flat_map(|answer| &answer.others);
        let others = others.map(|(_, address)| address);
        let mut named: BTreeSet<_> = round.heard.iter().chain(others).cloned().collect();
        if !has_majority {
            named.extend(known.named.iter().cloned());
        }
        while named.len() > MAX_VOTERS {
            named.pop_last();
        }
        known
            .connections
            .retain(|address, _| named.contains(address) || self.configured.contains(address));
        known.named = named;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reply's text.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}
