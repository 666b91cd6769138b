//! `completions` and `man`: shell completions and manual pages of the commands.

#![allow(clippy::doc_markdown, reason = "these comments are the help that a terminal shows")]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Verdict, output};

/// The end of the command's help.
pub(super) const WHERE_COMPLETIONS_GO: &str = "\
Where shells look for completions:

  bash        consentd completions bash > ~/.local/share/bash-completion/completions/consentd
  zsh         consentd completions zsh > ~/.zfunc/_consentd
              (and in ~/.zshrc, before compinit: fpath+=~/.zfunc)
  fish        consentd completions fish > ~/.config/fish/completions/consentd.fish
  elvish      consentd completions elvish >> ~/.config/elvish/rc.elv
  powershell  consentd completions powershell >> $PROFILE";

/// The end of the command's help.
pub(super) const WHERE_PAGES_GO: &str = "\
Read one with `consentd man record | man -l -`, or put all of them where `man consentd-record` finds
them: `consentd man --dir ~/.cargo/share/man/man1` where ~/.cargo/bin is in your PATH.";

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// The command, such as `record opt-in` [default: all of them, in short]
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
    /// Write a page for every command into this folder instead
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<Verdict> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "consentd", &mut script);
    print(script)
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<Verdict> {
    let mut root = super::command().disable_help_subcommand(true);
    // Makes the names of the pages, such as consentd-record-opt-in.
    root.build();
    let Some(folder) = &args.dir else {
        let mut command = &root;
        for name in &args.command {
            let inner = command.find_subcommand(name);
            command = inner.ok_or_else(|| {
                let known = command.get_subcommands().map(Command::get_name).collect::<Vec<_>>();
                match known.join(", ") {
                    known if known.is_empty() => anyhow!("{} has no commands", command.get_name()),
                    known => anyhow!("there is no command {name:?}: there are {known}"),
                }
            })?;
        }
        return print(page(command)?);
    };
    std::fs::create_dir_all(folder)
        .and_then(|()| write_pages(&root, folder))
        .with_context(|| format!("cannot write into {}", folder.display()))?;
    Ok(Verdict::Yes)
}

fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let version = concat!("consentd ", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).source(version).manual("consentd").render(&mut page)?;
    Ok(with_preformatted_notes(&String::from_utf8_lossy(&page)).into_bytes())
}

/// Keeps the line breaks of what follows the flags in a help, which `man` would otherwise fill.
fn with_preformatted_notes(page: &str) -> String {
    let Some((before, notes)) = page.split_once("\n.SH EXTRA\n") else { return page.to_owned() };
    let (notes, after) = notes.split_once("\n.SH ").map_or((notes, None), |(n, a)| (n, Some(a)));
    let mut page = format!("{before}\n.SH NOTES\n.nf\n{}\n.fi\n", notes.trim_end());
    if let Some(after) = after {
        page.push_str(".SH ");
        page.push_str(after);
    }
    page
}

fn write_pages(command: &Command, folder: &Path) -> std::io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    std::fs::write(folder.join(format!("{name}.1")), page(command)?)?;
    command.get_subcommands().try_for_each(|inner| write_pages(inner, folder))
}

fn print(text: Vec<u8>) -> anyhow::Result<Verdict> {
    output::line(String::from_utf8(text)?.trim_end())?;
    Ok(Verdict::Yes)
}
