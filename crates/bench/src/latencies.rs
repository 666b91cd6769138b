//! A histogram of latencies.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The precision of a recorded value, in decimal digits.
const SIGNIFICANT_DIGITS: u8 = 3;
/// Longer latencies are recorded as this one.
const MAX_LATENCY: Duration = Duration::from_hours(24);

/// The reported quantiles: name and share.
pub const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.999_9)];

/// A histogram of latencies, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

impl Latencies {
    /// An empty histogram.
    #[must_use]
    #[allow(
        clippy::expect_used,
        clippy::missing_panics_doc,
        reason = "the bounds are constants, and are valid"
    )]
    pub(crate) fn new() -> Self {
        let max = u64::try_from(MAX_LATENCY.as_nanos()).unwrap_or(u64::MAX);
        Self(Histogram::new_with_bounds(1, max, SIGNIFICANT_DIGITS).expect("valid bounds"))
    }

    /// Adds one latency.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds all latencies of another histogram.
    pub(crate) fn add(&mut self, other: &Self) {
        // Adding fails only if the bounds differ, and all histograms have the same.
        let _ = self.0.add(&other.0);
    }

    /// How many latencies were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The [`QUANTILES`] and the maximum, each with its name, in microseconds.
    pub fn quantiles(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let quantile = |(name, share)| (name, micros(self.0.value_at_quantile(share)));
        QUANTILES.into_iter().map(quantile).chain([("max", micros(self.0.max()))])
    }

    /// The mean, in microseconds, to the nanosecond.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.0.mean().round() / 1e3
    }
}

#[allow(clippy::cast_precision_loss, reason = "a day is 47 bits of nanoseconds")]
fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}
