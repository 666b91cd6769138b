//! The primary by a majority (quorum) of the Sentinels.
//!
//! A Sentinel that is cut off from the others goes on naming the primary that it knew. Therefore all of them
//! are asked, including those that only other Sentinels name, and more than half of all known ones must
//! agree. Sentinels are identified by their own ids, because one may have several addresses.

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

use super::connection::multiplexed;
use super::credentials::Credentials;
use super::handshake::{ConnectionError, Handshake, ServerKind};
use super::primary::Timeouts;
use super::url::{Address, MAX_SENTINELS};
use consentd_tls::ClientFiles;

/// After how many consecutive unanswered questions a connection is closed. A distant Sentinel may always be
/// slower than the majority, and must not be reconnected each time; one that hangs must be.
const MAX_MISSED: u32 = 4;

/// The Sentinels of one primary, and the connections to them, kept between questions.
pub(crate) struct Sentinels {
    configured: Vec<Address>,
    master: String,
    credentials: Credentials,
    tls: Option<ClientFiles>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The addresses that other Sentinels named in the last round.
    named: BTreeSet<Address>,
    connections: BTreeMap<Address, SentinelConnection>,
}

#[derive(Clone)]
struct SentinelConnection {
    redis: MultiplexedConnection,
    _driver: Arc<AbortOnDropHandle<()>>,
    /// The number of consecutive questions that it did not answer before the round ended.
    missed: u32,
}

/// One Sentinel's answer.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Answer {
    /// The Sentinel's id.
    id: String,
    /// The primary's address; `None` if it does not know the name.
    primary: Option<Address>,
    /// The other Sentinels that it knows: their ids and addresses.
    others: Vec<(String, Address)>,
}

impl Sentinels {
    pub(crate) fn new(
        configured: Vec<Address>,
        master: String,
        credentials: Credentials,
        tls: Option<ClientFiles>,
    ) -> Self {
        Self { configured, master, credentials, tls, known: Mutex::default() }
    }

    /// Asks all Sentinels, and returns the primary that a majority names.
    pub(crate) async fn primary(&self, within: Duration) -> Result<Address, ConnectionError> {
        let deadline = Instant::now() + within;
        let mut asked: BTreeSet<Address> = self.configured.iter().cloned().collect();
        asked.extend(self.known().named.iter().cloned());
        let mut asking: FuturesUnordered<
            BoxFuture<'_, (Address, Result<Answer, ConnectionError>)>,
        > = asked.iter().map(|address| self.asking(address.clone(), within)).collect();
        let mut round = Round { configured: self.configured.len(), ..Round::default() };
        // Sentinels that have not answered by the deadline count as failed.
        while let Ok(Some((address, answer))) = timeout_at(deadline, asking.next()).await {
            match answer {
                Err(error) => {
                    self.known().connections.remove(&address);
                    round.failure = Some(Arc::new(error));
                }
                Ok(answer) => {
                    round.heard.insert(address);
                    for (_, other) in &answer.others {
                        if asked.len() < MAX_SENTINELS && asked.insert(other.clone()) {
                            asking.push(self.asking(other.clone(), within));
                        }
                    }
                    round.add(answer);
                }
            }
            if let Some(primary) = round.agreed() {
                self.remember(&round, &asked);
                return Ok(primary);
            }
        }
        self.remember(&round, &asked);
        if round.failure.is_none() && asking.is_empty() && round.is_unknown() {
            return Err(ConnectionError::UnknownMaster { master: self.master.clone() });
        }
        let failure = round.failure.take().or_else(|| {
            let address =
                asked.iter().find(|address| !self.known().connections.contains_key(address))?;
            let late = ConnectionError::TimedOut { address: address.clone(), after: within };
            Some(Arc::new(late))
        });
        Err(ConnectionError::NoMajority {
            master: self.master.clone(),
            total: round.total(),
            answered: round.answers.len(),
            agreed: round.best().map_or(0, |(_, votes)| votes),
            failure,
        })
    }

    fn asking(
        &self,
        address: Address,
        within: Duration,
    ) -> BoxFuture<'_, (Address, Result<Answer, ConnectionError>)> {
        Box::pin(async move {
            let answer = self.ask(&address, within).await;
            (address, answer)
        })
    }

    /// Asks one Sentinel over its connection, or over a new one.
    async fn ask(&self, address: &Address, within: Duration) -> Result<Answer, ConnectionError> {
        let handshake = Handshake {
            address,
            credentials: &self.credentials,
            tls: self.tls.as_ref(),
            kind: ServerKind::Sentinel,
        };
        let kept = self.known().connections.get(address).cloned();
        let is_kept = kept.is_some();
        let connection = match kept {
            Some(connection) => connection,
            None => self.connect(&handshake, within).await?,
        };
        match self.put(connection, &handshake, within).await {
            // A kept connection may have been closed long ago: a new one shows whether the Sentinel works.
            Err(ConnectionError::Closed { .. }) if is_kept => {
                let connection = self.connect(&handshake, within).await?;
                self.put(connection, &handshake, within).await
            }
            answer => answer,
        }
    }

    async fn connect(
        &self,
        handshake: &Handshake<'_>,
        within: Duration,
    ) -> Result<SentinelConnection, ConnectionError> {
        let resp = handshake.run(within).await?.resp;
        let timeouts = Timeouts { connect: within, response: within };
        let (redis, driver) = multiplexed(resp, handshake.address, timeouts, pending()).await?;
        let connection = SentinelConnection { redis, _driver: Arc::new(driver), missed: 0 };
        self.known().connections.insert(handshake.address.clone(), connection.clone());
        Ok(connection)
    }

    /// Sends the questions as one pipeline. SENTINEL needs permissions, so a rejection is reported as such.
    async fn put(
        &self,
        mut connection: SentinelConnection,
        handshake: &Handshake<'_>,
        within: Duration,
    ) -> Result<Answer, ConnectionError> {
        let mut questions = redis::pipe();
        questions.cmd("SENTINEL").arg("MYID");
        questions.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.master);
        questions.cmd("SENTINEL").arg("SENTINELS").arg(&self.master);
        questions.ignore_errors();
        let failed = |error: RedisError| {
            let address = handshake.address.clone();
            if error.is_timeout() {
                ConnectionError::TimedOut { address, after: within }
            } else {
                ConnectionError::Closed { address }
            }
        };
        let values: Vec<Value> =
            questions.query_async(&mut connection.redis).await.map_err(failed)?;
        let refused = |error: &redis::ServerError| {
            let said = format!("{} {}", error.code(), error.details().unwrap_or_default());
            handshake.rejection("a question (SENTINEL)", said.trim().as_bytes())
        };
        let not_sentinel =
            || ConnectionError::NotRedis { address: handshake.address.clone(), hint: "" };
        let [id, primary, others] = &values[..] else { return Err(not_sentinel()) };
        let id = match id {
            Value::ServerError(error) => return Err(refused(error)),
            id => text(id).ok_or_else(not_sentinel)?.to_owned(),
        };
        let primary = match primary {
            Value::ServerError(error) => return Err(refused(error)),
            Value::Nil => None,
            Value::Array(parts) => Some(address_of(parts).ok_or_else(not_sentinel)?),
            _ => return Err(not_sentinel()),
        };
        let others = match others {
            // The error is "No such master", as for the primary: it names no others.
            Value::ServerError(_) if primary.is_none() => Vec::new(),
            Value::ServerError(error) => return Err(refused(error)),
            Value::Array(others) => others.iter().filter_map(other).collect(),
            _ => return Err(not_sentinel()),
        };
        Ok(Answer { id, primary, others })
    }

    /// Remembers the addresses that this round has named, and closes the connections to all Sentinels that
    /// are neither named nor configured.
    fn remember(&self, round: &Round, asked: &BTreeSet<Address>) {
        let mut known = self.known();
        for (address, connection) in &mut known.connections {
            let is_missed = asked.contains(address) && !round.heard.contains(address);
            connection.missed = if is_missed { connection.missed + 1 } else { 0 };
        }
        known.connections.retain(|_, connection| connection.missed < MAX_MISSED);
        if round.answers.is_empty() {
            return;
        }
        let others = round.answers.values().flat_map(|answer| &answer.others);
        let named: BTreeSet<_> =
            others.map(|(_, address)| address.clone()).take(MAX_SENTINELS).collect();
        known
            .connections
            .retain(|address, _| named.contains(address) || self.configured.contains(address));
        known.named = named;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answers of a round so far.
#[derive(Default)]
struct Round {
    configured: usize,
    /// The answers by the Sentinels' ids.
    answers: BTreeMap<String, Answer>,
    /// The addresses that answered.
    heard: BTreeSet<Address>,
    failure: Option<Arc<ConnectionError>>,
}

impl Round {
    fn add(&mut self, answer: Answer) {
        self.answers.insert(answer.id.clone(), answer);
    }

    /// The number of known Sentinels: those that answered, and those that they name, but at least as many as
    /// are configured, because a Sentinel that is cut off may have forgotten the others.
    fn total(&self) -> usize {
        let others = self.answers.values().flat_map(|answer| &answer.others);
        let ids: BTreeSet<_> = self.answers.keys().chain(others.map(|(id, _)| id)).collect();
        ids.len().max(self.configured)
    }

    /// The address with the most votes, and their number.
    fn best(&self) -> Option<(Address, usize)> {
        let mut votes = BTreeMap::<&Address, usize>::new();
        for primary in self.answers.values().filter_map(|answer| answer.primary.as_ref()) {
            *votes.entry(primary).or_default() += 1;
        }
        let best = votes.into_iter().max_by_key(|(_, votes)| *votes);
        best.map(|(address, votes)| (address.clone(), votes))
    }

    /// The address that more than half of all known Sentinels name.
    fn agreed(&self) -> Option<Address> {
        let total = self.total();
        self.best().filter(|(_, votes)| votes * 2 > total).map(|(address, _)| address)
    }

    /// Whether none of the Sentinels that answered knows the name.
    fn is_unknown(&self) -> bool {
        !self.answers.is_empty() && self.answers.values().all(|answer| answer.primary.is_none())
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn address_of(parts: &[Value]) -> Option<Address> {
    let [host, port] = parts else { return None };
    let host = text(host).filter(|host| !host.is_empty())?;
    Some(Address::Tcp(host.into(), text(port)?.parse().ok()?))
}

/// Reads one entry of the reply to SENTINEL SENTINELS: a flat list of names and values.
fn other(entry: &Value) -> Option<(String, Address)> {
    let Value::Array(flat) = entry else { return None };
    let of = |name: &str| {
        flat.chunks(2).find_map(|pair| match pair {
            [key, value] if text(key) == Some(name) => text(value),
            _ => None,
        })
    };
    let address = Address::Tcp(of("ip")?.into(), of("port")?.parse().ok()?);
    // A Sentinel that has not been contacted yet has no id; its address stands in for it.
    let id = of("runid").filter(|id| !id.is_empty()).map(str::to_owned);
    Some((id.unwrap_or_else(|| address.to_string()), address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Address {
        Address::Tcp("10.0.0.1".into(), port)
    }

    fn poll(configured: usize, answers: &[(&str, Option<u16>, &[&str])]) -> Round {
        let mut round = Round { configured, ..Round::default() };
        for (id, primary, others) in answers {
            let others = others.iter().map(|other| ((*other).to_owned(), at(1))).collect();
            round.add(Answer { id: (*id).to_owned(), primary: primary.map(at), others });
        }
        round
    }

    #[test]
    fn only_more_than_half_of_all_known_decides() {
        // One of three, cut off with the old primary.
        assert_eq!(poll(1, &[("a", Some(1), &["b", "c"])]).agreed(), None);
        assert_eq!(
            poll(1, &[("a", Some(1), &["b", "c"]), ("b", Some(1), &["a", "c"])]).agreed(),
            Some(at(1))
        );
        // Two of four is no majority; nor are two that disagree.
        let four: &[&str] = &["a", "b", "c", "d"];
        assert_eq!(poll(1, &[("a", Some(1), four), ("b", Some(1), four)]).agreed(), None);
        let split = [("a", Some(1), &["b"][..]), ("b", Some(2), &["a"][..])];
        assert_eq!(poll(1, &split).agreed(), None);
        // One that has forgotten the others (SENTINEL RESET) counts as one of those configured.
        assert_eq!(poll(3, &[("a", Some(1), &[])]).agreed(), None);
        assert_eq!(poll(1, &[("a", Some(1), &[])]).agreed(), Some(at(1)));
        // One that answers at two addresses has one vote.
        let twice = [("a", Some(1), &["b", "c"][..]), ("a", Some(1), &["b", "c"][..])];
        assert_eq!(poll(2, &twice).agreed(), None);
        assert!(poll(1, &[("a", None, &[])]).is_unknown());
    }
}
