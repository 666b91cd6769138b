//! The bearer tokens that authorize recording.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::secrets::{Secrets, SecretsError};

/// The most tokens at once. Each is compared at each call.
const MAX_TOKENS: usize = 1_024;

/// The valid tokens. Clones share them.
#[derive(Clone)]
pub struct BearerTokens(Arc<ArcSwap<Secrets>>);

impl PartialEq for BearerTokens {
    fn eq(&self, other: &Self) -> bool {
        **self.0.load() == **other.0.load()
    }
}

impl BearerTokens {
    /// Reads a token file.
    ///
    /// # Errors
    ///
    /// [`SecretsError`] names the file, never a token.
    pub fn read(path: &Path) -> Result<Self, SecretsError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(Secrets::read([path], MAX_TOKENS)?))))
    }

    /// Replaces the tokens of all clones, and returns whether they changed.
    #[must_use]
    pub fn replace(&self, by: &Self) -> bool {
        let tokens = by.0.load_full();
        let changed = **self.0.load() != *tokens;
        if changed {
            self.0.store(tokens);
        }
        changed
    }

    /// Whether a request's `authorization` header has one of the tokens.
    pub(super) fn authorize(&self, headers: &HeaderMap) -> bool {
        let token = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        token.is_some_and(|token| self.0.load().contains(token))
    }
}
