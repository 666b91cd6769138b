//! Prints what was known at a time, for people and as JSON.

use consentd_core::decision::Policy;
use consentd_core::replay::{AsOf, FormDecision, HistoryEvent, Uncertainty};
use consentd_core::scope::{Class, Scope};
use consentd_core::time::Timestamp;
use serde_json::{Value, json};

use super::History;
use crate::cli::history::chain_text;
use crate::cli::output::JsonEncoder;

pub(super) struct Report<'a> {
    pub(super) as_of: &'a AsOf<'a>,
    pub(super) history: &'a History,
    pub(super) policy: &'a Policy,
}

impl Report<'_> {
    pub(super) fn lines(&self, categories: &[Scope]) -> Vec<String> {
        let mut lines = vec![format!("policy assumed: {}", self.policy_text()), String::new()];
        lines.extend(self.event_lines());
        lines.extend(self.uncertainty_text());
        lines.push(String::new());
        lines.push("what CanSend would have answered, from a sidecar that was current:".to_owned());
        lines.extend(categories.iter().flat_map(|scope| self.decision_lines(scope)));
        lines.push(String::new());
        lines.push(match self.as_of.known.last() {
            None => "the chain then: no event that is kept".to_owned(),
            Some(last) => {
                format!("the chain then: head {} after #{}", hex::encode(last.head), last.number)
            }
        });
        lines.push(chain_text(&self.history.chain));
        lines
    }

    fn policy_text(&self) -> String {
        format!(
            "window {} less {}, standing in for an opt-in to {}",
            humantime::format_duration(self.policy.window),
            humantime::format_duration(self.policy.margin),
            match self.implied_classes().as_slice() {
                [] => "no class".to_owned(),
                classes => classes.join(", "),
            }
        )
    }

    /// The classes for which an open window counts as an opt-in.
    fn implied_classes(&self) -> Vec<&'static str> {
        let is_implied = |class: &Class| self.policy.window_implies.contains(*class);
        Class::ALL.into_iter().filter(is_implied).map(Class::name).collect()
    }

    fn event_lines(&self) -> Vec<String> {
        let mut lines = vec![match self.as_of.known.len() {
            0 => "known then: nothing".to_owned(),
            1 => "known then: 1 event".to_owned(),
            count => format!("known then: {count} events"),
        }];
        lines.extend(self.as_of.known.iter().map(|event| self.event_line(event)));
        if !self.as_of.late.is_empty() {
            lines.push("happened by then, but recorded later, so not known:".to_owned());
            lines.extend(self.as_of.late.iter().map(|event| self.event_line(event)));
        }
        lines
    }

    /// An event, with the time at which it was recorded if that was later.
    fn event_line(&self, event: &HistoryEvent) -> String {
        let entry = &event.entry;
        let recorded = match entry.record_time {
            time if time == entry.time => String::new(),
            time => format!(" (recorded {})", time.rfc3339_millis()),
        };
        let text = self.history.event_text(event.number, "    ");
        format!("  #{}  {}{recorded}  {text}", event.number, entry.time.rfc3339_millis())
    }

    fn uncertainty_text(&self) -> Option<String> {
        let Uncertainty { events, before, inbound, failure } = self.as_of.uncertainty;
        if events == 0 {
            return None;
        }
        let before = match before {
            None => String::new(),
            Some(time) => format!(" recorded before {}", time.rfc3339_millis()),
        };
        let deleted = match events {
            1 => format!("1 inbound message or refusal{before} is"),
            count => format!("{count} inbound messages or refusals{before} are"),
        };
        let consequence = match (inbound, failure) {
            (false, false) => "all were too long before this moment to matter to it",
            (true, false) => "an open window can be neither shown nor excluded",
            (false, true) => "a refusal by WhatsApp that counted can be neither shown nor excluded",
            (true, true) => {
                "neither an open window nor a refusal by WhatsApp can be shown or excluded"
            }
        };
        Some(format!("{deleted} no longer kept: {consequence}"))
    }

    fn decision_lines(&self, scope: &Scope) -> Vec<String> {
        let Some(category) = scope.category() else { return Vec::new() };
        let decision = self.as_of.decision(category, self.policy);
        let mut lines = vec![format!("  {category}")];
        if decision.template == decision.free_form {
            lines.extend(self.form_lines("both     ", &decision.template));
        } else {
            lines.extend(self.form_lines("template ", &decision.template));
            lines.extend(self.form_lines("free-form", &decision.free_form));
        }
        lines
    }

    fn form_lines(&self, form: &str, decision: &FormDecision<'_>) -> Vec<String> {
        let verdict = if decision.reason.allows() { "allowed" } else { "denied" };
        let mut lines = vec![
            format!("    {form}  {verdict}: {}", decision.reason.name()),
            format!("      {}", decision.reason.explanation()),
        ];
        for event in &decision.because {
            let text = self.history.event_text(event.number, "      ");
            lines.push(format!("      by #{}: {text}", event.number));
        }
        if !decision.alternatives.is_empty() {
            let names: Vec<_> = decision.alternatives.iter().map(|reason| reason.name()).collect();
            lines.push(format!(
                "      cannot be told for certain: by events that are no longer kept it may have \
                 been {}",
                names.join(" or ")
            ));
        }
        lines
    }

    pub(super) fn json(
        &self,
        user: &str,
        business: &str,
        categories: &[Scope],
    ) -> anyhow::Result<Value> {
        let chain = JsonEncoder::new("ChainCheck")?.with_defaults(&self.history.chain)?;
        let last = self.as_of.known.last();
        let uncertainty = &self.as_of.uncertainty;
        Ok(json!({
            "userId": user,
            "businessId": business,
            "at": self.as_of.at.rfc3339_millis(),
            "policy": {
                "window": humantime::format_duration(self.policy.window).to_string(),
                "windowMargin": humantime::format_duration(self.policy.margin).to_string(),
                "windowImplies": self.implied_classes(),
            },
            "known": self.events_json(&self.as_of.known)?,
            "recordedLater": self.events_json(&self.as_of.late)?,
            "noLongerKept": {
                "events": uncertainty.events,
                "recordedBefore": uncertainty.before.map(Timestamp::rfc3339_millis),
                "mayHaveOpenedWindow": uncertainty.inbound,
                "mayHaveBeenRefusal": uncertainty.failure,
            },
            "answers": self.decisions_json(categories),
            "chainThen": {
                "number": last.map(|event| event.number),
                "head": last.map(|event| hex::encode(event.head)),
            },
            "chain": serde_json::from_slice::<Value>(&chain)?,
        }))
    }

    fn events_json(&self, events: &[&HistoryEvent]) -> anyhow::Result<Vec<Value>> {
        let encoder = JsonEncoder::new("ListEventsResponse")?;
        let responses = events.iter().filter_map(|event| self.history.response(event.number));
        responses
            .map(|response| Ok(serde_json::from_slice(&encoder.without_defaults(response)?)?))
            .collect()
    }

    fn decisions_json(&self, categories: &[Scope]) -> Vec<Value> {
        let categories = categories.iter().filter_map(Scope::category);
        let decision = |category| {
            let decision = self.as_of.decision(category, self.policy);
            json!({
                "category": category.to_string(),
                "template": form_json(&decision.template),
                "freeForm": form_json(&decision.free_form),
                "windowExpireTime": decision.window_expire.map(Timestamp::rfc3339_millis),
            })
        };
        categories.map(decision).collect()
    }
}

fn form_json(decision: &FormDecision<'_>) -> Value {
    let numbers: Vec<_> = decision.because.iter().map(|event| event.number).collect();
    let alternatives: Vec<_> = decision.alternatives.iter().map(|reason| reason.name()).collect();
    json!({
        "allowed": decision.reason.allows(),
        "reason": decision.reason.name(),
        "explanation": decision.reason.explanation(),
        "because": numbers,
        "orElse": alternatives,
    })
}
