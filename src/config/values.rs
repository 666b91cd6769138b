//! Parsers of single values, and checks of their bounds.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;

use super::{ConfigError, wrong};
use crate::net::socket::Address;

/// Parses a duration, such as `5s`.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and its unit, such as 5s, 250ms or 24h"))
}

/// Parses a whole number.
pub(super) fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "must be a whole number, such as 1000".to_owned())
}

/// Parses a number of bytes, such as `64MiB`.
pub(super) fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "must be a number and its unit, such as 64MiB".to_owned())
}

/// Parses a number from 0 to 1; the caller checks the bounds.
pub(super) fn ratio(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "must be a number from 0 to 1, such as 0.01".to_owned())
}

/// Parses an address to listen on.
pub(super) fn address(setting: &'static str, text: &str) -> Result<Address, ConfigError> {
    text.parse().map_err(|error| wrong(setting, format!("{text:?} {error}")))
}

/// Returns the text, unless it is the word `none`.
pub(super) fn unless_none(text: &str) -> Option<&str> {
    (text != "none").then_some(text)
}

/// Returns the value or its default; refuses a value below `least`.
pub(super) fn at_least<T: PartialOrd + Display + Copy>(
    least: T,
    setting: &'static str,
    value: Option<T>,
    default: T,
) -> Result<T, ConfigError> {
    match value {
        Some(value) if value < least => Err(wrong(setting, format!("must be {least} or more"))),
        value => Ok(value.unwrap_or(default)),
    }
}

/// Returns the value or its default; refuses a value that is not from 1 to `most`.
pub(super) fn at_most(
    most: usize,
    setting: &'static str,
    value: Option<usize>,
    default: usize,
) -> Result<usize, ConfigError> {
    match at_least(1, setting, value, default)? {
        value if value > most => Err(wrong(setting, format!("must be {most} or less"))),
        value => Ok(value),
    }
}

/// Returns a size in bytes; refuses one below `least` bytes, a whole number of MiB.
pub(super) fn bytes_of(
    least: usize,
    setting: &'static str,
    size: ByteSize,
) -> Result<usize, ConfigError> {
    let fits = usize::try_from(size.as_u64()).ok().filter(|bytes| *bytes >= least);
    fits.ok_or_else(|| wrong(setting, format!("must be {}MiB or more", least >> 20)))
}
