//! The background task of a partition: it sends queued appends in batches, and applies the retention. The
//! announcements that its subscription delivers are forwarded to its followers.

use std::sync::{Arc, Weak};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::yield_now;

use super::announcement::AnnouncementReader;
use super::append::{MAX_BATCH, PendingAppend};
use super::append_batch::send_batch;
use super::conn::{MAX_WRITES, Sink, SubscriptionEvent};
use super::{Shared, retention};
use crate::Notification;

/// How many announced entries are decoded before the task yields to others on its thread.
const ENTRIES_PER_YIELD: usize = 8;

/// A partition's background task. Nothing is appended unless it runs.
pub(super) struct PartitionTask {
    shared: Arc<Shared>,
    waiting: mpsc::Receiver<PendingAppend>,
}

impl PartitionTask {
    pub(super) fn new(shared: Arc<Shared>, waiting: mpsc::Receiver<PendingAppend>) -> Self {
        Self { shared, waiting }
    }

    /// Runs until the ledger is closed. Changes that are queued by then are still appended.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let sweeps = shared.common.closing.run_until_cancelled(retention::run(&shared));
        tokio::join!(self.send_appends(), sweeps);
    }

    async fn send_appends(&mut self) {
        let mut in_flight = FuturesUnordered::new();
        let mut queued = Vec::with_capacity(MAX_BATCH);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                Some(()) = in_flight.next() => {}
                () = self.shared.common.closing.cancelled(), if open => {
                    self.waiting.close();
                    open = false;
                }
                count = self.waiting.recv_many(&mut queued, MAX_BATCH),
                    if in_flight.len() < MAX_WRITES =>
                {
                    if count == 0 {
                        break;
                    }
                    // Other partitions have batches in flight at the same server: what comes meanwhile goes along.
                    let mut permit = loop {
                        tokio::select! {
                            permit = write_permit(&self.shared) => break permit,
                            // They have permits that others wait for.
                            Some(()) = in_flight.next() => {}
                        }
                    };
                    while queued.len() < MAX_BATCH
                        && let Ok(item) = self.waiting.try_recv()
                    {
                        queued.push(item);
                    }
                    // A batch is for one epoch, so that changes for a replaced ledger are rejected
                    // alone, and either a repair or not, since a repair may write to lost buckets.
                    while let Some(first) = queued.first().map(|item| (item.epoch, item.repairs)) {
                        let (batch, others) =
                            queued.drain(..).partition(|item| (item.epoch, item.repairs) == first);
                        queued = others;
                        in_flight.push(send_batch(Arc::clone(&self.shared), batch, permit.take()));
                    }
                }
            }
        }
        while in_flight.next().await.is_some() {}
    }
}

/// A permit for a write over the connection for appends; none without a connection.
async fn write_permit(shared: &Shared) -> Option<OwnedSemaphorePermit> {
    shared.writes.connection().await.ok()?.write_permit().await
}

/// Forwards announcements to a partition's followers in this process.
pub(super) struct AnnouncementSink(Weak<Shared>);

impl AnnouncementSink {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self(Arc::downgrade(shared))
    }
}

impl Sink for AnnouncementSink {
    fn take(&self, event: SubscriptionEvent) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            match self.0.upgrade() {
                Some(shared) => forward(&shared, event).await,
                None => false,
            }
        })
    }
}

/// Forwards an event. Returns whether there is a follower.
async fn forward(shared: &Shared, event: SubscriptionEvent) -> bool {
    let Some(announcements) = shared.announcements.get() else { return false };
    let notify = |notification| announcements.send(notification).is_ok();
    match event {
        SubscriptionEvent::Message(message) => {
            let mut reader = AnnouncementReader::read(&message, shared.held());
            let mut is_wanted = announcements.receiver_count() > 0;
            // A long message must not delay other tasks on this thread.
            while let Some(part) = reader
                .as_mut()
                .filter(|_| is_wanted)
                .and_then(|reader| reader.part(ENTRIES_PER_YIELD))
            {
                is_wanted = notify(Notification::Announcement(part));
                yield_now().await;
            }
            if is_wanted && reader.is_none_or(|reader| !reader.is_over()) {
                // Malformed: followers find its entries in the log.
                return notify(Notification::Missed);
            }
            is_wanted
        }
        SubscriptionEvent::Gap => notify(Notification::Subscribed),
        SubscriptionEvent::Refused(why) => {
            notify(Notification::Unsubscribed { refused: true, why })
        }
        SubscriptionEvent::Lost(why) => notify(Notification::Unsubscribed { refused: false, why }),
    }
}
