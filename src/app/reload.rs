//! Reads the bearer tokens again, and answers SIGHUP. A process that does not handle this signal would be
//! ended by it.

use std::path::PathBuf;

use tokio::signal::unix::Signal;
use tracing::{info, warn};

use crate::grpc::BearerTokens;
use crate::reload::{Reload, reload};

/// What a sidecar reads again, apart from its webhook receiver, which does so itself.
pub(super) struct Reloading {
    /// Receives each SIGHUP since before the ledger was opened.
    pub(super) hangup: Signal,
    /// The bearer tokens that may record, and their file.
    pub(super) tokens: Option<(PathBuf, BearerTokens)>,
    /// Whether webhooks are received.
    pub(super) receives: bool,
}

impl Reloading {
    /// Reads the token file again. Ends only if no signal can be received any more.
    pub(super) async fn run(self) {
        let Self { hangup, tokens, receives } = self;
        let (path, tokens) = tokens.unzip();
        let read = move || path.as_deref().map(BearerTokens::read).transpose();
        reload(hangup, read, move |Reload { asked, is_news, content }| {
            match (content, &tokens) {
                (Ok(Some(found)), Some(tokens)) => {
                    let changed = tokens.replace(&found);
                    if changed || is_news {
                        info!(changed, "the bearer tokens that may record were read again");
                    }
                }
                (Err(cause), _) if is_news => {
                    warn!(
                        cause,
                        "keeping the previous bearer tokens: the token file cannot be used; mend \
                         it, it is read again within five seconds"
                    );
                }
                _ => {}
            }
            if asked {
                if receives {
                    info!("SIGHUP: the webhook's secrets and [whatsapp] are being read again");
                }
                info!("SIGHUP: every other setting takes a restart");
            }
        })
        .await;
    }
}
