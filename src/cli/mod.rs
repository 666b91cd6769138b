//! The commands.
//!
//! Exit codes: 0 allowed or done, 1 denied, 2 could not ask.

mod ask;
mod bench;
mod client;
mod demo;
mod due;
mod erase;
mod explain;
mod export;
mod exported;
mod given;
mod history;
mod import;
mod init;
mod ledger;
mod print;
mod proto;
mod prove;
mod record;
mod serve;
mod shell;
mod stranger;
mod subject;
mod verify_export;
mod warnings;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{ServeArgs, WebhookArgs};

/// What a command came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// Allowed, or done.
    Yes,
    /// Denied, or not serving.
    No,
}

/// For who sees the commands for the first time.
const FIRST_STEPS: &str = "\
First steps:
  consentd demo                                       what it is about, in one page
  consentd serve                                      run a sidecar; then, in another terminal:
  consentd check \"+1 555 012 3456\" acme marketing     may this be sent, and what would allow it";

/// Answers, from memory, whether a business may message a WhatsApp user.
///
/// Exit codes: 0 allowed or done, 1 denied, 2 could not ask.
#[derive(Debug, Parser)]
#[command(
    name = "consentd",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = FIRST_STEPS
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a sidecar
    Serve(Box<ServeArgs>),
    /// Receive WhatsApp's webhooks in a process of its own, and record what they say
    Webhook(Box<WebhookArgs>),
    /// Ask whether a message may be sent (exit code 0: yes, 1: no)
    Check(ask::CheckArgs),
    /// Show what is known of a user at a business
    Get(ask::PairArgs),
    /// Show what was recorded of a user at a business, with its evidence
    History(history::HistoryArgs),
    /// Show what was known of a user at a moment, and what a check would have been answered then
    Prove(Box<prove::ProveArgs>),
    /// Show everything about one user, over all businesses, for who asks what is held
    Subject(subject::SubjectArgs),
    /// List opt-ins that lapse, as CSV, so that users can be asked again in time
    Due(due::DueArgs),
    /// Show how current a sidecar is
    Status(ask::StatusArgs),
    /// Ask for a sidecar's health (exit code 0: serving, 1: not serving), for probes
    Healthcheck(ask::HealthArgs),
    /// Record what a user said or did
    Record(record::RecordArgs),
    /// Show what changes, as it is applied: whose messages may have to be withdrawn
    #[command(after_help = watch::WHAT_LINES_SAY)]
    Watch(watch::WatchArgs),
    /// Import events from a file: NDJSON or CSV
    #[command(after_long_help = import::help())]
    Import(import::ImportArgs),
    /// Write all that was recorded as NDJSON, to be imported elsewhere
    Export(export::ExportArgs),
    /// Erase what is known of a user; the user stays suppressed
    #[command(after_help = erase::WHAT_STAYS)]
    Erase(erase::EraseArgs),
    /// Check that today's histories extend what an export has (exit code 0: yes, 1: no)
    #[command(after_help = verify_export::HELP)]
    VerifyExport(verify_export::VerifyExportArgs),
    /// Make a ledger in Redis, or in a file
    #[command(after_help = init::WHEN_CUT)]
    Init(Box<init::InitArgs>),
    /// Look at a ledger itself, mend it, copy it: for operators
    #[command(subcommand)]
    Ledger(Box<ledger::LedgerCommand>),
    /// Write the contract: for clients, and for tools without reflection
    Proto(proto::ProtoArgs),
    /// Put load on a sidecar and measure its answers; write what load testers need
    Bench(bench::BenchArgs),
    /// Play a small shop's day on a sidecar of its own, and learn the rules from the answers
    Demo(demo::DemoArgs),
    /// Print a shell's completions of these commands
    #[command(after_help = shell::WHERE_COMPLETIONS_GO)]
    Completions(shell::CompletionsArgs),
    /// Print a manual page, or write all of them into a folder
    #[command(after_help = shell::WHERE_PAGES_GO)]
    Man(shell::ManArgs),
}

/// Runs the command that the arguments ask for.
#[must_use]
pub fn main() -> ExitCode {
    let cli = given::parse();
    if matches!(cli.command, Command::Init(_) | Command::Ledger(_))
        && let Some(said) = given::password()
    {
        print::note(&format!("consentd: warning: {said}"));
    }
    let outcome = match cli.command {
        Command::Serve(args) => serve::run(*args),
        Command::Webhook(args) => serve::receive(*args),
        Command::Check(args) => asking(ask::check(args)),
        Command::Get(args) => asking(ask::get(args)),
        Command::History(args) => asking(history::history(args)),
        Command::Prove(args) => asking(prove::prove(*args)),
        Command::Subject(args) => asking(subject::subject(args)),
        Command::Due(args) => asking(due::due(args)),
        Command::Status(args) => asking(ask::status(args)),
        Command::Healthcheck(args) => asking(ask::healthcheck(args)),
        Command::Record(args) => asking(record::record(args)),
        Command::Watch(args) => asking(watch::watch(args)),
        Command::Import(args) => asking(import::import(args)),
        Command::Export(args) => asking(export::export(args)),
        Command::Erase(args) => asking(erase::erase(args)),
        Command::VerifyExport(args) => asking(verify_export::verify_export(args)),
        Command::Init(args) => asking(init::init(*args)),
        Command::Ledger(command) => asking(ledger::run(*command)),
        Command::Proto(args) => proto::proto(&args),
        Command::Bench(args) => bench::bench(args),
        Command::Demo(args) => asking(demo::demo(args)),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    };
    match outcome {
        Ok(Verdict::Yes) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::from(1),
        Err(error) => {
            print::error(&error);
            ExitCode::from(2)
        }
    }
}

fn asking<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

/// The commands and their flags, for documentation.
#[must_use]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}
