//! Binds the sidecar's sockets.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;

use crate::config::{LedgerAddress, Settings, WebhookSources};
use crate::grpc::BearerTokens;
use crate::net::socket::{Address, Listener};

/// The sockets of a sidecar.
pub(super) struct Sockets {
    pub(super) grpc: Vec<GrpcSocket>,
    pub(super) admin: Option<TcpListener>,
    pub(super) webhook: Option<(TcpListener, WebhookSources)>,
    /// The bearer tokens that may record, and their file.
    pub(super) tokens: Option<(PathBuf, BearerTokens)>,
}

/// A bound gRPC socket, and the services that it is for.
pub(super) struct GrpcSocket {
    pub(super) listener: Listener,
    pub(super) checks: bool,
    pub(super) records: bool,
    pub(super) tokens: Option<BearerTokens>,
}

impl Sockets {
    pub(super) async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let tokens = settings.listeners.record_token_file.clone();
        let tokens = tokens.map(|path| BearerTokens::read(&path).map(|tokens| (path, tokens)));
        let tokens = tokens.transpose().context("--record-token-file")?;
        let grpc = bind_grpc(settings, tokens.as_ref().map(|(_, tokens)| tokens)).await?;
        let admin = match &settings.listeners.admin {
            None => None,
            Some(address) => Some(bind_admin(address, settings.listeners.admin_checks).await?),
        };
        let webhook = match settings.webhook.clone() {
            None => None,
            Some(webhook) => {
                Some((bind_http(&webhook.address, "--webhook").await?, webhook.sources))
            }
        };
        Ok(Self { grpc, admin, webhook, tokens })
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
    tokens: Option<&BearerTokens>,
) -> anyhow::Result<Vec<GrpcSocket>> {
    let mut bound = Vec::new();
    for (flag, address, checks, records) in grpc_addresses(settings) {
        let listener = Listener::bind(&address).await.context(flag)?;
        let tokens = tokens.cloned();
        if records && tokens.is_none() && !listener.is_local() {
            bail!(
                "RecordService on {address} could be reached from other machines: give \
                 --record-token-file with the bearer tokens that may record, or move it with \
                 --record to a loopback address or a Unix socket"
            );
        }
        bound.push(GrpcSocket { listener, checks, records, tokens });
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
