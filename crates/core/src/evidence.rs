//! The evidence of an opt-in, and the rules that its statement is held to.

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;

use super::Violation;
use super::event::{MAX_BUSINESS_NAME_BYTES, MAX_REFERENCE_BYTES, MAX_STATEMENT_BYTES, at_most};
use super::id::PhoneNumberId;

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
    /// The business's number that the user signed up with inside WhatsApp, if it is known. For
    /// [`Method::WhatsappSignup`] alone: the sign-up lifts a stop at that number.
    pub phone_number_id: Option<PhoneNumberId>,
    /// What the statement had to name when it was taken. The recorder sets it.
    pub statement_names: StatementNames,
}

/// What a statement must name.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum StatementNames {
    /// WhatsApp and the business. So were all statements that were recorded before there was a choice.
    #[default]
    WhatsappAndBusiness,
    /// The business: since November 2024 WhatsApp takes an opt-in that is general, and not its own
    /// (<https://developers.facebook.com/documentation/business-messaging/whatsapp/getting-opt-in>,
    /// 2026-06-16).
    Business,
}

impl Evidence {
    pub(super) fn check(&self, names: &PlatformNames, found: &mut Vec<Violation>) {
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
            } else if !names.is_met(&statement) {
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
        if self.phone_number_id.is_some() && self.method != Method::WhatsappSignup {
            refuse("phone_number_id", "must be empty, except for WHATSAPP_SIGNUP");
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

/// What a statement must name, and the names by which it may call WhatsApp.
#[derive(Clone, Debug)]
pub struct PlatformNames {
    platform: Vec<String>,
    required: StatementNames,
}

impl PlatformNames {
    /// The name, and how it is written in other scripts.
    pub const DEFAULT: [&'static str; 17] = [
        "WhatsApp",
        "व्हाट्सएप",
        "व्हाट्सऐप",
        "व्हॉट्सऐप",
        "व्हाट्सप्प",
        "वॉट्सऐप",
        "واتساب",
        "واتس اب",
        "واتس آب",
        "واٹس ایپ",
        "হোয়াটসঅ্যাপ",
        "வாட்ஸ்அப்",
        "Ватсап",
        "Вотсап",
        "וואטסאפ",
        "왓츠앱",
        "ワッツアップ",
    ];

    /// These names, whatever their case. Blank ones are left out: they would fit any statement.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let platform = names.into_iter().map(fold).filter(|name| !name.trim().is_empty());
        Self { platform: platform.collect(), required: StatementNames::default() }
    }

    /// The same names, where a statement must name this.
    #[must_use]
    pub fn with_required(self, required: StatementNames) -> Self {
        Self { required, ..self }
    }

    /// Under which rule evidence of this method is taken. What has no statement is under none.
    #[must_use]
    pub fn rule_for(&self, method: Method) -> StatementNames {
        match method {
            Method::WhatsappSignup => StatementNames::default(),
            _ => self.required,
        }
    }

    /// Whether a folded statement names WhatsApp, or need not.
    fn is_met(&self, statement: &str) -> bool {
        self.required == StatementNames::Business
            || self.platform.iter().any(|name| statement.contains(name))
    }
}

impl Default for PlatformNames {
    fn default() -> Self {
        Self::new(Self::DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(statement: &str, business_name: &str) -> Evidence {
        Evidence {
            method: Method::Website,
            statement: statement.into(),
            business_name: business_name.into(),
            locale: String::new(),
            reference: String::new(),
            confirmation: String::new(),
            phone_number_id: None,
            statement_names: StatementNames::default(),
        }
    }

    fn fields_by(evidence: &Evidence, names: &PlatformNames) -> Vec<String> {
        let mut found = Vec::new();
        evidence.check(names, &mut found);
        found.into_iter().map(|violation| violation.field).collect()
    }

    fn fields(evidence: &Evidence) -> Vec<String> {
        fields_by(evidence, &PlatformNames::default())
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
            assert_eq!(fields(&evidence(statement, name)), Vec::<String>::new(), "{statement}");
        }
        let s = "opt_in.evidence.statement";
        let b = "opt_in.evidence.business_name";
        assert_eq!(fields(&evidence("", "")), [s, b]);
        assert_eq!(fields(&evidence("Messages from Acme", "Acme")), [s]);
        assert_eq!(fields(&evidence("Messages on WhatsApp", "Acme")), [s]);
        assert_eq!(fields(&evidence("Messages", "Acme")), [s, s]);
        assert_eq!(fields(&evidence("Messages on WhatsApp", " ")), [b]);
    }

    #[test]
    fn signup_requires_its_reference_and_no_statement() {
        let mut signup = evidence("", "");
        signup.method = Method::WhatsappSignup;
        assert_eq!(fields(&signup), ["opt_in.evidence.reference"]);
        signup.reference = "13176843987434774".into();
        assert!(fields(&signup).is_empty());
    }

    #[test]
    fn general_statement_is_taken_by_configuration_if_it_names_the_business() {
        let general = PlatformNames::default().with_required(StatementNames::Business);
        let fields = |evidence: &Evidence| fields_by(evidence, &general);
        let (s, b) = ("opt_in.evidence.statement", "opt_in.evidence.business_name");
        assert_eq!(fields(&evidence("Yes, I want to hear from ACME", "Acme")), [""; 0]);
        assert_eq!(fields(&evidence("Send me offers on WhatsApp from Acme", "Acme")), [""; 0]);
        assert_eq!(fields(&evidence("Yes, send me offers on WhatsApp", "Acme")), [s]);
        assert_eq!(fields(&evidence("Yes, send me offers", "Acme")), [s]);
        assert_eq!(fields(&evidence("Yes, I want to hear from Acme", " ")), [b]);
        assert_eq!(fields(&evidence("", "")), [s, b]);
        assert_eq!(general.rule_for(Method::Website), StatementNames::Business);
        let signup = general.rule_for(Method::WhatsappSignup);
        assert_eq!(signup, StatementNames::default(), "it has no statement");
    }

    #[test]
    fn number_is_of_a_signup_alone() {
        let mut with_number = evidence("WhatsApp Acme", "Acme");
        with_number.phone_number_id = Some(PhoneNumberId::parse("1").unwrap());
        assert_eq!(fields(&with_number), ["opt_in.evidence.phone_number_id"]);
        with_number.method = Method::WhatsappSignup;
        with_number.reference = "7".into();
        assert_eq!(fields(&with_number), [""; 0]);
    }

    #[test]
    fn bounds_and_locales_are_validated() {
        let mut long = evidence("WhatsApp Acme", "Acme");
        long.reference = "x".repeat(MAX_REFERENCE_BYTES + 1);
        long.locale = "pt_BR".into();
        assert_eq!(fields(&long), ["opt_in.evidence.locale", "opt_in.evidence.reference"]);
        assert!(is_locale("zh-Hant-TW") && is_locale("en") && !is_locale("en--GB"));
        let names = PlatformNames::new(["", " "]);
        let found = fields_by(&evidence("Acme", "Acme"), &names);
        assert_eq!(found.len(), 1, "a blank name must not fit everything");
    }
}
