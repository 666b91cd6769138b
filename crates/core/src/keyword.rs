//! Keywords: the meaning of an inbound text, if the whole of it is a keyword.
//!
//! A text is compared as a whole, after trimming, case folding, and dropping accents and punctuation:
//! `Stop.` is a keyword, `we must stop this bill` is not. Nothing is guessed. An opt-out may also be
//! repeated, and have courtesies around it (`please stop, thank you`).
//!
//! Keywords that withdraw consent count in every language, whatever languages a business has: people
//! write in their own. Keywords that give consent count only in the languages, and with the statements,
//! that the business configures.

mod button;
mod courtesy;
mod languages;
mod normalize;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use self::button::stops_promotions;
use self::languages::{LANGUAGES, Language, OPT_OUT_MARKETING};
use self::normalize::normalize;
use super::event::Evidence;
use super::scope::{Class, Scope};
use super::state::State;

/// The longest text that is compared, in bytes of UTF-8: four times WhatsApp's longest message.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// The longest keyword that may be configured, in bytes of UTF-8.
pub const MAX_KEYWORD_BYTES: usize = 128;

/// The longest label or payload of a button that may be configured, in bytes of UTF-8: WhatsApp's own
/// limit for a button's id.
pub const MAX_BUTTON_BYTES: usize = 256;

/// The configured keywords of one business, or of all.
#[derive(Clone, Debug)]
pub struct KeywordLists {
    /// Whether the built-in keywords opt out.
    pub built_in: bool,
    /// The built-in keywords that mean something else to this business and do not opt out.
    pub except: Vec<String>,
    /// The business's languages, the most likely first: tags of [`languages()`]. They select the reported
    /// language of a keyword that is in several, and the languages whose built-in keywords confirm.
    /// Built-in keywords opt out in all languages.
    pub languages: Vec<String>,
    /// Keywords that opt out, in addition to the built-in ones.
    pub opt_out: Vec<OptOutKeyword>,
    /// Topics that `stop <topic>` may name, besides those of the pair's own scopes.
    pub topics: Vec<Scope>,
    /// Keywords that opt in, and the consent that they give.
    pub opt_in: Vec<OptInKeyword>,
    /// Keywords that confirm a pending double opt-in, in place of those of the languages.
    pub confirm: Option<Vec<String>>,
}

/// The keywords of every business.
#[derive(Clone, Debug, Default)]
pub struct KeywordSettings {
    /// The keywords of a business that has none of its own.
    pub default: KeywordLists,
    /// The keywords of individual businesses, by business id.
    pub business: BTreeMap<String, KeywordLists>,
}

/// Keywords that opt out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OptOutKeyword {
    /// The keywords.
    pub words: Vec<String>,
    /// Labels of buttons, and the payloads behind them, that opt out. They mean nothing if a user types
    /// them.
    pub buttons: Vec<String>,
    /// The scope that they opt out of.
    pub scope: Scope,
    /// The BCP 47 tag of their language; empty if they belong to several.
    pub locale: String,
}

/// Keywords that opt in, such as `start`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OptInKeyword {
    /// The keywords.
    pub words: Vec<String>,
    /// The category that they opt in to.
    pub category: Scope,
    /// The evidence: what users were told that the keyword means. Its reference is set from the message.
    pub evidence: Evidence,
}

impl Default for KeywordLists {
    fn default() -> Self {
        Self {
            built_in: true,
            except: Vec::new(),
            languages: Vec::new(),
            opt_out: Vec::new(),
            topics: Vec::new(),
            opt_in: Vec::new(),
            confirm: None,
        }
    }
}

/// The BCP 47 tags of the languages of the built-in keywords.
pub fn languages() -> impl Iterator<Item = &'static str> {
    LANGUAGES.iter().map(|language| language.tag).filter(|tag| !tag.is_empty())
}

/// Whether a word is a built-in keyword that opts out.
#[must_use]
pub fn is_built_in(word: &str) -> bool {
    let word = normalize(word);
    OPT_OUT.contains_key(&word)
        || OPT_OUT_MARKETING.iter().any(|(_, known)| normalize(known) == word)
}

/// Whether a button with this label stops promotions without being configured.
#[must_use]
pub fn is_built_in_button(label: &str) -> bool {
    stops_promotions(&normalize(label)).is_some()
}

/// Whether two texts are compared as equal.
#[must_use]
pub fn are_same(one: &str, other: &str) -> bool {
    normalize(one) == normalize(other)
}

/// The meaning of a keyword.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Meaning {
    /// An opt-out of these scopes. There are several if a topic is known under several classes, or if the
    /// text is listed with scopes of which none covers the others.
    OptOut(Vec<Scope>),
    /// An opt-in as configured.
    OptIn(Arc<OptInKeyword>),
    /// The confirmation of every pending opt-in.
    Confirm,
}

/// A text that is a keyword.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeywordMatch {
    /// The keyword's meaning.
    pub meaning: Meaning,
    /// The keyword as it is listed, never as the user wrote it.
    pub keyword: String,
    /// The keyword's language, as a BCP 47 tag; empty if it belongs to several or is unknown.
    pub locale: String,
}

/// A listed keyword.
struct Keyword {
    action: Action,
    listed: String,
    locale: String,
}

impl Keyword {
    /// The scopes that the keyword opts out of; none if it does not opt out.
    fn scopes(&self) -> &[Scope] {
        match &self.action {
            Action::OptOut(scopes) => scopes,
            Action::OptIn(_) | Action::Confirm => &[],
        }
    }

    fn to_match(&self) -> KeywordMatch {
        let meaning = match &self.action {
            Action::OptOut(scopes) => Meaning::OptOut(scopes.clone()),
            Action::OptIn(keyword) => Meaning::OptIn(Arc::clone(keyword)),
            Action::Confirm => Meaning::Confirm,
        };
        KeywordMatch { meaning, keyword: self.listed.clone(), locale: self.locale.clone() }
    }
}

enum Action {
    OptOut(Vec<Scope>),
    OptIn(Arc<OptInKeyword>),
    Confirm,
}

/// The keywords of one business, indexed by their normal forms.
pub struct Keywords {
    words: HashMap<String, Keyword>,
    /// The length of the longest keyword in its normal form, in bytes.
    longest_word_bytes: usize,
    /// The configured labels and payloads of buttons, by their normal forms.
    buttons: HashMap<String, Keyword>,
    /// The labels that do not stop promotions although the rule for buttons matches them. `None` if the
    /// built-in keywords are off: then the rule does not apply.
    except: Option<BTreeSet<String>>,
    /// The keywords that come before the name of a topic: as listed, and their language.
    before_topic: HashMap<String, (String, String)>,
    topics: Vec<Scope>,
}

impl Keywords {
    /// Indexes the lists. A keyword that is on several of them opts out.
    #[must_use]
    pub fn new(lists: KeywordLists) -> Self {
        let KeywordLists { built_in, except, languages, opt_out, topics, opt_in, confirm } = lists;
        let (mut words, mut buttons) = (HashMap::new(), HashMap::new());
        for (word, locale) in confirming(confirm, &languages) {
            put(&mut words, &word, &locale, Action::Confirm);
        }
        for keyword in opt_in {
            let keyword = Arc::new(keyword);
            for word in &keyword.words {
                let action = Action::OptIn(Arc::clone(&keyword));
                put(&mut words, word, &keyword.evidence.locale, action);
            }
        }
        // From the narrowest to the broadest, so that the broadest is the one that is reported.
        let mut opt_out = opt_out;
        if built_in {
            opt_out.extend(built_in_words(&except, &languages));
        }
        opt_out.sort_by(|a, b| b.scope.cmp(&a.scope));
        for OptOutKeyword { words: listed, buttons: labels, scope, locale } in opt_out {
            for word in listed {
                put(&mut words, &word, &locale, Action::OptOut(vec![scope.clone()]));
            }
            for label in labels {
                put(&mut buttons, &label, &locale, Action::OptOut(vec![scope.clone()]));
            }
        }
        for known in [&mut words, &mut buttons] {
            known.remove("");
        }
        let except = built_in.then(|| except.iter().map(|word| normalize(word)).collect());
        let longest_word_bytes = words.keys().map(String::len).max().unwrap_or(0);
        let before_topic = before_topic(&languages);
        Self { words, longest_word_bytes, buttons, except, before_topic, topics }
    }

    /// The meaning of a button, by its label or by the payload behind it: the meaning of the same text
    /// if it is typed, the configured one, and an opt-out of marketing if the label stops promotions.
    /// Several opt-outs are one opt-out of all their scopes.
    #[must_use]
    pub fn meaning_of_button(&self, text: &str, state: &State) -> Option<KeywordMatch> {
        let by_word = self.meaning(text, state);
        if text.is_empty() || text.len() > MAX_TEXT_BYTES {
            return by_word;
        }
        let text = normalize(text);
        let configured = self.buttons.get(&text).map(Keyword::to_match);
        let applies = self.except.as_ref().is_some_and(|except| !except.contains(&text));
        let by_rule = stops_promotions(&text).filter(|_| applies).map(|stopped| {
            let meaning = Meaning::OptOut(vec![Scope::Class(Class::Marketing)]);
            let locale = stopped.locale.to_owned();
            KeywordMatch { meaning, keyword: stopped.keyword, locale }
        });
        let scopes_of = |matched: &KeywordMatch| match &matched.meaning {
            Meaning::OptOut(scopes) => scopes.clone(),
            Meaning::OptIn(_) | Meaning::Confirm => Vec::new(),
        };
        let found = [&by_word, &configured, &by_rule].into_iter().flatten();
        let scopes = broadest(found.clone().flat_map(scopes_of));
        // Of several opt-outs, the first one with the broadest scope is reported. A broader scope is
        // ordered before a narrower one.
        let reported = found.filter(|one| !scopes_of(one).is_empty());
        let Some(reported) = reported.min_by_key(|one| scopes_of(one).into_iter().min()) else {
            return by_word;
        };
        Some(KeywordMatch { meaning: Meaning::OptOut(scopes), ..reported.clone() })
    }

    /// The meaning of `text`, if the whole of it is a keyword.
    #[must_use]
    pub fn meaning(&self, text: &str, state: &State) -> Option<KeywordMatch> {
        if text.is_empty() || text.len() > MAX_TEXT_BYTES {
            return None;
        }
        let text = normalize(text);
        if let Some(word) = self.words.get(&text) {
            return Some(word.to_match());
        }
        if let Some(matched) = self.opt_out_of_name(&text, state) {
            return Some(matched);
        }
        let opt_out = |phrase| self.words.get(phrase).filter(|word| !word.scopes().is_empty());
        match courtesy::opt_outs(&text, self.longest_word_bytes, opt_out).as_slice() {
            [] => self.opt_out_of_name(courtesy::without_courtesies(&text), state),
            words => Some(all_of(words)),
        }
    }

    /// Whether any keyword opts out of everything.
    #[must_use]
    pub fn can_opt_out_of_all(&self) -> bool {
        self.words.values().any(|word| word.scopes().contains(&Scope::All))
    }

    /// The meaning of `stop <name>`, in its normal form.
    fn opt_out_of_name(&self, text: &str, state: &State) -> Option<KeywordMatch> {
        let (first, name) = text.split_once(' ')?;
        self.named_scopes(self.before_topic.get(first)?, name, state)
    }

    /// The scopes of `stop <name>`: a class, or a topic that the pair has or that is configured, in every
    /// class that has it.
    fn named_scopes(
        &self,
        (stop, locale): &(String, String),
        name: &str,
        state: &State,
    ) -> Option<KeywordMatch> {
        let matched = |scopes: Vec<Scope>, name: &str| KeywordMatch {
            meaning: Meaning::OptOut(scopes),
            keyword: format!("{stop} {name}"),
            locale: locale.clone(),
        };
        if let Some(class) = Class::from_name(name) {
            return Some(matched(vec![Scope::Class(class)], class.name()));
        }
        let name = name.replace(' ', "");
        let is_meant = |scope: &&Scope| {
            matches!(scope, Scope::Topic(class, topic)
                if topic.replace('_', "") == name
                    || format!("{}{}", class.name(), topic.replace('_', "")) == name)
        };
        let known = self.topics.iter().chain(state.scopes.keys());
        let meant: BTreeSet<Scope> = known.filter(is_meant).cloned().collect();
        // The topic as it is known, and not as the user wrote it.
        let topic = meant.iter().find_map(|scope| match scope {
            Scope::Topic(_, topic) => Some(topic.to_string()),
            _ => None,
        })?;
        Some(matched(meant.into_iter().collect(), &topic))
    }
}

/// The meaning of several opt-outs in one text: everything if one of them covers everything, else each
/// scope.
fn all_of(words: &[&Keyword]) -> KeywordMatch {
    let scopes =
        words.iter().flat_map(|word| word.scopes().iter().map(move |scope| (scope, *word)));
    let by_scope: BTreeMap<_, _> = scopes.collect();
    if let Some(all) = by_scope.get(&Scope::All) {
        return all.to_match();
    }
    let mut listed: Vec<&str> = by_scope.values().map(|word| word.listed.as_str()).collect();
    listed.dedup();
    KeywordMatch {
        keyword: listed.join(" "),
        locale: by_scope.values().next().map(|word| word.locale.clone()).unwrap_or_default(),
        meaning: Meaning::OptOut(by_scope.into_keys().cloned().collect()),
    }
}

/// Lists a keyword by its normal form. A word that opts out keeps the scopes that it had as an opt-out,
/// and replaces any other meaning.
fn put(index: &mut HashMap<String, Keyword>, word: &str, locale: &str, mut action: Action) {
    let normal = normalize(word);
    if let Action::OptOut(scopes) = &mut action {
        let known = index.get(&normal).map_or(&[][..], Keyword::scopes);
        *scopes = broadest(known.iter().chain(scopes.iter()).cloned());
    }
    let (listed, locale) = (word.to_owned(), locale.to_owned());
    index.insert(normal, Keyword { action, listed, locale });
}

/// These scopes without those that another one of them covers, the broadest first.
fn broadest(scopes: impl Iterator<Item = Scope>) -> Vec<Scope> {
    let scopes: BTreeSet<Scope> = scopes.collect();
    let is_covered =
        |scope: &Scope| scopes.iter().any(|other| other != scope && other.covers(scope));
    scopes.iter().filter(|scope| !is_covered(scope)).cloned().collect()
}

/// The indexed keywords of every business.
pub struct KeywordBook {
    default: Keywords,
    business: HashMap<String, Keywords>,
}

impl KeywordBook {
    /// Indexes the keywords of every business.
    #[must_use]
    pub fn new(settings: KeywordSettings) -> Self {
        let own = settings.business.into_iter().map(|(id, lists)| (id, Keywords::new(lists)));
        Self { default: Keywords::new(settings.default), business: own.collect() }
    }

    /// The keywords of a business.
    #[must_use]
    pub fn of(&self, business_id: &str) -> &Keywords {
        self.business.get(business_id).unwrap_or(&self.default)
    }
}

impl From<Keywords> for KeywordBook {
    /// The same keywords for every business.
    fn from(keywords: Keywords) -> Self {
        Self { default: keywords, business: HashMap::new() }
    }
}

/// A built-in keyword: the tag of each of its languages, and its notation there.
type Known = Vec<(&'static str, &'static str)>;

/// Built-in keywords by their normal forms.
type Index = BTreeMap<String, Known>;

static OPT_OUT: LazyLock<Index> = LazyLock::new(|| index(|language| language.opt_out));
static CONFIRM: LazyLock<Index> = LazyLock::new(|| index(|language| language.confirm));
static BEFORE_TOPIC: LazyLock<Index> = LazyLock::new(|| index(|language| language.before_topic));

fn index(list: fn(&'static Language) -> &'static [&'static str]) -> Index {
    let mut index = Index::new();
    for language in LANGUAGES {
        for word in list(language) {
            index.entry(normalize(word)).or_default().push((language.tag, *word));
        }
    }
    index
}

/// The language of a keyword and its notation there: the first of the business's own languages that has
/// it, else its only language, else no language.
fn reported_language(known: &Known, preferred: &[String]) -> (&'static str, &'static str) {
    let own = preferred.iter().find_map(|tag| known.iter().find(|(known, _)| *known == tag));
    match (own, known.as_slice()) {
        (Some(own), _) => *own,
        (None, [only]) => *only,
        (None, several) => ("", several.first().map_or("", |(_, word)| *word)),
    }
}

/// The keywords that confirm, each with its language: those listed, else the built-in ones of these
/// languages, or of English if there are none.
fn confirming(listed: Option<Vec<String>>, languages: &[String]) -> Vec<(String, String)> {
    if let Some(listed) = listed {
        let with_locale = |word: String| {
            let known = CONFIRM.get(&normalize(&word));
            let locale = known.map_or("", |known| reported_language(known, languages).0);
            (word, locale.to_owned())
        };
        return listed.into_iter().map(with_locale).collect();
    }
    let is_spoken = |tag: &str| match languages {
        [] => tag == "en",
        languages => languages.iter().any(|language| language == tag),
    };
    let spoken = CONFIRM.values().filter(|known| known.iter().any(|(tag, _)| is_spoken(tag)));
    let reported = spoken.map(|known| reported_language(known, languages));
    reported.map(|(tag, word)| (word.to_owned(), tag.to_owned())).collect()
}

/// The built-in keywords that opt out, except for some.
fn built_in_words(except: &[String], languages: &[String]) -> Vec<OptOutKeyword> {
    let except: BTreeSet<String> = except.iter().map(|word| normalize(word)).collect();
    let keyword = |(locale, word): (&str, &str), scope: Scope| OptOutKeyword {
        words: vec![word.to_owned()],
        buttons: Vec::new(),
        scope,
        locale: locale.to_owned(),
    };
    let all = OPT_OUT.iter().filter(|(word, _)| !except.contains(*word));
    let all = all.map(|(_, known)| keyword(reported_language(known, languages), Scope::All));
    let marketing = OPT_OUT_MARKETING.iter().filter(|(_, word)| !except.contains(&normalize(word)));
    let marketing = marketing.map(|known| keyword(*known, Scope::Class(Class::Marketing)));
    all.chain(marketing).collect()
}

/// The keywords that may come before the name of a topic.
fn before_topic(languages: &[String]) -> HashMap<String, (String, String)> {
    let reported = BEFORE_TOPIC
        .iter()
        .map(|(word, known)| (word.clone(), reported_language(known, languages)));
    reported.map(|(word, (tag, listed))| (word, (listed.to_owned(), tag.to_owned()))).collect()
}

#[cfg(test)]
mod tests;
