//! The rate of checks, from counts that are sampled once a second over the last minute.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use super::format::float;

/// How often the count is sampled.
pub(super) const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// How many samples are kept: a minute's.
const MAX_SAMPLES: usize = 61;
/// The span over which the rate is averaged: ten seconds, with a tolerance for late samples.
const AVERAGE_SPAN: Duration = Duration::from_millis(10_500);

/// The width of the chart: one unit a second.
pub(super) const WIDTH: usize = MAX_SAMPLES - 2;
/// The height of the chart.
pub(super) const HEIGHT: usize = 20;

/// The samples of the last minute: the time since boot, and the count.
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<(Duration, u64)>);

/// The rate, computed from the samples.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// Checks a second over the last ten seconds; `None` before there are two samples.
    pub(super) now: Option<f64>,
    /// The highest rate of any second.
    pub(super) most: f64,
    /// The points of the chart's line, right-aligned; empty if there are too few.
    pub(super) line: String,
}

impl Samples {
    /// Adds a sample.
    pub(super) fn push(&mut self, at: Duration, count: u64) {
        if self.0.len() >= MAX_SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back((at, count));
    }

    /// Computes the rate.
    pub(super) fn rate(&self) -> Rate {
        let Some(last) = self.0.back() else { return Rate::default() };
        let lately = self.0.iter().find(|(at, _)| last.0.saturating_sub(*at) <= AVERAGE_SPAN);
        let now = lately.and_then(|first| per_second(*first, *last));
        let seconds: Vec<_> = (self.0.iter().zip(self.0.iter().skip(1)))
            .map(|(earlier, later)| per_second(*earlier, *later).unwrap_or(0.0))
            .collect();
        let most = seconds.iter().copied().fold(0.0, f64::max);
        let mut line = String::new();
        if seconds.len() > 1 {
            let first = (WIDTH + 1).saturating_sub(seconds.len());
            for (x, rate) in (first..).zip(seconds) {
                let height = float(HEIGHT as u64);
                let y = if most > 0.0 { height * (1.0 - rate / most) } else { height };
                // Writing to a string does not fail.
                let _ = write!(line, "{x},{y:.1} ");
            }
        }
        Rate { now, most, line }
    }
}

fn per_second(earlier: (Duration, u64), later: (Duration, u64)) -> Option<f64> {
    let span = later.0.checked_sub(earlier.0).filter(|span| !span.is_zero())?;
    Some(float(later.1.saturating_sub(earlier.1)) / span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(counts: impl IntoIterator<Item = u64>) -> Samples {
        let mut samples = Samples::default();
        for (second, count) in (1_000..).zip(counts) {
            samples.push(Duration::from_secs(second), count);
        }
        samples
    }

    #[test]
    fn nothing_is_said_before_there_are_two_counts() {
        assert!(samples([]).rate().now.is_none());
        assert!(samples([7]).rate().now.is_none());
        assert_eq!(samples([7, 9]).rate().now, Some(2.0));
    }

    #[test]
    fn the_rate_is_of_the_last_ten_seconds() {
        // A busy start, then 5 a second.
        let counts =
            (0..30).map(|second| if second < 15 { second * 100 } else { 1_500 + 5 * second });
        assert_eq!(samples(counts).rate().now, Some(5.0));
    }

    #[test]
    fn the_line_ends_at_the_right_and_stays_inside() {
        for count in [3, 61, 200] {
            let rate = samples((0..count).map(|second| second * second)).rate();
            let points: Vec<(usize, f64)> = (rate.line.split_whitespace())
                .map(|point| point.split_once(',').unwrap())
                .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
                .collect();
            assert_eq!(points.last().unwrap(), &(WIDTH, 0.0), "the last second was the busiest");
            assert!(points.iter().all(|(x, y)| *x <= WIDTH && (0.0..=20.0).contains(y)));
            assert!(points.len() <= WIDTH + 1);
        }
        assert!(samples([0, 0, 0]).rate().line.ends_with("59,20.0 "));
    }
}
