//! Reads files again while the process runs: every few seconds, and on SIGHUP.
//!
//! A program that writes a file may be amid its writing when the file is read, and what is missing then may
//! be valid all the same: a list of tokens with a token less, a table of numbers with a number less. So a
//! changed content counts only once two reads in a row have found it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How often files are read.
struct Schedule {
    /// The time between two readings: a token that was taken out of a file is valid for hardly longer.
    reload: Duration,
    /// The time between two reads of a changed file.
    settle: Duration,
}

const SCHEDULE: Schedule =
    Schedule { reload: Duration::from_secs(5), settle: Duration::from_millis(200) };

/// The most reads of a file that changes with each of them. The next attempt is at the next tick.
const MAX_SETTLE_READS: usize = 10;

/// The outcome of reading the files again.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Reload<T> {
    /// Whether SIGHUP asked for it.
    pub(crate) asked: bool,
    /// Whether to log it even if the content is that of before: it was asked for, or the files can be used
    /// again, or they cannot for another reason than at the last attempt.
    pub(crate) is_news: bool,
    /// The content, or why it cannot be used.
    pub(crate) content: Result<T, String>,
}

impl<T> Reload<T> {
    /// Puts the content in the place of the present one by `replace`, which returns whether they differ. Returns
    /// what to log, if anything: whether the content has changed, or why it cannot be used and changes nothing.
    pub(crate) fn replace_by(
        self,
        replace: impl FnOnce(T) -> bool,
    ) -> Option<Result<bool, String>> {
        let replaced = self.content.map(replace);
        (self.is_news || replaced == Ok(true)).then_some(replaced)
    }
}

/// Reads files again every five seconds and on each SIGHUP, and passes each outcome on. Ends only if no
/// signal can be received any more.
pub(crate) async fn reload<T, E>(
    hangup: Signal,
    read: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    apply: impl FnMut(Reload<T>),
) where
    T: Clone + PartialEq + Send + 'static,
    E: fmt::Display + Send + 'static,
{
    let read = Arc::new(move || read().map_err(|error| error.to_string()));
    reload_by(&SCHEDULE, hangup, &read, apply).await;
}

async fn reload_by<T: Clone + PartialEq + Send + 'static>(
    schedule: &Schedule,
    mut hangup: Signal,
    read: &Arc<impl Fn() -> Result<T, String> + Send + Sync + 'static>,
    mut apply: impl FnMut(Reload<T>),
) {
    let mut ticks = interval(schedule.reload);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<Result<T, String>> = None;
    let mut asked = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            signal = hangup.recv() => {
                if signal.is_none() { return }
                asked = true;
            }
        }
        let Some(content) = settled(schedule, read, last.as_ref()).await else { continue };
        let is_news = asked
            || match (&content, &last) {
                (Ok(_), last) => matches!(last, Some(Err(_))),
                (content, last) => last.as_ref() != Some(content),
            };
        last = Some(content.clone());
        apply(Reload { asked: std::mem::take(&mut asked), is_news, content });
    }
}

/// The content, if it is that of `last` or two reads in a row find it.
async fn settled<T: PartialEq + Send + 'static>(
    schedule: &Schedule,
    read: &Arc<impl Fn() -> Result<T, String> + Send + Sync + 'static>,
    last: Option<&Result<T, String>>,
) -> Option<Result<T, String>> {
    let once = || {
        let read = Arc::clone(read);
        async move {
            let content = tokio::task::spawn_blocking(move || read()).await;
            content.unwrap_or_else(|panicked| Err(panicked.to_string()))
        }
    };
    let mut content = once().await;
    if last == Some(&content) {
        return Some(content);
    }
    for _ in 0..MAX_SETTLE_READS {
        sleep(schedule.settle).await;
        let again = once().await;
        if again == content {
            return Some(again);
        }
        content = again;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::signal::unix::{SignalKind, signal};
    use tokio::sync::mpsc;

    use super::*;

    const AT_ONCE: Schedule =
        Schedule { reload: Duration::from_millis(2), settle: Duration::from_millis(1) };

    type Content = Result<&'static str, &'static str>;

    /// Reads these contents, the last of them for ever, and gives the first outcomes.
    async fn outcomes(contents: &[Content], count: usize) -> Vec<Reload<&'static str>> {
        let rest = Mutex::new(contents.iter().copied().rev().collect::<Vec<_>>());
        let read = move || {
            let mut rest = rest.lock().unwrap();
            let content = if rest.len() > 1 { rest.pop().unwrap() } else { rest[0] };
            content.map_err(str::to_owned)
        };
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let hangup = signal(SignalKind::user_defined2()).unwrap();
        let reloading = tokio::spawn(async move {
            let apply = move |outcome| sender.send(outcome).unwrap();
            reload_by(&AT_ONCE, hangup, &Arc::new(read), apply).await;
        });
        let mut found = Vec::new();
        while found.len() < count {
            found.push(receiver.recv().await.unwrap());
        }
        reloading.abort();
        found
    }

    fn read(content: &'static str, is_news: bool) -> Reload<&'static str> {
        Reload { asked: false, is_news, content: Ok(content) }
    }

    #[tokio::test]
    async fn reload_amid_a_writing_takes_the_whole_file_alone() {
        let contents = [Ok("a, b"), Ok("a, b"), Ok("a, b"), Ok("a"), Ok("a, b, c")];
        let found = outcomes(&contents, 3).await;
        let expected = [read("a, b", false), read("a, b", false), read("a, b, c", false)];
        assert_eq!(found, expected);
    }

    #[test]
    fn replaced_content_is_logged_if_it_differs_or_is_news() {
        let failed = || "no".to_owned();
        let outcome =
            |is_news, content: Result<i32, String>| Reload { asked: false, is_news, content };
        assert_eq!(outcome(false, Ok(1)).replace_by(|_| true), Some(Ok(true)));
        assert_eq!(outcome(true, Ok(1)).replace_by(|_| false), Some(Ok(false)));
        assert_eq!(outcome(false, Ok(1)).replace_by(|_| false), None);
        assert_eq!(outcome(true, Err(failed())).replace_by(|_| true), Some(Err(failed())));
        assert_eq!(outcome(false, Err(failed())).replace_by(|_| true), None);
    }

    #[tokio::test]
    async fn reload_that_fails_says_so_once_and_when_it_works_again() {
        let contents = [Err("no"), Err("no"), Err("no"), Ok("a"), Ok("a")];
        let found = outcomes(&contents, 3).await;
        let failed = |is_news| Reload { asked: false, is_news, content: Err("no".to_owned()) };
        assert_eq!(found, [failed(true), failed(false), read("a", true)]);
    }
}
