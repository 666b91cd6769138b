//! What a person sees while a benchmark lasts; on a terminal alone.

use std::io::IsTerminal as _;
use std::time::Duration;

use consentd_bench::Progress;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// When it is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    /// After so many.
    Count(u64),
    /// After so long.
    Time(Duration),
}

pub(super) struct Shown {
    bar: Option<ProgressBar>,
    goal: Goal,
    /// When it was last shown, and how many there were then.
    last: (Duration, u64),
}

impl Shown {
    pub(super) fn new(goal: Goal) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(match goal {
                Goal::Count(count) => count,
                Goal::Time(time) => millis(time),
            });
            let template = "{bar:30} {percent:>3} %  {msg}  {elapsed} gone, {eta} to go";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, goal, last: (Duration::ZERO, 0) }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        let Some(bar) = &self.bar else { return };
        let Progress { elapsed: since, answered: count, failed: errors } = progress;
        let (then, before) = self.last;
        self.last = (since, count);
        let lately = u128::from(count.saturating_sub(before)) * 1_000_000;
        let rate = lately / since.saturating_sub(then).as_micros().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        bar.set_position(match self.goal {
            Goal::Count(_) => count,
            Goal::Time(time) => millis(since.min(time)),
        });
        let errors = HumanCount(errors);
        bar.set_message(format!("{} answers/s, {errors} errors", HumanCount(rate)));
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
