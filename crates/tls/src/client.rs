//! The files of a client.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::pem::{self, PemFile, TlsFileError};
use super::server::Protocol;

/// The files of a client. The server's name is always verified.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientFiles {
    /// The trusted CA certificates, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Why a connection is not made by TLS.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The files cannot be used.
    #[error(transparent)]
    Files(#[from] TlsFileError),
    /// The host cannot be a name in a certificate.
    #[error("this host is not a valid server name for TLS")]
    InvalidName,
    /// The handshake failed.
    #[error(transparent)]
    Failed(io::Error),
}

impl ClientFiles {
    /// Makes the TLS handshake over a connection. The server's certificate must be for `host`. `protocol` is what
    /// will be spoken, if client and server have to agree on that. The files are read for each connection, because
    /// they may have been rotated; that costs a millisecond, and connections are rare.
    ///
    /// # Errors
    ///
    /// [`HandshakeError`].
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        host: &str,
        protocol: Option<Protocol>,
    ) -> Result<TlsStream<S>, HandshakeError> {
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| HandshakeError::InvalidName)?;
        let files = self.clone();
        let config = tokio::task::spawn_blocking(move || files.config()).await;
        let config = config.map_err(|panicked| HandshakeError::Failed(io::Error::other(panicked)));
        let mut config = config??;
        config.alpn_protocols = protocol.map(Protocol::alpn).into_iter().collect();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.map_err(HandshakeError::Failed)
    }

    /// Reads the files. It may block.
    ///
    /// # Errors
    ///
    /// [`TlsFileError`] names the file.
    pub fn config(&self) -> Result<ClientConfig, TlsFileError> {
        let roots = match &self.ca {
            Some(path) => PemFile::read(path)?.authorities()?,
            None => system_roots()?,
        };
        let config = ClientConfig::builder_with_provider(pem::provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsFileError::Setup)?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.own else { return Ok(config.with_no_client_auth()) };
        let chain = PemFile::read(certificate)?.certificates()?;
        config.with_client_auth_cert(chain, PemFile::read(key)?.key()?).map_err(|source| {
            TlsFileError::Pair { certificate: certificate.clone(), key: key.clone(), source }
        })
    }
}

fn system_roots() -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    // A single unreadable certificate among the system's hundreds does not invalidate the others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsFileError::NoRoots) } else { Ok(roots) }
}
