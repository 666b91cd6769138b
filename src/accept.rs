//! Letting connections in: so many at once, and with patience where the system has no more to give.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::metrics::Metrics;

/// How long to wait before accepting again where the system is out of something.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a system that stays out of something is complained about.
const COMPLAINTS: Duration = Duration::from_secs(30);

/// A listener's door.
pub struct Door {
    room: Arc<Semaphore>,
    limit: &'static str,
    metrics: Arc<Metrics>,
    complained: Option<Instant>,
}

/// A connection's place. Another gets it once it is dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held for its drop alone")] OwnedSemaphorePermit);

impl Door {
    /// A door for `most` connections at once; one more is closed, and counted as turned away by
    /// `limit`.
    #[must_use]
    pub fn new(most: usize, limit: &'static str, metrics: Arc<Metrics>) -> Self {
        Self { room: Arc::new(Semaphore::new(most)), limit, metrics, complained: None }
    }

    /// The next connection for which there is room. May be dropped before it returns.
    pub async fn next<T, F: Future<Output = io::Result<T>>>(
        &mut self,
        accept: impl Fn() -> F,
    ) -> (T, Place) {
        loop {
            match accept().await {
                Ok(accepted) => match Arc::clone(&self.room).try_acquire_owned() {
                    Ok(permit) => return (accepted, Place(permit)),
                    Err(_) => self.metrics.refused(self.limit),
                },
                Err(error) => {
                    // Out of file descriptors, mostly: it passes, and a busy loop would not help.
                    self.metrics.refused("accept");
                    if self.complained.is_none_or(|last| last.elapsed() >= COMPLAINTS) {
                        self.complained = Some(Instant::now());
                        warn!(%error, "cannot accept connections; trying again until it passes");
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }
}
