//! Files in PEM form.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use consentd_os::io_hint;

/// The largest file, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Why files cannot be used for TLS.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TlsFileError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), io_hint::hint(path, source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A file has unusable content.
    #[error("{} cannot be used: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it must hold.
        why: &'static str,
    },
    /// A CA certificate cannot be used.
    #[error("a CA certificate in {} cannot be used: {source}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The certificate and the key do not belong together, or one of them is of an unknown kind.
    #[error("{} and {} cannot be used together: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The system has no CA certificates.
    #[error("this system has no CA certificates: name a file of them")]
    NoRoots,
    /// The provider of cryptography lacks what TLS needs.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// A file that was read.
pub(crate) struct PemFile<'a> {
    path: &'a Path,
    bytes: Vec<u8>,
}

impl<'a> PemFile<'a> {
    pub(crate) fn read(path: &'a Path) -> Result<Self, TlsFileError> {
        Ok(Self { path, bytes: read(path)? })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn unusable(&self, why: &'static str) -> TlsFileError {
        TlsFileError::Content { path: self.path.to_owned(), why }
    }

    /// Its certificate or chain. A server's or client's own comes first.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
        let why = "it must hold certificates in PEM form (-----BEGIN CERTIFICATE-----)";
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        read.ok().filter(|read| !read.is_empty()).ok_or_else(|| self.unusable(why))
    }

    /// Its key.
    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, TlsFileError> {
        let why =
            "it must hold a private key in PEM form, unencrypted (-----BEGIN PRIVATE KEY-----)";
        PrivateKeyDer::from_pem_slice(&self.bytes).map_err(|_| self.unusable(why))
    }

    /// Its CA certificates.
    pub(crate) fn authorities(&self) -> Result<RootCertStore, TlsFileError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            let failed = |source| TlsFileError::Authority { path: self.path.to_owned(), source };
            roots.add(certificate).map_err(failed)?;
        }
        Ok(roots)
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFileError> {
    let failed = |source| TlsFileError::Io { path: path.to_owned(), source: Arc::new(source) };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= MAX_FILE_BYTES) {
        return Ok(bytes);
    }
    Err(TlsFileError::Content { path: path.to_owned(), why: "it has more than 4 MiB" })
}
