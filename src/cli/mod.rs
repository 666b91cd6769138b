//! The command line: one module for each command.
//!
//! Shared by the commands: [`args`] and [`warnings`] (parsing), [`client`] and [`port_probe`]
//! (connecting to a sidecar), [`ledger_target`] (a ledger's address and server), [`output`],
//! [`progress_bar`], [`prompt`], [`time`].
//!
//! Exit codes: 0 allowed or done, 1 denied, 2 error.

mod args;
mod as_of;
mod bench;
mod check;
mod client;
mod completions;
mod demo;
mod erase;
mod expiring;
mod export;
mod export_line;
mod export_stops;
mod get;
mod healthcheck;
mod history;
mod import;
mod init;
mod ledger;
mod ledger_target;
mod output;
mod port_probe;
mod progress_bar;
mod prompt;
mod proto;
mod record;
mod serve;
mod status;
mod subject_access;
mod template;
mod time;
mod verify_export;
mod warnings;
mod watch;
mod webhook;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::config::ServeArgs;

/// What a command's exit code tells a script.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    /// Allowed, or done.
    Yes,
    /// Denied, or not serving.
    No,
}

/// The help's last lines, for new users.
const FIRST_STEPS: &str = "\
First steps:
  consentd demo                                       what it is about, in one page
  consentd serve                                      run a sidecar; then, in another terminal:
  consentd check \"+1 555 012 3456\" acme marketing     may this be sent, and what would allow it";

/// Answers, from memory, whether a business may message a WhatsApp user.
///
/// Exit codes: 0 allowed or done, 1 denied, 2 error.
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
    Webhook(Box<webhook::WebhookCommand>),
    /// Ask whether a message may be sent (exit code 0: yes, 1: no)
    Check(check::CheckArgs),
    /// Show what is known of a user at a business
    Get(get::GetArgs),
    /// Show what was recorded of a user at a business, with its evidence
    History(history::HistoryArgs),
    /// Show what was known of a user at a moment, and what a check would have been answered then
    Prove(Box<as_of::ProveArgs>),
    /// Show everything about one user, over all businesses, for a data-subject access request
    Subject(subject_access::SubjectArgs),
    /// List opt-ins that expire, as CSV, so that users can be asked again in time
    Due(expiring::DueArgs),
    /// Show how current a sidecar is (exit code 1: its table is not loaded yet)
    Status(status::StatusArgs),
    /// Ask for a sidecar's health (exit code 0: serving, 1: not serving), for probes
    Healthcheck(healthcheck::HealthArgs),
    /// Record what a user said or did
    Record(record::RecordArgs),
    /// Follow the change feed: whose queued messages may have to be withdrawn
    #[command(after_help = watch::WHAT_LINES_SAY)]
    Watch(watch::WatchArgs),
    /// Import events from a file: NDJSON or CSV
    #[command(after_long_help = import::help())]
    Import(import::ImportArgs),
    /// Export all recorded events as NDJSON, to be imported elsewhere
    Export(export::ExportArgs),
    /// Record, list and import the categories of message templates
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Erase what is known of a user; the user stays suppressed
    #[command(after_help = erase::WHAT_STAYS)]
    Erase(erase::EraseArgs),
    /// Check that today's histories extend what an export has (exit code 0: yes, 1: no)
    #[command(after_help = verify_export::HELP)]
    VerifyExport(verify_export::VerifyExportArgs),
    /// Create a ledger in Redis or in a file
    #[command(after_help = init::WHEN_CUT)]
    Init(Box<init::InitArgs>),
    /// Inspect, verify, repair and copy a ledger, without a sidecar: for operators
    #[command(subcommand)]
    Ledger(Box<ledger::LedgerCommand>),
    /// Write the gRPC contract, for clients and for tools without reflection
    Proto(proto::ProtoArgs),
    /// Put load on a sidecar and measure its answers; write what load testers need
    Bench(bench::BenchArgs),
    /// Play a small shop's day on a sidecar of its own, and learn the rules from the answers
    Demo(demo::DemoArgs),
    /// Print a shell's completions of these commands
    #[command(after_help = completions::WHERE_COMPLETIONS_GO)]
    Completions(completions::CompletionsArgs),
    /// Print a manual page, or write all of them into a folder
    #[command(after_help = completions::WHERE_PAGES_GO)]
    Man(completions::ManArgs),
}

/// Runs the command on the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = args::parse();
    if matches!(cli.command, Command::Init(_) | Command::Ledger(_))
        && let Some(warning) = args::password_warning()
    {
        output::note(&format!("consentd: warning: {warning}"));
    }
    let outcome = match cli.command {
        Command::Serve(args) => serve::run(*args),
        Command::Webhook(args) => webhook::run(*args),
        Command::Check(args) => block_on(check::check(args)),
        Command::Get(args) => block_on(get::get(args)),
        Command::History(args) => block_on(history::history(args)),
        Command::Prove(args) => block_on(as_of::prove(*args)),
        Command::Subject(args) => block_on(subject_access::subject(args)),
        Command::Due(args) => block_on(expiring::due(args)),
        Command::Status(args) => block_on(status::status(args)),
        Command::Healthcheck(args) => block_on(healthcheck::healthcheck(args)),
        Command::Record(args) => block_on(record::record(args)),
        Command::Watch(args) => block_on(watch::watch(args)),
        Command::Import(args) => block_on(import::import(args)),
        Command::Export(args) => block_on(export::export(args)),
        Command::Template(command) => block_on(template::run(command)),
        Command::Erase(args) => block_on(erase::erase(args)),
        Command::VerifyExport(args) => block_on(verify_export::verify_export(args)),
        Command::Init(args) => block_on(init::init(*args)),
        Command::Ledger(command) => block_on(ledger::run(*command)),
        Command::Proto(args) => proto::proto(&args),
        Command::Bench(args) => bench::bench(args),
        Command::Demo(args) => block_on(demo::demo(args)),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
    };
    match outcome {
        Ok(Verdict::Yes) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::from(1),
        Err(error) => {
            output::error(&error);
            ExitCode::from(2)
        }
    }
}

/// How long a command that has ended waits for a blocking call. The resolution of a host name cannot be cancelled,
/// and may take far longer than --timeout.
const BLOCKING_GRACE: Duration = Duration::from_millis(100);

/// Runs a command that waits for the network, on one thread.
fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_timeout(BLOCKING_GRACE);
    outcome
}

/// Completes when the user presses Ctrl-C, and never if that cannot be observed: then the signal ends
/// the process.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The commands and their flags, from which documentation is generated.
#[must_use]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}
