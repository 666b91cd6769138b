//! The process' log, and exported traces.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::values::{ratio, unless_none};
use super::{ConfigError, wrong};
use crate::telemetry::{EndpointError, TraceSettings};

/// The process' log, and exported traces.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct TelemetryArgs {
    /// What to log to standard error, for people on a terminal and in JSON elsewhere: a level, or
    /// directives such as info,consentd=debug [default: info]
    #[arg(long, env = "CONSENTD_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Export sampled traces to this OpenTelemetry collector, by OTLP over gRPC: http://HOST:PORT,
    /// https://HOST:PORT, or none [default: none]
    #[arg(long, env = "CONSENTD_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// The CA certificates to trust if the collector is at https, instead of the system's
    #[arg(long, env = "CONSENTD_OTLP_CA_FILE", value_name = "FILE")]
    pub otlp_ca_file: Option<PathBuf>,
    /// The share of calls to sample, of those that bring no traceparent; others are sampled as
    /// their caller's trace is [default: 0.01]
    #[arg(long, env = "CONSENTD_OTLP_SAMPLE", value_name = "RATIO", value_parser = ratio)]
    pub otlp_sample: Option<f64>,
}

impl TelemetryArgs {
    /// These settings; where one is unset, that of `weaker`.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            log: self.log.or(weaker.log),
            otlp_endpoint: self.otlp_endpoint.or(weaker.otlp_endpoint),
            otlp_ca_file: self.otlp_ca_file.or(weaker.otlp_ca_file),
            otlp_sample: self.otlp_sample.or(weaker.otlp_sample),
        }
    }

    /// Validates the filter of the log, `info` by default.
    ///
    /// A filter accepts any word as a module's name, so a misspelt level would silence the log:
    /// a word alone must be a level.
    pub(super) fn log(&self) -> Result<String, ConfigError> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let is_valid = |part: &&str| {
            part.contains(['=', '[', ':'])
                || LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level))
        };
        let filter = self.log.as_deref().unwrap_or("info");
        match filter.split(',').map(str::trim).find(|part| !is_valid(part)) {
            None => Ok(filter.to_owned()),
            Some(part) => {
                let levels = LEVELS.join(", ");
                let why =
                    format!("{part:?} is no level: {levels}; or TARGET=LEVEL, as in h2=debug");
                Err(wrong("--log", why))
            }
        }
    }

    /// The collector of traces and the share of calls that are sampled; nothing without a collector.
    pub(super) fn traces(&self) -> Result<Option<TraceSettings>, ConfigError> {
        let ratio = self.otlp_sample.unwrap_or(0.01);
        if !(0.0..=1.0).contains(&ratio) {
            return Err(wrong("--otlp-sample", "must be from 0 to 1, such as 0.01"));
        }
        let endpoint = self.otlp_endpoint.as_deref().and_then(unless_none);
        let endpoint = endpoint
            .map(str::parse)
            .transpose()
            .map_err(|error: EndpointError| wrong("--otlp-endpoint", error.to_string()))?;
        let ca = self.otlp_ca_file.clone().filter(|path| !path.as_os_str().is_empty());
        Ok(endpoint.map(|endpoint| TraceSettings { endpoint, ca, ratio }))
    }
}
