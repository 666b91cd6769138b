//! Settings of the decision log.

use bytesize::ByteSize;
use clap::Args;
use serde::Deserialize;

use super::values::{number, ratio, size, unless_none};
use super::{ConfigError, wrong};
use crate::decision_log::{DecisionFilter, DecisionLogSettings, LogTarget};

/// The least size at which a file is rotated, in bytes: two writes.
const MIN_SIZE_BYTES: u64 = 64 * 1024;
/// The most rotated files that are kept.
const MAX_KEPT_FILES: u32 = 1_000;

/// Settings of the decision log.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct DecisionLogArgs {
    /// Write what is decided as lines of JSON into this file, or to stdout; or none
    /// [default: none]
    #[arg(long, env = "CONSENTD_DECISION_LOG", value_name = "PATH")]
    pub decision_log: Option<String>,
    /// The share of decisions to log, of those that --decision-log-only leaves
    /// [default: 1]
    #[arg(
        long, env = "CONSENTD_DECISION_LOG_SAMPLE", value_name = "RATIO",
        value_parser = ratio,
    )]
    pub decision_log_sample: Option<f64>,
    /// Which decisions to log: all, or denials [default: all]
    #[arg(long, env = "CONSENTD_DECISION_LOG_ONLY", value_name = "WHICH")]
    pub decision_log_only: Option<String>,
    /// Begin another file before one would be larger than this [default: 64MiB]
    #[arg(
        long, env = "CONSENTD_DECISION_LOG_MAX_SIZE", value_name = "SIZE",
        value_parser = size,
    )]
    pub decision_log_max_size: Option<ByteSize>,
    /// How many files of before to keep: PATH.1, the youngest, and so on [default: 5]
    #[arg(
        long, env = "CONSENTD_DECISION_LOG_KEEP", value_name = "N",
        value_parser = number::<u32>,
    )]
    pub decision_log_keep: Option<u32>,
}

impl DecisionLogArgs {
    /// These settings; where one is unset, that of `weaker`.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            decision_log: self.decision_log.or(weaker.decision_log),
            decision_log_sample: self.decision_log_sample.or(weaker.decision_log_sample),
            decision_log_only: self.decision_log_only.or(weaker.decision_log_only),
            decision_log_max_size: self.decision_log_max_size.or(weaker.decision_log_max_size),
            decision_log_keep: self.decision_log_keep.or(weaker.decision_log_keep),
        }
    }

    /// Validates the settings; nothing if no target is set.
    pub(super) fn validate(&self) -> Result<Option<DecisionLogSettings>, ConfigError> {
        let sample = self.decision_log_sample.unwrap_or(1.0);
        if !(sample > 0.0 && sample <= 1.0) {
            let why = "must be more than 0 and at most 1, such as 0.01";
            return Err(wrong("--decision-log-sample", why));
        }
        let filter = match self.decision_log_only.as_deref() {
            None | Some("all") => DecisionFilter::All,
            Some("denials") => DecisionFilter::Denials,
            Some(_) => return Err(wrong("--decision-log-only", "must be all or denials")),
        };
        let max_size = self.decision_log_max_size.unwrap_or(ByteSize::mib(64)).as_u64();
        if max_size < MIN_SIZE_BYTES {
            return Err(wrong("--decision-log-max-size", "must be 64KiB or more"));
        }
        let keep = self.decision_log_keep.unwrap_or(5);
        if keep > MAX_KEPT_FILES {
            return Err(wrong("--decision-log-keep", format!("must be {MAX_KEPT_FILES} or less")));
        }
        let place = self.decision_log.as_deref().filter(|place| !place.is_empty());
        let target = match place.and_then(unless_none) {
            Some("stdout") => LogTarget::Stdout,
            Some(path) => LogTarget::File(path.into()),
            None => {
                let without = "needs --decision-log, where to write it";
                let given = [
                    ("--decision-log-sample", self.decision_log_sample.is_some()),
                    ("--decision-log-only", self.decision_log_only.is_some()),
                ];
                // A setting of the log without a target is a mistake, and would log nothing.
                return match given.into_iter().find(|(_, given)| *given && place.is_none()) {
                    Some((flag, _)) => Err(wrong(flag, without)),
                    None => Ok(None),
                };
            }
        };
        Ok(Some(DecisionLogSettings { target, sample, filter, max_size, keep }))
    }
}
