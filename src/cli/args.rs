//! Parses the command line and the environment, and explains mistakes in them.

use std::ffi::{OsStr, OsString};

use clap::builder::{Resettable, StyledStr};
use clap::error::{ContextKind, ContextValue, Error};
use clap::{Arg, Command, CommandFactory as _, FromArgMatches as _};

use super::Cli;
use super::warnings::{self, UnknownVariable};

/// Parses the command line. Exits on an error, and after printing help or the version.
pub(super) fn parse() -> Cli {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let parsed = without_empty_variables(Cli::command()).try_get_matches_from(&arguments);
    parsed
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .unwrap_or_else(|error| explain(error, &arguments).exit())
}

/// Common words for a command, each with the command's name.
const SYNONYMS: [(&str, &str); 12] = [
    ("start", "serve"),
    ("run", "serve"),
    ("daemon", "serve"),
    ("ask", "check"),
    ("cansend", "check"),
    ("can-send", "check"),
    ("show", "get"),
    ("list", "history"),
    ("optin", "record opt-in"),
    ("opt-in", "record opt-in"),
    ("optout", "record opt-out"),
    ("opt-out", "record opt-out"),
];

/// Suggests the command for a synonym; clap itself suggests similar spellings.
fn explain(mut error: Error, arguments: &[OsString]) -> Error {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return name_variable(error, arguments);
    };
    // Only for the first word: commands such as `record` have subcommands of their own.
    let is_first = arguments.get(1).is_some_and(|first| first.to_str() == Some(word));
    let synonym = SYNONYMS.into_iter().find(|(known, _)| is_first && known == word);
    if let Some((_, command)) = synonym {
        let tips = ContextValue::Strings(vec![command.to_owned()]);
        error.insert(ContextKind::SuggestedSubcommand, tips);
    }
    error
}

/// Ignores empty variables: a variable that is unset on the host reaches a container as an empty
/// one.
fn without_empty_variables(command: Command) -> Command {
    let unset = |arg: Arg| match arg.get_env().and_then(value_of) {
        Some(value) if value.is_empty() => arg.env(Resettable::Reset),
        _ => arg,
    };
    command.mut_args(unset).mut_subcommands(without_empty_variables)
}

/// Names the environment variable in an error about a flag, if the flag's value is from there.
fn name_variable(mut error: Error, arguments: &[OsString]) -> Error {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let Some(flag) = named.split([' ', '=']).next().filter(|flag| flag.starts_with("--")) else {
        return error;
    };
    if let Some(variable) = variable_that_sets(flag, arguments) {
        let mut tip = StyledStr::new();
        tip.push_str(&format!("the value is that of the environment variable {variable}"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

/// The environment variable that sets a flag, if the command line does not.
pub(super) fn variable_of(flag: &str) -> Option<String> {
    variable_that_sets(flag, &std::env::args_os().collect::<Vec<_>>())
}

/// Environment variables that look like consentd's and set nothing.
pub(super) fn unknown_variables() -> Vec<UnknownVariable> {
    warnings::unknown_variables(&Cli::command(), std::env::vars_os())
}

/// A warning about a password on the command line, if there is one.
pub(super) fn password_warning() -> Option<&'static str> {
    warnings::password_warning(std::env::args_os())
}

fn variable_that_sets(flag: &str, arguments: &[OsString]) -> Option<String> {
    let is_flag = |argument: &OsString| {
        let rest = argument.to_str().and_then(|argument| argument.strip_prefix(flag));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    if arguments.iter().any(is_flag) {
        return None;
    }
    let name = flag.strip_prefix("--")?.to_ascii_uppercase().replace('-', "_");
    let variable = format!("CONSENTD_{name}");
    value_of(OsStr::new(&variable)).filter(|value| !value.is_empty()).map(|_| variable)
}

/// The value of a variable that says where `serve` listens, if it is text.
pub(super) fn variable(name: &str) -> Option<String> {
    value_of(OsStr::new(name))?.into_string().ok()
}

#[allow(clippy::disallowed_methods, reason = "no flag of these commands has this variable")]
fn value_of(variable: &OsStr) -> Option<OsString> {
    std::env::var_os(variable)
}
