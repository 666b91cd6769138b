//! Progress on standard error: a bar on a terminal, and a line now and then in a log.

use std::io::IsTerminal as _;
use std::time::Duration;

use consentd_os::clock;
use indicatif::{ProgressBar as Bar, ProgressStyle};

use super::output;

/// How often a line is printed if standard error is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

const BAR: &str = "{bar:30} {percent:>3} %  {msg}  {elapsed} gone, {eta} to go";
const SPINNER: &str = "{spinner} {msg}  {elapsed} gone";

/// Shows how much of a command's work is done.
pub(super) struct ProgressBar {
    /// Only on a terminal.
    bar: Option<Bar>,
    last_line: Duration,
}

impl ProgressBar {
    /// A bar for this much work, or a spinner if that is unknown.
    pub(super) fn new(total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let (bar, template) = match total {
                Some(total) => (Bar::new(total), BAR),
                None => (Bar::new_spinner(), SPINNER),
            };
            match ProgressStyle::with_template(template) {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        Self { bar, last_line: clock::boot() }
    }

    /// Corrects how much work there is.
    pub(super) fn set_total(&self, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// Shows that `done` of the work is done, with a message beside the bar. If standard error is
    /// no terminal, `line` is printed instead, at most every [`LINE_INTERVAL`].
    pub(super) fn show(&mut self, done: u64, message: &str, line: Option<&str>) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(message.to_owned());
        } else if let Some(line) = line
            && clock::boot().saturating_sub(self.last_line) >= LINE_INTERVAL
        {
            self.last_line = clock::boot();
            output::note(line);
        }
    }

    /// Runs `print` while the bar is hidden, so that its output does not mix with the bar.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Prints a line to standard error, above the bar.
    pub(super) fn note(&self, text: &str) {
        self.suspend(|| output::note(text));
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
