//! Warnings about how the process was started.

use std::ffi::OsString;
use std::fmt;

use clap::Command;

use consentd_ledger::Target;

/// The prefix of consentd's environment variables.
const PREFIX: &str = "CONSENTD_";

/// Passwords have no flag, because every user of the machine can read a process's arguments.
const WITHOUT_FLAG: [&str; 2] = ["CONSENTD_LEDGER_PASSWORD", "CONSENTD_LEDGER_SENTINEL_PASSWORD"];

/// Variables of the tests, benches and scripts, which the processes that they start inherit.
const DEVELOPMENT_VARIABLES: [&str; 14] = [
    "CONSENTD_BIN",
    "CONSENTD_CHAOS",
    "CONSENTD_ERASES",
    "CONSENTD_FROM",
    "CONSENTD_IMAGE",
    "CONSENTD_MEET",
    "CONSENTD_MEMORIES",
    "CONSENTD_PEOPLE",
    "CONSENTD_SEED",
    "CONSENTD_SOME",
    "CONSENTD_STEPS",
    "CONSENTD_TRACE",
    "CONSENTD_WEBHOOK_CASES",
    "CONSENTD_WEEK_UPDATES",
];

/// The similarity from which on one name counts as a misspelling of another.
const MIN_SIMILARITY: f64 = 0.75;

/// Longer names are not compared, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// An environment variable with consentd's prefix that sets nothing.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct UnknownVariable {
    /// Its name. Its value is not kept, because it may be a secret.
    pub(super) name: String,
    /// The most similar known variable, if it may be meant.
    pub(super) nearest: Option<String>,
}

impl fmt::Display for UnknownVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the environment variable {} sets nothing", self.name)?;
        match &self.nearest {
            Some(nearest) => write!(f, "; did you mean {nearest}?"),
            None => write!(f, ": no setting has this name"),
        }
    }
}

/// The variables among these names and values that look like consentd's and set nothing.
pub(super) fn unknown_variables(
    command: &Command,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<UnknownVariable> {
    let mut known = Vec::new();
    add_known(command, &mut known);
    let set = variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let unknown = set.filter(|(name, value)| {
        // An empty variable counts as unset.
        name.starts_with(PREFIX)
            && !value.is_empty()
            && !is_service_variable(name, value)
            && !DEVELOPMENT_VARIABLES.contains(&name.as_str())
            && !known.contains(name)
    });
    let mut unknown: Vec<_> = unknown
        .map(|(name, _)| UnknownVariable { nearest: nearest(&name, &known), name })
        .collect();
    unknown.sort_by(|a, b| a.name.cmp(&b.name));
    unknown
}

/// Adds the variables of a command and of its subcommands.
fn add_known(command: &Command, known: &mut Vec<String>) {
    let named = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
    known.extend(named.map(str::to_owned));
    known.extend(WITHOUT_FLAG.map(str::to_owned));
    for inner in command.get_subcommands() {
        add_known(inner, known);
    }
    known.sort();
    known.dedup();
}

/// Whether Kubernetes or Docker set the variable: if a service's name begins with `consentd`, every
/// pod gets `CONSENTD_SERVICE_HOST`, `CONSENTD_PORT` and similar ones.
fn is_service_variable(name: &str, value: &OsString) -> bool {
    let is_address = value.to_str().is_some_and(|value| {
        ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
    });
    let port = name.rsplit_once("_PORT_").map(|(_, port)| port);
    let is_port = port.is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit()));
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || is_port
        || (name.ends_with("_PORT") && is_address)
}

fn nearest(name: &str, known: &[String]) -> Option<String> {
    if name.len() > MAX_NAME_BYTES {
        return None;
    }
    let own = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_ascii_uppercase();
    let meant = own(name);
    let rated = known
        .iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(&own(known), &meant), known));
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(similarity, _)| *similarity >= MIN_SIMILARITY).map(|(_, known)| known.clone())
}

/// A warning about a password in an address on the command line, if there is one.
pub(super) fn password_warning(arguments: impl Iterator<Item = OsString>) -> Option<&'static str> {
    let mut arguments = arguments.filter_map(|argument| argument.into_string().ok());
    let is_found = arguments.any(|argument| {
        let address = argument.strip_prefix("--ledger=").unwrap_or(&argument);
        Target::has_password(address)
    });
    is_found.then_some(
        "the ledger's address on the command line has a password in it, which everybody who may \
         list this machine's processes can read: write it into a file, and name that with \
         --ledger-password-file",
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn unknown(variables: &[(&str, &str)]) -> Vec<String> {
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let found = unknown_variables(&crate::cli::command(), variables);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn unknown_variable_is_named_with_the_nearest() {
        let said = unknown(&[
            ("CONSENTD_MAX_STALENES", "secret"),
            ("CONSENTD_LEDGER_PASSWORT", "secret"),
            ("CONSENTD_WEATHER", "secret"),
            ("CONSENTD_max_batch", "secret"),
            ("CONSENTD_EMPTY", ""),
            ("OTHER", "secret"),
        ]);
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(said[0].contains("did you mean CONSENTD_LEDGER_PASSWORD?"), "{said:?}");
        assert!(said[1].contains("did you mean CONSENTD_MAX_STALENESS?"), "{said:?}");
        assert!(said[2].contains("CONSENTD_WEATHER sets nothing: no setting"), "{said:?}");
        assert!(said[3].contains("did you mean CONSENTD_MAX_BATCH?"), "{said:?}");
        assert!(!said.concat().contains("secret"));
    }

    #[test]
    fn variables_of_an_orchestrator_are_ignored() {
        let said = unknown(&[
            ("CONSENTD_SERVICE_HOST", "10.0.0.1"),
            ("CONSENTD_SERVICE_PORT", "50051"),
            ("CONSENTD_SERVICE_PORT_GRPC", "50051"),
            ("CONSENTD_PORT", "tcp://10.0.0.1:50051"),
            ("CONSENTD_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
            ("CONSENTD_PORT_50051_TCP_ADDR", "10.0.0.1"),
            ("CONSENTD_REDIS_PORT", "tcp://10.0.0.2:6379"),
        ]);
        assert_eq!(said, Vec::<String>::new());
        assert_eq!(unknown(&[("CONSENTD_PORT", "50051")]).len(), 1);
    }

    /// Adds the variables that are named in the files of a folder.
    fn add_named(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add_named(&path, found);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                for rest in text.split(PREFIX).skip(1) {
                    let name = rest.split(|c: char| !c.is_ascii_uppercase() && c != '_').next();
                    let name = name.filter(|name| !name.is_empty());
                    found.extend(name.map(|name| format!("{PREFIX}{name}")));
                }
            }
        }
    }

    #[test]
    fn variables_of_tests_benches_and_scripts_are_known() {
        let mut found = BTreeSet::new();
        for folder in ["tests", "benches", "scripts", "examples"] {
            add_named(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
        }
        assert!(found.len() >= 10, "{found:?}");
        // The one that a test misspells on purpose.
        assert!(found.remove("CONSENTD_MAX_STALENES"), "{found:?}");
        let found: Vec<_> = found.iter().map(|name| (name.as_str(), "1")).collect();
        assert_eq!(unknown(&found), Vec::<String>::new());
    }

    #[test]
    fn password_on_the_command_line_is_warned_of_and_not_repeated() {
        let said = |arguments: &[&str]| password_warning(arguments.iter().map(OsString::from));
        for arguments in [
            &["serve", "--ledger", "redis://user:hunter2@host"] as &[_],
            &["serve", "--ledger=rediss://:hunter2@host:6379/1"],
            &["ledger", "copy", "file:a", "redis+sentinel://u:hunter2@a,b/master"],
            &["init", "--ledger", "redis+unix://:hunter2@/run/redis.sock"],
        ] {
            let said = said(arguments).unwrap();
            assert!(said.contains("--ledger-password-file") && !said.contains("hunter2"));
        }
        for arguments in [
            &["serve", "--ledger", "redis://user@host"] as &[_],
            &["serve", "--ledger", "redis://host/1"],
            &["serve", "--ledger", "file:a:b@c"],
            &["record", "inbound", "1", "acme", "--text", "user:word@host"],
        ] {
            assert_eq!(said(arguments), None, "{arguments:?}");
        }
    }
}
