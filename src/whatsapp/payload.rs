//! The updates of a payload.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::fields::{has, list, name, text, word};
use super::ids::Contacts;
use super::source::Source;
use super::update::{ParsedUpdate, UpdateContext};
use super::{
    Arrival, ParsedPayload, Rules, SkipCause, UpdateKind, WebhookUpdate, copies, templates,
};
use consentd_core::event::What;
use consentd_core::id::PhoneNumberId;
use consentd_core::submission::Submission;

/// The `object` of the payloads that are parsed.
const OBJECT: &str = "whatsapp_business_account";

/// The lists whose items are updates, and the kind of their items.
type Lists = &'static [(&'static str, UpdateKind)];

/// All of them.
const LISTS: Lists = &[
    ("messages", UpdateKind::Message),
    ("statuses", UpdateKind::Status),
    ("calls", UpdateKind::Call),
    ("user_preferences", UpdateKind::Preference),
];
const MESSAGES: Lists = &[("messages", UpdateKind::Message), ("statuses", UpdateKind::Status)];
const ONLY_MESSAGES: Lists = &[("messages", UpdateKind::Message)];
const CALLS: Lists = &[("calls", UpdateKind::Call), ("statuses", UpdateKind::Call)];
const PREFERENCES: Lists = &[("user_preferences", UpdateKind::Preference)];

/// The fields whose updates name a number.
const NUMBER_FIELDS: [&str; 5] = ["messages", "calls", "user_preferences", "standby", "history"];

/// A part of a change that has lists of updates.
struct Section<'v> {
    source: Source<'v>,
    /// The object that has the lists, and the contacts that they refer to.
    value: &'v Value,
    lists: Lists,
}

impl Section<'_> {
    /// The lists that it has.
    fn lists(&self) -> impl Iterator<Item = (&'static str, UpdateKind)> {
        self.lists.iter().copied().filter(|(name, _)| has(self.value, name))
    }
}

/// Parses a payload.
pub(super) fn parse(payload: &Value, rules: &Rules) -> ParsedPayload {
    let mut parser =
        PayloadParser { rules, parsed: ParsedPayload::default(), linked: HashMap::new() };
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
    /// The links so far, by the user and the business, and the user's other id; with their indices.
    linked: HashMap<((String, String), String), usize>,
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
                self.change(entry, change);
            }
        }
    }

    fn change(&mut self, entry: &Value, change: &Value) {
        let Some(value) = change.get("value").filter(|value| value.is_object()) else {
            return self.skip(UpdateKind::Other, SkipCause::BadShape);
        };
        let field = word(change, "field");
        if let Some((field, kind)) = field.as_deref().and_then(templates::field) {
            let number = String::new();
            self.parsed.arrivals.insert(Arrival { field, kind: UpdateKind::Other, number });
            return self.account_change(kind, entry, value);
        }
        let Some(sections) = self.sections(field.as_deref(), value) else {
            return self.skip(UpdateKind::Other, SkipCause::UnknownField);
        };
        let has_lists = |section: &Section<'_>| section.lists().next().is_some();
        if !sections.iter().any(has_lists) {
            // Another list, such as the account's errors or the statuses of calls.
            let cause = if field.is_some() { SkipCause::UnknownField } else { SkipCause::BadShape };
            return self.skip(UpdateKind::Other, cause);
        }
        let mut metadata = std::iter::once(value).chain(sections.iter().map(|one| one.value));
        let number = metadata.find_map(|value| name(value.get("metadata")?, "phone_number_id"));
        let broken = field.is_none().then_some(SkipCause::BadShape);
        let arrived = NUMBER_FIELDS.into_iter().find(|known| field.as_deref() == Some(known));
        let arrived = arrived.zip(number.clone());
        let arrived = arrived.filter(|(_, number)| self.rules.numbers.contains_key(number));
        for section in &sections {
            let contacts = Contacts::of_value(section.value);
            for (list, kind) in section.lists() {
                let items = self.items(section.value, list, kind);
                if let Some((field, number)) = arrived.clone().filter(|_| !items.is_empty()) {
                    self.parsed.arrivals.insert(Arrival { field, kind, number });
                }
                for item in items {
                    self.item((section, &contacts), number.as_deref(), broken, kind, item);
                }
            }
        }
    }

    /// Adds the events of a change of an account or of its templates.
    fn account_change(&mut self, kind: UpdateKind, entry: &Value, value: &Value) {
        let found = templates::parse(kind, entry, value, self.rules);
        if let Some(cause) = found.skipped {
            self.skip(kind, cause);
        }
        if self.parsed.unknown_account.is_none() {
            self.parsed.unknown_account = found.unknown_account;
        }
        if !found.submissions.is_empty() {
            let (submissions, copies) = (found.submissions, Vec::new());
            self.parsed.updates.push(WebhookUpdate { kind, submissions, copies });
        }
    }

    /// The sections of a change, by its field. Nothing if the field does not concern consent.
    fn sections<'v>(&mut self, field: Option<&str>, value: &'v Value) -> Option<Vec<Section<'v>>> {
        let whole = |source, lists| Section { source, value, lists };
        let own = value.get("metadata").and_then(|data| text(data, "display_phone_number"));
        Some(match field {
            Some("messages") => vec![whole(Source::Conversation, MESSAGES)],
            Some("calls") => vec![whole(Source::Conversation, CALLS)],
            Some("user_preferences") => vec![whole(Source::Conversation, PREFERENCES)],
            Some("standby") => {
                let mut sections = self.standby(value);
                sections.push(whole(Source::Standby, MESSAGES));
                sections
            }
            Some("history") => {
                let mut sections = self.threads(value, own);
                let media = Source::History { thread: None, own };
                sections.push(whole(media, ONLY_MESSAGES));
                sections
            }
            Some(_) => return None,
            // Without the field, the kind follows from the names of the lists.
            None => {
                let mut sections = vec![whole(Source::Conversation, LISTS)];
                sections.extend(self.standby(value));
                sections.extend(self.threads(value, own));
                sections
            }
        })
    }

    /// The copies of conversations that another app holds: `value.standby` is like `value`.
    fn standby<'v>(&mut self, value: &'v Value) -> Vec<Section<'v>> {
        let copies = self.items(value, "standby", UpdateKind::Other).iter();
        let section = |value| Section { source: Source::Standby, value, lists: MESSAGES };
        copies.map(section).collect()
    }

    /// The threads of a number's history: `value.history[].threads[].messages[]`.
    fn threads<'v>(&mut self, value: &'v Value, own: Option<&'v str>) -> Vec<Section<'v>> {
        let mut sections = Vec::new();
        for chunk in self.items(value, "history", UpdateKind::Other) {
            for thread in self.items(chunk, "threads", UpdateKind::Other) {
                let source = Source::History { thread: Some(thread), own };
                sections.push(Section { source, value: thread, lists: ONLY_MESSAGES });
            }
        }
        sections
    }

    /// Adds the events of an item at its business; its denials at every business if the number is
    /// unreadable.
    fn item(
        &mut self,
        (section, contacts): (&Section<'_>, &Contacts),
        number: Option<&str>,
        broken: Option<SkipCause>,
        kind: UpdateKind,
        item: &Value,
    ) {
        let numbers = &self.rules.numbers;
        let known = number.and_then(|id| PhoneNumberId::parse(id).ok());
        let (businesses, broken): (BTreeSet<&str>, _) = match number {
            Some(number) => (numbers.get(number).map(String::as_str).into_iter().collect(), broken),
            None => (numbers.values().map(String::as_str).collect(), Some(SkipCause::NoNumber)),
        };
        if businesses.is_empty() {
            self.skip(kind, SkipCause::UnknownNumber);
            if self.parsed.unknown_number.is_none() {
                self.parsed.unknown_number = number.map(str::to_owned);
            }
        }
        let mut skipped = None;
        for business in businesses {
            let Section { source, .. } = *section;
            let (rules, number) = (self.rules, known.as_ref());
            let context = UpdateContext { rules, business, number, contacts, source, broken };
            skipped = self.update(&context, kind, item).or(skipped);
        }
        if let Some((kind, cause)) = skipped {
            self.skip(kind, cause);
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
        let parsed = context.parse(kind, item);
        if let Ok(ParsedUpdate { kind: UpdateKind::NumberChange, submissions, malformed }) = parsed
        {
            let kind = UpdateKind::NumberChange;
            self.parsed.links.push(WebhookUpdate { kind, submissions, copies: Vec::new() });
            return malformed.map(|cause| (kind, cause));
        }
        let ids = context.ids(kind, item);
        let links = context.links(kind, item, &ids).into_iter();
        let links: Vec<(String, usize)> = links.filter_map(|link| self.link(link)).collect();
        let ParsedUpdate { kind, mut submissions, malformed } = match parsed {
            Ok(parsed) => parsed,
            Err(skipped) => return Some(skipped),
        };
        let (mut copies, own) = (Vec::new(), submissions.len());
        for other in ids.others() {
            let link = links.iter().find(|(linked, _)| linked == other);
            for place in 0..own {
                let Some(submission) = submissions.get(place).cloned() else { break };
                submissions.extend(copies::denial(&submission, other));
                copies.extend(link.and_then(|(_, link)| copies::allow(&submission, other, *link)));
            }
        }
        self.parsed.updates.push(WebhookUpdate { kind, submissions, copies });
        malformed.map(|cause| (kind, cause))
    }

    /// Adds a link, unless the payload has it already: most payloads repeat the ids of one user. The
    /// link then counts as of the latest of its times, because one from before an erasure has no
    /// effect. Returns the other id and the link's index.
    fn link(&mut self, link: Submission) -> Option<(String, usize)> {
        let What::Link { other_user_id, .. } = &link.event.what else { return None };
        let other = other_user_id.clone();
        let ids = (link.event.user_id.clone(), link.event.business_id.clone());
        let links = &mut self.parsed.links;
        let known = self.linked.get(&(ids.clone(), other.clone()));
        let known = known.and_then(|index| links.get_mut(*index)?.submissions.first_mut());
        if let Some(Submission { event, .. }) = known {
            // A link without a time counts as of its arrival.
            event.time = event.time.zip(link.event.time).map(|(known, time)| known.max(time));
        }
        let index = *self.linked.entry((ids, other.clone())).or_insert_with(|| {
            let (kind, submissions) = (UpdateKind::Link, vec![link]);
            links.push(WebhookUpdate { kind, submissions, copies: Vec::new() });
            links.len().saturating_sub(1)
        });
        Some((other, index))
    }
}
