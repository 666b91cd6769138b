//! What was given on the command line and in the environment, and mistakes in it.

use std::ffi::{OsStr, OsString};

use clap::builder::{Resettable, StyledStr};
use clap::error::{ContextKind, ContextValue, Error};
use clap::{Arg, Command, CommandFactory as _, FromArgMatches as _};

use super::Cli;
use super::warnings::{self, UnknownVariable};

/// Parses; ends the process where that is not possible, or help was asked for.
pub(super) fn parse() -> Cli {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let parsed = without_empty_variables(Cli::command()).try_get_matches_from(&arguments);
    parsed
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .unwrap_or_else(|error| with_tips(error, &arguments).exit())
}

/// Words that people use for a command, each with the command that they mean by it.
const MEANT: [(&str, &str); 12] = [
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

/// clap finds what is spelt alike; we know what is meant alike.
fn with_tips(mut error: Error, arguments: &[OsString]) -> Error {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return naming_variables(error, arguments);
    };
    // The first word alone: `record` and its like have commands of their own.
    let is_first = arguments.get(1).is_some_and(|first| first.to_str() == Some(word));
    let meant = MEANT.into_iter().find(|(known, _)| is_first && known == word);
    if let Some((_, command)) = meant {
        let tips = ContextValue::Strings(vec![command.to_owned()]);
        error.insert(ContextKind::SuggestedSubcommand, tips);
    }
    error
}

/// A variable that is empty is as good as none: that is how an unset one reaches a container.
fn without_empty_variables(command: Command) -> Command {
    let unset = |arg: Arg| match arg.get_env().and_then(value_of) {
        Some(value) if value.is_empty() => arg.env(Resettable::Reset),
        _ => arg,
    };
    command.mut_args(unset).mut_subcommands(without_empty_variables)
}

/// clap names the flag alone; its value may have come from the variable.
fn naming_variables(mut error: Error, arguments: &[OsString]) -> Error {
    let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let Some(flag) = named.split([' ', '=']).next().filter(|flag| flag.starts_with("--")) else {
        return error;
    };
    if let Some(variable) = variable_behind(flag, arguments) {
        let mut tip = StyledStr::new();
        tip.push_str(&format!("the value is that of the environment variable {variable}"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

/// The variable from which a flag has its value, where it is not on the command line.
pub(super) fn variable_of(flag: &str) -> Option<String> {
    variable_behind(flag, &std::env::args_os().collect::<Vec<_>>())
}

/// Environment variables that look like ours and set nothing.
pub(super) fn unknown_variables() -> Vec<UnknownVariable> {
    warnings::unknown_variables(&Cli::command(), std::env::vars_os())
}

/// What to say of a password on the command line, where there is one.
pub(super) fn password() -> Option<&'static str> {
    warnings::password_in(std::env::args_os())
}

fn variable_behind(flag: &str, arguments: &[OsString]) -> Option<String> {
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

#[allow(clippy::disallowed_methods, reason = "only whether one is set, and empty")]
fn value_of(variable: &OsStr) -> Option<OsString> {
    std::env::var_os(variable)
}
