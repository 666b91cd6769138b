//! Panics of redb as errors.
//!
//! redb trusts a file that was closed well, and may panic where its pages were changed since: by a
//! failing disk, or by another program. That is damage to tell of, not a crash.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

/// The most characters of a panic's message that are told.
const MAX_TOLD: usize = 200;

thread_local! {
    /// Whether this thread's panics are caught, and told as errors.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What a panic said.
#[derive(Debug, thiserror::Error)]
#[error("a page of it does not hold what it should (redb: {0})")]
pub(super) struct Panicked(String);

/// Runs what may panic because of the file that it reads; a panic is an error, and is not printed
/// as the end of a thread. What `work` leaves half done must not be used afterwards.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    quiet_where_guarded();
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    outcome.map_err(|panic| {
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Panicked(said.unwrap_or("a panic without words").chars().take(MAX_TOLD).collect())
    })
}

/// Keeps the panics of guarded threads from being printed; those of others are printed as before.
fn quiet_where_guarded() {
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
    fn guarded_panics_are_errors_with_their_words() {
        assert_eq!(guarded(|| 7).unwrap(), 7);
        for number in [1, 2] {
            let said = guarded(|| panic!("page {number}")).unwrap_err().to_string();
            assert!(said.contains(&format!("page {number}")), "{said}");
        }
        let inner = guarded(|| guarded(|| panic!("inner")).is_err()).unwrap();
        assert!(inner && !GUARDED.get());
    }
}
