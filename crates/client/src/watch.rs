//! Changes, by which queued messages are withdrawn.

use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::{Status, Streaming};

use crate::address::Backoff;
use crate::calls::Calls;
use crate::client::{Backend, Client};
use crate::pb;
use crate::pb::watch_consents_response::What;

/// How long the sidecar may be silent. It sends a checkpoint every 2 seconds while its table is proven to be current.
const MAX_SILENCE: Duration = Duration::from_secs(10);
/// The first pause before watching again, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Changes that wait to be read. Beyond them the sidecar keeps them, and tells a reset where they become too many.
const WAITING: usize = 1_024;

/// A change of what may be sent.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// The state of a user changed: ask again before sending to that user. The user is named as it was written to the
    /// ledger, in any notation of its number.
    Changed {
        /// The user.
        user: String,
        /// The business.
        business: String,
    },
    /// The category of a template changed: ask again before sending by it.
    TemplateChanged {
        /// The template's name and language; `None` stands for all of the business.
        template: Option<(String, String)>,
        /// The business.
        business: String,
    },
    /// Something may have been missed: ask again about everything that is queued. The first change of each watch, and
    /// of each new connection, is one.
    Reset,
    /// Nothing was heard for 10 s, or the connection is lost: trust nothing that is queued until the next `Reset`.
    Silent,
}

/// A watch of changes, which connects again by itself. Dropping it ends it.
///
/// ```no_run
/// # async fn watch(client: consentd_client::Client) {
/// use consentd_client::Change;
///
/// let mut watch = client.watch("acme");
/// while let Some(change) = watch.next().await {
///     match change {
///         Change::Changed { user, .. } => { /* Ask again about this user's messages. */ }
///         Change::Reset => { /* Ask again about all that is queued. */ }
///         Change::Silent => { /* Hold everything back. */ }
///         _ => { /* Ask again about this template's messages. */ }
///     }
/// }
/// # }
/// ```
#[must_use = "a watch ends when it is dropped"]
pub struct Watch {
    changes: mpsc::Receiver<Change>,
    task: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn new(client: &Client, business: String) -> Self {
        let (told, changes) = mpsc::channel(WAITING);
        let task = match &client.0.backend {
            Backend::Sidecar { calls, .. } => {
                let watcher = Watcher { calls: calls.clone(), business, told, trusted: false };
                #[allow(clippy::disallowed_methods, reason = "aborted when this is dropped")]
                Some(tokio::spawn(watcher.run()))
            }
            #[cfg(feature = "testing")]
            Backend::Fake(rules) => {
                rules.watch(told);
                None
            }
        };
        Self { changes, task }
    }

    /// The next change. `None` only where the runtime ends, or where a fake client was dropped.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Change> {
        self.changes.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// Nobody reads the changes any more.
struct Closed;

struct Watcher {
    calls: Calls,
    business: String,
    told: mpsc::Sender<Change>,
    /// Whether a reset was told, and no silence since.
    trusted: bool,
}

impl Watcher {
    async fn run(mut self) {
        let mut backoff = Backoff::new(PAUSES);
        loop {
            if let Ok(Ok(stream)) = timeout(MAX_SILENCE, self.begin()).await {
                let heard = self.read(stream).await;
                let Ok(heard) = heard else { return };
                if heard {
                    backoff = Backoff::new(PAUSES);
                }
            }
            if self.silent().await.is_err() {
                return;
            }
            sleep(backoff.next()).await;
        }
    }

    async fn begin(&mut self) -> Result<Streaming<pb::WatchConsentsResponse>, Status> {
        let request = pb::WatchConsentsRequest { business_id: self.business.clone() };
        Ok(self.calls.checks.watch_consents(request).await?.into_inner())
    }

    /// Tells what a stream says until it ends. Returns whether it said anything.
    async fn read(
        &mut self,
        mut stream: Streaming<pb::WatchConsentsResponse>,
    ) -> Result<bool, Closed> {
        let mut heard = false;
        loop {
            match timeout(MAX_SILENCE, stream.message()).await {
                Ok(Ok(Some(message))) => {
                    let is_first = !std::mem::replace(&mut heard, true);
                    self.message(message, is_first).await?;
                }
                Ok(Ok(None) | Err(_)) => return Ok(heard),
                Err(_) => self.silent().await?,
            }
        }
    }

    async fn message(
        &mut self,
        message: pb::WatchConsentsResponse,
        is_first: bool,
    ) -> Result<(), Closed> {
        let is_reset = matches!(message.what, Some(What::Reset(_)));
        // What changed before this stream, or during a silence, was not reported.
        if is_first || is_reset || !self.trusted {
            self.trusted = true;
            self.tell(Change::Reset).await?;
        }
        match message.what {
            Some(What::Changed(changed)) => {
                let (user, business) = (changed.user_id, changed.business_id);
                self.tell(Change::Changed { user, business }).await
            }
            Some(What::TemplateChanged(changed)) => {
                let template = changed.template.map(|template| (template.name, template.language));
                let business = changed.business_id;
                self.tell(Change::TemplateChanged { template, business }).await
            }
            Some(What::Checkpoint(_) | What::Reset(_)) => Ok(()),
            // A newer sidecar reports what this client does not know.
            None => self.tell(Change::Reset).await,
        }
    }

    /// Tells that nothing is to be trusted, once.
    async fn silent(&mut self) -> Result<(), Closed> {
        if self.trusted {
            self.trusted = false;
            return self.tell(Change::Silent).await;
        }
        Ok(())
    }

    async fn tell(&self, change: Change) -> Result<(), Closed> {
        self.told.send(change).await.map_err(|_| Closed)
    }
}
