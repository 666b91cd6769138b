//! Instruments of the follower and of the state of the ledger.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

use super::{RESYNC_CAUSES, SUBSCRIPTION_OUTCOMES, counter, int_gauge, labelled_counters};

/// Instruments of the follower and of the state of the ledger.
#[derive(Debug)]
pub(super) struct ReplicationMetrics {
    pub(super) gap_repairs: IntCounter,
    pub(super) resyncs: IntCounterVec,
    pub(super) forks: IntCounter,
    pub(super) scrub_mismatches: IntCounter,
    pub(super) given_back: IntCounter,
    pub(super) erased_again: IntCounter,
    pub(super) remembered: IntGauge,
    durable: IntGauge,
    unfenced: IntGauge,
    lost_keys: IntGauge,
    unannounced: IntCounter,
    pub(super) subscriptions: IntCounterVec,
    partitions: Mutex<BTreeMap<u32, PartitionState>>,
}

/// What is known of one partition of the ledger.
#[derive(Clone, Copy, Debug)]
struct PartitionState {
    durable: bool,
    unfenced: bool,
    lost_keys: u64,
    /// How many appends were not announced so far.
    unannounced: u64,
}

impl Default for PartitionState {
    fn default() -> Self {
        Self { durable: true, unfenced: false, lost_keys: 0, unannounced: 0 }
    }
}

impl ReplicationMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            gap_repairs: counter(
                r,
                "consent_gap_repairs_total",
                "Announcements that were lost, and whose changes were repaired from the log.",
            )?,
            resyncs: labelled_counters(
                r,
                "consent_resyncs_total",
                "Times that the whole table was reloaded from the ledger, by cause.",
                "cause",
                &RESYNC_CAUSES,
            )?,
            forks: counter(
                r,
                "consent_forks_total",
                "Times that the ledger was found to have lost changes, or to hold others in their \
                 place.",
            )?,
            scrub_mismatches: counter(
                r,
                "consent_scrub_mismatches_total",
                "Pairs that differed between the table and the ledger at the same revision, and \
                 were mended.",
            )?,
            given_back: counter(
                r,
                "consent_denials_given_back_total",
                "Denials that the ledger lacked, after a failover or because their recording was \
                 unknown, and that this process recorded again.",
            )?,
            erased_again: counter(
                r,
                "consent_erases_given_back_total",
                "Erases that a failover lost and that this process did again.",
            )?,
            remembered: int_gauge(
                r,
                "consent_remembered_pairs",
                "Pairs that are denied because the table retains denials that the ledger has lost; \
                 consentd ledger accept ends it.",
            )?,
            durable: int_gauge(
                r,
                "consent_ledger_durable",
                "1 where the ledger writes what it acknowledges to a disk or to replicas; 0 where \
                 it is in memory alone.",
            )?,
            unfenced: int_gauge(
                r,
                "consent_ledger_unfenced",
                "1 where an isolated old primary could go on: it has replicas, or is watched by Sentinels, and \
                 needs no replica to write.",
            )?,
            lost_keys: int_gauge(
                r,
                "consent_ledger_lost_keys",
                "Keys of the ledger that this process found to be deleted or evicted, and that are \
                 not back: see consentd ledger repair.",
            )?,
            unannounced: counter(
                r,
                "consent_unannounced_appends_total",
                "Appends of this process that Redis does not permit to announce, because the user's \
                 ACL lacks the channel: other processes enforce them at their next poll, up to a \
                 third of --max-staleness later.",
            )?,
            subscriptions: labelled_counters(
                r,
                "consent_subscriptions_total",
                "Attempts to subscribe to the ledger's announcements, by outcome; an ACL refuses \
                 them where the user lacks the channel.",
                "outcome",
                &SUBSCRIPTION_OUTCOMES,
            )?,
            partitions: Mutex::default(),
        })
    }

    pub(super) fn ledger_is(&self, partition: u32, durable: bool, unfenced: bool, lost_keys: u64) {
        let mut partitions = self.partitions();
        let known = partitions.entry(partition).or_default();
        *known = PartitionState { durable, unfenced, lost_keys, ..*known };
        self.set_ledger(&partitions);
    }

    pub(super) fn unfollowed(&self, partition: u32) {
        let mut partitions = self.partitions();
        if let Some(known) = partitions.get_mut(&partition) {
            // Its appends stay counted, and go on where the sidecar records there.
            *known = PartitionState { unannounced: known.unannounced, ..PartitionState::default() };
        }
        self.set_ledger(&partitions);
    }

    pub(super) fn unannounced_so_far(&self, partition: u32, so_far: u64) {
        let mut partitions = self.partitions();
        let known = partitions.entry(partition).or_default();
        self.unannounced.inc_by(so_far.saturating_sub(known.unannounced));
        known.unannounced = known.unannounced.max(so_far);
    }

    fn set_ledger(&self, partitions: &BTreeMap<u32, PartitionState>) {
        let all = || partitions.values();
        self.durable.set(all().all(|one| one.durable).into());
        self.unfenced.set(all().any(|one| one.unfenced).into());
        let lost_keys = all().fold(0_u64, |sum, one| sum.saturating_add(one.lost_keys));
        self.lost_keys.set(i64::try_from(lost_keys).unwrap_or(i64::MAX));
    }

    fn partitions(&self) -> MutexGuard<'_, BTreeMap<u32, PartitionState>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
