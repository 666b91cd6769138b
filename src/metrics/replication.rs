//! Instruments of the follower and of the state of the ledger.

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
    pub(super) durable: IntGauge,
    pub(super) unfenced: IntGauge,
    pub(super) lost_keys: IntGauge,
    pub(super) unannounced: IntCounter,
    pub(super) subscriptions: IntCounterVec,
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
                "1 where an isolated old primary could go on: it has replicas, and needs none to \
                 write.",
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
        })
    }
}
