//! The secrets that authenticate webhooks and the numbers of each business, reloaded while requests
//! are received.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use tokio::signal::unix::Signal;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::Webhook;
use crate::whatsapp::Rules;
use consentd_os::files;
use consentd_os::io_hint;

/// How often the files are read to see whether they changed.
const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// The fewest characters of a secret: a shorter one could be guessed.
const MIN_SECRET_CHARS: usize = 16;

/// The most secrets at once: the current one, and those that it replaces.
const MAX_SECRETS: usize = 16;

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

/// A secret. Its `Debug` output does not contain it.
#[derive(Clone, Eq, PartialEq)]
pub(super) struct Secret(Box<str>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A set of valid secrets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Secrets(Vec<Secret>);

/// Why the secrets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// A file cannot be read.
    #[error("cannot read the secret in {path}: {source}{}", io_hint::hint(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file has no secret.
    #[error("there is no secret in {path}: write one a line")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A secret is too short.
    #[error("line {line} of {path} is shorter than {MIN_SECRET_CHARS} characters")]
    Short {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// There are too many.
    #[error("more than {MAX_SECRETS} secrets: leave out those that were replaced")]
    TooMany,
}

impl Secrets {
    /// Reads files of secrets, one a line; empty lines are left out.
    ///
    /// # Errors
    ///
    /// [`SecretError`] names the file, never a secret.
    pub fn read<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Self, SecretError> {
        let mut secrets = Vec::new();
        for path in paths {
            let before = secrets.len();
            let text = files::read_trusted(path)
                .map_err(|source| SecretError::Io { path: path.to_owned(), source })?;
            for (index, line) in text.lines().enumerate() {
                let line = line.trim();
                if line.is_empty() {
                    continue;
                }
                if line.len() < MIN_SECRET_CHARS {
                    return Err(SecretError::Short { path: path.to_owned(), line: index + 1 });
                }
                secrets.push(Secret(line.into()));
            }
            if secrets.len() == before {
                return Err(SecretError::Empty { path: path.to_owned() });
            }
        }
        if secrets.len() > MAX_SECRETS { Err(SecretError::TooMany) } else { Ok(Self(secrets)) }
    }

    /// Whether `signature` is the HMAC-SHA256 of `bytes` under one of the secrets. All are tried, so
    /// that the time taken does not reveal which one matched.
    #[must_use]
    pub fn signed(&self, bytes: &[u8], signature: &[u8; 32]) -> bool {
        let one = |secret: &Secret| {
            // HMAC takes keys of any length.
            let Ok(mac) = Hmac::<Sha256>::new_from_slice(secret.0.as_bytes()) else {
                return Choice::from(0);
            };
            let made: [u8; 32] = mac.chain_update(bytes).finalize().into_bytes().into();
            made.ct_eq(signature)
        };
        self.0.iter().map(one).fold(Choice::from(0), |found, this| found | this).into()
    }

    /// Whether `candidate` is one of the secrets.
    #[must_use]
    pub fn contains(&self, candidate: &str) -> bool {
        // Digests are compared, because their length does not depend on the secret's.
        let digest = |text: &str| -> [u8; 32] { Sha256::digest(text.as_bytes()).into() };
        let candidate = digest(candidate);
        let one = |secret: &Secret| digest(&secret.0).ct_eq(&candidate);
        self.0.iter().map(one).fold(Choice::from(0), |found, this| found | this).into()
    }
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
