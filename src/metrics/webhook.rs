//! Instruments of webhooks.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{Histogram, IntCounterVec, IntGaugeVec, Registry};

use super::{Metrics, counters, gauges, histogram, labelled_counters};
use consentd_core::time::Timestamp;

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

/// The fields of webhooks that name a number, each with a kind of update in it.
pub const NUMBER_ARRIVALS: [(&str, &str); 7] = [
    ("messages", "message"),
    ("messages", "status"),
    ("calls", "call"),
    ("user_preferences", "preference"),
    ("standby", "message"),
    ("standby", "status"),
    ("history", "message"),
];

/// The fields of webhooks that concern the account, and name no number.
pub const ACCOUNT_ARRIVALS: [(&str, &str); 2] =
    [("template_category_update", "other"), ("account_update", "other")];

/// The name of the gauge of arrivals, which `consentd webhook doctor` reads.
pub const LAST_UPDATE: &str = "consent_webhook_last_update_timestamp_seconds";

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
    last_update: IntGaugeVec,
    /// The numbers that have series in `last_update`: those that are configured.
    numbers: Mutex<BTreeSet<String>>,
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
            last_update: gauges(
                r,
                LAST_UPDATE,
                "When the last update of a field and kind arrived in signed webhooks, as Unix time, for \
                 each configured phone_number_id; 0 if none has since the start. Fields of the \
                 account have no number. Of several receivers the latest counts.",
                &["field", "kind", "number"],
            )?,
            numbers: Mutex::default(),
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

    /// Gives each of the numbers its series of arrivals, at zero where they are new, and drops those of
    /// numbers that are configured no longer.
    pub fn webhook_receives<'a>(&self, numbers: impl IntoIterator<Item = &'a str>) {
        let gauge = &self.webhooks.last_update;
        let mut known = self.webhooks.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let now: BTreeSet<String> = numbers.into_iter().map(str::to_owned).collect();
        for number in known.difference(&now) {
            for (field, kind) in NUMBER_ARRIVALS {
                // One that was never set has no series.
                let _ = gauge.remove_label_values(&[field, kind, number]);
            }
        }
        for number in &now {
            for (field, kind) in NUMBER_ARRIVALS {
                let _ = gauge.with_label_values(&[field, kind, number]);
            }
        }
        for (field, kind) in ACCOUNT_ARRIVALS {
            let _ = gauge.with_label_values(&[field, kind, ""]);
        }
        *known = now;
    }

    /// Notes that updates of this kind arrived in this field. Only configured numbers have a series, so
    /// that there are never more of them.
    pub fn webhook_arrived(&self, field: &str, kind: &str, number: &str, now: Timestamp) {
        let known = self.webhooks.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_listed = if number.is_empty() {
            ACCOUNT_ARRIVALS.contains(&(field, kind))
        } else {
            NUMBER_ARRIVALS.contains(&(field, kind)) && known.contains(number)
        };
        if is_listed {
            let seconds = now.as_millis().div_euclid(1_000);
            self.webhooks.last_update.with_label_values(&[field, kind, number]).set(seconds);
        }
    }
}
