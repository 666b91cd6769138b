//! Who we are to a server, and the files that say so.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::handshake::ConnectionError;

/// The most that a file of a password, of certificates or of a key may hold.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// What must not be shown.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Secret(Arc<str>);

impl Secret {
    pub(crate) fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// What nobody but the server is to see.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Where a password is from.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) enum Password {
    /// There is none.
    #[default]
    None,
    /// It was given.
    Given(Secret),
    /// It is in this file, whenever it is asked for.
    File(PathBuf),
}

/// Who we are to a server.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: Password,
}

impl Credentials {
    /// What AUTH is to be given, as it is now; nothing where nobody is to be logged in.
    pub(crate) async fn arguments(&self) -> Result<Option<Vec<Secret>>, ConnectionError> {
        let password = match &self.password {
            Password::None => None,
            Password::Given(secret) => Some(secret.clone()),
            Password::File(path) => Some(password_in(path).await?),
        };
        Ok(match (&self.user, password) {
            (None, None) => None,
            (None, Some(password)) => Some(vec![password]),
            // A user without a password is one who needs none; AUTH takes any then.
            (Some(user), password) => {
                Some(vec![Secret::new(user.as_str()), password.unwrap_or_else(|| Secret::new(""))])
            }
        })
    }
}

async fn password_in(path: &Path) -> Result<Secret, ConnectionError> {
    let bytes = read(path).await?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    // Editors end a file with a line's end, which no password is meant to have.
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() || text.contains('\n') {
        let why = "it must hold the password, in one line of UTF-8";
        return Err(ConnectionError::Content { path: path.to_owned(), why });
    }
    Ok(Secret::new(text))
}

/// A small file's content.
pub(crate) async fn read(path: &Path) -> Result<Vec<u8>, ConnectionError> {
    let failed = |source| ConnectionError::File { path: path.to_owned(), source: Arc::new(source) };
    let length = tokio::fs::metadata(path).await.map_err(failed)?.len();
    if length > MAX_FILE {
        return Err(ConnectionError::Content {
            path: path.to_owned(),
            why: "it has more than 4 MiB",
        });
    }
    tokio::fs::read(path).await.map_err(failed)
}
