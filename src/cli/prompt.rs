//! Asks the user to confirm what cannot be undone.

use std::io::{IsTerminal as _, stdin};

use anyhow::{Context as _, bail};

use super::output;

/// Asks on the terminal, and returns whether the answer was `yes`. `command` is named in the error
/// if standard input is no terminal.
pub(super) fn confirm(question: &str, command: &str) -> anyhow::Result<bool> {
    if !stdin().is_terminal() {
        bail!("this needs a confirmation: give --yes (see consentd {command} --help)");
    }
    output::note(&format!("{question} Type yes to go on: "));
    let mut answer = String::new();
    stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(answer.trim() == "yes")
}
