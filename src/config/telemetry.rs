//! What is logged, and which traces are exported where.

use super::{ConfigError, optional, wrong};
use crate::telemetry::{EndpointError, TraceSettings};

/// A filter takes any word for a module's name; one alone is a misspelt level.
pub(super) fn log(filter: String) -> Result<String, ConfigError> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_fine = |part: &&str| {
        part.contains(['=', '[', ':'])
            || LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level))
    };
    match filter.split(',').map(str::trim).find(|part| !is_fine(part)) {
        None => Ok(filter),
        Some(part) => {
            let levels = LEVELS.join(", ");
            let why = format!("{part:?} is no level: {levels}; or TARGET=LEVEL, as in h2=debug");
            Err(wrong("--log", why))
        }
    }
}

/// Where traces go, and which share of them.
pub(super) fn traces(
    endpoint: Option<&str>,
    ratio: f64,
) -> Result<Option<TraceSettings>, ConfigError> {
    if !(0.0..=1.0).contains(&ratio) {
        return Err(wrong("--otlp-sample", "must be from 0 to 1, such as 0.01"));
    }
    let endpoint = endpoint.and_then(optional).map(str::parse).transpose();
    let endpoint =
        endpoint.map_err(|error: EndpointError| wrong("--otlp-endpoint", error.to_string()))?;
    Ok(endpoint.map(|endpoint| TraceSettings { endpoint, ratio }))
}
