//! The table `[keywords]` of the configuration file: for all businesses, and for each.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Deserialize;

use super::{ConfigError, wrong};
use consentd_core::event::{Evidence, Method, PlatformNames, What};
use consentd_core::id::BusinessId;
use consentd_core::keyword::{
    KeywordLists, KeywordSettings, Keywords, MAX_BUTTON_BYTES, MAX_KEYWORD_BYTES, OptInKeyword,
    OptOutKeyword, are_same, is_built_in, is_built_in_button, languages,
};
use consentd_core::scope::{Category, Scope};

/// The longest language tag, in bytes: BCP 47 needs no more.
const MAX_LOCALE_BYTES: usize = 35;

/// The table `[keywords]`. See [`KeywordLists`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KeywordArgs {
    /// Whether the built-in words opt out; true by default.
    built_in: Option<bool>,
    /// Built-in words that do not opt out.
    except: Vec<String>,
    /// The languages whose built-in words are used.
    languages: Option<Vec<String>>,
    /// Words that opt out, in addition to the built-in ones.
    opt_out: Vec<OptOutArgs>,
    /// Topics that `stop <topic>` may name.
    topics: Vec<String>,
    /// Words that opt in, and the consent that each gives.
    opt_in: Vec<OptInArgs>,
    /// Words that confirm, in place of the built-in ones.
    confirm: Option<Vec<String>>,
    /// Settings of single businesses, by business id.
    business: BTreeMap<String, KeywordArgs>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OptOutArgs {
    scope: String,
    #[serde(default)]
    words: Vec<String>,
    /// Labels of buttons, and the payloads behind them.
    #[serde(default)]
    buttons: Vec<String>,
    #[serde(default)]
    locale: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OptInArgs {
    words: Vec<String>,
    category: String,
    statement: String,
    business_name: String,
    #[serde(default)]
    locale: String,
}

impl KeywordArgs {
    /// Validates the lists of all businesses and of each one.
    /// The statements of opt-ins must call the platform by one of `names`.
    pub(super) fn settings(
        mut self,
        names: &PlatformNames,
    ) -> Result<KeywordSettings, ConfigError> {
        let mut business = BTreeMap::new();
        for (id, own) in std::mem::take(&mut self.business) {
            let place = format!("business.{id:?}");
            if let Err(violation) = BusinessId::parse(&id) {
                return Err(bad(&place, &violation.description));
            }
            if !own.business.is_empty() {
                return Err(bad(&place, &"a business has no businesses of its own"));
            }
            let lists = own.over(&self).lists(names).map_err(|why| bad(&place, &why))?;
            business.insert(id, lists);
        }
        let default = self.lists(names).map_err(|why| wrong("keywords", why))?;
        Ok(KeywordSettings { default, business })
    }

    /// Merges the settings of one business with those of `all`.
    ///
    /// Words that opt in are not inherited: their statement names a business.
    fn over(self, all: &Self) -> Self {
        let more = |all: &[String], own: Vec<String>| all.iter().cloned().chain(own).collect();
        Self {
            built_in: self.built_in.or(all.built_in),
            except: more(&all.except, self.except),
            languages: self.languages.or_else(|| all.languages.clone()),
            opt_out: all.opt_out.iter().cloned().chain(self.opt_out).collect(),
            topics: more(&all.topics, self.topics),
            opt_in: self.opt_in,
            confirm: self.confirm.or_else(|| all.confirm.clone()),
            business: BTreeMap::new(),
        }
    }

    fn lists(self, names: &PlatformNames) -> Result<KeywordLists, String> {
        let languages = self.languages.unwrap_or_default();
        languages.iter().try_for_each(|tag| is_known_language(tag))?;
        let lists = KeywordLists {
            built_in: self.built_in.unwrap_or(true),
            except: self.except.into_iter().map(built_in_word).collect::<Result<_, _>>()?,
            languages,
            opt_out: self.opt_out.into_iter().map(opt_out).collect::<Result<_, _>>()?,
            topics: self.topics.iter().map(|text| topic(text)).collect::<Result<_, _>>()?,
            opt_in: self
                .opt_in
                .into_iter()
                .map(|args| opt_in(args, names))
                .collect::<Result<_, _>>()?,
            confirm: self.confirm.map(|words| checked("confirm", words)).transpose()?,
        };
        if !Keywords::new(lists.clone()).can_opt_out_of_all() {
            return Err(
                "no word is left that opts out of everything: leave built-in = false out, \
                        or list words of scope \"*\" under opt-out"
                    .to_owned(),
            );
        }
        Ok(lists)
    }
}

fn bad(place: &str, why: &dyn Display) -> ConfigError {
    wrong("keywords", format!("{place}: {why}"))
}

fn is_known_language(tag: &str) -> Result<(), String> {
    if languages().any(|known| known == tag) {
        return Ok(());
    }
    let known = languages().collect::<Vec<_>>().join(", ");
    Err(format!("languages: there are no built-in words of {tag:?}; there are of {known}"))
}

fn built_in_word(word: String) -> Result<String, String> {
    if is_built_in(&word) || is_built_in_button(&word) {
        return Ok(word);
    }
    Err(format!("except: {word:?} is no built-in word that opts out"))
}

fn topic(text: &str) -> Result<Scope, String> {
    match Scope::parse(text) {
        Ok(scope @ Scope::Topic(..)) => Ok(scope),
        Ok(_) => Err("topics: must be <class>.<topic>, such as utility.order_updates".to_owned()),
        Err(violation) => Err(format!("topics: {violation}")),
    }
}

/// Checks that there is a word, and that each can be a keyword.
fn checked(list: &str, words: Vec<String>) -> Result<Vec<String>, String> {
    if words.is_empty() {
        return Err(format!("{list}: words: none is listed"));
    }
    plausible(list, MAX_KEYWORD_BYTES, words)
}

/// Checks that each word can be a keyword of at most `max` bytes.
fn plausible(list: &str, max: usize, words: Vec<String>) -> Result<Vec<String>, String> {
    for word in &words {
        if word.len() > max {
            return Err(format!("{list}: a word is longer than {max} bytes"));
        }
        if are_same(word, "") {
            return Err(format!("{list}: {word:?} has neither a letter nor a digit"));
        }
    }
    Ok(words)
}

fn locale(list: &str, tag: String) -> Result<String, String> {
    let is_tag = tag.len() <= MAX_LOCALE_BYTES
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_tag { Ok(tag) } else { Err(format!("{list}: locale must be like es or pt-BR")) }
}

fn opt_out(args: OptOutArgs) -> Result<OptOutKeyword, String> {
    let scope = Scope::parse(&args.scope).map_err(|violation| format!("opt-out: {violation}"))?;
    if args.words.is_empty() && args.buttons.is_empty() {
        return Err("opt-out: words: none is listed, and no buttons".to_owned());
    }
    let words = plausible("opt-out", MAX_KEYWORD_BYTES, args.words)?;
    let buttons = plausible("opt-out: buttons", MAX_BUTTON_BYTES, args.buttons)?;
    Ok(OptOutKeyword { words, buttons, scope, locale: locale("opt-out", args.locale)? })
}

fn opt_in(args: OptInArgs, names: &PlatformNames) -> Result<OptInKeyword, String> {
    let category = Category::parse(&args.category).map(Scope::from);
    let category = category.map_err(|violation| format!("opt-in: {violation}"))?;
    let words = checked("opt-in", args.words)?;
    if let Some(word) = words.iter().find(|word| is_built_in(word)) {
        return Err(format!("opt-in: {word:?} opts out in every language's built-in words"));
    }
    let evidence = Evidence {
        method: Method::Whatsapp,
        statement: args.statement,
        business_name: args.business_name,
        locale: locale("opt-in", args.locale)?,
        reference: String::new(),
        confirmation: String::new(),
        phone_number_id: None,
        statement_names: names.rule_for(Method::Whatsapp),
    };
    // An opt-in by a keyword obeys the rules of every other opt-in, which are checked here, once.
    let what = What::OptIn {
        category: category.clone(),
        evidence: evidence.clone(),
        expire: None,
        pending: false,
    };
    if let Some(violation) = what.violations(names).first() {
        return Err(format!("opt-in: {violation}"));
    }
    Ok(OptInKeyword { words, category, evidence })
}
