//! What is done now and then: saving the table, and comparing it with the ledger.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ConfigError, LedgerAddress, span, wrong};

/// How often the table is saved, where nothing is said of it.
const SAVE_EVERY: &str = "5m";

/// Where the table is saved, and how often.
pub(super) fn of(
    path: Option<&Path>,
    every: Option<&str>,
    ledger: &LedgerAddress,
) -> Result<Option<(PathBuf, Option<Duration>)>, ConfigError> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
        return match every {
            Some(_) => Err(wrong("--snapshot-every", "needs --snapshot, where to save it")),
            None => Ok(None),
        };
    };
    if matches!(ledger, LedgerAddress::File(_)) {
        let why = "is for a ledger in Redis: one in a file is read from there as fast";
        return Err(wrong("--snapshot", why));
    }
    if path.file_name().is_none() || path.is_dir() {
        return Err(wrong("--snapshot", "must be a file's path, such as /var/lib/consentd/table"));
    }
    let every = interval("--snapshot-every", every.unwrap_or(SAVE_EVERY), "100ms", "5m")?;
    Ok(Some((path.to_owned(), every)))
}

/// How often a bucket is compared.
pub(super) fn scrub_every(text: &str) -> Result<Option<Duration>, ConfigError> {
    interval("--scrub-every", text, "10ms", "10s")
}

/// A time that is `least` at the least, or never.
fn interval(
    setting: &'static str,
    text: &str,
    least: &str,
    example: &str,
) -> Result<Option<Duration>, ConfigError> {
    if text == "never" {
        return Ok(None);
    }
    let every = span(text).map_err(|why| wrong(setting, format!("{why}; or never")))?;
    if span(least).is_ok_and(|least| every < least) {
        return Err(wrong(
            setting,
            format!("must be {least} or more, such as {example}, or never"),
        ));
    }
    Ok(Some(every))
}
