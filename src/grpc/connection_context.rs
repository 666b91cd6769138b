//! What the calls of one connection share: its budget, its end, and its turns to read histories.

use std::sync::Arc;

use prost::Message;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Request, Status};

use super::roles::Peer;
use super::status;
use crate::budget::{Charge, ConnectionBudget, Pool};

/// What the calls of one connection share. Clones are of the same connection.
#[derive(Clone)]
pub(super) struct ConnectionContext {
    pub(super) budget: Arc<ConnectionBudget>,
    /// What the client may do.
    pub(super) peer: Peer,
    /// Cancelled once the connection is to end, for streams that could go on without an end.
    pub(super) ending: CancellationToken,
    /// Cancelled once the connection is to end for another reason than its age. Calls that read the
    /// whole ledger end by themselves, and their caller would have to start over: see
    /// [`long_call`](Self::long_call).
    pub(super) closing: CancellationToken,
    /// The calls that the end of the connection by its age waits for.
    long_calls: TaskTracker,
    /// Held by the call that reads a history. With one at a time, a client that opens many such calls
    /// has one place in the ledger's queue of reads, as every other client.
    history_turn: Arc<Semaphore>,
    /// Held by the call that searches all businesses for a user, likewise.
    search_turn: Arc<Semaphore>,
}

impl ConnectionContext {
    pub(super) fn new(budget: Arc<ConnectionBudget>, peer: Peer) -> Self {
        let turn = || Arc::new(Semaphore::new(1));
        Self {
            budget,
            peer,
            ending: CancellationToken::new(),
            closing: CancellationToken::new(),
            long_calls: TaskTracker::new(),
            history_turn: turn(),
            search_turn: turn(),
        }
    }

    /// Marks a call that reads the whole ledger, until the token is dropped: the connection's age does
    /// not end it. It must end once [`closing`](Self::closing) is cancelled.
    pub(super) fn long_call(&self) -> TaskTrackerToken {
        self.long_calls.token()
    }

    /// Whether there are calls that read the whole ledger.
    pub(super) fn has_long_calls(&self) -> bool {
        !self.long_calls.is_empty()
    }

    /// Returns once there are no calls that read the whole ledger.
    pub(super) async fn without_long_calls(&self) {
        self.long_calls.close();
        self.long_calls.wait().await;
    }

    /// The context of a call's connection, which the router put into the request.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let context = request.extensions().get::<Self>();
        context.cloned().ok_or_else(|| Status::internal("the call has no connection"))
    }

    /// Waits until no other call of the connection reads a history.
    pub(super) async fn history_turn(&self) -> Result<HistoryTurn<'_>, Status> {
        let working = self.budget.charge(Pool::Records, 0).map_err(status::limit_reached)?;
        let turn = self.history_turn.acquire().await.map_err(|_| closed())?;
        Ok(HistoryTurn { budget: &self.budget, _turn: turn, _working: working.mark_working() })
    }

    /// Waits until no other call of the connection searches all businesses, and then for one of the
    /// places of `searches`.
    pub(super) async fn search_turn<'a>(
        &'a self,
        searches: &'a Semaphore,
    ) -> Result<(SemaphorePermit<'a>, SemaphorePermit<'a>), Status> {
        let turn = self.search_turn.acquire().await.map_err(|_| closed())?;
        Ok((turn, searches.acquire().await.map_err(|_| closed())?))
    }
}

fn closed() -> Status {
    Status::unavailable("the server ends")
}

/// A connection's turn to read a history, until dropped.
pub(super) struct HistoryTurn<'a> {
    budget: &'a Arc<ConnectionBudget>,
    _turn: SemaphorePermit<'a>,
    _working: Charge,
}

impl HistoryTurn<'_> {
    /// Charges messages that were read, until they are taken. The ledger bounds how many are read at
    /// once, so that those that are read and not charged yet are few.
    pub(super) fn charge<T: Message>(&self, messages: Vec<T>) -> Result<Page<T>, (Vec<T>, Status)> {
        let bytes = messages.iter().map(|message| size_of::<T>() + message.encoded_len());
        match self.budget.charge(Pool::Records, bytes.sum()) {
            Ok(charge) => Ok(Page { messages: messages.into_iter(), _charge: charge }),
            Err(full) => Err((messages, status::limit_reached(full))),
        }
    }

    /// Charges messages, and ends the turn.
    pub(super) fn page<T: Message>(
        self,
        messages: impl Iterator<Item = T>,
    ) -> Result<Page<T>, Status> {
        self.charge(messages.collect()).map_err(|(_, status)| status)
    }
}

/// Messages that were read from the ledger. They are charged until all are taken, or it is dropped.
pub(super) struct Page<T> {
    messages: std::vec::IntoIter<T>,
    _charge: Charge,
}

impl<T> Iterator for Page<T> {
    type Item = Result<T, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        self.messages.next().map(Ok)
    }
}
