//! What is logged of webhooks, and how often: never whose they are, and not once for each.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::warn;

use crate::recorder::Refusal;
use crate::whatsapp::{ParsedPayload, SkipCause};
use consentd_os::clock;

/// How often the same is complained about; what was not told is counted.
const EVERY: Duration = Duration::from_secs(30);

/// The longest number's id that is said back.
const MAX_NUMBER_BYTES: usize = 32;

/// What may be complained about.
#[derive(Default)]
pub(super) struct WebhookWarnings {
    signature: Limited,
    stranger: Limited,
    malformed: Limited,
    refused: Limited,
    failed: Limited,
}

/// When it was last complained, and what has not been told since.
#[derive(Default)]
struct Limited(Mutex<(Option<Duration>, u64)>);

impl Limited {
    /// Adds what there is to tell; gives how much it is, where it is time to tell.
    fn add(&self, count: u64) -> Option<u64> {
        let now = clock::boot();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, untold) = &mut *state;
        *untold = untold.saturating_add(count);
        if *untold == 0 || last.is_some_and(|last| now.saturating_sub(last) < EVERY) {
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(untold))
    }
}

impl WebhookWarnings {
    /// A request whose signature is not right.
    pub(super) fn signature(&self, what: &'static str) {
        if let Some(requests) = self.signature.add(1) {
            warn!(
                requests,
                cause = what,
                "refused webhook requests with 403: X-Hub-Signature-256 is missing or wrong; compare \
                 --webhook-app-secret-file with the app's secret in the App Dashboard"
            );
        }
    }

    /// What of a payload was passed over although it should not have to be.
    pub(super) fn heard(&self, heard: &ParsedPayload) {
        let of = |wanted: fn(SkipCause) -> bool| {
            let counts = heard.skipped.iter().filter(|((_, cause), _)| wanted(*cause));
            counts.map(|(_, count)| count).sum()
        };
        if let Some(updates) = self.malformed.add(of(SkipCause::is_malformed)) {
            let causes = heard.skipped.keys().filter(|(_, cause)| cause.is_malformed());
            let causes: Vec<_> =
                causes.map(|(kind, cause)| [kind.name(), cause.name()].join(": ")).collect();
            warn!(
                updates,
                causes = causes.join(", "),
                "webhook updates are malformed: of each only an opt-out or another denial is recorded"
            );
        }
        let strange = of(|cause| cause == SkipCause::UnknownNumber);
        if let Some(number) = &heard.unknown_number
            && let Some(updates) = self.stranger.add(strange)
        {
            // What a stranger wrote is said back where it can only be such an id.
            let is_id =
                number.len() <= MAX_NUMBER_BYTES && number.bytes().all(|b| b.is_ascii_digit());
            warn!(
                updates,
                phone_number_id = if is_id { number } else { "not a number" },
                "dropped webhook updates for a phone_number_id that is not configured: name its \
                 business in [whatsapp.numbers]"
            );
        }
    }

    /// An update that will not be recorded, however often it comes.
    pub(super) fn refused(&self, refusal: &Refusal) {
        if let Some(updates) = self.refused.add(1) {
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

    /// An update that could not be recorded now.
    pub(super) fn failed(&self, refusal: &Refusal) {
        if let Some(updates) = self.failed.add(1) {
            warn!(
                updates,
                cause = %refusal,
                "could not record webhook updates: answered 503, so that WhatsApp sends them again; \
                 check the ledger"
            );
        }
    }
}
