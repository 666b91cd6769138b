//! Events between a user and a business: their kinds, their effects on a state, and their validation.

mod platform_names;
mod template_effects;

use std::time::Duration;

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;

use super::Violation;
use super::id::UserId;
use super::scope::{Class, Scope};
use super::state::{Choice, Effect, Pending};
use super::template::Subject;
use super::time::Timestamp;
pub use platform_names::PlatformNames;
pub(crate) use template_effects::UNTIL;
use template_effects::{category_effects, restriction_effects};

/// How far ahead of the ledger's clock an event's time may be. An allow is then clamped to the ledger's
/// current time; a denial keeps its time.
pub const MAX_AHEAD: Duration = Duration::from_mins(5);

/// The longest statement, in bytes of UTF-8.
pub const MAX_STATEMENT_BYTES: usize = 16 * 1024;
/// The longest business name, in bytes of UTF-8.
pub const MAX_BUSINESS_NAME_BYTES: usize = 512;
/// The longest reference or message id, in bytes of UTF-8.
pub const MAX_REFERENCE_BYTES: usize = 2 * 1024;
/// The longest request id, in bytes of UTF-8.
pub const MAX_REQUEST_ID_BYTES: usize = 128;

/// WhatsApp's code for a message refused because the 24-hour window is closed.
pub const CODE_WINDOW_CLOSED: i32 = 131_047;
/// WhatsApp's code for a marketing message refused because this user got many lately.
pub const CODE_FREQUENCY_CAPPED: i32 = 131_049;
/// WhatsApp's code for a marketing message refused because the user stopped marketing.
pub const CODE_PLATFORM_STOPPED: i32 = 131_050;

/// The field of a link that names the other id.
pub const OTHER_USER_ID: &str = "link.other_user_id";

/// How an opt-in was obtained.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Method {
    /// By text message.
    Sms,
    /// On a web page or in an app.
    Website,
    /// In a WhatsApp conversation.
    Whatsapp,
    /// By phone, through interactive voice response.
    Phone,
    /// In person, or in writing.
    InPerson,
    /// Through WhatsApp's own in-app signup link.
    WhatsappSignup,
}

/// The evidence of an opt-in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Evidence {
    /// How it was obtained.
    pub method: Method,
    /// The words that the user agreed to.
    pub statement: String,
    /// The business's name as the user saw it.
    pub business_name: String,
    /// BCP 47 tag of the statement's language; empty if unknown.
    pub locale: String,
    /// A reference to the stored proof, such as a form's id; may be empty.
    pub reference: String,
    /// The message that confirmed a double opt-in; empty if this is no confirmation.
    pub confirmation: String,
}

/// The kind of an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum What {
    /// Consent given.
    OptIn {
        /// A class or a topic, never everything.
        category: Scope,
        /// Its evidence.
        evidence: Evidence,
        /// When it expires; never if unset.
        expire: Option<Timestamp>,
        /// Whether it waits for its double opt-in confirmation.
        pending: bool,
    },
    /// Consent withdrawn.
    OptOut {
        /// The scope that it covers.
        scope: Scope,
        /// How the user opted out.
        reference: String,
    },
    /// A message or call from the user.
    Inbound {
        /// The platform's message id.
        message_id: String,
        /// The text, which is read for keywords and never stored.
        text: String,
    },
    /// Marketing stopped or resumed inside WhatsApp.
    Platform {
        /// Whether it was stopped.
        stopped: bool,
    },
    /// A message that WhatsApp refused.
    Failure {
        /// WhatsApp's error code.
        code: i32,
    },
    /// A suppression set or lifted.
    Suppression {
        /// Whether it was set.
        suppressed: bool,
        /// The reason.
        reference: String,
    },
    /// Another id of the same person. Denials under either id hold under both.
    Link {
        /// The other id, as written.
        other_user_id: String,
        /// Whether the person left the event's own id for the other one, as by changing the number.
        moved: bool,
    },
    /// The category that WhatsApp has a template in. The template is in the place of the user: see
    /// [`template`](super::template).
    TemplateCategory {
        /// The class, never [`Class::Service`].
        category: Class,
        /// The time as of which the template may be sent as this class again, if a stricter one was known,
        /// where that is earlier than the event's time; [`Timestamp::MIN`] if the event lifts nothing. Only a
        /// recorder sets it, by the rules for allows: the event's time is by the rules for denials.
        lift: Option<Timestamp>,
        /// Who or what said so.
        reference: String,
    },
    /// Whether WhatsApp counts all utility templates of an account as marketing. The
    /// [account](super::template::ACCOUNT) is in the place of the user.
    TemplateRestriction {
        /// Whether it does.
        restricted: bool,
        /// When the restriction ends by itself; unset: not before it is lifted.
        until: Option<Timestamp>,
        /// Who or what said so.
        reference: String,
    },
}

/// An event as its source reports it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// The user, as written.
    pub user_id: String,
    /// The business, as written.
    pub business_id: String,
    /// The event time. If unset, the ledger's clock when it is recorded.
    pub time: Option<Timestamp>,
    /// The kind of the event.
    pub what: What,
}

impl What {
    /// Whether this is a denial. A denial without a time is never stamped as earlier than a recorded
    /// event.
    #[must_use]
    pub fn is_denial(&self) -> bool {
        match self {
            Self::OptOut { .. }
            | Self::Failure { code: CODE_PLATFORM_STOPPED }
            // It denies every class that is less strict.
            | Self::TemplateCategory { .. } => true,
            Self::Platform { stopped } => *stopped,
            Self::Suppression { suppressed, .. } => *suppressed,
            Self::TemplateRestriction { restricted, .. } => *restricted,
            // A link itself denies nothing: the denials that it copies are events of their own.
            Self::OptIn { .. }
            | Self::Inbound { .. }
            | Self::Failure { .. }
            | Self::Link { .. } => false,
        }
    }

    /// Whether the event is clamped to the ledger's current time if its own time is ahead of the ledger's
    /// clock. Every allow is, so that it never counts as later than a denial that comes after it. A link
    /// is too, because a link that is later than an erasure opens the record again.
    #[must_use]
    pub fn is_clamped(&self) -> bool {
        match self {
            Self::OptIn { .. } | Self::Inbound { .. } | Self::Link { .. } => true,
            Self::Platform { stopped } => !*stopped,
            Self::Suppression { suppressed, .. } => !*suppressed,
            Self::TemplateRestriction { restricted, .. } => !*restricted,
            // What a category lifts has a time of its own.
            Self::OptOut { .. } | Self::Failure { .. } | Self::TemplateCategory { .. } => false,
        }
    }

    /// Whether the event lifts a denial. It then needs a time or a request id: otherwise a retry would
    /// count as later than a denial from between the attempts.
    #[must_use]
    pub fn lifts(&self) -> bool {
        match self {
            Self::OptIn { .. } => true,
            Self::Platform { stopped } => !*stopped,
            Self::Suppression { suppressed, .. } => !*suppressed,
            Self::TemplateRestriction { restricted, .. } => !*restricted,
            Self::TemplateCategory { lift, .. } => *lift != Some(Timestamp::MIN),
            _ => false,
        }
    }

    /// Who or what the event is about.
    #[must_use]
    pub fn subject(&self) -> Subject {
        match self {
            Self::TemplateCategory { .. } => Subject::Template,
            Self::TemplateRestriction { .. } => Subject::Account,
            _ => Subject::Person,
        }
    }

    /// The effects on a pair's state, as of `time`. They do not include the meaning of a text, which is
    /// an event of its own: see [`keyword`](super::keyword).
    #[must_use]
    pub fn effects(&self, time: Timestamp) -> Vec<Effect> {
        match self {
            Self::OptIn { category, expire, pending: true, .. } => {
                vec![Effect::Pending(category.clone(), Pending::new(time, *expire))]
            }
            Self::OptIn { category, evidence, expire, pending: false } => {
                let confirms = !evidence.confirmation.is_empty();
                let choice = if confirms { Choice::confirmed } else { Choice::opt_in };
                let choice = choice(time, *expire);
                let mut effects = vec![Effect::Choice(category.clone(), choice)];
                // A confirmation by a message is not a signup, whatever the method of the opt-in.
                if evidence.method == Method::WhatsappSignup && !confirms {
                    effects.push(Effect::Platform { time, stopped: false });
                }
                effects
            }
            Self::OptOut { scope, .. } => {
                vec![Effect::Choice(scope.clone(), Choice::opt_out(time))]
            }
            Self::Inbound { .. } => vec![Effect::Inbound(time)],
            Self::Platform { stopped } => vec![Effect::Platform { time, stopped: *stopped }],
            Self::Failure { code } => vec![match *code {
                CODE_WINDOW_CLOSED => Effect::WindowClosed(time),
                CODE_FREQUENCY_CAPPED => Effect::Capped(time),
                CODE_PLATFORM_STOPPED => Effect::Platform { time, stopped: true },
                code => Effect::Failure { time, code },
            }],
            Self::Suppression { suppressed, .. } => {
                vec![Effect::Suppression { time, suppressed: *suppressed }]
            }
            Self::TemplateCategory { category, lift, .. } => {
                category_effects(*category, time, lift.map_or(time, |lift| lift.min(time)))
            }
            Self::TemplateRestriction { restricted, until, .. } => {
                restriction_effects(*restricted, *until, time)
            }
            // A link is kept in the pair's record, outside of the state.
            Self::Link { .. } => Vec::new(),
        }
    }

    /// A canonical encoding, equal for equal requests only. Ledgers store digests of it, so that it must
    /// never change.
    #[must_use]
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |part: &[u8]| {
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(part);
        };
        match self {
            Self::OptIn { category, evidence, expire, pending } => {
                put(b"opt_in");
                put(category.to_string().as_bytes());
                put(evidence.statement.as_bytes());
                put(evidence.business_name.as_bytes());
                put(evidence.reference.as_bytes());
                put(&expire.map_or(-1, Timestamp::as_millis).to_be_bytes());
                put(&[u8::from(*pending)]);
                if !evidence.confirmation.is_empty() {
                    put(evidence.confirmation.as_bytes());
                }
            }
            Self::OptOut { scope, .. } => {
                put(b"opt_out");
                put(scope.to_string().as_bytes());
            }
            Self::Inbound { message_id, text } => {
                put(b"inbound");
                put(message_id.as_bytes());
                put(text.as_bytes());
            }
            Self::Platform { stopped } => {
                put(b"platform");
                put(&[u8::from(*stopped)]);
            }
            Self::Failure { code } => {
                put(b"failure");
                put(&code.to_be_bytes());
            }
            Self::Suppression { suppressed, .. } => {
                put(b"suppression");
                put(&[u8::from(*suppressed)]);
            }
            Self::Link { other_user_id, moved } => {
                put(b"link");
                put(other_user_id.as_bytes());
                put(&[u8::from(*moved)]);
            }
            Self::TemplateCategory { category, .. } => {
                put(b"template_category");
                put(category.name().as_bytes());
            }
            Self::TemplateRestriction { restricted, until, .. } => {
                put(b"template_restriction");
                put(&[u8::from(*restricted)]);
                put(&until.map_or(-1, Timestamp::as_millis).to_be_bytes());
            }
        }
        bytes
    }

    /// All that is invalid about the event, regardless of the pair's state.
    #[must_use]
    pub fn violations(&self, names: &PlatformNames) -> Vec<Violation> {
        let mut found = Vec::new();
        match self {
            Self::OptIn { evidence, .. } => evidence.check(names, &mut found),
            Self::OptOut { reference, .. } => {
                at_most(MAX_REFERENCE_BYTES, "opt_out.reference", reference, &mut found);
            }
            Self::Inbound { message_id, .. } => {
                let field = "inbound_message.message_id";
                at_most(MAX_REFERENCE_BYTES, field, message_id, &mut found);
            }
            Self::Suppression { reference, .. } => {
                at_most(MAX_REFERENCE_BYTES, "suppression.reference", reference, &mut found);
            }
            Self::Failure { code } if *code <= 0 => found.push(Violation::new(
                "delivery_failure.code",
                "required: WhatsApp's error code, such as 131047",
            )),
            Self::Link { other_user_id, .. } => {
                let wrong = UserId::parse(other_user_id).err();
                found.extend(wrong.map(|why| Violation::new(OTHER_USER_ID, why.description)));
            }
            Self::TemplateCategory { category, reference, .. } => {
                if *category == Class::Service {
                    let why = "a template is marketing, utility or authentication";
                    found.push(Violation::new("template_category.category", why));
                }
                let field = "template_category.reference";
                at_most(MAX_REFERENCE_BYTES, field, reference, &mut found);
            }
            Self::TemplateRestriction { reference, .. } => {
                let field = "template_restriction.reference";
                at_most(MAX_REFERENCE_BYTES, field, reference, &mut found);
            }
            Self::Failure { .. } | Self::Platform { .. } => {}
        }
        found
    }
}

impl Evidence {
    fn check(&self, names: &PlatformNames, found: &mut Vec<Violation>) {
        let field = |name: &str| format!("opt_in.evidence.{name}");
        let mut refuse = |name: &str, why: &str| found.push(Violation::new(field(name), why));
        if self.method == Method::WhatsappSignup {
            if self.reference.is_empty() {
                refuse("reference", "required for WHATSAPP_SIGNUP: the signup_id");
            }
        } else {
            let statement = fold(&self.statement);
            if self.statement.is_empty() {
                refuse(
                    "statement",
                    "required: the words that the user agreed to, as shown, such as \"Yes, send me \
                     offers from Acme on WhatsApp\"",
                );
            } else if !names.0.iter().any(|name| statement.contains(name)) {
                refuse(
                    "statement",
                    "must say that the messages come through WhatsApp, by that name",
                );
            }
            if self.business_name.trim().is_empty() {
                refuse(
                    "business_name",
                    "required: the business's name as the user saw it, such as Acme",
                );
            } else if !self.statement.is_empty()
                && !statement.contains(fold(&self.business_name).trim())
            {
                refuse("statement", "must contain the business_name given beside it");
            }
        }
        if !is_locale(&self.locale) {
            refuse("locale", "must be a BCP 47 language tag, such as en or pt-BR, or empty");
        }
        at_most(MAX_STATEMENT_BYTES, &field("statement"), &self.statement, found);
        at_most(MAX_BUSINESS_NAME_BYTES, &field("business_name"), &self.business_name, found);
        at_most(MAX_REFERENCE_BYTES, &field("reference"), &self.reference, found);
        at_most(MAX_REFERENCE_BYTES, &field("confirmation"), &self.confirmation, found);
    }
}

fn at_most(limit: usize, field: &str, text: &str, found: &mut Vec<Violation>) {
    if text.len() > limit {
        found.push(Violation::new(field, format!("longer than {limit} bytes of UTF-8")));
    }
}

/// The shape of a BCP 47 tag (RFC 5646, section 2.1): subtags of 1 to 8 letters or digits.
fn is_locale(tag: &str) -> bool {
    tag.is_empty()
        || (tag.len() <= 64
            && tag.starts_with(|c: char| c.is_ascii_alphabetic())
            && tag.split('-').all(|part| {
                (1..=8).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
            }))
}

/// Folds case and compatibility forms, for comparison.
fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    text.nfkc().default_case_fold().nfkc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::{Category, Class};

    fn opt_in(evidence: Evidence) -> What {
        let category = Category { class: Class::Marketing, topic: None }.into();
        What::OptIn { category, evidence, expire: None, pending: false }
    }

    fn evidence(statement: &str, business_name: &str) -> Evidence {
        Evidence {
            method: Method::Website,
            statement: statement.into(),
            business_name: business_name.into(),
            locale: String::new(),
            reference: String::new(),
            confirmation: String::new(),
        }
    }

    fn fields(evidence: Evidence) -> Vec<String> {
        let found = opt_in(evidence).violations(&PlatformNames::default());
        found.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn statement_without_whatsapp_or_the_business_is_refused() {
        let good = [
            ("Send me offers on WhatsApp from ACME Ltd", "Acme"),
            ("I agree to hear from acme on WHATSAPP.", "ACME"),
            ("Acme से व्हाट्सएप पर संदेश", "Acme"),
            ("رسائل Acme عبر واتساب", "acme"),
            ("Ｗｈａｔｓａｐｐ messages from Straße", "STRASSE"),
        ];
        for (statement, name) in good {
            assert_eq!(fields(evidence(statement, name)), Vec::<String>::new(), "{statement}");
        }
        let s = "opt_in.evidence.statement";
        let b = "opt_in.evidence.business_name";
        assert_eq!(fields(evidence("", "")), [s, b]);
        assert_eq!(fields(evidence("Messages from Acme", "Acme")), [s]);
        assert_eq!(fields(evidence("Messages on WhatsApp", "Acme")), [s]);
        assert_eq!(fields(evidence("Messages", "Acme")), [s, s]);
        assert_eq!(fields(evidence("Messages on WhatsApp", " ")), [b]);
    }

    #[test]
    fn signup_requires_its_reference_and_no_statement() {
        let mut signup = evidence("", "");
        signup.method = Method::WhatsappSignup;
        assert_eq!(fields(signup.clone()), ["opt_in.evidence.reference"]);
        signup.reference = "13176843987434774".into();
        assert!(fields(signup).is_empty());
    }

    #[test]
    fn bounds_and_locales_are_validated() {
        let mut long = evidence("WhatsApp Acme", "Acme");
        long.reference = "x".repeat(MAX_REFERENCE_BYTES + 1);
        long.locale = "pt_BR".into();
        assert_eq!(fields(long), ["opt_in.evidence.locale", "opt_in.evidence.reference"]);
        assert!(is_locale("zh-Hant-TW") && is_locale("en") && !is_locale("en--GB"));
        let names = PlatformNames::new(["", " "]);
        let found = opt_in(evidence("Acme", "Acme")).violations(&names);
        assert_eq!(found.len(), 1, "a blank name must not fit everything");
        let zero = What::Failure { code: 0 }.violations(&names);
        assert_eq!(zero[0].field, "delivery_failure.code");
        let link = |other: &str| What::Link { other_user_id: other.into(), moved: false };
        assert_eq!(link("").violations(&names)[0].field, OTHER_USER_ID);
        assert_eq!(link("US.1349").violations(&names), []);
    }
}
