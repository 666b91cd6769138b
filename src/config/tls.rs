//! TLS on the listeners, and the roles of their clients.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use consentd_tls::ServerFiles;
use serde::Deserialize;

use super::{ConfigError, wrong};
use crate::grpc::{Role, Roles};

/// TLS on the listeners.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct TlsArgs {
    /// Serve TLS on TCP, with this certificate and those between it and its CA, in PEM form; read
    /// again when it changes
    #[arg(long, env = "CONSENTD_TLS_CERT_FILE", value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, env = "CONSENTD_TLS_KEY_FILE", value_name = "FILE")]
    pub tls_key_file: Option<PathBuf>,
    /// Take only clients with a certificate of one of these CAs; read again when it changes
    #[arg(long, env = "CONSENTD_TLS_CLIENT_CA_FILE", value_name = "FILE")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Which listeners serve TLS; Unix sockets never do [default: all]
    #[arg(long, env = "CONSENTD_TLS_LISTENERS", value_name = "LISTENER,…", value_delimiter = ',')]
    pub tls_listeners: Option<Vec<TlsListener>>,
}

/// A listener that can serve TLS.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TlsListener {
    /// That of --listen
    Listen,
    /// That of --record
    Record,
    /// That of --webhook
    Webhook,
    /// That of --admin
    Admin,
}

impl TlsArgs {
    /// These settings; where one is unset, that of `weaker`.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            tls_cert_file: self.tls_cert_file.or(weaker.tls_cert_file),
            tls_key_file: self.tls_key_file.or(weaker.tls_key_file),
            tls_client_ca_file: self.tls_client_ca_file.or(weaker.tls_client_ca_file),
            tls_listeners: self.tls_listeners.or(weaker.tls_listeners),
        }
    }

    /// The files and the listeners; none without a certificate. `exists` says whether there is a listener on
    /// TCP.
    pub(super) fn validate(
        self,
        exists: impl Fn(TlsListener) -> bool,
    ) -> Result<Option<TlsSettings>, ConfigError> {
        // An empty variable counts as unset.
        let [certificate, key, client_ca] =
            [self.tls_cert_file, self.tls_key_file, self.tls_client_ca_file]
                .map(|path| path.filter(|path| !path.as_os_str().is_empty()));
        let needs = |flag, other| Err(wrong(flag, format!("needs {other} too")));
        let (certificate, key) = match (certificate, key) {
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(_), None) => return needs("--tls-cert-file", "--tls-key-file"),
            (None, Some(_)) => return needs("--tls-key-file", "--tls-cert-file"),
            (None, None) if client_ca.is_some() => {
                return needs("--tls-client-ca-file", "--tls-cert-file and --tls-key-file");
            }
            (None, None) if self.tls_listeners.is_some() => {
                return needs("--tls-listeners", "--tls-cert-file and --tls-key-file");
            }
            (None, None) => return Ok(None),
        };
        let is_missing = |listener: &&TlsListener| !exists(**listener);
        if let Some(missing) = self.tls_listeners.iter().flatten().find(is_missing) {
            let name = missing.to_possible_value();
            let name = name.as_ref().map_or("", clap::builder::PossibleValue::get_name);
            let why = format!(
                "there is no listener of --{name} on TCP, so that nothing would be encrypted"
            );
            return Err(wrong("--tls-listeners", why));
        }
        let listeners = self.tls_listeners.unwrap_or_else(|| TlsListener::value_variants().into());
        Ok(Some(TlsSettings { files: ServerFiles { certificate, key, client_ca }, listeners }))
    }
}

/// The table `[roles]` of the configuration file: names in certificates, and the roles of each.
pub type RoleArgs = BTreeMap<String, Vec<Role>>;

/// The roles of clients. They need certificates that are verified.
pub(super) fn roles(roles: &RoleArgs, tls: &TlsArgs) -> Result<Roles, ConfigError> {
    if tls.tls_client_ca_file.as_ref().is_none_or(|path| path.as_os_str().is_empty()) {
        let why = "needs --tls-client-ca-file, the CAs of the certificates that have these names";
        return Err(wrong("roles", why));
    }
    for (name, roles) in roles {
        if roles.is_empty() || name.trim() != name || name.is_empty() {
            let why = format!(
                "{name:?} must be a DNS name or a URI of a certificate, with at least one of check, \
                 watch, record and erase"
            );
            return Err(wrong("roles", why));
        }
    }
    Ok(Roles::new(roles))
}

/// The files of TLS, and the listeners that serve it.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// The files.
    pub files: ServerFiles,
    listeners: Vec<TlsListener>,
}

impl TlsSettings {
    /// Whether a listener serves TLS.
    #[must_use]
    pub fn is_on(&self, listener: TlsListener) -> bool {
        self.listeners.contains(&listener)
    }
}
