//! Changes, by which queued messages are withdrawn.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::{Code, Status, Streaming};

use crate::address::Backoff;
use crate::calls::Calls;
use crate::client::{Backend, Client};
use crate::error::Error;
use crate::pb;
use crate::pb::watch_consents_response::What;

/// How long the sidecar may be silent. It sends a checkpoint every 2 seconds while its table is proven to be current.
const MAX_SILENCE: Duration = Duration::from_secs(10);
/// The first pause before watching again, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Changes that wait to be read. Beyond them the sidecar keeps them, and tells a reset where they become too many.
const WAITING: usize = 1_024;

/// The codes by which a sidecar refuses a watch for good.
const FINAL: [Code; 4] =
    [Code::Unimplemented, Code::PermissionDenied, Code::Unauthenticated, Code::InvalidArgument];

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
    /// Nothing was heard for 10 s, also where the watch could not begin, or the connection is lost: trust nothing that
    /// is queued until the next `Reset`.
    Silent,
}

/// A watch of changes, which connects again by itself. Dropping it ends it.
///
/// ```no_run
/// # async fn watch(client: consentd_client::Client) -> Result<(), consentd_client::Error> {
/// use consentd_client::Change;
///
/// let mut watch = client.watch("acme");
/// while let Some(change) = watch.next().await? {
///     match change {
///         Change::Changed { user, .. } => { /* Ask again about this user's messages. */ }
///         Change::Reset => { /* Ask again about all that is queued. */ }
///         Change::Silent => { /* Hold everything back. */ }
///         _ => { /* Ask again about this template's messages. */ }
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "a watch ends when it is dropped"]
pub struct Watch {
    changes: mpsc::Receiver<Result<Change, Error>>,
    task: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn new(client: &Client, business: String) -> Self {
        let (told, changes) = mpsc::channel(WAITING);
        let task = match &client.0.backend {
            Backend::Sidecar { calls, .. } => {
                let watcher =
                    Watcher { calls: calls.clone(), business, told, trust: Trust::begin() };
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

    /// The next change. `None` only after an error, where the runtime ends, or where a fake client was dropped.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// The sidecar refuses the watch, so that asking again is of no use: `UNIMPLEMENTED`, `PERMISSION_DENIED`,
    /// `UNAUTHENTICATED` or `INVALID_ARGUMENT`. The watch has ended: trust nothing that is queued.
    pub async fn next(&mut self) -> Result<Option<Change>, Error> {
        self.changes.recv().await.transpose()
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

/// Nobody reads the changes any more, or the error that the watch ends with was sent.
struct Closed;

/// The last change that the reader got about whether queued messages can be trusted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trust {
    /// None yet, for the watch has not begun. It is reported as silent at this time.
    Unknown(Instant),
    /// A reset, and no silence since.
    Trusted,
    Silent,
}

impl Trust {
    fn begin() -> Self {
        Self::Unknown(Instant::now() + MAX_SILENCE)
    }
}

struct Watcher {
    calls: Calls,
    business: String,
    told: mpsc::Sender<Result<Change, Error>>,
    trust: Trust,
}

impl Watcher {
    async fn run(mut self) {
        // It ends where nobody reads the changes any more, and after an error.
        let Err(Closed) = self.watch().await;
    }

    async fn watch(&mut self) -> Result<Infallible, Closed> {
        let mut backoff = Backoff::new(PAUSES);
        loop {
            match timeout_at(self.patience(), self.begin()).await {
                Ok(Ok(stream)) => {
                    if self.read(stream).await? {
                        backoff = Backoff::new(PAUSES);
                    }
                }
                Ok(Err(status)) => self.refused(&status).await?,
                Err(_) => {}
            }
            self.lost().await?;
            // A silence that falls due during the pause is reported at its time.
            let end = Instant::now() + backoff.next();
            sleep_until(end.min(self.patience())).await;
            self.lost().await?;
            sleep_until(end).await;
        }
    }

    /// Until when to wait for the next message.
    fn patience(&self) -> Instant {
        match self.trust {
            Trust::Unknown(until) => until,
            Trust::Trusted | Trust::Silent => Instant::now() + MAX_SILENCE,
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
            match timeout_at(self.patience(), stream.message()).await {
                Ok(Ok(Some(message))) => {
                    let is_first = !std::mem::replace(&mut heard, true);
                    self.message(message, is_first).await?;
                }
                Ok(Ok(None)) => return Ok(heard),
                Ok(Err(status)) => {
                    self.refused(&status).await?;
                    return Ok(heard);
                }
                // The stream is kept: a table that is stale sends no checkpoint.
                Err(_) => self.silent().await?,
            }
        }
    }

    /// Ends the watch with an error where asking again is of no use.
    async fn refused(&mut self, status: &Status) -> Result<(), Closed> {
        if !FINAL.contains(&status.code()) {
            return Ok(());
        }
        if self.trust == Trust::Trusted {
            self.silent().await?;
        }
        let _ = self.told.send(Err(Error::of_status(status))).await;
        Err(Closed)
    }

    async fn message(
        &mut self,
        message: pb::WatchConsentsResponse,
        is_first: bool,
    ) -> Result<(), Closed> {
        // A newer sidecar may report what this client does not know.
        let is_reset = matches!(message.what, Some(What::Reset(_)) | None);
        // What changed before this stream, or during a silence, was not reported.
        if is_first || is_reset || self.trust != Trust::Trusted {
            self.trust = Trust::Trusted;
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
            Some(What::Checkpoint(_) | What::Reset(_)) | None => Ok(()),
        }
    }

    /// Tells that the connection is lost. A watch that has not begun has until its time to do so.
    async fn lost(&mut self) -> Result<(), Closed> {
        match self.trust {
            Trust::Unknown(until) if Instant::now() < until => Ok(()),
            _ => self.silent().await,
        }
    }

    /// Tells that nothing is to be trusted, once.
    async fn silent(&mut self) -> Result<(), Closed> {
        if self.trust == Trust::Silent {
            return Ok(());
        }
        self.trust = Trust::Silent;
        self.tell(Change::Silent).await
    }

    async fn tell(&self, change: Change) -> Result<(), Closed> {
        self.told.send(Ok(change)).await.map_err(|_| Closed)
    }
}
