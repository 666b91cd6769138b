//! The configuration file: how it is parsed, and errors that name the nearest known key.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use clap::Args as _;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::{ConfigError, KeywordArgs, RoleArgs, ServeArgs, WebhookListenerArgs, WhatsappArgs};

/// The least similarity, from 0 to 1, of an unknown key to the known one that is suggested.
const MIN_SIMILARITY: f64 = 0.6;

/// The keys of the file: the names of the flags, and the tables that no flag sets.
static KEYS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let command = ServeArgs::augment_args(clap::Command::new("serve"));
    let flags = command.get_arguments().filter_map(clap::Arg::get_long);
    let keys = flags.filter(|flag| *flag != "config").chain(["keywords", "whatsapp", "roles"]);
    keys.map(str::to_owned).collect()
});

/// A key of the file that is one of [`KEYS`].
#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = String::deserialize(deserializer)?;
        if KEYS.contains(&key) {
            return Ok(Self(key));
        }
        // The wording of serde, which `naming_nearest` parses.
        let known = KEYS.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
        Err(D::Error::custom(format!("unknown field `{key}`, expected one of {known}")))
    }
}

/// The tables that no flag sets.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Tables {
    keywords: Option<KeywordArgs>,
    whatsapp: Option<WhatsappArgs>,
    roles: Option<RoleArgs>,
}

/// Reads and parses the file.
pub(super) fn read(path: &Path) -> Result<ServeArgs, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    parse(&text).map_err(|error| naming_nearest(path, &text, error))
}

/// Parses the text of a file.
///
/// Each group of settings parses the whole text and ignores the keys of the others. To flatten the
/// groups into one struct by serde would lose the line and column of an invalid value.
pub(super) fn parse(text: &str) -> Result<ServeArgs, toml::de::Error> {
    toml::from_str::<BTreeMap<Key, toml::Value>>(text)?;
    let Tables { keywords, whatsapp, roles } = toml::from_str(text)?;
    Ok(ServeArgs {
        config: None,
        ledger: toml::from_str(text)?,
        businesses: toml::from_str(text)?,
        listeners: toml::from_str(text)?,
        tls: toml::from_str(text)?,
        webhook: WebhookListenerArgs { provider: toml::from_str(text)?, ..toml::from_str(text)? },
        policy: toml::from_str(text)?,
        limits: toml::from_str(text)?,
        storage: toml::from_str(text)?,
        telemetry: toml::from_str(text)?,
        decision_log: toml::from_str(text)?,
        keywords,
        whatsapp,
        roles,
    })
}

/// Adds the path of the file, and for an unknown key the known one that is spelt most alike.
fn naming_nearest(path: &Path, text: &str, error: toml::de::Error) -> ConfigError {
    // The message is: unknown field `key`, expected one of `key`, `key`.
    let mut quoted = error.message().split('`').skip(1).step_by(2);
    let is_unknown = error.message().starts_with("unknown field");
    if let (true, Some(key)) = (is_unknown, quoted.next()) {
        let spelt = key.replace('_', "-").to_lowercase();
        let rated =
            quoted.map(|known| (strsim::normalized_damerau_levenshtein(known, &spelt), known));
        let nearest = rated.max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((_, nearest)) = nearest.filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            return ConfigError::UnknownKey {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                key: key.to_owned(),
                nearest: nearest.to_owned(),
            };
        }
    }
    ConfigError::Toml { path: path.to_owned(), source: Box::new(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path()).unwrap_err().to_string()
    }

    #[test]
    fn invalid_value_is_reported_with_its_place() {
        for text in ["max-batch = \"7\"", "ledger-database = \"7\"", "decision-log-keep = \"7\""] {
            let error = error(&format!("log = \"info\"\n{text}\n"));
            let column = text.find('"').unwrap() + 1;
            assert!(error.contains(&format!("at line 2, column {column}")), "{error}");
            assert!(error.contains(text) && error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn unknown_key_is_reported_with_the_nearest_or_all() {
        let near = error("\nmax_stalenes = \"1s\"\n");
        assert!(near.contains("line 2: unknown key `max_stalenes`"), "{near}");
        assert!(near.contains("did you mean `max-staleness`?"), "{near}");
        let far = error("log = \"info\"\nqqq = 1\n");
        assert!(far.contains("line 2, column 1"), "{far}");
        assert!(far.contains("expected one of `ledger`, `ledger-user`, "), "{far}");
        assert!(far.contains("`keywords`, `whatsapp`, `roles`"), "{far}");
        // The file cannot name another one.
        assert!(error("config = \"other.toml\"").contains("unknown"));
    }
}
