//! By what a request is judged: secrets, and whose numbers are whose. All of it is read anew while
//! requests are received.

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
use consentd_os::access;
use consentd_os::files;

/// How often is looked whether anything was changed.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A secret that is shorter could be guessed.
const MIN_SECRET_CHARS: usize = 16;

/// The most secrets at once: the one of today, and those that it replaces.
const MAX_SECRETS: usize = 16;

/// By what requests are judged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Setup {
    /// The app's secrets, by any of which a request may be signed.
    pub app_secrets: Secrets,
    /// What the platform must say in its handshake.
    pub verify_tokens: Secrets,
    /// Whose numbers are whose, and what opens the window.
    pub rules: Rules,
}

/// A secret. Shows itself to nobody.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(Box<str>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Secrets, each of which is good.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Secrets(Vec<Secret>);

/// Why files of secrets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// One cannot be read.
    #[error("cannot read the secret in {path}: {source}{}", access::hint(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// One has none.
    #[error("there is no secret in {path}: write one a line")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// One of them can be guessed.
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

    /// Whether these bytes were signed by one of them: `signature` is their HMAC-SHA256. All are
    /// tried, so that the time it takes does not tell which one it was.
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

    /// Whether `told` is one of them.
    #[must_use]
    pub fn include(&self, told: &str) -> bool {
        // Digests have one length, whatever that of the secret.
        let digest = |text: &str| -> [u8; 32] { Sha256::digest(text.as_bytes()).into() };
        let told = digest(told);
        let one = |secret: &Secret| digest(&secret.0).ct_eq(&told);
        self.0.iter().map(one).fold(Choice::from(0), |found, this| found | this).into()
    }
}

/// Reads the setup anew on a hangup, and when what it is read from was changed; one that cannot be
/// used changes nothing, and is told of.
pub async fn reload<E>(
    webhook: Webhook,
    read: impl Fn() -> Result<Setup, E> + Send + Sync + 'static,
    mut hangup: Signal,
) where
    E: fmt::Display + Send + 'static,
{
    let read = Arc::new(read);
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What was wrong the last time: the same is told once, however often it is looked at.
    let mut wrong: Option<String> = None;
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
            Ok(setup) => {
                let is_new = **webhook.setup.load() != setup;
                if is_new || asked || wrong.is_some() {
                    let numbers = setup.rules.numbers.len();
                    info!(
                        numbers,
                        changed = is_new,
                        "reloaded the webhook's secrets and [whatsapp]"
                    );
                    webhook.metrics.webhook_reloaded("done");
                }
                if is_new {
                    webhook.setup.store(Arc::new(setup));
                }
                wrong = None;
            }
            Err(said) => {
                if asked || wrong.as_ref() != Some(&said) {
                    warn!(
                        cause = said,
                        "keeping the webhook's previous secrets and numbers: the changed \
                         configuration cannot be used; mend it, it is read again within five seconds"
                    );
                    webhook.metrics.webhook_reloaded("failed");
                }
                wrong = Some(said);
            }
        }
    }
}
