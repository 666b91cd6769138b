//! Shows the progress of a benchmark, on a terminal only.

use std::time::Duration;

use consentd_bench::Progress;
use indicatif::HumanCount;

use crate::cli::progress_bar::ProgressBar;

/// When a benchmark ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    /// After so many requests.
    Count(u64),
    /// After so much time.
    Time(Duration),
}

pub(super) struct LoadProgress {
    bar: ProgressBar,
    goal: Goal,
    last: Progress,
}

impl LoadProgress {
    pub(super) fn new(goal: Goal) -> Self {
        let total = match goal {
            Goal::Count(count) => count,
            Goal::Time(time) => millis(time),
        };
        Self { bar: ProgressBar::new(Some(total)), goal, last: Progress::default() }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        let last = std::mem::replace(&mut self.last, progress);
        let answered = u128::from(progress.answered.saturating_sub(last.answered)) * 1_000_000;
        let rate = answered / progress.elapsed.saturating_sub(last.elapsed).as_micros().max(1);
        let rate = HumanCount(u64::try_from(rate).unwrap_or(u64::MAX));
        let done = match self.goal {
            Goal::Count(_) => progress.answered,
            Goal::Time(time) => millis(progress.elapsed.min(time)),
        };
        let message = format!("{rate} answers/s, {} errors", HumanCount(progress.failed));
        self.bar.show(done, &message, None);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
