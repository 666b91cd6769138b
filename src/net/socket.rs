//! Addresses and sockets: TCP, Unix with a path, and Unix in the abstract namespace.

use std::fmt;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use consentd_os::files::{Lock, beside, is_link};
use consentd_os::io_hint;

use super::unix_connection::UnixConnection;

/// The mode of a Unix socket: its owner and its group may connect.
const SOCKET_MODE: u32 = 0o660;

/// Connections that wait to be accepted; the system may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 1_024;

/// An address to listen on or to connect to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
    /// `unix:@NAME`: no file, and no file permissions; shared by the containers of a pod.
    Abstract(String),
}

/// An invalid address.
#[derive(Clone, Debug, thiserror::Error)]
#[error("must be HOST:PORT such as 127.0.0.1:50051, unix:PATH, or unix:@NAME")]
pub struct NotAnAddress;

impl Address {
    /// A Unix socket as `--unix` names it: a path, or `@name`. The prefix that such an address has
    /// where TCP is possible too is accepted, so that one setting can be copied to the other.
    #[must_use]
    pub fn unix(path: &str) -> Self {
        let path = strip_unix_prefix(path).unwrap_or(path);
        match path.strip_prefix('@') {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Unix(path.into()),
        }
    }
}

/// The socket that an address with the prefix of Unix sockets names. ghz and grpc-go write
/// `unix:///path` for `unix:/path`.
fn strip_unix_prefix(text: &str) -> Option<&str> {
    text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:"))
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        if let Some(path) = strip_unix_prefix(text) {
            return if matches!(path, "" | "@") { Err(NotAnAddress) } else { Ok(Self::unix(path)) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(NotAnAddress)?;
        if host.is_empty() || port.parse::<u16>().is_err() || text.contains('/') {
            return Err(NotAnAddress);
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
        }
    }
}

/// Why an address cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error("{address} is in use: stop what listens there, or choose another address")]
    InUse {
        /// The address.
        address: Address,
    },
    /// The path exists and is not a socket.
    #[error("{address} exists and is not a socket: remove it, or choose another path")]
    NotASocket {
        /// The address.
        address: Address,
    },
    /// The system refused.
    #[error("cannot listen on {address}: {source}{}", hint(address, source))]
    Io {
        /// The address.
        address: Address,
        /// The system's error.
        source: io::Error,
    },
}

/// A remedy for an error of the system.
fn hint(address: &Address, source: &io::Error) -> String {
    match (address, source.kind()) {
        (Address::Unix(path), _) => {
            // If the lock file belongs to another user, its own permissions are the cause.
            let lock = beside(path, "lock");
            io_hint::hint(if lock.exists() || is_link(&lock) { &lock } else { path }, source)
        }
        (Address::Tcp(_), io::ErrorKind::PermissionDenied) => {
            "; ports below 1024 need privileges: choose one above".to_owned()
        }
        (Address::Tcp(_), io::ErrorKind::AddrNotAvailable) => {
            "; this machine has no such address: 0.0.0.0 stands for all that it has".to_owned()
        }
        _ => String::new(),
    }
}

/// A listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix.
    Unix(UnixListener, SocketFile),
}

/// A Unix socket's file, which is removed on drop. An abstract socket has none.
#[derive(Debug)]
pub struct SocketFile(Option<(PathBuf, Lock)>);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some((path, _lock)) = &self.0 {
            // If it is gone already, there is nothing to do.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// An accepted connection.
pub(crate) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixConnection),
}

impl Listener {
    /// Listens on an address.
    ///
    /// # Errors
    ///
    /// [`BindError`] names the address.
    pub async fn bind(address: &Address) -> Result<Self, BindError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address: address.clone() },
            _ => BindError::Io { address: address.clone(), source },
        };
        match address {
            Address::Tcp(host) => {
                TcpListener::bind(host.as_str()).await.map(Self::Tcp).map_err(failed)
            }
            Address::Unix(path) => bind_path(path, address).await,
            Address::Abstract(name) => {
                let listener = bind_abstract(name).map_err(failed)?;
                Ok(Self::Unix(listener, SocketFile(None)))
            }
        }
    }

    /// The address it listens on, with the assigned port if port 0 was asked for.
    ///
    /// # Errors
    ///
    /// If the system does not report it.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Self::Tcp(listener) => Address::Tcp(listener.local_addr()?.to_string()),
            Self::Unix(_, SocketFile(Some((path, _)))) => Address::Unix(path.clone()),
            Self::Unix(listener, SocketFile(None)) => {
                let address = listener.local_addr()?;
                let name = abstract_name(&address);
                Address::Abstract(name.unwrap_or_default())
            }
        })
    }

    /// Whether only this machine can connect to it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().is_ok_and(|address: SocketAddr| address.ip().is_loopback())
            }
            Self::Unix(..) => true,
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Responses are small: one must not wait for the acknowledgement of the one before.
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                UnixConnection::new(stream).map(Accepted::Unix)
            }
        }
    }
}

/// Binds a path, with the rights that it is to have before anybody can connect. Replaces a socket that a dead process
/// left, but not one that is in use. The path is bound itself, not a temporary name that is renamed, since tools such as
/// `ss` show the name that was bound.
async fn bind_path(path: &Path, address: &Address) -> Result<Listener, BindError> {
    let io = |source| BindError::Io { address: address.clone(), source };
    let in_use = || BindError::InUse { address: address.clone() };
    let lock = Lock::beside(path).map_err(io)?.ok_or_else(in_use)?;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket { address: address.clone() });
        }
        Ok(_) => match UnixStream::connect(path).await {
            // No process listens there any more.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(io)?;
            }
            // One does, even if its backlog is full.
            Ok(_) => return Err(in_use()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(in_use()),
            Err(error) => return Err(io(error)),
        },
    }
    let listener = listen_at(path).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => in_use(),
        _ => io(source),
    })?;
    Ok(Listener::Unix(listener, SocketFile(Some((path.to_owned(), lock)))))
}

/// Connections are refused until the last step, so that none is made under other rights.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(BACKLOG)?;
    UnixListener::from_std(OwnedFd::from(socket).into())
}

#[cfg(target_os = "linux")]
fn bind_abstract(name: &str) -> io::Result<UnixListener> {
    use std::os::linux::net::SocketAddrExt as _;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

#[cfg(target_os = "linux")]
fn abstract_name(address: &tokio::net::unix::SocketAddr) -> Option<String> {
    Some(String::from_utf8_lossy(address.as_abstract_name()?).into_owned())
}

#[cfg(not(target_os = "linux"))]
fn bind_abstract(_: &str) -> io::Result<UnixListener> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "abstract sockets are Linux's alone"))
}

#[cfg(not(target_os = "linux"))]
fn abstract_name(_: &tokio::net::unix::SocketAddr) -> Option<String> {
    None
}

/// Connects to a Unix socket.
///
/// # Errors
///
/// The system's error.
pub async fn connect_unix(address: &Address) -> io::Result<UnixStream> {
    match address {
        Address::Unix(path) => UnixStream::connect(path).await,
        Address::Abstract(name) => connect_abstract(name),
        Address::Tcp(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a Unix socket")),
    }
}

#[cfg(target_os = "linux")]
fn connect_abstract(name: &str) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Connecting does not wait: the backlog takes the connection, or it fails.
    socket.connect(&SockAddr::unix(format!("\0{name}"))?)?;
    UnixStream::from_std(OwnedFd::from(socket).into())
}

#[cfg(not(target_os = "linux"))]
fn connect_abstract(_: &str) -> io::Result<UnixStream> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "abstract sockets are Linux's alone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_display_round_trips() {
        for text in ["127.0.0.1:0", "localhost:50051", "[::1]:1", "unix:/a/b", "unix:@name"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("unix:///a/b".parse::<Address>().unwrap().to_string(), "unix:/a/b");
        for text in ["", "50051", ":50051", "host:", "host:99999", "unix:", "http://a:1"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn unix_takes_the_prefix_of_addresses_off() {
        for path in ["/a/b", "unix:/a/b", "unix:///a/b"] {
            assert_eq!(Address::unix(path).to_string(), "unix:/a/b");
        }
        for name in ["@name", "unix:@name"] {
            assert_eq!(Address::unix(name).to_string(), "unix:@name");
        }
    }

    #[tokio::test]
    async fn bind_replaces_a_dead_socket_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let address = Address::Unix(path.clone());
        let first = Listener::bind(&address).await.unwrap();
        assert_eq!(first.address().unwrap(), address);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        assert!(matches!(Listener::bind(&address).await, Err(BindError::InUse { .. })));
        drop(first);
        assert!(!path.exists());
        // A process that was killed leaves its file behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(&address).await.unwrap());
        std::fs::write(&path, "a letter").unwrap();
        assert!(matches!(Listener::bind(&address).await, Err(BindError::NotASocket { .. })));
    }
}
