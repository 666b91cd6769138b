//! What keeps the table equal to the ledger: the only holder of the table's [`Writer`].
//!
//! `machine` decides; the one task here asks the ledger, waits, and does what it says.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::as_conversions, clippy::arithmetic_side_effects)
)]

mod machine;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::machine::{Action, Cause, Event, Machine, pieces};
use crate::clock::{self, Moment};
use crate::ledger::{Heard, Ledger, LedgerError};
use crate::metrics::Metrics;
use crate::synthetic::Synthetic;
use crate::table::{UnreadablePair, Writer};

/// How many announced entries are applied between two looks at what else there is to do.
const MAX_AT_ONCE: usize = 64;

/// How long to wait before asking a ledger again that did not answer.
const RETRY: Duration = Duration::from_millis(200);

/// Follows one ledger.
pub struct Follower {
    ledger: Ledger,
    writer: Writer,
    metrics: Arc<Metrics>,
    bound: Duration,
    synthetic: Option<Synthetic>,
}

impl Follower {
    /// A follower that proves the table often enough for `bound`, the longest staleness at which
    /// checks are still answered.
    #[must_use]
    pub fn new(ledger: Ledger, writer: Writer, metrics: Arc<Metrics>, bound: Duration) -> Self {
        Self { ledger, writer, metrics, bound, synthetic: None }
    }

    /// Puts these pairs into the table as well, before the ledger's own.
    #[must_use]
    pub fn beside(mut self, synthetic: Option<Synthetic>) -> Self {
        self.synthetic = synthetic;
        self
    }

    /// Follows until it is stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let announcements = self.ledger.listen();
        let _ = stop.run_until_cancelled(self.follow(announcements)).await;
    }

    async fn follow(&mut self, mut announcements: Receiver<Heard>) {
        let (mut machine, actions) = Machine::new();
        // A third of the bound: two polls may fail before a check does.
        let period = self.bound.div_f64(3.0).max(Duration::from_millis(1));
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.perform(&mut machine, actions).await;
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => {
                    let poll = Action::Poll(machine.applied());
                    self.perform(&mut machine, vec![poll]).await;
                }
                heard = announcements.recv() => match heard {
                    Ok(Heard::Announcement(announcement)) => {
                        for piece in pieces(&announcement, MAX_AT_ONCE) {
                            let actions = machine.on(Event::Announced(piece));
                            self.perform(&mut machine, actions).await;
                            tokio::task::yield_now().await;
                        }
                    }
                    Ok(Heard::Missed) | Err(RecvError::Lagged(_)) => {
                        let actions = machine.on(Event::Missed);
                        self.perform(&mut machine, actions).await;
                    }
                    // The ledger is gone; without proofs the table denies by itself.
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }

    /// Does what the machine wants, and what it then wants of that, until it wants nothing.
    async fn perform(&mut self, machine: &mut Machine, mut actions: Vec<Action>) {
        while !actions.is_empty() {
            let mut wanted = Vec::new();
            let mut polled = false;
            for action in actions {
                match action {
                    Action::Poll(_) if polled => {} // One answer serves all who want one.
                    Action::Poll(after) => {
                        polled = true;
                        wanted.extend(self.poll(machine, after).await);
                    }
                    Action::ReadBucket(after) => {
                        let bucket =
                            self.ask(|ledger| async move { ledger.bucket(after).await }).await;
                        wanted.extend(machine.on(Event::Bucket(bucket)));
                        tokio::task::yield_now().await;
                    }
                    Action::Clear => {
                        self.writer.clear();
                        self.fill_in().await;
                    }
                    action => self.write(action),
                }
            }
            actions = wanted;
        }
    }

    /// Puts in what is in no ledger.
    async fn fill_in(&mut self) {
        let Some(synthetic) = &self.synthetic else { return };
        for (number, next) in (0..synthetic.count()).zip(1_usize..) {
            if let Some((key, state)) = synthetic.pair(number) {
                self.writer.apply(key, Ok(&state));
            }
            if next.is_multiple_of(MAX_AT_ONCE) {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn poll(&mut self, machine: &mut Machine, after: u64) -> Vec<Action> {
        let asked = Moment::now();
        let answer = timeout(self.bound, self.ledger.read_after(after)).await;
        match answer {
            Ok(Ok(page)) => machine.on(Event::Page { asked, after, page }),
            Ok(Err(error)) => {
                self.unproven(&error.to_string());
                self.retry_if_starting(machine).await
            }
            Err(_) => {
                self.unproven("the ledger does not answer");
                self.retry_if_starting(machine).await
            }
        }
    }

    /// The next tick asks again by itself, but only of a machine that follows already.
    async fn retry_if_starting(&self, machine: &Machine) -> Vec<Action> {
        if !machine.is_starting() {
            return Vec::new();
        }
        tokio::time::sleep(RETRY).await;
        vec![Action::Poll(machine.applied())]
    }

    /// Asks until there is an answer.
    async fn ask<T, F: Future<Output = Result<T, LedgerError>>>(
        &mut self,
        question: impl Fn(Ledger) -> F,
    ) -> T {
        loop {
            match question(self.ledger.clone()).await {
                Ok(answer) => return answer,
                Err(error) => self.unproven(&error.to_string()),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn unproven(&mut self, why: &str) {
        warn!(cause = why, "the table could not be proven to be current");
        self.writer.explain(why);
    }

    fn write(&mut self, action: Action) {
        match action {
            Action::Apply(key, record) => {
                let state = record.as_ref().map(|record| &record.state);
                self.writer.apply(key, state.map_err(|_| UnreadablePair));
            }
            Action::Applied(revision, recorded) => {
                self.writer.applied(revision);
                if recorded > crate::consent::time::Timestamp::MIN {
                    self.metrics.propagated(clock::wall().since(recorded));
                }
            }
            Action::Prove(asked, ledger_clock) => {
                self.writer.proven(asked, ledger_clock);
                self.writer.explain("");
            }
            Action::Validate => {
                info!("the table holds the ledger");
                self.writer.validate();
            }
            Action::Invalidate(cause) => {
                if cause != Cause::Start {
                    warn!(cause = cause.label(), "the table is not valid");
                }
                self.metrics.resynced(cause.label());
                if cause == Cause::Fork {
                    self.metrics.forked();
                }
                self.writer.invalidate();
                self.writer.explain(cause.to_string());
            }
            Action::GapRepaired => self.metrics.gap_repaired(),
            Action::Clear | Action::Poll(_) | Action::ReadBucket(_) => {}
        }
    }
}
