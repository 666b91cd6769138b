//! Instruments of webhooks.

use std::time::Duration;

use prometheus::{Histogram, IntCounterVec, Registry};

use super::{Metrics, counters, histogram, labelled_counters};

/// The status codes of answers.
pub const WEBHOOK_CODES: [u16; 9] = [200, 400, 403, 404, 405, 408, 413, 500, 503];

/// The kinds of updates.
pub const UPDATE_KINDS: [&str; 9] = [
    "message",
    "call",
    "preference",
    "status",
    "number_change",
    "link",
    "template",
    "account",
    "other",
];

/// The outcomes of an update.
pub const UPDATE_OUTCOMES: [&str; 6] =
    ["applied", "unchanged", "refused", "failed", "skipped", "malformed"];

/// The causes for which an update is skipped or malformed.
pub const SKIP_CAUSES: [&str; 22] = [
    "unknown_object",
    "unknown_field",
    "unknown_type",
    "opens_no_window",
    "not_failed",
    "not_a_call_by_user",
    "unknown_preference",
    "unknown_number",
    "to_group",
    "unknown_account",
    "announced",
    "not_a_restriction",
    "not_by_user",
    "bad_shape",
    "no_number",
    "no_account",
    "no_template",
    "no_user",
    "no_time",
    "no_text",
    "no_code",
    "no_signup_id",
];

/// The outcomes of reloading secrets and numbers.
pub const RELOAD_OUTCOMES: [&str; 2] = ["done", "failed"];

/// The bucket bounds of a request's duration, in seconds. The platform asks for a median of 250 ms.
const REQUEST_BUCKETS_SECONDS: [f64; 12] =
    [5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.25, 1.0, 5.0, 10.0];

/// Instruments of webhooks.
#[derive(Debug)]
pub(super) struct WebhookMetrics {
    requests: IntCounterVec,
    duration: Histogram,
    updates: IntCounterVec,
    skipped: IntCounterVec,
    reloads: IntCounterVec,
}

impl WebhookMetrics {
    pub(super) fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        let codes = WEBHOOK_CODES.map(|code| code.to_string());
        let updates = counters(
            r,
            "consent_webhook_updates_total",
            "Updates in webhooks, by what they are about and what came of them: applied, \
             unchanged (a repeat, or late), refused (against a rule, for good), failed (the \
             platform is to send it again), skipped (not about consent, or nobody's number) or \
             malformed.",
            &["kind", "outcome"],
        )?;
        for kind in UPDATE_KINDS {
            for outcome in UPDATE_OUTCOMES {
                let _ = updates.with_label_values(&[kind, outcome]);
            }
        }
        Ok(Self {
            requests: labelled_counters(
                r,
                "consent_webhook_requests_total",
                "Requests to the webhook listener, by the status that they were answered with.",
                "code",
                &codes.each_ref().map(String::as_str),
            )?,
            duration: histogram(
                r,
                "consent_webhook_request_duration_seconds",
                "Time from a request's head being read to its answer, which comes once what it \
                 says is durable.",
                &REQUEST_BUCKETS_SECONDS,
            )?,
            updates,
            skipped: labelled_counters(
                r,
                "consent_webhook_passed_over_total",
                "Updates in webhooks that were skipped or malformed, by why.",
                "cause",
                &SKIP_CAUSES,
            )?,
            reloads: labelled_counters(
                r,
                "consent_webhook_reloads_total",
                "Times that the webhook's secrets and numbers were reloaded: done, or failed (the \
                 previous ones stay in use).",
                "outcome",
                &RELOAD_OUTCOMES,
            )?,
        })
    }
}

impl Metrics {
    /// Counts an answered request and records its duration.
    pub fn webhook_answered(&self, code: u16, took: Duration) {
        self.webhooks.requests.with_label_values(&[&code.to_string()]).inc();
        self.webhooks.duration.observe(took.as_secs_f64());
    }

    /// Counts an update that was to be recorded, by its outcome.
    pub fn webhook_update(&self, kind: &'static str, outcome: &'static str) {
        self.webhooks.updates.with_label_values(&[kind, outcome]).inc();
    }

    /// Counts updates that were skipped, or that are malformed.
    pub fn webhook_skipped(
        &self,
        kind: &'static str,
        cause: &'static str,
        malformed: bool,
        count: u64,
    ) {
        let outcome = if malformed { "malformed" } else { "skipped" };
        self.webhooks.updates.with_label_values(&[kind, outcome]).inc_by(count);
        self.webhooks.skipped.with_label_values(&[cause]).inc_by(count);
    }

    /// Counts a reload of secrets and numbers.
    pub fn webhook_reloaded(&self, outcome: &'static str) {
        self.webhooks.reloads.with_label_values(&[outcome]).inc();
    }
}
