//! Events to be recorded.

use std::fmt;
use std::time::SystemTime;

use crate::address::random;
use crate::pb;
use crate::pb::consent_event::What;

/// What proves an opt-in.
///
/// ```
/// use consentd_client::{Evidence, OptInMethod};
///
/// let evidence = Evidence::new(OptInMethod::Website, "Yes, send me offers from Acme on WhatsApp", "Acme");
/// let evidence = evidence.locale("en").reference("https://acme.example/consents/4711");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence(pb::Evidence);

impl Evidence {
    /// How the opt-in was obtained, the words that the user agreed to, and the business's name in them. The words must
    /// name the business and WhatsApp.
    #[must_use]
    pub fn new(
        method: pb::OptInMethod,
        statement: impl Into<String>,
        business_name: impl Into<String>,
    ) -> Self {
        Self(pb::Evidence {
            method: method.into(),
            statement: statement.into(),
            business_name: business_name.into(),
            ..Default::default()
        })
    }

    /// The language of the words, as a BCP 47 tag such as `pt-BR`.
    #[must_use]
    pub fn locale(mut self, locale: impl Into<String>) -> Self {
        self.0.locale = locale.into();
        self
    }

    /// Where the proof is kept: a URL, a message id, a reference of a document.
    #[must_use]
    pub fn reference(mut self, reference: impl Into<String>) -> Self {
        self.0.reference = reference.into();
        self
    }
}

/// One thing that happened between a user and a business, to be recorded by [`Client::record`](crate::Client::record).
///
/// It has a request id, a random UUID unless [`request_id`](Self::request_id) gives one, and so counts once, however
/// often it is recorded.
///
/// ```
/// use consentd_client::Event;
///
/// let stop = Event::inbound_message("+1 555 012 3456", "acme", "STOP");
/// let withdrawn = Event::opt_out("+1 555 012 3456", "acme", "marketing").reference("call of 3 May");
/// ```
#[derive(Clone, PartialEq)]
#[must_use = "an event does nothing until it is recorded"]
pub struct Event {
    event: pb::ConsentEvent,
    request_id: String,
}

impl Event {
    fn of(user: impl Into<String>, business: impl Into<String>, what: What) -> Self {
        Self::from(pb::ConsentEvent {
            user_id: user.into(),
            business_id: business.into(),
            event_time: None,
            what: Some(what),
        })
    }

    /// The user agreed to a category, such as `marketing` or `utility.order_updates`.
    pub fn opt_in(
        user: impl Into<String>,
        business: impl Into<String>,
        category: impl Into<String>,
        evidence: Evidence,
    ) -> Self {
        let Evidence(evidence) = evidence;
        let opt_in =
            pb::OptIn { category: category.into(), evidence: Some(evidence), ..Default::default() };
        Self::of(user, business, What::OptIn(opt_in))
    }

    /// The user withdrew from a category, from a class, or from everything: `*`.
    pub fn opt_out(
        user: impl Into<String>,
        business: impl Into<String>,
        scope: impl Into<String>,
    ) -> Self {
        let opt_out = pb::OptOut { scope: scope.into(), ..Default::default() };
        Self::of(user, business, What::OptOut(opt_out))
    }

    /// The user wrote to the business, which opens the 24-hour window, or opts out or in by a keyword. The text is
    /// never stored.
    pub fn inbound_message(
        user: impl Into<String>,
        business: impl Into<String>,
        text: impl Into<String>,
    ) -> Self {
        let message = pb::InboundMessage { text: text.into(), ..Default::default() };
        Self::of(user, business, What::InboundMessage(message))
    }

    /// The user stopped the business's marketing in WhatsApp's own settings, or resumed it. `phone_number_id` is Meta's
    /// id of the business's number; empty where it is unknown.
    pub fn platform_preference(
        user: impl Into<String>,
        business: impl Into<String>,
        marketing_stopped: bool,
        phone_number_id: impl Into<String>,
    ) -> Self {
        let phone_number_id = phone_number_id.into();
        let preference = pb::PlatformPreference { marketing_stopped, phone_number_id };
        Self::of(user, business, What::PlatformPreference(preference))
    }

    /// WhatsApp refused a message to this user with this code, such as 131049.
    pub fn delivery_failure(
        user: impl Into<String>,
        business: impl Into<String>,
        code: i32,
    ) -> Self {
        let failure = pb::DeliveryFailure { code, ..Default::default() };
        Self::of(user, business, What::DeliveryFailure(failure))
    }

    /// The user must not be contacted, or may be again.
    pub fn suppression(
        user: impl Into<String>,
        business: impl Into<String>,
        suppressed: bool,
    ) -> Self {
        let suppression = pb::Suppression { suppressed, ..Default::default() };
        Self::of(user, business, What::Suppression(suppression))
    }

    /// Another id of the same person: a denial under either holds under both. `moved` says that the person left `user`
    /// for it.
    pub fn link(
        user: impl Into<String>,
        business: impl Into<String>,
        other_user: impl Into<String>,
        moved: bool,
    ) -> Self {
        let link = pb::Link { other_user_id: other_user.into(), moved };
        Self::of(user, business, What::Link(link))
    }

    /// WhatsApp has a template in this category from now on: `marketing`, `utility` or `authentication`.
    pub fn template_category(
        business: impl Into<String>,
        name: &str,
        language: &str,
        category: impl Into<String>,
    ) -> Self {
        let category = pb::TemplateCategory { category: category.into(), ..Default::default() };
        let user = format!("template:{name}:{language}");
        Self::of(user, business, What::TemplateCategory(category))
    }

    /// WhatsApp counts all utility templates of the business as marketing, or no longer.
    pub fn template_restriction(business: impl Into<String>, restricted: bool) -> Self {
        let restriction = pb::TemplateRestriction { restricted, ..Default::default() };
        Self::of("template:*", business, What::TemplateRestriction(restriction))
    }

    /// When it happened; without this call, when it is recorded.
    pub fn at(mut self, time: SystemTime) -> Self {
        self.event.event_time = Some(time.into());
        self
    }

    /// Makes it one that repeats are recognised by, such as the id of the message that it came from. An event recorded
    /// again with the same id changes nothing; of each pair the last 8 ids are remembered.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.request_id = id.into();
        self
    }

    /// Why or where it happened, for the record: of an opt-out, a suppression or a template's event. Any other has
    /// nothing of the kind, and stays as it is.
    pub fn reference(mut self, reference: impl Into<String>) -> Self {
        let reference = reference.into();
        match &mut self.event.what {
            Some(What::OptOut(event)) => event.reference = reference,
            Some(What::Suppression(event)) => event.reference = reference,
            Some(What::TemplateCategory(event)) => event.reference = reference,
            Some(What::TemplateRestriction(event)) => event.reference = reference,
            _ => {}
        }
        self
    }

    /// When the opt-in lapses. Any other event stays as it is.
    pub fn expires(mut self, time: SystemTime) -> Self {
        if let Some(What::OptIn(opt_in)) = &mut self.event.what {
            opt_in.expire_time = Some(time.into());
        }
        self
    }

    /// The opt-in waits for its confirmation, which is another opt-in without this call. Any other event stays as it
    /// is.
    pub fn pending(mut self) -> Self {
        if let Some(What::OptIn(opt_in)) = &mut self.event.what {
            opt_in.pending = true;
        }
        self
    }

    pub(crate) fn into_request(self) -> pb::RecordEventRequest {
        pb::RecordEventRequest { event: Some(self.event), request_id: self.request_id }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Omits the user id, the text of a message, and the request id: Meta's ids of messages have the user's number.
        let kind = match &self.event.what {
            Some(What::OptIn(_)) => "opt_in",
            Some(What::OptOut(_)) => "opt_out",
            Some(What::InboundMessage(_)) => "inbound_message",
            Some(What::PlatformPreference(_)) => "platform_preference",
            Some(What::DeliveryFailure(_)) => "delivery_failure",
            Some(What::Suppression(_)) => "suppression",
            Some(What::Link(_)) => "link",
            Some(What::TemplateCategory(_)) => "template_category",
            Some(What::TemplateRestriction(_)) => "template_restriction",
            None => "nothing",
        };
        f.debug_struct("Event")
            .field("business", &self.event.business_id)
            .field("kind", &kind)
            .finish_non_exhaustive()
    }
}

impl From<pb::ConsentEvent> for Event {
    fn from(event: pb::ConsentEvent) -> Self {
        Self { event, request_id: uuid() }
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> String {
    let random = u128::from(random()) << 64 | u128::from(random());
    let random = random & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let hex = format!("{random:032x}");
    let part = |from, to| hex.get(from..to).unwrap_or_default();
    let parts = [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)];
    parts.join("-")
}

/// What the ledger made of an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded(pub(crate) pb::RecordEventResponse);

impl Recorded {
    /// The ledger's revision after the event, for [`Question::min_revision`](crate::Question::min_revision).
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.0.revision
    }

    /// Whether it changed anything: not where it is older than what the ledger knows.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        self.0.applied
    }

    /// The scope that a keyword in a text opted out of, so that it can be confirmed; else empty.
    #[must_use]
    pub fn opted_out_scope(&self) -> &str {
        &self.0.opted_out_scope
    }

    /// The category that a keyword in a text opted in to; else empty.
    #[must_use]
    pub fn opted_in_category(&self) -> &str {
        &self.0.opted_in_category
    }

    /// The keyword that did either; else empty.
    #[must_use]
    pub fn matched_keyword(&self) -> &str {
        &self.0.matched_keyword
    }

    /// The language of that keyword, as a BCP 47 tag; empty where it is used in several.
    #[must_use]
    pub fn keyword_locale(&self) -> &str {
        &self.0.keyword_locale
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn debug_output_omits_the_user_and_the_text() {
        let event = Event::inbound_message("15550123456", "acme", "STOP").request_id("wamid.1");
        assert_eq!(
            format!("{event:?}"),
            r#"Event { business: "acme", kind: "inbound_message", .. }"#
        );
    }

    #[test]
    fn request_ids_are_random_uuids() {
        let ids: HashSet<_> = (0..10_000).map(|_| uuid()).collect();
        assert_eq!(ids.len(), 10_000);
        for id in ids {
            let bytes = id.as_bytes();
            let dashes = [8, 13, 18, 23];
            let is_hex = |(at, byte): (usize, &u8)| {
                if dashes.contains(&at) { *byte == b'-' } else { byte.is_ascii_hexdigit() }
            };
            assert!(id.len() == 36 && bytes.iter().enumerate().all(is_hex), "{id}");
            assert!(bytes[14] == b'4' && b"89ab".contains(&bytes[19]), "{id}");
        }
    }
}
