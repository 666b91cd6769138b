//! Reloads files on SIGHUP, and the bearer tokens whenever their file changes. A process that does not
//! handle this signal would be ended by it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::grpc::BearerTokens;

/// How often the token file is read: a token that was taken out of it is valid for no longer.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

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
    /// Reloads on every SIGHUP, and reads the token file every [`RELOAD_INTERVAL`]. Ends only if no
    /// signal can be received any more.
    pub(super) async fn run(mut self) {
        let mut ticks = interval(RELOAD_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The last error, so that the same error is logged once.
        let mut last_error = None;
        loop {
            let asked = tokio::select! {
                _ = ticks.tick() => false,
                signal = self.hangup.recv() => {
                    if signal.is_none() { return }
                    true
                }
            };
            self.read_tokens(asked, &mut last_error).await;
            if asked {
                if self.receives {
                    info!("SIGHUP: the webhook's secrets and [whatsapp] are being read again");
                }
                info!("SIGHUP: every other setting takes a restart");
            }
        }
    }

    async fn read_tokens(&self, asked: bool, last_error: &mut Option<String>) {
        let Some((path, tokens)) = self.tokens.clone() else { return };
        let read = tokio::task::spawn_blocking(move || tokens.reload(&path)).await;
        let read = read.map_err(|error| error.to_string());
        match read.and_then(|read| read.map_err(|error| error.to_string())) {
            Ok(changed) => {
                if changed || asked || last_error.is_some() {
                    info!(changed, "the bearer tokens that may record were read again");
                }
                *last_error = None;
            }
            Err(cause) => {
                if asked || last_error.as_ref() != Some(&cause) {
                    warn!(
                        cause,
                        "keeping the previous bearer tokens: the token file cannot be used; mend it, it \
                         is read again within five seconds"
                    );
                }
                *last_error = Some(cause);
            }
        }
    }
}
