//! The ledger that a command works on: its address, and whether its server is suitable.

use anyhow::anyhow;
use consentd_ledger::{Fsync, Persistence, ServerInfo, Target, Warning, inspect_server};

use super::{args, output};
use crate::config::{ConfigError, LedgerAddress};

/// The buckets of a new ledger in Redis: enough for ten million pairs.
pub(super) const DEFAULT_BUCKETS: u32 = 8_192;

/// Names the environment variable that an invalid setting is from, if it is from one.
pub(super) fn name_variable(error: ConfigError) -> anyhow::Error {
    let variable = match &error {
        ConfigError::Value { setting, .. } => args::variable_of(setting),
        _ => None,
    };
    match variable {
        Some(variable) => anyhow!("{error}\n  the value is that of {variable}"),
        None => error.into(),
    }
}

/// Inspects a Redis server. Returns its properties and what an operator should know of it.
///
/// # Errors
///
/// If the server cannot hold a ledger.
pub(super) async fn check_server(
    target: &Target,
    address: &LedgerAddress,
) -> anyhow::Result<(ServerInfo, Vec<Warning>)> {
    let server = inspect_server(target.clone()).await?;
    let warnings = server.verdict(target.topology(), target.accepts_unfenced());
    let warnings = warnings.map_err(|unfit| anyhow!("{address} cannot hold a ledger: {unfit}"))?;
    Ok((server, warnings))
}

/// Prints warnings about a server. They are no errors, so they go to standard output.
pub(super) fn print_warnings(warnings: &[Warning]) {
    for warning in warnings {
        let _ = output::line(&format!("warning: {warning}"));
    }
}

/// What survives the end of a Redis server's process.
pub(super) fn durability_text(server: &ServerInfo) -> &'static str {
    match server.durability {
        Persistence::Memory => "in memory alone: a restart loses it",
        Persistence::Snapshots => "snapshots alone: a crash loses what came after the last",
        Persistence::AppendOnly(Fsync::Always) => "append-only file, synced before every answer",
        Persistence::AppendOnly(Fsync::EverySecond) => "append-only file, synced every second",
        Persistence::AppendOnly(Fsync::Never) => "append-only file, synced when the system likes",
        Persistence::AppendOnly(Fsync::Unstated) => "append-only file",
        Persistence::Unstated => "not known: CONFIG GET is refused",
    }
}
