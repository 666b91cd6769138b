//! The ids of the user that an update is about: a phone number, a business-scoped id, and the id that
//! the portfolio's parent has for the same person.
//!
//! An update may have any of them, and leaves out ids that it cannot know
//! (<https://developers.facebook.com/documentation/business-messaging/whatsapp/business-scoped-user-ids>,
//! 2026-06-29). Ids of one update are of one person.

use std::collections::HashMap;

use consentd_core::id::UserId;
use serde_json::Value;

use super::fields::{list, name, text, word};
use super::source::is_number;

/// The most numbers of a shared contact that are linked to its user.
const MAX_SHARED_NUMBERS: usize = 4;

/// The fields of an object that have a user's ids.
#[derive(Clone, Copy)]
pub(super) struct IdFields {
    number: &'static str,
    scoped: &'static str,
    parent: &'static str,
}

/// Of who wrote or called.
pub(super) const SENDER: IdFields =
    IdFields { number: "from", scoped: "from_user_id", parent: "from_parent_user_id" };

/// Of whom a message was sent to.
pub(super) const RECIPIENT: IdFields = IdFields {
    number: "recipient_id",
    scoped: "recipient_user_id",
    parent: "recipient_parent_user_id",
};

/// Of whom the business called.
pub(super) const CALLEE: IdFields =
    IdFields { number: "to", scoped: "to_user_id", parent: "to_parent_user_id" };

/// Of a contact, and of a preference.
pub(super) const CONTACT: IdFields =
    IdFields { number: "wa_id", scoped: "user_id", parent: "parent_user_id" };

/// The ids of one user, as far as an update has them.
#[derive(Clone, Default)]
pub(super) struct UserIds {
    number: Option<String>,
    scoped: Option<String>,
    parent: Option<String>,
}

impl UserIds {
    /// The ids in these fields of an object.
    fn read(object: &Value, fields: IdFields) -> Self {
        let [number, scoped, parent] =
            [fields.number, fields.scoped, fields.parent].map(|field| name(object, field));
        Self { number, scoped, parent }
    }

    /// The user's ids, from the update itself and from the contact that it refers to.
    pub(super) fn of(update: &Value, fields: IdFields, contacts: &Contacts) -> Self {
        let own = Self::read(update, fields);
        let contact = contacts.of(&own).cloned().unwrap_or_default();
        own.or(contact)
    }

    /// These ids, and of the other ones those of kinds that are missing here.
    fn or(self, other: Self) -> Self {
        Self {
            number: self.number.or(other.number),
            scoped: self.scoped.or(other.scoped),
            parent: self.parent.or(other.parent),
        }
    }

    /// These ids, and those of the history's thread that they are in, whose user they are of.
    pub(super) fn or_of_thread(self, thread: &Value) -> Self {
        let mut ids = Self::read(thread, CONTACT);
        // A thread has its user's id in a field of its own, whatever kind it is of.
        let named = name(thread, "id");
        let is_number = named.as_deref().is_some_and(is_number);
        let field = if is_number { &mut ids.number } else { &mut ids.scoped };
        *field = field.take().or(named);
        self.or(ids)
    }

    /// The id under which the events are recorded: the phone number, or else the scoped id, or else
    /// the parent's.
    pub(super) fn id(&self) -> Option<&String> {
        self.all().next()
    }

    /// The other ids of the user.
    pub(super) fn others(&self) -> impl Iterator<Item = &String> {
        let id = self.id();
        let mut seen = Vec::with_capacity(3);
        self.all().filter(move |other| {
            let is_new = Some(*other) != id && !seen.contains(other);
            seen.push(*other);
            is_new
        })
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        self.by_kind().map(|(_, id)| id)
    }

    /// The ids, each with the place of its kind.
    fn by_kind(&self) -> impl Iterator<Item = (usize, &String)> {
        let ids = [&self.number, &self.scoped, &self.parent].into_iter().enumerate();
        ids.filter_map(|(kind, id)| Some((kind, id.as_ref()?)))
    }
}

/// The contacts of a part of a payload, with an index of their ids: a part may have thousands of updates,
/// and as many contacts.
pub(super) struct Contacts {
    all: Vec<UserIds>,
    /// The first contact that has an id, by the place of the id's kind among `number`, `scoped` and
    /// `parent`, and by the id.
    first: HashMap<(usize, String), usize>,
}

impl Contacts {
    /// The contacts of the object that holds the updates' lists.
    pub(super) fn of_value(value: &Value) -> Self {
        let contacts = list(value, "contacts").unwrap_or_default();
        let all: Vec<_> = contacts.iter().map(|contact| UserIds::read(contact, CONTACT)).collect();
        let mut first = HashMap::new();
        for (place, contact) in all.iter().enumerate() {
            for (kind, id) in contact.by_kind() {
                first.entry((kind, id.clone())).or_insert(place);
            }
        }
        Self { all, first }
    }

    /// The contact that has one of these ids, which is the first one of several. Without any id, the
    /// only contact must be the user.
    fn of(&self, ids: &UserIds) -> Option<&UserIds> {
        if let ([only], None) = (self.all.as_slice(), ids.id()) {
            return Some(only);
        }
        let named = ids.by_kind().filter_map(|(kind, id)| self.first.get(&(kind, id.clone())));
        self.all.get(*named.min()?)
    }
}

/// A user's old id, and one that the same user has now.
pub(super) type Change = (String, String);

/// What a message of the type `system` says of a user's ids: each old id with a new one. Together they
/// connect all of them.
///
/// Two shapes are documented. Since August 2026 `system` has `previous_user_id`, `user_id` and the
/// parent's, for `user_changed_number` and for `user_changed_user_id`, and the number's change may have
/// `from`, the old number, and `wa_id`, the new one
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/webhooks/reference/messages/system>,
/// 2026-08-11). Before, the old ids were `from` or `from_user_id`
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/business-scoped-user-ids>,
/// samples of 2026-09-24), or were in the body alone. The contact is ignored: it may have the old ids
/// or the new ones.
pub(super) fn changes(message: &Value, system: &Value) -> Vec<Change> {
    let mut new = UserIds::read(system, CONTACT);
    new.number = new.number.or_else(|| name(system, "new_wa_id"));
    let news = [new.number.as_ref(), new.scoped.as_ref(), new.parent.as_ref()];
    let Some(first_new) = new.id() else { return Vec::new() };
    let sender = UserIds::read(message, SENDER);
    // Each with the place of its kind among the new ones.
    let named = [
        (0, sender.number),
        (1, name(system, "previous_user_id")),
        (1, sender.scoped),
        (2, name(system, "previous_parent_user_id")),
        (2, sender.parent),
    ];
    let is_new = |id: &String| new.all().any(|new| new == id);
    let named = named.into_iter().filter_map(|(place, id)| Some((place, id?)));
    let mut olds: Vec<(usize, String)> = named.filter(|(_, id)| !is_new(id)).collect();
    if olds.is_empty() {
        // Only if nothing else names the old id: a body is for people, and begins with a name that
        // the user has chosen.
        olds.extend(in_body(system).filter(|id| !is_new(id)).map(|id| (0, id)));
    }
    let mut olds = olds.into_iter();
    let mut changes: Vec<Change> = Vec::new();
    if let Some((_, old)) = olds.next() {
        changes.extend(new.all().map(|new| (old.clone(), new.clone())));
    }
    for (place, old) in olds {
        let same_kind = news.get(place).copied().flatten();
        let change = (old, same_kind.unwrap_or(first_new).clone());
        if !changes.contains(&change) {
            changes.push(change);
        }
    }
    changes
}

/// The old id in the text `… changed from OLD to NEW`, if it can be one.
fn in_body(system: &Value) -> Option<String> {
    let (before, _) = text(system, "body")?.rsplit_once(" to ")?;
    let (_, old) = before.rsplit_once(" changed from ")?;
    let is_scoped = old.split_once('.').is_some_and(|(country, rest)| {
        let is_id =
            |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
        country.len() == 2 && !rest.is_empty() && is_id(country) && is_id(rest)
    });
    (is_scoped || is_valid_phone(old)).then(|| old.to_owned())
}

/// The user's own numbers in a message, which the user has shared because the business asked for
/// them (`origin` is `contact_request`, at the message or at the contact). A card that the user shared
/// otherwise is anybody's
/// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/business-scoped-user-ids>,
/// 2026-06-29; at the contact: <https://docs.kapso.ai/docs/whatsapp/send-messages/request-contact-info>).
pub(super) fn shared_numbers(message: &Value) -> Vec<String> {
    let is_own = |object: &Value| word(object, "origin").map(|origin| origin == "contact_request");
    let of_message = is_own(message);
    let contacts = list(message, "contacts").unwrap_or_default().iter();
    let own = contacts.filter(|contact| is_own(contact).or(of_message) == Some(true));
    let phones = own.flat_map(|contact| list(contact, "phones").unwrap_or_default());
    let numbers = phones.filter_map(|phone| name(phone, "wa_id").or_else(|| name(phone, "phone")));
    numbers.filter(|number| is_valid_phone(number)).take(MAX_SHARED_NUMBERS).collect()
}

/// Whether a text is a phone number that is accepted today. Texts that only versions before read as one, which
/// [`is_number`] finds too, may be anything.
fn is_valid_phone(text: &str) -> bool {
    UserId::parse(text).is_ok_and(|id| id.is_phone())
}
