//! What the follower logs, counts, and publishes to the table's readers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::applier::{ActionOutcome, BucketOutcome, Judgement};
use super::shared_log::{Incident, SharedLog};
use super::state_machine::{Action, ResyncCause, StateMachine};
use crate::metrics::Metrics;
use crate::table::Writer;
use consentd_core::time::{Timestamp, clock_offset_warning};
use consentd_ledger::{DurabilityStatus, LedgerError, Partition};
use consentd_os::clock::{self, Moment};

/// How often a failure that lasts is logged again.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How often a clock offset that lasts is logged again.
const CLOCK_LOG_INTERVAL: Duration = Duration::from_mins(5);

/// Reports the follower's progress: each state is logged when it begins, now and then while it lasts,
/// and when it ends.
pub(super) struct Report {
    ledger: Partition,
    /// The partition's number, of several.
    partition: Option<u32>,
    metrics: Arc<Metrics>,
    /// What the partitions have logged.
    shared_log: SharedLog,
    /// Counts the losses of the ledger, for recorders.
    losses: watch::Sender<u64>,
    /// Why the table cannot be proven, as last logged, and when.
    unproven: Option<(String, Duration)>,
    /// When a clock offset was last logged, while there is one.
    clock_offset: Option<Moment>,
    /// Whether the ledger may have lost changes since recorders were last notified.
    may_have_lost: bool,
    /// Why the table stays invalid although it holds the ledger; empty if it does not.
    overflow: String,
    /// How durable the ledger is, as last logged.
    durability: Option<DurabilityStatus>,
    /// Why announcements are not received, as last logged.
    unsubscribed: Option<String>,
    /// Buckets that the ledger has lost, and that are not restored yet.
    lost_buckets: HashSet<u32>,
    /// Why businesses cannot be added, as last logged.
    addition_error: Option<String>,
}

impl Report {
    /// Reports about a partition of the ledger.
    pub(super) fn new(
        ledger: Partition,
        metrics: Arc<Metrics>,
        losses: watch::Sender<u64>,
        shared_log: SharedLog,
    ) -> Self {
        Self {
            ledger,
            partition: None,
            shared_log,
            metrics,
            losses,
            unproven: None,
            clock_offset: None,
            may_have_lost: false,
            overflow: String::new(),
            durability: None,
            unsubscribed: None,
            lost_buckets: HashSet::new(),
            addition_error: None,
        }
    }

    /// Names the partition in what is logged, where there are several.
    pub(super) fn name_partition(&mut self) {
        self.partition = Some(self.ledger.number());
        if let Some((why, _)) = &self.unproven {
            // It was logged before it was known that there are several.
            self.begins(Incident::Unproven, why);
        }
    }

    /// The number of the partition that is reported about, of several.
    pub(super) fn partition(&self) -> Option<u32> {
        self.partition
    }

    /// Whether a message is to be logged: not if another partition has just logged the same. It is on the
    /// status page and in the metrics of each partition in any case.
    fn is_first(&self, message: &str) -> bool {
        self.partition.is_none() || self.shared_log.is_first(message)
    }

    /// Whether it is to be logged that an incident has begun here, or has another cause: see [`SharedLog::begins`].
    fn begins(&self, incident: Incident, cause: &str) -> bool {
        self.partition.is_none_or(|number| self.shared_log.begins(incident, number, cause))
    }

    /// Whether it is to be logged that an incident is over here: if it is over for all partitions.
    fn ends(&self, incident: Incident) -> bool {
        self.partition.is_none_or(|number| self.shared_log.ends(incident, number))
    }

    /// Reports that announcements are received.
    pub(super) fn on_subscribed(&mut self) {
        self.metrics.subscribed("subscribed");
        if self.unsubscribed.take().is_some() && self.ends(Incident::Unsubscribed) {
            info!("subscribed to the ledger's announcements again");
        }
    }

    /// Reports that the Pub/Sub subscription is lost or refused: polls carry changes meanwhile, later.
    pub(super) fn on_unsubscribed(
        &mut self,
        refused: bool,
        why: &(dyn std::error::Error + Send + Sync),
    ) {
        self.metrics.subscribed(if refused { "refused" } else { "failed" });
        let why = why.to_string();
        if self.unsubscribed.as_ref() == Some(&why) {
            return;
        }
        if self.begins(Incident::Unsubscribed, &why) {
            warn!(
                partition = self.partition,
                cause = why,
                "not subscribed to the ledger's announcements (Redis Pub/Sub): opt-outs are enforced \
                 a poll later than usual, within --max-staleness; it is tried again by itself; if it \
                 lasts, see that the ACL permits +subscribe (+ssubscribe in a Cluster) and the channel, and that the network \
                 lets the connection through"
            );
        }
        self.unsubscribed = Some(why);
    }

    /// Reports that the ledger could not be read.
    pub(super) fn on_read_error(&mut self, writer: &mut Writer, error: &LedgerError) {
        self.set_unproven(writer, &error.to_string());
    }

    /// Reports that the ledger at the address has other partitions than the tables were made for.
    pub(super) fn on_other_layout(&mut self, writer: &mut Writer) {
        self.set_unproven(
            writer,
            "the ledger was replaced by one that is divided otherwise: restart this sidecar",
        );
    }

    /// Reports that a bucket could not be read, or was lost.
    pub(super) fn on_bucket_error(
        &mut self,
        writer: &mut Writer,
        number: u32,
        is_live: bool,
        error: &LedgerError,
    ) {
        if error.is_lost_key() {
            if self.lost_buckets.insert(number) {
                error!(partition = self.partition,
                    cause = %error,
                    "a bucket of the ledger was deleted or evicted in Redis: messages to its users \
                     are denied until it is back; run `consentd ledger repair`, or restore a backup \
                     of Redis"
                );
            }
            if is_live {
                return self.check_ledger(writer);
            }
            // The bucket's pairs are unknown, so the table cannot be loaded, and everything is denied.
        }
        self.set_unproven(writer, &error.to_string());
    }

    /// Reports that other businesses are to be held.
    pub(super) fn on_wanted(&mut self, machine: &StateMachine) {
        self.addition_error = None;
        if machine.is_adding() {
            info!(
                partition = self.partition,
                "the businesses that were added are read from the ledger beside the others"
            );
        }
    }

    /// Reports that a bucket could not be read for the businesses that are being added.
    pub(super) fn on_addition_error(&mut self, error: &LedgerError) {
        let why = error.to_string();
        if self.addition_error.as_ref() != Some(&why) {
            warn!(
                partition = self.partition,
                cause = why,
                "the businesses that were added cannot be read from the ledger yet: questions about \
                 them are refused until they are, and it is tried again by itself"
            );
            self.addition_error = Some(why);
        }
    }

    fn set_unproven(&mut self, writer: &mut Writer, why: &str) {
        self.check_ledger(writer);
        let now = clock::boot();
        let is_due = self.unproven.as_ref().is_none_or(|(logged, at)| {
            logged != why || now.saturating_sub(*at) >= FAILURE_LOG_INTERVAL
        });
        if is_due {
            match self.partition {
                None => warn!(
                    cause = why,
                    "cannot prove that this sidecar has all of the ledger's changes: once the last proof is \
                     older than --max-staleness, every check is denied as STALE; retrying by itself"
                ),
                partition if self.begins(Incident::Unproven, why) => warn!(
                    partition,
                    cause = why,
                    "cannot prove that this sidecar has all changes of this partition of the ledger, and perhaps \
                     of others (see `consentd status`): once the last proof is older than --max-staleness, checks \
                     of its pairs are denied as STALE, and before it was first loaded they fail as not ready; \
                     retrying by itself"
                ),
                Some(_) => {}
            }
            self.unproven = Some((why.to_owned(), now));
        }
        writer.set_cause(why);
    }

    /// Reports an action on the table and its outcome.
    pub(super) fn on_action(
        &mut self,
        writer: &mut Writer,
        action: &Action,
        outcome: ActionOutcome,
    ) {
        match action {
            // What is replayed over a snapshot, or read while the table is loaded, was not waiting to be
            // propagated.
            Action::AdvanceRevision(_, recorded)
                if *recorded > Timestamp::MIN && writer.is_valid() =>
            {
                self.metrics.propagated(clock::wall().since(*recorded));
            }
            Action::SetProof(asked, ledger_clock) => {
                self.on_proof(writer, *asked, *ledger_clock);
            }
            Action::Invalidate(cause) => self.on_invalidated(writer, *cause),
            Action::GapRepaired => self.metrics.gap_repaired(),
            Action::Hold(businesses) => {
                let count = businesses.ids().map(|ids| ids.len());
                info!(
                    partition = self.partition,
                    businesses = count,
                    "the table holds other businesses than before"
                );
            }
            Action::RejectWarmStart(refusal) => {
                self.on_snapshot_rejected(refusal.label(), &refusal.to_string());
            }
            Action::CompareBucket(bucket) if self.lost_buckets.remove(&bucket.number) => {
                info!(
                    partition = self.partition,
                    bucket = bucket.number,
                    "a lost bucket of the ledger is back, and was read again"
                );
                self.notify_recorders();
            }
            _ => {}
        }
        match outcome.bucket {
            Some(BucketOutcome::Denied { pairs }) => {
                warn!(
                    partition = self.partition,
                    pairs,
                    "this many pairs are denied because their bucket of the ledger was lost: run \
                     `consentd ledger repair`, or restore a backup of Redis"
                );
            }
            Some(BucketOutcome::Compared { mismatches }) if mismatches > 0 => {
                warn!(
                    partition = self.partition,
                    pairs = mismatches,
                    "the table differed from the ledger, and was corrected"
                );
                self.metrics.scrub_mismatched(mismatches);
            }
            Some(BucketOutcome::Compared { .. }) | None => {}
        }
        match outcome.judgement {
            Some(Judgement::Valid { retained }) => {
                if matches!(action, Action::Validate) {
                    // Of several partitions it is logged once all of them are loaded, and loaded again.
                    match self.partition {
                        None => info!(remembered = retained, "the table holds the ledger"),
                        partition => {
                            debug!(partition, "the table holds the partition");
                            if self.ends(Incident::Invalid) {
                                info!("the tables hold the ledger again");
                            }
                        }
                    }
                    self.on_loaded();
                }
                if !std::mem::take(&mut self.overflow).is_empty() {
                    writer.set_cause("");
                }
            }
            Some(Judgement::Overflowed { retained }) => {
                self.overflow = format!(
                    "the ledger has lost denials of {retained} users, more than are remembered \
                     beside it: bring it back from a backup, or say that it is right as it is \
                     with `consentd ledger accept`"
                );
                error!(
                    partition = self.partition,
                    pairs = retained,
                    "the table stays invalid, and its pairs are denied as STALE: {}",
                    self.overflow
                );
                writer.set_cause(self.overflow.clone());
                self.on_loaded();
            }
            None => {}
        }
    }

    fn on_proof(&mut self, writer: &mut Writer, asked: Moment, ledger_clock: Timestamp) {
        self.check_clocks(writer, asked, ledger_clock);
        self.check_ledger(writer);
        if self.unproven.take().is_some() && self.ends(Incident::Unproven) {
            info!("this sidecar has all of the ledger's changes again, and answers by them");
        }
        writer.set_cause(self.overflow.clone());
    }

    fn on_invalidated(&mut self, writer: &mut Writer, cause: ResyncCause) {
        self.may_have_lost |= cause.may_be_loss();
        if cause != ResyncCause::Start && self.begins(Incident::Invalid, cause.label()) {
            warn!(
                partition = self.partition,
                cause = cause.label(),
                "the table is not valid, and its pairs are denied as STALE until it is: {cause}"
            );
        }
        self.metrics.resynced(cause.label());
        if cause == ResyncCause::Fork {
            self.metrics.forked();
        }
        writer.set_cause(cause.to_string());
    }

    /// Reports that a snapshot of the table is not used.
    pub(super) fn on_snapshot_rejected(&self, cause: &str, why: &str) {
        warn!(
            partition = self.partition,
            cause = why,
            "the saved table is not used: the ledger is read whole"
        );
        self.metrics.snapshot_refused(cause);
    }

    /// Notifies recorders, once the table is loaded, if the ledger may have lost changes. A load also
    /// ends the loss of buckets: it succeeds only if all of them are there.
    fn on_loaded(&mut self) {
        let had_lost_buckets = !std::mem::take(&mut self.lost_buckets).is_empty();
        if std::mem::take(&mut self.may_have_lost) || had_lost_buckets {
            self.notify_recorders();
        }
    }

    /// Makes recorders write back the denials that they know and the ledger may have lost.
    fn notify_recorders(&self) {
        self.losses.send_modify(|losses| *losses = losses.wrapping_add(1));
    }

    /// Reports what an operator should correct about the ledger, if that has changed.
    fn check_ledger(&mut self, writer: &mut Writer) {
        self.metrics.unannounced(self.ledger.number(), self.ledger.unannounced());
        let durability = self.ledger.durability();
        if self.durability.as_ref() == Some(&durability) {
            return;
        }
        for warning in durability.warnings.iter().filter(|warning| self.is_first(warning)) {
            warn!(partition = self.partition, "the ledger needs attention: {warning}");
        }
        let DurabilityStatus { durable, unfenced, lost_keys, .. } = durability;
        self.metrics.ledger_is(self.ledger.number(), durable, unfenced, lost_keys);
        writer.set_warnings(Arc::clone(&durability.warnings));
        self.durability = Some(durability);
    }

    /// Reports a clock offset between this machine and the ledger.
    ///
    /// The ledger read its clock between `asked` and now, so that a slow answer is no offset.
    fn check_clocks(&mut self, writer: &mut Writer, asked: Moment, ledger: Timestamp) {
        let answered = Moment::now();
        let ours = ledger.clamp(asked.wall.min(answered.wall), answered.wall.max(asked.wall));
        writer.set_clock_offset(ledger.as_millis().saturating_sub(ours.as_millis()));
        let Some(warning) = clock_offset_warning(ours, ledger) else {
            if self.clock_offset.take().is_some() && self.ends(Incident::ClockOffset) {
                info!("this machine's clock and the ledger's agree again");
            }
            return;
        };
        if self.clock_offset.is_none_or(|logged| answered.since(logged) >= CLOCK_LOG_INTERVAL) {
            self.clock_offset = Some(answered);
            if self.begins(Incident::ClockOffset, "") {
                warn!(partition = self.partition, "{warning}");
            }
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(number) = self.partition {
            self.shared_log.leaves(number);
        }
    }
}
