//! Reads the bearer tokens, the certificate and the businesses again, and answers SIGHUP. A process that does
//! not handle this signal would be ended by it.

use std::path::PathBuf;

use consentd_tls::ServerFiles;
use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::BusinessSource;
use crate::grpc::BearerTokens;
use crate::net::tls::ServerTls;
use crate::reload::reload;
use consentd_core::businesses::Businesses;

/// What a sidecar reads again, apart from its webhook receiver, which does so itself.
pub(super) struct Reloading {
    /// Receives each SIGHUP since before the ledger was opened.
    pub(super) hangup: Signal,
    /// The bearer tokens that may record, and their file.
    pub(super) tokens: Option<(PathBuf, BearerTokens)>,
    /// Certificate and key of the listeners, and their files.
    pub(super) tls: Option<(ServerFiles, ServerTls)>,
    /// Where the held businesses are named, and whoever holds them; if not all are held.
    pub(super) businesses: Option<(BusinessSource, watch::Sender<Businesses>)>,
    /// Whether webhooks are received.
    pub(super) receives: bool,
}

impl Reloading {
    /// Reads the files again. The other two receive each SIGHUP, too. Ends only if no signal can be
    /// received any more.
    pub(super) async fn run(self, tls_hangup: Signal, business_hangup: Signal) {
        let Self { hangup, tokens, tls, businesses, receives } = self;
        let businesses = async {
            match businesses {
                Some((source, held)) => reload_businesses(source, held, business_hangup).await,
                None => std::future::pending().await,
            }
        };
        let tls = async {
            match tls {
                Some((files, tls)) => reload_tls(files, tls, tls_hangup).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = reload_tokens(hangup, tokens, receives) => {}
            () = tls => {}
            () = businesses => {}
        }
    }
}

async fn reload_tokens(hangup: Signal, tokens: Option<(PathBuf, BearerTokens)>, receives: bool) {
    let (path, tokens) = tokens.unzip();
    let read = move || path.as_deref().map(BearerTokens::read).transpose();
    reload(hangup, read, move |outcome| {
        let (asked, has_tokens) = (outcome.asked, tokens.is_some());
        let replace = |found: Option<_>| {
            found.zip(tokens.as_ref()).is_some_and(|(found, tokens)| tokens.replace(&found))
        };
        match outcome.replace_by(replace) {
            Some(Ok(changed)) if has_tokens => {
                info!(changed, "the bearer tokens that may record were read again");
            }
            Some(Err(cause)) => warn!(
                cause,
                "keeping the previous bearer tokens: the token file cannot be used; mend it, it is read again \
                 within five seconds"
            ),
            Some(Ok(_)) | None => {}
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

/// Reads again which businesses are held. A file that cannot be used changes nothing.
async fn reload_businesses(
    source: BusinessSource,
    held: watch::Sender<Businesses>,
    hangup: Signal,
) {
    let replace = |wanted| {
        held.send_if_modified(|held| {
            let is_new = *held != wanted;
            *held = wanted;
            is_new
        })
    };
    reload(hangup, move || source.read(), |outcome| match outcome.replace_by(replace) {
        Some(Ok(changed)) => info!(changed, "which businesses are held was read again"),
        Some(Err(cause)) => warn!(
            cause,
            "holding the same businesses as before: the file that names them cannot be used; mend it, it is \
             read again within five seconds"
        ),
        None => {}
    })
    .await;
}

/// Reads certificate and key again. Those that cannot be used are logged and change nothing.
async fn reload_tls(files: ServerFiles, tls: ServerTls, hangup: Signal) {
    let replace = |identity| tls.replace(identity);
    reload(hangup, move || files.read(), |outcome| match outcome.replace_by(replace) {
        Some(Ok(changed)) => {
            info!(changed, "certificate, key and client CAs of the listeners were read again");
        }
        Some(Err(cause)) => {
            tls.reload_failed();
            warn!(
                cause,
                "keeping the previous certificate and key of the listeners: the changed files cannot \
                 be used; mend them, they are read again within five seconds"
            );
        }
        None => {}
    })
    .await;
}
