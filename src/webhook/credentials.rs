//! The secrets that authenticate webhooks and the numbers of each business, reloaded while requests
//! are received.

use std::fmt;
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tracing::{info, warn};

use super::{Signer, Webhook};
use crate::reload;
use crate::secrets::Secrets;
use crate::whatsapp::Rules;

/// The configuration that requests are verified and parsed by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReceiverConfig {
    /// The senders by any of which a request may be signed; there is one at the least.
    pub signers: Vec<Signer>,
    /// The tokens by any of which WhatsApp verifies the webhook; none if it does not.
    pub verify_tokens: Option<Secrets>,
    /// The business of each phone number, and the messages that open the window.
    pub rules: Rules,
}

/// Reads the configuration again while requests are received. An invalid one is logged and changes
/// nothing.
pub(crate) async fn reload<E>(
    webhook: Webhook,
    read: impl Fn() -> Result<ReceiverConfig, E> + Send + Sync + 'static,
    hangup: Signal,
) where
    E: fmt::Display + Send + 'static,
{
    let replace = |config: ReceiverConfig| {
        let changed = **webhook.config.load() != config;
        if changed {
            let numbers = config.rules.numbers.keys().map(String::as_str);
            webhook.metrics.webhook_receives(numbers);
            webhook.config.store(Arc::new(config));
        }
        changed
    };
    reload::reload(hangup, read, |outcome| match outcome.replace_by(replace) {
        Some(Ok(changed)) => {
            let numbers = webhook.config.load().rules.numbers.len();
            info!(numbers, changed, "reloaded the webhook's secrets and [whatsapp]");
            webhook.metrics.webhook_reloaded("done");
        }
        Some(Err(cause)) => {
            warn!(
                cause,
                "keeping the webhook's previous secrets and numbers: the changed configuration cannot be used; \
                 mend it, it is read again within five seconds"
            );
            webhook.metrics.webhook_reloaded("failed");
        }
        None => {}
    })
    .await;
}
