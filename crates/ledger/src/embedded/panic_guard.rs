//! Converts panics of redb into errors.
//!
//! redb trusts a file that was closed cleanly, and may panic if its pages were changed since, by a
//! failing disk or another program. Such damage is to be reported; it must not crash the process.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

/// The most characters of a panic's message that an error includes.
const MAX_MESSAGE_CHARS: usize = 200;

thread_local! {
    /// Whether this thread's panics are caught and returned as errors.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// A caught panic, with its message.
#[derive(Debug, thiserror::Error)]
#[error("a page of it does not hold what it should (redb: {0})")]
pub(super) struct RedbPanic(String);

/// Runs `work`, which may panic because the file that it reads is damaged. A panic is returned as an
/// error and not printed. State that `work` leaves inconsistent must not be used afterwards.
pub(super) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, RedbPanic> {
    silence_guarded_panics();
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    outcome.map_err(|panic| {
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        RedbPanic(said.unwrap_or("a panic without words").chars().take(MAX_MESSAGE_CHARS).collect())
    })
}

/// Installs a panic hook, once, that does not print the panics of guarded threads.
fn silence_guarded_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if !GUARDED.get() {
                before(panic);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catch_panic_returns_an_error_with_the_message() {
        assert_eq!(catch_panic(|| 7).unwrap(), 7);
        for number in [1, 2] {
            let said = catch_panic(|| panic!("page {number}")).unwrap_err().to_string();
            assert!(said.contains(&format!("page {number}")), "{said}");
        }
        let inner = catch_panic(|| catch_panic(|| panic!("inner")).is_err()).unwrap();
        assert!(inner && !GUARDED.get());
    }
}
