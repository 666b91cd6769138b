//! Where the primary is, as a majority of the Sentinels says.
//!
//! A Sentinel that is cut off from the others goes on naming the primary that it knew. So they are
//! all asked, those too that only other Sentinels name, and what counts is what more than half of
//! all known ones say. They are told apart by their own ids: one may be known by several addresses.

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
use super::tls::TlsFiles;
use super::url::{Address, MAX_SENTINELS};

/// After how many unanswered questions a connection is given up. A majority may always be quicker
/// than one that is far away, and one that hangs would be asked for ever.
const MAX_MISSED: u32 = 4;

/// The Sentinels of one primary, and the connections to them, kept between questions.
pub(crate) struct Sentinels {
    given: Vec<Address>,
    master: String,
    credentials: Credentials,
    tls: Option<TlsFiles>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Those that others have named, when they were last asked.
    named: BTreeSet<Address>,
    lines: BTreeMap<Address, Line>,
}

#[derive(Clone)]
struct Line {
    redis: MultiplexedConnection,
    _driver: Arc<AbortOnDropHandle<()>>,
    /// How many questions on end have gone unanswered while the others answered.
    missed: u32,
}

/// What one Sentinel says.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Answer {
    /// Its id.
    id: String,
    /// Where it says that the primary is; nothing where it does not know the name.
    primary: Option<Address>,
    /// The others: their ids and addresses.
    others: Vec<(String, Address)>,
}

impl Sentinels {
    /// Those at the given addresses, of whom nothing is asked yet.
    pub(crate) fn new(
        given: Vec<Address>,
        master: String,
        credentials: Credentials,
        tls: Option<TlsFiles>,
    ) -> Self {
        Self { given, master, credentials, tls, known: Mutex::default() }
    }

    /// Where a majority says that the primary is.
    pub(crate) async fn primary(&self, within: Duration) -> Result<Address, ConnectionError> {
        let deadline = Instant::now() + within;
        let mut asked: BTreeSet<Address> = self.given.iter().cloned().collect();
        asked.extend(self.known().named.iter().cloned());
        let mut asking: FuturesUnordered<
            BoxFuture<'_, (Address, Result<Answer, ConnectionError>)>,
        > = asked.iter().map(|address| self.asking(address.clone(), within)).collect();
        let mut poll = Poll { given: self.given.len(), ..Poll::default() };
        // At the deadline those still being asked have not answered, as if they had failed.
        while let Ok(Some((address, answer))) = timeout_at(deadline, asking.next()).await {
            match answer {
                Err(error) => {
                    self.known().lines.remove(&address);
                    poll.failure = Some(Arc::new(error));
                }
                Ok(answer) => {
                    poll.heard.insert(address);
                    for (_, other) in &answer.others {
                        if asked.len() < MAX_SENTINELS && asked.insert(other.clone()) {
                            asking.push(self.asking(other.clone(), within));
                        }
                    }
                    poll.add(answer);
                }
            }
            if let Some(primary) = poll.agreed() {
                self.remember(&poll, &asked);
                return Ok(primary);
            }
        }
        self.remember(&poll, &asked);
        if poll.failure.is_none() && asking.is_empty() && poll.nobody_knows() {
            return Err(ConnectionError::UnknownMaster { master: self.master.clone() });
        }
        let failure = poll.failure.take().or_else(|| {
            let address = asked.iter().find(|address| !self.known().lines.contains_key(address))?;
            let late = ConnectionError::TimedOut { address: address.clone(), after: within };
            Some(Arc::new(late))
        });
        Err(ConnectionError::NoMajority {
            master: self.master.clone(),
            total: poll.total(),
            answered: poll.answers.len(),
            agreed: poll.best().map_or(0, |(_, votes)| votes),
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

    /// Asks one, over the connection that there is, or a new one where there is none.
    async fn ask(&self, address: &Address, within: Duration) -> Result<Answer, ConnectionError> {
        let handshake = Handshake {
            address,
            credentials: &self.credentials,
            tls: self.tls.as_ref(),
            kind: ServerKind::Sentinel,
        };
        let kept = self.known().lines.get(address).cloned();
        let is_kept = kept.is_some();
        let line = match kept {
            Some(line) => line,
            None => self.connect(&handshake, within).await?,
        };
        match self.put(line, &handshake, within).await {
            // A kept connection may have ended long ago; a new one tells how the Sentinel is now.
            Err(ConnectionError::Closed { .. }) if is_kept => {
                let line = self.connect(&handshake, within).await?;
                self.put(line, &handshake, within).await
            }
            answer => answer,
        }
    }

    async fn connect(
        &self,
        handshake: &Handshake<'_>,
        within: Duration,
    ) -> Result<Line, ConnectionError> {
        let resp = handshake.open(within).await?.resp;
        let timeouts = Timeouts { connect: within, response: within };
        let (redis, driver) = multiplexed(resp, handshake.address, timeouts, pending()).await?;
        let line = Line { redis, _driver: Arc::new(driver), missed: 0 };
        self.known().lines.insert(handshake.address.clone(), line.clone());
        Ok(line)
    }

    /// The questions, at once. SENTINEL takes permissions, so a refusal is told as it is.
    async fn put(
        &self,
        mut line: Line,
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
        let values: Vec<Value> = questions.query_async(&mut line.redis).await.map_err(failed)?;
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
            // "No such master": it names none either.
            Value::ServerError(_) if primary.is_none() => Vec::new(),
            Value::ServerError(error) => return Err(refused(error)),
            Value::Array(others) => others.iter().filter_map(other).collect(),
            _ => return Err(not_sentinel()),
        };
        Ok(Answer { id, primary, others })
    }

    /// Keeps the addresses that were named just now, and connections to those and the given alone.
    fn remember(&self, poll: &Poll, asked: &BTreeSet<Address>) {
        let mut known = self.known();
        for (address, line) in &mut known.lines {
            let is_missed = asked.contains(address) && !poll.heard.contains(address);
            line.missed = if is_missed { line.missed + 1 } else { 0 };
        }
        known.lines.retain(|_, line| line.missed < MAX_MISSED);
        if poll.answers.is_empty() {
            return;
        }
        let others = poll.answers.values().flat_map(|answer| &answer.others);
        let named: BTreeSet<_> =
            others.map(|(_, address)| address.clone()).take(MAX_SENTINELS).collect();
        known.lines.retain(|address, _| named.contains(address) || self.given.contains(address));
        known.named = named;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answers so far.
#[derive(Default)]
struct Poll {
    given: usize,
    /// By the Sentinels' ids.
    answers: BTreeMap<String, Answer>,
    /// The addresses that answered.
    heard: BTreeSet<Address>,
    failure: Option<Arc<ConnectionError>>,
}

impl Poll {
    fn add(&mut self, answer: Answer) {
        self.answers.insert(answer.id.clone(), answer);
    }

    /// How many Sentinels there are: those that answered and those that they name, and no fewer
    /// than were given, since what is cut off may have forgotten the others.
    fn total(&self) -> usize {
        let others = self.answers.values().flat_map(|answer| &answer.others);
        let ids: BTreeSet<_> = self.answers.keys().chain(others.map(|(id, _)| id)).collect();
        ids.len().max(self.given)
    }

    /// The address with the most votes, and how many.
    fn best(&self) -> Option<(Address, usize)> {
        let mut votes = BTreeMap::<&Address, usize>::new();
        for primary in self.answers.values().filter_map(|answer| answer.primary.as_ref()) {
            *votes.entry(primary).or_default() += 1;
        }
        let best = votes.into_iter().max_by_key(|(_, votes)| *votes);
        best.map(|(address, votes)| (address.clone(), votes))
    }

    /// The address that more than half of all name.
    fn agreed(&self) -> Option<Address> {
        let total = self.total();
        self.best().filter(|(_, votes)| votes * 2 > total).map(|(address, _)| address)
    }

    /// Whether all that answered do not know the name.
    fn nobody_knows(&self) -> bool {
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

/// One entry of SENTINEL SENTINELS: a flat list of names and values, or a map.
fn other(entry: &Value) -> Option<(String, Address)> {
    let Value::Array(flat) = entry else { return None };
    let of = |name: &str| {
        flat.chunks(2).find_map(|pair| match pair {
            [key, value] if text(key) == Some(name) => text(value),
            _ => None,
        })
    };
    let address = Address::Tcp(of("ip")?.into(), of("port")?.parse().ok()?);
    // One that has not been met yet has no id; its address stands for it.
    let id = of("runid").filter(|id| !id.is_empty()).map(str::to_owned);
    Some((id.unwrap_or_else(|| address.to_string()), address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> Address {
        Address::Tcp("10.0.0.1".into(), port)
    }

    fn poll(given: usize, answers: &[(&str, Option<u16>, &[&str])]) -> Poll {
        let mut poll = Poll { given, ..Poll::default() };
        for (id, primary, others) in answers {
            let others = others.iter().map(|other| ((*other).to_owned(), at(1))).collect();
            poll.add(Answer { id: (*id).to_owned(), primary: primary.map(at), others });
        }
        poll
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
        // One that has forgotten the others (SENTINEL RESET) counts as one of those given.
        assert_eq!(poll(3, &[("a", Some(1), &[])]).agreed(), None);
        assert_eq!(poll(1, &[("a", Some(1), &[])]).agreed(), Some(at(1)));
        // One that answers at two addresses has one vote.
        let twice = [("a", Some(1), &["b", "c"][..]), ("a", Some(1), &["b", "c"][..])];
        assert_eq!(poll(2, &twice).agreed(), None);
        assert!(poll(1, &[("a", None, &[])]).nobody_knows());
    }
}
