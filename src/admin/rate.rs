//! How many checks a second: counts, taken once a second, of the last minute.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

use super::format::float;

/// How often the count is taken.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// How many counts are kept: a minute of them.
const KEPT: usize = 61;
/// Over how long the rate is averaged, and how much that may be off by the clock's ticks.
const SPAN: Duration = Duration::from_millis(10_500);

/// The width of the line's drawing; each of its steps is a second.
pub(super) const WIDTH: usize = KEPT - 2;
/// The height of the line's drawing.
pub(super) const HEIGHT: usize = 20;

/// The counts of the last minute.
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<(Duration, u64)>);

/// What they say.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// Checks per second over the last ten seconds; none before two counts were taken.
    pub(super) now: Option<f64>,
    /// The most of any second.
    pub(super) most: f64,
    /// The points of a line through the seconds, right-aligned; empty where there are too few.
    pub(super) line: String,
}

impl Samples {
    /// Keeps a count that was taken at a time since boot.
    pub(super) fn push(&mut self, at: Duration, count: u64) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back((at, count));
    }

    /// What they say.
    pub(super) fn rate(&self) -> Rate {
        let Some(last) = self.0.back() else { return Rate::default() };
        let lately = self.0.iter().find(|(at, _)| last.0.saturating_sub(*at) <= SPAN);
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
