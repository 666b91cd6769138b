//! Reads the bearer tokens and the certificate again, and answers SIGHUP. A process that does not handle
//! this signal would be ended by it.

use std::path::PathBuf;

use consentd_tls::ServerFiles;
use tokio::signal::unix::Signal;
use tracing::{info, warn};

use crate::grpc::BearerTokens;
use crate::net::tls::ServerTls;
use crate::reload::{Reload, reload};

/// What a sidecar reads again, apart from its webhook receiver, which does so itself.
pub(super) struct Reloading {
    /// Receives each SIGHUP since before the ledger was opened.
    pub(super) hangup: Signal,
    /// The bearer tokens that may record, and their file.
    pub(super) tokens: Option<(PathBuf, BearerTokens)>,
    /// Certificate and key of the listeners, and their files.
    pub(super) tls: Option<(ServerFiles, ServerTls)>,
    /// Whether webhooks are received.
    pub(super) receives: bool,
}

impl Reloading {
    /// Reads the files again. `tls_hangup` receives each SIGHUP, too. Ends only if no signal can be
    /// received any more.
    pub(super) async fn run(self, tls_hangup: Signal) {
        let Self { hangup, tokens, tls, receives } = self;
        let tls = async {
            match tls {
                Some((files, tls)) => reload_tls(files, tls, tls_hangup).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = reload_tokens(hangup, tokens, receives) => {}
            () = tls => {}
        }
    }
}

async fn reload_tokens(hangup: Signal, tokens: Option<(PathBuf, BearerTokens)>, receives: bool) {
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

/// Reads certificate and key again. Those that cannot be used are logged and change nothing.
async fn reload_tls(files: ServerFiles, tls: ServerTls, hangup: Signal) {
    reload(hangup, move || files.read(), |Reload { is_news, content, .. }| match content {
        Ok(identity) => {
            let changed = tls.replace(identity);
            if changed || is_news {
                info!(changed, "certificate, key and client CAs of the listeners were read again");
            }
        }
        Err(cause) if is_news => {
            tls.reload_failed();
            warn!(
                cause,
                "keeping the previous certificate and key of the listeners: the changed files cannot \
                 be used; mend them, they are read again within five seconds"
            );
        }
        Err(_) => {}
    })
    .await;
}
