//! A connection's first words: to one server, at one address, as one user.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::select_ok;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::credentials::{Credentials, Secret};
use super::resp::{Reply, RespConnection, RespError, Stream};
use super::tls::TlsFiles;
use super::url::Address;
use consentd_os::io_hint;

/// After how long without a word the system asks whether the other side is still there. What
/// waits for an answer notices sooner; this is for connections that nobody waits on.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// The longest part of a server's error that is shown.
const MAX_SAID: usize = 200;

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}{}", path.display(), io_hint::hint(path, source))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A file is not what it should be.
    #[error("{} cannot be used: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should be.
        why: &'static str,
    },
    /// Certificates or keys that do not go together.
    #[error("the certificates or the key cannot be used for TLS: {source}")]
    TlsSetup {
        /// What rustls said.
        source: rustls::Error,
    },
    /// The system has no certificates.
    #[error("this system has no CA certificates: name a file of them with --ledger-ca-file")]
    NoRoots,
    /// No certificate can be for such a name.
    #[error("{address} is no name that a certificate can be for")]
    InvalidServerName {
        /// Where.
        address: Address,
    },
    /// TLS failed.
    #[error("TLS with {address} failed: {source}{}", tls_hint(source))]
    Tls {
        /// With whom.
        address: Address,
        /// What rustls said.
        source: Arc<io::Error>,
    },
    /// Nobody knows the host.
    #[error("cannot find the address of the host in {address}: {source}")]
    UnknownHost {
        /// Where.
        address: Address,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Nothing listens there.
    #[error("nothing listens at {address}: the connection was refused")]
    Refused {
        /// Where.
        address: Address,
    },
    /// Another failure to connect.
    #[error("cannot connect to {address}: {source}{}", socket_hint(address, source))]
    Connect {
        /// Where.
        address: Address,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// It took too long.
    #[error("no answer from {address} within {after:?}")]
    TimedOut {
        /// Who.
        address: Address,
        /// How long.
        after: Duration,
    },
    /// It took too long to say the first word of TLS. A Redis without it waits for a line to end.
    #[error(
        "{address} did not answer in TLS within {after:?}; it may speak none at that port: \
         redis:// is without"
    )]
    TlsTimedOut {
        /// Who.
        address: Address,
        /// How long.
        after: Duration,
    },
    /// It ended before there was an answer to anything.
    #[error(
        "{address} closed the connection at the first word: where it speaks TLS, give rediss://"
    )]
    ClosedEarly {
        /// Who.
        address: Address,
    },
    /// It ended.
    #[error("{address} closed the connection")]
    Closed {
        /// Who.
        address: Address,
    },
    /// It failed.
    #[error("the connection to {address} failed: {source}")]
    Io {
        /// With whom.
        address: Address,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// It is no Redis.
    #[error("{address} does not answer as a Redis does{hint}")]
    NotRedis {
        /// Who.
        address: Address,
        /// What it may be.
        hint: &'static str,
    },
    /// It wants to know who we are.
    #[error("{address} wants a password: give {flags}")]
    CredentialsRequired {
        /// Who.
        address: Address,
        /// How to give one.
        flags: &'static str,
    },
    /// It does not take us for whom we say.
    #[error("{address} refuses the user or the password: {why}")]
    CredentialsRejected {
        /// Who.
        address: Address,
        /// Why, in our words: its own may hold the password.
        why: &'static str,
    },
    /// It does not do what it was asked to.
    #[error("{address} refuses {what}: {said}")]
    Rejected {
        /// Who.
        address: Address,
        /// What was asked for.
        what: &'static str,
        /// What it said.
        said: String,
    },
    /// It is a Sentinel where a Redis is meant, or the other way round.
    #[error("{address} is {is}: {right}")]
    WrongKind {
        /// Who.
        address: Address,
        /// What it is.
        is: &'static str,
        /// What would be right.
        right: &'static str,
    },
    /// It is not, or not yet, what the Sentinels say that it is.
    #[error("{address} is no primary, though the Sentinels name it as one")]
    NotPrimary {
        /// Who.
        address: Address,
    },
    /// None of the Sentinels knows the name.
    #[error("the Sentinels know no primary named {master}: see SENTINEL MASTERS on one of them")]
    UnknownMaster {
        /// The name.
        master: String,
    },
    /// Too few Sentinels agree.
    #[error(
        "no majority of the {total} Sentinels names one primary for {master}: {answered} answered, \
         {agreed} agree{}", first_failure(failure.as_ref())
    )]
    NoMajority {
        /// The primary's name.
        master: String,
        /// How many Sentinels there are.
        total: usize,
        /// How many answered.
        answered: usize,
        /// How many of them name the same address.
        agreed: usize,
        /// Why one of the others did not answer.
        failure: Option<Arc<ConnectionError>>,
    },
    /// A majority of Sentinels names another address.
    #[error("{address} is no longer the primary: a majority of the Sentinels names {now}")]
    Moved {
        /// What was the primary.
        address: Address,
        /// What is.
        now: Address,
    },
}

impl ConnectionError {
    /// Whether it takes an operator to mend this: time alone will not.
    pub(crate) fn needs_an_operator(&self) -> bool {
        match self {
            Self::File { .. }
            | Self::Content { .. }
            | Self::TlsSetup { .. }
            | Self::NoRoots
            | Self::InvalidServerName { .. }
            | Self::Tls { .. }
            | Self::NotRedis { .. }
            | Self::CredentialsRequired { .. }
            | Self::CredentialsRejected { .. }
            | Self::Rejected { .. }
            | Self::WrongKind { .. } => true,
            Self::UnknownHost { .. }
            | Self::Refused { .. }
            | Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Closed { .. }
            | Self::Io { .. }
            | Self::TlsTimedOut { .. }
            | Self::ClosedEarly { .. }
            | Self::NotPrimary { .. }
            | Self::UnknownMaster { .. }
            | Self::NoMajority { .. }
            | Self::Moved { .. } => false,
        }
    }
}

fn first_failure(failure: Option<&Arc<ConnectionError>>) -> String {
    failure.map(|failure| format!("; of another: {failure}")).unwrap_or_default()
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
            "; where it asks for our certificate, give --ledger-cert-file and --ledger-key-file"
        }
        _ => "",
    }
}

fn socket_hint(address: &Address, error: &io::Error) -> String {
    match address {
        Address::Unix(path) => io_hint::hint(path, error),
        Address::Tcp(..) => String::new(),
    }
}

/// What is dialled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ServerKind {
    /// A Redis, and the database in it.
    Redis(u32),
    /// A Sentinel.
    Sentinel,
}

/// Whom to dial, and as whom.
pub(crate) struct Handshake<'a> {
    pub(crate) address: &'a Address,
    pub(crate) credentials: &'a Credentials,
    pub(crate) tls: Option<&'a TlsFiles>,
    pub(crate) kind: ServerKind,
}

/// A connection that has been greeted.
pub(crate) struct Handshaken {
    pub(crate) resp: RespConnection,
    /// Whether the server says that it is a primary; unknown where it greets nobody.
    pub(crate) primary: Option<bool>,
}

impl Handshake<'_> {
    /// Connects, logs in, and asks whom it got.
    pub(crate) async fn open(&self, within: Duration) -> Result<Handshaken, ConnectionError> {
        let in_tls = AtomicBool::new(false);
        let opened = timeout(within, async {
            // Read first: a file that is missing is no fault of the server's.
            let credentials = self.credentials.arguments().await?;
            let stream = self.connect(&in_tls).await?;
            self.authenticate(RespConnection::new(stream), credentials.as_deref()).await
        });
        let late = |_| {
            let (address, after) = (self.address.clone(), within);
            if in_tls.load(Ordering::Relaxed) {
                ConnectionError::TlsTimedOut { address, after }
            } else {
                ConnectionError::TimedOut { address, after }
            }
        };
        opened.await.map_err(late)?
    }

    async fn connect(&self, in_tls: &AtomicBool) -> Result<Box<dyn Stream>, ConnectionError> {
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
        let found: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(unknown)?.collect();
        if found.is_empty() {
            return Err(unknown(io::ErrorKind::NotFound.into()));
        }
        // All at once: the first of them may be one that answers nobody.
        let attempts = found.into_iter().map(|at| Box::pin(TcpStream::connect(at)));
        let (stream, _) = select_ok(attempts).await.map_err(failed)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3);
        stream.set_nodelay(true).map_err(failed)?;
        SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(failed)?;
        Ok(match self.tls {
            None => Box::new(stream),
            Some(files) => {
                in_tls.store(true, Ordering::Relaxed);
                let stream = files.over(stream, host, address).await?;
                in_tls.store(false, Ordering::Relaxed);
                Box::new(stream)
            }
        })
    }

    /// AUTH, HELLO and SELECT. HELLO tells what the server is, takes no permission, and is answered
    /// whatever else the server refuses, as PING is not (MISCONF).
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

    /// A first answer; one that never came has a cause of its own, where TLS was not spoken.
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

    /// What a failure of the connection means to us.
    pub(crate) fn map_io_error(&self, error: RespError) -> ConnectionError {
        let address = self.address.clone();
        match error {
            // A TLS client without a certificate learns of its refusal by the first answer.
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

    /// What HELLO tells: whether it is a primary; an error where it is of the other kind.
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
        match self.kind {
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

    /// Why AUTH was refused, in our words: a server quotes arguments that it does not understand.
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
            "it knows passwords alone, and no users"
        } else {
            "it gives a reason that may quote them"
        };
        ConnectionError::CredentialsRejected { address: self.address.clone(), why }
    }

    /// Whether an error means that nothing can be asked on this connection.
    fn check_error_reply(&self, said: &[u8]) -> Result<(), ConnectionError> {
        if said.starts_with(b"NOAUTH") {
            let flags = match self.kind {
                ServerKind::Redis(_) => {
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

    /// A refusal in the server's words, where we gave it nothing to hide.
    pub(crate) fn rejection(&self, what: &'static str, said: &[u8]) -> ConnectionError {
        let said = String::from_utf8_lossy(said).chars().take(MAX_SAID).collect();
        ConnectionError::Rejected { address: self.address.clone(), what, said }
    }
}
