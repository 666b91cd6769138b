//! What is logged of decisions, and where.

use bytesize::ByteSize;

use super::{ConfigError, ServeArgs, optional, wrong};
use crate::decision_log::{DecisionFilter, DecisionLogSettings, LogTarget};

/// The least size at which another file is begun, in bytes: two writes.
const MIN_SIZE: u64 = 64 * 1024;
/// The most files that are kept.
const MAX_KEEP: u32 = 1_000;

/// Gives a macro, within another one, the settings of the decision log behind those that it has.
macro_rules! with_decision_log_args {
    ($then:ident! { $within:ident! { $($rest:tt)* } }) => {
        $then! { $within! {
            $($rest)*
            /// Write what is decided as lines of JSON into this file, or to stdout; or none
            /// [default: none]
            #[arg(long, env = "CONSENTD_DECISION_LOG", value_name = "PATH")]
            decision_log: String,
            /// The share of decisions to log, of those that --decision-log-only leaves
            /// [default: 1]
            #[arg(
                long, env = "CONSENTD_DECISION_LOG_SAMPLE", value_name = "RATIO",
                value_parser = ratio,
            )]
            decision_log_sample: f64,
            /// Which decisions to log: all, or denials [default: all]
            #[arg(long, env = "CONSENTD_DECISION_LOG_ONLY", value_name = "WHICH")]
            decision_log_only: String,
            /// Begin another file before one would be larger than this [default: 64MiB]
            #[arg(
                long, env = "CONSENTD_DECISION_LOG_MAX_SIZE", value_name = "SIZE",
                value_parser = size,
            )]
            decision_log_max_size: ByteSize,
            /// How many files of before to keep: PATH.1, the youngest, and so on [default: 5]
            #[arg(
                long, env = "CONSENTD_DECISION_LOG_KEEP", value_name = "N",
                value_parser = number::<u32>,
            )]
            decision_log_keep: u32,
        } }
    };
}
pub(super) use with_decision_log_args;

/// What is logged; nothing where no place is named for it.
pub(super) fn of(args: &ServeArgs) -> Result<Option<DecisionLogSettings>, ConfigError> {
    let sample = args.decision_log_sample.unwrap_or(1.0);
    if !(sample > 0.0 && sample <= 1.0) {
        let why = "must be more than 0 and at most 1, such as 0.01";
        return Err(wrong("--decision-log-sample", why));
    }
    let filter = match args.decision_log_only.as_deref() {
        None | Some("all") => DecisionFilter::All,
        Some("denials") => DecisionFilter::Denials,
        Some(_) => return Err(wrong("--decision-log-only", "must be all or denials")),
    };
    let max_size = args.decision_log_max_size.unwrap_or(ByteSize::mib(64)).as_u64();
    if max_size < MIN_SIZE {
        return Err(wrong("--decision-log-max-size", "must be 64KiB or more"));
    }
    let keep = args.decision_log_keep.unwrap_or(5);
    if keep > MAX_KEEP {
        return Err(wrong("--decision-log-keep", format!("must be {MAX_KEEP} or less")));
    }
    let place = args.decision_log.as_deref().filter(|place| !place.is_empty());
    let target = match place.and_then(optional) {
        Some("stdout") => LogTarget::Stdout,
        Some(path) => LogTarget::File(path.into()),
        None => {
            let without = "needs --decision-log, where to write it";
            let given = [
                ("--decision-log-sample", args.decision_log_sample.is_some()),
                ("--decision-log-only", args.decision_log_only.is_some()),
            ];
            // What asks for a log gets one, or is told why not.
            return match given.into_iter().find(|(_, given)| *given && place.is_none()) {
                Some((flag, _)) => Err(wrong(flag, without)),
                None => Ok(None),
            };
        }
    };
    Ok(Some(DecisionLogSettings { target, sample, filter, max_size, keep }))
}
