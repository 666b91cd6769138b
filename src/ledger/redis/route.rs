//! The way to the primary: straight, or as the Sentinels say at that moment.

use std::sync::Arc;
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
    /// Where the last connection to the primary went.
    reached: watch::Sender<Option<Address>>,
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
        Self { target, sentinels, reached: watch::Sender::new(None) }
    }

    /// A new connection to the primary, and where it went.
    pub(super) async fn open(&self, within: Duration) -> Result<(Wire, Address), LinkError> {
        let (address, left) = match (&self.target.place, &self.sentinels) {
            (Place::At(address), _) => (address.clone(), within),
            (Place::Named { .. }, Some(sentinels)) => {
                // Half for the Sentinels, half for the primary.
                (sentinels.primary(within / 2).await?, within / 2)
            }
            (Place::Named { master, .. }, None) => {
                return Err(LinkError::UnknownMaster { master: master.clone() });
            }
        };
        let Greeted { wire, primary } = self.dial(&address).open(left).await?;
        if self.sentinels.is_some() && primary != Some(true) {
            return Err(LinkError::NotPrimary { address });
        }
        self.reached.send_if_modified(|reached| {
            let is_new = reached.as_ref() != Some(&address);
            *reached = Some(address.clone());
            is_new
        });
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

    /// Makes sure that a majority of the Sentinels still names this address, where there are any.
    pub(super) async fn confirm(
        &self,
        address: &Address,
        within: Duration,
    ) -> Result<(), LinkError> {
        let Some(sentinels) = &self.sentinels else { return Ok(()) };
        let now = sentinels.primary(within).await?;
        if now == *address {
            return Ok(());
        }
        Err(LinkError::Moved { address: address.clone(), now })
    }

    /// Sees where connections to the primary go, from now on.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Address>> {
        self.reached.subscribe()
    }
}
