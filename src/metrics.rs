//! Every instrument, in one struct on a registry that is handed in.
//!
//! Names follow Prometheus' conventions: base units, and no user or business in a label.

use std::time::Duration;

use prometheus::core::{Collector as _, Metric as _};
use prometheus::{
    Encoder as _, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::decision::Reason;

/// The upper bounds of a check's duration, in seconds.
const CHECK_BUCKETS: [f64; 12] =
    [1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 5e-4, 1e-3, 1e-2, 0.1, 1.0];

/// The upper bounds of the time from an append to its being applied, in seconds.
const PROPAGATION_BUCKETS: [f64; 12] =
    [5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.5, 1.0, 5.0, 30.0];

/// What the process counts and measures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    decisions: [IntCounter; Reason::ALL.len()],
    check_duration: Histogram,
    records: IntCounterVec,
    gap_repairs: IntCounter,
    resyncs: IntCounterVec,
    propagation: Histogram,
    staleness: Gauge,
    applied_revision: IntGaugeVec,
    pairs: IntGauge,
    table_bytes: IntGauge,
    clock_offset: Gauge,
    connections: IntGauge,
    refused: IntCounterVec,
}

/// What is read off the table when somebody asks.
#[derive(Clone, Copy, Debug)]
pub struct TableGauges {
    /// How long ago it was proven to be current.
    pub staleness: Duration,
    /// The last applied revision.
    pub revision: u64,
    /// How many pairs it holds.
    pub pairs: usize,
    /// About how many bytes it takes.
    pub bytes: usize,
    /// How far the ledger's clock is ahead of this machine's, in seconds.
    pub clock_offset: f64,
}

/// What has been counted and measured since the start, for a person to look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Decisions, by reason, in the order of [`Reason::ALL`].
    pub decisions: [(Reason, u64); Reason::ALL.len()],
    /// How long checks took: upper bounds in seconds, and how many took no longer.
    pub check_buckets: Vec<(f64, u64)>,
    /// How many checks were measured.
    pub checks: u64,
    /// Events asked to be recorded, by what came of them.
    pub records: Vec<(String, u64)>,
    /// Connections and calls turned away, by the limit that they met.
    pub refused: Vec<(String, u64)>,
    /// Open gRPC connections.
    pub connections: u64,
}

impl Metrics {
    /// Registers every instrument on `registry`.
    ///
    /// # Errors
    ///
    /// Where a name is taken there already.
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
        let build = gauges(r, "consent_build_info", "The running version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            decisions,
            check_duration: histogram(
                r,
                "consent_check_duration_seconds",
                "Time that one CanSend took inside the process, from the decoded request to its \
                 answer, a wait for min_revision included.",
                &CHECK_BUCKETS,
            )?,
            records: counters(
                r,
                "consent_records_total",
                "Events asked to be recorded, by what came of them: applied, unchanged, refused \
                 (malformed or against a rule), or failed (not durable for all that is known).",
                &["outcome"],
            )?,
            gap_repairs: counter(
                r,
                "consent_gap_repairs_total",
                "Gaps between announcements that were filled from the log.",
            )?,
            resyncs: counters(
                r,
                "consent_resyncs_total",
                "Times that the whole table was read anew, by cause.",
                &["cause"],
            )?,
            propagation: histogram(
                r,
                "consent_propagation_seconds",
                "Time from an event being recorded, by the ledger's clock, to its being applied.",
                &PROPAGATION_BUCKETS,
            )?,
            staleness: gauge(
                r,
                "consent_staleness_seconds",
                "How long ago the table was last proven to hold everything.",
            )?,
            applied_revision: gauges(
                r,
                "consent_applied_revision",
                "The last revision of the ledger that the table holds.",
                &["partition"],
            )?,
            pairs: int_gauge(r, "consent_pairs", "Pairs of a user and a business in the table.")?,
            table_bytes: int_gauge(r, "consent_table_bytes", "About the memory of the table.")?,
            clock_offset: gauge(
                r,
                "consent_clock_offset_seconds",
                "How far the ledger's clock is ahead of this machine's wall clock.",
            )?,
            connections: int_gauge(r, "consent_connections", "Open gRPC connections.")?,
            refused: counters(
                r,
                "consent_refused_total",
                "Connections and calls turned away, by the limit that they met.",
                &["limit"],
            )?,
            registry,
        })
    }

    /// Counts a decision.
    pub fn decided(&self, reason: Reason) {
        // `Reason::ALL` is in the order of their declaration.
        if let Some(counter) = self.decisions.get(reason as usize) {
            counter.inc();
        }
    }

    /// Measures the time that one call took which asked for one decision.
    pub fn checked(&self, took: Duration) {
        self.check_duration.observe(took.as_secs_f64());
    }

    /// Counts what came of an event that was to be recorded.
    pub fn recorded(&self, outcome: &'static str) {
        self.records.with_label_values(&[outcome]).inc();
    }

    /// Counts a gap that the log filled.
    pub fn gap_repaired(&self) {
        self.gap_repairs.inc();
    }

    /// Counts a reading anew of the whole table.
    pub fn resynced(&self, cause: &'static str) {
        self.resyncs.with_label_values(&[cause]).inc();
    }

    /// Measures how long an event took to be applied.
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

    /// Counts a connection or a call that met a limit.
    pub fn refused(&self, limit: &'static str) {
        self.refused.with_label_values(&[limit]).inc();
    }

    /// How many decisions were made.
    #[must_use]
    pub fn decisions(&self) -> u64 {
        self.decisions.iter().map(IntCounter::get).sum()
    }

    /// What has been counted and measured.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let measured = self.check_duration.metric();
        let measured = measured.get_histogram();
        let buckets = measured.get_bucket().iter();
        Figures {
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

    /// All instruments in Prometheus' text format.
    ///
    /// # Errors
    ///
    /// Where they cannot be encoded.
    pub fn render(&self, table: TableGauges) -> Result<String, prometheus::Error> {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.staleness.set(table.staleness.as_secs_f64());
        let revision = i64::try_from(table.revision).unwrap_or(i64::MAX);
        self.applied_revision.with_label_values(&["0"]).set(revision);
        self.pairs.set(whole(table.pairs));
        self.table_bytes.set(whole(table.bytes));
        self.clock_offset.set(table.clock_offset);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

/// The counts of counters with one label, by its value.
fn by_label(counters: &IntCounterVec) -> Vec<(String, u64)> {
    let families = counters.collect();
    let metrics = families.iter().flat_map(prometheus::proto::MetricFamily::get_metric);
    let count = |metric: &prometheus::proto::Metric| {
        let label = metric.get_label().first().map_or("", |label| label.value());
        // Asked by its label once more, for the exact number.
        (label.to_owned(), counters.with_label_values(&[label]).get())
    };
    let mut counts: Vec<_> = metrics.map(count).collect();
    counts.sort_unstable();
    counts
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
) -> Result<Histogram, prometheus::Error> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    let histogram = Histogram::with_opts(options)?;
    registry.register(Box::new(histogram.clone()))?;
    Ok(histogram)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    let gauge = Gauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn int_gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}
