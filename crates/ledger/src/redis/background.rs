//! The ledger's background task: it sends queued appends in batches, applies the retention, and forwards
//! announcements.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::announcement::AnnouncementReader;
use super::append::{MAX_BATCH, PendingAppend};
use super::append_batch::send_batch;
use super::conn::{self, SubscriptionEvent, Timeouts};
use super::pipeline::MAX_BATCHES_IN_FLIGHT;
use super::{Shared, retention};
use crate::Notification;

/// How many announced entries are decoded before the task yields to others on its thread.
const ENTRIES_PER_YIELD: usize = 8;

/// The ledger's background task. Nothing is appended or announced unless it runs.
pub struct BackgroundTask {
    shared: Arc<Shared>,
    waiting: mpsc::Receiver<PendingAppend>,
    /// Reports the end also if the task is dropped, so that `close` does not wait for ever.
    _ended: DropGuard,
}

impl BackgroundTask {
    pub(super) fn new(shared: Arc<Shared>, waiting: mpsc::Receiver<PendingAppend>) -> Self {
        let ended = shared.closed.clone().drop_guard();
        Self { shared, waiting, _ended: ended }
    }

    /// Runs until the ledger is closed or `stop` is cancelled. Changes that are queued by then are still
    /// appended.
    pub async fn run(mut self, stop: CancellationToken) {
        let shared = Arc::clone(&self.shared);
        let closing = shared.closing.clone();
        let stopped = async {
            tokio::select! {
                () = stop.cancelled() => closing.cancel(),
                () = closing.cancelled() => {}
            }
        };
        let sweeps = closing.run_until_cancelled(retention::run(&shared));
        let announcements = closing.run_until_cancelled(Box::pin(forward_announcements(&shared)));
        tokio::join!(self.send_appends(), stopped, sweeps, announcements);
    }

    async fn send_appends(&mut self) {
        let mut in_flight = FuturesUnordered::new();
        let mut queued = Vec::with_capacity(MAX_BATCH);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                Some(()) = in_flight.next() => {}
                () = self.shared.closing.cancelled(), if open => {
                    self.waiting.close();
                    open = false;
                }
                count = self.waiting.recv_many(&mut queued, MAX_BATCH),
                    if in_flight.len() < MAX_BATCHES_IN_FLIGHT =>
                {
                    if count == 0 {
                        break;
                    }
                    // A batch is for one epoch, so that changes for a replaced ledger are rejected
                    // alone, and either a repair or not, since a repair may write to lost buckets.
                    while let Some(first) = queued.first().map(|item| (item.epoch, item.repairs)) {
                        let (batch, others) =
                            queued.drain(..).partition(|item| (item.epoch, item.repairs) == first);
                        queued = others;
                        in_flight.push(send_batch(Arc::clone(&self.shared), batch));
                    }
                }
            }
        }
        while in_flight.next().await.is_some() {}
    }
}

/// Forwards announcements to the subscribers in this process.
async fn forward_announcements(shared: &Shared) {
    let notify = |notification| {
        // An error only means that there is no subscriber at present.
        let _ = shared.announcements.send(notification);
    };
    let sink = |event| async move {
        match event {
            SubscriptionEvent::Message(message) => {
                let mut reader = AnnouncementReader::read(&message, shared.held());
                // A long message must not delay other tasks on this thread.
                while let Some(part) =
                    reader.as_mut().and_then(|reader| reader.part(ENTRIES_PER_YIELD))
                {
                    notify(Notification::Announcement(part));
                    yield_now().await;
                }
                if reader.is_none_or(|reader| !reader.is_over()) {
                    // Malformed: followers find its entries in the log.
                    notify(Notification::Missed);
                }
            }
            SubscriptionEvent::Gap => notify(Notification::Subscribed),
            SubscriptionEvent::Refused(why) => {
                notify(Notification::Unsubscribed { refused: true, why });
            }
            SubscriptionEvent::Lost(why) => {
                notify(Notification::Unsubscribed { refused: false, why });
            }
        }
    };
    let (primary, channel) = (Arc::clone(&shared.primary), shared.keyspace.channel.clone());
    let never = conn::subscribe(primary, channel, Timeouts::default(), sink).await;
    match never {}
}
