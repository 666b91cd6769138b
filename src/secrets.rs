//! Files of secrets: the bearer tokens that may record, and the secrets and tokens of webhooks.

use std::fmt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use consentd_os::files;
use consentd_os::io_hint;

/// The fewest characters of a secret: a shorter one could be guessed.
const MIN_SECRET_CHARS: usize = 16;

/// The secrets of a file's text with their lines, from 1. A secret is a line without the spaces around
/// it; empty lines and those that start with `#` are skipped. Servers and clients read files of
/// secrets alike.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().map(str::trim).enumerate();
    let secrets = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    secrets.map(|(index, secret)| (index + 1, secret))
}

/// A secret, and its SHA-256. Its `Debug` output has neither.
#[derive(Clone, Eq, PartialEq)]
struct Secret {
    text: Box<str>,
    digest: [u8; 32],
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A set of valid secrets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Secrets(Vec<Secret>);

/// Why the secrets cannot be used. No variant has a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// A file cannot be read.
    #[error("cannot read the secret in {path}: {source}{}", io_hint::hint(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file has no secret.
    #[error(
        "there is no secret in {path}: write one a line, of {MIN_SECRET_CHARS} characters or more; \
         lines that start with # are comments"
    )]
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
    #[error("more than {most} secrets: leave out those that were replaced")]
    TooMany {
        /// The most that are taken.
        most: usize,
    },
}

impl Secrets {
    /// Reads files of secrets, `most` in all.
    ///
    /// # Errors
    ///
    /// [`SecretsError`] names the file, never a secret.
    pub fn read<'a>(
        paths: impl IntoIterator<Item = &'a Path>,
        most: usize,
    ) -> Result<Self, SecretsError> {
        let mut secrets = Vec::new();
        for path in paths {
            let before = secrets.len();
            let text = files::read_trusted(path)
                .map_err(|source| SecretsError::Io { path: path.to_owned(), source })?;
            for (line, secret) in lines(&text) {
                if secret.len() < MIN_SECRET_CHARS {
                    return Err(SecretsError::Short { path: path.to_owned(), line });
                }
                secrets.push(Secret { text: secret.into(), digest: digest(secret) });
            }
            if secrets.len() == before {
                return Err(SecretsError::Empty { path: path.to_owned() });
            }
        }
        if secrets.len() > most { Err(SecretsError::TooMany { most }) } else { Ok(Self(secrets)) }
    }

    /// Whether `signature` is the HMAC-SHA256 of `bytes` under one of the secrets.
    #[must_use]
    pub fn signed(&self, bytes: &[u8], signature: &[u8; 32]) -> bool {
        self.any(|secret| {
            // HMAC takes keys of any length.
            let Ok(mac) = Hmac::<Sha256>::new_from_slice(secret.text.as_bytes()) else {
                return Choice::from(0);
            };
            let made: [u8; 32] = mac.chain_update(bytes).finalize().into_bytes().into();
            made.ct_eq(signature)
        })
    }

    /// Whether `candidate` is one of the secrets.
    #[must_use]
    pub fn contains(&self, candidate: &str) -> bool {
        // Digests are compared, because their length does not depend on the secret's.
        let candidate = digest(candidate);
        self.any(|secret| secret.digest.ct_eq(&candidate))
    }

    /// Whether one of the secrets matches. All are tried, so that the time taken does not reveal which
    /// one matched.
    fn any(&self, matches: impl Fn(&Secret) -> Choice) -> bool {
        self.0.iter().map(matches).fold(Choice::from(0), |any, this| any | this).into()
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}
