//! Every Prometheus instrument of the process, in one struct.
//!
//! Names follow Prometheus' conventions and have base units. No label holds a user or a business; the
//! configured numbers of the businesses are the one label whose values are not listed here.

mod budget;
mod businesses;
mod change_feed;
mod decision_log;
mod ledger_file;
mod partitions;
mod registration;
mod replication;
mod snapshots;
mod tls;
mod webhook;

use std::time::Duration;

use prometheus::core::{Collector as _, Metric as _};
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramTimer, IntCounter, IntCounterVec, IntGauge, Registry,
    TextEncoder,
};

use self::budget::BudgetMetrics;
pub use self::budget::{BYTE_POOLS, CALL_POOLS, POOL_COUNT};
use self::businesses::BusinessMetrics;
use self::change_feed::ChangeFeedMetrics;
pub use self::change_feed::WATCH_RESET_CAUSES;
pub use self::decision_log::DECISION_DROP_CAUSES;
use self::decision_log::DecisionLogMetrics;
use self::ledger_file::LedgerFileMetrics;
pub use self::partitions::PartitionGauges;
use self::partitions::PartitionMetrics;
use self::registration::{
    counter, counters, gauge, gauges, histogram, int_gauge, labelled_counters,
};
use self::replication::ReplicationMetrics;
use self::snapshots::SnapshotMetrics;
pub use self::snapshots::{SNAPSHOT_OUTCOMES, SNAPSHOT_REFUSAL_CAUSES};
use self::tls::TlsMetrics;
use self::webhook::WebhookMetrics;
pub use self::webhook::{
    ACCOUNT_ARRIVALS, LAST_UPDATE, NUMBER_ARRIVALS, RELOAD_OUTCOMES, SKIP_CAUSES, UPDATE_KINDS,
    UPDATE_OUTCOMES, WEBHOOK_CODES,
};
use consentd_core::decision::Reason;
use consentd_os::memory_limit;

/// The bucket bounds of a check's duration, in seconds.
const CHECK_BUCKETS_SECONDS: [f64; 12] =
    [1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 5e-4, 1e-3, 1e-2, 0.1, 1.0];

/// The bucket bounds of a batch's duration, in seconds.
const BATCH_BUCKETS_SECONDS: [f64; 10] = [1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 0.1, 1.0];

/// The bucket bounds of a recording's duration, in seconds: one or several syncs of a disk.
const RECORD_BUCKETS_SECONDS: [f64; 12] =
    [5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 30.0];

/// The bucket bounds of the time from an append to its being applied, in seconds.
const PROPAGATION_BUCKETS_SECONDS: [f64; 12] =
    [5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 30.0];

/// The outcomes of recording an event.
pub const RECORD_OUTCOMES: [&str; 4] = ["applied", "unchanged", "refused", "failed"];
/// The outcomes of a span.
pub const SPAN_OUTCOMES: [&str; 3] = ["exported", "dropped", "failed"];
/// The limits by which connections and calls are refused.
pub const LIMITS: [&str; 13] = [
    "accept",
    "admin",
    "authority",
    "bytes",
    "connection_bytes",
    "connections",
    "handshake",
    "in_flight",
    "recording",
    "tls",
    "unauthenticated",
    "watchers",
    "webhook",
];
/// The causes of a reload of the whole table.
pub const RESYNC_CAUSES: [&str; 7] =
    ["start", "epoch", "missing", "fork", "trimmed", "unreadable", "accepted"];

/// The outcomes of subscribing to the ledger's announcements.
pub const SUBSCRIPTION_OUTCOMES: [&str; 3] = ["subscribed", "refused", "failed"];

/// Every instrument of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    decisions: [IntCounter; Reason::ALL.len()],
    check_duration: Histogram,
    batch_duration: Histogram,
    record_duration: Histogram,
    propagation: Histogram,
    records: IntCounterVec,
    erased: IntCounter,
    replication: ReplicationMetrics,
    change_feed: ChangeFeedMetrics,
    businesses: BusinessMetrics,
    snapshots: SnapshotMetrics,
    ledger_file: LedgerFileMetrics,
    pub(crate) tls: TlsMetrics,
    decision_log: DecisionLogMetrics,
    webhooks: WebhookMetrics,
    staleness: Gauge,
    partitions: PartitionMetrics,
    pairs: IntGauge,
    table_bytes: IntGauge,
    clock_offset: Gauge,
    connections: IntGauge,
    budget: BudgetMetrics,
    refused: IntCounterVec,
    authorities_replaced: IntCounter,
    spans: IntCounterVec,
}

/// Gauges that are read from the table when the metrics are rendered: of several partitions the worst, or the sum.
#[derive(Clone, Debug)]
pub struct TableGauges {
    /// How long ago the table was last proven to be current; before that, the time since the start.
    pub staleness: Duration,
    /// Pairs in the table.
    pub pairs: usize,
    /// An estimate of the table's memory, in bytes.
    pub bytes: usize,
    /// How far the ledger's clock is ahead of this machine's, in seconds.
    pub clock_offset: f64,
    /// Pairs with retained denials.
    pub remembered: u64,
    /// How many businesses the table holds; 0 if it holds all.
    pub businesses: usize,
    /// Whether the ledger is in several partitions.
    pub is_divided: bool,
    /// The gauges of each partition that is followed.
    pub partitions: Vec<PartitionGauges>,
}

/// Totals since the start of the process, for the status page.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsSummary {
    /// Decisions, by reason, in the order of [`Reason::ALL`].
    pub decisions: [(Reason, u64); Reason::ALL.len()],
    /// The cumulative histogram of checks: the bound in seconds, and how many took no longer.
    pub check_buckets: Vec<(f64, u64)>,
    /// The number of checks that were measured.
    pub checks: u64,
    /// Events to be recorded, by outcome.
    pub records: Vec<(String, u64)>,
    /// Refused connections and calls, by limit.
    pub refused: Vec<(String, u64)>,
    /// Open gRPC connections.
    pub connections: u64,
}

impl Metrics {
    /// Registers every instrument on `registry`.
    ///
    /// # Errors
    ///
    /// An error means that the registry has an instrument of the same name.
    pub fn new(registry: Registry) -> Result<Self, prometheus::Error> {
        let r = &registry;
        let decisions = counters(
            r,
            "consent_decisions_total",
            "Decisions made, by whether the message may be sent and why.",
            &["allowed", "reason"],
        )?;
        let decisions = Reason::ALL.map(|reason| {
            let allowed = if reason.allows() { "true" } else { "false" };
            decisions.with_label_values(&[allowed, reason.name()])
        });
        r.register(Box::new(ProcessCollector::for_self()))?;
        let build = gauges(r, "consent_build_info", "The running version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let memory_limit = int_gauge(
            r,
            "consent_memory_limit_bytes",
            "The memory limit of the container at the start, beyond which the kernel kills the \
             process; 0 where there is none.",
        )?;
        let limit = memory_limit::memory_limit().unwrap_or(0);
        memory_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
        Ok(Self {
            decisions,
            check_duration: check_duration(r)?,
            batch_duration: batch_duration(r)?,
            record_duration: record_duration(r)?,
            propagation: propagation(r)?,
            records: labelled_counters(
                r,
                "consent_records_total",
                "Events asked to be recorded, by what came of them: applied, unchanged, refused \
                 (malformed or against a rule), or failed (not durable for all that is known).",
                "outcome",
                &RECORD_OUTCOMES,
            )?,
            erased: counter(
                r,
                "consent_erased_pairs_total",
                "Erased pairs, which are suppressed.",
            )?,
            replication: ReplicationMetrics::new(r)?,
            change_feed: ChangeFeedMetrics::new(r)?,
            businesses: BusinessMetrics::new(r)?,
            snapshots: SnapshotMetrics::new(r)?,
            ledger_file: LedgerFileMetrics::new(r)?,
            tls: TlsMetrics::new(r)?,
            decision_log: DecisionLogMetrics::new(r)?,
            webhooks: WebhookMetrics::new(r)?,
            staleness: gauge(
                r,
                "consent_staleness_seconds",
                "How long ago the table was last proven to hold everything, in seconds; before the \
                 first proof, the time since the start.",
            )?,
            partitions: PartitionMetrics::new(r)?,
            pairs: int_gauge(r, "consent_pairs", "Pairs of a user and a business in the table.")?,
            table_bytes: int_gauge(
                r,
                "consent_table_bytes",
                "About the memory of the table, in bytes.",
            )?,
            clock_offset: gauge(
                r,
                "consent_clock_offset_seconds",
                "How far the ledger's clock is ahead of this machine's wall clock, in seconds. \
                 Beyond one second, either way, the log, consentd status and the page warn of it: \
                 synchronise both clocks.",
            )?,
            connections: int_gauge(r, "consent_connections", "Open gRPC connections.")?,
            budget: BudgetMetrics::new(r)?,
            refused: labelled_counters(
                r,
                "consent_refused_total",
                "Connections and calls turned away, or ended for others, by the limit that they \
                 met: bytes (the budget for all), connection_bytes (the share of one), accept (the \
                 system), authority (an invalid :authority), or the one named.",
                "limit",
                &LIMITS,
            )?,
            authorities_replaced: authorities_replaced(r)?,
            spans: labelled_counters(
                r,
                "consent_spans_total",
                "Spans of sampled calls, by what came of them: exported, dropped (the queue was \
                 full, or the process ended) or failed (the collector did not take them).",
                "outcome",
                &SPAN_OUTCOMES,
            )?,
            registry,
        })
    }

    /// Counts a decision.
    pub fn decided(&self, reason: Reason) {
        // `Reason::ALL` is in the order of declaration.
        if let Some(counter) = self.decisions.get(reason as usize) {
            counter.inc();
        }
    }

    /// Counts many decisions: the number of each reason, in the order of [`Reason::ALL`].
    pub fn decided_many(&self, counts: &[u64; Reason::ALL.len()]) {
        for (counter, count) in self.decisions.iter().zip(counts) {
            if *count > 0 {
                counter.inc_by(*count);
            }
        }
    }

    /// Records the duration of a call for one decision.
    pub fn checked(&self, took: Duration) {
        self.check_duration.observe(took.as_secs_f64());
    }

    /// Records the duration of a call for many decisions.
    pub fn batch_checked(&self, took: Duration) {
        self.batch_duration.observe(took.as_secs_f64());
    }

    /// Starts a timer of a recording, which ends when it is dropped. A recording that its caller
    /// abandoned is measured too.
    pub fn recording(&self) -> HistogramTimer {
        self.record_duration.start_timer()
    }

    /// Counts an event by its outcome, one of [`RECORD_OUTCOMES`].
    pub fn recorded(&self, outcome: &'static str) {
        self.records.with_label_values(&[outcome]).inc();
    }

    /// Counts pairs that were erased.
    pub fn erased(&self, pairs: u32) {
        self.erased.inc_by(pairs.into());
    }

    /// Counts a gap in the announcements that was repaired from the log.
    pub fn gap_repaired(&self) {
        self.replication.gap_repairs.inc();
    }

    /// Counts a reload of the whole table, by one of [`RESYNC_CAUSES`].
    pub fn resynced(&self, cause: &'static str) {
        self.replication.resyncs.with_label_values(&[cause]).inc();
    }

    /// Counts a fork of the ledger.
    pub fn forked(&self) {
        self.replication.forks.inc();
    }

    /// Counts pairs for which a scrub found a difference between the table and the ledger.
    pub fn scrub_mismatched(&self, pairs: usize) {
        self.replication.scrub_mismatches.inc_by(u64::try_from(pairs).unwrap_or(u64::MAX));
    }

    /// Counts denials that were recorded again because the ledger had lost them.
    pub fn gave_back(&self, denials: usize) {
        self.replication.given_back.inc_by(u64::try_from(denials).unwrap_or(u64::MAX));
    }

    /// Counts erases that were done again because the ledger had lost them.
    pub fn erased_again(&self, pairs: usize) {
        self.replication.erased_again.inc_by(u64::try_from(pairs).unwrap_or(u64::MAX));
    }

    /// Sets what is known of a partition of the ledger: whether it is durable, whether it lacks a fence, and how many
    /// of its keys are known to be lost. The gauges are the worst of all partitions, and the sum.
    pub fn ledger_is(&self, partition: u32, durable: bool, unfenced: bool, lost_keys: u64) {
        self.replication.ledger_is(partition, durable, unfenced, lost_keys);
    }

    /// Raises the counter of appends that Redis did not permit to announce by those of a partition, of which there
    /// were so many so far.
    pub fn unannounced(&self, partition: u32, so_far: u64) {
        self.replication.unannounced_so_far(partition, so_far);
    }

    /// Forgets what was known of a partition of the ledger that is not followed any more.
    pub fn unfollowed(&self, partition: u32) {
        self.replication.unfollowed(partition);
    }

    /// Counts an attempt to subscribe to announcements, by one of [`SUBSCRIPTION_OUTCOMES`].
    pub fn subscribed(&self, outcome: &'static str) {
        self.replication.subscriptions.with_label_values(&[outcome]).inc();
    }

    /// Records the time from an append to its being applied.
    pub fn propagated(&self, took: Duration) {
        self.propagation.observe(took.as_secs_f64());
    }

    /// Counts a connection that was opened.
    pub fn connection_opened(&self) {
        self.connections.inc();
    }

    /// Counts a connection that was closed.
    pub fn connection_closed(&self) {
        self.connections.dec();
    }

    /// Counts a refused connection or call, by one of [`LIMITS`].
    pub fn refused(&self, limit: &'static str) {
        self.refused.with_label_values(&[limit]).inc();
    }

    /// Counts invalid authorities: those that were replaced, and those that HTTP/2 refuses.
    pub fn authorities(&self, replaced: u32, refused: u32) {
        self.authorities_replaced.inc_by(replaced.into());
        self.refused.with_label_values(&["authority"]).inc_by(refused.into());
    }

    /// Counts spans by their outcome, one of [`SPAN_OUTCOMES`].
    pub fn spans(&self, outcome: &'static str, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.spans.with_label_values(&[outcome]).inc_by(count);
    }

    /// The number of decisions since the start.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.decisions.iter().map(IntCounter::get).sum()
    }

    /// The totals since the start, for the status page.
    #[must_use]
    pub fn summary(&self) -> MetricsSummary {
        let measured = self.check_duration.metric();
        let measured = measured.get_histogram();
        let buckets = measured.get_bucket().iter();
        MetricsSummary {
            decisions: Reason::ALL.map(|reason| {
                let count = self.decisions.get(reason as usize).map_or(0, IntCounter::get);
                (reason, count)
            }),
            check_buckets: buckets.map(|b| (b.upper_bound(), b.cumulative_count())).collect(),
            checks: measured.get_sample_count(),
            records: by_label(&self.records),
            refused: by_label(&self.refused),
            connections: u64::try_from(self.connections.get()).unwrap_or(0),
        }
    }

    /// Renders all instruments in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// An error means that the encoder refused an instrument.
    pub fn render(&self, table: &TableGauges) -> Result<String, prometheus::Error> {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.staleness.set(table.staleness.as_secs_f64());
        self.partitions.set(table);
        self.pairs.set(whole(table.pairs));
        self.set_businesses(table.businesses);
        self.table_bytes.set(whole(table.bytes));
        self.clock_offset.set(table.clock_offset);
        self.replication.remembered.set(i64::try_from(table.remembered).unwrap_or(i64::MAX));
        self.budget.refresh();
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

fn authorities_replaced(r: &Registry) -> Result<IntCounter, prometheus::Error> {
    counter(
        r,
        "consent_authorities_replaced_total",
        "Times that a client sent a socket's path as :authority over a Unix socket, as clients \
         on gRPC core and grpc-java do where no other is configured. HTTP/2 would refuse it; \
         it is replaced, and the calls are served. One that comes after the first 16 KiB of a \
         call's headers is not.",
    )
}

fn check_duration(registry: &Registry) -> Result<Histogram, prometheus::Error> {
    histogram(
        registry,
        "consent_check_duration_seconds",
        "Time that one CanSend took inside the process, from the decoded request to its \
         answer, a wait for min_revision included.",
        &CHECK_BUCKETS_SECONDS,
    )
}

fn batch_duration(registry: &Registry) -> Result<Histogram, prometheus::Error> {
    histogram(
        registry,
        "consent_batch_duration_seconds",
        "Time that one BatchCanSend took inside the process, from the decoded request to \
         its answers, a wait for min_revision included.",
        &BATCH_BUCKETS_SECONDS,
    )
}

fn record_duration(registry: &Registry) -> Result<Histogram, prometheus::Error> {
    histogram(
        registry,
        "consent_record_duration_seconds",
        "Time from events being read to their being durable and enforced here: of one \
         RecordEvent, or of those of a RecordEvents stream that were recorded together.",
        &RECORD_BUCKETS_SECONDS,
    )
}

fn propagation(registry: &Registry) -> Result<Histogram, prometheus::Error> {
    histogram(
        registry,
        "consent_propagation_seconds",
        "Time from an event being recorded, by the ledger's clock, to its being applied.",
        &PROPAGATION_BUCKETS_SECONDS,
    )
}

/// The counts of counters with one label, by its value.
fn by_label(counters: &IntCounterVec) -> Vec<(String, u64)> {
    let families = counters.collect();
    let metrics = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
    let count = |metric: &prometheus::proto::Metric| {
        let label = metric.get_label().first().map_or("", |label| label.value());
        // The collected metric holds a float: the counter itself has the exact number.
        (label.to_owned(), counters.with_label_values(&[label]).get())
    };
    let mut counts: Vec<_> = metrics.map(count).collect();
    counts.sort_unstable();
    counts
}
