//! Opens a connection to one server: address resolution, TCP or a Unix socket, TLS, AUTH, HELLO and SELECT.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures_util::future::select_ok;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::credentials::{Credentials, Secret};
use super::resp::{Reply, RespConnection, RespError, Stream};
use super::url::Address;
use consentd_os::io_hint;
use consentd_tls::{ClientFiles, HandshakeError, TlsFileError};

/// The idle time after which the system sends TCP keepalive probes. Commands have shorter timeouts; this
/// finds dead connections on which no reply is awaited.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// The maximum length of a server's error reply in an error message, in characters.
const MAX_SHOWN: usize = 200;

/// The phases of a handshake, by which a timeout is explained.
const CONNECTING: u8 = 0;
const RESOLVING: u8 = 1;
const IN_TLS: u8 = 2;

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
         redis:// is without"
    )]
    TlsTimedOut { address: Address, after: Duration },
    /// The server closed the connection before its first reply.
    #[error(
        "{address} closed the connection before its first reply: if it speaks TLS, give rediss://"
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
        first_failure(failure.as_ref())
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
            | Self::NoMajority { .. }
            | Self::Moved { .. } => false,
        }
    }
}

fn first_failure(failure: Option<&Arc<ConnectionError>>) -> String {
    failure.map(|failure| format!("; of another: {failure}")).unwrap_or_default()
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
            "; it may speak no TLS at that port: redis:// is without"
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

fn tls_error(error: HandshakeError, address: &Address) -> ConnectionError {
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

/// The kind of server that is expected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ServerKind {
    /// A Redis, with the number of the database.
    Redis(u32),
    /// A Sentinel.
    Sentinel,
    /// A node of a Cluster.
    ClusterNode,
}

/// The parameters of a connection.
pub(crate) struct Handshake<'a> {
    pub(crate) address: &'a Address,
    pub(crate) credentials: &'a Credentials,
    pub(crate) tls: Option<&'a ClientFiles>,
    pub(crate) kind: ServerKind,
}

/// A connection after its handshake.
pub(crate) struct Handshaken {
    pub(crate) resp: RespConnection,
    /// Whether the server says that it is a primary; unknown if it does not support HELLO.
    pub(crate) primary: Option<bool>,
}

impl Handshake<'_> {
    /// Connects, authenticates, and checks the kind of server.
    pub(crate) async fn run(&self, within: Duration) -> Result<Handshaken, ConnectionError> {
        let phase = AtomicU8::new(CONNECTING);
        let opened = timeout(within, async {
            // Before connecting, so that a missing file is not reported as a fault of the server.
            let credentials = self.credentials.arguments().await?;
            let stream = self.connect(&phase).await?;
            self.authenticate(RespConnection::new(stream), credentials.as_deref()).await
        });
        let late = |_| {
            let (address, after) = (self.address.clone(), within);
            match phase.load(Ordering::Relaxed) {
                RESOLVING => ConnectionError::ResolutionTimedOut { address, after },
                IN_TLS => ConnectionError::TlsTimedOut { address, after },
                _ => ConnectionError::TimedOut { address, after },
            }
        };
        opened.await.map_err(late)?
    }

    async fn connect(&self, phase: &AtomicU8) -> Result<Box<dyn Stream>, ConnectionError> {
        let address = self.address;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::ConnectionRefused => {
                ConnectionError::Refused { address: address.clone() }
            }
            _ => ConnectionError::Connect { address: address.clone(), source: Arc::new(source) },
        };
        let (host, port) = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                return Ok(Box::new(stream));
            }
            Address::Tcp(host, port) => (&**host, *port),
        };
        let unknown = |source| ConnectionError::UnknownHost {
            address: address.clone(),
            source: Arc::new(source),
        };
        phase.store(RESOLVING, Ordering::Relaxed);
        let found: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(unknown)?.collect();
        phase.store(CONNECTING, Ordering::Relaxed);
        if found.is_empty() {
            return Err(unknown(io::ErrorKind::NotFound.into()));
        }
        // To all addresses at once: the first may be one that never replies.
        let attempts = found.into_iter().map(|at| Box::pin(TcpStream::connect(at)));
        let (stream, _) = select_ok(attempts).await.map_err(failed)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3);
        stream.set_nodelay(true).map_err(failed)?;
        SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(failed)?;
        Ok(match self.tls {
            None => Box::new(stream),
            Some(files) => {
                phase.store(IN_TLS, Ordering::Relaxed);
                let connected = files.connect(stream, host, None).await;
                let stream = connected.map_err(|error| tls_error(error, address))?;
                phase.store(CONNECTING, Ordering::Relaxed);
                Box::new(stream)
            }
        })
    }

    /// Sends AUTH, HELLO and SELECT. HELLO identifies the server, needs no permission, and gets a reply
    /// even from a server that refuses PING because it cannot save (MISCONF).
    async fn authenticate(
        &self,
        mut resp: RespConnection,
        credentials: Option<&[Secret]>,
    ) -> Result<Handshaken, ConnectionError> {
        if let Some(credentials) = credentials {
            let mut auth: Vec<&[u8]> = vec![b"AUTH"];
            auth.extend(credentials.iter().map(|secret| secret.reveal().as_bytes()));
            let reply = self.classify_first_reply(self.ask(&mut resp, auth).await)?;
            if let Reply::Error(said) = reply {
                return Err(self.auth_error(&said));
            }
        }
        let primary =
            match self.classify_first_reply(self.ask(&mut resp, vec![b"HELLO", b"2"]).await)? {
                Reply::Array(said) => self.parse_hello(&said)?,
                Reply::Error(said) => {
                    self.check_error_reply(&said)?;
                    None
                }
                _ => None,
            };
        if let ServerKind::Redis(database) = self.kind
            && database != 0
        {
            let number = database.to_string();
            if let Reply::Error(said) =
                self.ask(&mut resp, vec![b"SELECT", number.as_bytes()]).await?
            {
                return Err(self.rejection("the database (SELECT)", &said));
            }
        }
        Ok(Handshaken { resp, primary })
    }

    async fn ask(
        &self,
        resp: &mut RespConnection,
        command: Vec<&[u8]>,
    ) -> Result<Reply, ConnectionError> {
        resp.send(&[command]).await.map_err(|error| self.map_io_error(error))?;
        resp.reply().await.map_err(|error| self.map_io_error(error))
    }

    /// Classifies the first reply: a connection without TLS that ends before it was probably made to a port
    /// with TLS.
    fn classify_first_reply(
        &self,
        answer: Result<Reply, ConnectionError>,
    ) -> Result<Reply, ConnectionError> {
        match (answer, self.address, self.tls) {
            (
                Err(ConnectionError::Closed { address } | ConnectionError::Io { address, .. }),
                Address::Tcp(..),
                None,
            ) => Err(ConnectionError::ClosedEarly { address }),
            (answer, ..) => answer,
        }
    }

    /// Converts an error of the connection.
    pub(crate) fn map_io_error(&self, error: RespError) -> ConnectionError {
        let address = self.address.clone();
        match error {
            // In TLS 1.3 the server rejects a missing client certificate after the handshake, by the first
            // reply.
            RespError::Io(source) if self.tls.is_some() => {
                ConnectionError::Tls { address, source: Arc::new(source) }
            }
            RespError::Io(source) => ConnectionError::Io { address, source: Arc::new(source) },
            RespError::Closed => ConnectionError::Closed { address },
            RespError::NotResp(first) => {
                let hint = match first {
                    0x15 | 0x16 => "; it seems to speak TLS: give rediss://",
                    b'H' => "; it seems to be an HTTP server",
                    _ => "",
                };
                ConnectionError::NotRedis { address, hint }
            }
        }
    }

    /// Reads the reply to HELLO: whether the server is a primary. Fails if it is of the other kind.
    fn parse_hello(&self, said: &[Reply]) -> Result<Option<bool>, ConnectionError> {
        let of = |name: &str| {
            said.chunks(2).find_map(|pair| match pair {
                [key, value] if key.text() == Some(name) => value.text(),
                _ => None,
            })
        };
        let is_sentinel = of("mode") == Some("sentinel");
        let wrong =
            |is, right| ConnectionError::WrongKind { address: self.address.clone(), is, right };
        let is_node = of("mode") == Some("cluster");
        match self.kind {
            ServerKind::Redis(_) if is_node => Err(wrong(
                "a node of a Cluster",
                "give redis+cluster://HOST:PORT,HOST:PORT (rediss+cluster:// with TLS)",
            )),
            ServerKind::ClusterNode if !is_node && of("mode").is_some() => Err(wrong(
                if is_sentinel { "a Sentinel" } else { "no node of a Cluster" },
                "give redis://HOST:PORT for a single Redis, or the nodes of a Cluster",
            )),
            ServerKind::Redis(_) if is_sentinel => Err(wrong(
                "a Sentinel",
                "give redis+sentinel://HOST:PORT,HOST:PORT/MASTER to follow its primary",
            )),
            ServerKind::Sentinel if !is_sentinel && of("mode").is_some() => Err(wrong(
                "a Redis and no Sentinel",
                "give redis://HOST:PORT, or the Sentinels' port (26379 by default)",
            )),
            _ => Ok(of("role").map(|role| role == "master")),
        }
    }

    /// The reason of a rejected AUTH in fixed words: a server may quote arguments that it does not
    /// understand, and they are passwords.
    fn auth_error(&self, said: &[u8]) -> ConnectionError {
        let said = String::from_utf8_lossy(said);
        if said.starts_with("DENIED") || said.contains("max number of clients") {
            return self.rejection("the connection", said.as_bytes());
        }
        let why = if said.starts_with("WRONGPASS") || said.contains("invalid password") {
            "they do not match, or the user is disabled (WRONGPASS)"
        } else if said.contains("without any password configured") {
            "it has none for its default user: give none, or a user too"
        } else if said.contains("unknown command") {
            "it has no AUTH command"
        } else if said.contains("wrong number of arguments") {
            "it supports passwords only, and no users"
        } else {
            "its own reason may quote them and is not shown"
        };
        ConnectionError::CredentialsRejected { address: self.address.clone(), why }
    }

    /// Fails if an error reply to HELLO means that the connection cannot be used.
    fn check_error_reply(&self, said: &[u8]) -> Result<(), ConnectionError> {
        if said.starts_with(b"NOAUTH") {
            let flags = match self.kind {
                ServerKind::Redis(_) | ServerKind::ClusterNode => {
                    "--ledger-password-file or CONSENTD_LEDGER_PASSWORD, and --ledger-user"
                }
                ServerKind::Sentinel => {
                    "--ledger-sentinel-password-file or CONSENTD_LEDGER_SENTINEL_PASSWORD, and \
                     --ledger-sentinel-user"
                }
            };
            return Err(ConnectionError::CredentialsRequired {
                address: self.address.clone(),
                flags,
            });
        }
        let text = String::from_utf8_lossy(said);
        if text.starts_with("DENIED") || text.contains("max number of clients") {
            return Err(self.rejection("the connection", said));
        }
        Ok(())
    }

    /// A rejection with the server's own error reply, for commands without secret arguments.
    pub(crate) fn rejection(&self, what: &'static str, said: &[u8]) -> ConnectionError {
        let said = String::from_utf8_lossy(said).chars().take(MAX_SHOWN).collect();
        ConnectionError::Rejected { address: self.address.clone(), what, said }
    }
    /// A rejected question to one of those that name the primary.
    pub(crate) fn refused_question(
        &self,
        what: &'static str,
        error: &redis::ServerError,
    ) -> ConnectionError {
        let said = format!("{} {}", error.code(), error.details().unwrap_or_default());
        self.rejection(what, said.trim().as_bytes())
    }
}
