//! Which updates a payload has.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::fields::{has, list, name, word};
use super::update::{ParsedUpdate, UpdateContext};
use super::{ParsedPayload, Rules, SkipCause, UpdateKind, WebhookUpdate};
use consentd_core::event::What;

/// The object whose webhooks are read.
const OBJECT: &str = "whatsapp_business_account";

/// The lists whose items are updates, and what they are about.
const LISTS: [(&str, UpdateKind); 4] = [
    ("messages", UpdateKind::Message),
    ("statuses", UpdateKind::Status),
    ("calls", UpdateKind::Call),
    ("user_preferences", UpdateKind::Preference),
];

/// Reads a payload.
pub(super) fn read(payload: &Value, rules: &Rules) -> ParsedPayload {
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
    /// The ids that were linked already: a user and a business, and the other id.
    linked: HashSet<((String, String), String)>,
}

impl PayloadParser<'_> {
    fn skip(&mut self, kind: UpdateKind, cause: SkipCause) {
        let count = self.parsed.skipped.entry((kind, cause)).or_default();
        *count = count.saturating_add(1);
    }

    /// The items of a list; one that is none is passed over as one update.
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
            // What it is about cannot be read; what its lists are called can.
            None => &LISTS,
        };
        if !lists.iter().any(|(name, _)| has(value, name)) {
            // Such as a list of errors of the account, or of statuses of calls.
            let cause = if field.is_some() { SkipCause::UnknownField } else { SkipCause::BadShape };
            return self.skip(UpdateKind::Other, cause);
        }
        let number = value.get("metadata").and_then(|metadata| name(metadata, "phone_number_id"));
        let (businesses, broken): (BTreeSet<&str>, _) = if let Some(number) = &number {
            let known = self.rules.numbers.get(number).map(String::as_str);
            (known.into_iter().collect(), field.is_none().then_some(SkipCause::BadShape))
        } else {
            // Whose number it was for cannot be read: what denies is taken to be for all.
            let all = self.rules.numbers.values().map(String::as_str);
            (all.collect(), Some(SkipCause::NoNumber))
        };
        for (name, kind) in lists {
            for item in self.items(value, name, *kind) {
                if businesses.is_empty() {
                    let (cause, stranger) = (SkipCause::UnknownNumber, number.clone());
                    self.skip(*kind, cause);
                    self.parsed.unknown_number = self.parsed.unknown_number.take().or(stranger);
                }
                let mut passed = None;
                for business in &businesses {
                    let context = UpdateContext { rules: self.rules, business, value, broken };
                    passed = self.take(&context, *kind, item).or(passed);
                }
                if let Some((kind, cause)) = passed {
                    self.skip(kind, cause);
                }
            }
        }
    }

    /// Takes what an item says at one business; gives why it is passed over, wholly or in part.
    fn take(
        &mut self,
        context: &UpdateContext<'_>,
        kind: UpdateKind,
        item: &Value,
    ) -> Option<(UpdateKind, SkipCause)> {
        let passed = match context.read(kind, item) {
            Ok(ParsedUpdate { kind, submissions, malformed }) => {
                self.parsed.updates.push(WebhookUpdate { kind, submissions });
                // Who changed the number has an id too that stays, but whose it is now is not told.
                if kind == UpdateKind::NumberChange {
                    return malformed.map(|cause| (kind, cause));
                }
                malformed.map(|cause| (kind, cause))
            }
            Err(passed) => Some(passed),
        };
        // Most payloads have one user, and all of it is said of that user again and again.
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
        passed
    }
}
