//! The user and the password for a server, and the files that hold them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::ConnectionError;

/// The maximum size of a file with a password, certificates or a key, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// A text that is never shown in logs or errors.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Secret(Arc<str>);

impl Secret {
    pub(crate) fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text, to be sent to the server only.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// The source of a password.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) enum Password {
    /// There is no password.
    #[default]
    None,
    /// The password itself.
    Given(Secret),
    /// The file that holds the password. It is read for each connection, so that it can be rotated.
    File(PathBuf),
}

/// The user and the password for a server.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: Password,
}

impl Credentials {
    /// The current arguments of AUTH; `None` if there is neither a user nor a password.
    pub(crate) async fn arguments(&self) -> Result<Option<Vec<Secret>>, ConnectionError> {
        let password = match &self.password {
            Password::None => None,
            Password::Given(secret) => Some(secret.clone()),
            Password::File(path) => Some(password_in(path).await?),
        };
        Ok(match (&self.user, password) {
            (None, None) => None,
            (None, Some(password)) => Some(vec![password]),
            // A user without a password must be a `nopass` user, for whom AUTH accepts any password.
            (Some(user), password) => {
                Some(vec![Secret::new(user.as_str()), password.unwrap_or_else(|| Secret::new(""))])
            }
        })
    }
}

async fn password_in(path: &Path) -> Result<Secret, ConnectionError> {
    let bytes = read(path).await?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    // Editors end a file with a line break, which is not a part of the password.
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() || text.contains('\n') {
        let why = "it must hold the password, in one line of UTF-8";
        return Err(ConnectionError::Content { path: path.to_owned(), why });
    }
    Ok(Secret::new(text))
}

/// Reads a file of at most [`MAX_FILE`] bytes.
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
