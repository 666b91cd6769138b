//! Where the sidecar serves gRPC and its admin pages.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::values::{address, unless_none};
use super::{ConfigError, wrong};
use crate::grpc::Role;
use crate::net::socket::Address;

/// Where gRPC is served, and where the commands expect it, if nothing says otherwise.
pub const DEFAULT_GRPC_ADDRESS: &str = "127.0.0.1:50051";

/// Where the sidecar listens, but for webhooks.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ListenerArgs {
    /// Where to serve gRPC over TCP: HOST:PORT, port 0 for any free one, or none
    /// [default: 127.0.0.1:50051]
    #[arg(long, env = "CONSENTD_LISTEN", value_name = "ADDR")]
    pub listen: Option<String>,
    /// Serve gRPC on this Unix socket too: a path (mode 0660), or @NAME for an abstract one
    #[arg(long, env = "CONSENTD_UNIX", value_name = "PATH")]
    pub unix: Option<String>,
    /// Where to serve a page for people, /metrics, /livez and /readyz over HTTP: HOST:PORT, or none
    /// [default: 127.0.0.1:9464]
    #[arg(long, env = "CONSENTD_ADMIN", value_name = "ADDR")]
    pub admin: Option<String>,
    /// Serve /livez and /readyz here too, without TLS, for probes that have no certificate: HOST:PORT, or
    /// none [default: none]
    #[arg(long, env = "CONSENTD_PROBES", value_name = "ADDR")]
    pub probes: Option<String>,
    /// Put a form on that page that answers checks and shows what they rest on; on a loopback
    /// address alone, since whoever opens the page can ask about anybody [default: false]
    #[arg(
        long, env = "CONSENTD_ADMIN_CHECKS", value_name = "BOOL",
        num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new(),
    )]
    pub admin_checks: Option<bool>,
    /// Serve RecordService here and not on the main listeners: HOST:PORT, unix:PATH or unix:@NAME
    #[arg(long, env = "CONSENTD_RECORD", value_name = "ADDR")]
    pub record: Option<String>,
    /// Bearer tokens that may record, one a line; needed where RecordService is served on an
    /// address that is neither loopback nor a Unix socket; read again when it changes
    #[arg(long, env = "CONSENTD_RECORD_TOKEN_FILE", value_name = "FILE")]
    pub record_token_file: Option<PathBuf>,
    /// Roles of every client of a --listen address that is not loopback, with a certificate or
    /// without one, beyond those that the roles in the file of --config grant [default: none]
    #[arg(long, env = "CONSENTD_ANONYMOUS_ROLES", value_name = "ROLE,…", value_delimiter = ',')]
    pub anonymous_roles: Option<Vec<AnonymousRole>>,
}

/// A role that every client may have.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AnonymousRole {
    /// Check, and read a pair's consent and the sidecar's status
    Check,
    /// Watch changes, which name users
    Watch,
}

impl From<AnonymousRole> for Role {
    fn from(role: AnonymousRole) -> Self {
        match role {
            AnonymousRole::Check => Self::Check,
            AnonymousRole::Watch => Self::Watch,
        }
    }
}

impl ListenerArgs {
    /// These settings; where one is unset, that of `weaker`.
    pub(super) fn or(self, weaker: Self) -> Self {
        Self {
            listen: self.listen.or(weaker.listen),
            unix: self.unix.or(weaker.unix),
            admin: self.admin.or(weaker.admin),
            probes: self.probes.or(weaker.probes),
            admin_checks: self.admin_checks.or(weaker.admin_checks),
            record: self.record.or(weaker.record),
            record_token_file: self.record_token_file.or(weaker.record_token_file),
            anonymous_roles: self.anonymous_roles.or(weaker.anonymous_roles),
        }
    }

    /// Validates the addresses. With `receives_webhooks`, no gRPC listener is needed.
    pub(super) fn validate(self, receives_webhooks: bool) -> Result<Listeners, ConfigError> {
        let listen = grpc(self.listen.as_deref(), self.unix.as_deref(), receives_webhooks)?;
        let admin = unless_none(self.admin.as_deref().unwrap_or("127.0.0.1:9464"));
        let record = self.record.as_deref().map(|text| address("--record", text)).transpose()?;
        if let Some(admin) = admin
            && !matches!(admin.parse(), Ok(Address::Tcp(_)))
        {
            return Err(wrong("--admin", "must be HOST:PORT such as 127.0.0.1:9464, or none"));
        }
        let admin_checks = self.admin_checks.unwrap_or(false);
        if admin_checks && admin.is_none() {
            let why = "the form is on the admin listener's page: give --admin a loopback address, \
                       such as 127.0.0.1:9464";
            return Err(wrong("--admin-checks", why));
        }
        let admin = admin.map(str::to_owned);
        let record_token_file = self.record_token_file;
        let anonymous_roles = self.anonymous_roles.into_iter().flatten().map(Role::from).collect();
        let probes = self.probes.as_deref().and_then(unless_none);
        if let Some(probes) = probes
            && !matches!(probes.parse(), Ok(Address::Tcp(_)))
        {
            return Err(wrong("--probes", "must be HOST:PORT such as 0.0.0.0:9465, or none"));
        }
        let probes = probes.map(str::to_owned);
        Ok(Listeners {
            listen,
            admin,
            probes,
            admin_checks,
            record,
            record_token_file,
            anonymous_roles,
        })
    }
}

/// Where the sidecar listens, but for webhooks.
#[derive(Clone, Debug)]
pub struct Listeners {
    /// The addresses of gRPC; none in a process that only receives webhooks.
    pub listen: Vec<Address>,
    /// The address of metrics, probes and the status page.
    pub admin: Option<String>,
    /// The address of probes alone.
    pub probes: Option<String>,
    /// Whether the status page answers checks.
    pub admin_checks: bool,
    /// The address of `RecordService`; if unset, every address of `listen` serves it.
    pub record: Option<Address>,
    /// The file of the bearer tokens that may record.
    pub record_token_file: Option<PathBuf>,
    /// The roles of every client of a listener that other machines can reach.
    pub anonymous_roles: Vec<Role>,
}

/// The addresses of gRPC. There may be none only in a process that receives webhooks.
fn grpc(
    tcp: Option<&str>,
    unix: Option<&str>,
    receives_webhooks: bool,
) -> Result<Vec<Address>, ConfigError> {
    let tcp = unless_none(tcp.unwrap_or(DEFAULT_GRPC_ADDRESS));
    let tcp = tcp.map(|text| address("--listen", text)).transpose()?;
    if matches!(unix, Some("" | "@" | "unix:" | "unix:@")) {
        return Err(wrong("--unix", "must be a path such as /run/consentd.sock, or @ and a name"));
    }
    let listen: Vec<_> = tcp.into_iter().chain(unix.map(Address::unix)).collect();
    if listen.is_empty() && !receives_webhooks {
        return Err(wrong("--listen", "none is left to listen on: give --unix, or an address"));
    }
    Ok(listen)
}
