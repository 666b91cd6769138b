//! What was decided, and when: a line of JSON for each decision, written beside the checks.
//!
//! A check leaves a copy of what it decided in a bounded queue, and waits for nothing: where the
//! queue is full the copy is dropped, and counted. One thread empties the queue, makes lines of it,
//! and writes them (see [`DecisionLogWriter`]); whatever holds it up holds up no check.
//!
//! A line names the pair by its key, the keyed hash that the ledger knows it by. No user id and no
//! business id is in it.

mod output;
mod writer;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, UNIX_EPOCH};

use self::output::Output;
pub use self::writer::{DecisionLogWriter, DropReporter};
use crate::metrics::Metrics;
use consentd_core::decision::{Form, Reason};
use consentd_core::id::Key;
use consentd_core::record::Revision;
use consentd_core::scope::{Category, Class, MAX_TOPIC_CHARS};
use consentd_core::time::Timestamp;
use consentd_os::clock::Moment;

/// Decisions that wait to be written; one more is dropped, and counted. Some 8 MiB.
const QUEUE_ENTRIES: usize = 65_536;

/// Where lines go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LogTarget {
    /// To this file.
    File(PathBuf),
    /// To standard output, where nothing else goes: the process' own log is on standard error.
    Stdout,
}

/// Which decisions are logged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DecisionFilter {
    /// All of them.
    All,
    /// Those that deny.
    Denials,
}

/// What an operator may set of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct DecisionLogSettings {
    /// Where lines go.
    pub target: LogTarget,
    /// The share of decisions that is logged, of those that `filter` leaves.
    pub sample: f64,
    /// Which are.
    pub filter: DecisionFilter,
    /// The size in bytes that a file does not exceed: then another one is begun.
    pub max_size: u64,
    /// How many files of before are kept beside the one that is written.
    pub keep: u32,
}

/// What was decided.
#[derive(Clone, Copy, Debug)]
pub struct DecisionRecord<'a> {
    /// The pair's key.
    pub key: Key,
    /// What the message is about.
    pub category: Category<'a>,
    /// How it would be written.
    pub form: Form,
    /// Why it may be sent, or may not.
    pub reason: Reason,
    /// The revision that the decision rests on.
    pub revision: Revision,
    /// How long before the table was proven to be current.
    pub staleness: Duration,
    /// When it was decided.
    pub now: Moment,
}

/// Takes decisions; clones share the queue.
#[derive(Clone)]
pub struct DecisionLog {
    entries: SyncSender<QueuedDecision>,
    filter: DecisionFilter,
    /// The highest [`sample_hash`] that is logged.
    sample_threshold: u64,
    metrics: Arc<Metrics>,
}

/// What takes decisions, and what writes them. A file is opened here, so that one that cannot be is
/// told at once; what may block until somebody reads it, such as a FIFO, is not.
///
/// # Errors
///
/// Where the file cannot be opened.
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

/// The highest number that is logged, of all that there are, so that this share is.
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
    /// Logs a decision, where it is one of those to be logged. Waits for nothing, and allocates
    /// nothing.
    #[inline(never)] // Where nothing is logged, a check has a branch of this and no more.
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

/// A number for a decision, evenly spread: of the pair and of the nanosecond, so that neither the
/// same pairs are always left out, nor all of a batch.
fn sample_hash(decided: &DecisionRecord<'_>) -> u64 {
    // The finaliser of SplitMix64.
    let nanos = u64::try_from(decided.now.boot.as_nanos()).unwrap_or(u64::MAX);
    let mut mixed = decided.key.bits() ^ nanos.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A decision in the queue: a copy of all that its line says.
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
}

impl QueuedDecision {
    fn of(decided: &DecisionRecord<'_>) -> Self {
        let mut topic = [0; MAX_TOPIC_CHARS];
        let named = decided.category.topic.unwrap_or_default().as_bytes();
        // A topic is of ASCII characters, and no longer.
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
        }
    }

    /// Its line. None of the texts in it needs an escape.
    fn write(&self, line: &mut Vec<u8>) {
        let time = UNIX_EPOCH + self.time.since(Timestamp::MIN);
        let time = humantime::format_rfc3339_millis(time);
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
        // Writing into memory does not fail.
        let _ = writeln!(
            line,
            "{{\"time\":\"{time}\",\"pair\":\"{key:032x}\",\"category\":\"{class}{dot}{topic}\",\
             \"form\":\"{form}\",\"allowed\":{allowed},\"reason\":\"{reason}\",\
             \"revision\":{revision},\"staleness\":{seconds}.{micros:06}}}"
        );
    }
}

#[cfg(test)]
mod tests;
