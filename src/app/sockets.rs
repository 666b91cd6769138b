//! Binds the sidecar's sockets.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;

use consentd_tls::ServerFiles;

use crate::admin::AdminSockets;
use crate::config::{LedgerAddress, Settings, TlsListener, TlsSettings, WebhookSources};
use crate::grpc::BearerTokens;
use crate::grpc::connection::Security;
use crate::metrics::Metrics;
use crate::net::socket::{Address, Listener};
use crate::net::tls::ServerTls;

/// The sockets of a sidecar.
pub(super) struct Sockets {
    pub(super) grpc: Vec<GrpcSocket>,
    pub(super) admin: AdminSockets,
    pub(super) webhook: Option<(HttpSocket, WebhookSources)>,
    /// Certificate and key of the listeners, and their files.
    pub(super) tls: Option<(ServerFiles, ServerTls)>,
    /// The bearer tokens that may record, and their file.
    pub(super) tokens: Option<(PathBuf, BearerTokens)>,
}

/// A bound gRPC socket, and the services that it is for.
pub(super) struct GrpcSocket {
    pub(super) listener: Listener,
    pub(super) security: Security,
    pub(super) checks: bool,
    pub(super) records: bool,
    pub(super) tokens: Option<BearerTokens>,
}

/// A bound socket of HTTP.
pub(super) struct HttpSocket {
    pub(super) listener: TcpListener,
    pub(super) tls: Option<ServerTls>,
}

/// Certificate and key, and the listeners that use them.
struct Tls<'a>(Option<(&'a TlsSettings, &'a ServerTls)>);

impl Tls<'_> {
    /// For a listener, if it serves TLS.
    fn of(&self, listener: TlsListener) -> Option<ServerTls> {
        self.0.filter(|(settings, _)| settings.is_on(listener)).map(|(_, tls)| tls.clone())
    }
}

impl Sockets {
    pub(super) async fn bind(settings: &Settings, metrics: &Arc<Metrics>) -> anyhow::Result<Self> {
        let read = |tls: &TlsSettings| {
            let identity = tls.files.read().context("--tls-cert-file")?;
            anyhow::Ok(ServerTls::new(identity, Arc::clone(metrics)))
        };
        let server_tls = settings.tls.as_ref().map(read).transpose()?;
        let tls = Tls(settings.tls.as_ref().zip(server_tls.as_ref()));
        let tokens = settings.listeners.record_token_file.clone();
        let tokens = tokens.map(|path| BearerTokens::read(&path).map(|tokens| (path, tokens)));
        let tokens = tokens.transpose().context("--record-token-file")?;
        let grpc = bind_grpc(settings, &tls, tokens.as_ref().map(|(_, tokens)| tokens)).await?;
        let admin = match &settings.listeners.admin {
            None => None,
            Some(address) => {
                let listener = bind_admin(address, settings.listeners.admin_checks).await?;
                Some((listener, tls.of(TlsListener::Admin)))
            }
        };
        let probes = match &settings.listeners.probes {
            None => None,
            Some(address) => Some(bind_http(address, "--probes").await?),
        };
        let admin = AdminSockets { admin, probes };
        let webhook = match settings.webhook.clone() {
            None => None,
            Some(webhook) => {
                let listener = bind_http(&webhook.address, "--webhook").await?;
                let socket = HttpSocket { listener, tls: tls.of(TlsListener::Webhook) };
                Some((socket, webhook.sources))
            }
        };
        let files = settings.tls.as_ref().map(|tls| tls.files.clone());
        Ok(Self { grpc, admin, webhook, tls: files.zip(server_tls), tokens })
    }
}

/// The addresses of gRPC: each with its flag, whether it serves checks, and whether it serves
/// recordings.
fn grpc_addresses(settings: &Settings) -> Vec<(&'static str, Address, bool, bool)> {
    // With a shared Redis, recordings are served only if --record asks for it.
    let is_file = matches!(settings.ledger, LedgerAddress::File(_));
    let records = is_file && settings.listeners.record.is_none();
    let main = settings.listeners.listen.iter().map(|address| {
        let flag = if matches!(address, Address::Tcp(_)) { "--listen" } else { "--unix" };
        (flag, address.clone(), true, records)
    });
    let record =
        settings.listeners.record.iter().map(|address| ("--record", address.clone(), false, true));
    main.chain(record).collect()
}

async fn bind_grpc(
    settings: &Settings,
    tls: &Tls<'_>,
    tokens: Option<&BearerTokens>,
) -> anyhow::Result<Vec<GrpcSocket>> {
    let mut bound = Vec::new();
    for (flag, address, checks, records) in grpc_addresses(settings) {
        let listener = Listener::bind(&address).await.context(flag)?;
        let tokens = tokens.cloned();
        let tls = tls.of(if checks { TlsListener::Listen } else { TlsListener::Record });
        // Who can connect to a loopback address or a Unix socket is on this machine, or in this pod.
        let roles = settings.roles.clone().filter(|_| !listener.is_local());
        if roles.is_some() && tls.is_none() {
            bail!(
                "{flag}: [roles] count on {address}, which other machines can reach, and without TLS \
                 no client has one: leave it in --tls-listeners, or listen on a loopback address or \
                 a Unix socket"
            );
        }
        if records && tokens.is_none() && roles.is_none() && !listener.is_local() {
            bail!(
                "RecordService on {address} could be reached from other machines: give \
                 --record-token-file with the bearer tokens that may record, or [roles] with the \
                 certificates that may, or move it with --record to a loopback address or a Unix \
                 socket"
            );
        }
        let anonymous = &settings.listeners.anonymous_roles;
        let is_reachable = checks && !listener.is_local();
        if is_reachable && roles.is_none() && anonymous.is_empty() {
            bail!(
                "{flag}: {address} could be reached from other machines, and no client of it would have \
                 a role: give --tls-client-ca-file, and [roles] in the file of --config with the \
                 certificates that may check; or --anonymous-roles check, where whoever can connect \
                 may; or listen on a loopback address or a Unix socket"
            );
        }
        let roles = if is_reachable && !anonymous.is_empty() {
            Some(roles.unwrap_or_default().with_anonymous(anonymous))
        } else {
            roles
        };
        bound.push(GrpcSocket {
            listener,
            security: Security { tls, roles },
            checks,
            records,
            tokens,
        });
    }
    Ok(bound)
}

/// Binds the admin listener. If it answers checks, other machines must not be able to reach it.
async fn bind_admin(address: &str, checks: bool) -> anyhow::Result<TcpListener> {
    let listener = bind_http(address, "--admin, for metrics and probes (or none)").await?;
    if checks && !listener.local_addr()?.ip().is_loopback() {
        bail!(
            "--admin-checks on {address} would let other machines read every user's consent: \
             give --admin a loopback address such as 127.0.0.1:9464, or leave --admin-checks \
             out"
        );
    }
    Ok(listener)
}

/// Binds the HTTP listener of a flag.
async fn bind_http(address: &str, flag: &'static str) -> anyhow::Result<TcpListener> {
    // Bound as for gRPC, so that errors have the same texts.
    match Listener::bind(&Address::Tcp(address.to_owned())).await.context(flag)? {
        Listener::Tcp(listener) => Ok(listener),
        Listener::Unix(..) => bail!("{flag}: must be HOST:PORT"),
    }
}
