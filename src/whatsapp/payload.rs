//! Which updates a payload has.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use super::fields::{has, list, name, word};
use super::update::{Context, Meant};
use super::{Cause, Heard, Kind, Rules, Update};
use consentd_core::event::What;

/// The object whose webhooks are read.
const OBJECT: &str = "whatsapp_business_account";

/// The lists whose items are updates, and what they are about.
const LISTS: [(&str, Kind); 4] = [
    ("messages", Kind::Message),
    ("statuses", Kind::Status),
    ("calls", Kind::Call),
    ("user_preferences", Kind::Preference),
];

/// Reads a payload.
pub(super) fn read(payload: &Value, rules: &Rules) -> Heard {
    let mut reader = Reader { rules, heard: Heard::default(), linked: HashSet::new() };
    match word(payload, "object").as_deref() {
        Some(object) if object != OBJECT => reader.pass(Kind::Other, Cause::UnknownObject),
        _ => reader.payload(payload),
    }
    reader.heard
}

struct Reader<'a> {
    rules: &'a Rules,
    heard: Heard,
    /// The ids that were linked already: a user and a business, and the other id.
    linked: HashSet<((String, String), String)>,
}

impl Reader<'_> {
    fn pass(&mut self, kind: Kind, cause: Cause) {
        let count = self.heard.passed.entry((kind, cause)).or_default();
        *count = count.saturating_add(1);
    }

    /// The items of a list; one that is none is passed over as one update.
    fn items<'v>(&mut self, object: &'v Value, name: &str, kind: Kind) -> &'v [Value] {
        list(object, name).unwrap_or_else(|_| {
            self.pass(kind, Cause::BadShape);
            &[]
        })
    }

    fn payload(&mut self, payload: &Value) {
        if !has(payload, "entry") {
            self.pass(Kind::Other, Cause::BadShape);
        }
        for entry in self.items(payload, "entry", Kind::Other) {
            if !has(entry, "changes") {
                self.pass(Kind::Other, Cause::BadShape);
            }
            for change in self.items(entry, "changes", Kind::Other) {
                self.change(change);
            }
        }
    }

    fn change(&mut self, change: &Value) {
        let Some(value) = change.get("value").filter(|value| value.is_object()) else {
            return self.pass(Kind::Other, Cause::BadShape);
        };
        let field = word(change, "field");
        let lists: &[(&str, Kind)] = match field.as_deref() {
            Some("messages") => &[("messages", Kind::Message), ("statuses", Kind::Status)],
            Some("calls") => &[("calls", Kind::Call)],
            Some("user_preferences") => &[("user_preferences", Kind::Preference)],
            Some(_) => return self.pass(Kind::Other, Cause::UnknownField),
            // What it is about cannot be read; what its lists are called can.
            None => &LISTS,
        };
        if !lists.iter().any(|(name, _)| has(value, name)) {
            // Such as a list of errors of the account, or of statuses of calls.
            let cause = if field.is_some() { Cause::UnknownField } else { Cause::BadShape };
            return self.pass(Kind::Other, cause);
        }
        let number = value.get("metadata").and_then(|metadata| name(metadata, "phone_number_id"));
        let (businesses, broken): (BTreeSet<&str>, _) = if let Some(number) = &number {
            let known = self.rules.numbers.get(number).map(String::as_str);
            (known.into_iter().collect(), field.is_none().then_some(Cause::BadShape))
        } else {
            // Whose number it was for cannot be read: what denies is taken to be for all.
            let all = self.rules.numbers.values().map(String::as_str);
            (all.collect(), Some(Cause::NoNumber))
        };
        for (name, kind) in lists {
            for item in self.items(value, name, *kind) {
                if businesses.is_empty() {
                    let (cause, stranger) = (Cause::UnknownNumber, number.clone());
                    self.pass(*kind, cause);
                    self.heard.stranger = self.heard.stranger.take().or(stranger);
                }
                let mut passed = None;
                for business in &businesses {
                    let context = Context { rules: self.rules, business, value, broken };
                    passed = self.take(&context, *kind, item).or(passed);
                }
                if let Some((kind, cause)) = passed {
                    self.pass(kind, cause);
                }
            }
        }
    }

    /// Takes what an item says at one business; gives why it is passed over, wholly or in part.
    fn take(&mut self, context: &Context<'_>, kind: Kind, item: &Value) -> Option<(Kind, Cause)> {
        let passed = match context.read(kind, item) {
            Ok(Meant { kind, submissions, malformed }) => {
                self.heard.updates.push(Update { kind, submissions });
                // Who changed the number has an id too that stays, but whose it is now is not told.
                if kind == Kind::NumberChange {
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
                self.heard.updates.push(Update { kind: Kind::Link, submissions: vec![link] });
            }
        }
        passed
    }
}
