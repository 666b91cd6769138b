//! The updates of a payload.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::fields::{has, list, name, word};
use super::update::{ParsedUpdate, UpdateContext};
use super::{ParsedPayload, Rules, SkipCause, UpdateKind, WebhookUpdate};
use consentd_core::event::What;

/// The `object` of the payloads that are parsed.
const OBJECT: &str = "whatsapp_business_account";

/// The lists whose items are updates, and the kind of their items.
const LISTS: [(&str, UpdateKind); 4] = [
    ("messages", UpdateKind::Message),
    ("statuses", UpdateKind::Status),
    ("calls", UpdateKind::Call),
    ("user_preferences", UpdateKind::Preference),
];

/// Parses a payload.
pub(super) fn parse(payload: &Value, rules: &Rules) -> ParsedPayload {
    let mut parser =
        PayloadParser { rules, parsed: ParsedPayload::default(), linked: HashSet::new() };
    match word(payload, "object").as_deref() {
        Some(object) if object != OBJECT => {
            parser.skip(UpdateKind::Other, SkipCause::UnknownObject);
        }
        _ => parser.payload(payload),
    }
    parser.parsed
}

struct PayloadParser<'a> {
    rules: &'a Rules,
    parsed: ParsedPayload,
    /// The links that were emitted already: the user and the business, and the user's other id.
    linked: HashSet<((String, String), String)>,
}

impl PayloadParser<'_> {
    fn skip(&mut self, kind: UpdateKind, cause: SkipCause) {
        let count = self.parsed.skipped.entry((kind, cause)).or_default();
        *count = count.saturating_add(1);
    }

    /// The items of a list. A value that is no list is counted as one skipped update.
    fn items<'v>(&mut self, object: &'v Value, name: &str, kind: UpdateKind) -> &'v [Value] {
        list(object, name).unwrap_or_else(|_| {
            self.skip(kind, SkipCause::BadShape);
            &[]
        })
    }

    fn payload(&mut self, payload: &Value) {
        if !has(payload, "entry") {
            self.skip(UpdateKind::Other, SkipCause::BadShape);
        }
        for entry in self.items(payload, "entry", UpdateKind::Other) {
            if !has(entry, "changes") {
                self.skip(UpdateKind::Other, SkipCause::BadShape);
            }
            for change in self.items(entry, "changes", UpdateKind::Other) {
                self.change(change);
            }
        }
    }

    fn change(&mut self, change: &Value) {
        let Some(value) = change.get("value").filter(|value| value.is_object()) else {
            return self.skip(UpdateKind::Other, SkipCause::BadShape);
        };
        let field = word(change, "field");
        let lists: &[(&str, UpdateKind)] = match field.as_deref() {
            Some("messages") => {
                &[("messages", UpdateKind::Message), ("statuses", UpdateKind::Status)]
            }
            Some("calls") => &[("calls", UpdateKind::Call)],
            Some("user_preferences") => &[("user_preferences", UpdateKind::Preference)],
            Some(_) => return self.skip(UpdateKind::Other, SkipCause::UnknownField),
            // Without the field, the kind follows from the names of the lists.
            None => &LISTS,
        };
        if !lists.iter().any(|(name, _)| has(value, name)) {
            // Another list, such as the account's errors or the statuses of calls.
            let cause = if field.is_some() { SkipCause::UnknownField } else { SkipCause::BadShape };
            return self.skip(UpdateKind::Other, cause);
        }
        let number = value.get("metadata").and_then(|metadata| name(metadata, "phone_number_id"));
        let (businesses, broken): (BTreeSet<&str>, _) = if let Some(number) = &number {
            let known = self.rules.numbers.get(number).map(String::as_str);
            (known.into_iter().collect(), field.is_none().then_some(SkipCause::BadShape))
        } else {
            // The number is unknown, so a denial is recorded for every business.
            let all = self.rules.numbers.values().map(String::as_str);
            (all.collect(), Some(SkipCause::NoNumber))
        };
        for (name, kind) in lists {
            for item in self.items(value, name, *kind) {
                if businesses.is_empty() {
                    self.skip(*kind, SkipCause::UnknownNumber);
                    if self.parsed.unknown_number.is_none() {
                        self.parsed.unknown_number.clone_from(&number);
                    }
                }
                let mut skipped = None;
                for business in &businesses {
                    let context = UpdateContext { rules: self.rules, business, value, broken };
                    skipped = self.update(&context, *kind, item).or(skipped);
                }
                if let Some((kind, cause)) = skipped {
                    self.skip(kind, cause);
                }
            }
        }
    }

    /// Adds the events of an item at one business. Returns the cause if the item was skipped, wholly
    /// or in part.
    fn update(
        &mut self,
        context: &UpdateContext<'_>,
        kind: UpdateKind,
        item: &Value,
    ) -> Option<(UpdateKind, SkipCause)> {
        let skipped = match context.parse(kind, item) {
            Ok(ParsedUpdate { kind, submissions, malformed }) => {
                self.parsed.updates.push(WebhookUpdate { kind, submissions });
                // No link follows: the user's scoped id stays, but the payload does not say which of the
                // two numbers it belongs to now.
                if kind == UpdateKind::NumberChange {
                    return malformed.map(|cause| (kind, cause));
                }
                malformed.map(|cause| (kind, cause))
            }
            Err(skipped) => Some(skipped),
        };
        // Most payloads repeat the ids of one user: the link is emitted once.
        if let Some(link) = context.link(kind, item)
            && let What::Link { other_user_id, .. } = &link.event.what
        {
            let ids = (link.event.user_id.clone(), link.event.business_id.clone());
            if self.linked.insert((ids, other_user_id.clone())) {
                self.parsed
                    .updates
                    .push(WebhookUpdate { kind: UpdateKind::Link, submissions: vec![link] });
            }
        }
        skipped
    }
}
