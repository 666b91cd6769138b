//! The decision log: one line of JSON for each decision.
//!
//! A check copies its decision into a bounded queue and never waits: if the queue is full, the copy
//! is dropped and counted. One thread ([`DecisionLogWriter`]) drains the queue and writes the lines,
//! so a slow disk or reader delays no check.
//!
//! A line names the pair by its key, a keyed hash. It contains no user id and no business id.

mod output;
mod writer;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use self::output::Output;
pub use self::writer::{DecisionLogWriter, DropReporter};
use crate::metrics::Metrics;
use consentd_core::decision::{Form, Reason};
use consentd_core::id::Key;
use consentd_core::record::Revision;
use consentd_core::scope::{Category, Class, MAX_TOPIC_CHARS};
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

/// The capacity of the queue, in decisions: about 8 MiB. A decision beyond it is dropped.
const QUEUE_ENTRIES: usize = 65_536;

/// The destination of the lines.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LogTarget {
    /// A file, which is rotated.
    File(PathBuf),
    /// Standard output, which has nothing else: the process' own log is on standard error.
    Stdout,
}

/// Which decisions are logged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DecisionFilter {
    /// All decisions.
    All,
    /// Denials alone.
    Denials,
}

/// Settings of the decision log.
#[derive(Clone, Debug, PartialEq)]
pub struct DecisionLogSettings {
    /// The destination of the lines.
    pub target: LogTarget,
    /// The share of decisions that is logged, more than 0 and at most 1, of those that pass `filter`.
    pub sample: f64,
    /// Which decisions are logged.
    pub filter: DecisionFilter,
    /// The size at which a file is rotated, in bytes. No file exceeds it.
    pub max_size: u64,
    /// The number of rotated files that are kept, besides the current one.
    pub keep: u32,
}

/// A decision to be logged.
#[derive(Clone, Copy, Debug)]
pub struct DecisionRecord<'a> {
    /// The pair's key.
    pub key: Key,
    /// The category of the message.
    pub category: Category<'a>,
    /// The form of the message.
    pub form: Form,
    /// The reason, which says whether the message may be sent.
    pub reason: Reason,
    /// The revision of the table that the decision was made from.
    pub revision: Revision,
    /// How long ago the table had last been proven to be current.
    pub staleness: Duration,
    /// The time of the decision.
    pub now: Moment,
    /// The class that decided, if that of the message's template is known to be stricter.
    pub stricter: Option<Class>,
}

/// The sending half of the queue. Clones share the queue.
#[derive(Clone)]
pub struct DecisionLog {
    entries: SyncSender<QueuedDecision>,
    filter: DecisionFilter,
    /// The highest [`sample_hash`] that is logged.
    sample_threshold: u64,
    metrics: Arc<Metrics>,
}

/// Makes the queue and its writer. A regular file is opened here, so that an error is reported at
/// the start. What may block until it has a reader, such as a FIFO, is opened by the writer's thread.
///
/// # Errors
///
/// An error means that the file cannot be opened.
pub fn open(
    settings: DecisionLogSettings,
    metrics: Arc<Metrics>,
) -> io::Result<(DecisionLog, DecisionLogWriter)> {
    let DecisionLogSettings { target, sample, filter, max_size, keep } = settings;
    let output = Output::new(target, max_size, keep)?;
    let (entries, waiting) = sync_channel(QUEUE_ENTRIES);
    let writer = DecisionLogWriter::new(waiting, output, Arc::clone(&metrics));
    Ok((
        DecisionLog { entries, filter, sample_threshold: sample_threshold(sample), metrics },
        writer,
    ))
}

/// The highest [`sample_hash`] that is logged, so that this share of decisions is.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a share is exact enough, and a cast of a float saturates"
)]
fn sample_threshold(share: f64) -> u64 {
    (share * u64::MAX as f64) as u64
}

impl DecisionLog {
    /// Queues a decision if it passes the filter and the sample. Neither waits nor allocates.
    #[inline(never)] // Without a decision log, a check pays for one branch alone.
    pub fn log(&self, decided: &DecisionRecord<'_>) {
        if self.filter == DecisionFilter::Denials && decided.reason.allows() {
            return;
        }
        if sample_hash(decided) > self.sample_threshold {
            return;
        }
        if self.entries.try_send(QueuedDecision::of(decided)).is_err() {
            self.metrics.decisions_dropped("queue", 1);
        }
    }
}

/// A uniformly distributed hash of the pair and the nanosecond. With the time in it, no pair is always
/// left out; with the pair, neither is a whole batch.
fn sample_hash(decided: &DecisionRecord<'_>) -> u64 {
    // The finaliser of SplitMix64.
    let nanos = u64::try_from(decided.now.boot.as_nanos()).unwrap_or(u64::MAX);
    let mut mixed = decided.key.bits() ^ nanos.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A decision in the queue: a copy of everything in its line, without allocation.
#[derive(Clone, Copy, Debug)]
struct QueuedDecision {
    key: Key,
    revision: Revision,
    time: Timestamp,
    staleness: Duration,
    topic: [u8; MAX_TOPIC_CHARS],
    topic_bytes: u8,
    class: Class,
    form: Form,
    reason: Reason,
    stricter: Option<Class>,
}

impl QueuedDecision {
    fn of(decided: &DecisionRecord<'_>) -> Self {
        let mut topic = [0; MAX_TOPIC_CHARS];
        let named = decided.category.topic.unwrap_or_default().as_bytes();
        // A topic is ASCII and has at most `MAX_TOPIC_CHARS` characters.
        let bytes = named.len().min(MAX_TOPIC_CHARS);
        topic[..bytes].copy_from_slice(&named[..bytes]);
        Self {
            key: decided.key,
            revision: decided.revision,
            time: decided.now.wall,
            staleness: decided.staleness,
            topic,
            topic_bytes: u8::try_from(bytes).unwrap_or(0),
            class: decided.category.class,
            form: decided.form,
            reason: decided.reason,
            stricter: decided.stricter,
        }
    }

    /// Appends its line. None of its texts needs an escape in JSON.
    fn write(&self, line: &mut Vec<u8>) {
        let time = self.time.rfc3339_millis();
        let (key, class) = (u128::from_be_bytes(self.key.to_bytes()), self.class.name());
        let topic = self.topic.get(..self.topic_bytes.into()).unwrap_or_default();
        let topic = str::from_utf8(topic).unwrap_or_default();
        let dot = if topic.is_empty() { "" } else { "." };
        let form = match self.form {
            Form::Any => "UNSPECIFIED",
            Form::FreeForm => "FREE_FORM",
            Form::Template => "TEMPLATE",
        };
        let (allowed, reason) = (self.reason.allows(), self.reason.name());
        let (seconds, micros) = (self.staleness.as_secs(), self.staleness.subsec_micros());
        let revision = self.revision;
        let used = self.stricter.map(|class| format!(",\"category_used\":\"{}\"", class.name()));
        let used = used.unwrap_or_default();
        // Writing into memory does not fail.
        let _ = writeln!(
            line,
            "{{\"time\":\"{time}\",\"pair\":\"{key:032x}\",\"category\":\"{class}{dot}{topic}\"{used},\
             \"form\":\"{form}\",\"allowed\":{allowed},\"reason\":\"{reason}\",\
             \"revision\":{revision},\"staleness\":{seconds}.{micros:06}}}"
        );
    }
}

#[cfg(test)]
mod tests;
