//! Message templates and the account that they belong to, as subjects of events.
//!
//! What is known of a template's category is kept as the record of a pair: the template in the place of the
//! user, and the business. So the log, proofs, histories, losses and repairs hold for it as they do for
//! consent. The id of such a subject begins with [`PREFIX`], which no user id does.

use std::fmt;

use super::Violation;

/// The first bytes of the id of a template or an account. No id that begins so is read as a person's.
pub const PREFIX: &str = "template:";

/// The id under which it is recorded that WhatsApp restricts the whole account.
pub const ACCOUNT: &str = "template:*";

/// The longest name of a template: WhatsApp's own limit.
pub const MAX_NAME_BYTES: usize = 512;

/// The longest language of a template, in bytes. WhatsApp's have at most 6, such as `pt_BR`.
pub const MAX_LANGUAGE_BYTES: usize = 16;

/// A template's language, as WhatsApp writes it: `en`, `pt_BR`. The order of the derived comparison means
/// nothing.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Language {
    bytes: [u8; MAX_LANGUAGE_BYTES],
    len: usize,
}

impl Language {
    /// Parses a language with `_` or `-` between its parts, in any case.
    fn parse(text: &str) -> Option<Self> {
        let is_part =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let begins = text.bytes().take(2).all(|byte| byte.is_ascii_alphabetic());
        if !(2..=MAX_LANGUAGE_BYTES).contains(&text.len())
            || !begins
            || !text.split(['_', '-']).all(is_part)
        {
            return None;
        }
        let mut bytes = [0; MAX_LANGUAGE_BYTES];
        let mut is_first = true;
        for (slot, byte) in bytes.iter_mut().zip(text.bytes()) {
            *slot = match byte {
                b'_' | b'-' => {
                    is_first = false;
                    b'_'
                }
                byte if is_first => byte.to_ascii_lowercase(),
                byte => byte.to_ascii_uppercase(),
            };
        }
        Some(Self { bytes, len: text.len() })
    }

    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.len).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// A template's id: its name and its language. Each language of a template has a category of its own.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TemplateId<'a> {
    name: &'a str,
    language: Language,
}

impl<'a> TemplateId<'a> {
    /// Reads a template's name and language. All notations of a language are one: `pt-br` is `pt_BR`.
    ///
    /// # Errors
    ///
    /// The [`Violation`]s of `template.name` and `template.language`.
    pub fn parse(name: &'a str, language: &str) -> Result<Self, Vec<Violation>> {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let mut found = Vec::new();
        if !(1..=MAX_NAME_BYTES).contains(&name.len()) || !name.bytes().all(is_name) {
            let why = "must be the template's name as WhatsApp has it: 1 to 512 of a-z, 0-9 and _";
            found.push(Violation::new("template.name", why));
        }
        match Language::parse(language) {
            Some(language) if found.is_empty() => return Ok(Self { name, language }),
            Some(_) => {}
            None => {
                let why = "must be the template's language, such as en or pt_BR";
                found.push(Violation::new("template.language", why));
            }
        }
        Err(found)
    }

    /// Reads the id of a template as a ledger has it: `template:NAME:LANGUAGE`.
    #[must_use]
    pub fn of_subject(id: &'a str) -> Option<Self> {
        let (name, language) = id.strip_prefix(PREFIX)?.split_once(':')?;
        Self::parse(name, language).ok()
    }

    /// The template's name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The template's language, as WhatsApp writes it.
    #[must_use]
    pub fn language(&self) -> &str {
        self.language.as_str()
    }
}

impl fmt::Display for TemplateId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}:{}", self.name, self.language())
    }
}

/// Who or what an event is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Subject {
    /// A person.
    Person,
    /// A template: [`TemplateId`].
    Template,
    /// All templates of an account: [`ACCOUNT`].
    Account,
}

impl Subject {
    /// What an id in a ledger names.
    #[must_use]
    pub fn of(id: &str) -> Self {
        let is_canonical = |template: TemplateId<'_>| id.ends_with(template.language());
        if id == ACCOUNT {
            Self::Account
        } else if TemplateId::of_subject(id).is_some_and(is_canonical) {
            Self::Template
        } else {
            Self::Person
        }
    }
}

/// The id in its only notation, if it is one of a template or an account: with the language as WhatsApp
/// writes it.
#[must_use]
pub fn canonical(id: &str) -> Option<String> {
    if id == ACCOUNT {
        return Some(id.to_owned());
    }
    TemplateId::of_subject(id).map(|template| template.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notations_of_a_language_are_one() {
        for (language, canonical) in [
            ("en", "en"),
            ("EN", "en"),
            ("pt_BR", "pt_BR"),
            ("pt-br", "pt_BR"),
            ("PT_br", "pt_BR"),
            ("es_419", "es_419"),
            ("fil", "fil"),
        ] {
            let template = TemplateId::parse("order_update", language).unwrap();
            assert_eq!(template.language(), canonical, "{language}");
            let subject = template.to_string();
            assert_eq!(subject, format!("template:order_update:{canonical}"));
            assert_eq!(TemplateId::of_subject(&subject), Some(template));
            assert_eq!(Subject::of(&subject), Subject::Template);
        }
        assert_eq!(canonical("template:a:pt-br").as_deref(), Some("template:a:pt_BR"));
        assert_eq!(canonical(ACCOUNT).as_deref(), Some(ACCOUNT));
        assert_eq!(canonical("15550123456"), None);
    }

    #[test]
    fn what_is_no_template_is_refused_with_the_field() {
        let long = "a".repeat(MAX_NAME_BYTES + 1);
        for name in ["", "Order", "order update", "order:update", "*", long.as_str()] {
            let found = TemplateId::parse(name, "en").unwrap_err();
            assert_eq!(found[0].field, "template.name", "{name}");
        }
        for language in ["", "e", "1n", "en_", "_en", "en__US", "en:US", "english_english_x"] {
            let found = TemplateId::parse("order", language).unwrap_err();
            assert_eq!(found[0].field, "template.language", "{language}");
        }
        assert_eq!(TemplateId::parse("", "").unwrap_err().len(), 2);
        assert!(TemplateId::parse(&"a".repeat(MAX_NAME_BYTES), "en").is_ok());
    }

    #[test]
    fn only_the_notation_of_ledgers_is_a_subject() {
        assert_eq!(Subject::of(ACCOUNT), Subject::Account);
        for person in
            ["template:", "template:a", "template:a:pt-br", "template:A:en", "15550123456"]
        {
            assert_eq!(Subject::of(person), Subject::Person, "{person}");
        }
    }
}
