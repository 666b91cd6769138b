//! What a client tells metrics and traces.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Gets the results of checks, for metrics and traces of any kind. `on_check` is called in the task of
/// whoever asks, and `on_batch` in the task of the batch: neither may block. A panic of theirs changes no verdict; the
/// panic hook reports it. No user, business or text is ever given to them.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::time::Duration;
///
/// use consentd_client::Observer;
///
/// #[derive(Default)]
/// struct Unanswered(AtomicU64);
///
/// impl Observer for Unanswered {
///     fn on_check(&self, outcome: &str, _took: Duration) {
///         if outcome == "UNAVAILABLE" || outcome == "DEADLINE_EXCEEDED" {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
/// ```
pub trait Observer: Send + Sync + 'static {
    /// A check has its verdict. `outcome` is `allowed`, the reason of a denial such as `OPTED_OUT_ALL`, or the code of
    /// gRPC where nothing was decided, such as `UNAVAILABLE`. `took` is the time since it was asked.
    fn on_check(&self, outcome: &str, took: Duration) {
        let _ = (outcome, took);
    }

    /// Concurrent checks are sent as one batch of so many, which is told again where it is repeated.
    fn on_batch(&self, size: usize) {
        let _ = size;
    }
}

/// Calls an observer, whose panic is no reason for a check to fail.
pub(crate) fn guarded(tell: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(tell));
}
