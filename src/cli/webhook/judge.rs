//! Findings from what is configured, subscribed, received and recorded. Pure: the time is a parameter.

use std::time::Duration;

use super::ledger::Recorded;
use super::receiver::Receivers;
use super::subscriptions::{Callbacks, Subscriptions};
use crate::config::ReceiverReview;
use crate::metrics::{ACCOUNT_ARRIVALS, NUMBER_ARRIVALS};
use consentd_core::time::Timestamp;

/// How long a receiver must have run before a number without any preference is a finding. Few users stop
/// or resume marketing inside WhatsApp.
const PREFERENCES_AFTER: Duration = Duration::from_hours(14 * 24);

/// The fields that an override carries nowhere: they go to the app's own URL
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/override>,
/// 2026-06-28). `standby` is not among the supported fields there, and is in a later copy of that page;
/// so nothing is claimed of it.
const NOT_OVERRIDDEN: [&str; 3] =
    ["user_preferences", "template_category_update", "account_update"];

/// All that the doctor has looked at.
pub(super) struct Observations {
    pub(super) review: ReceiverReview,
    pub(super) subscriptions: Subscriptions,
    pub(super) receivers: Receivers,
    pub(super) recorded: Option<Recorded>,
    pub(super) now: Timestamp,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Diagnosis {
    /// What concerns no single number, each with its remedy.
    pub(super) findings: Vec<String>,
    /// One row for each number and kind of update, then those of the account.
    pub(super) rows: Vec<Row>,
}

/// The state of one kind of update of one number.
#[derive(Debug)]
pub(super) struct Row {
    /// The `phone_number_id`; empty for what concerns the account.
    pub(super) number: String,
    pub(super) business: String,
    pub(super) field: &'static str,
    pub(super) kind: &'static str,
    pub(super) subscribed: Subscribed,
    /// The latest arrival at any receiver since its start.
    pub(super) last: Option<Timestamp>,
    pub(super) verdict: RowVerdict,
    /// What to do; empty if nothing.
    pub(super) remedy: String,
}

/// Whether updates of a field are sent to the receivers of a number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Subscribed {
    /// The app is subscribed to the field.
    Yes,
    /// The app is not.
    No,
    /// The app is, but an override takes the number's other webhooks elsewhere, and not these.
    Elsewhere,
    /// No answer of Meta's was given.
    Unknown,
}

impl Subscribed {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Elsewhere => "elsewhere",
            Self::Unknown => "unknown",
        }
    }
}

/// The verdict on a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RowVerdict {
    /// Updates arrive.
    Arrives,
    /// They did, and do no longer.
    Silent,
    /// There was none, though there should have been.
    Never,
    /// There was none, and it is too early to tell.
    NotYet,
    /// There was none, and there need not be any.
    None,
    /// They cannot arrive.
    Missing,
}

impl RowVerdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Arrives => "arrives",
            Self::Silent => "silent",
            Self::Never => "never",
            Self::NotYet => "not yet",
            Self::None => "none",
            Self::Missing => "missing",
        }
    }
}

impl Row {
    /// Whether the row is a finding. Without messages no STOP arrives, without preferences no stop inside
    /// WhatsApp; all else is useful at the most.
    pub(super) fn is_finding(&self) -> bool {
        let is_bad =
            matches!(self.verdict, RowVerdict::Silent | RowVerdict::Never | RowVerdict::Missing);
        is_bad && is_needed(self.field, self.kind)
    }
}

fn is_needed(field: &str, kind: &str) -> bool {
    (field, kind) == ("messages", "message") || field == "user_preferences"
}

impl Diagnosis {
    pub(super) fn of(seen: &Observations) -> Self {
        let mut rows = Vec::new();
        for (number, business) in &seen.review.numbers {
            rows.extend(
                NUMBER_ARRIVALS.map(|(field, kind)| seen.row(number, business, field, kind)),
            );
        }
        rows.extend(ACCOUNT_ARRIVALS.map(|(field, kind)| seen.row("", "", field, kind)));
        Self { findings: seen.findings(), rows }
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.findings.is_empty() && !self.rows.iter().any(Row::is_finding)
    }
}

impl Observations {
    /// For how long all receivers that answered have been watching.
    pub(super) fn watched(&self) -> Duration {
        let (receivers, _) = &self.receivers;
        let started = receivers.iter().filter_map(|receiver| receiver.started).max();
        started.map_or(Duration::ZERO, |started| self.now.since(started))
    }

    fn findings(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Some(error) = &self.review.unusable {
            found.push(format!("a receiver could not start with these settings: {error}"));
        }
        let (receivers, unreachable) = &self.receivers;
        for one in unreachable {
            let (address, why) = (&one.address, &one.why);
            found.push(format!("the receiver at {address} could not be asked: {why}"));
        }
        for receiver in receivers {
            let address = &receiver.address;
            if receiver.unknown_number > 0 {
                let count = receiver.unknown_number;
                found.push(format!(
                    "{address} has dropped {count} updates for a phone_number_id that is not \
                     configured: name its business in [whatsapp.numbers]; its log has the number"
                ));
            }
            let knows = |number: &&String| {
                receiver.arrivals.keys().any(|(_, _, known)| known == number.as_str())
            };
            for number in self.review.numbers.keys().filter(|number| !knows(number)) {
                found.push(format!(
                    "{address} does not know the number {number}: it has not read this file; see \
                     consent_webhook_reloads_total and its log"
                ));
            }
            let received = receiver.arrivals.values().any(Option::is_some);
            if receiver.unsigned > 0 && !received {
                let count = receiver.unsigned;
                found.push(format!(
                    "{address} has refused {count} requests with 403 and accepted none: compare \
                     --webhook-app-secret-file with the app's secret in the App Dashboard"
                ));
            }
        }
        if let Some(app) = &self.subscriptions.app {
            if app.callback.is_none() {
                found.push(
                    "the app has no subscription to whatsapp_business_account: set the callback URL \
                     in the App Dashboard under WhatsApp, Configuration"
                        .to_owned(),
                );
            } else if !app.active {
                found.push(
                    "Meta has deactivated the app's subscription: verify the callback URL again in \
                     the App Dashboard under WhatsApp, Configuration"
                        .to_owned(),
                );
            }
        }
        found
    }

    fn row(&self, number: &str, business: &str, field: &'static str, kind: &'static str) -> Row {
        let last = self.last(field, kind, number);
        let subscribed = self.subscribed(number, field);
        let verdict = self.verdict(number, business, (field, kind), subscribed);
        let remedy = self.remedy(number, field, subscribed, verdict);
        let (number, business) = (number.to_owned(), business.to_owned());
        Row { number, business, field, kind, subscribed, last, verdict, remedy }
    }

    /// The latest arrival at any receiver.
    fn last(&self, field: &str, kind: &str, number: &str) -> Option<Timestamp> {
        let series = (field.to_owned(), kind.to_owned(), number.to_owned());
        let (receivers, _) = &self.receivers;
        receivers.iter().filter_map(|receiver| *receiver.arrivals.get(&series)?).max()
    }

    /// Whether there was such an update within the time that a number may be silent for.
    fn is_recent(&self, field: &str, kind: &str, number: &str) -> bool {
        self.last(field, kind, number)
            .is_some_and(|last| self.now.since(last) <= self.review.silent_after)
    }

    fn subscribed(&self, number: &str, field: &str) -> Subscribed {
        let Some(app) = &self.subscriptions.app else {
            return match self.subscriptions.numbers.get(number) {
                Some(urls) if urls.are_overridden() && NOT_OVERRIDDEN.contains(&field) => {
                    Subscribed::Elsewhere
                }
                _ => Subscribed::Unknown,
            };
        };
        if !app.fields.contains(field) {
            return Subscribed::No;
        }
        let is_overridden =
            self.subscriptions.numbers.get(number).is_some_and(Callbacks::are_overridden);
        if is_overridden && NOT_OVERRIDDEN.contains(&field) {
            Subscribed::Elsewhere
        } else {
            Subscribed::Yes
        }
    }

    fn verdict(
        &self,
        number: &str,
        business: &str,
        (field, kind): (&str, &str),
        subscribed: Subscribed,
    ) -> RowVerdict {
        let is_needed = is_needed(field, kind);
        // What arrived before a subscription was taken away does not show that it still arrives.
        if matches!(subscribed, Subscribed::No | Subscribed::Elsewhere) {
            return RowVerdict::Missing;
        }
        if let Some(last) = self.last(field, kind, number) {
            let is_old = self.now.since(last) > self.review.silent_after;
            let is_message = (field, kind) == ("messages", "message");
            return if is_old && is_message { RowVerdict::Silent } else { RowVerdict::Arrives };
        }
        if !is_needed {
            return RowVerdict::None;
        }
        let enough = match field {
            "user_preferences" => PREFERENCES_AFTER,
            _ => self.review.silent_after,
        };
        let is_recorded = field == "user_preferences"
            && self.recorded.as_ref().and_then(|recorded| recorded.log.as_ref().ok()).is_some_and(
                |log| log.businesses.get(business).is_some_and(|one| one.last_preference.is_some()),
            );
        if is_recorded || self.watched() < enough { RowVerdict::NotYet } else { RowVerdict::Never }
    }

    fn remedy(
        &self,
        number: &str,
        field: &str,
        subscribed: Subscribed,
        verdict: RowVerdict,
    ) -> String {
        match (subscribed, verdict) {
            (_, RowVerdict::Arrives | RowVerdict::None) => String::new(),
            (Subscribed::No, _) => format!(
                "subscribe the app to {field} in the App Dashboard under WhatsApp, Configuration"
            ),
            (Subscribed::Elsewhere, _) => format!(
                "an override takes this number's webhooks here, and never {field}: these go to the \
                 app's own callback URL{}. Let a receiver with this number in its file listen there, \
                 or remove the override",
                self.app_url(number)
            ),
            (_, RowVerdict::Silent | RowVerdict::Never) if field == "messages" => {
                self.silence(number)
            }
            (_, RowVerdict::Never | RowVerdict::NotYet) if field == "user_preferences" => {
                "stop this number's marketing inside WhatsApp on your own phone, and look again: if \
                 nothing arrives, the app is not subscribed to user_preferences, or an override of \
                 the callback URL, which never carries them, takes all else here"
                    .to_owned()
            }
            (_, RowVerdict::NotYet) => "write to the number from your own phone, and look again".into(),
            _ => String::new(),
        }
    }

    /// Why a number may have fallen silent.
    fn silence(&self, number: &str) -> String {
        if self.is_recent("standby", "message", number) {
            return "another app or an agent of Meta's holds its conversations: opt-outs are read from \
                    standby; take the conversations over, or let \"standby\" open windows in \
                    opens-window"
                .to_owned();
        }
        if self.is_recent("messages", "status", number) {
            return "statuses of what you send arrive, and no messages: either users write nothing, or \
                    Conversation Routing gives the messages to another app; subscribe to standby, \
                    and let the business show this app the conversations"
                .to_owned();
        }
        "nothing arrives for this number: compare the callback URL and the app's fields in the App \
         Dashboard, whether the app is subscribed to the account (/WABA_ID/subscribed_apps), and \
         whether an override takes its webhooks elsewhere (webhook_configuration)"
            .to_owned()
    }

    fn app_url(&self, number: &str) -> String {
        let of_number = self.subscriptions.numbers.get(number).and_then(|urls| urls.app.as_ref());
        let of_app = || self.subscriptions.app.as_ref()?.callback.as_ref();
        of_number.or_else(of_app).map_or_else(String::new, |url| format!(", {url}"))
    }
}
