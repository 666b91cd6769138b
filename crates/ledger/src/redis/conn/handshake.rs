//! Opens a connection to one server: address resolution, TCP or a Unix socket, TLS, AUTH, HELLO and SELECT.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures_util::future::select_ok;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::credentials::{Credentials, Secret};
use super::error::{ConnectionError, tls_error};
use super::resp::{Reply, RespConnection, RespError, Stream};
use super::url::Address;
use consentd_tls::ClientFiles;

/// The idle time after which the system sends TCP keepalive probes. Commands have shorter timeouts; this
/// finds dead connections on which no reply is awaited.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// The maximum length of a server's error reply in an error message, in characters.
const MAX_SHOWN: usize = 200;

/// The phases of a handshake, by which a timeout is explained.
const CONNECTING: u8 = 0;
const RESOLVING: u8 = 1;
const IN_TLS: u8 = 2;

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
                    0x15 | 0x16 => "; it seems to speak TLS: give `rediss` in place of `redis`",
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
        if refuses_connection(&said) {
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
        if refuses_connection(&String::from_utf8_lossy(said)) {
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

/// Whether an error reply refuses the connection itself, whatever the command: by protected mode, or by `maxclients`.
fn refuses_connection(said: &str) -> bool {
    said.starts_with("DENIED") || said.contains("max number of clients")
}
