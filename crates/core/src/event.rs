//! Events between a user and a business: their kinds, their effects on a state, and their validation.

mod template_effects;

use std::time::Duration;

use super::Violation;
pub use super::evidence::{Evidence, Method, PlatformNames, StatementNames};
use super::id::{PhoneNumberId, UserId};
use super::scope::{Class, Scope};
use super::state::{Choice, Effect, Pending};
use super::template::Subject;
use super::time::Timestamp;
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
        /// The business's number that it was stopped or resumed at, if that is known.
        phone_number_id: Option<PhoneNumberId>,
    },
    /// A message that WhatsApp refused.
    Failure {
        /// WhatsApp's error code.
        code: i32,
        /// The business's number that the message was sent from, if that is known.
        phone_number_id: Option<PhoneNumberId>,
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
            | Self::Failure { code: CODE_PLATFORM_STOPPED, .. }
            // It denies every class that is less strict.
            | Self::TemplateCategory { .. } => true,
            Self::Platform { stopped, .. } => *stopped,
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
            Self::Platform { stopped, .. } => !*stopped,
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
            Self::Platform { stopped, .. } => !*stopped,
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
                    let number = evidence.phone_number_id.clone();
                    effects.push(Effect::Platform { time, stopped: false, number });
                }
                effects
            }
            Self::OptOut { scope, .. } => {
                vec![Effect::Choice(scope.clone(), Choice::opt_out(time))]
            }
            Self::Inbound { .. } => vec![Effect::Inbound(time)],
            Self::Platform { stopped, phone_number_id: number } => {
                vec![Effect::Platform { time, stopped: *stopped, number: number.clone() }]
            }
            Self::Failure { code, phone_number_id: number } => vec![match *code {
                CODE_WINDOW_CLOSED => Effect::WindowClosed(time),
                CODE_FREQUENCY_CAPPED => Effect::Capped(time),
                CODE_PLATFORM_STOPPED => {
                    Effect::Platform { time, stopped: true, number: number.clone() }
                }
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
                if let Some(number) = &evidence.phone_number_id {
                    // One part alone would be a confirmation.
                    put(b"phone_number_id");
                    put(number.as_str().as_bytes());
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
            Self::Platform { stopped, phone_number_id } => {
                put(b"platform");
                put(&[u8::from(*stopped)]);
                if let Some(number) = phone_number_id {
                    put(number.as_str().as_bytes());
                }
            }
            Self::Failure { code, phone_number_id } => {
                put(b"failure");
                put(&code.to_be_bytes());
                if let Some(number) = phone_number_id {
                    put(number.as_str().as_bytes());
                }
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
            Self::Failure { code, .. } if *code <= 0 => found.push(Violation::new(
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

/// Refuses a text that is longer than this.
pub(super) fn at_most(limit: usize, field: &str, text: &str, found: &mut Vec<Violation>) {
    if text.len() > limit {
        found.push(Violation::new(field, format!("longer than {limit} bytes of UTF-8")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::Class;

    fn number(id: &str) -> Option<PhoneNumberId> {
        PhoneNumberId::parse(id).ok()
    }

    #[test]
    fn failures_and_links_are_validated() {
        let names = PlatformNames::default();
        let zero = What::Failure { code: 0, phone_number_id: None }.violations(&names);
        assert_eq!(zero[0].field, "delivery_failure.code");
        let link = |other: &str| What::Link { other_user_id: other.into(), moved: false };
        assert_eq!(link("").violations(&names)[0].field, OTHER_USER_ID);
        assert_eq!(link("US.1349").violations(&names), []);
    }

    #[test]
    fn fingerprint_of_what_names_no_number_is_that_of_versions_before() {
        let evidence = Evidence {
            method: Method::WhatsappSignup,
            statement: String::new(),
            business_name: String::new(),
            locale: String::new(),
            reference: "7".into(),
            confirmation: String::new(),
            phone_number_id: None,
            statement_names: StatementNames::Business,
        };
        let opt_in = |phone_number_id, confirmation: &str| What::OptIn {
            category: Scope::Class(Class::Marketing),
            evidence: Evidence {
                phone_number_id,
                confirmation: confirmation.into(),
                ..evidence.clone()
            },
            expire: None,
            pending: false,
        };
        let stop = |phone_number_id| What::Platform { stopped: true, phone_number_id };
        let failure = |phone_number_id| What::Failure { code: 131_050, phone_number_id };
        let hex = |what: &What| hex::encode(what.fingerprint());
        assert_eq!(hex(&stop(None)), "00000008706c6174666f726d0000000101");
        assert_eq!(hex(&failure(None)), "000000076661696c757265000000040001ffea");
        assert_eq!(
            hex(&opt_in(None, "")),
            "000000066f70745f696e000000096d61726b6574696e670000000000000000000000013700000008\
             ffffffffffffffff0000000100"
        );
        let all = [
            stop(None),
            stop(number("1")),
            stop(number("2")),
            failure(None),
            failure(number("1")),
            opt_in(None, ""),
            opt_in(None, "1"),
            opt_in(number("1"), ""),
            opt_in(number("1"), "1"),
            opt_in(number("2"), ""),
        ];
        let different: std::collections::BTreeSet<_> = all.iter().map(hex).collect();
        assert_eq!(different.len(), all.len());
    }
}
