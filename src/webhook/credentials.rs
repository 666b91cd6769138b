//! The secrets that authenticate webhooks and the numbers of each business, reloaded while requests
//! are received.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::Webhook;
use crate::secrets::Secrets;
use crate::whatsapp::Rules;

/// How often the files are read to see whether they changed.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// The configuration that requests are verified and parsed by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReceiverConfig {
    /// The app's secrets, by any of which a request may be signed.
    pub app_secrets: Secrets,
    /// The tokens by any of which WhatsApp verifies the webhook.
    pub verify_tokens: Secrets,
    /// The business of each phone number, and the messages that open the window.
    pub rules: Rules,
}

/// Reloads the configuration on SIGHUP and whenever its files change. An invalid configuration is
/// logged and changes nothing.
pub(crate) async fn reload<E>(
    webhook: Webhook,
    read: impl Fn() -> Result<ReceiverConfig, E> + Send + Sync + 'static,
    mut hangup: Signal,
) where
    E: fmt::Display + Send + 'static,
{
    let read = Arc::new(read);
    let mut ticks = interval(RELOAD_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The last error, so that the same error is logged once.
    let mut last_error: Option<String> = None;
    loop {
        let asked = tokio::select! {
            _ = ticks.tick() => false,
            signal = hangup.recv() => {
                if signal.is_none() { return }
                true
            }
        };
        let read = Arc::clone(&read);
        let found = match tokio::task::spawn_blocking(move || read()).await {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(panicked) => Err(panicked.to_string()),
        };
        match found {
            Ok(config) => {
                let is_new = **webhook.config.load() != config;
                if is_new || asked || last_error.is_some() {
                    let numbers = config.rules.numbers.len();
                    info!(
                        numbers,
                        changed = is_new,
                        "reloaded the webhook's secrets and [whatsapp]"
                    );
                    webhook.metrics.webhook_reloaded("done");
                }
                if is_new {
                    webhook.config.store(Arc::new(config));
                }
                last_error = None;
            }
            Err(error) => {
                if asked || last_error.as_ref() != Some(&error) {
                    warn!(
                        cause = error,
                        "keeping the webhook's previous secrets and numbers: the changed \
                         configuration cannot be used; mend it, it is read again within five seconds"
                    );
                    webhook.metrics.webhook_reloaded("failed");
                }
                last_error = Some(error);
            }
        }
    }
}
