//! TLS to Redis and to its Sentinels. The server's name is always verified.
//!
//! The configuration is built for each connection, because its files may have been rotated; that costs a
//! millisecond, and connections are rare. The crypto provider is passed explicitly, so that none has to be
//! installed for the whole process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::credentials;
use super::handshake::ConnectionError;
use super::url::Address;

/// The files with certificates and keys for TLS.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct TlsFiles {
    /// The trusted CA certificates, in place of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// The client's certificate, and its key.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    /// Builds the configuration from the files' current content.
    async fn config(&self) -> Result<ClientConfig, ConnectionError> {
        let roots = match &self.ca {
            Some(path) => given_roots(path).await?,
            None => system_roots().await?,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| ConnectionError::TlsSetup { source })?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.own else { return Ok(config.with_no_client_auth()) };
        let chain = certificates(certificate).await?;
        let key = read_key(key).await?;
        config
            .with_client_auth_cert(chain, key)
            .map_err(|source| ConnectionError::TlsSetup { source })
    }

    /// Makes the TLS handshake over a connection to this address. The server's certificate must be for
    /// `host`.
    pub(crate) async fn over(
        &self,
        stream: TcpStream,
        host: &str,
        address: &Address,
    ) -> Result<TlsStream<TcpStream>, ConnectionError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| ConnectionError::InvalidServerName { address: address.clone() })?;
        let connector = TlsConnector::from(Arc::new(self.config().await?));
        connector.connect(name, stream).await.map_err(|source| ConnectionError::Tls {
            address: address.clone(),
            source: Arc::new(source),
        })
    }
}

async fn given_roots(path: &Path) -> Result<RootCertStore, ConnectionError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path).await? {
        roots.add(certificate).map_err(|source| ConnectionError::TlsSetup { source })?;
    }
    Ok(roots)
}

async fn system_roots() -> Result<RootCertStore, ConnectionError> {
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let mut roots = RootCertStore::empty();
    // A single unreadable certificate among the system's hundreds does not invalidate the others.
    roots.add_parsable_certificates(found.map(|found| found.certs).unwrap_or_default());
    if roots.is_empty() { Err(ConnectionError::NoRoots) } else { Ok(roots) }
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectionError> {
    let why = "it must hold certificates in PEM form (-----BEGIN CERTIFICATE-----)";
    let wrong = || ConnectionError::Content { path: path.to_owned(), why };
    let pem = credentials::read(path).await?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    read.ok().filter(|read| !read.is_empty()).ok_or_else(wrong)
}

async fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, ConnectionError> {
    let why = "it must hold a private key in PEM form, unencrypted (-----BEGIN PRIVATE KEY-----)";
    let pem = credentials::read(path).await?;
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| ConnectionError::Content { path: path.to_owned(), why })
}
