//! The bearer tokens that authorize recording.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use consentd_os::files;
use consentd_os::io_hint;

/// The fewest characters of a token: a shorter one could be guessed.
const MIN_TOKEN_CHARS: usize = 16;

/// The valid tokens. Their digests are kept, so that a comparison takes the same time for any token.
/// Clones share them.
#[derive(Clone)]
pub struct BearerTokens(Arc<ArcSwap<Vec<[u8; 32]>>>);

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BearerTokensError {
    /// The file cannot be read.
    #[error("cannot read the token file {path}: {source}{}", io_hint::hint(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file has no tokens.
    #[error("the token file {path} has no tokens: write one a line, 16 characters at the least")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A token is too short.
    #[error("line {line} of the token file {path} is shorter than 16 characters")]
    Short {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

/// The tokens of a token file's text with their lines, from 1. A token is a line; empty lines and
/// those that start with `#` are skipped. Servers and clients read token files alike.
pub(crate) fn parse_token_file(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().map(str::trim).enumerate();
    let tokens = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    tokens.map(|(index, token)| (index + 1, token))
}

impl BearerTokens {
    /// Reads a token file.
    ///
    /// # Errors
    ///
    /// [`BearerTokensError`] names the file, never a token.
    pub fn read(path: &Path) -> Result<Self, BearerTokensError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(read_digests(path)?))))
    }

    /// Reloads the tokens of all clones, and returns whether they changed. An invalid file changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`BearerTokensError`] names the file, never a token.
    pub fn reload(&self, path: &Path) -> Result<bool, BearerTokensError> {
        let digests = read_digests(path)?;
        let changed = **self.0.load() != digests;
        if changed {
            self.0.store(Arc::new(digests));
        }
        Ok(changed)
    }

    /// Whether a request's `authorization` header has one of the tokens.
    pub(super) fn authorize(&self, headers: &HeaderMap) -> bool {
        let token = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        let Some(token) = token else { return false };
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let tokens = self.0.load();
        // All are compared, so that the time taken does not reveal which one matched.
        let matches = tokens.iter().map(|token| digest.ct_eq(token));
        matches.fold(Choice::from(0), |any, this| any | this).into()
    }
}

fn read_digests(path: &Path) -> Result<Vec<[u8; 32]>, BearerTokensError> {
    let path_buf = || path.to_owned();
    let text = files::read_trusted(path)
        .map_err(|source| BearerTokensError::Io { path: path_buf(), source })?;
    let mut digests = Vec::new();
    for (line, token) in parse_token_file(&text) {
        if token.len() < MIN_TOKEN_CHARS {
            return Err(BearerTokensError::Short { path: path_buf(), line });
        }
        digests.push(Sha256::digest(token.as_bytes()).into());
    }
    if digests.is_empty() {
        return Err(BearerTokensError::Empty { path: path_buf() });
    }
    Ok(digests)
}
