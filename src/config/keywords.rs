//! What the configuration file says of keywords.

use serde::Deserialize;

use super::{ConfigError, wrong};
use crate::consent::event::{Evidence, Method, PlatformNames, What};
use crate::consent::keyword::{KeywordLists, OptInKeyword};
use crate::consent::scope::{Category, Scope};

/// What the file says of keywords. See [`KeywordLists`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KeywordArgs {
    /// In place of the built-in lists.
    opt_out: Option<Vec<OptOutArgs>>,
    /// Topics that `stop <topic>` may name.
    topics: Vec<String>,
    /// Words that opt in, and the consent that they stand for.
    opt_in: Vec<OptInArgs>,
    /// In place of `yes`.
    confirm: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct OptOutArgs {
    scope: String,
    words: Vec<String>,
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
    /// The lists that they stand for.
    pub(super) fn lists(self) -> Result<KeywordLists, ConfigError> {
        let bad =
            |what: &str, why: &dyn std::fmt::Display| wrong("keywords", format!("{what}: {why}"));
        let mut lists = KeywordLists::default();
        if let Some(opt_out) = self.opt_out {
            let read = |args: OptOutArgs| match Scope::parse(&args.scope) {
                Ok(scope) => Ok((scope, args.words)),
                Err(violation) => Err(bad("opt-out", &violation)),
            };
            lists.opt_out = opt_out.into_iter().map(read).collect::<Result<_, _>>()?;
        }
        for topic in self.topics {
            let scope = Scope::parse(&topic).map_err(|violation| bad("topics", &violation))?;
            if !matches!(scope, Scope::Topic(..)) {
                return Err(bad(
                    "topics",
                    &"must be <class>.<topic>, such as utility.order_updates",
                ));
            }
            lists.topics.push(scope);
        }
        for opt_in in self.opt_in {
            let category = Category::parse(&opt_in.category).map(Scope::from);
            let category = category.map_err(|violation| bad("opt-in", &violation))?;
            let evidence = Evidence {
                method: Method::Whatsapp,
                statement: opt_in.statement,
                business_name: opt_in.business_name,
                locale: opt_in.locale,
                reference: String::new(),
                confirmation: String::new(),
            };
            // The same rules as for any other opt-in, checked once and here.
            let what = What::OptIn {
                category: category.clone(),
                evidence: evidence.clone(),
                expire: None,
                pending: false,
            };
            if let Some(violation) = what.violations(&PlatformNames::default()).first() {
                return Err(bad("opt-in", violation));
            }
            lists.opt_in.push(OptInKeyword { words: opt_in.words, category, evidence });
        }
        if let Some(confirm) = self.confirm {
            lists.confirm = confirm;
        }
        Ok(lists)
    }
}
