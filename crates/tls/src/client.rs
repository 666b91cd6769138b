//! The files of a client.

use std::path::PathBuf;

use rustls::{ClientConfig, RootCertStore};

use super::pem::{self, TlsFileError};

/// The files of a client. The server's name is always verified.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientFiles {
    /// The trusted CA certificates, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

impl ClientFiles {
    /// Reads the files. It may block.
    ///
    /// # Errors
    ///
    /// [`TlsFileError`] names the file.
    pub fn config(&self) -> Result<ClientConfig, TlsFileError> {
        let roots = match &self.ca {
            Some(path) => pem::authorities(path)?,
            None => system_roots()?,
        };
        let config = ClientConfig::builder_with_provider(pem::provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsFileError::Setup)?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.own else { return Ok(config.with_no_client_auth()) };
        let chain = pem::certificates(certificate)?;
        config.with_client_auth_cert(chain, pem::key(key)?).map_err(|source| TlsFileError::Pair {
            certificate: certificate.clone(),
            key: key.clone(),
            source,
        })
    }
}

fn system_roots() -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    // A single unreadable certificate among the system's hundreds does not invalidate the others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsFileError::NoRoots) } else { Ok(roots) }
}
