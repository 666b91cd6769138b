//! A CA and the certificates that it signs, as files in a folder.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use tempfile::TempDir;

/// A CA.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub struct Signed {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Signed {
    /// Copies both over the files of another one, as a rotation does.
    pub fn replace(&self, other: &Self) {
        std::fs::copy(&self.key, &other.key).unwrap();
        std::fs::copy(&self.certificate, &other.certificate).unwrap();
    }

    /// The flags of a listener with this certificate.
    pub fn listener_flags(&self) -> [&str; 4] {
        ["--tls-cert-file", text(&self.certificate), "--tls-key-file", text(&self.key)]
    }

    /// The flags of a client with this certificate.
    pub fn client_flags(&self) -> [&str; 4] {
        ["--cert-file", text(&self.certificate), "--key-file", text(&self.key)]
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Authority {
    /// A CA of this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    /// The file of its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate of a server on this machine.
    pub fn server(&self, file: &str) -> Signed {
        self.sign(file, &["localhost", "127.0.0.1"], |_| ())
    }

    /// A certificate of these names. One with `://` is a URI; one that is an address is that.
    pub fn sign(
        &self,
        file: &str,
        names: &[&str],
        change: impl Fn(&mut CertificateParams),
    ) -> Signed {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // With the same name as its issuer it would count as self-signed.
        params.distinguished_name.push(DnType::CommonName, file);
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains("://") => SanType::URI((*name).try_into().unwrap()),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let at = |end: &str| self.folder.path().join(format!("{file}.{end}"));
        let signed = Signed { certificate: at("pem"), key: at("key") };
        std::fs::write(&signed.certificate, certificate.pem()).unwrap();
        std::fs::write(&signed.key, key.serialize_pem()).unwrap();
        signed
    }

    /// A certificate of a server on this machine that has expired.
    pub fn expired(&self, file: &str) -> Signed {
        self.sign(file, &["localhost", "127.0.0.1"], |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }
}
