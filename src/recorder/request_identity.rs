//! By what a repeat of a request is recognised.

use super::Refusal;
use consentd_core::Violation;
use consentd_core::event::Event;
use consentd_core::id::KeySecret;

/// The idempotency key of a request.
pub(super) struct RequestIdentity {
    /// A keyed digest of the request id.
    pub(super) id: [u8; 16],
    /// A keyed digest of the event, by which another event with the same request id is refused.
    pub(super) what: [u8; 16],
}

impl RequestIdentity {
    /// `None` if there is no request id: a repeat is then recognised by the event's time alone.
    pub(super) fn of(event: &Event, request_id: &str, secret: &KeySecret) -> Option<Self> {
        if request_id.is_empty() {
            return None;
        }
        let mut named = b"request\0".to_vec();
        named.extend_from_slice(request_id.as_bytes());
        let what = secret.digest(&event.what.fingerprint());
        Some(Self { id: secret.digest(&named), what })
    }
}

/// The refusal of a request id that was used for a different event.
pub(super) fn reused() -> Refusal {
    let why = "was used for a different event of this user before; give every event its own";
    Refusal::Invalid(vec![Violation::new("request_id", why)])
}
