//! Why a connection could not be opened, or failed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::url::Address;
use consentd_os::io_hint;
use consentd_tls::{HandshakeError, TlsFileError};

/// Why a connection could not be opened, or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), io_hint::hint(path, source))]
    File { path: PathBuf, source: Arc<io::Error> },
    /// A file has unusable content.
    #[error("{} cannot be used: {why}", path.display())]
    Content {
        path: PathBuf,
        /// What the file must contain.
        why: &'static str,
    },
    /// The files for TLS cannot be used.
    #[error("{source}{}", if matches!(source, TlsFileError::NoRoots) { " with --ledger-ca-file" } else { "" })]
    TlsFiles {
        #[from]
        source: TlsFileError,
    },
    /// The host cannot be a name in a certificate.
    #[error("{address} is not a valid server name for TLS")]
    InvalidServerName { address: Address },
    /// The TLS handshake, or a connection over TLS, failed.
    #[error("TLS with {address} failed: {source}{}", tls_hint(source))]
    Tls { address: Address, source: Arc<io::Error> },
    /// The host's name cannot be resolved.
    #[error("the host name of {address} cannot be resolved: {source}")]
    UnknownHost { address: Address, source: Arc<io::Error> },
    /// The host's name was not resolved within the timeout, so that no server was asked yet.
    #[error(
        "the host name of {address} was not resolved within {after:?}: no DNS server has answered"
    )]
    ResolutionTimedOut { address: Address, after: Duration },
    /// The connection was refused: nothing listens at the address.
    #[error("nothing listens at {address}: the connection was refused")]
    Refused { address: Address },
    /// Connecting failed for another reason.
    #[error("cannot connect to {address}: {source}{}", socket_hint(address, source))]
    Connect { address: Address, source: Arc<io::Error> },
    /// The server did not reply within the timeout.
    #[error("no answer from {address} within {after:?}")]
    TimedOut { address: Address, after: Duration },
    /// The TLS handshake timed out. A Redis without TLS waits for the end of a line.
    #[error(
        "{address} did not answer in TLS within {after:?}; it may speak none at that port: \
         a URL with `redis` in place of `rediss` is without TLS"
    )]
    TlsTimedOut { address: Address, after: Duration },
    /// The server closed the connection before its first reply.
    #[error(
        "{address} closed the connection before its first reply: if it speaks TLS, give `rediss` in place of \
         `redis`"
    )]
    ClosedEarly { address: Address },
    /// The server closed the connection.
    #[error("{address} closed the connection")]
    Closed { address: Address },
    /// The server ended a subscription unasked.
    #[error(
        "{address} ended the subscription: the slot has left it, or it has another role by now"
    )]
    Unsubscribed { address: Address },
    /// Reading from or writing to the connection failed.
    #[error("the connection to {address} failed: {source}")]
    Io { address: Address, source: Arc<io::Error> },
    /// The server does not speak RESP.
    #[error("{address} does not answer as a Redis does{hint}")]
    NotRedis {
        address: Address,
        /// What kind of server it seems to be.
        hint: &'static str,
    },
    /// The connection is not authenticated.
    #[error("{address} wants a password: give {flags}")]
    CredentialsRequired {
        address: Address,
        /// The settings for a password.
        flags: &'static str,
    },
    /// Authentication failed: wrong user or password.
    #[error("{address} rejected the user or the password: {why}")]
    CredentialsRejected {
        address: Address,
        /// The reason in fixed words: the server's own error may quote the password.
        why: &'static str,
    },
    /// The server rejected a command.
    #[error("{address} rejected {what}: {said}")]
    Rejected {
        address: Address,
        /// The purpose of the command.
        what: &'static str,
        /// The error reply.
        said: String,
    },
    /// The server is of another kind than expected: a Redis, a Sentinel, or a node of a Cluster.
    #[error("{address} is {is}: {right}")]
    WrongKind {
        address: Address,
        is: &'static str,
        /// The setting that would be right.
        right: &'static str,
    },
    /// The server that is named is not a primary, or not yet.
    #[error("{address} is no primary, though the {voters} name it as one")]
    NotPrimary {
        address: Address,
        /// Those that name it.
        voters: &'static str,
    },
    /// Another node answers at the address of the one that owns the ledger's slot.
    #[error(
        "another node answers at {address} than the one that owns the ledger's slot: see the \
         addresses that CLUSTER NODES shows, and cluster-announce-ip of these nodes"
    )]
    OtherNode { address: Address },
    /// No node of the Cluster serves the slot.
    #[error(
        "no node of the Cluster serves slot {slot}, which the ledger is in: see CLUSTER NODES, and run \
         redis-cli --cluster create if the Cluster is not made yet"
    )]
    UncoveredSlot { slot: u16 },
    /// No Sentinel knows a primary of this name.
    #[error("the Sentinels know no primary named {master}: see SENTINEL MASTERS on one of them")]
    UnknownMaster { master: String },
    /// No majority names the same primary.
    #[error(
        "no majority of the {total} {voters} names {sought}: {answered} answered, {agreed} agree{}",
        one_failure(failure.as_ref())
    )]
    NoMajority {
        /// Those that name the primary.
        voters: &'static str,
        /// What they were asked for.
        sought: String,
        /// The number of known voters.
        total: usize,
        /// The number of voters that replied.
        answered: usize,
        /// The largest number that name the same primary in the same term.
        agreed: usize,
        /// Why one of the others did not reply.
        failure: Option<Arc<ConnectionError>>,
    },
    /// A majority names another server as the primary, or the same one in a later term.
    #[error("{}", moved_text(address, voters, now))]
    Moved {
        address: Address,
        /// Those that name it.
        voters: &'static str,
        now: Address,
    },
}

impl ConnectionError {
    /// Whether an operator must act before a retry can succeed.
    pub(crate) fn needs_an_operator(&self) -> bool {
        match self {
            Self::File { .. }
            | Self::Content { .. }
            | Self::TlsFiles { .. }
            | Self::InvalidServerName { .. }
            | Self::Tls { .. }
            | Self::NotRedis { .. }
            | Self::CredentialsRequired { .. }
            | Self::CredentialsRejected { .. }
            | Self::Rejected { .. }
            | Self::WrongKind { .. } => true,
            Self::UnknownHost { .. }
            | Self::ResolutionTimedOut { .. }
            | Self::Refused { .. }
            | Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Closed { .. }
            | Self::Unsubscribed { .. }
            | Self::Io { .. }
            | Self::TlsTimedOut { .. }
            | Self::ClosedEarly { .. }
            | Self::NotPrimary { .. }
            | Self::OtherNode { .. }
            | Self::UncoveredSlot { .. }
            | Self::UnknownMaster { .. }
            | Self::Moved { .. } => false,
            // What keeps one of several from answering may pass before the others answer.
            Self::NoMajority { answered, failure, .. } => {
                *answered == 0
                    && failure.as_ref().is_some_and(|failure| failure.needs_an_operator())
            }
        }
    }
}

fn one_failure(failure: Option<&Arc<ConnectionError>>) -> String {
    failure.map(|failure| format!("; one failure: {failure}")).unwrap_or_default()
}

fn moved_text(address: &Address, voters: &str, now: &Address) -> String {
    if address == now {
        format!(
            "{address} has become the primary anew: a majority of the {voters} names a later term"
        )
    } else {
        format!("{address} is no longer the primary: a majority of the {voters} names {now}")
    }
}

fn tls_hint(error: &io::Error) -> &'static str {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => {
            "; it may speak no TLS at that port: a URL with `redis` in place of `rediss` is without TLS"
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            "; name a file of its CA's certificates with --ledger-ca-file"
        }
        Some(rustls::Error::AlertReceived(_)) => {
            "; if it demands a client certificate, give --ledger-cert-file and --ledger-key-file"
        }
        _ => "",
    }
}

pub(super) fn tls_error(error: HandshakeError, address: &Address) -> ConnectionError {
    let address = address.clone();
    match error {
        HandshakeError::Files(error) => error.into(),
        HandshakeError::InvalidName => ConnectionError::InvalidServerName { address },
        HandshakeError::Failed(source) => {
            ConnectionError::Tls { address, source: Arc::new(source) }
        }
    }
}

fn socket_hint(address: &Address, error: &io::Error) -> String {
    match address {
        Address::Unix(path) => io_hint::hint(path, error),
        Address::Tcp(..) => String::new(),
    }
}
