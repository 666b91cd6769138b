//! Prints what was known at a time, for people and as JSON.

use consentd_core::decision::Policy;
use consentd_core::replay::{AsOf, FormDecision, HistoryEvent, Uncertainty, UsedCategory};
use consentd_core::scope::{Category, Class, Scope};
use consentd_core::time::Timestamp;
use serde_json::{Value, json};

use super::History;
use crate::cli::history::chain_text;
use crate::cli::output::JsonEncoder;

pub(super) struct Report<'a> {
    pub(super) as_of: &'a AsOf<'a>,
    pub(super) history: &'a History,
    pub(super) policy: &'a Policy,
    /// What was known of the template and of the account, if the message is by a template.
    pub(super) rules: &'a Option<[Rule<'a>; 2]>,
}

/// What was known of a template, or of the account.
pub(super) struct Rule<'a> {
    /// Its id in the ledger.
    pub(super) id: &'a str,
    pub(super) history: &'a History,
    pub(super) as_of: AsOf<'a>,
}

impl Report<'_> {
    pub(super) fn lines(&self, categories: &[Scope]) -> Vec<String> {
        let mut lines = vec![format!("policy assumed: {}", self.policy_text()), String::new()];
        lines.extend(self.event_lines());
        lines.extend(self.uncertainty_text());
        lines.extend(self.rules.iter().flatten().flat_map(Rule::lines));
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
        lines.extend(self.as_of.known.iter().map(|event| self.history.event_line(event)));
        if !self.as_of.late.is_empty() {
            lines.push("happened by then, but recorded later, so not known:".to_owned());
            lines.extend(self.as_of.late.iter().map(|event| self.history.event_line(event)));
        }
        lines
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
        let mut lines = vec![format!("  {category}")];
        if let Some([template, account]) = self.rules {
            let used = UsedCategory::of(category.class, &template.as_of, &account.as_of);
            let decision = self.as_of.decision_as(category, used.class, self.policy);
            lines.extend(self.form_lines("template ", &decision.template));
            lines.push(format!("      decided as {}", used_text(category, used.class)));
            lines.extend(template.because_lines(&used.by_template));
            lines.extend(account.because_lines(&used.by_account));
            return lines;
        }
        let decision = self.as_of.decision(category, self.policy);
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
            "categoryRules": self.rules_json()?,
            "answers": self.decisions_json(categories),
            "chainThen": {
                "number": last.map(|event| event.number),
                "head": last.map(|event| hex::encode(event.head)),
            },
            "chain": serde_json::from_slice::<Value>(&chain)?,
        }))
    }

    fn events_json(&self, events: &[&HistoryEvent]) -> anyhow::Result<Vec<Value>> {
        self.history.events_json(events)
    }

    fn rules_json(&self) -> anyhow::Result<Vec<Value>> {
        self.rules.iter().flatten().map(Rule::json).collect()
    }

    fn decisions_json(&self, categories: &[Scope]) -> Vec<Value> {
        let categories = categories.iter().filter_map(Scope::category);
        categories.map(|category| self.decision_json(category)).collect()
    }

    fn decision_json(&self, category: Category<'_>) -> Value {
        let Some([template, account]) = self.rules else {
            let decision = self.as_of.decision(category, self.policy);
            return json!({
                "category": category.to_string(),
                "template": form_json(&decision.template),
                "freeForm": form_json(&decision.free_form),
                "windowExpireTime": decision.window_expire.map(Timestamp::rfc3339_millis),
            });
        };
        let used = UsedCategory::of(category.class, &template.as_of, &account.as_of);
        let decision = self.as_of.decision_as(category, used.class, self.policy);
        let of = |rule: &Rule<'_>, events: &[&HistoryEvent]| -> Vec<Value> {
            let event = |event: &&HistoryEvent| json!({"of": rule.id, "number": event.number});
            events.iter().map(event).collect()
        };
        let because = [of(template, &used.by_template), of(account, &used.by_account)].concat();
        json!({
            "category": category.to_string(),
            "categoryUsed": used_text(category, used.class),
            "usedBecause": because,
            "template": form_json(&decision.template),
            "windowExpireTime": decision.window_expire.map(Timestamp::rfc3339_millis),
        })
    }
}

/// The category that decided.
fn used_text(asked: Category<'_>, class: Class) -> String {
    if class == asked.class { asked.to_string() } else { class.name().to_owned() }
}

impl Rule<'_> {
    /// What was known of it.
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![String::new()];
        let count = self.as_of.known.len();
        let events = if count == 1 { "event" } else { "events" };
        lines.push(format!("{}, known then: {count} {events}", self.id));
        lines.extend(self.as_of.known.iter().map(|event| self.history.event_line(event)));
        if !self.as_of.late.is_empty() {
            lines.push("happened by then, but recorded later, so not known:".to_owned());
            lines.extend(self.as_of.late.iter().map(|event| self.history.event_line(event)));
        }
        lines.push(chain_text(&self.history.chain));
        lines
    }

    fn because_lines(&self, events: &[&HistoryEvent]) -> Vec<String> {
        let line = |event: &&HistoryEvent| {
            let text = self.history.event_text(event.number, "      ");
            format!("        for {}, by #{}: {text}", self.id, event.number)
        };
        events.iter().map(line).collect()
    }

    fn json(&self) -> anyhow::Result<Value> {
        let chain = JsonEncoder::new("ChainCheck")?.with_defaults(&self.history.chain)?;
        Ok(json!({
            "id": self.id,
            "known": self.history.events_json(&self.as_of.known)?,
            "recordedLater": self.history.events_json(&self.as_of.late)?,
            "chain": serde_json::from_slice::<Value>(&chain)?,
        }))
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
