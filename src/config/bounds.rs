//! Numbers and sizes that have bounds.

use bytesize::ByteSize;

use super::{ConfigError, wrong};

/// `least` or more.
pub(super) fn at_least<T: PartialOrd + std::fmt::Display + Copy>(
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

/// From 1 to `most`.
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

/// So many bytes, `least` at the least.
pub(super) fn bytes_of(
    least: usize,
    setting: &'static str,
    size: ByteSize,
) -> Result<usize, ConfigError> {
    let fits = usize::try_from(size.as_u64()).ok().filter(|bytes| *bytes >= least);
    fits.ok_or_else(|| wrong(setting, format!("must be {}MiB or more", least >> 20)))
}
