//! The way to the primary: straight, or as the Sentinels say at that moment.
//!
//! A proof of the primary is an answer that a majority of the Sentinels gave to a question asked
//! after the event that is to be proven. Polls and appends share these questions: one round at a
//! time, and its answer serves everybody who asked before the round began.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::Target;
use super::dial::{Dial, Greeted, Kind, LinkError};
use super::login::Login;
use super::sentinel::Sentinels;
use super::target::{Address, Place};
use super::wire::Wire;

/// How long connecting and answering may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// From the first packet, or the first question to a Sentinel, to a connection that is ours.
    pub(super) connect: Duration,
    /// From a command to its answer.
    pub(super) response: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(1), response: Duration::from_secs(1) }
    }
}

/// The way to one target's primary. Links share one, and with it the connections to Sentinels.
pub(super) struct Route {
    target: Arc<Target>,
    sentinels: Option<Sentinels>,
    rounds: Rounds,
    /// The primary that a majority of the Sentinels named last; nothing without Sentinels.
    named: watch::Sender<Option<Address>>,
}

/// Questions to the Sentinels, one round of them at a time.
#[derive(Default)]
struct Rounds {
    /// How many rounds have begun.
    begun: AtomicU64,
    /// Whoever holds it asks.
    turn: tokio::sync::Mutex<()>,
    /// The last round that was answered: its number, and the answer.
    last: Mutex<Option<(u64, Result<Address, LinkError>)>>,
}

impl Route {
    /// A way that is not gone yet.
    pub(super) fn new(target: Arc<Target>) -> Self {
        let sentinels = match &target.place {
            Place::At(_) => None,
            Place::Named { sentinels, master, login } => Some(Sentinels::new(
                sentinels.clone(),
                master.clone(),
                login.clone(),
                target.tls.clone(),
            )),
        };
        Self { target, sentinels, rounds: Rounds::default(), named: watch::Sender::new(None) }
    }

    /// A new connection to the primary, and where it went.
    pub(super) async fn open(&self, within: Duration) -> Result<(Wire, Address), LinkError> {
        let (address, left) = match (&self.target.place, &self.sentinels) {
            (Place::At(address), _) => (address.clone(), within),
            (Place::Named { .. }, Some(sentinels)) => {
                // Half for the Sentinels, half for the primary.
                (Box::pin(self.ask(sentinels, within / 2)).await?, within / 2)
            }
            (Place::Named { master, .. }, None) => {
                return Err(LinkError::UnknownMaster { master: master.clone() });
            }
        };
        let Greeted { wire, primary } = self.dial(&address).open(left).await?;
        if self.sentinels.is_some() && primary != Some(true) {
            return Err(LinkError::NotPrimary { address });
        }
        Ok((wire, address))
    }

    /// Where it leads.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// How this address is dialled.
    pub(super) fn dial<'a>(&'a self, address: &'a Address) -> Dial<'a> {
        let login: &Login = &self.target.login;
        let tls = self.target.tls.as_ref();
        Dial { address, login, tls, kind: Kind::Redis(self.target.database) }
    }

    /// Proves that this address is the primary's: a majority of the Sentinels names it, where there
    /// are any, and was asked after this call began. Takes two rounds at most, one of which may have
    /// begun before.
    pub(super) async fn confirm(
        &self,
        address: &Address,
        within: Duration,
    ) -> Result<(), LinkError> {
        let Some(sentinels) = &self.sentinels else { return Ok(()) };
        let now = Box::pin(self.ask(sentinels, within)).await?;
        if now == *address {
            return Ok(());
        }
        Err(LinkError::Moved { address: address.clone(), now })
    }

    /// The primary, by a round of questions that begins after this call does.
    async fn ask(&self, sentinels: &Sentinels, within: Duration) -> Result<Address, LinkError> {
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

    /// The primary that a majority of the Sentinels named last, where that is not this address.
    pub(super) fn moved_from(&self, address: &Address) -> Option<Address> {
        let named = self.named.borrow();
        named.as_ref().filter(|named| *named != address).cloned()
    }

    /// Waits until a majority of the Sentinels names another primary than this; for ever without
    /// Sentinels.
    pub(super) fn wait_until_moved(
        &self,
        address: Address,
    ) -> impl Future<Output = ()> + Send + use<> {
        let mut named = self.named.subscribe();
        async move {
            let other = |named: &Option<Address>| named.as_ref().is_some_and(|it| *it != address);
            if named.wait_for(other).await.is_err() {
                // The route is gone, and nobody is told of another primary any more.
                std::future::pending::<()>().await;
            }
        }
    }
}
