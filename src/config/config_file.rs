//! The configuration file, and what may be wrong with it.

use std::path::Path;

use super::{ConfigError, ServeArgs};

/// How alike two keys must be for one to be a misspelling of the other.
const ALIKE: f64 = 0.6;

/// Reads what a file says.
pub(super) fn read(path: &Path) -> Result<ServeArgs, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|error| wrong_file(path, &text, error))
}

/// What is wrong with a file; a key that is none, with the one that is meant.
fn wrong_file(path: &Path, text: &str, error: toml::de::Error) -> ConfigError {
    // What the parser says of it: unknown field `key`, expected one of `key`, `key`.
    let mut quoted = error.message().split('`').skip(1).step_by(2);
    let is_unknown = error.message().starts_with("unknown field");
    if let (true, Some(key)) = (is_unknown, quoted.next()) {
        let spelt = key.replace('_', "-").to_lowercase();
        let rated =
            quoted.map(|known| (strsim::normalized_damerau_levenshtein(known, &spelt), known));
        let nearest = rated.max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((_, meant)) = nearest.filter(|(likeness, _)| *likeness >= ALIKE) {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            return ConfigError::UnknownKey {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                key: key.to_owned(),
                meant: meant.to_owned(),
            };
        }
    }
    ConfigError::Toml { path: path.to_owned(), source: Box::new(error) }
}
