//! The refusals by WhatsApp that a pair still has, for showing them.

use super::{ExpiriesRef, Profile};
use crate::decision::CAP;
use crate::event::{CODE_FREQUENCY_CAPPED, CODE_WINDOW_CLOSED};
use crate::failure::{HeldFailure, UserFailure};
use crate::time::Timestamp;

impl Profile {
    /// The refusals that hold at `now`, in the order of their codes. A stop inside WhatsApp is not one
    /// of them: it is known by the user's preference, too.
    #[must_use]
    pub fn held_failures(&self, times: ExpiriesRef<'_>, now: Timestamp) -> Vec<HeldFailure> {
        let without_end = |code| HeldFailure { code, retry: None };
        let about_user = self.failures.iter().map(UserFailure::code).map(without_end);
        let closed = self.window_closed.then_some(without_end(CODE_WINDOW_CLOSED));
        let cap_end = times.capped().map(|capped| capped.plus(CAP)).filter(|end| now < *end);
        let capped =
            cap_end.map(|end| HeldFailure { code: CODE_FREQUENCY_CAPPED, retry: Some(end) });
        about_user.chain(closed).chain(capped).collect()
    }
}
