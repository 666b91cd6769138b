//! Which updates a payload has.

use std::collections::HashSet;

use serde_json::Value;

use super::fields::{has, id, list, text};
use super::update::{Context, Meant};
use super::{Cause, Heard, Kind, Rules, Update};
use crate::consent::event::What;
use crate::recorder::Submission;

/// The object whose webhooks are read.
const OBJECT: &str = "whatsapp_business_account";

/// Reads a payload.
pub(super) fn read(payload: &Value, rules: &Rules) -> Heard {
    let mut reader = Reader { rules, heard: Heard::default(), linked: HashSet::new() };
    match payload.get("object") {
        Some(Value::String(object)) if object != OBJECT => {
            reader.pass(Kind::Other, Cause::UnknownObject);
        }
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
        let value = change.get("value").filter(|value| value.is_object());
        let (Some(field), Some(value)) = (text(change, "field"), value) else {
            return self.pass(Kind::Other, Cause::BadShape);
        };
        let lists: &[(&str, Kind)] = match field {
            "messages" => &[("messages", Kind::Message), ("statuses", Kind::Status)],
            "calls" => &[("calls", Kind::Call)],
            "user_preferences" => &[("user_preferences", Kind::Preference)],
            _ => return self.pass(Kind::Other, Cause::UnknownField),
        };
        if !lists.iter().any(|(name, _)| has(value, name)) {
            // Such as a list of errors of the account, or of statuses of calls.
            return self.pass(Kind::Other, Cause::UnknownField);
        }
        let number = value.get("metadata").and_then(|metadata| id(metadata, "phone_number_id"));
        let business = number.as_ref().and_then(|number| self.rules.numbers.get(number));
        for (name, kind) in lists {
            for item in self.items(value, name, *kind) {
                match (&number, business) {
                    (None, _) => self.pass(*kind, Cause::NoNumber),
                    (Some(number), None) => {
                        self.pass(*kind, Cause::UnknownNumber);
                        self.heard.stranger.get_or_insert_with(|| number.clone());
                    }
                    (_, Some(business)) => {
                        let context = Context { rules: self.rules, business, value };
                        let link = context.link(*kind, item);
                        self.take(context.read(*kind, item), link);
                    }
                }
            }
        }
    }

    fn take(&mut self, read: Result<Meant, (Kind, Cause)>, link: Option<Submission>) {
        match read {
            // Who changed the number has an id too that stays, but whose it is now is not told.
            Ok(Meant { kind: Kind::NumberChange, submissions }) => {
                self.heard.updates.push(Update { kind: Kind::NumberChange, submissions });
                return;
            }
            Ok(Meant { kind, submissions }) => {
                self.heard.updates.push(Update { kind, submissions });
            }
            Err((kind, cause)) => self.pass(kind, cause),
        }
        // Most payloads have one user, and all of it is said of that user again and again.
        let Some(link) = link else { return };
        let ids = (link.event.user_id.clone(), link.event.business_id.clone());
        let What::Link { other_user_id, .. } = &link.event.what else { return };
        if self.linked.insert((ids, other_user_id.clone())) {
            self.heard.updates.push(Update { kind: Kind::Link, submissions: vec![link] });
        }
    }
}
