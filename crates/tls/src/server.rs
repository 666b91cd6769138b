//! The files of a listener, and what its clients' certificates name.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::pem::{self, PemFile, TlsFileError};
use consentd_core::time::Timestamp;

/// The files of a listener.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerFiles {
    /// The server's certificate, and the certificates between it and its CA.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CA certificates of clients. If set, a client needs a certificate of one of them.
    pub client_ca: Option<PathBuf>,
}

/// The protocol behind TLS, which client and server agree on by ALPN (RFC 7301).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP/2, as gRPC needs it.
    Http2,
    /// HTTP/1.1.
    Http1,
}

impl Protocol {
    /// Its name in ALPN.
    pub(crate) fn alpn(self) -> Vec<u8> {
        match self {
            Self::Http2 => b"h2".to_vec(),
            Self::Http1 => b"http/1.1".to_vec(),
        }
    }
}

/// What a server's files hold. Two are equal if their files have the same content.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    http2: Arc<ServerConfig>,
    http1: Arc<ServerConfig>,
    digest: [u8; 32],
    expires: Timestamp,
}

impl PartialEq for ServerIdentity {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl ServerFiles {
    /// Reads the files. It may block.
    ///
    /// # Errors
    ///
    /// [`TlsFileError`] names the file.
    pub fn read(&self) -> Result<ServerIdentity, TlsFileError> {
        let certificate = PemFile::read(&self.certificate)?;
        let key = PemFile::read(&self.key)?;
        let client_ca = self.client_ca.as_deref().map(PemFile::read).transpose()?;
        let mut digest = Sha256::new();
        for file in [&certificate, &key].into_iter().chain(&client_ca) {
            digest.update(file.bytes().len().to_be_bytes());
            digest.update(file.bytes());
        }
        let (chain, key) = (certificate.certificates()?, key.key()?);
        let clients = client_ca.as_ref().map(PemFile::authorities).transpose()?;
        let expires = chain.first().and_then(expiry).ok_or_else(|| TlsFileError::Content {
            path: self.certificate.clone(),
            why: "its first certificate is not a valid X.509 certificate",
        })?;
        let builder = ServerConfig::builder_with_provider(pem::provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsFileError::Setup)?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), pem::provider());
                let failed = |error: rustls::server::VerifierBuilderError| {
                    TlsFileError::Setup(rustls::Error::General(error.to_string()))
                };
                builder.with_client_cert_verifier(verifier.build().map_err(failed)?)
            }
        };
        let mut http1 =
            builder.with_single_cert(chain, key).map_err(|source| TlsFileError::Pair {
                certificate: self.certificate.clone(),
                key: self.key.clone(),
                source,
            })?;
        // A resumed session is not verified again: a client would keep its roles after its certificate has
        // expired. So each connection makes a whole handshake.
        http1.session_storage = Arc::new(NoServerSessionStorage {});
        http1.send_tls13_tickets = 0;
        let mut http2 = http1.clone();
        http1.alpn_protocols = vec![Protocol::Http1.alpn()];
        http2.alpn_protocols = vec![Protocol::Http2.alpn()];
        let (http2, http1) = (Arc::new(http2), Arc::new(http1));
        Ok(ServerIdentity { http2, http1, digest: digest.finalize().into(), expires })
    }
}

impl ServerIdentity {
    /// The configuration of a listener that speaks this protocol.
    #[must_use]
    pub fn config(&self, protocol: Protocol) -> Arc<ServerConfig> {
        Arc::clone(match protocol {
            Protocol::Http2 => &self.http2,
            Protocol::Http1 => &self.http1,
        })
    }

    /// When the server's certificate expires.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.expires
    }
}

/// When a certificate expires.
fn expiry(certificate: &CertificateDer<'static>) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let seconds = certificate.validity().not_after.timestamp();
    Timestamp::from_millis(seconds.checked_mul(1_000)?)
}

/// The names of a certificate's owner: the DNS names and the URIs of its subject alternative names (SPIFFE ids
/// are such URIs). The subject itself is not read, since that is what RFC 9525 says of it.
#[must_use]
pub fn peer_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        // What has a colon is a URI and no DNS name, so that neither counts as the other.
        GeneralName::DNSName(name) if !name.contains(':') => Some(name.to_ascii_lowercase()),
        GeneralName::URI(uri) if uri.contains(':') => Some((*uri).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(name).collect()
}
