//! What is read again on SIGHUP, by which operators tell a process that its files were changed. It
//! would end a process that does not listen for it.

use std::path::PathBuf;

use tokio::signal::unix::Signal;
use tracing::{info, warn};

use crate::grpc::Tokens;

/// What a sidecar reads again beside its receiver of webhooks, which does so by itself.
pub(super) struct Reload {
    /// Tells of each SIGHUP, from before the ledger was opened.
    pub(super) hangup: Signal,
    /// The tokens that may record, and their file.
    pub(super) tokens: Option<(PathBuf, Tokens)>,
    /// Whether webhooks are received.
    pub(super) receives: bool,
}

impl Reload {
    /// Reads again whenever it is asked to, and never ends.
    pub(super) async fn run(mut self) {
        while self.hangup.recv().await.is_some() {
            self.read().await;
        }
    }

    async fn read(&self) {
        if let Some((path, tokens)) = self.tokens.clone() {
            let read = tokio::task::spawn_blocking(move || tokens.read_again(&path)).await;
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
