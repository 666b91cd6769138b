//! Throttled log lines about webhooks. None of them names a user.

use std::time::Duration;

use tracing::warn;

use crate::net::log_throttle::LogThrottle;
use crate::recorder::Refusal;
use crate::whatsapp::{ParsedPayload, SkipCause};

/// The shortest time between two lines of one kind.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// The longest `phone_number_id` that is logged.
const MAX_NUMBER_BYTES: usize = 32;

/// The warnings of a receiver, each with a throttle of its own.
pub(super) struct WebhookWarnings {
    bad_signature: LogThrottle,
    unknown_number: LogThrottle,
    unknown_account: LogThrottle,
    malformed: LogThrottle,
    refused: LogThrottle,
    failed: LogThrottle,
}

impl Default for WebhookWarnings {
    fn default() -> Self {
        let throttle = || LogThrottle::new(LOG_INTERVAL);
        Self {
            bad_signature: throttle(),
            unknown_number: throttle(),
            unknown_account: throttle(),
            malformed: throttle(),
            refused: throttle(),
            failed: throttle(),
        }
    }
}

impl WebhookWarnings {
    /// Warns of a request whose signature is missing or wrong.
    pub(super) fn bad_signature(&self, cause: &'static str) {
        if let Some(requests) = self.bad_signature.record(1) {
            warn!(
                requests,
                cause,
                "refused webhook requests with 403: X-Hub-Signature-256, or the BSP's header, is \
                 missing or wrong; compare --webhook-app-secret-file with the app's secret in the App \
                 Dashboard, or --webhook-signature-secret-file with the BSP's"
            );
        }
    }

    /// Warns of updates that were skipped because they are malformed or their number is not configured.
    pub(super) fn skipped(&self, payload: &ParsedPayload) {
        let count = |wanted: fn(SkipCause) -> bool| {
            let counts = payload.skipped.iter().filter(|((_, cause), _)| wanted(*cause));
            counts.map(|(_, count)| count).sum()
        };
        if let Some(updates) = self.malformed.record(count(SkipCause::is_malformed)) {
            let causes = payload.skipped.keys().filter(|(_, cause)| cause.is_malformed());
            let causes: Vec<_> =
                causes.map(|(kind, cause)| [kind.name(), cause.name()].join(": ")).collect();
            warn!(
                updates,
                causes = causes.join(", "),
                "webhook updates are malformed: of each only an opt-out or another denial is recorded"
            );
        }
        let unknown = count(|cause| cause == SkipCause::UnknownNumber);
        if let Some(number) = &payload.unknown_number
            && let Some(updates) = self.unknown_number.record(unknown)
        {
            warn!(
                updates,
                phone_number_id = loggable(number),
                "dropped webhook updates for a phone_number_id that is not configured: name its \
                 business in [whatsapp.numbers]"
            );
        }
        let unknown = count(|cause| cause == SkipCause::UnknownAccount);
        if let Some(account) = &payload.unknown_account
            && let Some(updates) = self.unknown_account.record(unknown)
        {
            warn!(
                updates,
                account = loggable(account),
                "dropped webhook updates about templates for a WhatsApp business account that is not \
                 configured: name its business in [whatsapp.accounts]"
            );
        }
    }

    /// Warns of an update that will never be recorded, however often it is repeated.
    pub(super) fn refused(&self, refusal: &Refusal) {
        if let Some(updates) = self.refused.record(1) {
            let field = match refusal {
                Refusal::Invalid(found) => found.first().map_or("", |found| found.field.as_str()),
                _ => "",
            };
            warn!(
                updates,
                field,
                cause = %refusal,
                "dropped webhook updates that the consent rules reject"
            );
        }
    }

    /// Warns of an update that could not be recorded now, and that WhatsApp will repeat.
    pub(super) fn failed(&self, refusal: &Refusal) {
        if let Some(updates) = self.failed.record(1) {
            warn!(
                updates,
                cause = %refusal,
                "could not record webhook updates: answered 503, so that WhatsApp sends them again; \
                 check the ledger"
            );
        }
    }
}

/// An id from a payload, for the log: text from an unknown sender is logged only if it can be nothing but
/// such an id.
fn loggable(id: &str) -> &str {
    let is_id = id.len() <= MAX_NUMBER_BYTES && id.bytes().all(|b| b.is_ascii_digit());
    if is_id { id } else { "not a number" }
}
