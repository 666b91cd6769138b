//! How long something took, again and again: a histogram, in full precision up to its tail.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

/// Decimal digits that are kept.
const DIGITS: u8 = 3;
/// The longest time that is told apart.
const LONGEST: Duration = Duration::from_hours(24);

/// What is told of them, by name and share.
const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.999_9)];

/// How often something took how long, in nanoseconds.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    #[allow(clippy::expect_used, reason = "the bounds are constants, and are good")]
    pub(super) fn new() -> Self {
        let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        Self(Histogram::new_with_bounds(1, longest, DIGITS).expect("bounds that can be"))
    }

    pub(super) fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(super) fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Each by its name, in microseconds.
    fn all(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let quantile = |(name, share)| (name, micros(self.0.value_at_quantile(share)));
        QUANTILES.into_iter().map(quantile).chain([("max", micros(self.0.max()))])
    }

    /// For scripts.
    pub(super) fn json(&self) -> Value {
        let all = self.all().chain([("mean", (self.0.mean()).round() / 1e3)]);
        Value::Object(
            all.map(|(name, value)| (name.to_owned(), json!(value))).collect::<Map<_, _>>(),
        )
    }

    /// For people, below [`head`].
    pub(super) fn row(&self, name: &str) -> String {
        self.all().fold(format!("{name:<20}"), |row, (_, value)| format!("{row}{value:>11.1}"))
    }
}

/// What stands above the rows.
pub(super) fn head(name: &str) -> String {
    let names = QUANTILES.map(|(name, _)| name).into_iter().chain(["max"]);
    names.fold(format!("{name:<20}"), |head, name| format!("{head}{name:>11}"))
}

#[allow(clippy::cast_precision_loss, reason = "a day is 47 bits of nanoseconds")]
fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}
