//! What a person sees while a command goes through a ledger.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::cli::print;
use consentd_ledger::Progress;
use consentd_os::clock;

/// How often somebody who reads a log is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// A bar on a terminal, a line now and then elsewhere.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    told: Duration,
}

impl Shown {
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let template = "{bar:30} {percent:>3} %  {msg}  {elapsed} gone, {eta} to go";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, told: clock::boot() }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        let text = format!("{} pairs", HumanCount(progress.pairs));
        if let Some(bar) = &self.bar {
            bar.set_length(progress.of.into());
            bar.set_position(progress.done.into());
            bar.set_message(text);
        } else if clock::boot().saturating_sub(self.told) >= TELL_EVERY {
            self.told = clock::boot();
            print::note(&format!("{text}, bucket {} of {}", progress.done, progress.of));
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
