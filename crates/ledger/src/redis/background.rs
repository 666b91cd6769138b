//! The part of the ledger that runs: it sends what waits to be appended, removes what has outlived
//! its time, and passes on what is announced.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::append::{MAX_SCRIPT, PendingAppend};
use super::append_batch::send_batch;
use super::conn::{self, SubscriptionEvent, Timeouts};
use super::keyspace::AnnouncementReader;
use super::{Shared, retention};
use crate::Notification;

/// How many scripts are on their way at once. What waits meanwhile goes into the next ones
/// together, so that they are the fuller the slower the answers come.
pub(super) const MAX_FLIGHTS: usize = 4;

/// How many announced entries are read between two looks at what else there is to do.
const MAX_TOGETHER: usize = 8;

/// The part of the ledger that runs. Nothing is appended or heard where it does not.
pub struct BackgroundTask {
    shared: Arc<Shared>,
    waiting: mpsc::Receiver<PendingAppend>,
    /// Whoever waits for the end must not wait for a driver that was dropped.
    _ended: DropGuard,
}

impl BackgroundTask {
    pub(super) fn new(shared: Arc<Shared>, waiting: mpsc::Receiver<PendingAppend>) -> Self {
        let ended = shared.closed.clone().drop_guard();
        Self { shared, waiting, _ended: ended }
    }

    /// Runs until the ledger is closed, or `stop` says so; what waits by then is still appended.
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
        let heard = closing.run_until_cancelled(Box::pin(listen(&shared)));
        tokio::join!(self.write(), stopped, sweeps, heard);
    }

    async fn write(&mut self) {
        let mut flights = FuturesUnordered::new();
        let mut some = Vec::with_capacity(MAX_SCRIPT);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                Some(()) = flights.next() => {}
                () = self.shared.closing.cancelled(), if open => {
                    self.waiting.close();
                    open = false;
                }
                count = self.waiting.recv_many(&mut some, MAX_SCRIPT),
                    if flights.len() < MAX_FLIGHTS =>
                {
                    if count == 0 {
                        break;
                    }
                    // Those for a ledger that has been replaced are refused on their own; a
                    // repair's may do what others must not.
                    while let Some(first) = some.first().map(|item| (item.epoch, item.repairs)) {
                        let (now, later) =
                            some.drain(..).partition(|item| (item.epoch, item.repairs) == first);
                        some = later;
                        flights.push(send_batch(Arc::clone(&self.shared), now));
                    }
                }
            }
        }
        while flights.next().await.is_some() {}
    }
}

/// Passes on what is announced.
async fn listen(shared: &Shared) {
    let tell = |heard| {
        // Nobody may be listening.
        let _ = shared.announcements.send(heard);
    };
    let sink = |pushed| async move {
        match pushed {
            SubscriptionEvent::Message(message) => {
                let mut announced = AnnouncementReader::read(&message);
                // Whoever asks on this thread is not kept waiting by all that one message tells.
                while let Some(part) = announced.as_mut().and_then(|all| all.part(MAX_TOGETHER)) {
                    tell(Notification::Announcement(part));
                    yield_now().await;
                }
                if announced.is_none_or(|all| !all.is_over()) {
                    // Whatever it was meant to say, the log says it.
                    tell(Notification::Missed);
                }
            }
            SubscriptionEvent::Gap => tell(Notification::Subscribed),
            SubscriptionEvent::Refused(why) => {
                tell(Notification::Unsubscribed { refused: true, why });
            }
            SubscriptionEvent::Lost(why) => {
                tell(Notification::Unsubscribed { refused: false, why });
            }
        }
    };
    let (route, channel) = (Arc::clone(&shared.route), shared.keyspace.channel.clone());
    let never = conn::listen(route, channel, Timeouts::default(), sink).await;
    match never {}
}
