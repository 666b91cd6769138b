//! What an inbound text means, where the whole of it is a keyword.
//!
//! A text is compared as a whole, after trimming, case folding, and dropping accents and
//! punctuation: `Stop.` is a keyword, `we must stop this bill` is not. Nothing is guessed. An
//! opt-out may also be repeated, and have courtesies around it (`please stop, thank you`).
//!
//! What withdraws consent counts in every language, whatever languages a business speaks: people
//! write to it in their own. What gives consent counts only in the languages, and with the
//! statements, that the business names.

mod courtesy;
mod normal;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use self::normal::normal;
use self::words::{LANGUAGES, Language, OPT_OUT_MARKETING};
use super::event::Evidence;
use super::scope::{Class, Scope};
use super::state::State;

/// A longer text is no keyword, in bytes of UTF-8: four times WhatsApp's longest message.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// The longest keyword that may be configured, in bytes of UTF-8.
pub const MAX_KEYWORD_BYTES: usize = 128;

/// What an operator may set of the keywords of one business, or of all.
#[derive(Clone, Debug)]
pub struct KeywordLists {
    /// Whether the built-in words opt out.
    pub built_in: bool,
    /// Those of the built-in words that mean something else here.
    pub except: Vec<String>,
    /// The business's languages, the most likely first: tags of [`languages`]. They say in which
    /// language an answer is told to be where a word is in several, and in which ones the built-in
    /// words confirm; opt-outs count in all of them.
    pub languages: Vec<String>,
    /// Words that opt out, beside the built-in ones.
    pub opt_out: Vec<OptOutKeyword>,
    /// Topics that `stop <topic>` may name, besides those of the pair's own scopes.
    pub topics: Vec<Scope>,
    /// Words that opt in, and the consent that they stand for.
    pub opt_in: Vec<OptInKeyword>,
    /// Words that confirm a pending double opt-in, in place of those of the languages.
    pub confirm: Option<Vec<String>>,
}

/// The keywords of every business.
#[derive(Clone, Debug, Default)]
pub struct KeywordSettings {
    /// Those of a business that has none of its own.
    pub default: KeywordLists,
    /// Those of the businesses that have, by their ids.
    pub business: BTreeMap<String, KeywordLists>,
}

/// Words that opt out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OptOutKeyword {
    /// The words.
    pub words: Vec<String>,
    /// What they opt out of.
    pub scope: Scope,
    /// Their language's BCP 47 tag; empty where they are of several.
    pub locale: String,
}

/// The consent that a word such as `start` stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OptInKeyword {
    /// The words.
    pub words: Vec<String>,
    /// What they opt in to.
    pub category: Scope,
    /// What was said to users of them; its reference is filled in from the message.
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

/// The languages of the built-in words, by their BCP 47 tags.
pub fn languages() -> impl Iterator<Item = &'static str> {
    LANGUAGES.iter().map(|language| language.tag).filter(|tag| !tag.is_empty())
}

/// Whether a word is one of those built in, and opts out.
#[must_use]
pub fn is_built_in(word: &str) -> bool {
    let word = normal(word);
    OPT_OUT.contains_key(&word) || OPT_OUT_MARKETING.iter().any(|known| normal(known) == word)
}

/// Whether two texts are the same keyword, if either is one.
#[must_use]
pub fn are_same(one: &str, other: &str) -> bool {
    normal(one) == normal(other)
}

/// What a text asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Meaning {
    /// To opt out of these scopes; one, but where a topic is known under several classes.
    OptOut(Vec<Scope>),
    /// To opt in as configured.
    OptIn(Arc<OptInKeyword>),
    /// To confirm what is pending.
    Confirm,
}

/// A text that is a keyword.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Heard {
    /// What it asks for.
    pub meaning: Meaning,
    /// The keyword as it is listed: never the user's own letters.
    pub keyword: String,
    /// The keyword's language, as a BCP 47 tag; empty where it is of several, or unknown.
    pub locale: String,
}

/// A listed word.
struct Word {
    does: Does,
    listed: String,
    locale: String,
}

impl Word {
    /// What the word opts out of, if that is what it does.
    fn scope(&self) -> Option<&Scope> {
        match &self.does {
            Does::OptOut(scope) => Some(scope),
            Does::OptIn(_) | Does::Confirm => None,
        }
    }

    fn heard(&self) -> Heard {
        let meaning = match &self.does {
            Does::OptOut(scope) => Meaning::OptOut(vec![scope.clone()]),
            Does::OptIn(keyword) => Meaning::OptIn(Arc::clone(keyword)),
            Does::Confirm => Meaning::Confirm,
        };
        Heard { meaning, keyword: self.listed.clone(), locale: self.locale.clone() }
    }
}

enum Does {
    OptOut(Scope),
    OptIn(Arc<OptInKeyword>),
    Confirm,
}

/// The keywords of one business, ready to be compared.
pub struct Keywords {
    words: HashMap<String, Word>,
    /// The length of the longest of them in its normal form.
    longest_word_bytes: usize,
    /// What comes before a topic's name: as it is listed, and its language.
    before_topic: HashMap<String, (String, String)>,
    topics: Vec<Scope>,
}

impl Keywords {
    /// Prepares the lists. A word that is on several of them opts out.
    #[must_use]
    pub fn new(lists: KeywordLists) -> Self {
        let KeywordLists { built_in, except, languages, opt_out, topics, opt_in, confirm } = lists;
        let mut words = HashMap::new();
        let mut put = |word: &str, locale: &str, does: Does| {
            let word = Word { does, listed: word.to_owned(), locale: locale.to_owned() };
            words.insert(normal(&word.listed), word);
        };
        for (word, locale) in confirming(confirm, &languages) {
            put(&word, &locale, Does::Confirm);
        }
        for keyword in opt_in {
            let keyword = Arc::new(keyword);
            for word in &keyword.words {
                put(word, &keyword.evidence.locale, Does::OptIn(Arc::clone(&keyword)));
            }
        }
        // From the narrowest to the broadest, so that the broadest stands.
        let mut opt_out = opt_out;
        if built_in {
            opt_out.extend(built_in_words(&except, &languages));
        }
        opt_out.sort_by(|a, b| b.scope.cmp(&a.scope));
        for OptOutKeyword { words, scope, locale } in opt_out {
            for word in words {
                put(&word, &locale, Does::OptOut(scope.clone()));
            }
        }
        words.remove("");
        let longest_word_bytes = words.keys().map(String::len).max().unwrap_or(0);
        Self { words, longest_word_bytes, before_topic: before_topic(&languages), topics }
    }

    /// What `text` asks for, where the whole of it is a keyword.
    #[must_use]
    pub fn meaning(&self, text: &str, state: &State) -> Option<Heard> {
        if text.is_empty() || text.len() > MAX_TEXT_BYTES {
            return None;
        }
        let text = normal(text);
        if let Some(word) = self.words.get(&text) {
            return Some(word.heard());
        }
        if let Some(heard) = self.opt_out_of_name(&text, state) {
            return Some(heard);
        }
        let opt_out = |phrase| self.words.get(phrase).filter(|word| word.scope().is_some());
        match courtesy::opt_outs(&text, self.longest_word_bytes, opt_out).as_slice() {
            [] => self.opt_out_of_name(courtesy::without_courtesies(&text), state),
            words => Some(all_of(words)),
        }
    }

    /// Whether any word opts out of everything.
    #[must_use]
    pub fn can_opt_out_of_all(&self) -> bool {
        self.words.values().any(|word| matches!(word.does, Does::OptOut(Scope::All)))
    }

    /// What `stop <name>` asks for, in its normal form.
    fn opt_out_of_name(&self, text: &str, state: &State) -> Option<Heard> {
        let (first, name) = text.split_once(' ')?;
        self.named_scopes(self.before_topic.get(first)?, name, state)
    }

    /// The scopes that `stop <name>` means: a class, or a topic that the pair has or that is
    /// configured, in every class that has it.
    fn named_scopes(
        &self,
        (stop, locale): &(String, String),
        name: &str,
        state: &State,
    ) -> Option<Heard> {
        let heard = |scopes: Vec<Scope>, name: &str| Heard {
            meaning: Meaning::OptOut(scopes),
            keyword: format!("{stop} {name}"),
            locale: locale.clone(),
        };
        if let Some(class) = Class::from_name(name) {
            return Some(heard(vec![Scope::Class(class)], class.name()));
        }
        let name = name.replace(' ', "");
        let is_meant = |scope: &&Scope| {
            matches!(scope, Scope::Topic(class, topic)
                if topic.replace('_', "") == name
                    || format!("{}{}", class.name(), topic.replace('_', "")) == name)
        };
        let known = self.topics.iter().chain(state.scopes.keys());
        let meant: BTreeSet<Scope> = known.filter(is_meant).cloned().collect();
        // The topic as it is written where it is known, and not as the user wrote it.
        let topic = meant.iter().find_map(|scope| match scope {
            Scope::Topic(_, topic) => Some(topic.to_string()),
            _ => None,
        })?;
        Some(heard(meant.into_iter().collect(), &topic))
    }
}

/// What several opt-outs in one text ask for: everything if one of them does, else each scope.
fn all_of(words: &[&Word]) -> Heard {
    let by_scope: BTreeMap<_, _> = words.iter().map(|word| (word.scope(), *word)).collect();
    if let Some(all) = by_scope.get(&Some(&Scope::All)) {
        return all.heard();
    }
    let listed: Vec<&str> = by_scope.values().map(|word| word.listed.as_str()).collect();
    Heard {
        meaning: Meaning::OptOut(by_scope.keys().copied().flatten().cloned().collect()),
        keyword: listed.join(" "),
        locale: by_scope.values().next().map(|word| word.locale.clone()).unwrap_or_default(),
    }
}

/// The keywords of every business, ready to be compared.
pub struct KeywordBook {
    default: Keywords,
    business: HashMap<String, Keywords>,
}

impl KeywordBook {
    /// Prepares them.
    #[must_use]
    pub fn new(settings: KeywordSettings) -> Self {
        let own = settings.business.into_iter().map(|(id, lists)| (id, Keywords::new(lists)));
        Self { default: Keywords::new(settings.default), business: own.collect() }
    }

    /// Those of a business.
    #[must_use]
    pub fn of(&self, business_id: &str) -> &Keywords {
        self.business.get(business_id).unwrap_or(&self.default)
    }
}

impl From<Keywords> for KeywordBook {
    /// The same for every business.
    fn from(keywords: Keywords) -> Self {
        Self { default: keywords, business: HashMap::new() }
    }
}

/// A built-in word: its languages, and how each writes it.
type Known = Vec<(&'static str, &'static str)>;

/// Built-in words by their normal forms.
type Index = BTreeMap<String, Known>;

static OPT_OUT: LazyLock<Index> = LazyLock::new(|| index(|language| language.opt_out));
static CONFIRM: LazyLock<Index> = LazyLock::new(|| index(|language| language.confirm));
static BEFORE_TOPIC: LazyLock<Index> = LazyLock::new(|| index(|language| language.before_topic));

fn index(list: fn(&'static Language) -> &'static [&'static str]) -> Index {
    let mut index = Index::new();
    for language in LANGUAGES {
        for word in list(language) {
            index.entry(normal(word)).or_default().push((language.tag, *word));
        }
    }
    index
}

/// Which language's a word is, and how it is written there: the first of the business's own that
/// has it, else the only one, else none that could be told.
fn told(known: &Known, preferred: &[String]) -> (&'static str, &'static str) {
    let own = preferred.iter().find_map(|tag| known.iter().find(|(known, _)| *known == tag));
    match (own, known.as_slice()) {
        (Some(own), _) => *own,
        (None, [only]) => *only,
        (None, several) => ("", several.first().map_or("", |(_, word)| *word)),
    }
}

/// The words that confirm: those listed, else the built-in ones of these languages, or `yes` where
/// none is named; each with its language.
fn confirming(listed: Option<Vec<String>>, languages: &[String]) -> Vec<(String, String)> {
    if let Some(listed) = listed {
        let with_locale = |word: String| {
            let known = CONFIRM.get(&normal(&word));
            let locale = known.map_or("", |known| told(known, languages).0);
            (word, locale.to_owned())
        };
        return listed.into_iter().map(with_locale).collect();
    }
    let is_spoken = |tag: &str| match languages {
        [] => tag == "en",
        languages => languages.iter().any(|language| language == tag),
    };
    let spoken = CONFIRM.values().filter(|known| known.iter().any(|(tag, _)| is_spoken(tag)));
    let told = spoken.map(|known| told(known, languages));
    told.map(|(tag, word)| (word.to_owned(), tag.to_owned())).collect()
}

/// The built-in words that opt out, but for these.
fn built_in_words(except: &[String], languages: &[String]) -> Vec<OptOutKeyword> {
    let except: BTreeSet<String> = except.iter().map(|word| normal(word)).collect();
    let keyword = |(locale, word): (&str, &str), scope: Scope| OptOutKeyword {
        words: vec![word.to_owned()],
        scope,
        locale: locale.to_owned(),
    };
    let all = OPT_OUT.iter().filter(|(word, _)| !except.contains(*word));
    let all = all.map(|(_, known)| keyword(told(known, languages), Scope::All));
    let marketing = OPT_OUT_MARKETING.iter().filter(|word| !except.contains(&normal(word)));
    let marketing = marketing.map(|word| keyword(("en", word), Scope::Class(Class::Marketing)));
    all.chain(marketing).collect()
}

/// What may come before a topic's name.
fn before_topic(languages: &[String]) -> HashMap<String, (String, String)> {
    let told = BEFORE_TOPIC.iter().map(|(word, known)| (word.clone(), told(known, languages)));
    told.map(|(word, (tag, listed))| (word, (listed.to_owned(), tag.to_owned()))).collect()
}

#[cfg(test)]
mod tests;
