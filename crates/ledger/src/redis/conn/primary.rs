//! Locates the primary: at a fixed address, or by a majority of the Sentinels.
//!
//! A proof of the primary is an answer by a majority of the Sentinels to a question that was asked after
//! the event that is to be proven. Polls and appends share the rounds of questions: one round runs at a
//! time, and its answer serves all callers that had asked before the round began.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::credentials::Credentials;
use super::handshake::{ConnectionError, Handshake, Handshaken, ServerKind};
use super::resp::RespConnection;
use super::sentinel::Sentinels;
use super::url::Target;
use super::url::{Address, Endpoint};

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

/// Locates one target's primary. All connections share it, and with it the connections to Sentinels.
pub(crate) struct PrimaryLocator {
    target: Arc<Target>,
    sentinels: Option<Sentinels>,
    rounds: SentinelRounds,
    /// The primary that a majority of the Sentinels named last; `None` without Sentinels.
    named: watch::Sender<Option<Address>>,
}

/// Rounds of questions to the Sentinels, one at a time.
#[derive(Default)]
struct SentinelRounds {
    /// The number of rounds that have begun.
    begun: AtomicU64,
    /// Held while a round runs.
    turn: tokio::sync::Mutex<()>,
    /// The last completed round: its number, and its answer.
    last: Mutex<Option<(u64, Result<Address, ConnectionError>)>>,
}

impl PrimaryLocator {
    pub(crate) fn new(target: Arc<Target>) -> Self {
        let sentinels = match &target.endpoint {
            Endpoint::Server(_) => None,
            Endpoint::Sentinels { sentinels, master, credentials } => Some(Sentinels::new(
                sentinels.clone(),
                master.clone(),
                credentials.clone(),
                target.tls.clone(),
            )),
        };
        Self {
            target,
            sentinels,
            rounds: SentinelRounds::default(),
            named: watch::Sender::new(None),
        }
    }

    /// Opens a new connection to the primary, and returns it with its address.
    pub(crate) async fn connect(
        &self,
        within: Duration,
    ) -> Result<(RespConnection, Address), ConnectionError> {
        let (address, left) = match (&self.target.endpoint, &self.sentinels) {
            (Endpoint::Server(address), _) => (address.clone(), within),
            (Endpoint::Sentinels { .. }, Some(sentinels)) => {
                // Half of the time is for the Sentinels, half for the primary.
                (Box::pin(self.ask(sentinels, within / 2)).await?, within / 2)
            }
            (Endpoint::Sentinels { master, .. }, None) => {
                return Err(ConnectionError::UnknownMaster { master: master.clone() });
            }
        };
        let Handshaken { resp, primary } = self.handshake(&address).run(left).await?;
        if self.sentinels.is_some() && primary != Some(true) {
            return Err(ConnectionError::NotPrimary { address });
        }
        Ok((resp, address))
    }

    /// The target whose primary this locates.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The parameters of a connection to this address.
    pub(crate) fn handshake<'a>(&'a self, address: &'a Address) -> Handshake<'a> {
        let credentials: &Credentials = &self.target.credentials;
        let tls = self.target.tls.as_ref();
        Handshake { address, credentials, tls, kind: ServerKind::Redis(self.target.database) }
    }

    /// Proves that this address is the primary's: if there are Sentinels, a majority of them names it, and
    /// was asked after this call began. Waits for two rounds at most: one that is already running, and its
    /// own.
    pub(crate) async fn confirm(
        &self,
        address: &Address,
        within: Duration,
    ) -> Result<(), ConnectionError> {
        let Some(sentinels) = &self.sentinels else { return Ok(()) };
        let now = Box::pin(self.ask(sentinels, within)).await?;
        if now == *address {
            return Ok(());
        }
        Err(ConnectionError::Moved { address: address.clone(), now })
    }

    /// The primary, by a round of questions that begins after this call.
    async fn ask(
        &self,
        sentinels: &Sentinels,
        within: Duration,
    ) -> Result<Address, ConnectionError> {
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
        let answer = sentinels.primary(within).await;
        if let Ok(primary) = &answer {
            self.named.send_if_modified(|named| {
                let is_new = named.as_ref() != Some(primary);
                *named = Some(primary.clone());
                is_new
            });
        }
        let mut last = self.rounds.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((round, answer.clone()));
        answer
    }

    /// The primary that a majority of the Sentinels named last, if it is not this address.
    pub(crate) fn successor_of(&self, address: &Address) -> Option<Address> {
        let named = self.named.borrow();
        named.as_ref().filter(|named| *named != address).cloned()
    }

    /// Waits until a majority of the Sentinels names another primary than this one; for ever without
    /// Sentinels.
    pub(crate) fn wait_until_moved(
        &self,
        address: Address,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut named = self.named.subscribe();
        async move {
            let other = |named: &Option<Address>| named.as_ref().is_some_and(|it| *it != address);
            if named.wait_for(other).await.is_err() {
                // The locator was dropped: no other primary will be named.
                std::future::pending::<()>().await;
            }
        }
    }
}
