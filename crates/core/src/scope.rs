//! Classes, topics, categories, and the scopes that opt-ins and opt-outs cover.

use std::fmt;

use super::{Violation, hidden_chars};

/// The longest topic, in characters.
pub const MAX_TOPIC_CHARS: usize = 48;

/// One of WhatsApp's own message categories.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Class {
    /// Promotions, offers, and anything else that is in no other class.
    Marketing,
    /// About an order, an account or another thing that the user started.
    Utility,
    /// One-time passcodes.
    Authentication,
    /// Answers to the user.
    Service,
}

impl Class {
    /// Every class, in the order of declaration.
    pub const ALL: [Self; 4] =
        [Self::Marketing, Self::Utility, Self::Authentication, Self::Service];

    /// The class's name in a category.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Marketing => "marketing",
            Self::Utility => "utility",
            Self::Authentication => "authentication",
            Self::Service => "service",
        }
    }

    /// How strict WhatsApp's rules for templates of this class are: marketing is the strictest. WhatsApp
    /// has no templates of the class `service`, which counts as the least strict.
    #[must_use]
    pub const fn strictness(self) -> u8 {
        match self {
            Self::Service => 0,
            Self::Authentication => 1,
            Self::Utility => 2,
            Self::Marketing => 3,
        }
    }

    /// The stricter of both.
    #[must_use]
    pub const fn stricter(self, other: Self) -> Self {
        if other.strictness() > self.strictness() { other } else { self }
    }

    /// The class that a template of this one counts as while WhatsApp restricts the account: utility counts as
    /// marketing. WhatsApp has no templates of the class `service`, so that one may be of utility of which
    /// nothing is known.
    #[must_use]
    pub const fn restricted(self) -> Self {
        match self {
            Self::Utility | Self::Service => Self::Marketing,
            class => class,
        }
    }

    /// The class of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        // A match on the names is faster than a search in `ALL`, and every check calls this.
        match name {
            "marketing" => Some(Self::Marketing),
            "utility" => Some(Self::Utility),
            "authentication" => Some(Self::Authentication),
            "service" => Some(Self::Service),
            _ => None,
        }
    }
}

/// A set of classes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ClassSet([bool; 4]);

impl ClassSet {
    /// No class.
    pub const NONE: Self = Self([false; 4]);
    /// Every class.
    pub const ALL: Self = Self([true; 4]);

    /// Whether `class` is in the set.
    #[must_use]
    pub const fn contains(self, class: Class) -> bool {
        let [marketing, utility, authentication, service] = self.0;
        match class {
            Class::Marketing => marketing,
            Class::Utility => utility,
            Class::Authentication => authentication,
            Class::Service => service,
        }
    }
}

impl FromIterator<Class> for ClassSet {
    fn from_iter<I: IntoIterator<Item = Class>>(classes: I) -> Self {
        let mut set = Self::NONE;
        let [marketing, utility, authentication, service] = &mut set.0;
        for class in classes {
            match class {
                Class::Marketing => *marketing = true,
                Class::Utility => *utility = true,
                Class::Authentication => *authentication = true,
                Class::Service => *service = true,
            }
        }
        set
    }
}

/// What a message is about: a class, and perhaps a business's own topic in it. It borrows the topic, so
/// that parsing a check does not allocate.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Category<'a> {
    /// The class.
    pub class: Class,
    /// The topic, `[a-z0-9_]{1,48}`.
    pub topic: Option<&'a str>,
}

impl<'a> Category<'a> {
    /// Parses `<class>` or `<class>.<topic>`.
    ///
    /// # Errors
    ///
    /// A [`Violation`] of `category` that names the invalid part.
    pub fn parse(text: &'a str) -> Result<Self, Violation> {
        parse_category(text).map_err(|why| Violation::new("category", why))
    }
}

fn parse_category(text: &str) -> Result<Category<'_>, String> {
    // The name of a class is short: scanning its bytes is faster than setting up a search.
    let (class, topic) = match text.bytes().position(|byte| byte == b'.') {
        Some(dot) => {
            text.split_at_checked(dot).map_or((text, None), |(class, rest)| (class, rest.get(1..)))
        }
        None => (text, None),
    };
    let Some(class) = Class::from_name(class) else {
        return Err(hidden_in(text).unwrap_or_else(|| unknown_class(text, class)));
    };
    if let Some(topic) = topic
        && !is_topic(topic)
    {
        return Err(hidden_in(text).unwrap_or_else(|| bad_topic(class, topic)));
    }
    Ok(Category { class, topic })
}

/// The description of the hidden character in an invalid category, if it has one.
fn hidden_in(text: &str) -> Option<String> {
    let hidden = hidden_chars::find(text.get(..text.floor_char_boundary(MAX_MEANT_BYTES))?)?;
    Some(format!("{hidden}; categories are written in a-z, 0-9, _ and one dot"))
}

/// Words that people use for a class, each with the class that they mean by it.
const MEANT: [(&str, Class); 19] = [
    ("sales", Class::Marketing),
    ("promo", Class::Marketing),
    ("promotion", Class::Marketing),
    ("promotional", Class::Marketing),
    ("offers", Class::Marketing),
    ("news", Class::Marketing),
    ("newsletter", Class::Marketing),
    ("advertising", Class::Marketing),
    ("order", Class::Utility),
    ("transaction", Class::Utility),
    ("transactional", Class::Utility),
    ("notification", Class::Utility),
    ("shipping", Class::Utility),
    ("otp", Class::Authentication),
    ("auth", Class::Authentication),
    ("login", Class::Authentication),
    ("verification", Class::Authentication),
    ("support", Class::Service),
    ("customer_care", Class::Service),
];

/// The similarity, from 0 to 1, from which on a word counts as a misspelling of another.
const MIN_SIMILARITY: f64 = 0.65;

/// The longest word for which the meant class is guessed, in bytes.
const MAX_MEANT_BYTES: usize = 40;

fn unknown_class(text: &str, class: &str) -> String {
    let known = "marketing, utility, authentication or service, perhaps with a topic: \
                 utility.order_updates";
    if text.is_empty() {
        return format!("required: {known}");
    }
    if text == "*" {
        return format!("consent is asked and given by category, never for everything: {known}");
    }
    if class.chars().all(|c| c.is_ascii_digit() || matches!(c, '+' | '(' | ')' | '-' | ' ')) {
        return format!(
            "a number is no category: is the order user, business, category? It is one of {known}"
        );
    }
    // Only a word that is nearly a class is echoed: any other word may be a person's name.
    let lower = class.trim().to_ascii_lowercase();
    match (Class::from_name(&lower), nearest(&lower)) {
        (Some(meant), _) => {
            format!("classes are written in lower case: {} and not \"{class}\"", meant.name())
        }
        (None, Some(meant)) => {
            let meant = meant.name();
            format!("unknown class \"{lower}\", did you mean {meant}? It is one of {known}")
        }
        (None, None) => format!("unknown class; it is one of {known}"),
    }
}

/// The class that an unknown word means: a synonym, or a misspelt name.
fn nearest(word: &str) -> Option<Class> {
    if let Some((_, class)) = MEANT.into_iter().find(|(known, _)| *known == word) {
        return Some(class);
    }
    if word.len() > MAX_MEANT_BYTES {
        return None;
    }
    let likeness = |class: Class| strsim::normalized_damerau_levenshtein(class.name(), word);
    let rated = Class::ALL.map(|class| (likeness(class), class)).into_iter();
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(likeness, _)| *likeness >= MIN_SIMILARITY).map(|(_, class)| class)
}

fn bad_topic(class: Class, topic: &str) -> String {
    let rule = "the topic behind the class must be 1 to 48 of a-z, 0-9 and _";
    let spelt: String =
        topic.trim().chars().map(|c| if c == ' ' || c == '-' { '_' } else { c }).collect();
    let spelt = spelt.to_ascii_lowercase();
    // Digits are not echoed: they may be a phone number.
    if is_topic(&spelt) && !topic.bytes().any(|b| b.is_ascii_digit()) {
        let class = class.name();
        return format!("{rule}; did you mean {class}.{spelt} by \"{class}.{topic}\"?");
    }
    format!("{rule}, such as utility.order_updates")
}

/// Whether `topic` is `[a-z0-9_]{1,48}`.
#[must_use]
pub fn is_topic(topic: &str) -> bool {
    (1..=MAX_TOPIC_CHARS).contains(&topic.len())
        && topic.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

impl fmt::Display for Category<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.topic {
            None => f.write_str(self.class.name()),
            Some(topic) => write!(f, "{}.{topic}", self.class.name()),
        }
    }
}

/// What an opt-in or an opt-out covers. Broader scopes sort first.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Scope {
    /// `*`: everything. Only opt-outs can have it.
    All,
    /// A whole class.
    Class(Class),
    /// One topic of a class.
    Topic(Class, Box<str>),
}

impl Scope {
    /// Parses `*`, `<class>` or `<class>.<topic>`.
    ///
    /// # Errors
    ///
    /// A [`Violation`] of `scope` that names the invalid part.
    pub fn parse(text: &str) -> Result<Self, Violation> {
        if text == "*" {
            return Ok(Self::All);
        }
        match parse_category(text) {
            Ok(category) => Ok(category.into()),
            Err(why) => Err(Violation::new("scope", format!("{why}; or * for everything"))),
        }
    }

    /// Whether whatever is in the other scope is in this one.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match self {
            Self::All => true,
            Self::Class(class) => other.class() == Some(*class),
            Self::Topic(..) => self == other,
        }
    }

    /// The class of this scope; `None` for `*`.
    #[must_use]
    pub fn class(&self) -> Option<Class> {
        match self {
            Self::All => None,
            Self::Class(class) | Self::Topic(class, _) => Some(*class),
        }
    }

    /// The category that this scope covers; `None` for `*`.
    #[must_use]
    pub fn category(&self) -> Option<Category<'_>> {
        match self {
            Self::All => None,
            Self::Class(class) => Some(Category { class: *class, topic: None }),
            Self::Topic(class, topic) => Some(Category { class: *class, topic: Some(topic) }),
        }
    }
}

impl From<Category<'_>> for Scope {
    fn from(category: Category<'_>) -> Self {
        match category.topic {
            None => Self::Class(category.class),
            Some(topic) => Self::Topic(category.class, topic.into()),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Class(class) => f.write_str(class.name()),
            Self::Topic(class, topic) => write!(f, "{}.{topic}", class.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_round_trips_through_its_name() {
        for class in Class::ALL {
            assert_eq!(Class::from_name(class.name()), Some(class));
        }
    }

    #[test]
    fn category_and_scope_round_trip_through_their_text() {
        for text in ["marketing", "utility.order_updates", "service.a", "authentication.0_9"] {
            assert_eq!(Category::parse(text).unwrap().to_string(), text);
            assert_eq!(Scope::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Scope::parse("*").unwrap(), Scope::All);
    }

    #[test]
    fn invalid_category_is_refused_with_a_remedy() {
        let long = format!("utility.{}", "a".repeat(49));
        for (text, part) in [
            ("", "required"),
            ("*", "never for everything"),
            ("Marketing", "lower case: marketing"),
            ("Marketing", "and not \"Marketing\""),
            (" marketing", "U+0020 SPACE at byte 0"),
            ("marketing\u{200b}", "U+200B ZERO WIDTH SPACE at byte 9"),
            ("\u{ff4d}arketing", "a compatibility form of \"m\": U+FF4D at byte 0"),
            ("utility.\u{ff4f}rder", "a compatibility form of \"o\": U+FF4F at byte 8"),
            ("sales", "\"sales\", did you mean marketing?"),
            ("marketting", "did you mean marketing?"),
            ("utilities.orders", "\"utilities\", did you mean utility?"),
            ("otp", "did you mean authentication?"),
            ("weather", "unknown class; it is one of marketing"),
            ("+1 555 012 3456", "a number is no category"),
            ("US.1349", "unknown class; it is one of marketing"),
            ("user7", "unknown class; it is one of marketing"),
            (&"m".repeat(1_000), "unknown class; it is one of marketing"),
            ("utility.", "1 to 48"),
            ("utility.Order", "did you mean utility.order by \"utility.Order\"?"),
            ("utility.Order Updates", "1 to 48"),
            ("utility.Order Updates", "did you mean utility.order_updates by"),
            ("utility.Order-5550123", "0-9 and _, such as"),
            ("utility.a.b", "1 to 48"),
            (long.as_str(), "1 to 48"),
        ] {
            let violation = Category::parse(text).unwrap_err();
            assert!(violation.description.contains(part), "{text}: {violation}");
        }
    }
}
