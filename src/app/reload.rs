//! Reloads files on SIGHUP. A process that does not handle this signal would be ended by it.

use std::path::PathBuf;

use tokio::signal::unix::Signal;
use tracing::{info, warn};

use crate::grpc::BearerTokens;

/// What a sidecar reloads, apart from its webhook receiver, which does so itself.
pub(super) struct Reload {
    /// Receives each SIGHUP since before the ledger was opened.
    pub(super) hangup: Signal,
    /// The bearer tokens that may record, and their file.
    pub(super) tokens: Option<(PathBuf, BearerTokens)>,
    /// Whether webhooks are received.
    pub(super) receives: bool,
}

impl Reload {
    /// Reloads on every SIGHUP. Never ends.
    pub(super) async fn run(mut self) {
        while self.hangup.recv().await.is_some() {
            self.read().await;
        }
    }

    async fn read(&self) {
        if let Some((path, tokens)) = self.tokens.clone() {
            let read = tokio::task::spawn_blocking(move || tokens.reload(&path)).await;
            let read = read.map_err(|error| error.to_string());
            match read.and_then(|read| read.map_err(|error| error.to_string())) {
                Ok(()) => info!("SIGHUP: the bearer tokens that may record were read again"),
                Err(cause) => warn!(
                    cause,
                    "SIGHUP: keeping the previous bearer tokens: the token file cannot be used; mend \
                     it and send SIGHUP again"
                ),
            }
        }
        if self.receives {
            info!("SIGHUP: the webhook's secrets and [whatsapp] are being read again");
        }
        info!("SIGHUP: every other setting takes a restart");
    }
}
